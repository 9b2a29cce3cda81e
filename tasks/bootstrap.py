"""How sure is a mean? The 95 % percentile interval of the bootstrap (Efron and Tibshirani, 1993, chapter 13).

What is drawn anew, with replacement, is what was drawn independently: whole documents, not their tokens, which depend
on each other; pairs; examples. The draws are seeded: the same figures have the same interval.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

DRAWS = 1000
LEVEL = 0.95
Z = 1.959964
"""Quantile of the normal distribution that leaves 2.5 % above it."""
AT_ONCE = 1 << 22
"""Weights drawn at a time."""


def ratio_interval(numerators: ArrayLike, denominators: ArrayLike, seed: int = 0) -> tuple[float, float]:
    """The interval of Σ numerators / Σ denominators over units that are drawn anew: a masked cross-entropy over
    documents, an accuracy over pairs (denominators of 1).

    Both (U,), denominators at least 0. NaN, NaN without a unit that counts.
    """
    low, high = ratio_intervals(np.asarray(numerators)[None], denominators, seed)[0]
    return float(low), float(high)


def ratio_intervals(numerators: ArrayLike, denominators: ArrayLike, seed: int = 0) -> NDArray[np.float64]:
    """The same for several numerators (K, U) over one denominator, from the same draws: low and high ends (K, 2).

    Of a difference of two numerators it is a paired one.
    """
    numerators_KU, denominators_U = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    counted = denominators_U > 0
    if not counted.any():
        return np.full((len(numerators_KU), 2), np.nan)
    ratios_DK = _ratios(numerators_KU[:, counted], denominators_U[counted], seed)
    return np.quantile(ratios_DK, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0).T


def share_interval(hits: int, of: int) -> tuple[float, float]:
    """The interval of a share (Wilson, 1927). Unlike a bootstrap's it has a width where all are hits, or none.

    of      at least 1
    """
    share, z2 = hits / of, Z * Z
    middle, half = share + z2 / (2 * of), Z * math.sqrt(share * (1 - share) / of + z2 / (4 * of * of))
    return max(0.0, (middle - half) / (1 + z2 / of)), min(1.0, (middle + half) / (1 + z2 / of))


def shares_interval(hits: ArrayLike, of: ArrayLike, seed: int = 0) -> tuple[float, float]:
    """The interval of the mean over groups (paradigms) of their shares hits / of, where the members of each group are
    drawn anew on their own. Of n members of which k are hits, n drawn with replacement have binomial(n, k/n) hits.

    Both (G,), at least one group, none empty.
    """
    hits_G, of_G = np.asarray(hits, np.int64), np.asarray(of, np.int64)
    generator = np.random.Generator(np.random.Philox(seed))
    means = (generator.binomial(of_G, hits_G / of_G, (DRAWS, len(of_G))) / of_G).mean(1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _ratios(numerators_KU: NDArray[np.float64], denominators_U: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    columns_UK = np.concatenate([numerators_KU, denominators_U[None]]).T
    units = len(columns_UK)
    generator, found = np.random.Generator(np.random.Philox(seed)), []
    per_time = max(1, AT_ONCE // units)
    for start in range(0, DRAWS, per_time):
        drawn = generator.integers(0, units, (min(per_time, DRAWS - start), units))
        drawn += np.arange(len(drawn))[:, None] * units
        times = np.bincount(drawn.reshape(-1), minlength=drawn.size).reshape(drawn.shape)
        sums = times.astype(np.float64) @ columns_UK
        found.append(sums[:, :-1] / sums[:, -1:])
    return np.concatenate(found)
