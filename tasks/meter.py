"""Where the time and the memory of a training step go, and what a step could reach. Reading them never waits in a step.

peak          the fastest square product this device is seen to make, in operations a second
MFU           operations that the step needs (flops.py) / seconds / peak
floor         seconds that the step's matrix products take alone, each in its own shape
share         of a step's seconds: data, forward, backward, communication, optimizer, other
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .flops import Product

SIDES = {"cpu": (256, 512, 1024, 2048), "cuda": (2048, 4096, 8192)}
"""Sides of the square products that are tried for the peak: large enough to be bound by arithmetic."""
SECONDS = 0.3
"""That the search for the peak takes, about."""
LARGEST = 1 << 24
"""Numbers in a factor or in the result of a timed product: taller ones are timed in part and counted whole."""
PARTS = ("data", "forward", "backward", "communication", "optimizer")
"""Names of a step's parts, in their order."""


class Stopwatch:
    """Seconds by part of a step. A part inside another is the inner one's alone, so the parts add up.

    with watch("forward"): ...

    On a CUDA device the marks are events in its stream, read when `read` is called: what a part shows is the time that
    the device spent from its begin to its end, so "data" is the time in which it had nothing to do but wait for data.
    The objective makes the head's gradient in its forward pass: that time is in "forward".
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._on_device = torch.device(device).type == "cuda"
        self._open: list[str] = []
        self._since: Any = None
        self._pieces: list[tuple[str, Any, Any]] = []
        """CUDA: (part, event at its begin, event at its end), since the last reading."""
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Around a part of the step."""
        self._turn()
        self._open.append(part)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def read(self) -> dict[str, float]:
        """Seconds by part since the last reading. On CUDA it waits for the device to come to the last mark."""
        if self._pieces:
            self._pieces[-1][2].synchronize()
            for part, begin, end in self._pieces:
                self._seconds[part] = self._seconds.get(part, 0.0) + begin.elapsed_time(end) / 1000
        seconds, self._seconds, self._pieces = self._seconds, {}, []
        return seconds

    def shares(self, seconds_total: float) -> dict[str, float]:
        """A reading as shares of the seconds that passed since the last one; "other" is what no part claims."""
        return shares(self.read(), seconds_total)

    def _turn(self) -> None:
        """What ran until now ends here, for the part that was open."""
        now: Any = time.perf_counter()
        if self._on_device:
            now = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            now.record()
        if self._open and self._on_device:
            self._pieces.append((self._open[-1], self._since, now))
        elif self._open:
            self._seconds[self._open[-1]] = self._seconds.get(self._open[-1], 0.0) + now - self._since
        self._since = now


def shares(seconds: Mapping[str, float], total: float) -> dict[str, float]:
    """Parts of `total` seconds as shares, every part of PARTS among them; "other" is the rest, at least 0."""
    total = max(total, sum(seconds.values()), 1e-12)
    found = {part: seconds.get(part, 0.0) / total for part in dict.fromkeys((*PARTS, *seconds))}
    return {**found, "other": max(0.0, 1.0 - sum(found.values()))}


@lru_cache
def matmul_peak(device: str, dtype: torch.dtype, threads: int = 0) -> float:
    """Operations a second of the fastest square product that is seen in about 0.3 s.

    Of this process, with the threads it has now; `threads` only tells one such figure from another.
    """
    began, best, where = time.perf_counter(), 0.0, torch.device(device)
    for side in SIDES["cuda" if where.type == "cuda" else "cpu"]:
        a, b = (torch.ones(side, side, dtype=dtype, device=where) / side for _ in range(2))
        torch.mm(a, b)  # the first of a shape is slow: it packs, compiles or allocates
        for _ in range(5):
            best = max(best, 2 * side**3 / timed(lambda x=a, y=b: torch.mm(x, y), where))  # type: ignore[misc]
            if time.perf_counter() - began > SECONDS:
                return best
    return best


def timed(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of a call, waiting for a device before and after it."""
    synchronize(device)
    began = time.perf_counter()
    call()
    synchronize(device)
    return max(time.perf_counter() - began, 1e-9)


def synchronize(device: torch.device) -> None:
    """Wait for what the device has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def floor_seconds(products: Sequence[Product], device: torch.device, dtype: torch.dtype, repeats: int = 3) -> float:
    """Seconds that these products take alone, gradients included: each shape is timed, the best of a few, and counted.

    A product with more than LARGEST numbers in a factor or a result is timed on fewer rows, or fewer of its batch.
    """
    return sum(_seconds(one, device, dtype, repeats) for one in products if one.flops)


def _seconds(product: Product, device: torch.device, dtype: torch.dtype, repeats: int) -> float:
    m, k, n = product.m, product.k, product.n
    rows = max(1, min(m, LARGEST // max(k, n)))
    batch = max(1, min(product.batch, LARGEST // max(rows * k, k * n, rows * n)))
    a, b = (torch.full(shape, 0.01, dtype=dtype, device=device) for shape in ((batch, rows, k), (batch, k, n)))
    c = torch.full((batch, rows, n), 0.01, dtype=dtype, device=device)
    calls = [(a, b)] + ([(c, b.mT), (a.mT, c)] if product.gradients else [])
    scale = product.count * (product.batch / batch) * (m / rows)
    return scale * sum(_fastest(x, y, device, repeats) for x, y in calls)


def _fastest(x: Tensor, y: Tensor, device: torch.device, repeats: int) -> float:
    if len(x) == 1:
        x, y = x[0], y[0]
    x @ y
    # Small products are timed by the hundred: a clock's own microsecond would count, and so would a wait for a device.
    inner = max(1, min(100, int(1e-3 / timed(lambda: x @ y, device))))

    def many() -> None:
        for _ in range(inner):
            x @ y

    return min(timed(many, device) for _ in range(repeats)) / inner


def mfu(flops: float, seconds: float, peak: float) -> float:
    """Share of the peak that a step of `seconds` makes of the operations it needs, on one device."""
    return flops / max(seconds, 1e-12) / peak if peak else 0.0


def peak_memory(device: torch.device) -> int:
    """Most bytes held so far: by torch on a CUDA device, by the whole process on the host."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def waited_for_core() -> float:
    """Seconds that this thread was ready to run so far while others had the cores; 0 where the system does not say."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    return 0.0


def median(seconds: Sequence[float]) -> float:
    """The middle one: a machine that is busy for a moment does not move it."""
    return statistics.median(seconds)
