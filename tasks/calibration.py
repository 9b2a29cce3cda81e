"""Is a model right as often as it says? Confidence against accuracy, and how far they are apart.

    ECE = Σ_b n_b / n · |accuracy_b − confidence_b|        expected calibration error (Guo et al. 2017, equation 3)

Their bins are equally wide. Most masked tokens are either hard or easy, so that such bins in the middle hold next to
nothing; here all bins hold about as many tokens (Nguyen and O'Connor 2015; "adaptive" in Nixon et al. 2019). What is
kept until then are sums in CELLS equal cells of confidence, so memory and the order of the tokens do not matter.

Suffixes: M masked positions, C cells.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .strata import equal_masses

BINS = 15
CELLS = 10_000


class Bin(NamedTuple):
    """Tokens of like confidence."""

    confidence: float
    """Mean probability of the token that comes first."""
    accuracy: float
    """Share of them where that token is the right one."""
    n: int


@dataclass
class Reliability:
    """Sums over 𝓜 in cells of confidence."""

    n_C: NDArray[np.int64] = field(default_factory=lambda: np.zeros(CELLS, np.int64))
    confidence_C: NDArray[np.float64] = field(default_factory=lambda: np.zeros(CELLS))
    right_C: NDArray[np.int64] = field(default_factory=lambda: np.zeros(CELLS, np.int64))

    def add(self, confidence_M: NDArray[np.float64], right_M: NDArray[np.bool_]) -> None:
        """Adds masked positions; a confidence that is no number counts as 0."""
        confidence_M = np.nan_to_num(confidence_M)
        cell_M = np.minimum((confidence_M * CELLS).astype(np.int64), CELLS - 1)
        self.n_C += np.bincount(cell_M, minlength=CELLS)
        self.confidence_C += np.bincount(cell_M, confidence_M, CELLS)
        self.right_C += np.bincount(cell_M[right_M], minlength=CELLS)

    def bins(self, number: int = BINS) -> list[Bin]:
        """At most `number` bins of about as many tokens, by confidence; a cell is never divided."""
        there = np.flatnonzero(self.n_C)
        bin_C = equal_masses(self.n_C[there], number)
        found = []
        for one in np.unique(bin_C):
            some = there[bin_C == one]
            n = int(self.n_C[some].sum())
            found.append(Bin(float(self.confidence_C[some].sum()) / n, int(self.right_C[some].sum()) / n, n))
        return found


def expected_error(bins: list[Bin]) -> float:
    """ECE, from 0 to 1; NaN without a token."""
    n = sum(one.n for one in bins)
    return sum(one.n * abs(one.accuracy - one.confidence) for one in bins) / n if n else float("nan")
