"""Which positions are hidden: equation (1), as a pure function of an address.

    (1)  𝓜 ⊂ {1..M},  |𝓜| = ⌊M·p⌋, uniform without replacement

M is the number of ordinary tokens of one segment (a document's piece inside a packed row, `[CLS] t… [SEP]`); special
tokens and padding are never in 𝓜 and do not count in M. Every position has a key, a 64-bit hash of

    (seed, domain, draw, global sequence id, position in the row)

and never of rank, worker, batch or shard (keys.py).

A policy is a total order of a segment's positions, and 𝓜 is the first ⌊M·p⌋ of them. Positions come in groups, the
groups in the order of the key of their first position, ties by position; the last group is cut to hit the count.

    uniform      a group is a position
    whole-word   a group is a word (Devlin et al. 2019, the release of whole-word models)
    span         a group is a span; lengths are geometric (Joshi et al. 2020, SpanBERT): each position begins a new
                 one with probability 1/span, by a key of its own
    block        a group is a rectangle of a grid (Bao et al. 2022, BEiT), in the order in which they are drawn, less
                 what earlier ones hold (rectangles.py); the last one is cut at the end of a row or within one

So every policy hides exactly as many, a lower rate hides a subset of what a higher one hides, any machine that knows
the address draws the same 𝓜, and a stored draw can be proved.

Suffixes: R rows, L positions, S segments; in a bucket of segments: N segments, W positions.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import UsageError
from .keys import Domain, keys, keys_from
from .rectangles import Grid, check, in_rectangles

Array = NDArray[Any]

SAMPLER = {"name": "splitmix64", "version": 2}
EVALUATION_SEED = 181004805
"""Seed of the draws of validation and test. One uniform draw is stored of them, whatever the train split's policy and
K: frozen, so that all models of one vocabulary, L and packing are asked the same."""

POLICIES = ("uniform", "whole-word", "span", "block")


@dataclass(frozen=True)
class Policy:
    """Which positions are hidden together."""

    name: str = "uniform"
    """One of POLICIES."""
    span: int = 3
    """Mean length of a span, in tokens; for "span" only."""
    grid: Grid = (0, 0)
    """Rows and columns in which the tokens of every segment lie; for "block" only."""

    @property
    def of_groups(self) -> bool:
        """Does a draw need to know where groups of tokens begin?"""
        return self.name == "whole-word"

    @property
    def boundary(self) -> int:
        """A position begins a span where its key is at most this: one in `span` of them."""
        return (1 << 64) // self.span - 1


def manner_of(split: str, seed: int, policy: Policy, draws: int) -> tuple[int, Policy, int]:
    """(seed, policy, K) of a split's draws: the config's for train, frozen ones for what models are judged by."""
    return (seed, policy, draws) if split == "train" else (EVALUATION_SEED, Policy(), 1)


def fraction(rate: str) -> Fraction:
    """The exact mask rate p: "0.29" and "29%" are 29/100, where float arithmetic has int(100 * 0.29) == 28.

    Raises UsageError where p is no number or not in (0, 1).
    """
    text = rate.strip()
    try:
        if len(text) > 64 or "e" in text.lower():
            raise ValueError("1e-300000000 would take all memory")
        p = Fraction(text[:-1]) / 100 if text.endswith("%") else Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"The mask rate {rate!r} is not a number; write it like 0.3 or 30%.") from None
    if not 0 < p < 1:
        raise UsageError(f"The mask rate {rate!r} is not between 0 and 1; 0.15 to 0.5 is usual.")
    return p


def spelling(rate: str) -> str:
    """The one way to write a rate: "0.30" and "30%" are "0.3"; what no decimal can say stays a fraction, "1/3"."""
    p = fraction(rate)
    for digits in range(1, 20):
        if 10**digits % p.denominator == 0:
            return f"0.{p.numerator * 10**digits // p.denominator:0{digits}d}"
    return f"{p.numerator}/{p.denominator}"


def count(tokens: ArrayLike, rate: str) -> NDArray[np.int64]:
    """|𝓜| = ⌊M·p⌋ for M tokens, elementwise and exact."""
    p, counts = fraction(rate), np.asarray(tokens, dtype=np.int64)
    if max(int(counts.max(initial=0)), 1) * p.numerator < 1 << 63 and p.denominator < 1 << 63:
        return counts * p.numerator // p.denominator
    # a rate of many digits, such as a third written out, would overflow 64 bits without a word
    return np.asarray(counts.astype(object) * p.numerator // p.denominator).astype(np.int64)


def segment_ids(lengths: Array, offsets: Array, length: int) -> NDArray[np.int32]:
    """Which segment of its row a position belongs to: int32 (R, L), -1 on padding.

    `lengths` (S,) are all segments' lengths with their specials, row after row; row r has lengths[offsets[r] :
    offsets[r + 1]] (offsets (R + 1,), first 0).
    """
    lengths, offsets = np.asarray(lengths, dtype=np.int64), np.asarray(offsets, dtype=np.int64)
    rows = len(offsets) - 1
    row_S = np.repeat(np.arange(rows), np.diff(offsets))
    # one run of equal ids for each segment, and one of -1 at the end of each row
    at_S, at_R = np.arange(len(lengths)) + row_S, offsets[1:] + np.arange(rows)
    runs, values = np.empty(len(lengths) + rows, np.int64), np.full(len(lengths) + rows, -1, np.int32)
    values[at_S] = np.arange(len(lengths)) - offsets[row_S]
    before = np.concatenate([[0], np.cumsum(lengths)])
    runs[at_S], runs[at_R] = lengths, length - np.diff(before[offsets])
    return np.repeat(values, runs).reshape(rows, length)


def _flat_positions(lengths: NDArray[np.int64], offsets: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Indices into R*L of every position that is in a segment, in order."""
    begins = _begins(lengths, offsets, length)
    before = np.cumsum(lengths) - lengths
    return np.repeat(begins - before, lengths) + np.arange(int(lengths.sum()))


