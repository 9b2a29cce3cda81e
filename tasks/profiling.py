"""Where the time of a run's own steps goes, what the step could reach at best, and what to change first.

It takes real steps (the weights change; nothing is written), and then three measurements beside them:

    shares of the step      by the run's own stopwatch, over all steps after the first few
    matrix products         torch's profiler over a few more steps: seconds inside products, of a step's seconds
    at best                 the step's products alone, each in its shape (flops.products, meter.floor_seconds)
    fixed cost              forward and backward on a quarter of the rows against all of them (verdict.fixed_part)

Timings are medians, so that a moment of a busy machine does not count; of one that is busy all the time, the share in
which others had the cores is told, and left out where the products' best is compared with a step.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity

from . import flops, meter, verdict
from .flops import Sizes
from .meter import Stopwatch
from .progress import Bar, progress

WARMUP = 3
"""Steps that are not counted: they allocate, pack weights, compile."""
PROFILED = 3
"""Steps under torch's profiler, whose own cost is why they are others than the timed ones."""
FRACTION = 4
"""One in so many rows, for the fixed cost."""
PROBES = 5
"""Timings of forward and backward on the part of the rows, and on all of them, in turn."""
PRODUCT = re.compile(r"aten::(_?(scaled_)?(mm|bmm|addmm|baddbmm|_grouped_mm)|.*attention.*|mkldnn_.*linear.*)$")
"""Operations that are matrix products; attention in one operation counts whole."""


