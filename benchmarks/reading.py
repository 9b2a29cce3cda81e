"""How fast are random batches read? Ours against datasets, mosaicml-streaming and litdata, on the same rows.

    python benchmarks/reading.py DATA/corpus                                  ours and datasets
    python benchmarks/reading.py DATA/corpus --peer PATH/TO/python            beside both others in another environment

The text files below the folder become a corpus, a vocabulary of 32768 and shards of L = 512; the token ids of the train
split are handed to the others as they are, 16 bits each, without compression. Then 64 rows at a time are read in a
random order, the same for all, no worker processes, one thread. Every reader is a process of its own; they alternate,
and the medians count. Mtok counts positions (rows times L), per CPU-second of the loop and per second.

rows             ShardReader.rows_of: token ids as int64 (64, 512)
rows-raw         ShardReader.stored_rows: as they are stored, 16 bits
batch            training_batch: ids, hidden positions and targets, segment ids, as torch tensors; stored draws
batch-redrawn    the same in an epoch of which no draw is stored
datasets-torch   Dataset.with_format("torch")[64 indices], on the shard files themselves
datasets-numpy   the same with "numpy", and a cast to int64
mds              mosaicml-streaming: LocalDataset[i] 64 times, stacked, as int64
mds-iterate      StreamingDataset(shuffle=True) and its StreamingDataLoader, in its own order
litdata          StreamingDataset(item_loader=TokensLoader)[i] 64 times, stacked
litdata-iterate  the same with shuffle=True in its StreamingDataLoader, in its own order
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
ROWS, LENGTH, BATCHES = 64, 512, 300
WARM = 20
"""Batches before the clock runs."""


def batches_of(rows: int) -> NDArray[np.int64]:
    """Row numbers of all batches (BATCHES + WARM, ROWS): the same for every reader."""
    wanted = (BATCHES + WARM) * ROWS
    turns = [np.random.default_rng(turn).permutation(rows) for turn in range(-(-wanted // rows))]
    return np.concatenate(turns)[:wanted].reshape(-1, ROWS)


# Readers: each a function of the shards' folder that returns what reads a batch


def of_rows(folder: Path, raw: bool) -> Callable[[int], Any]:
    from tasks.artifacts import load
    from tasks.batches import ShardReader

    reader = ShardReader(load(folder), "train")
    ids = batches_of(reader.rows)
    read = reader.stored_rows if raw else reader.rows_of
    return lambda number: read(ids[number])


def of_batches(folder: Path, epoch: int) -> Callable[[int], Any]:
    from tasks.artifacts import load
    from tasks.batches import ShardReader, training_batch

    reader = ShardReader(load(folder), "train")
    begin = epoch * -(-reader.rows // ROWS)
    per_epoch = reader.rows // ROWS - 1  # whole epochs only: 0 has a stored draw, the next has none
    return lambda number: training_batch(reader, (begin + number % per_epoch) * ROWS, ROWS, 0).tokens_BL.numpy()


def of_datasets(folder: Path, kind: str) -> Callable[[int], Any]:
    os.environ |= {"HF_HOME": tempfile.mkdtemp(dir=os.environ["BENCHMARK_WORK"]), "HF_DATASETS_OFFLINE": "1"}
    import datasets

    datasets.disable_progress_bars()
    files = sorted(str(path) for path in folder.glob("train-*.arrow"))
    rows = datasets.load_dataset("arrow", data_files=files, split="train").with_format(kind, columns=["tokens"])
    ids = batches_of(len(rows))
    if kind == "numpy":
        return lambda number: rows[ids[number].tolist()]["tokens"].astype(np.int64)
    return lambda number: rows[ids[number].tolist()]["tokens"].numpy()


READERS: dict[str, Callable[[Path], Callable[[int], Any]]] = {
    "rows": lambda folder: of_rows(folder, False),
    "rows-raw": lambda folder: of_rows(folder, True),
    "batch": lambda folder: of_batches(folder, 0),
    "batch-redrawn": lambda folder: of_batches(folder, 1),
    "datasets-torch": lambda folder: of_datasets(folder, "torch"),
    "datasets-numpy": lambda folder: of_datasets(folder, "numpy"),
}
OWN_ORDER = {"batch", "batch-redrawn", "mds-iterate", "litdata-iterate"}
IN_PEER = ("mds", "mds-iterate", "litdata", "litdata-iterate")

PEER = """
import json, os, sys, time, types
from pathlib import Path
import numpy as np
name, folder, work, said = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
rows = np.load(folder / "rows.npy", mmap_mode="r")
ids = np.load(folder / "ids.npy")
if name.startswith("mds"):
    try:
        import torchvision
    except Exception:  # only its picture classes need it, and no build of it may fit the torch that is here
        sys.modules["streaming.vision"] = types.ModuleType("streaming.vision")
import torch
torch.set_num_threads(1)

def again(make):
    # batch after batch, epoch after epoch
    while True:
        yield from make()

def mds():
    from streaming import LocalDataset, MDSWriter, StreamingDataLoader, StreamingDataset
    if not work.exists():
        with MDSWriter(out=str(work), columns={"tokens": f"ndarray:uint16:{rows.shape[1]}"}) as out:
            for row in rows:
                out.write({"tokens": row})
    stack = lambda some: torch.from_numpy(np.stack([one["tokens"] for one in some]).astype(np.int64))
    if name == "mds":
        data = LocalDataset(str(work))
        return lambda number: stack([data[int(at)] for at in ids[number]])
    data = StreamingDataset(local=str(work), shuffle=True, batch_size=ids.shape[1], shuffle_seed=1)
    loader = StreamingDataLoader(data, batch_size=ids.shape[1], num_workers=0, collate_fn=stack, drop_last=True)
    batches = again(lambda: loader)
    return lambda number: next(batches)

