"""Shards: every document is in them whole, and every segment hides exactly ⌊M·p⌋ tokens."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks import draws, encoding, masking, packing, rows, spans, tokens
from tasks.artifacts import Built, Identity, Store, Workspace, load
from tasks.errors import DataError, UsageError
from tasks.shards import ShardsConfig, shards, verify_masks
from tasks.vocabulary import VocabularyConfig, vocabulary
from tests.tasks.prose_shards import CONFIG, TEXTS, batches, make_corpus, segments
from tests.tasks.prose_shards import corpus as corpus
from tests.tasks.prose_shards import made as made
from tests.tasks.prose_shards import store as store
from tests.tasks.prose_shards import words as words

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("split", tokens.SPLITS)
def test_every_document_can_be_read_back(made, corpus, words, split):
    texts = [text for text, label in corpus.facts["documents"] if label == split]
    tokenizer = tokens.open_for_text(words.path("tokenizer.json"))
    found: dict[int, dict[int, list[int]]] = {}
    for batch in batches(made, split):
        grid = rows.tokens_of(batch)
        for row, own in enumerate(segments(batch)):
            at = 0
            for one in own:
                segment = grid[row, at : at + one["length"]].tolist()
                assert (segment[0], segment[-1]) == (2, 3) and min(segment[1:-1]) >= 5
                found.setdefault(one["document"], {})[one["start"]] = segment[1:-1]
                at += one["length"]
            assert (grid[row, at:] == 0).all()
    for number, text in enumerate(texts):
        pieces = found.pop(number, {})
        back: list[int] = []
        for start in sorted(pieces):
            assert start == len(back)
            back += pieces[start]
        assert back == tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(back, skip_special_tokens=False) == text
    assert not found


@pytest.mark.parametrize("split", tokens.SPLITS)
def test_each_segment_hides_exactly_its_share_and_never_a_special_token(made, split):
    p, without, masked = Fraction(CONFIG.rate), 0, 0
    for batch in batches(made, split):
        grid = rows.tokens_of(batch)
        stored = 2 if split == "train" else 1
        hidden = [masking.unpack_bits(rows.stored_draw(batch, draw), 64) for draw in range(stored)]
        assert split != "train" or not np.array_equal(hidden[0], hidden[1])
        for draw in range(stored):
            assert (grid[hidden[draw]] >= 5).all()
            for row, own in enumerate(segments(batch)):
                at = 0
                for length in (one["length"] for one in own):
                    expected = (length - 2) * p.numerator // p.denominator
                    assert hidden[draw][row, at : at + length].sum() == expected
                    at += length
                    if draw == 0:
                        without, masked = without + (expected == 0), masked + expected
    facts = made.facts["splits"][split]
    assert (facts["segments_without_mask"], facts["masked"]) == (without, masked)
    assert split != "train" or without >= 2


def test_a_lower_rate_hides_a_subset(made):
    masks = draws.masks_of(made, "train")
    for batch in batches(made, "train"):
        stored = rows.stored_draw(batch, 0)
        lower = np.concatenate(list(rows.draw(batch, masks._replace(rate="0.15"), 0)))
        same = np.concatenate(list(rows.draw(batch, masks, 0)))
        assert np.array_equal(same, stored) and not (lower & ~stored).any() and lower.any()


def test_sequence_ids_are_counted_through_each_split(made):
    for split in tokens.SPLITS:
        facts = made.facts["splits"][split]
        ids = np.concatenate([batch.column("sequence").to_numpy() for batch in batches(made, split)])
        assert np.array_equal(ids, np.arange(facts["rows"], dtype=np.uint64))
        firsts = np.cumsum([0, *(entry["rows"] for entry in facts["files"])])
        assert [entry["first_sequence"] for entry in facts["files"]] == firsts[:-1].tolist()
    assert len(made.facts["splits"]["train"]["files"]) > 2


def test_the_schema_is_the_contract(made):
    schema = batches(made, "train")[0].schema
    assert {field.name: str(field.type) for field in schema} == {
        "tokens": "fixed_size_list<item: uint16>[64]",
        "sequence": "uint64",
        "segments": "list<item: struct<length: uint16, document: uint32, start: uint32>>",
        "draw_0": "fixed_size_binary[8]",
        "draw_1": "fixed_size_binary[8]",
    }
    assert made.facts["sampler"] == masking.SAMPLER and made.facts["rate"] == "0.29"


def test_ids_take_32_bits_only_where_the_vocabulary_needs_them():
    nothing = np.zeros(0, np.int64)
    cut, packed = packing.lay(packing.Block(nothing, nothing > 0, nothing > 0), 64, 4)
    for size, kind in ((1 << 16, "uint16"), ((1 << 16) + 1, "uint32")):
        batch = rows.table(np.zeros((0, 64), np.int32), cut, packed, size)
        assert str(batch.schema.field("tokens").type.value_type) == kind


def test_the_books_balance(made, corpus, words):
    tokenizer = tokens.open_for_text(words.path("tokenizer.json"))
    expected = np.zeros(1024, np.int64)
    for text, split in corpus.facts["documents"]:
        if split == "train":
            np.add.at(expected, tokenizer.encode(text, add_special_tokens=False).ids, 1)
    unigrams = np.load(made.path("unigrams.npy"), allow_pickle=False)
    assert unigrams.dtype == np.int64 and np.array_equal(unigrams, expected)
    assert made.counts["tokens_train"] == expected.sum() == made.facts["splits"]["train"]["tokens"]
    assert made.counts["documents"] == sum(map(len, TEXTS.values()))
    assert made.counts["documents_without_tokens"] == 1 and made.counts["documents_of_one_token"] == 3
    ordinary = expected[5 : words.facts["tokens"]]
    assert made.facts["ids_unused"] == (ordinary == 0).sum()
    assert made.facts["ids_under_trained"] == (ordinary < 100).sum()
    cuts = sum(len(own) for split in tokens.SPLITS for batch in batches(made, split) for own in segments(batch))
    with_tokens = made.counts["documents"] - made.counts["documents_without_tokens"]
    assert made.counts["cuts"] == cuts - with_tokens
    assert made.counts["cuts_at_sentence"] + made.counts["cuts_at_word"] > 0.98 * made.counts["cuts"]
    assert made.facts["cut_rate"] == round(made.counts["documents_cut"] / made.counts["documents"], 6)
    filled = sum((rows.tokens_of(batch) != 0).sum() for split in tokens.SPLITS for batch in batches(made, split))
    total = sum(made.facts["splits"][split]["rows"] for split in tokens.SPLITS) * 64
    assert made.facts["fill_rate"] == round(filled / total, 6)


def test_a_wrong_number_of_documents_is_found(store, words):
    texts = {"train": ["a b c d e"], "validation": ["a b c d e f"], "test": ["a b c d e g"]}

    def build(workspace: Workspace) -> Built:
        documents = [(text, split) for split, some in texts.items() for text in some]
        table = pa.table(dict(zip(("text", "split"), zip(*documents, strict=True), strict=True)))
        pq.write_table(table, workspace.folder / "documents-00000.parquet")
        return Built({"documents_train": 2, "documents_validation": 1, "documents_test": 1}, {})

    short, _ = store.make(Identity("corpus", 1, {"short": True}, {}), build)
    with pytest.raises(DataError, match="books of shards do not balance: 2 documents came into the train split, 1 are"):
        shards(CONFIG, short, words, store)


@pytest.mark.parametrize("policy", ["uniform", "whole-word", "span"])
@pytest.mark.parametrize("packing", ["best-fit", "in-order"])
def test_every_policy_and_packing_can_be_proved(corpus, words, tmp_path, policy, packing):
    some, _ = shards(
        replace(CONFIG, policy=policy, packing=packing, span=4 if policy == "span" else 3),
        corpus,
        words,
        Store(tmp_path),
    )
    assert verify_masks(some) == []
    assert some.facts["policy"] == policy and some.facts["fill_rate"] > 0.97
    p = Fraction(CONFIG.rate)
    for batch in batches(some, "train"):
        lengths, _ = rows.segments_of(batch)
        hidden = masking.unpack_bits(rows.stored_draw(batch, 1), 64).sum()
        assert hidden == ((lengths - 2) * p.numerator // p.denominator).sum()
    if packing == "in-order":
        order = [one["document"] for batch in batches(some, "train") for own in segments(batch) for one in own]
        assert order == sorted(order)


def test_a_token_that_is_lost_on_the_way_into_a_row_is_noticed(corpus, words, tmp_path, monkeypatch):
    whole = packing.fill

    def lossy(*arguments):
        filled = whole(*arguments)
        filled[filled == 300] = 301
        return filled

    monkeypatch.setattr(encoding.packing, "fill", lossy)
    with pytest.raises(DataError, match="books of shards do not balance: of"):
        shards(CONFIG, corpus, words, Store(tmp_path))


def test_a_split_in_which_nothing_is_hidden_is_refused(store, words):
    short = make_corpus(store, {"train": ["a", "b", " c"], "validation": ["some more text here"], "test": ["d"]})
    with pytest.raises(UsageError, match=r"Nothing of the train split is hidden at shards\.rate 0\.29"):
        shards(CONFIG, short, words, store)


def test_an_id_beyond_the_vocabulary_is_refused(store, corpus, words, tmp_path):
    def build(workspace: Workspace) -> Built:
        for name in ("tokenizer.json", "words.npy"):
            (workspace.folder / name).write_bytes(words.path(name).read_bytes())
        return Built({}, {**words.facts, "size": 640})

    small, _ = store.make(Identity("vocabulary", 2, {"size": 640}, {}), build)
    with pytest.raises(DataError, match=r"gives ids up to \d+, but the vocabulary has 640; run `maskmill verify"):
        shards(CONFIG, corpus, small, Store(tmp_path))


def test_datasets_opens_a_shard_as_it_is(made, tmp_path):
    import datasets

    file = str(made.path("train-00000.arrow"))  # load_dataset: Dataset.from_file reads the stream format only
    one = datasets.load_dataset("arrow", data_files=file, split="train", cache_dir=str(tmp_path))
    batch = batches(made, "train")[0]
    assert len(one) == len(batch) and one[5]["tokens"] == rows.tokens_of(batch)[5].tolist()
    assert one[5]["segments"] == segments(batch)[5]
    assert one[5]["draw_0"] == rows.stored_draw(batch, 0)[5].tobytes()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rate": "0"}, r"shards\.rate: The mask rate '0' is not between 0 and 1"),
        ({"rate": "1.0"}, "not between 0 and 1"),
        ({"rate": "a third"}, "not a number"),
        ({"length": 100}, r"shards\.length is 100; use a multiple of 8"),
        ({"length": 1 << 16}, r"shards\.length is 65536; use a multiple of 8 up to 65528"),
        ({"length": 8, "rate": "0.1"}, r"shards\.length is 8; use at least 12"),
        ({"draws": 0}, r"shards\.draws is 0; use 1 or more"),
        ({"seed": -1}, r"shards\.seed is -1"),
        ({"corruption": "bert"}, r"shards\.corruption is 'bert'; use mask or"),
        ({"block_bytes": 0}, r"shards\.block_bytes is 0"),
        ({"shard_bytes": 0}, r"shards\.shard_bytes is 0"),
        ({"workers": -1}, r"shards\.workers is -1"),
        ({"policy": "words"}, r"shards\.policy is 'words'; use uniform, whole-word, span"),
        ({"policy": "span", "span": 0}, r"shards\.span is 0; use 1 to"),
        ({"span": 5}, r"shards\.span is 5; use it with shards\.policy: span only"),
        ({"draws": 10**8}, r"shards\.draws is 100000000; use 1 or more, 100 at most"),
        ({"packing": "tight"}, r"shards\.packing is 'tight'; use best-fit or in-order"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_sentence(change, sentence):
    with pytest.raises(UsageError, match=sentence):
        replace(CONFIG, **change)


@pytest.mark.parametrize("held_out", [[], [""]])
def test_a_split_without_a_row_is_refused(store, words, held_out):
    small = make_corpus(store, {"train": ["some text", "b c"], "validation": held_out, "test": ["more text"]})
    with pytest.raises(UsageError, match="validation split has nothing to make a row of; add documents"):
        shards(CONFIG, small, words, store)


def test_spans_are_bounded_and_whole(corpus):
    got = {split: [] for split in tokens.SPLITS}
    for number, span in enumerate(spans.spans(corpus, 60_000)):
        assert span.number == number
        texts = spans.read_span(span)
        for split, some in texts.items():
            got[split] += [text for batch in spans.in_batches(some) for text in batch.to_pylist()]
        assert (
            sum(len(text.encode()) for some in texts.values() for part in some for text in part.to_pylist()) < 120_000
        )
    for split, texts in got.items():
        assert texts == [text for text, label in corpus.facts["documents"] if label == split]


@pytest.mark.slow
def test_real_text_fills_99_percent(tmp_path):
    """All of the corpora, at each length, in each way; the held-out splits have few rows at L = 1024."""
    from tasks.corpus import CorpusConfig, Source
    from tasks.corpus import corpus as ingest

    folder = ROOT.parent / "shared" / "data" / "corpus"
    if not folder.is_dir():
        pytest.skip("the real corpora are not on this machine")
    store = Store(tmp_path)
    real, _ = ingest(CorpusConfig((Source(str(folder)),), workers=1), store)
    learnt, _ = vocabulary(VocabularyConfig(size=32000, sample_bytes=10_000_000), real, store)
    for length in (128, 512, 1024):
        for method in ("best-fit", "in-order"):
            filled, _ = shards(ShardsConfig(length=length, packing=method), real, learnt, store)
            assert filled.facts["fill_rate"] >= 0.99, (length, method)
            counts = filled.counts
            assert counts["cuts_at_sentence"] + counts["cuts_at_word"] > 0.995 * counts["cuts"]
    assert load(filled.folder).digest == filled.digest
