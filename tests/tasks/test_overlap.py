"""Copies of the test set among what a model was trained on. pytest tests/tasks/test_overlap.py"""

import random
from dataclasses import asdict, replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.artifacts import Built, Identity, Store
from tasks.cleaning import document_id
from tasks.evaluate import _Build
from tasks.minhash import NearDuplicates
from tasks.overlap import copies

WORDS = [f"w{number}" for number in range(400)]


def text(seed):
    return " ".join(random.Random(seed).choices(WORDS, k=120))


def nearly(seed):
    """The same but for one word."""
    return text(seed).replace(" ", " changed ", 1)


def corpus(store, train, test, near=True):
    texts, split = [*train, *test], ["train"] * len(train) + ["test"] * len(test)
    ids = [document_id(one.encode()).hex() for one in texts]

    def build(workspace):
        table = pa.table({"id": ids, "text": texts, "split": split})
        pq.write_table(table, workspace.folder / "documents-00000.parquet", write_page_checksum=True)
        return Built({"documents_train": len(train), "documents_test": len(test)}, {})

    config = {"near_duplicates": asdict(NearDuplicates(enabled=near)), "ids": ids}
    return store.make(Identity("corpus", 1, config, {}), build)[0]


def test_a_corpus_that_dropped_near_copies_is_not_measured(tmp_path):
    made = corpus(Store(tmp_path), [text(0)], [text(1)])
    assert copies(made) == {"equal": 0, "near": 0, "examples": [], "measured": []}


def test_near_copies_are_found_by_name_where_the_recipe_kept_them(tmp_path):
    train = [*map(text, range(20)), nearly(21), nearly(22), nearly(22)]
    made = corpus(Store(tmp_path), train, [text(number) for number in range(20, 30)], near=False)
    found = copies(made)
    assert (found["equal"], found["near"]) == (0, 2) and found["measured"] == [made.digest]
    assert found["examples"] == [document_id(nearly(number).encode()).hex() for number in (21, 22)]


def test_another_corpus_may_hold_the_very_documents(tmp_path):
    own = corpus(Store(tmp_path), [text(0)], [text(1), text(2)])
    other = corpus(Store(tmp_path), [text(1), nearly(2), text(3)], [text(4)])
    found = copies(own, [other])
    assert (found["equal"], found["near"], found["measured"]) == (1, 1, [other.digest])


@pytest.mark.parametrize("lost", [None, "pretrain", "shards", "corpus"])
def test_weights_that_go_on_from_another_corpus_answer_for_it_too(tmp_path, lost):
    store = Store(tmp_path)
    before = corpus(store, [text(1)], [text(4)])

    def made(stage, inputs):
        return store.make(Identity(stage, 1, {"of": stage}, inputs), lambda _: Built({}, {}))[0]

    rows = made("shards", {"corpus": "gone" if lost == "corpus" else before.digest})
    first = made("pretrain", {"shards": "gone" if lost == "shards" else rows.digest})
    inputs = {"fork": "gone" if lost == "pretrain" else first.digest}
    weights = replace(first, identity=replace(first.identity, inputs=inputs))
    build = _Build(None, None, corpus(store, [text(0)], [text(1)]), None, None, weights, None, store)
    found = build._copies()
    assert found["equal"] == 1 if lost is None else "forked from" in found["unknown"]
