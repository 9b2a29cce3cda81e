"""The bigram baseline: what does a token's left neighbour say of it? A model that is no better has learnt no more.

    p(w | c) = (n(c, w) + T(c) · p(w)) / (N(c) + T(c))        interpolated Witten-Bell (Witten and Bell 1991, method C;
                                                              in this form Chen and Goodman 1998, section 2.4)

n(c, w) is how often w follows c in the train split, N(c) = Σ_w n(c, w), T(c) how many different w follow c, and p(w)
the unigram baseline. What was never seen before a token, T(c) = N(c) = 0, leaves the unigram: so does [MASK], that is
a left neighbour that is hidden as well. The first token of a segment has [CLS] for its neighbour.

Suffixes: B rows, L positions, M masked positions, V vocabulary, P different pairs, C candidates, K the best of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from . import masking
from .batches import ShardReader
from .scoring import TOP, Answers, Scorer, Short

TOKENS = 20_000_000
"""Positions that are counted at most, about; of more, every k-th row."""
AT_ONCE = 1 << 22
"""Positions that are counted at a time."""


@dataclass(frozen=True)
class Pairs:
    """Neighbours in the train split, in order of the left one, then of the right one."""

    first_V: NDArray[np.int64]
    """Where the pairs of a left token begin, and the end (V + 1,)."""
    right_P: NDArray[np.int64]
    count_P: NDArray[np.int64]
    tokens: int
    """Σ count: tokens that were counted with their left neighbours."""
    every: int = 1
    """Of the rows, every so many-th was read."""


def count(reader: ShardReader, size: int, most: int = TOKENS) -> Pairs:
    """Pairs of neighbours within the segments of a split; `size` is V. Specials are left neighbours only.

    Takes about a second for ten million positions, and the memory of AT_ONCE of them and of the pairs.
    """
    every = max(1, -(-reader.rows * reader.length // most))
    keys, counts = np.zeros(0, np.uint64), np.zeros(0, np.int64)
    for some in _keys(reader, size, every):
        keys, counts = _merged(keys, counts, *np.unique(some, return_counts=True))
    left, right = (part.astype(np.int64) for part in np.divmod(keys, np.uint64(size)))
    return Pairs(np.searchsorted(left, np.arange(size + 1)), right, counts, int(counts.sum()), every)


def _keys(reader: ShardReader, size: int, every: int) -> Iterator[NDArray[Any]]:
    """Left · V + right of every pair, some rows at a time."""
    kind: Any = np.uint32 if size <= 1 << 16 else np.uint64  # the smaller are sorted in half the time
    rows = np.arange(0, reader.rows, every)
    step = max(1, AT_ONCE // reader.length)
    for start in range(0, len(rows), step):
        ids = rows[start : start + step]
        tokens = reader.stored_rows(ids).reshape(-1)
        at = np.flatnonzero(masking.ordinary(*reader.segments_of_rows(ids), reader.length))
        yield tokens[at - 1].astype(kind) * kind(size) + tokens[at].astype(kind)


def _merged(
    keys: NDArray[Any], counts: NDArray[np.int64], others: NDArray[Any], other_counts: NDArray[np.int64]
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Two sorted tables of counts as one."""
    both = np.concatenate([keys.astype(others.dtype), others])
    order = np.argsort(both, kind="stable")
    both, weights = both[order], np.concatenate([counts, other_counts])[order]
    first = np.flatnonzero(np.concatenate([[True], both[1:] != both[:-1]])) if len(both) else np.zeros(0, np.int64)
    return both[first], np.add.reduceat(weights, first) if len(first) else weights


def bigram_scorer(pairs: Pairs, unigram_V: NDArray[np.float64]) -> Scorer:
    """p(· | left neighbour) at every masked position; the left neighbour as it is shown, [MASK] where hidden.

    unigram_V   p(w), as `scoring.unigram` gives it
    Nothing of the size M·V or V·V is made: a position is a look-up.
    """
    table = _Table.of(pairs, unigram_V)
    best_VK, p_VK = table.best(pairs)

    def said(tokens_BL: Tensor, segment_ids_BL: Tensor, masked_M: Tensor, *_: Tensor) -> Short:
        left_M = tokens_BL.reshape(-1)[masked_M - 1].numpy()

        def answers(targets_M: Tensor) -> Answers:
            found_MK = best_VK[left_M] == targets_M.numpy()[:, None]
            rank_M = np.where(found_MK.any(axis=1), found_MK.argmax(axis=1), TOP)
            with np.errstate(divide="ignore"):
                return Answers(-np.log(table.p(left_M, targets_M.numpy())), rank_M, p_VK[left_M, 0])

        return answers

    return said


@dataclass(frozen=True)
class _Table:
    """p(w | c) as it is looked up: what the pair has, and the context's share of p(w)."""

    keys_P: NDArray[np.int64]
    """c · V + w, ascending."""
    seen_P: NDArray[np.float64]
    """n / (N + T)"""
    rest_V: NDArray[np.float64]
    """T / (N + T), 1 for a context that was never seen."""
    unigram_V: NDArray[np.float64]

    @classmethod
    def of(cls, pairs: Pairs, unigram_V: NDArray[np.float64]) -> _Table:
        size, kinds_V = len(unigram_V), np.diff(pairs.first_V)
        left_P = np.repeat(np.arange(size), kinds_V)
        mass_V = np.bincount(left_P, pairs.count_P, size) + kinds_V
        rest_V = np.where(kinds_V > 0, kinds_V / np.maximum(mass_V, 1), 1)
        return cls(left_P * size + pairs.right_P, pairs.count_P / mass_V[left_P], rest_V, unigram_V)

    def p(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float64]:
        """p(right | left), of one shape."""
        wanted = left * len(self.unigram_V) + right
        rest: NDArray[np.float64] = self.rest_V[left] * self.unigram_V[right]
        if not len(self.keys_P):
            return rest
        at = np.searchsorted(self.keys_P, wanted).clip(max=len(self.keys_P) - 1)
        return np.where(self.keys_P[at] == wanted, self.seen_P[at], 0) + rest

    def best(self, pairs: Pairs) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The TOP most probable tokens of every context and their p, ties by the lower id: both (V, TOP).

        They are among the best of those that were seen there and the best of the unigram: a token that was not seen is
        behind every token of a larger p(w).
        """
        size = len(self.unigram_V)
        left_P, right_P = np.divmod(self.keys_P, size)
        order = np.lexsort((right_P, -self.p(left_P, right_P), left_P))
        place_P = np.arange(len(order)) - pairs.first_V[left_P]
        some_VC = np.full((size, 2 * TOP), -1)
        near = place_P < TOP
        some_VC[left_P[near], place_P[near]] = right_P[order][near]
        often = np.argsort(-self.unigram_V, kind="stable")[:TOP]
        twice_VK = (some_VC[:, :TOP, None] == often).any(axis=1)
        some_VC[:, TOP : TOP + len(often)] = np.where(twice_VK, -1, often)
        p_VC = np.where(some_VC < 0, -1, self.p(np.arange(size)[:, None], some_VC))
        order_VK = np.lexsort((some_VC, -p_VC), axis=1)[:, :TOP]
        return np.take_along_axis(some_VC, order_VK, 1), np.take_along_axis(p_VC, order_VK, 1)
