"""How fast is a training step? Ours beside run_mlm.py's way, stock ModernBERT, and the matrix products alone.

    python benchmarks/steps.py                                    6×256, V 8192, L 128: all cases, 5 rounds
    python benchmarks/steps.py --shape base --seconds 30 --only run_mlm modernbert-eager-bf16 ours-bf16 gemm-bf16
                                                                  12×768, V 32768, L 512: as many as fit into memory
    python benchmarks/steps.py --shares --profile --only          ours alone: parts of the step, checkpoint, operators
    python benchmarks/steps.py --only ours-bf16 --add modernbert,dtype=bfloat16,rows=0,sparse=true,attention=eager

A case is a process of its own, which stays; they take turns, each for `--seconds` of wall time a round, one after the
other, never two at once, all with the same number of threads. What counts is ordinary tokens (no specials, no padding)
by second of the wall clock and by CPU second; the latter is the one to look at where others use the machine (then with
`--threads 1`). Ratios are taken round by round, between neighbours in time: median, lowest and highest.

A case is `kind,key=value,…` (`rows` of a step: 0 is the shape's; `micro` rows at a time: 0 is all of them):

    bert, modernbert   keys of opponents.Settings
    ours               keys of PretrainConfig, and mask_rate
    gemm               the matrix products of our step and nothing else: keys of products.Products
"""

import argparse
import io
import itertools
import json
import resource
import subprocess
import sys
import time
from contextlib import redirect_stderr
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from products import Products
from trial import SHAPES, Data, Ours, Shape, asked, parsed, prepared, timed_parts

BF16, EAGER, COMPILED = "dtype=bfloat16", "attention=eager", "compile=encoder"
BERT, MODERN = "bert,rows=0,micro=8,dropout=0", "modernbert,rows=0,micro=16,sparse=true,rate=1e-3"
CASES = {
    "run_mlm": "bert",
    "run_mlm-bf16": f"bert,{BF16}",
    "bert-tuned": BERT,
    "bert-tuned-bf16": f"{BERT},{EAGER},{BF16},compile=whole",
    "modernbert": f"{MODERN},{EAGER}",
    "modernbert-sdpa-bf16": f"{MODERN},{BF16}",
    "modernbert-sdpa-bf16-compiled": f"{MODERN},{BF16},{COMPILED}",
    "modernbert-eager-bf16": f"{MODERN},{BF16},{EAGER}",
    "modernbert-eager-bf16-compiled": f"{MODERN},{BF16},{EAGER},{COMPILED}",
    "ours": "ours,dtype=float32",
    "ours-bf16": f"ours,{BF16}",
    "gemm": "gemm,dtype=float32",
    "gemm-bf16": f"gemm,{BF16}",
    "gemm-bf16-adamw": f"gemm,{BF16},optimizer=adamw",
}
"""run_mlm are its defaults; the tuned ones are the fastest that was found of what their user can set (see --add). On a
CPU that is attention=eager: two plain products, where the backward of scaled_dot_product_attention is slow in bf16."""


# A case: a process that takes steps when it is told to


def side_of(case: str, shape: Shape, data: Data) -> Any:
    from opponents import Opponent, Settings

    kind, settings = parsed(case)
    if kind == "ours":
        return Ours(shape, data, **settings)
    if kind == "gemm":
        return Products(shape, data, **settings)
    return Opponent(shape, data, Settings(kind, **settings))


def child(given: Any) -> None:
    """Reads seconds, line by line; for each takes steps that long and answers with its figures."""
    torch.set_num_threads(given.threads)
    shape = replace(SHAPES[given.shape], rows=given.rows or SHAPES[given.shape].rows)
    with redirect_stderr(io.StringIO()):  # the parent has said what there is to say of the data
        data = prepared(shape, given.data, given.work)
    side = side_of(given.child, shape, data)
    for line in itertools.chain(["0\n"], sys.stdin):
        seconds = float(line)
        side.prepare(1)
        side.step()  # the caches are someone else's by now
        figures = {"tokens": 0, "wall": 0.0, "cpu": 0.0, "steps": 0}
        while not figures["steps"] or figures["wall"] < seconds:
            side.prepare()
            wall, cpu = time.perf_counter(), time.process_time()
            figures["tokens"] += side.step()
            figures["wall"] += time.perf_counter() - wall
            figures["cpu"] += time.process_time() - cpu
            figures["steps"] += 1
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(json.dumps(figures | {"flops": getattr(side, "flops", 0), "memory": peak}), flush=True)


