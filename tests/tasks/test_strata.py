"""Classes of masked tokens, and calibration over them. pytest tests/tasks/test_strata.py"""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks import corpus as corpus_stage
from tasks.artifacts import Store
from tasks.calibration import CELLS, Bin, Reliability, expected_error
from tasks.corpus import CorpusConfig
from tasks.errors import DataError
from tasks.shards import ShardsConfig, shards
from tasks.sources import Source
from tasks.strata import (
    PARTS,
    TENTHS,
    Places,
    by_frequency,
    by_part_of_word,
    by_place,
    by_source,
    documents,
    equal_masses,
    sources,
    tenths,
)
from tasks.vocabulary import VocabularyConfig, vocabulary
from tests.tasks import handmade


def places(tokens: list[list[int]], at: list[int], segment: list[int] = (), place: list[int] = ()) -> Places:
    return Places(*(np.array(one, np.int64) for one in (tokens, at, segment, place)))


@pytest.mark.parametrize("seed", range(20))
def test_tenths_partition_the_tokens_into_about_equal_shares(seed):
    generator = np.random.default_rng(seed)
    counts = generator.zipf(1.3, 500).clip(max=10**7) * (generator.random(500) < 0.9)
    tenth = tenths(counts)
    assert tenth.shape == counts.shape and tenth.min() >= 0 and tenth.max() == TENTHS - 1
    order = np.argsort(-counts, kind="stable")
    assert (np.diff(tenth[order]) >= 0).all()  # a more frequent id is never in a rarer tenth
    mass = np.bincount(tenth, counts, TENTHS)
    assert mass.sum() == counts.sum()
    for number in range(TENTHS):  # off by half an id at each end
        largest = max(counts[tenth == number], default=0) if (tenth == number).any() else counts.max()
        before = counts[tenth < number].max(initial=0)
        assert abs(mass[number] - counts.sum() / TENTHS) <= (largest + max(before, largest)) / 2 + 1


def test_what_never_occurs_is_among_the_rarest():
    assert (tenths(np.array([0, 0, 50, 50, 0]))[[0, 1, 4]] == TENTHS - 1).all()
    assert equal_masses(np.zeros(3, np.int64), 4).max() <= 3
    stratum = by_frequency(np.array([0, 0, 10, 80, 10]))
    assert stratum.rows[4].endswith("1 id, 80\u00a0% of the tokens") or "80\u00a0%" in "".join(stratum.rows)
    found = stratum.classes(places([[3, 2, 4, 0]], [0, 1, 2, 3]))
    assert found[0] < found[1] <= found[2] <= found[3] == TENTHS - 1


def test_parts_of_words_are_told_by_where_words_begin():
    """In the made-up vocabulary odd ids begin a word and even ones go on with it."""
    row = [2, 5, 7, 6, 8, 9, 6, 3]  # [CLS] a | b -c -d | e -f [SEP]
    classes = by_part_of_word(handmade.words_of(20)).classes(places([row], [1, 2, 3, 4, 5, 6]))
    assert [PARTS[one] for one in classes] == [PARTS[0], PARTS[1], PARTS[2], PARTS[2], PARTS[1], PARTS[2]]


