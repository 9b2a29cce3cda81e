"""Evidence: what an evaluation leaves for the gate. pytest tests/tasks/test_evidence.py"""

import math
import random
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks import evidence, gate
from tasks.artifacts import Built, Identity, Manifest, Store
from tasks.cleaning import document_id
from tasks.errors import DataError
from tasks.evaluate import EvaluateConfig, evaluate
from tasks.evidence import document_ids, read, read_units, write
from tasks.passages import PseudoLikelihoodConfig
from tasks.results import CHAMPION, MODEL, Units
from tests.tasks import small_model

CONFIG = EvaluateConfig(
    rates=("0.15",), sentences=(), threads=1, pseudo_likelihood=PseudoLikelihoodConfig(passages=4, passage_bytes=24)
)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store"))
    corpus = small_model.corpus(store)
    words = small_model.vocabulary(store, corpus)
    rows = small_model.shards(store, words)
    best = small_model.pretrain(store, words, rows, noise=0.0)
    weights = small_model.pretrain(store, words, rows, noise=0.05)
    alone, duel = (
        evaluate(CONFIG, corpus, words, rows, one, rival, store)[0] for one, rival in ((best, None), (weights, best))
    )
    return store, corpus, words, rows, best, weights, alone, duel


def test_its_sums_are_the_figures_of_the_report(parts):
    *_, weights, _, duel = parts
    found = read(duel.path(evidence.FILE))[MODEL]
    metrics = duel.facts["metrics"]
    assert found.pretrain == weights.digest and found.test == duel.facts["test"]["digest"]
    assert found.documents.n.sum() == duel.facts["masked"]["0.3"]
    assert found.nats == pytest.approx(metrics["test/rate_0.3/masked_cross_entropy"], abs=1e-6)
    bits = found.passages.loss.sum() / found.passages.n.sum()
    assert bits == pytest.approx(metrics["test/pseudo_likelihood/bits_per_byte"], abs=1e-6)
    for stratum in set(found.classes.groups):
        inside = np.array([group == stratum for group in found.classes.groups])
        assert found.classes.n[inside].sum() == found.documents.n.sum()
        assert found.classes.loss[inside].sum() == pytest.approx(found.documents.loss.sum())


def test_the_champion_beside_it_has_the_scores_that_it_has_alone(parts):
    *_, best, _, alone, duel = parts
    beside, own = read(duel.path(evidence.FILE))[CHAMPION], read(alone.path(evidence.FILE))[MODEL]
    assert (beside.pretrain, beside.test) == (own.pretrain, own.test) == (best.digest, own.test)
    for kind in ("documents", "classes", "passages"):
        one, other = getattr(beside, kind), getattr(own, kind)
        assert (one.groups, one.names) == (other.groups, other.names)
        assert np.array_equal(one.n, other.n) and np.allclose(one.loss, other.loss, rtol=1e-5)
    assert CHAMPION not in read(alone.path(evidence.FILE))


def test_the_gate_decides_alike_by_either(parts):
    *_, alone, duel = parts
    challenger, champion = read(duel.path(evidence.FILE)), read(alone.path(evidence.FILE))
    refused = gate.decide(challenger[MODEL], champion[MODEL], gate.Rule())
    assert refused.kind == gate.SAW_TEST_SET  # the texts of that corpus are all alike, and nobody dropped copies
    mine = replace(challenger[MODEL], copies={})
    own = gate.decide(mine, champion[MODEL], gate.Rule())
    beside = gate.decide(mine, challenger[CHAMPION], gate.Rule())
    assert own.difference == pytest.approx(beside.difference, abs=1e-6) and own.kind == beside.kind
    assert own.difference == pytest.approx(
        duel.facts["metrics"]["test/rate_0.3/masked_cross_entropy"]
        - alone.facts["metrics"]["test/rate_0.3/masked_cross_entropy"],
        abs=2e-6,
    )


