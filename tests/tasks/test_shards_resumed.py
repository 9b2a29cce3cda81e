"""Shards: the same bytes whoever makes them and wherever they are killed, and any bit that flips is found."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from tasks import draws, encoding, engines, rows, spans, text_tokens, tokens
from tasks import shards as stage
from tasks.artifacts import Store, verify
from tasks.errors import DataError
from tasks.shards import identity, shards, verify_masks
from tests.tasks.prose_shards import CONFIG, PROSE, batches
from tests.tasks.prose_shards import corpus as corpus
from tests.tasks.prose_shards import made as made
from tests.tasks.prose_shards import store as store
from tests.tasks.prose_shards import words as words

ROOT = Path(__file__).parents[2]

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
