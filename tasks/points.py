"""What a training run says of itself: points of the curve, functions of the weights, and the clock's figures.

train/loss                  nats per masked token, over the steps since the last point
train/tokens_per_second     ordinary tokens: padding and specials are not counted
train/mfu                   operations that the steps needed (Σ len² in attention) / seconds / measured peak
train/share_…               of the seconds: data, forward, backward, communication, optimizer, other
train/progress              share of the run's steps
train/seconds_left          at the pace since the last point
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from . import meter
from .gradients import StepSums
from .journal import Journal
from .strand import Strand


@dataclass
class Sums:
    """What the steps since the last point of the curve add up to; part of a checkpoint."""

    nll: list[float]
    correct: list[int]
    masked: list[int]
    """Each of every strand."""

    @classmethod
    def none(cls, strands: int) -> Sums:
        """Before anything."""
        return cls([0.0] * strands, [0] * strands, [0] * strands)

    def metrics(self, names: Sequence[str], guesses: Sequence[bool]) -> dict[str, float]:
        """Of all strands together; and of each by its name, where there are several. guesses: can one be right?"""
        found = {}
        strands = list(zip(names, guesses, self.nll, self.correct, self.masked, strict=True))
        if masked := sum(self.masked):  # else all steps were skipped, or hid nothing
            found["train/loss"] = sum(self.nll) / masked
        for name, guessed, nll, correct, masked in strands:
            of = f"_{name}" if len(strands) > 1 else ""
            if masked and of:
                found[f"train/loss{of}"] = nll / masked
            if masked and guessed:
                found[f"train/accuracy{of}"] = correct / masked
        return found


@dataclass
class Clock:
    """What depends on the clock: never part of the weights or the curve."""

    seconds: float = 0.0
    """Of training, over all resumes."""
    flops: float = 0.0
    """Operations needed in them."""
    parts: dict[str, float] = field(default_factory=dict)
    """Seconds of each part of the steps."""
    resumed: list[int] = field(default_factory=list)
    """Steps at which it was."""
    worlds: list[list[int]] = field(default_factory=list)
    """[step, ranks]: from which step on so many ranks trained."""


class Points:
    """The points of one run."""

    def __init__(self, journal: Journal, strands: Sequence[Strand], device: torch.device) -> None:
        self.journal, self.device = journal, device
        self.names = [one.modality for one in strands]
        self.guesses = [one.asks_for_tokens for one in strands]
        self.unigram_entropy = strands[0].level
        """The loss of one that knows frequencies only."""
        self.highest = max(one.level for one in strands)
        """The largest such loss of all strands."""
        self.peak = 0.0
        """Operations a second that the devices of all ranks reach together."""
        self.last: dict[str, float] = {}
        """The metrics of the last point."""
        self.validation = float("nan")
        self.start_again()

    def start_again(self) -> None:
        """As before the first step."""
        self.sums, self.clock = Sums.none(len(self.names)), Clock()
        self.go_on(0)

    def go_on(self, tokens: int) -> None:
        """The clock runs from now on; so many tokens are behind."""
        self._since, self._tokens, self._flops, self._steps = time.monotonic(), tokens, 0.0, 0

    def add(self, sums: StepSums, masked: Sequence[int], flops: float) -> None:
        """A step; masked, of each strand, is 0 where it was passed over."""
        self._flops += flops
        self._steps += 1
        for strand, count in enumerate(masked):
            if count:
                self.sums.nll[strand] += sums.nlls[strand]
                self.sums.correct[strand] += sums.corrects[strand]
                self.sums.masked[strand] += count

    def write(self, step: int, tokens: int, given: dict[str, float], left: int, watch: meter.Stopwatch) -> None:
        """A point after `step`, with `given` in it; `left` steps are to come."""
        metrics = {name: value for name, value in given.items() if math.isfinite(value)}  # JSON knows no other numbers
        metrics |= self.sums.metrics(self.names, self.guesses)
        point = {"step": step, "tokens": tokens, **metrics}
        seconds = max(time.monotonic() - self._since, 1e-9)
        parts = watch.read()
        for part, took in parts.items():
            self.clock.parts[part] = self.clock.parts.get(part, 0.0) + took
        metrics |= {f"train/share_{part}": share for part, share in meter.shares(parts, seconds).items()}
        metrics["train/tokens_per_second"] = (tokens - self._tokens) / seconds
        metrics["train/mfu"] = meter.mfu(self._flops, seconds, self.peak)
        metrics["train/progress"] = step / (step + left)
        metrics["train/seconds_left"] = left * seconds / max(self._steps, 1)
        metrics["train/peak_memory_bytes"] = meter.peak_memory(self.device)
        metrics["train/tokens"] = tokens
        self.journal.write(point, {"step": step, "timestamp_ms": time.time_ns() // 1_000_000, "metrics": metrics})
        self.clock.seconds += seconds
        self.clock.flops += self._flops
        self.sums, self.last = Sums.none(len(self.names)), metrics
        self.go_on(tokens)

    def state(self) -> dict[str, Any]:
        """JSON for a checkpoint."""
        return {"sums": asdict(self.sums), "clock": asdict(self.clock)}

    def load(self, state: dict[str, Any], step: int, ranks: int) -> None:
        """What `state` gave; the run goes on at `step`."""
        sums = {name: one if isinstance(one, list) else [one] for name, one in state["sums"].items()}
        self.sums, self.clock = Sums(**sums), Clock(**state["clock"])
        self.clock.resumed.append(step)
        self.clock.worlds.append([step, ranks])