def test_a_champion_of_another_vocabulary_has_passages_only(parts):
    store, corpus, words, rows, *_, weights, _, _ = parts
    stranger = small_model.pretrain(store, replace(words, digest="f" * 64), rows, seed=3)
    report, _ = evaluate(CONFIG, corpus, words, rows, weights, stranger, store)
    found = read(report.path(evidence.FILE))[CHAMPION]  # its vocabulary is not in the store: not even these
    assert found.vocabulary == "f" * 64 and not len(found.documents.n) and not len(found.passages.n)


def test_the_same_evaluation_leaves_the_same_bytes(parts, tmp_path):
    _, corpus, words, rows, best, weights, _, duel = parts
    again, _ = evaluate(CONFIG, corpus, words, rows, weights, best, Store(tmp_path))
    assert again.files[evidence.FILE] == duel.files[evidence.FILE]


def test_what_is_written_is_read(tmp_path):
    n = np.array([3, 0, 5])
    names = ("a", "", "\u00e9\u4e2d")
    units = [
        Units("document", ("",) * 3, names, n, {MODEL: np.array([1.5, 0.0, math.nan]), "baseline_unigram": n / 2}),
        Units("passage", names, names, n, {MODEL: n / 3, CHAMPION: n / 7}),
    ]
    about = {"test": "t", "rate": "0.3", "copies": {}, "models": {}}
    write(tmp_path / "x.arrow", units, about)
    found, said = read_units(tmp_path / "x.arrow")
    assert said == about and [one.kind for one in found] == ["document", "passage"]
    for one, other in zip(found, units, strict=True):
        assert (one.groups, one.names) == (other.groups, other.names) and np.array_equal(one.n, other.n)
        assert all(np.array_equal(some, other.sums[label], equal_nan=True) for label, some in one.sums.items())
    assert set(found[0].sums) == {MODEL} and set(found[1].sums) == {MODEL, CHAMPION}
    table = pa.ipc.open_file(tmp_path / "x.arrow").read_all()  # anybody can
    assert table.column_names == ["kind", "group", "name", "n", MODEL, CHAMPION]


@pytest.mark.parametrize("data", [b"", b"no arrow", b"ARROW1\0\0" + b"\0" * 40])
def test_what_is_no_evidence_is_said_so(tmp_path, data):
    (tmp_path / "x.arrow").write_bytes(data)
    with pytest.raises(DataError, match="cannot be read as scores"):
        read(tmp_path / "x.arrow")


def corpus_of(store, columns) -> Manifest:
    def build(workspace):
        pq.write_table(pa.table(columns), workspace.folder / "part-0.parquet", write_page_checksum=True)
        return Built({}, {})

    return store.make(Identity("corpus", 1, {"columns": sorted(columns)}, {}), build)[0]


def test_a_document_goes_by_the_digest_of_its_text_whether_the_corpus_has_it_or_not(tmp_path):
    texts, split = ["one text", "another", "th\u00efrd"], ["test", "train", "test"]
    ids = [document_id(text.encode()).hex() for text in texts]
    bare = corpus_of(Store(tmp_path), {"text": texts, "split": split})
    full = corpus_of(Store(tmp_path), {"text": texts, "split": split, "id": ids})
    assert document_ids(bare, "test") == document_ids(full, "test") == (ids[0], ids[2])


def test_scores_with_a_flipped_bit_are_refused_or_read_and_never_end_the_process(tmp_path):
    n = np.full(3, 7)
    write(tmp_path / "a", [Units("document", ("",) * 3, ("a", "b", "c"), n, {MODEL: n * 0.5})], {"models": {}})
    whole, rng = (tmp_path / "a").read_bytes(), random.Random(0)
    for _ in range(500):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (tmp_path / "b").write_bytes(data)
        with suppress(DataError):
            read_units(tmp_path / "b")


@pytest.mark.parametrize(
    "odd", [{"models": 3}, {"test": 3}, {"copies": {"equal": "x"}}, {"models": {"test": {"pretrain": "p"}}}]
)
def test_scores_that_do_not_say_what_they_are_of_are_refused(tmp_path, odd):
    about = {"test": "t", "rate": "0.3", "copies": {}, "models": {}} | odd
    write(tmp_path / "a", [], about)
    with pytest.raises(DataError, match="cannot be read as scores"):
        read(tmp_path / "a")
