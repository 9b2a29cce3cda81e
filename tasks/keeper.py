"""Checkpoints in the background: training waits for a copy in memory, a thread does the rest.

    begin        the tensors are copied to host memory that is reused from checkpoint to checkpoint; training goes on
    the thread   waits for the copies, writes, fsyncs, reads back, hashes, writes the receipt, removes older ones

At most one is in flight. What goes wrong in the thread is raised by the next call, whatever it is, and once. The price
is one copy of everything in host memory, and the thread's seconds on a core.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from torch import Tensor

from . import checkpoint
from .artifacts import canonical
from .progress import say
from .tensor_file import Image


@dataclass
class Spent:
    """What the checkpoints of a run cost so far."""

    checkpoints: int = 0
    blocked: float = 0.0
    """Seconds that training stood still: in `begin`, and waiting for one in flight."""
    written: float = 0.0
    """Seconds that the thread took."""
    cpu: float = 0.0
    """Seconds of a core that the thread took."""


class Stable(NamedTuple):
    """Publish the same tensors as a stable checkpoint, too."""

    folder: Path
    """Of the model."""
    state: dict[str, Any]
    """Without clock, host or resumes."""


class Keeper:
    """Keeps the checkpoints of one run; for one process (rank 0), and called from one thread of it."""

    def __init__(self, folder: Path, keep: int = 2, before_receipt: Callable[[], None] = lambda: None) -> None:
        """Removes what a killed process left unfinished in the folder.

        folder            of the checkpoints; made when the first is written
        keep              so many of the newest stay, and the newest regular one
        before_receipt    called by the thread: forces to the disk what the states speak of (Journal.sync)
        """
        checkpoint.sweep(folder)
        self.folder, self.keep, self.before_receipt = folder, keep, before_receipt
        self.spent = Spent()
        self._image = Image()
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._flight: Future[None] | None = None

    def begin(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        state: dict[str, Any],
        regular: bool = True,
        stable: Stable | None = None,
    ) -> None:
        """Begin the checkpoint of a step. When this returns, tensors and state may change.

        Args:
            tensors: whole ones (no DTensor), by name, on the host or on CUDA devices.
            state: JSON; see `checkpoint.store`.
            regular: of those that a rollback goes back to (pretrain.guards.rollback_every).
            stable: publish it with the model, too.
        Raises:
            DiskFullError, OSError, DataError: the one before failed; then this one was not begun.
        """
        self.wait()
        began = time.perf_counter()
        state = json.loads(canonical(state))
        if stable:
            stable = Stable(stable.folder, json.loads(canonical(stable.state)))
        self._image.fill(tensors)
        self._flight = self._thread.submit(self._write, step, state, regular, stable)
        self.spent.blocked += time.perf_counter() - began

    def poll(self) -> bool:
        """Is none in flight? Raises what went wrong with the last one; never waits."""
        if self._flight and self._flight.done():
            self.wait()
        return self._flight is None

    def wait(self) -> None:
        """Return when none is in flight. Raises what went wrong with the last one."""
        flight, self._flight = self._flight, None
        if flight:
            began = time.perf_counter()
            try:
                flight.result()
            finally:
                self.spent.blocked += time.perf_counter() - began

    def settle(self, seconds: float) -> None:
        """Training has failed: wait for one in flight, but not longer than that; raises nothing."""
        if self._flight:
            wait([self._flight], seconds)

    def newest(
        self, refuse: checkpoint.Refuse, regular_only: bool = False
    ) -> tuple[checkpoint.Checkpoint | None, list[str]]:
        """`checkpoint.newest`, when none is in flight."""
        self.wait()
        return checkpoint.newest(self.folder, refuse, regular_only)

    def close(self) -> None:
        """Wait, and end the thread. Raises what went wrong with the last one."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def __enter__(self) -> Keeper:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except Exception as other:
            if error is None:
                raise
            say(f"pretrain: the last checkpoint failed, too: {other}")  # the error under way says why training ended

    def _write(self, step: int, state: dict[str, Any], regular: bool, stable: Stable | None) -> None:
        """What the thread does."""
        began, cpu = time.perf_counter(), time.thread_time()
        try:
            if stable:  # first: a run that goes on from the checkpoint of this step does not come by here again
                checkpoint.store(stable.folder / checkpoint.STABLE, step, self._image, stable.state)
            checkpoint.store(self.folder, step, self._image, state, regular, self.before_receipt)
            checkpoint.prune(self.folder, step, self.keep)
        finally:
            self.spent.checkpoints += 1
            self.spent.written += time.perf_counter() - began
            self.spent.cpu += time.thread_time() - cpu
