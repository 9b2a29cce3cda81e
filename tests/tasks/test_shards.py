"""Shards: every document is in them whole, every segment hides exactly ⌊M·p⌋ tokens, and all of it can be proved."""

import os
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from pydoc_data.topics import topics
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks import draws, encoding, engines, masking, packing, rows, spans, text_tokens, tokens
from tasks import shards as stage
from tasks.artifacts import Built, Identity, Manifest, Store, Workspace, load, verify
from tasks.errors import DataError, UsageError
from tasks.shards import ShardsConfig, identity, shards, verify_masks
from tasks.vocabulary import VocabularyConfig, vocabulary

ROOT = Path(__file__).parents[2]
CONFIG = ShardsConfig(length=64, rate="0.29", draws=2, seed=3, block_bytes=60_000, shard_bytes=120_000, workers=1)
PROSE = [str(text) for _, text in sorted(topics.items())]
ODD = [
    "",
    "a",
    "[CLS][SEP][MASK]",
    "[MASK] and [CLS] are [SEP] written [PAD] here [UNK]",
    "\n",
    "é" * 300,
    "one two three",
]
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


def segments(batch: pa.RecordBatch) -> list[list[dict[str, int]]]:
    return batch.column("segments").to_pylist()


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


SCRIPT = """
import sys
from pathlib import Path
from tasks.artifacts import Store, load
from tasks.shards import ShardsConfig, shards
if __name__ == "__main__":
    config = ShardsConfig(
        length=64, rate="0.29", draws=2, seed=3, block_bytes=60_000, shard_bytes=120_000, workers=int(sys.argv[4])
    )
    print(shards(config, load(Path(sys.argv[1])), load(Path(sys.argv[2])), Store(Path(sys.argv[3])))[0].digest)
"""