def _begins(lengths: NDArray[np.int64], offsets: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Index into R*L of the first position of every segment (S,)."""
    row_S = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    before = np.concatenate([[0], np.cumsum(lengths)])
    return row_S * length + before[:-1] - before[offsets[row_S]]


def ordinary(lengths: Array, offsets: Array, length: int) -> NDArray[np.bool_]:
    """Positions that may be hidden: in a segment, and neither its [CLS] (first) nor its [SEP] (last). bool (R, L)."""
    lengths, offsets = np.asarray(lengths, dtype=np.int64), np.asarray(offsets, dtype=np.int64)
    allowed = np.zeros((len(offsets) - 1) * length, dtype=bool)
    allowed[_flat_positions(lengths, offsets, length)] = True
    begins = _begins(lengths, offsets, length)
    allowed[begins] = False
    allowed[begins + lengths - 1] = False
    return allowed.reshape(-1, length)


class Layout:
    """Where the segments of some rows lie, and how many of each are hidden."""

    def __init__(self, lengths: Array, offsets: Array, length: int, rate: str) -> None:
        """See `segment_ids` for lengths and offsets."""
        lengths, offsets = np.asarray(lengths, dtype=np.int64), np.asarray(offsets, dtype=np.int64)
        self.rows, self.length = len(offsets) - 1, length
        self.tokens_S = lengths - 2
        """M of each segment."""
        self.hidden_S = count(self.tokens_S, rate)
        self.row_S = np.repeat(np.arange(self.rows), np.diff(offsets))
        self.first_S = _begins(lengths, offsets, length) + 1
        """Index into R*L of each segment's first ordinary position."""

    def buckets(self) -> Iterator[tuple[NDArray[np.int64], int]]:
        """(segments, W): those of which something is hidden, with M <= W, of like length: at least half of W.

        So they are handled as one array (N, W), and the time goes into few calls on much, not into many on little.
        """
        wide, some = self.length - 2, self.hidden_S > 0
        while wide > 0 and some.any():
            here = some & (self.tokens_S > wide // 2)
            if here.any():
                segments = np.flatnonzero(here)
                yield segments, int(self.tokens_S[segments].max())
            some &= ~here
            wide //= 2


def draw(
    seed: int,
    number: int,
    sequence_ids: ArrayLike,
    lengths: Array,
    offsets: Array,
    length: int,
    rate: str,
    policy: Policy = Policy(),
    begins_RL: NDArray[np.bool_] | None = None,
) -> NDArray[np.bool_]:
    """Draw `number` of 𝓜 for some rows: bool (R, L). See `segment_ids` for lengths and offsets.

    begins_RL   where groups begin (of text: words), bool (R, L): what "whole-word" needs
    Raises UsageError for "block" where the segments do not lie in its grid.
    """
    layout = Layout(lengths, offsets, length, rate)
    if policy.name == "block":
        check(policy.grid, layout.tokens_S)
    ids_S = np.asarray(sequence_ids, dtype=np.uint64)[layout.row_S]
    at_S = layout.first_S - layout.row_S * length
    hidden = np.zeros(layout.rows * length, dtype=bool)
    for segments, wide in layout.buckets():
        address = ids_S[segments], at_S[segments]
        keys_NW, begins_NW = keys_from(seed, Domain.CHOICE, number, *address, wide), None
        if policy.of_groups:
            assert begins_RL is not None, "masks of whole groups need to know where these begin"
            begins_NW = _cut_out(begins_RL, layout.first_S[segments], wide)
        elif policy.name == "block":
            keys_NW = in_rectangles(seed, number, *address, policy.grid, keys_NW)
        elif policy.name == "span":
            begins_NW = keys_from(seed, Domain.SPAN, number, *address, wide) <= np.uint64(policy.boundary)
        if begins_NW is not None:
            keys_NW = _of_groups(keys_NW, begins_NW)
        chosen_NW = _first(keys_NW, layout.tokens_S[segments], layout.hidden_S[segments], begins_NW)
        shift = layout.first_S[segments] - np.arange(len(segments)) * wide
        hidden[np.flatnonzero(chosen_NW) + np.repeat(shift, layout.hidden_S[segments])] = True
    return hidden.reshape(layout.rows, length)


def _cut_out(begins_RL: NDArray[np.bool_], first_N: NDArray[np.int64], wide: int) -> NDArray[np.bool_]:
    """What begins at the W positions from `first` on: bool (N, W). Beyond the last row nothing does."""
    padded = np.concatenate([begins_RL.reshape(-1), np.zeros(wide, bool)])
    return np.lib.stride_tricks.sliding_window_view(padded, wide)[first_N]  # rows are copied, not bytes looked up


def _of_groups(keys_NW: NDArray[np.uint64], begins_NW: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Gives every position the key of its group's first one; the first position of a segment begins a group."""
    begins_NW[:, 0] = True
    starts = np.flatnonzero(begins_NW)
    keys = np.repeat(keys_NW.reshape(-1)[starts], np.diff(starts, append=keys_NW.size))
    return keys.reshape(keys_NW.shape)


def _first(
    keys_NW: NDArray[np.uint64],
    tokens_N: NDArray[np.int64],
    hidden_N: NDArray[np.int64],
    begins_NW: NDArray[np.bool_] | None,
) -> NDArray[np.bool_]:
    """The first `hidden` (at least 1) of the first `tokens` positions by key, ties by position: bool (N, W).

    Sorted are the upper halves of the keys: numpy sorts 32 bits twice to ten times as fast as 64, and two groups have
    the same half at the threshold once in millions of segments; those are sorted whole.
    """
    wide = keys_NW.shape[1]
    outside_NW = np.arange(wide, dtype=np.int32) >= tokens_N.astype(np.int32)[:, None]
    upper_NW = (keys_NW >> np.uint64(32)).astype(np.uint32)
    np.putmask(upper_NW, outside_NW, np.uint32(0xFFFFFFFF))
    threshold_N1 = np.sort(upper_NW, axis=1)[np.arange(len(keys_NW)), hidden_N - 1][:, None]
    chosen_NW = upper_NW <= threshold_N1
    if np.count_nonzero(chosen_NW) == hidden_N.sum():
        return chosen_NW
    equal_NW = upper_NW == threshold_N1  # no row has too few: those that have too many must cut a group, or are tied
    if begins_NW is not None and np.count_nonzero(equal_NW & begins_NW) == len(keys_NW):
        size_N = np.count_nonzero(equal_NW, axis=1)
        spare_N = np.count_nonzero(chosen_NW, axis=1) - hidden_N
        end_N1 = (equal_NW.argmax(axis=1) + size_N - spare_N).astype(np.int32)[:, None]
        chosen_NW &= ~(equal_NW & (np.arange(wide, dtype=np.int32) >= end_N1))
        return chosen_NW
    tied = np.flatnonzero(np.count_nonzero(chosen_NW, axis=1) != hidden_N)
    chosen_NW[tied] = _first_exactly(keys_NW[tied], outside_NW[tied], hidden_N[tied])
    return chosen_NW


def _first_exactly(
    keys_NW: NDArray[np.uint64], outside_NW: NDArray[np.bool_], hidden_N: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """The same with whole keys; of equal ones (a group that is cut) the first positions."""
    keys_NW[outside_NW] = np.uint64(0xFFFFFFFFFFFFFFFF)
    threshold_N1 = np.sort(keys_NW, axis=1)[np.arange(len(keys_NW)), hidden_N - 1][:, None]
    below_NW, equal_NW = keys_NW < threshold_N1, (keys_NW == threshold_N1) & ~outside_NW
    open_N1 = (hidden_N - below_NW.sum(axis=1))[:, None]
    return below_NW | equal_NW & (equal_NW.cumsum(axis=1) <= open_N1)


def ids_in(ranges: Iterable[Sequence[int]]) -> NDArray[np.int64]:
    """The ids of half-open ranges, such as those of a vocabulary's ordinary tokens."""
    return np.concatenate([np.zeros(0, np.int64), *(np.arange(first, end) for first, end in ranges)])


def pack_bits(hidden_RL: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """A draw as stored: position j is bit j % 8 of byte j // 8. uint8 (R, L/8)."""
    return np.packbits(hidden_RL, axis=1, bitorder="little")


def unpack_bits(bits: NDArray[np.uint8], length: int) -> NDArray[np.bool_]:
    """The inverse of `pack_bits`: bool (R, L)."""
    return np.unpackbits(bits, axis=1, count=length, bitorder="little").astype(bool)


def corrupt(
    tokens_RL: Array,
    hidden_RL: NDArray[np.bool_],
    *,
    seed: int,
    draw: int,
    sequence_ids: ArrayLike,
    mask_id: int,
    ordinary_ids: NDArray[np.int64],
    policy: str,
) -> Array:
    """H_0: the rows with 𝓜 hidden, as a new array.

    policy          "mask": [MASK] at every position of 𝓜. "80/10/10" (Devlin et al. 2019): [MASK] at 8 of 10, a random
                    ordinary token at 1 of 10, the token itself at 1 of 10.
    ordinary_ids    the ids that a random replacement may take: never a special token. See `ids_in`
    """
    corrupted = tokens_RL.copy()
    np.putmask(corrupted, hidden_RL, mask_id)
    if policy == "mask":
        return corrupted
    if policy != "80/10/10":
        raise UsageError(f"shards.corruption is {policy!r}; use mask or 80/10/10.")
    length = tokens_RL.shape[1]
    action_RL = keys(seed, Domain.ACTION, draw, sequence_ids, length) % np.uint64(10)
    random_RL = ordinary_ids[
        (keys(seed, Domain.REPLACEMENT, draw, sequence_ids, length) % np.uint64(len(ordinary_ids))).astype(np.int64)
    ]
    replaced, kept = hidden_RL & (action_RL == 8), hidden_RL & (action_RL == 9)
    corrupted[replaced] = random_RL[replaced].astype(tokens_RL.dtype)
    corrupted[kept] = tokens_RL[kept]
    return corrupted
