"""Shards: every document is in them whole, every segment hides exactly ⌊M·p⌋ tokens, and all of it can be proved."""

import os
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks import masking, rows, tokens
from tasks import shards as stage
from tasks.artifacts import Built, Identity, Manifest, Store, Workspace, load, verify
from tasks.errors import DataError, UsageError
from tasks.shards import ShardsConfig, identity, shards, verify_masks
from tasks.vocabulary import VocabularyConfig, vocabulary

ROOT = Path(__file__).parents[2]
CONFIG = ShardsConfig(length=64, rate="0.29", draws=2, seed=3, block_bytes=60_000)
PROSE = [str(text) for _, text in sorted(topics.items())]
ODD = ["", "a", "[MASK] and [CLS] are [SEP] written [PAD] here [UNK]", "\n", "é" * 300, "one two three"]
TEXTS = {"train": PROSE[:45] + ODD, "validation": PROSE[45:52], "test": [*PROSE[52:58], "b"]}


def make_corpus(store: Store, texts: dict[str, list[str]], group: int = 7) -> Manifest:
    """A corpus written by hand, its splits interleaved, in two files."""
    documents = [(text, split) for split, some in texts.items() for text in some]
    documents = [documents[at] for at in np.random.default_rng(0).permutation(len(documents))]

    def build(workspace: Workspace) -> Built:
        for number, some in enumerate((documents[:20], documents[20:])):
            columns = {
                "text": pa.array([text for text, _ in some], pa.large_string()),
                "split": pa.array([split for _, split in some], pa.string()),
            }
            path = workspace.folder / f"documents-{number:05d}.parquet"
            pq.write_table(pa.table(columns), path, row_group_size=group, write_page_checksum=True)
        return Built({f"documents_{split}": len(some) for split, some in texts.items()}, {"documents": documents})

    return store.make(Identity("corpus", 1, {"texts": documents, "group": group}, {}), build)[0]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def corpus(store) -> Manifest:
    return make_corpus(store, TEXTS)


@pytest.fixture(scope="module")
def words(store, corpus) -> Manifest:
    return vocabulary(VocabularyConfig(size=1024), corpus, store)[0]


@pytest.fixture(scope="module")
def made(store, corpus, words) -> Manifest:
    return shards(CONFIG, corpus, words, store)[0]


def batches(manifest: Manifest, split: str) -> list[pa.RecordBatch]:
    return [rows.read(manifest.path(entry["name"])) for entry in manifest.facts["splits"][split]["files"]]


def tokens_of(batch: pa.RecordBatch) -> np.ndarray:
    column = batch.column("tokens")
    return column.flatten().to_numpy().reshape(len(batch), column.type.list_size)


@pytest.mark.parametrize("split", tokens.SPLITS)
def test_every_document_can_be_read_back(made, corpus, words, split):
    texts = [text for text, label in corpus.facts["documents"] if label == split]
    tokenizer = tokens.open_for_text(words.path("tokenizer.json"))
    found: dict[int, dict[int, list[int]]] = {}
    for batch in batches(made, split):
        grid = tokens_of(batch)
        columns = (batch.column(name).to_pylist() for name in ("segment_lengths", "documents", "starts"))
        for row, (lengths, documents, starts) in enumerate(zip(*columns, strict=True)):
            at = 0
            for length, document, start in zip(lengths, documents, starts, strict=True):
                segment = grid[row, at : at + length].tolist()
                assert (segment[0], segment[-1]) == (2, 3) and min(segment[1:-1]) >= 5
                found.setdefault(document, {})[start] = segment[1:-1]
                at += length
            assert (grid[row, at:] == 0).all()
    for number, text in enumerate(texts):
        segments = found.pop(number, {})
        back: list[int] = []
        for start in sorted(segments):
            assert start == len(back)
            back += segments[start]
        assert back == tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(back, skip_special_tokens=False) == text
    assert not found


@pytest.mark.parametrize("split", tokens.SPLITS)
def test_each_segment_hides_exactly_its_share_and_never_a_special_token(made, split):
    p, without, masked = Fraction(CONFIG.rate), 0, 0
    for batch in batches(made, split):
        grid = tokens_of(batch)
        hidden = [masking.unpack_bits(rows.stored_draw(batch, draw, 64), 64) for draw in range(2)]
        assert not np.array_equal(hidden[0], hidden[1])
        for draw in range(2):
            assert (grid[hidden[draw]] >= 5).all()
            for row, lengths in enumerate(batch.column("segment_lengths").to_pylist()):
                at = 0
                for length in lengths:
                    expected = (length - 2) * p.numerator // p.denominator
                    assert hidden[draw][row, at : at + length].sum() == expected
                    at += length
                    if draw == 0:
                        without, masked = without + (expected == 0), masked + expected
    facts = made.facts["splits"][split]
    assert (facts["segments_without_mask"], facts["masked"]) == (without, masked)
    assert split != "train" or without >= 2


