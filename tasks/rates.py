"""The mask rate over a run. Masks are nested in p: a lower rate hides a subset, so a schedule needs no new shards.

    constant   one rate, or none: that of the shards
    linear     from the first rate to the last, as the positions B·L that are done, rounded down to 1/10000
    steps      one rate after the other; `at` are the shares of the run at which the next one begins

All of it is exact rational arithmetic, so a step has the same rate on every machine and after every resume.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from typing import Any

from . import masking
from .errors import UsageError
from .packing import SPECIALS

FINEST = 10_000
"""A linear schedule's rates are multiples of 1/FINEST: short to write, and ⌊M·p⌋ stays in 64 bits."""
KEY = "pretrain.mask_rates"


@dataclass(frozen=True)
class MaskRates:
    """Which share of the tokens is hidden, step by step."""

    schedule: str = "constant"
    """constant, linear (30 % to 15 % is usual) or steps."""
    rates: tuple[str, ...] = ()
    """Mask rates: none or one (constant), two (linear), two or more (steps). None takes that of the shards."""
    at: tuple[str, ...] = ()
    """Of steps: shares of the run at which the second, third, … rate begins, such as 0.5 or 1/2."""

    def __post_init__(self) -> None:
        if self.schedule not in ("constant", "linear", "steps"):
            raise UsageError(f"{KEY}.schedule is {self.schedule!r}; use constant, linear or steps.")
        for name in ("rates", "at"):  # one spelling for equal schedules: they are part of the weights' identity
            object.__setattr__(self, name, tuple(spelt(f"{KEY}.{name}", value) for value in getattr(self, name)))
        wanted = {
            "constant": (len(self.rates) < 2, "one rate, or none for that of the shards"),
            "linear": (len(self.rates) == 2, "the first and the last rate, such as [0.3, 0.15]"),
            "steps": (len(self.rates) > 1, "two rates or more, such as [0.3, 0.15]"),
        }
        fits, remedy = wanted[self.schedule]
        if not fits:
            raise UsageError(f"{KEY}.rates is {list(self.rates)}, and the schedule is {self.schedule}; use {remedy}.")
        for rate in self.rates if self.schedule == "linear" else ():
            if masking.fraction(rate) * FINEST < 1:
                raise UsageError(f"{KEY}.rates: {rate} is too small for a linear schedule; use 1/{FINEST} or more.")
        self._check_shares()

    def _check_shares(self) -> None:
        shares = [Fraction(share) for share in self.at]
        expected = len(self.rates) - 1 if self.schedule == "steps" else 0
        if shares and self.schedule != "steps":
            raise UsageError(f"{KEY}.at belongs to the schedule steps, and this one is {self.schedule}; leave it out.")
        if len(shares) != expected:
            raise UsageError(
                f"{KEY}.at has {len(shares)} shares of the run; {len(self.rates)} rates of the schedule "
                f"{self.schedule} need {expected}."
            )
        if any(later <= earlier for earlier, later in pairwise(shares)):
            raise UsageError(f"{KEY}.at is {list(self.at)}; each share must be larger than the one before it.")

    def rate_at(self, done: int, total: int, last: int = 1) -> str:
        """The rate of the step before which 0 <= done < total was done; "" is that of the shards.

        `done`, `total` and `last`, what the last step does, are positions, or steps where these are all of one size.
        """
        if self.schedule == "constant":
            return self.rates[0] if self.rates else ""
        if self.schedule == "steps":
            return self.rates[sum(share * total <= done for share in self._shares)]
        # in units of 1/FINEST
        first, final = self._ends
        rate = int((first + (final - first) * Fraction(done, max(total - last, 1))) // 1)
        return masking.spelling(f"{rate}/{FINEST}")

    @cached_property
    def _shares(self) -> list[Fraction]:
        return [Fraction(share) for share in self.at]

    @cached_property
    def _ends(self) -> list[Fraction]:
        return [masking.fraction(rate) * FINEST for rate in self.rates]

    def highest(self, default: str) -> str:
        """The highest rate of the run, which sets the slots of a batch. `default` is the rate of the shards."""
        return max(self.rates, key=masking.fraction, default=default)

    def check(self, length: int) -> None:
        """Raises UsageError for a rate at which a full row of L hides nothing: a step would train on nothing."""
        for rate in self.rates:
            p = masking.fraction(rate)
            if self.schedule == "linear":
                p = Fraction(p * FINEST // 1, FINEST)
            least = SPECIALS + -(-p.denominator // p.numerator)
            if length < least:
                raise UsageError(
                    f"{KEY}.rates: {rate} hides no token of a row of {length}; use a higher rate, or a shards.length "
                    f"of {least} or more."
                )

    @property
    def varies(self) -> bool:
        """May two steps have different rates?"""
        return self.schedule != "constant"


def spelt(key: str, value: Any) -> str:
    """A rate or a share of the run in its one spelling. Raises UsageError naming the key."""
    try:
        return masking.spelling(str(value))
    except UsageError:
        raise UsageError(
            f"{key}: {value!r} is not a number between 0 and 1, both left out; write it like 0.3, 30% or 3/10."
        ) from None
