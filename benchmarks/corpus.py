"""How fast is the corpus stage? Against the floor, against datatrove, with and without near copies, at two sizes.

    python benchmarks/corpus.py DATA/corpus                                   floor and both modes, 60 MB and 600 MB
    python benchmarks/corpus.py DATA/corpus --peer PATH/TO/python --sizes 60  beside datatrove in another environment

The text files below the folder are repeated with seeded edits (one word in 30 is replaced, so that repeats are neither
equal nor near copies) until they have the size. Every measurement is a process of its own with `--workers` processes
below it; they alternate, and the medians count. Wall seconds, CPU seconds of the whole tree, and the peak of its memory
(sum of the proportional set sizes, sampled) are printed.

floor       read, cut into 4096 characters, NFC, sha256, zstd Parquet: what nobody can do without
plain       the stage with near_duplicates.enabled=false (exact duplicates are dropped)
near        the stage as it comes
records     plain, on the same documents as JSON lines
datatrove   on those: JsonlReader, FTFYFormatter (mojibake, control characters, line ends, NFC), exact deduplication in
            its three steps, ParquetWriter(zstd): what plain does, as far as datatrove has it
bare        the same with NFC alone in place of FTFYFormatter
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
DOCUMENT = 4096


def repeated(source: Path, folder: Path, size: int) -> None:
    """Writes about `size` bytes of text as .txt files and, document by document, as JSON lines."""
    files = [path for path in sorted(source.rglob("*")) if path.suffix in (".txt", ".rst", ".md")]
    text, lines = folder / "text", folder / "records"
    text.mkdir(parents=True)
    lines.mkdir()
    written = turn = 0
    while written < size:
        for path in files:
            whole = path.read_text(encoding="utf-8-sig", errors="replace")
            if turn:
                whole = edited(whole, f"{turn} {path.name}")
            name = f"{turn:03d}-{path.stem}"
            (text / f"{name}.txt").write_text(whole, newline="")
            with open(lines / f"{name}.jsonl", "w") as file:
                for start in range(0, len(whole), DOCUMENT):
                    file.write(json.dumps({"text": whole[start : start + DOCUMENT], "id": f"{name}/{start}"}) + "\n")
            written += len(whole.encode())
            if written >= size:
                return
        turn += 1


def edited(text: str, seed: str) -> str:
    """One word in 30 is another one."""
    draw = random.Random(seed)
    words = re.findall(r"[a-z]{3,}", text[:200_000]) or ["word"]
    return re.sub(r"[A-Za-z]{3,}", lambda found: draw.choice(words) if draw.random() < 1 / 30 else found[0], text)


# What is measured: each a process


def ours(folder: Path, work: Path, workers: int, near: bool) -> None:
    from tasks.artifacts import Store
    from tasks.corpus import CorpusConfig, corpus
    from tasks.minhash import NearDuplicates
    from tasks.sources import Source

    config = CorpusConfig(
        (Source(str(folder)),), near_duplicates=NearDuplicates(enabled=near), workers=workers, max_bad_fraction="1"
    )
    manifest, _ = corpus(config, Store(work / "store"))
    print(json.dumps({key: manifest.counts[key] for key in ("documents_in", "documents_kept", "bytes_kept")}))


def floor(folder: Path, work: Path, workers: int) -> None:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    files = sorted(folder.iterdir())
    groups = [(files[number::workers], work / f"{number}.parquet") for number in range(workers)]
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        print(json.dumps({"bytes_kept": sum(pool.map(floor_of, groups))}))


def floor_of(group: tuple[Sequence[Path], Path]) -> int:
    import unicodedata
    from hashlib import sha256

    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("id", pa.string()), ("text", pa.large_string())])
    ids: list[str] = []
    texts: list[str] = []
    held = total = 0
    with pq.ParquetWriter(
        group[1], schema, compression="zstd", use_dictionary=False, write_page_checksum=True
    ) as writer:
        for path in group[0]:
            whole = path.read_bytes().decode()
            for start in range(0, len(whole), DOCUMENT):
                text = unicodedata.normalize("NFC", whole[start : start + DOCUMENT])
                data = text.encode()
                ids.append(sha256(data).hexdigest()[:32])
                texts.append(text)
                held, total = held + len(data), total + len(data)
            if held >= 16 << 20:
                writer.write_table(pa.table([pa.array(ids), pa.array(texts, pa.large_string())], schema))
                ids, texts, held = [], [], 0
        writer.write_table(pa.table([pa.array(ids), pa.array(texts, pa.large_string())], schema))
    return total


DATATROVE = """
import json, sys, unicodedata
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup.exact_dedup import (
    ExactDedupConfig, ExactDedupFilter, ExactDedupSignature, ExactFindDedups)
from datatrove.pipeline.formatters import FTFYFormatter
from datatrove.pipeline.formatters.base import BaseFormatter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers.parquet import ParquetWriter