class Case:
    """A running child."""

    def __init__(self, spec: str, given: Any) -> None:
        command = [sys.executable, __file__, "--child", spec, "--shape", given.shape, "--rows", str(given.rows)]
        command += ["--threads", str(given.threads), "--data", str(given.data), "--work", str(given.work)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.spec, self.rounds = spec, list[dict[str, float]]()
        self._answer()  # the first step: buffers, compilation

    def round(self, seconds: float) -> None:
        assert self.process.stdin
        print(seconds, file=self.process.stdin, flush=True)
        self.rounds.append(self._answer())

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("{"):
                found: dict[str, float] = json.loads(line)
                return found
        raise SystemExit(f"{self.spec} ended with status {self.process.wait()} (-9: out of memory? fewer with --only)")

    def speeds(self, clock: str) -> list[float]:
        return [one["tokens"] / one[clock] for one in self.rounds]


# What is printed


def report(cases: dict[str, Case], clock: str) -> None:
    titles = " ".join(f"{title:>9}" for title in ("wall", "cpu", "low", "high", "ms/step", "peak GB"))
    print(f"\n{'tokens/s':32} {titles}   ({clock} from low on)")
    for name, case in cases.items():
        speeds, steps = case.speeds(clock), [1e3 * one[clock] / one["steps"] for one in case.rounds]
        print(
            f"{name:32} {median(case.speeds('wall')):9,.0f} {median(case.speeds('cpu')):9,.0f} {min(speeds):9,.0f} "
            f"{max(speeds):9,.0f} {median(steps):9.1f} {case.rounds[-1]['memory']:9.1f}"
        )
    print(
        f"\nratios by the {clock} clock: median (lowest to highest of {len(next(iter(cases.values())).rounds)} rounds)"
    )
    for name in [name for name in cases if parsed(CASES.get(name, name))[0] == "ours"]:
        for other in [other for other in cases if other != name]:
            some = [a / b for a, b in zip(cases[name].speeds(clock), cases[other].speeds(clock), strict=True)]
            print(f"{name} / {other}: {median(some):.2f} ({min(some):.2f} to {max(some):.2f})")
    for name, case in cases.items():
        if flops := case.rounds[0]["flops"]:
            rate = median(flops * one["steps"] / one[clock] / 1e9 for one in case.rounds)
            print(f"{name}: {flops / 1e9:.1f} GFLOP a step, {rate:,.0f} GFLOP/s")


def shares(side: Ours, steps: int) -> None:
    """Where the time of our step goes, and what checkpoints take of it."""
    for _ in range(3):
        side.step()
    began = time.perf_counter()
    with timed_parts() as spent:
        for _ in range(steps):
            side.step()
    whole = time.perf_counter() - began
    spent["forward and the rest"] = whole - sum(spent.values())
    print(f"\n{whole / steps * 1e3:.1f} ms a step: " + ", ".join(f"{k} {v / whole:.1%}" for k, v in spent.items()))
    pairs = []
    for _ in range(5):  # with a checkpoint at the start of a few steps, and without one
        pair = []
        for keeps in (True, False):
            began, cpu = time.perf_counter(), time.process_time()
            if keeps:
                side.checkpoint()
            blocked = time.perf_counter() - began
            for _ in range(max(steps // 5, 2)):
                side.step()
            pair.append((blocked, time.perf_counter() - began, time.process_time() - cpu))
        pairs.append(pair)
    blocked, extra, cpu = (median(pair[0][at] - (pair[1][at] if at else 0) for pair in pairs) for at in range(3))
    every = side.config.checkpoint_every
    print(
        f"a checkpoint stops training for {blocked * 1e3:.0f} ms and takes {extra * 1e3:.0f} ms of wall time and "
        f"{cpu * 1e3:.0f} ms of CPU in all; every {every} steps: {extra / (every * whole / steps):.2%} of the time"
    )


def profile(side: Ours) -> None:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as recorded

    for _ in range(2):
        side.step()
    with recorded(activities=[ProfilerActivity.CPU]) as what:
        for _ in range(3):
            side.step()
    print(what.key_averages().table(sort_by="self_cpu_time_total", row_limit=30, max_name_column_width=50))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked(parser)
    parser.add_argument("--rows", type=int, default=0, help="of a step; 0 takes the shape's (run_mlm's defaults are 8)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8, help="of a case in a round, and at least one step")
    parser.add_argument("--only", nargs="*", default=list(CASES), choices=list(CASES), metavar="CASE")
    parser.add_argument("--add", nargs="*", default=[], metavar="SPEC", help="more cases, as kind,key=value,…")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="of the ratios")
    parser.add_argument("--ours", default="", metavar="KEY=VALUE,…", help="settings of --shares and --profile")
    parser.add_argument("--shares", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        return child(given)
    shape = replace(SHAPES[given.shape], rows=given.rows or SHAPES[given.shape].rows)
    data = prepared(shape, given.data, given.work)
    specs = {name: CASES[name] for name in given.only} | {spec: spec for spec in given.add}
    print(
        f"{shape.layers}×{shape.width}, V {shape.vocabulary}, L {shape.length}, {shape.rows} rows, {given.threads} "
        f"threads; parameters: ours and ModernBERT {shape.parameters:,}, BERT (mlp {shape.bert_intermediate}) "
        f"{shape.bert_parameters_at(shape.bert_intermediate):,}",
        flush=True,
    )
    cases: dict[str, Case] = {}
    try:
        for name, spec in specs.items():
            cases[name] = Case(spec, given)
        for _ in range(given.rounds):
            for case in cases.values():
                case.round(given.seconds)
        if cases:
            report(cases, given.clock)
    finally:
        for case in cases.values():
            case.process.kill()
            case.process.wait()
    torch.set_num_threads(given.threads)
    for wanted, show in ((given.shares, lambda side: shares(side, 20)), (given.profile, profile)):
        if wanted:
            show(side_of(",".join(filter(None, ("ours", given.ours))), shape, data))


if __name__ == "__main__":
    main()