def row_of(number):
    return torch.from_numpy(np.load(folder / "rows.npy", mmap_mode="r")[number].astype(np.int32))

def lit():
    import litdata
    from litdata.streaming.item_loader import TokensLoader
    length = rows.shape[1]
    if not work.exists():
        litdata.optimize(fn=row_of, inputs=list(range(len(rows))), output_dir=str(work), chunk_bytes="64MB",
                         num_workers=1, item_loader=TokensLoader(length), keep_data_ordered=True)
    shuffle = name != "litdata"
    data = litdata.StreamingDataset(str(work), item_loader=TokensLoader(length), shuffle=shuffle, drop_last=True)
    if not shuffle:
        return lambda number: torch.stack([data[int(at)] for at in ids[number]]).to(torch.int64)
    loader = litdata.StreamingDataLoader(data, batch_size=ids.shape[1], num_workers=0, drop_last=True)
    batches = again(lambda: loader)
    return lambda number: next(batches).to(torch.int64)

if __name__ == "__main__":
    read = (mds if name.startswith("mds") else lit)()
    exec(Path(sys.argv[5]).read_text())
    said.write_text(json.dumps(timed(read, len(ids), ids)))
"""

TIMED = f"""
def timed(read, count, ids):
    first = np.asarray(read(0))
    for number in range(1, {WARM}):
        read(number)
    wall, cpu = time.perf_counter(), time.process_time()
    for number in range({WARM}, count):
        read(number)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    tokens = (count - {WARM}) * first.size / 1e6
    return {{"cpu": tokens / cpu, "wall": tokens / wall, "shape": list(first.shape), "type": str(first.dtype),
            "sum": int(first.astype(np.int64).sum())}}
"""
"""The loop itself, the same text for this environment and the other."""


def prepared(source: Path, folder: Path) -> Path:
    """Makes corpus, vocabulary and shards; lays the train split's rows down as arrays. Returns the shards' folder."""
    from tasks.artifacts import Store
    from tasks.batches import ShardReader
    from tasks.corpus import CorpusConfig, corpus
    from tasks.minhash import NearDuplicates
    from tasks.shards import ShardsConfig, shards
    from tasks.sources import Source
    from tasks.vocabulary import VocabularyConfig, vocabulary

    store, near = Store(folder / "store"), NearDuplicates(enabled=False)
    text, _ = corpus(CorpusConfig((Source(str(source)),), near_duplicates=near, max_bad_fraction="1"), store)
    words, _ = vocabulary(VocabularyConfig(size=32768), text, store)
    manifest, _ = shards(ShardsConfig(length=LENGTH), text, words, store)
    reader = ShardReader(manifest, "train")
    np.save(folder / "rows.npy", reader.stored_rows(np.arange(reader.rows)))
    np.save(folder / "ids.npy", batches_of(reader.rows))
    return manifest.folder


def commands(given: Any, folder: Path, shards: Path) -> Iterator[tuple[str, list[str]]]:
    """(reader, its process); what was not asked for, or needs an environment that was not given, is left out."""
    said = str(folder / "said.json")
    for name in READERS:
        if name in given.only:
            yield name, [sys.executable, __file__, str(shards), "--child", name, "--said", said]
    for name in IN_PEER if given.peer else ():
        if name in given.only:
            data = folder / name.partition("-")[0]
            yield name, [given.peer, *(str(folder / one) for one in ("peer.py",)), name, str(folder), str(data), said,
                         str(folder / "timed.py")]  # fmt: skip


def child(given: Any) -> None:
    import torch

    torch.set_num_threads(1)
    names: dict[str, Any] = {"np": np, "time": time}
    exec(TIMED, names)
    given.said.write_text(json.dumps(names["timed"](READERS[given.child](given.folder), BATCHES + WARM, None)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="text files")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer", help="a Python with torch, mosaicml-streaming and litdata")
    parser.add_argument("--only", nargs="+", default=[*READERS, *IN_PEER], choices=[*READERS, *IN_PEER])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--said", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        return child(given)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shards = prepared(given.folder, folder)
        (folder / "peer.py").write_text(PEER)
        (folder / "timed.py").write_text(TIMED)
        report(given, folder, dict(commands(given, folder, shards)))


def report(given: Any, folder: Path, readers: dict[str, list[str]]) -> None:
    rows, ids = np.load(folder / "rows.npy", mmap_mode="r"), np.load(folder / "ids.npy")
    wanted = int(rows[ids[0]].astype(np.int64).sum())
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "BENCHMARK_WORK": str(folder),
        "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in readers}
    for _ in range(given.repeats):
        for name, command in readers.items():
            done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{name}: {done.stderr[-2000:]}")
            runs[name].append(json.loads((folder / "said.json").read_text()))
            if name not in OWN_ORDER and runs[name][-1]["sum"] != wanted:
                raise SystemExit(f"{name} read other rows.")
    print(f"\n{len(rows):,} rows of {LENGTH}, batches of {ROWS}, {BATCHES} of them, median of {given.repeats}")
    print(f"{'':16} {'Mtok/cpu-s':>11} {'Mtok/s':>9} {'rows / it':>10}  a batch")
    for name, some in runs.items():
        cpu, wall = (median(one[key] for one in some) for key in ("cpu", "wall"))
        against = median(a["cpu"] / b["cpu"] for a, b in zip(runs.get("rows", some), some, strict=True))
        shape = " x ".join(map(str, some[0]["shape"]))
        print(f"{name:16} {cpu:11.1f} {wall:9.1f} {against:10.1f}  {some[0]['type']} {shape}", flush=True)


if __name__ == "__main__":
    main()