class NFC(BaseFormatter):
    name = "NFC"
    def format(self, text):
        return unicodedata.normalize("NFC", text)

def content(document):
    return document.text

if __name__ == "__main__":
    folder, work, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
    config = ExactDedupConfig(content_getter=content)
    formatter = NFC if sys.argv[4] == "bare" else FTFYFormatter
    def run(name, steps, tasks):
        LocalPipelineExecutor(pipeline=steps, tasks=tasks, workers=tasks, logging_dir=f"{work}/logs/{name}").run()
    run("1", [JsonlReader(folder), formatter(), ExactDedupSignature(f"{work}/signatures", config, workers)], workers)
    run("2", [ExactFindDedups(f"{work}/signatures", f"{work}/duplicates", config)], workers)
    run("3", [JsonlReader(folder), formatter(), ExactDedupFilter(f"{work}/duplicates", config),
              ParquetWriter(f"{work}/out", compression="zstd")], workers)
    print(json.dumps({}))
"""


# Measuring


def measure(command: Sequence[str]) -> dict[str, float]:
    """Runs a command: wall and CPU seconds, and the peak of the memory of its whole tree in MB."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    started, before = time.monotonic(), os.times()
    peak = 0.0
    with tempfile.TemporaryFile("w+") as said:  # a pipe that nobody reads would fill up
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=said, cwd=tempfile.gettempdir())
        tree = psutil.Process(process.pid)
        while process.poll() is None:
            peak = max(peak, memory(tree))
            time.sleep(0.1)
        seconds, after = time.monotonic() - started, os.times()
        said.seek(0)
        if process.returncode:
            raise SystemExit(said.read()[-2000:])
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"wall": seconds, "cpu": cpu, "memory": peak}


def memory(tree: psutil.Process) -> float:
    """MB of a process and all below it, shared pages counted once; those of mapped files left out."""
    total = 0
    try:
        for one in [tree, *tree.children(recursive=True)]:
            rollup = Path(f"/proc/{one.pid}/smaps_rollup").read_text()
            total += sum(int(value) for value in re.findall(r"^Pss_(?:Anon|Shmem):\s+(\d+)", rollup, re.M))
    except (psutil.Error, OSError):
        return 0.0
    return total / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="text files to repeat")
    parser.add_argument("--sizes", type=int, nargs="+", default=[60, 600], help="MB")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--peer", help="a Python with datatrove[io,processing]")
    parser.add_argument("--only", nargs="+", help="some of floor, plain, near, records, datatrove, bare")
    parser.add_argument("--work", type=Path, help="folder of the child", default=None)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child == "floor":
        return floor(given.folder, given.work, given.workers)
    if given.child:
        return ours(given.folder, given.work, given.workers, given.child == "near")
    with tempfile.TemporaryDirectory() as temporary:
        for size in given.sizes:
            report(given, size, Path(temporary) / str(size))


def report(given: Any, size: int, folder: Path) -> None:
    repeated(given.folder, folder, size * 1_000_000)
    megabytes = sum(path.stat().st_size for path in (folder / "text").iterdir()) / 1e6
    peer = folder / "peer.py"
    peer.write_text(DATATROVE)
    work = folder / "work"
    rest = ["--work", str(work), "--workers", str(given.workers)]
    me = [sys.executable, __file__]
    commands = {
        "floor": [*me, str(folder / "text"), *rest, "--child", "floor"],
        "plain": [*me, str(folder / "text"), *rest, "--child", "plain"],
        "near": [*me, str(folder / "text"), *rest, "--child", "near"],
        "records": [*me, str(folder / "records"), *rest, "--child", "plain"],
    }
    if given.peer:
        words = [given.peer, str(peer), str(folder / "records"), str(work), str(given.workers)]
        commands |= {"datatrove": [*words, "ftfy"], "bare": [*words, "bare"]}
    commands = {name: command for name, command in commands.items() if not given.only or name in given.only}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    for _ in range(given.repeats):
        for name, command in commands.items():
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            runs[name].append(measure(command))
    print(f"\n{megabytes:.1f} MB, {given.workers} processes, median of {given.repeats}", flush=True)
    print(f"{'':10} {'wall s':>8} {'cpu s':>8} {'MB/s':>8} {'MB/cpu-s':>9} {'memory MB':>10} {'wall / floor':>13}")
    floor_wall = median(one["wall"] for one in runs["floor"]) if "floor" in runs else float("nan")
    for name, some in runs.items():
        wall, cpu, peak = (median(one[key] for one in some) for key in ("wall", "cpu", "memory"))
        print(
            f"{name:10} {wall:8.2f} {cpu:8.2f} {megabytes / wall:8.1f} {megabytes / cpu:9.1f} {peak:10.0f} "
            f"{wall / floor_wall:13.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
