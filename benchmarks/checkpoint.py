"""What does a checkpoint cost training? Ours in the background against a plain synchronous save, on the same tensors.

    python benchmarks/checkpoint.py FOLDER                    both shapes; FOLDER is on the disk to be measured
    python benchmarks/checkpoint.py FOLDER --shape 6x256 --beside 40

Weights and AdamW's two moments with the names and shapes of the model, random. The ways alternate and medians count.

begin      Keeper.begin, and then waiting for the thread: what training stands still for, and what the thread takes
save       as it was before: safetensors.torch.save to bytes, write, fsync, read all of it, hash both

blocked    seconds that training stands still
written    seconds until the checkpoint counts
cpu        seconds of a core, by all threads together
memory     bytes at most beyond the tensors, as a multiple of them
of 15 s    share of the 100 steps of 150 ms between two checkpoints: standing still; and the cores' time, where the
           thread takes it from training

--beside STEPS also lets matrix products on all threads run for so many steps of about 150 ms, with one checkpoint begun
at the first and without: the seconds that they take longer are the whole price.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import safetensors.torch
import torch
from torch import Tensor

from tasks.artifacts import canonical, write_atomic
from tasks.encoder import EncoderConfig, MaskedLanguageModel
from tasks.keeper import Keeper

SPECIAL = {f"{name}_id": number for number, name in enumerate(("pad", "unk", "cls", "sep", "mask"))}
SHAPES = {
    "6x256": EncoderConfig(8192, 128, 6, 256, 4, 384, **SPECIAL),
    "22x768": EncoderConfig(50368, 1024, 22, 768, 12, 1152, **SPECIAL),
}
INTERVAL = 100 * 0.15
"""Seconds between two checkpoints."""


def random_tensors(config: EncoderConfig) -> dict[str, Tensor]:
    """Parameters and AdamW's state, float32."""
    with torch.device("meta"):
        shapes = {name: one.shape for name, one in MaskedLanguageModel(config).named_parameters()}
    tensors = {f"model/{name}": torch.randn(shape) for name, shape in shapes.items()}
    for slot in ("exp_avg", "exp_avg_sq"):
        tensors |= {f"optimizer/adamw/{name}/{slot}": torch.randn(shape) for name, shape in shapes.items()}
    return tensors | {f"optimizer/adamw/{name}/step": torch.tensor(7.0) for name in shapes}


def save(folder: Path, step: int, tensors: dict[str, Tensor]) -> None:
    """As checkpoints were written before."""
    path = folder / f"step-{step:09d}.safetensors"
    data = safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    receipt = {"step": step, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    write_atomic(path, data)
    write_atomic(path.with_suffix(".json"), canonical(receipt))
    assert hashlib.sha256(path.read_bytes()).hexdigest() == receipt["sha256"]


def memory(name: str) -> int:
    """Bytes, from /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


def measured(way: Callable[[], tuple[float, float]]) -> dict[str, float]:
    """One checkpoint; `way` returns the seconds that it blocked and that it took."""
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    cpu = time.process_time()
    blocked, written = way()
    peak = memory("VmHWM") - before
    return {"blocked": blocked, "written": written, "cpu": time.process_time() - cpu, "memory": peak}


def compare(folder: Path, name: str, repeats: int) -> None:
    tensors = random_tensors(SHAPES[name])
    size = sum(tensor.nbytes for tensor in tensors.values())
    numbers = sum(tensor.numel() for path, tensor in tensors.items() if path.startswith("model/"))
    keeper = Keeper(folder / name / "begin")
    (folder / name / "save").mkdir(parents=True)
    step = 0

    def begin() -> tuple[float, float]:
        began = time.perf_counter()
        keeper.begin(step, tensors, {"tokens": step})
        blocked = time.perf_counter() - began
        keeper.wait()
        return blocked, time.perf_counter() - began

    def plain() -> tuple[float, float]:
        began = time.perf_counter()
        save(folder / name / "save", step, tensors)
        took = time.perf_counter() - began
        shutil.rmtree(folder / name / "save")
        (folder / name / "save").mkdir()
        return took, took

    first = measured(begin)
    rows: dict[str, list[dict[str, float]]] = {"begin": [], "save": []}
    for _ in range(repeats):
        for way, call in (("begin", begin), ("save", plain)):
            step += 1
            rows[way].append(measured(call))
    print(f"{name}: {numbers / 1e6:.1f} M parameters, {size / 1e6:,.0f} MB, {torch.get_num_threads()} threads")
    head = ("", "blocked", "written", "cpu", "memory", "of 15 s", "of the cores")
    print(f"{head[0]:<14}" + "".join(f"{title:>13}" for title in head[1:]))
    held = first["memory"]  # the keeper's own copy, made with the first one
    for way, results in (("begin", rows["begin"]), ("begin, first", [first]), ("save", rows["save"])):
        middle = {key: median(one[key] for one in results) for key in results[0]}
        extra = max(middle["memory"], held if way == "begin" else 0) / size
        share = middle["cpu"] / (INTERVAL * (os.cpu_count() or 1))
        print(
            f"{way:<14}{middle['blocked']:>13.4f}{middle['written']:>13.3f}{middle['cpu']:>13.3f}{extra:>13.2f}"
            f"{middle['blocked'] / INTERVAL:>13.2%}{share:>13.2%}",
            flush=True,
        )
    keeper.close()


def beside(folder: Path, name: str, steps: int, repeats: int) -> None:
    """Matrix products with a checkpoint in the background, and without."""
    tensors = random_tensors(SHAPES[name])
    a, b = torch.randn(512, 1024), torch.randn(1024, 1024)

    def products(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            torch.mm(a, b)
        return time.perf_counter() - began

    products(200)
    a_step = max(1, round(0.15 / median(products(50) / 50 for _ in range(5))))
    results: dict[str, list[float]] = {"with": [], "without": []}
    with Keeper(folder / name / "beside") as keeper:
        keeper.begin(0, tensors, {})
        for turn in range(repeats):
            for way in ("with", "without"):
                keeper.wait()
                began = time.perf_counter()
                if way == "with":
                    keeper.begin(turn + 1, tensors, {})
                products(steps * a_step)
                results[way].append(time.perf_counter() - began)
    pairs = zip(results["with"], results["without"])
    longer, without = median(one - other for one, other in pairs), median(results["without"])
    print(
        f"{name} beside {steps} steps of {1000 * without / steps:.0f} ms: {longer:+.3f} s a checkpoint, "
        f"{longer / INTERVAL:.2%} of 15 s; seconds with and without: "
        f"{json.dumps([[round(one, 2) for one in seconds] for seconds in results.values()])}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="on the disk to be measured; what is written there is removed")
    parser.add_argument("--shape", choices=SHAPES, action="append")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--beside", type=int, default=0, metavar="STEPS")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    folder = options.folder / "checkpoint-benchmark"
    try:
        for name in options.shape or SHAPES:
            compare(folder, name, options.repeats)
            if options.beside:
                beside(folder, name, options.beside, options.repeats)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
