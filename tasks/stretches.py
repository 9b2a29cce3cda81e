"""What the steps of a run take, as stretches: steps that are alike, with as many rows from the same shards.

    B = max(1, ⌊b / L⌋)   b = batch_tokens; in the batch warm-up b rises linearly from `start`, by positions
    L                     of the shards in force: each length has its own, whose samples are taken in order from 0 on

A run has few stretches: one for each B that a warm-up passes through, and one for each length.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple

from .pace import Pace


@dataclass(frozen=True)
class Supply:
    """What the timeline has to know of shards."""

    length: int
    """L."""
    rows: int
    """Rows of the train split."""
    tokens: int
    """Ordinary tokens in all of these."""
    digest: str = ""
    """Of the manifest."""

    @classmethod
    def of(cls, facts: Mapping[str, Any], digest: str = "") -> "Supply":
        """From the facts and the digest of a manifest of shards."""
        train = facts["splits"]["train"]
        return cls(facts["length"], train["rows"], train["tokens"], digest)


@dataclass(frozen=True)
class Begun:
    """Where a run stood at a stable checkpoint: what a run that is forked from it needs to know of it."""

    step: int
    """Steps taken."""
    positions: int
    """B·L of all these steps."""
    tokens: int
    """Ordinary tokens among these."""
    samples: Mapping[str, int]
    """Digest of shards -> samples taken of them."""


class Take(NamedTuple):
    """What a step takes."""

    shards: int
    """Number of the shards: the shorter ones in order, then the main ones."""
    first: int
    """Its first sample, in those shards' own order, counted on through the epochs."""
    rows: int
    """B."""
    done: int
    """Positions B·L of all steps before."""
    length: int
    """L."""


class Stretch(NamedTuple):
    """Steps that are alike, as far as the next stretch; `step` is the first one, and `take` what that one takes."""

    step: int
    take: Take

    @property
    def size(self) -> int:
        """B·L."""
        return self.take.rows * self.take.length


def lay(pace: Pace, shards: Sequence[Supply], begun: Begun | None) -> list[Stretch]:
    """The stretches of a run, the last one without an end. Shards: the shorter ones, then the main ones."""
    if begun:
        main = shards[-1]
        first, rows = begun.samples.get(main.digest, 0), pace.batch_tokens // main.length
        return [Stretch(begun.step, Take(0, first, rows, begun.positions, main.length))]
    if pace.steps:  # shares of all positions that so many steps do, which depend on these shares
        most = range(1, pace.steps * pace.batch_tokens + 2)
        return _cut(pace, shards, bisect_right(most, pace.steps, key=lambda one: _steps_for(one, pace, shards)))
    shares = [Fraction(0), *map(Fraction, pace.lengths.at), Fraction(1)]
    parts = [end - begin for begin, end in pairwise(shares)]
    per_position = sum(
        part * Fraction(one.tokens, one.rows * one.length) for part, one in zip(parts, shards, strict=True)
    )
    return _cut(pace, shards, math.ceil(pace.tokens / per_position))


def _cut(pace: Pace, shards: Sequence[Supply], positions: int) -> list[Stretch]:
    """The stretches of a run of about so many positions: a new one where rows get longer or more."""
    begins = [0, *(math.ceil(Fraction(share) * positions) for share in pace.lengths.at)]
    warm = Fraction(pace.batch_warmup.share) * positions
    step, done, taken = 0, 0, [0] * len(shards)
    found: list[Stretch] = []
    while True:
        at = bisect_right(begins, done) - 1
        length = shards[at].length
        rows, more = _rows(pace, length, done, warm)
        found.append(Stretch(step, Take(at, taken[at], rows, done, length)))
        ends = [*begins[at + 1 : at + 2], *more]
        if not ends:
            return found
        steps = -(-(min(ends) - done) // (rows * length))
        step, done = step + steps, done + steps * rows * length
        taken[at] += steps * rows


def _rows(pace: Pace, length: int, done: int, warm: Fraction) -> tuple[int, list[int]]:
    """B after `done` positions, and after how many positions it is larger: no number where it is as large as it gets.

    In integers, which are several times as fast as fractions: a warm-up may pass through thousands of B.
    """
    start, whole = pace.batch_warmup.start, pace.batch_tokens
    most, (over, under) = whole // length, warm.as_integer_ratio()
    if not start or done * under >= over:
        return most, []
    rows = max(1, (start * over + (whole - start) * done * under) // (over * length))
    if rows >= most:
        return most, []
    return rows, [-(-((rows + 1) * length - start) * over // ((whole - start) * under))]


def _steps_for(positions: int, pace: Pace, shards: Sequence[Supply]) -> int:
    """How many steps it takes to do them, in a run of about so many."""
    last = next(one for one in reversed(_cut(pace, shards, positions)) if one.take.done < positions)
    return last.step + -(-(positions - last.take.done) // last.size)
