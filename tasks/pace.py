"""The pace of a run: its budget, and how batches, rows and learning rates grow and fall. Settings of pretrain, checked.

What they come to, step by step, is the timeline's business. A run may begin with small batches and with short rows. The
lengths of rows have shards of their own: a row cut in two would not hide ⌊M·p⌋ tokens of each of its segments.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from fractions import Fraction
from itertools import pairwise
from typing import Any

from .errors import UsageError
from .rates import MaskRates, spelt

SCHEDULES = ("wsd", "cosine", "linear")


@dataclass(frozen=True)
class BatchWarmup:
    """Small batches to begin with: the gradients of a young model agree, so few positions tell it enough."""

    start: int = 0
    """Positions B·L of the first step; 0 for no warm-up."""
    share: str = "0.1"
    """Share of the budget in which they rise to pretrain.batch_tokens, linearly."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "share", spelt("pretrain.batch_warmup.share", self.share))
        if self.start < 0:
            raise UsageError(f"pretrain.batch_warmup.start is {self.start}; use positions of the first step, or 0.")


@dataclass(frozen=True)
class Lengths:
    """Short rows to begin with: the run begins with rows of the first length, and ends with those of shards.length."""

    lengths: tuple[int, ...] = ()
    """Positions of a row, ascending, each below shards.length."""
    at: tuple[str, ...] = ()
    """For each of them the share of the budget at which the next length begins, such as 0.5 or 1/2."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "at", tuple(spelt("pretrain.lengths.at", share) for share in self.at))
        for length in self.lengths:
            if length < 8 or length % 8:
                raise UsageError(f"pretrain.lengths.lengths: {length} is no length of rows; use multiples of 8.")
        if len(self.at) != len(self.lengths):
            raise UsageError(
                f"pretrain.lengths.at has {len(self.at)} shares for {len(self.lengths)} lengths; give one for each, at "
                "which the next length begins."
            )
        for name in ("lengths", "at"):
            values: tuple[int | str, ...] = getattr(self, name)
            if any(Fraction(later) <= Fraction(earlier) for earlier, later in pairwise(values)):
                raise UsageError(
                    f"pretrain.lengths.{name} is {list(values)}; each must be larger than the one before it."
                )

    def check(self, length: int) -> None:
        """Raises UsageError where the run would not end with the longest rows, those of `length`."""
        if self.lengths and self.lengths[-1] >= length:
            raise UsageError(
                f"pretrain.lengths.lengths is {list(self.lengths)}, and shards.length is {length}; the run ends with "
                "rows of that length, so give shorter ones."
            )


def check_row(name: str, positions: int, length: int) -> None:
    """Raises UsageError where the positions that the setting `name` allows at a time do not hold one row."""
    if positions < length:
        raise UsageError(f"pretrain.{name} is {positions}, and a row has {length} positions; use {length} or more.")


def exact(share: float | str) -> Fraction:
    """The decimal that was written, not the binary fraction nearest to it. Raises UsageError where it is no number."""
    try:
        return Fraction(str(share))
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"pretrain.warmup and pretrain.decay are shares of the budget, not {share!r}.") from None


@dataclass(frozen=True)
class Pace:
    """Those settings of pretrain, by their names, that make the timeline: how far the run goes, and how fast."""

    batch_tokens: int
    """Positions B·L of a step."""
    tokens: int = 0
    """Budget in ordinary tokens."""
    steps: int = 0
    """Budget in steps; takes the place of `tokens` where it is not 0."""
    schedule: str = "wsd"
    """Of the learning rates: wsd (warm-up, stable, 1 - sqrt decay), cosine or linear (warm-up, then down to zero)."""
    warmup: float | str = 0.05
    """Share of the budget in which the learning rates rise."""
    decay: float | str = 0.3
    """Share of the budget in which they fall; of wsd only."""
    batch_warmup: BatchWarmup = field(default_factory=BatchWarmup)
    lengths: Lengths = field(default_factory=Lengths)
    mask_rates: MaskRates = field(default_factory=MaskRates)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Pace":
        """From all of pretrain's settings as a mapping of mappings: `asdict` of them, or JSON."""
        given = {entry.name: config[entry.name] for entry in fields(cls)}
        groups: dict[str, Any] = {"batch_warmup": BatchWarmup, "lengths": Lengths, "mask_rates": MaskRates}
        for name, group in groups.items():
            pairs = given[name].items()  # JSON has lists for tuples
            given[name] = group(**{key: tuple(value) if isinstance(value, list) else value for key, value in pairs})
        return cls(**given)

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise UsageError(f"pretrain.schedule is {self.schedule!r}; use wsd, cosine or linear.")
        warmup, decay = exact(self.warmup), exact(self.decay) if self.schedule == "wsd" else Fraction(0)
        if min(warmup, decay) < 0 or warmup + decay > 1:
            told = f"pretrain.warmup is {self.warmup}"
            told += f" and pretrain.decay is {self.decay}" if self.schedule == "wsd" else ""
            raise UsageError(f"{told}; use shares of the budget, 0 or more, and together at most 1.")
        if self.steps < 0 or (self.steps == 0 and self.tokens < 1):
            raise UsageError("pretrain needs a budget: set pretrain.tokens or pretrain.steps to a positive number.")
        if self.batch_warmup.start > self.batch_tokens:
            raise UsageError(
                f"pretrain.batch_warmup.start is {self.batch_warmup.start}, and pretrain.batch_tokens is "
                f"{self.batch_tokens}; the batch grows to that, so start with less."
            )

    def check(self, length: int) -> None:
        """Raises UsageError for what does not fit main rows of `length`; can be asked before anything is made."""
        self.lengths.check(length)
        check_row("batch_tokens", self.batch_tokens, length)
        lengths = (*self.lengths.lengths, length)
        if self.batch_warmup.start:
            check_row("batch_warmup.start", self.batch_warmup.start, lengths[0])
        for one in lengths:
            self.mask_rates.check(one)

    def check_fork(self) -> None:
        """Raises UsageError for what a run that is forked from another cannot have."""
        for wrong, remedy in (
            (self.schedule != "wsd", "set pretrain.schedule to wsd, the only one with a stable phase"),
            (self.lengths.lengths, "leave out pretrain.lengths, its rows have shards.length"),
            (self.batch_warmup.start, "leave out pretrain.batch_warmup, its batches are whole"),
        ):
            if wrong:
                raise UsageError(f"pretrain.fork goes on at the full learning rate, and then decays: {remedy}.")