@pytest.mark.parametrize("length", [8, 16, 64, 128, 512, 8192])
def test_every_place_is_in_the_class_that_names_it(length):
    stratum = by_place(length)
    every = np.arange(1, length - 1)
    classes = stratum.classes(places([[0]], [], [], every))
    assert len(stratum.rows) <= 8 and classes[-1] == len(stratum.rows) - 1
    for place, one in zip(every.tolist(), classes.tolist()):
        first, _, last = stratum.rows[one].replace(" or more", " to 99999").partition(" to ")
        assert int(first) <= place <= int(last or first)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three sources whose texts are of one letter each, as far as the shards."""
    folder = tmp_path_factory.mktemp("texts")
    generator = np.random.default_rng(0)
    for letter in "xyz":
        words = [letter * size for size in generator.integers(1, 9, 4000)]
        pages = [" ".join(words[at : at + 40]) for at in range(0, 4000, 40)]
        (folder / f"{letter}.txt").write_text("\n\n".join(pages) + "\n")
    store = Store(tmp_path_factory.mktemp("store"))
    names = {"x": "one", "y": "two", "z": "three"}
    places = tuple(Source(str(folder / f"{letter}.txt"), name, cut="paragraph") for letter, name in names.items())
    text, _ = corpus_stage.corpus(CorpusConfig(places, test="0.3", workers=1), store)
    words, _ = vocabulary(VocabularyConfig(size=384), text, store)
    return text, words, shards(ShardsConfig(length=32, workers=1), text, words, store)[0]


def test_the_source_of_a_segment_is_that_of_its_text(made):
    from tasks.batches import ShardReader
    from tasks.tokens import open_for_text

    text, words, rows = made
    names, source_U = sources(text, "test")
    assert sorted(names) == ["one", "three", "two"] and len(source_U) == text.counts["documents_test"]
    reader, tokenizer = ShardReader(rows, "test"), open_for_text(words.path("tokenizer.json"))
    document_S = documents(rows, "test")
    assert len(document_S) == len(reader.segment_lengths)
    number, seen = 0, set()
    for row, tokens in enumerate(reader.rows_of(np.arange(reader.rows)).tolist()):
        at = 0
        for length in reader.segments_of_rows(np.array([row]))[0].tolist():
            letters = set(tokenizer.decode(tokens[at + 1 : at + length - 1])) - {" "}
            name = names[source_U[document_S[number]]]
            assert letters == {{"one": "x", "two": "y", "three": "z"}[name]}
            seen.add(name)
            at, number = at + length, number + 1
    assert number == len(document_S) and len(seen) == 3
    stratum = by_source(names, source_U[document_S])
    assert stratum.classes(places([[0]], [], [0, 1])).tolist() == source_U[document_S[:2]].tolist()


def test_a_corpus_that_does_not_say_its_sources_or_is_damaged(tmp_path):
    def corpus(columns: dict[str, list[str]]) -> SimpleNamespace:
        pq.write_table(pa.table(columns), tmp_path / "a.parquet", write_page_checksum=True)
        return SimpleNamespace(files={"a.parquet": None}, facts={}, path=lambda name: tmp_path / name)

    assert sources(corpus({"text": ["a"], "split": ["test"]}), "test")[0] == ()
    whole = corpus({"source": ["b/1", "a/2", "b/3"], "split": ["test", "train", "test"]})
    names, numbers = sources(whole, "test")
    assert names == ("b",) and numbers.tolist() == [0, 0]
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"a\.parquet cannot be read"):
        sources(whole, "test")


def test_calibration_of_one_who_is_right_as_often_as_he_says_is_nearly_0():
    generator = np.random.default_rng(0)
    sure, honest = generator.random(50_000), Reliability()
    honest.add(sure, generator.random(50_000) < sure)
    bins = honest.bins()
    assert len(bins) == 15 and sum(one.n for one in bins) == 50_000
    assert max(one.n for one in bins) - min(one.n for one in bins) < 100
    assert [one.confidence for one in bins] == sorted(one.confidence for one in bins)
    assert expected_error(bins) < 0.012
    boaster = Reliability()
    boaster.add(np.full(100, 0.9), np.arange(100) < 60)
    assert boaster.bins() == [Bin(pytest.approx(0.9), 0.6, 100)]
    assert expected_error(boaster.bins()) == pytest.approx(0.3)


def test_calibration_does_not_depend_on_the_order():
    generator = np.random.default_rng(1)
    sure, right = generator.random(999) ** 3, generator.random(999) < 0.4
    once, twice = Reliability(), Reliability()
    once.add(sure, right)
    for part in np.array_split(generator.permutation(999), 7):
        twice.add(sure[part], right[part])
    assert np.array(twice.bins()) == pytest.approx(np.array(once.bins()), abs=1e-12)


def test_calibration_at_its_ends():
    edges = Reliability()
    edges.add(np.array([0.0, 1.0, np.nan]), np.array([False, True, False]))
    assert edges.n_C[0] == 2 and edges.n_C[CELLS - 1] == 1
    assert np.isnan(expected_error(Reliability().bins()))
