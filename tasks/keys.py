"""Keys: 64-bit hashes of addresses, and nothing else; every random choice about rows is a function of one.

The hash is splitmix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators"): counter-based like
Philox, and the same few integer operations in numpy and torch. A key is a hash of

    (seed, domain, draw, global sequence id, position in the row)

and never of rank, worker, batch or shard.

Suffixes: R rows, L positions; N some places, W positions from each.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

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
    SPAN = 4
    """Where a span begins."""
    DROPOUT = 5
    """Where the generator of a micro-batch's dropout begins."""
    BLOCK = 6
    """Which rectangles are hidden."""


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


def keys_from(
    seed: int, domain: Domain, number: int, ids_N: NDArray[np.uint64], at_N: NDArray[np.int64], wide: int
) -> NDArray[np.uint64]:
    """`keys` of W positions from position `at` of a row on: uint64 (N, W)."""
    row_N = _mix(np.uint64(stream(seed, domain, number)) + (ids_N + np.uint64(1)) * np.uint64(GOLDEN))
    row_N += (at_N.astype(np.uint64) + np.uint64(1)) * np.uint64(GOLDEN)
    return _mix_here(row_N[:, None] + np.arange(wide, dtype=np.uint64) * np.uint64(GOLDEN))


def _mix_here(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """`_mix` in place: with fresh memory for each step it takes four times as long."""
    other = z >> np.uint64(30)
    z ^= other
    z *= np.uint64(MIX_1)
    np.right_shift(z, np.uint64(27), out=other)
    z ^= other
    z *= np.uint64(MIX_2)
    np.right_shift(z, np.uint64(31), out=other)
    z ^= other
    return z


def permutation(seed: int, epoch: int, rows: int) -> NDArray[np.int64]:
    """The order of the samples in an epoch: sample g of the run is permutation(g // rows)[g % rows]. int64 (rows,)."""
    return np.argsort(keys(seed, Domain.ORDER, epoch, [0], rows)[0], kind="stable")
