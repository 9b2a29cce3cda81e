"""Which positions are hidden: equation (1), as a pure function of an address.

    (1)  𝓜 ⊂ {1..M},  |𝓜| = ⌊M·p⌋, uniform without replacement

M is the number of ordinary tokens of one segment (a document's piece inside a packed row, `[CLS] t… [SEP]`); special
tokens and padding are never in 𝓜 and do not count in M. Every position has a key, a 64-bit hash of

    (seed, domain, draw, global sequence id, position in the row)

and never of rank, worker, batch or shard. 𝓜 is the first ⌊M·p⌋ positions of the segment in the order of their keys,
ties by position. So a lower rate hides a subset of what a higher one hides, any machine that knows the address draws
the same 𝓜, and a stored draw can be proved. The hash is splitmix64 (Steele, Lea & Flood 2014, "Fast splittable
pseudorandom number generators"): counter-based like Philox, and the same few integer operations in numpy and torch.

Suffixes: R rows, L positions.
"""

from collections.abc import Sequence
from enum import IntEnum
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import UsageError

Array = NDArray[Any]

SAMPLER = {"name": "uniform-splitmix64", "version": 1}
EVALUATION_SEED = 181004805
"""Seed of the draws of validation and test: frozen, so that all models of one vocabulary are asked the same."""

GOLDEN = 0x9E3779B97F4A7C15
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB


class Domain(IntEnum):
    """What a key decides; keys of different domains are independent."""

    CHOICE = 0
    """𝓜 itself."""
    ACTION = 1
    """Of the 80/10/10 rule: hide, replace or keep."""
    REPLACEMENT = 2
    """Which token replaces."""
    ORDER = 3
    """The order of the samples in an epoch."""


def fraction(rate: str) -> Fraction:
    """The exact mask rate p: "0.29" and "29%" are 29/100, where float arithmetic has int(100 * 0.29) == 28.

    Raises UsageError where p is no number or not in (0, 1).
    """
    text = rate.strip()
    try:
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


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64: a bijection of 64 bits in which every input bit reaches every output bit."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(MIX_1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(MIX_2)
    return z ^ (z >> np.uint64(31))


def mix_int(z: int) -> int:
    """`_mix` of one Python integer, modulo 2^64."""
    z &= 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * MIX_1) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * MIX_2) & 0xFFFFFFFFFFFFFFFF
    return z ^ (z >> 31)


def stream(seed: int, domain: Domain, draw: int) -> int:
    """The 64-bit state that a (seed, domain, draw) starts from; each part is mixed in before the next is added."""
    state = 0
    for part in (seed, int(domain), draw):
        state = mix_int(state + part * GOLDEN + GOLDEN)
    return state


def keys(seed: int, domain: Domain, draw: int, sequence_ids: ArrayLike, length: int) -> NDArray[np.uint64]:
    """Keys of the positions 0..L-1 of some rows: uint64 (R, L)."""
    ids = np.asarray(sequence_ids, dtype=np.uint64)
    row_R = _mix(np.uint64(stream(seed, domain, draw)) + (ids + np.uint64(1)) * np.uint64(GOLDEN))
    steps_L = np.arange(1, length + 1, dtype=np.uint64) * np.uint64(GOLDEN)
    return _mix(row_R[:, None] + steps_L)


def segment_ids(lengths: Array, offsets: Array, length: int) -> NDArray[np.int32]:
    """Which segment of its row a position belongs to: int32 (R, L), -1 on padding.

    `lengths` (S,) are all segments' lengths with their specials, row after row; row r has lengths[offsets[r] :
    offsets[r + 1]] (offsets (R + 1,), first 0).
    """
    lengths, offsets = np.asarray(lengths, dtype=np.int64), np.asarray(offsets, dtype=np.int64)
    per_row = np.diff(offsets)
    index_S = np.arange(len(lengths)) - np.repeat(offsets[:-1], per_row)
    ids = np.full(len(per_row) * length, -1, dtype=np.int32)
    ids[_flat_positions(lengths, offsets, length)] = np.repeat(index_S, lengths)
    return ids.reshape(len(per_row), length)


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


