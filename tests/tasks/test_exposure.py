"""What the train split holds of an evaluation set, against counting it by hand. pytest tests/tasks/test_exposure.py"""

import json
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import exposure as module
from tasks.artifacts import Built, Identity, Manifest, Store, Workspace
from tasks.exposure import exposure, words_in
from tasks.leakage import WORDS
from tasks.minhash import word_hashes
from tasks.results import Exposure

DATA = Path(__file__).parents[2].parent / "shared" / "data"
ALPHABET = st.sampled_from(["a", "B", "Ä", "漢", "don't"])
TEXTS = st.lists(st.lists(ALPHABET, max_size=16).map(" ".join), max_size=6)


def corpus(store: Store, texts: list[str], splits: list[str], copies: list[int]) -> Manifest:
    def build(workspace: Workspace) -> Built:
        table = pa.table({"text": texts, "split": splits, "copies": pa.array(copies, pa.int32())})
        pq.write_table(table, workspace.folder / "documents-00000.parquet", row_group_size=3)
        return Built({f"documents_{split}": splits.count(split) for split in ("train", "validation", "test")}, {})

    return store.make(Identity("corpus", 1, {"texts": texts, "splits": splits, "copies": copies}, {}), build)[0]


def runs_of(text: str, size: int) -> set[tuple[str, ...]]:
    words = words_in(text)
    return {tuple(words[at : at + size]) for at in range(len(words) - size + 1)}


def by_hand(
    documents: list[str], examples: list[str], words: list[str], size: int = WORDS
) -> tuple[Exposure, dict[str, int]]:
    runs = {run for text in documents for run in runs_of(text, size)}
    read = [word for text in documents for word in words_in(text)]
    long = [runs_of(text, size) for text in examples if runs_of(text, size)]
    seen = Exposure(len(examples), len(long), sum(not runs.isdisjoint(one) for one in long))
    return seen, {word: read.count(word) for word in words}


@settings(deadline=None, max_examples=400)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_words_are_those_that_minhash_hashes(text: str) -> None:
    words = words_in(text)
    hashes = [word_hashes(word.encode()).tolist() for word in words]
    assert hashes == [[one] for one in word_hashes(text.encode()).tolist()]
    assert [words_in(word) for word in words] == [[word] for word in words]


@settings(deadline=None, max_examples=150)
@given(TEXTS, TEXTS, TEXTS, st.integers(1, 400), st.integers(1, 6))
def test_it_finds_what_counting_by_hand_finds(documents, first, second, at_once, size) -> None:
    words = ["a", "b", "t", "Ä", "plugh"]
    batches = [("train", pa.array(documents, pa.string())), ("test", pa.array(first, pa.string()))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "read_texts", lambda corpus: batches)
        patch.setattr(module, "AT_ONCE", at_once)
        patch.setattr(module, "WORDS", size)
        made = SimpleNamespace(counts={"documents_train": len(documents)})
        found = exposure(made, {"first": first, "second": second}, {"first": words, "third": ["b"]})
    assert found == {
        "first": by_hand(documents, first, words, size),
        "second": by_hand(documents, second, [], size),
        "third": by_hand(documents, [], ["b"], size),
    }


def test_only_the_train_split_is_read_and_a_copy_counts_again(tmp_path: Path) -> None:
    long = "one two three four five six seven eight nine ten eleven twelve thirteen"
    texts, splits = [f"So: {long}!", long.replace("one", "zero"), "one ONE", "end one two"], ["train", "test", "train"]
    made = corpus(Store(tmp_path), texts, [*splits, "train"], [1, 1, 3, 1])
    examples = [long.upper(), long.replace("one", "zero"), "too short", long.replace("seven", "7")]
    found = exposure(made, {"set": examples}, {"set": ["one", "zero", "two"]})
    assert found == {"set": (Exposure(4, 3, 1), {"one": 8, "zero": 0, "two": 2})}
    assert exposure(made, {"set": []}, {}) == {"set": (Exposure(0, 0, 0), {})}


def test_a_run_of_words_does_not_go_on_in_the_next_document() -> None:
    words = [f"w{number}" for number in range(20)]
    halves = [" ".join(words[:10]), " ".join(words[10:])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "read_texts", lambda corpus: [("train", pa.array(halves))])
        made = SimpleNamespace(counts={"documents_train": 2})
        found = exposure(made, {"whole": [" ".join(words)], "parts": [" ".join(words[:10]), " ".join(words[10:])]}, {})
    assert found["whole"][0] == Exposure(1, 1, 0) and found["parts"][0] == Exposure(2, 0, 0)


def test_what_is_counted_is_a_word() -> None:
    with pytest.raises(AssertionError, match="one word each"):
        exposure(SimpleNamespace(counts={"documents_train": 0}), {}, {"set": ["two words"]})


@pytest.mark.skipif(not (DATA / "eval").exists(), reason="needs shared/data")
def test_real_sentences_planted_in_a_novel_are_found_one_by_one(tmp_path: Path) -> None:
    lines = [line for path in sorted((DATA / "eval/blimp_first300").glob("*.jsonl")) for line in path.open("rb")]
    sentences = [json.loads(line)["sentence_good"] for line in lines]
    path = sorted((DATA / "corpus/novels").glob("*.txt"))[0]
    text = path.read_text(encoding="utf-8-sig")[:200_000]
    planted = [one for one in sentences if len(words_in(one)) >= WORDS][:40]
    documents = [text[at : at + 5000] for at in range(0, len(text), 5000)]
    documents = [f"{one[:2000]} {extra.upper()} {one[2000:]}" for one, extra in zip(documents, planted)]
    made = corpus(Store(tmp_path), documents, ["train"] * len(documents), [1] * len(documents))
    seen, counts = exposure(made, {"blimp": sentences}, {"blimp": ["the", "plugh"]})["blimp"]
    reference = by_hand(documents, sentences, ["the", "plugh"])
    assert (seen, counts) == reference and seen.found >= 40 and counts["plugh"] == 0