class Rows(Protocol):
    """What is used of a batch."""

    @property
    def segment_ids_BL(self) -> Tensor: ...
    @property
    def count(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    def split(self, rows: int) -> Iterator[Any]: ...


class Run(Protocol):
    """What is used of a training run. Between two steps; on several ranks each calls `profile` with equal arguments."""

    @property
    def config(self) -> Mapping[str, Any]:
        """pretrain's settings, with device, dtype and threads filled in."""

    @property
    def device(self) -> torch.device: ...
    @property
    def sizes(self) -> Sizes:
        """The model's."""

    @property
    def model(self) -> nn.Module:
        """Whose gradients are dropped after the probes."""

    @property
    def watch(self) -> Stopwatch:
        """Around data, forward, backward, communication and optimizer in take_step."""

    @property
    def batch(self) -> Rows:
        """The last step's, this rank's whole share."""

    @property
    def tokens(self) -> int:
        """Ordinary tokens of all steps so far, of all ranks."""

    def take_step(self) -> Any: ...
    def loss(self, batch: Any) -> Any:
        """Forward on one micro-batch, autocast included: something with sum_nll."""


def profile(training: Run, steps: int = 20) -> dict[str, Any]:
    """Takes WARMUP + steps + PROFILED steps and measures. Returns JSON: seconds, shares (0 to 1), bytes, operations.

    All of it is of this rank, but for the tokens per second; "ranks" are those of this machine.

    Raises what take_step raises.
    """
    with progress("profile", total=WARMUP + steps + PROFILED, unit="steps") as bar:
        for _ in range(WARMUP):
            _step(training, bar)
        taken = _timed_steps(training, steps, bar)
        memory = meter.peak_memory(training.device)  # before the measurements that need their own
        inside = _seconds_in_products(training, bar)
    dtype = getattr(torch, training.config["dtype"])
    peak = meter.matmul_peak(str(training.device), dtype, torch.get_num_threads())
    step, floor = meter.median(taken.seconds), _floor(training, dtype)
    figures = _figures(training, taken, floor / (step * (1 - taken.waiting)))
    found = verdict.verdict(figures, training.config, training.sizes.length)
    return {
        "steps": steps,
        "device": str(training.device),
        "dtype": training.config["dtype"],
        "threads": torch.get_num_threads(),
        "ranks": training.config.get("devices", 1),
        "parameters": flops.parameters(training.sizes),
        "step_seconds": step,
        "waiting_for_core_share": taken.waiting,
        "tokens_per_second": taken.tokens / steps / step,
        "positions": taken.positions,
        "shares": taken.shares,
        "flops": taken.needed,
        "matmul_peak_flops": peak,
        "mfu": meter.mfu(taken.needed["total"], step, peak),
        "products": {
            "share": min(1.0, inside * steps / sum(taken.seconds)),
            "at_best_seconds": floor,
            "at_best_share": figures.products,
        },
        "fixed_share": figures.fixed,
        "peak_memory_bytes": memory,
        "bound_by": found.bound_by,
        "why": found.why,
        "advice": list(found.advice),
    }


@dataclass(frozen=True)
class Taken:
    """What was seen of the timed steps."""

    seconds: list[float]
    shares: dict[str, float]
    waiting: float
    """Share of the time in which others had the cores."""
    tokens: int
    """Ordinary tokens of all steps, of all ranks."""
    needed: dict[str, int]
    """Operations of a step on this rank, by part."""
    positions: dict[str, float]
    """Of a step: how many, how many are hidden, and shares of what they hold."""


def _step(training: Run, bar: Bar) -> float:
    began = time.perf_counter()
    training.take_step()
    meter.synchronize(training.device)
    bar.advance()
    return time.perf_counter() - began


def _timed_steps(training: Run, steps: int, bar: Bar) -> Taken:
    training.watch.read()
    before, waited, seconds = training.tokens, meter.waited_for_core(), []
    totals = {"blocks": 0, "attention": 0, "head": 0, "total": 0}
    held, ordinary, positions = 0, 0, 0
    for _ in range(steps):
        seconds.append(_step(training, bar))
        batch = training.batch
        lengths = flops.segment_lengths(batch.segment_ids_BL.numpy())
        for name, number in flops.as_dict(flops.step_flops(training.sizes, lengths, batch.count)).items():
            totals[name] += number
        held, ordinary = held + int(lengths.sum()), ordinary + batch.tokens
        positions += batch.segment_ids_BL.numel()
    books = {
        "per_step": positions // steps,
        "masked": training.batch.count,
        "tokens": ordinary / positions,
        "specials": (held - ordinary) / positions,
        "padding": 1 - held / positions,
    }
    needed = {name: number // steps for name, number in totals.items()}
    shares = meter.shares(training.watch.read(), sum(seconds))
    waiting = min(0.9, (meter.waited_for_core() - waited) / sum(seconds))
    return Taken(seconds, shares, waiting, training.tokens - before, needed, books)


def _figures(training: Run, taken: Taken, products: float) -> verdict.Figures:
    part, whole = _probe(training)
    fixed = verdict.fixed_part(part, whole, 1 / FRACTION)
    shares = taken.shares
    return verdict.Figures(
        shares["data"],
        shares["communication"],
        shares["optimizer"],
        min(1.0, products),
        fixed / whole * (shares["forward"] + shares["backward"]),
        part * FRACTION / whole,
    )


def _seconds_in_products(training: Run, bar: Bar) -> float:
    """Of a step: what its products take by themselves, on the device or on the host."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler would write lines of its own among ours
    on_device = training.device.type == "cuda"
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA if on_device else ProfilerActivity.CPU]) as seen:
        for _ in range(PROFILED):
            _step(training, bar)
    training.watch.read()
    events = [event for event in seen.key_averages() if PRODUCT.match(event.key)]
    micro = sum(event.self_device_time_total if on_device else event.self_cpu_time_total for event in events)
    return micro / 1e6 / PROFILED


def _probe(training: Run) -> tuple[float, float]:
    """Seconds of forward and backward on a part of the rows of a micro-batch, and on all of them: medians, in turn."""
    whole = _micro(training)
    rows = len(whole.segment_ids_BL)
    part = next(iter(whole.split(max(1, rows // FRACTION))))
    taken: tuple[list[float], list[float]] = [], []
    for number in range(PROBES + 1):
        for batch, seconds in zip((part, whole), taken, strict=True):
            took = meter.timed(lambda batch=batch: _forward_backward(training, batch), training.device)  # type: ignore[misc]
            if number:  # the first of a shape is slow
                seconds.append(took)
            training.model.zero_grad(set_to_none=True)
    training.watch.read()
    scale = rows / FRACTION / len(part.segment_ids_BL)  # a batch of one row has no part
    return meter.median(taken[0]) * scale, meter.median(taken[1])


def _micro(training: Run) -> Any:
    """A micro-batch as the step takes it."""
    length = training.batch.segment_ids_BL.shape[1]
    return next(iter(training.batch.split(training.config.get("micro_tokens", 0) // length)))


def _forward_backward(training: Run, batch: Any) -> None:
    torch.autograd.backward(training.loss(batch).sum_nll / max(batch.count, 1))


def _floor(training: Run, dtype: torch.dtype) -> float:
    """Seconds of the step's products alone. The batch is the last one: a step is like another."""
    lengths = flops.segment_lengths(training.batch.segment_ids_BL.numpy())
    iterations = 5 if training.config.get("optimizer") == "muon" else 0
    needed = flops.products(training.sizes, lengths, training.batch.count, iterations)
    own = [one for one in needed if one.part != "optimizer"]
    rest = [one for one in needed if one.part == "optimizer"]  # bfloat16 whatever the model's type
    return meter.floor_seconds(own, training.device, dtype) + meter.floor_seconds(rest, training.device, torch.bfloat16)
