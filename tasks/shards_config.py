"""The settings of shards: rows, masks, how documents come into them; checked when a recipe is read."""

from dataclasses import dataclass

from . import masking, packing
from .errors import UsageError

LONGEST = 65528
"""Segment lengths are stored in 16 bits."""
NOT_IDENTITY = {"workers"}


@dataclass(frozen=True)
class ShardsConfig:
    length: int = 128
    """L, positions of a row, specials included; a multiple of 8."""
    rate: str = "0.3"
    """p, the share of a segment's tokens that is hidden: a decimal, kept exact."""
    draws: int = 1
    """K, stored draws of 𝓜; later epochs draw theirs by the same rule."""
    seed: int = 0
    """Of the draws of the train split; validation and test have one uniform draw, with a frozen seed."""
    policy: str = "uniform"
    """Which tokens are hidden together: "uniform" (each by itself), "whole-word" or "span"; "block" (rectangles) where
    the tokens of a document lie in a grid."""
    span: int = 3
    """Mean length of a span, in tokens; lengths are geometric. For the policy "span" only."""
    corruption: str = "mask"
    """What stands at a hidden position: "mask" ([MASK] always) or "80/10/10" (BERT's)."""
    packing: str = "best-fit"
    """How documents come into rows: "best-fit", "in-order" (neighbours stay neighbours, more of them are cut), or
    "whole" (no document is cut that fits into a row)."""
    block_bytes: int = 8 << 20
    """Of documents that are encoded and packed at a time, about; a worker needs some fifteen times this."""
    shard_bytes: int = 64 << 20
    """Documents of a shard, about."""
    workers: int = 0
    """Processes; 0 takes one per core. Does not change the result."""

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "rate", masking.spelling(self.rate))
        except UsageError as error:
            raise UsageError(f"shards.rate: {error}") from None
        p = masking.fraction(self.rate)
        least = packing.SPECIALS + -(-p.denominator // p.numerator)
        refuse = [
            (self.length % 8 or not 0 < self.length <= LONGEST, "length", f"a multiple of 8 up to {LONGEST}"),
            (self.length < least, "length", f"at least {least}: [CLS], [SEP] and ⌈1/p⌉ tokens"),
            (
                not 1 <= self.draws <= 100,
                "draws",
                "1 or more, 100 at most: later epochs draw theirs by the same rule",
            ),
            (not 0 <= self.seed < 1 << 64, "seed", "a number from 0 to 2^64 - 1"),
            (self.policy not in masking.POLICIES, "policy", ", ".join(masking.POLICIES)),
            (not 1 <= self.span <= LONGEST, "span", f"1 to {LONGEST}"),
            (self.span != type(self).span and self.policy != "span", "span", "it with shards.policy: span only"),
            (self.corruption not in ("mask", "80/10/10"), "corruption", 'mask or "80/10/10"'),
            (self.packing not in packing.METHODS, "packing", " or ".join(packing.METHODS)),
            (self.block_bytes < 1, "block_bytes", f"1 or more, such as {8 << 20}"),
            (self.shard_bytes < 1, "shard_bytes", f"1 or more, such as {64 << 20}"),
            (self.workers < 0, "workers", "0 for one per core, or a number"),
        ]
        for wrong, key, remedy in refuse:
            if wrong:
                raise UsageError(f"shards.{key} is {getattr(self, key)!r}; use {remedy}.")

    @property
    def shortest(self) -> int:
        """⌈1/p⌉: of a shorter segment nothing is hidden."""
        p = masking.fraction(self.rate)
        return -(-p.denominator // p.numerator)
