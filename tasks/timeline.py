"""The timeline of a run: all of it that is a function of the step's number, known before the first step.

    at(k)             what step k takes: B rows, from sample `first` of which shards; the positions done before it
    multiplier(k)     of the learning rates, in (0, 1]
    mask_rate(k)      p
    stable_steps(n)   where stable checkpoints are taken, from which other runs may be forked

The unit is the position. A step takes B·L of them; warm-ups, decay, lengths and mask rates are shares of the run in
positions, so a batch that grows distorts none of them. Where the budget is in ordinary tokens, a row counts as the mean
of its shards; the first step that reaches the budget is the last one.

All is integers and fractions: every rank, machine and resume sees the same run, and a step is looked up in a
microsecond, by bisection of its stretches.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

from .errors import UsageError
from .pace import BatchWarmup, Lengths, Pace, check_row, exact
from .stretches import Begun, Stretch, Supply, Take, lay

__all__ = ["BatchWarmup", "Begun", "Lengths", "Pace", "Supply", "Take", "Timeline", "check_row"]


class Timeline:
    """The timeline of one run. Its steps count from 0, or from that at which it was forked from another run."""

    def __init__(self, pace: Pace, shards: Sequence[Supply], begun: Begun | None = None) -> None:
        """
        shards  the shorter ones, in the order of pace.lengths, then the main ones
        begun   where the run was forked from another. Then all its rows are the main ones, going on where the other
                run left the same shards; batch and learning rate are full, until they decay in the last share `decay`
                of the budget, or in all that is left where that is less. The budget is that of both runs together.

        Raises UsageError where the two do not fit, or where a fork has nothing left to do.
        """
        lengths = [one.length for one in shards[:-1]]
        if lengths != list(pace.lengths.lengths):
            raise UsageError(
                f"pretrain.lengths.lengths is {list(pace.lengths.lengths)}, and the shorter shards have rows of "
                f"{lengths}; make shards of each length, in this order."
            )
        pace.check(shards[-1].length)
        self.pace, self.shards, self.begun = pace, tuple(shards), begun
        if begun:
            self._check_fork(begun)
        stretches = lay(pace, self.shards, begun)
        self.first = stretches[0].step
        """The first step."""
        self.total = pace.steps or self._reaches_tokens(stretches)
        """One more than the last step."""
        self._stretches = [one for one in stretches if one.step < self.total]
        self._starts = [one.step for one in self._stretches]
        self._dones = [one.take.done for one in self._stretches]
        self.positions = self.done(self.total)
        """B·L of all steps."""
        self._last = self._stretches[-1].size
        self._risen, self._stable, self._decays = self._phases()
        """Steps from which on the learning rate is full, the batch is full too, the learning rate falls."""
        self._full, self._falls = self.done(self._risen + 1), self.done(self._decays)

    # What a step takes.

    def at(self, step: int) -> Take:
        """What a step, first <= step < total, takes. Raises UsageError for any other."""
        start, (shards, first, rows, done, length) = self._stretch(step)
        ahead = (step - start) * rows
        return Take(shards, first + ahead, rows, done + ahead * length, length)

    def mask_rate(self, step: int) -> str:
        """p of a step; "" is that of the shards."""
        return self.pace.mask_rates.rate_at(self.at(step).done, self.positions, self._last)

    def done(self, step: int) -> int:
        """Positions B·L of all steps before this one."""
        stretch = self._stretches[max(bisect_right(self._starts, step) - 1, 0)]
        return stretch.take.done + (step - stretch.step) * stretch.size

    def shapes(self) -> list[tuple[int, int]]:
        """Every (B, L) of a step, in the order in which they come."""
        return list(dict.fromkeys((one.take.rows, one.take.length) for one in self._stretches))

    def begun_at(self, step: int, tokens: int) -> Begun:
        """Where the run stands after `step` steps, of which `tokens` ordinary tokens were counted."""
        samples = dict(self.begun.samples) if self.begun else {}
        for stretch, end in zip(self._stretches, [*self._starts[1:], self.total], strict=True):
            if stretch.step < step:
                taken = stretch.take.first + (min(step, end) - stretch.step) * stretch.take.rows
                samples[self.shards[stretch.take.shards].digest] = taken
        return Begun(step, self.done(step), tokens, samples)

    def _stretch(self, step: int) -> Stretch:
        if not self.first <= step < self.total:
            raise UsageError(f"step {step} is none of the run's; ask for one from {self.first} to {self.total - 1}.")
        return self._stretches[bisect_right(self._starts, step) - 1]

    # How fast it learns.

    def multiplier(self, step: int) -> float:
        """Of the learning rates at a step, in (0, 1]: no step is wasted.

        Rises linearly to 1 in the warm-up. wsd stays there, and falls as 1 - sqrt(x) in the decay (Hägele et al. 2024);
        cosine (Loshchilov and Hutter 2017) and linear fall to zero, which one more step would have.
        """
        stretch = self._stretch(step)
        before = stretch.take.done + (step - stretch.step) * stretch.size
        after = before + stretch.size
        rise = min(1.0, after / self._full)
        if step < self._decays:
            return rise
        if self.pace.schedule == "wsd":
            return min(rise, 1.0 - math.sqrt((after - self._falls) / (self.positions + self._last - self._falls)))
        left = (self.positions - before) / (self.positions - self._falls)
        # (1 + cos(π - π·left)) / 2, but so that rounding does not lose its end
        return min(rise, left if self.pace.schedule == "linear" else math.sin(math.pi / 2 * left) ** 2)

    def stable_steps(self, number: int) -> tuple[int, ...]:
        """After how many steps the stable checkpoints are taken: evenly over the stable phase, the last at its end.

        The phase has the full learning rate and batch; its rows may still be short, those of a fork are long.
        Raises UsageError where it has fewer steps than that.
        """
        if not number:
            return ()
        begin, end = self.done(self._stable), self.done(self._decays)
        places = [begin + Fraction((end - begin) * one, number) for one in range(1, number + 1)]
        steps = {round(self._steps_in(place)) for place in places} - {self._stable}
        if len(steps) < number or end <= begin:
            raise UsageError(
                f"pretrain.stable_checkpoints is {number}, and the stable phase has "
                f"{max(self._decays - self._stable, 0)} steps; use fewer, pretrain.schedule wsd, or a longer run."
            )
        return tuple(sorted(steps))

    def _phases(self) -> tuple[int, int, int]:
        """Each begins with the step that is nearest to its share of the positions."""
        pace, whole = self.pace, self.pace.batch_tokens
        warmup = 0 if self.begun else exact(pace.warmup) * self.positions
        risen = max(round(self._steps_in(warmup)), self.first)
        small = [number for number, one in enumerate(self._stretches) if one.take.rows < whole // one.take.length]
        full = [*self._starts, self.total][max(small, default=-1) + 1]
        if pace.schedule != "wsd":
            return risen, risen, risen
        decay = self.total - self._steps_in(self.positions - exact(pace.decay) * self.positions)
        return risen, max(risen, full), max(self.total - round(decay), self.first)

    def _steps_in(self, positions: Fraction | int) -> Fraction:
        """How many steps do these positions, a part of a step counted in."""
        stretch = self._stretches[max(bisect_right(self._dones, positions) - 1, 0)]
        return stretch.step + Fraction(positions - stretch.take.done) / stretch.size

    # The budget.

    def _check_fork(self, begun: Begun) -> None:
        self.pace.check_fork()
        steps = self.pace.steps
        name, budget, spent = ("steps", steps, begun.step) if steps else ("tokens", self.pace.tokens, begun.tokens)
        if budget <= spent:
            raise UsageError(
                f"pretrain.{name} is {budget:,}, and the run that this one is forked from had {spent:,} by then; set "
                "more, the budget is that of both together."
            )

    def _reaches_tokens(self, stretches: list[Stretch]) -> int:
        """The first number of steps with the tokens of the budget."""
        left = Fraction(self.pace.tokens - (self.begun.tokens if self.begun else 0))
        for stretch, following in pairwise(stretches):
            steps = math.ceil(left / self._tokens(stretch))
            if stretch.step + steps <= following.step:
                return stretch.step + steps
            left -= self._tokens(stretch) * (following.step - stretch.step)
        return stretches[-1].step + math.ceil(left / self._tokens(stretches[-1]))

    def _tokens(self, stretch: Stretch) -> Fraction:
        """Ordinary tokens of one of its steps, in the mean."""
        supply = self.shards[stretch.take.shards]
        return Fraction(stretch.take.rows * supply.tokens, supply.rows)