def test_a_lower_rate_hides_a_subset(made):
    for batch in batches(made, "train"):
        lengths, offsets = rows.segments_of(batch)
        sequence = batch.column("sequence").to_numpy()
        stored = rows.stored_draw(batch, 0, 64)
        lower = np.concatenate(list(rows.draw(CONFIG.seed, 0, sequence, lengths, offsets, 64, "0.15")))
        same = np.concatenate(list(rows.draw(CONFIG.seed, 0, sequence, lengths, offsets, 64, CONFIG.rate)))
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
        "segment_lengths": "list<item: uint16>",
        "documents": "list<item: uint32>",
        "starts": "list<item: uint32>",
        "draw_0": "fixed_size_binary[8]",
        "draw_1": "fixed_size_binary[8]",
    }
    assert made.facts["sampler"] == masking.SAMPLER and made.facts["rate"] == "0.29"


def test_ids_take_32_bits_only_where_the_vocabulary_needs_them():
    nothing = np.zeros(0, np.int64)
    cut, packed = stage.packing.Segments(nothing, nothing, nothing), stage.packing.pack(nothing, 64)
    for size, kind in ((1 << 16, "uint16"), ((1 << 16) + 1, "uint32")):
        batch = rows.table(np.zeros((0, 64), np.int32), cut, packed, 0, size)
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
    filled = sum((tokens_of(batch) != 0).sum() for split in tokens.SPLITS for batch in batches(made, split))
    total = sum(made.facts["splits"][split]["rows"] for split in tokens.SPLITS) * 64
    assert made.facts["fill_rate"] == round(filled / total, 6)


def test_a_wrong_number_of_documents_is_found(store, words):
    texts = {"train": ["a b c d e"], "validation": ["a b c d"], "test": ["a b c"]}

    def build(workspace: Workspace) -> Built:
        documents = [(text, split) for split, some in texts.items() for text in some]
        table = pa.table(dict(zip(("text", "split"), zip(*documents, strict=True), strict=True)))
        pq.write_table(table, workspace.folder / "documents-00000.parquet")
        return Built({"documents_train": 2, "documents_validation": 1, "documents_test": 1}, {})

    short, _ = store.make(Identity("corpus", 1, {"short": True}, {}), build)
    with pytest.raises(DataError, match="books of shards do not balance: 2 documents came into the train split, 1 are"):
        shards(CONFIG, short, words, store)


SCRIPT = """
import sys
from pathlib import Path
from tasks.artifacts import Store, load
from tasks.shards import ShardsConfig, shards
config = ShardsConfig(length=64, rate="0.29", draws=2, seed=3, block_bytes=60_000)
print(shards(config, load(Path(sys.argv[1])), load(Path(sys.argv[2])), Store(Path(sys.argv[3])))[0].digest)
"""


@pytest.mark.parametrize("threads", ["1", "3"])
def test_the_same_bytes_for_any_number_of_threads(made, corpus, words, tmp_path, threads):
    command = [sys.executable, "-c", SCRIPT, str(corpus.folder), str(words.folder), str(tmp_path)]
    environment = os.environ | {"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == made.digest


def test_the_same_bytes_however_the_corpus_lies_in_row_groups_and_batches(store, made, words, tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "BATCH_BYTES", 3000)
    other = make_corpus(store, TEXTS, group=1000)
    again, _ = shards(CONFIG, other, words, Store(tmp_path))
    assert again.files == made.files and again.facts == made.facts


class Killed(BaseException):
    """Stands for kill -9: nothing may catch it."""


@pytest.mark.parametrize("at", [0, 1, 3, 5, 6, 9])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(made, corpus, words, tmp_path, monkeypatch, at):
    wrote: list[str] = []

    def write(path: Path, batch: pa.RecordBatch) -> None:
        if len(wrote) == at:
            path.write_bytes(b"half a file")
            raise Killed
        wrote.append(path.name)
        rows.write(path, batch)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "write", write)
        with pytest.raises(Killed):
            shards(CONFIG, corpus, words, Store(tmp_path))
        patch.setattr(stage, "write", lambda path, batch: (wrote.append(path.name), rows.write(path, batch)))
        again, reused = shards(CONFIG, corpus, words, Store(tmp_path))
    assert again.digest == made.digest and not reused
    assert len(wrote) == len(set(wrote)) >= 10, "a finished unit was made twice"