def choose(keys_RL: NDArray[np.uint64], lengths: Array, offsets: Array, rate: str) -> NDArray[np.bool_]:
    """𝓜 of every segment: the first ⌊M·p⌋ ordinary positions by key, ties by position. bool (R, L).

    One sort per row does it for all its segments: a word is (segment | key | position), the key cut to what is left
    of 64 bits (52 at L = 64, 46 at L = 512), so that sorting words sorts by segment, then key, then position.
    """
    rows, length = keys_RL.shape
    lengths, offsets = np.asarray(lengths, dtype=np.int64), np.asarray(offsets, dtype=np.int64)
    bits = np.uint64(position_bits(length))
    segment_RL = segment_ids(lengths, offsets, length).astype(np.uint64)
    words_RL = (keys_RL >> (bits + bits)) << bits | np.arange(length, dtype=np.uint64)
    words_RL |= segment_RL << (np.uint64(64) - bits)
    words_RL[~ordinary(lengths, offsets, length)] = np.uint64(0xFFFFFFFFFFFFFFFF)
    words_RL.sort(axis=1)
    # Sorted, a row is: the ordinary positions of its segment 0 by key, then of segment 1, …, then all that may not be.
    ordinary_S = lengths - 2
    hidden_S = count(ordinary_S, rate)
    row_S = np.repeat(np.arange(rows), np.diff(offsets))
    before = np.concatenate([[0], np.cumsum(ordinary_S)])
    begins = row_S * length + before[:-1] - before[offsets[row_S]]
    taken = np.repeat(begins - (np.cumsum(hidden_S) - hidden_S), hidden_S) + np.arange(int(hidden_S.sum()))
    positions = words_RL.reshape(-1)[taken] & ((np.uint64(1) << bits) - np.uint64(1))
    hidden = np.zeros(rows * length, dtype=bool)
    hidden[np.repeat(row_S, hidden_S) * length + positions.astype(np.int64)] = True
    return hidden.reshape(rows, length)


def position_bits(length: int) -> int:
    """Bits for a position of a row of L, and for a segment's number: a row has at most L/2 segments."""
    return max(int(length - 1).bit_length(), 2)


def draw(
    seed: int, number: int, sequence_ids: ArrayLike, lengths: Array, offsets: Array, length: int, rate: str
) -> NDArray[np.bool_]:
    """Draw `number` of 𝓜 for some rows: bool (R, L). See `segment_ids` for lengths and offsets."""
    return choose(keys(seed, Domain.CHOICE, number, sequence_ids, length), lengths, offsets, rate)


def pack_bits(hidden_RL: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """A draw as stored: position j is bit j % 8 of byte j // 8. uint8 (R, L/8)."""
    return np.packbits(hidden_RL, axis=1, bitorder="little")


def unpack_bits(bits: NDArray[np.uint8], length: int) -> NDArray[np.bool_]:
    """The inverse of `pack_bits`: bool (R, L)."""
    return np.unpackbits(bits, axis=1, count=length, bitorder="little").astype(bool)


def permutation(seed: int, epoch: int, rows: int) -> NDArray[np.int64]:
    """The order of the samples in an epoch: sample g of the run is permutation(g // rows)[g % rows]. int64 (rows,)."""
    return np.argsort(keys(seed, Domain.ORDER, epoch, [0], rows)[0], kind="stable")


def corrupt(
    tokens_RL: Array,
    hidden_RL: NDArray[np.bool_],
    *,
    seed: int,
    draw: int,
    sequence_ids: ArrayLike,
    mask_id: int,
    ordinary_ids: Sequence[int],
    policy: str,
) -> Array:
    """H_0: the rows with 𝓜 hidden, as a new array.

    policy          "mask": [MASK] at every position of 𝓜. "80/10/10" (Devlin et al. 2019): [MASK] at 8 of 10, a random
                    ordinary token at 1 of 10, the token itself at 1 of 10.
    ordinary_ids    first and one past the last id that a random replacement may take: never a special token
    """
    corrupted = tokens_RL.copy()
    corrupted[hidden_RL] = mask_id
    if policy == "mask":
        return corrupted
    if policy != "80/10/10":
        raise UsageError(f"shards.corruption is {policy!r}; use mask or 80/10/10.")
    length = tokens_RL.shape[1]
    action_RL = keys(seed, Domain.ACTION, draw, sequence_ids, length) % np.uint64(10)
    first, end = ordinary_ids
    random_RL = first + keys(seed, Domain.REPLACEMENT, draw, sequence_ids, length) % np.uint64(end - first)
    replaced, kept = hidden_RL & (action_RL == 8), hidden_RL & (action_RL == 9)
    corrupted[replaced] = random_RL[replaced].astype(tokens_RL.dtype)
    corrupted[kept] = tokens_RL[kept]
    return corrupted