@pytest.mark.parametrize("workers", [1, 2, pytest.param(8, marks=pytest.mark.slow)])
def test_the_same_bytes_for_any_number_of_workers_and_threads(made, corpus, words, tmp_path, workers):
    (tmp_path / "make.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "make.py"), str(corpus.folder), str(words.folder), str(tmp_path)]
    environment = os.environ | {"RAYON_NUM_THREADS": "3", "PYTHONHASHSEED": str(workers), "PYTHONPATH": str(ROOT)}
    words_ = [*command, str(workers)]
    done = subprocess.run(words_, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == made.digest


def test_the_same_bytes_however_many_texts_are_encoded_at_a_time(made, corpus, words, tmp_path, monkeypatch):
    monkeypatch.setattr(spans, "BATCH_BYTES", 3000)
    again, _ = shards(CONFIG, corpus, words, Store(tmp_path))
    assert again.files == made.files and again.facts == made.facts


def test_the_size_of_shards_does_not_change_rows_or_masks(made, corpus, words, tmp_path):
    whole, _ = shards(replace(CONFIG, shard_bytes=1 << 30), corpus, words, Store(tmp_path))
    for split in tokens.SPLITS:
        assert len(whole.facts["splits"][split]["files"]) == 1
        some = pa.Table.from_batches(batches(made, split))
        assert pa.Table.from_batches(batches(whole, split)).to_pylist() == some.to_pylist()


class OtherEngine:
    """An engine that gives one wrong id, in one document only."""

    name, version = "gigatoken", "0"

    def __init__(self, path: Path, wrong: str, fails: bool) -> None:
        self._right, self._wrong, self._fails = engines.open_engine(engines.REFERENCE, path), wrong, fails

    def encode(self, texts):
        ids, sizes = self._right.encode(texts)
        if any(self._wrong in text for text in texts):
            if self._fails:
                raise engines.FastFails("gigatoken 0 differs from tokenizers: it panicked.")
            ids = ids.copy()
            ids[-1] = ids[-1] ^ 1
        return ids, sizes


@pytest.mark.parametrize("fails", [False, True])
def test_a_fast_engine_that_turns_out_to_differ_is_dropped_with_all_that_it_made(
    made, corpus, words, tmp_path, monkeypatch, capsys, fails
):
    right = text_tokens.open_engine

    def opened(name: str, path: Path):
        return OtherEngine(path, PROSE[40][:200], fails) if name == "gigatoken" else right(name, path)

    monkeypatch.setattr(engines, "choose", lambda path, texts: ("gigatoken", "it is equal on the sample."))
    monkeypatch.setattr(text_tokens, "open_engine", opened)
    again, _ = shards(CONFIG, corpus, words, Store(tmp_path))
    said = capsys.readouterr().err
    assert again.digest == made.digest and again.measured()["engine"] == "tokenizers"
    assert "gigatoken 0 differs from tokenizers" in said and "All spans are encoded again by tokenizers." in said


@pytest.mark.skipif(not engines.installed(), reason="gigatoken (maskmill[fast]) is not installed")
def test_the_same_bytes_with_either_engine(made, corpus, words, tmp_path, monkeypatch):
    results = {}
    for name in (engines.REFERENCE, engines.FAST):
        monkeypatch.setattr(engines, "choose", lambda path, texts, name=name: (name, "as told."))
        results[name], _ = shards(CONFIG, corpus, words, Store(tmp_path / name))
        assert results[name].measured()["engine"] == name
    assert {manifest.digest for manifest in results.values()} == {made.digest}


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


class Killed(BaseException):
    """Stands for kill -9: nothing may catch it."""


@pytest.mark.parametrize("at", [0, 1, 3, 12, 20, 21, 23, 25])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(made, corpus, words, tmp_path, monkeypatch, at):
    wrote: list[str] = []

    def write(path: Path, batch: pa.RecordBatch) -> None:
        if len(wrote) == at:
            path.write_bytes(b"half a file")
            raise Killed
        wrote.append(path.name)
        rows.write(path, batch)

    def write_on(path: Path, batch: pa.RecordBatch) -> None:
        wrote.append(path.name)
        rows.write(path, batch)

    with monkeypatch.context() as patch:
        for module in (encoding, draws):
            patch.setattr(module, "write", write)
        with pytest.raises(Killed):
            shards(CONFIG, corpus, words, Store(tmp_path))
        for module in (encoding, draws):
            patch.setattr(module, "write", write_on)
        again, reused = shards(CONFIG, corpus, words, Store(tmp_path))
    assert again.digest == made.digest and not reused
    # 21 files of rows, of 7 spans, then 5 shards: a span is made again where its third file was not written
    twice = at % 3 if at < 21 else 0
    assert len(set(wrote)) == 26 and len(wrote) == 26 + twice, "a finished unit was made twice"


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
        for module in (encoding, draws):
            patch.setattr(module, "write", None)  # nothing is made twice
        patch.setattr(os, "replace", replace_file)
        assert shards(CONFIG, corpus, words, Store(tmp_path))[0].digest == made.digest


def test_a_second_run_reuses_them(made, corpus, words, store):
    again, reused = shards(CONFIG, corpus, words, store)
    assert reused and again.digest == made.digest
    assert made.identity == identity(CONFIG, corpus.digest, words.digest)


@pytest.mark.parametrize("change", [{"seed": 4}, {"draws": 3}, {"policy": "whole-word"}, {"policy": "span", "span": 5}])
def test_validation_and_test_are_frozen_whatever_train_is_asked(made, corpus, words, tmp_path, change):
    other, _ = shards(replace(CONFIG, **change), corpus, words, Store(tmp_path))
    differ = {name for name in made.files if made.files[name] != other.files[name]}
    assert differ == {entry["name"] for entry in made.facts["splits"]["train"]["files"]}


def test_each_of_200_flipped_bits_is_found(made, corpus, words, tmp_path):
    """Over all shards, masks, tables and manifests: `verify` must name the file, whichever bit it is."""
    from flows.verify import verify as verify_store

    store = Store(tmp_path)
    copy, _ = shards(CONFIG, corpus, words, store)
    assert verify_store(store, "shards").findings == []
    files = sorted(path for path in copy.folder.rglob("*") if path.is_file())
    assert {path.suffix for path in files} == {".arrow", ".npy", ".json"}
    rng = np.random.default_rng(8)
    sizes = np.array([path.stat().st_size for path in files])
    for number in range(200):
        # every file has its turns, whatever its size
        path = files[number % len(files)] if number < 100 else files[rng.choice(len(files), p=sizes / sizes.sum())]
        good = path.read_bytes()
        data = bytearray(good)
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        report = verify_store(store, "shards")
        assert report.damaged == 1 and any(str(path) in line for line in report.findings), path.name
        path.write_bytes(good)
    assert verify_store(store, "shards").findings == []


def test_every_flipped_bit_of_a_draw_is_named(made, corpus, words, tmp_path):
    copy, _ = shards(CONFIG, corpus, words, Store(tmp_path))
    assert verify_masks(copy) == verify_masks(made) == [] == verify(copy)
    rng = np.random.default_rng(5)
    for split, draw in (("train", 0), ("train", 1), ("validation", 0), ("test", 0)):
        entry = copy.facts["splits"][split]["files"][-1]
        path = copy.path(entry["name"])
        good = path.read_bytes()
        begin = good.index(rows.stored_draw(rows.read(path), draw).tobytes())
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


def test_a_token_that_is_lost_on_the_way_into_a_row_is_noticed(corpus, words, tmp_path, monkeypatch):
    whole = packing.fill

    def lossy(*arguments):
        filled = whole(*arguments)
        filled[filled == 300] = 301
        return filled

    monkeypatch.setattr(encoding.packing, "fill", lossy)
    with pytest.raises(DataError, match="books of shards do not balance: of"):
        shards(CONFIG, corpus, words, Store(tmp_path))


def test_a_bit_that_flips_between_the_two_passes_is_noticed(made, corpus, words, tmp_path, monkeypatch):
    make_shard = draws.make_shard

    def flipped(job):
        path = Path(job.scratch) / job.blocks[0]
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        return make_shard(job)

    with monkeypatch.context() as patch:
        patch.setattr(stage.draws, "make_shard", flipped)
        with pytest.raises(DataError, match="is damaged: its bytes are not those that were written; run again"):
            shards(CONFIG, corpus, words, Store(tmp_path))
    assert shards(CONFIG, corpus, words, Store(tmp_path))[0].digest == made.digest


def test_a_split_in_which_nothing_is_hidden_is_refused(store, words):
    short = make_corpus(store, {"train": ["a", "b", " c"], "validation": ["some more text here"], "test": ["d"]})
    with pytest.raises(UsageError, match=r"Nothing of the train split is hidden at shards\.rate 0\.29"):
        shards(CONFIG, short, words, store)


def test_shards_of_another_version_are_no_damage(corpus, words, tmp_path, monkeypatch):
    from flows.verify import verify as verify_store

    shards(CONFIG, corpus, words, Store(tmp_path))
    monkeypatch.setattr(stage, "VERSION", stage.VERSION + 1)
    report = verify_store(Store(tmp_path), "shards")
    assert report.findings == [] and "not drawn again" in report.notes[0]


def test_masks_of_another_sampler_are_refused(made):
    older = replace(made, facts={**made.facts, "sampler": {"name": "splitmix64", "version": 1}})
    with pytest.raises(DataError, match="its masks come from the sampler"):
        draws.masks_of(older, "train")
    assert len(verify_masks(older)) == 1


class CountingPool:
    """Works jobs at once, and says how many there were."""

    workers, jobs = 2, 0

    def submit(self, work, job):
        self.jobs += 1
        outcome = work(job)
        return SimpleNamespace(done=lambda timeout: True, result=lambda: outcome)


def test_a_pool_is_used_also_where_this_machine_has_one_core(made, corpus, words, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "thread_count", lambda: 1)
    pool = CountingPool()
    again, _ = shards(replace(CONFIG, workers=0), corpus, words, Store(tmp_path), pool)
    assert again.digest == made.digest and pool.jobs >= 10


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