def test_a_kill_while_the_shards_move_into_place_is_survived(made, corpus, words, tmp_path, monkeypatch):
    moved: list[Path] = []
    replace_file = os.replace

    def move(source: Path, target: Path) -> None:
        if Path(target).suffix == ".arrow":
            moved.append(Path(target))
            if len(moved) == 3:
                raise Killed
        replace_file(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", move)
        with pytest.raises(Killed):
            shards(CONFIG, corpus, words, Store(tmp_path))
    assert shards(CONFIG, corpus, words, Store(tmp_path))[0].digest == made.digest


def test_a_second_run_reuses_them(made, corpus, words, store):
    again, reused = shards(CONFIG, corpus, words, store)
    assert reused and again.digest == made.digest
    assert made.identity == identity(CONFIG, corpus.digest, words.digest)


def test_validation_and_test_are_frozen_whatever_the_seed(made, corpus, words, tmp_path):
    other, _ = shards(replace(CONFIG, seed=4), corpus, words, Store(tmp_path))
    differ = {name for name in made.files if made.files[name] != other.files[name]}
    assert differ == {entry["name"] for entry in made.facts["splits"]["train"]["files"]}


def test_every_flipped_bit_of_a_draw_is_named(made, corpus, words, tmp_path):
    copy, _ = shards(CONFIG, corpus, words, Store(tmp_path))
    assert verify_masks(copy) == verify_masks(made) == [] == verify(copy)
    rng = np.random.default_rng(5)
    for split, draw in (("train", 0), ("train", 1), ("validation", 0), ("test", 1)):
        entry = copy.facts["splits"][split]["files"][-1]
        path = copy.path(entry["name"])
        good = path.read_bytes()
        begin = good.index(rows.stored_draw(rows.read(path), draw, 64).tobytes())
        for _ in range(3):
            row, bit = int(rng.integers(entry["rows"])), int(rng.integers(64))
            data = bytearray(good)
            data[begin + row * 8 + bit // 8] ^= 1 << bit % 8
            path.write_bytes(bytes(data))
            (finding,) = verify_masks(copy)
            assert finding.startswith(f"{path}: row {row}, draw {draw}: 1 bit")
        path.write_bytes(good)


def test_verify_masks_never_raises_on_damage(corpus, words, tmp_path):
    copy, _ = shards(CONFIG, corpus, words, Store(tmp_path))
    path = copy.path("test-00000.arrow")
    good = path.read_bytes()
    rng = np.random.default_rng(6)
    for at in rng.integers(0, len(good), 150):
        data = bytearray(good)
        data[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(data))
        assert verify(copy), "the digest covers every byte"
        assert isinstance(verify_masks(copy), list)
    for data in (good[:100], b"", good[: len(good) // 2]):
        path.write_bytes(data)
        assert len(verify_masks(copy)) == 1


def test_datasets_opens_a_shard_as_it_is(made, tmp_path):
    import datasets

    file = str(made.path("train-00000.arrow"))  # load_dataset: Dataset.from_file reads the stream format only
    one = datasets.load_dataset("arrow", data_files=file, split="train", cache_dir=str(tmp_path))
    batch = batches(made, "train")[0]
    assert len(one) == len(batch) and one[5]["tokens"] == tokens_of(batch)[5].tolist()
    assert one[5]["draw_0"] == rows.stored_draw(batch, 0, 64)[5].tobytes()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rate": "0"}, "mask rate '0' is not between 0 and 1"),
        ({"rate": "1.0"}, "not between 0 and 1"),
        ({"rate": "a third"}, "not a number"),
        ({"length": 100}, r"shards\.length is 100; use a multiple of 8"),
        ({"length": 1 << 16}, r"shards\.length is 65536; use a multiple of 8 up to 65528"),
        ({"length": 8, "rate": "0.1"}, r"shards\.length is 8; use at least 12"),
        ({"draws": 0}, r"shards\.draws is 0; use 1 or more"),
        ({"seed": -1}, r"shards\.seed is -1"),
        ({"corruption": "bert"}, r"shards\.corruption is 'bert'; use mask or"),
        ({"block_bytes": 0}, r"shards\.block_bytes is 0"),
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


def test_blocks_are_bounded_and_in_order(corpus):
    texts = [text for text, split in corpus.facts["documents"] if split == "train"]
    got, end = [], 0
    for block in tokens.blocks(corpus, 20_000):
        if block.split != "train":
            continue
        own = [text for some in block.batches() for text in some]
        assert block.first == end and len(own) == len(block)
        assert sum(len(text.encode()) for text in own[:-1]) < 20_000
        got, end = got + own, end + len(own)
    assert got == texts


def test_real_text_fills_99_percent(store, tmp_path):
    folder = ROOT.parent / "shared" / "data" / "corpus" / "novels"
    files = sorted(folder.glob("*.txt"))[:12]
    if not files:
        pytest.skip("the corpus of novels is not on this machine")
    texts = [path.read_text(encoding="utf-8", errors="replace")[:60_000] for path in files]
    real = make_corpus(store, {"train": texts[:8], "validation": texts[8:10], "test": texts[10:]})
    learnt, _ = vocabulary(VocabularyConfig(size=2048), real, store)
    for length in (64, 128):
        filled, _ = shards(ShardsConfig(length=length), real, learnt, store)
        assert filled.facts["fill_rate"] >= 0.99
    assert load(filled.folder).digest == filled.digest
