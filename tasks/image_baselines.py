"""What one guesses of a hidden patch without a model: of the commonest codes, of its place, of its neighbours.

    unigram     p(c)       how often code c stands in the train split
    place       p(c | j)   how often it stands at place j of the grid: (n(j, c) + 1) / Σ_c (n(j, c) + 1)
    neighbour   p(b) = r_b, p(c) ∝ that of the unigram for every other c; b is the code of the left neighbour, where
                that is hidden of the upper, the right, the lower one; r_b = (equal + r) / (pairs + 1) is how often a
                patch with such a neighbour is equal to it in the train split, and r that of all b. Where none is
                visible, the unigram

A model that is no better than these has learnt that images have a background, and that it lies around.

Suffixes: X images, N patches of an image, B rows, L positions, M masked positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import masking
from .batches import ShardReader
from .results import NEIGHBOUR, PLACE, UNIGRAM
from .scoring import Scorer, unigram, unigram_scorer
from .tiles import Segments

AT_ONCE = 1 << 22
"""Positions read at a time."""


def images_of(reader: ShardReader, number: int) -> Iterator[NDArray[np.int64]]:
    """Ids of the patches of all images of a split, in the order of the rows: (X, N), some rows at a time.

    number      N
    """
    step = max(1, AT_ONCE // reader.length)
    for start in range(0, reader.rows, step):
        ids = np.arange(start, min(start + step, reader.rows))
        at = np.flatnonzero(masking.ordinary(*reader.segments_of_rows(ids), reader.length))
        yield reader.stored_rows(ids).reshape(-1)[at].reshape(-1, number).astype(np.int64)


@dataclass(frozen=True)
class Counted:
    """Of the train split."""

    place_NV: NDArray[np.int64]
    """How often each id stands at each place of the grid."""
    equal_4V: NDArray[np.float64]
    """Rate at which a patch is equal to its neighbour of each code, to the left, above, to the right, below."""
    rates: tuple[float, float]
    """The same of all codes, across and down."""
    images: int


def count(reader: ShardReader, grid: Sequence[int], size: int) -> Counted:
    """Counts the codes of a split; `size` is V. A second for ten million patches."""
    number = grid[0] * grid[1]
    place_NV = np.zeros((number, size), np.int64)
    equal_2V, pairs_4V, images = np.zeros((2, size), np.int64), np.zeros((4, size), np.int64), 0
    for ids_XN in images_of(reader, number):
        keys = (ids_XN + np.arange(number) * size).reshape(-1)
        place_NV += np.bincount(keys, minlength=number * size).reshape(number, size)
        grid_XHW = ids_XN.reshape(-1, *grid)
        across, down = (grid_XHW[:, :, :-1], grid_XHW[:, :, 1:]), (grid_XHW[:, :-1], grid_XHW[:, 1:])
        for way, (first, second) in enumerate((across, down)):
            equal_2V[way] += np.bincount(first[first == second], minlength=size)
            pairs_4V[way] += np.bincount(first.reshape(-1), minlength=size)
            pairs_4V[way + 2] += np.bincount(second.reshape(-1), minlength=size)
        images += len(ids_XN)
    rates_2 = (equal_2V.sum(1) + 1) / (pairs_4V[:2].sum(1) + 2)
    equal_4V = (np.tile(equal_2V, (2, 1)) + np.tile(rates_2, 2)[:, None]) / (pairs_4V + 1)
    return Counted(place_NV, equal_4V, (float(rates_2[0]), float(rates_2[1])), images)


def scorers(
    reader: ShardReader, grid: Sequence[int], counts_V: NDArray[np.int64], ordinary: Sequence[Sequence[int]]
) -> tuple[dict[str, Scorer], str]:
    """By label, and what a reader has to know of them.

    reader      of the train split
    grid        rows and columns of an image's patches
    counts_V    how often each id stands in the train split
    ordinary    half-open ranges of the ids that a patch can have
    """
    counted = count(reader, grid, len(counts_V))
    across, down = (f"{100 * rate:.0f}\u00a0%" for rate in counted.rates)
    remark = (
        "Unigram: add-one smoothing. Unigram of the place: the same for each of the "
        f"{grid[0]} × {grid[1]} places of the grid; its first guess is the commonest token there. Copied neighbour: "
        "the token to the left, where that is hidden the one above, to the right, below; as likely as neighbours of "
        f"this token are equal in the train split (on average {across} across, {down} down), and every other token as "
        f"by the unigram. From {counted.images:,} images of the train split."
    )
    found = {
        UNIGRAM: unigram_scorer(counts_V, ordinary),
        PLACE: place_scorer(counted.place_NV, ordinary),
        NEIGHBOUR: neighbour_scorer(counted, grid, unigram(counts_V, ordinary), reader.mask_id),
    }
    return found, remark


def index_of(segment_ids_BL: Tensor, masked_M: Tensor) -> Tensor:
    """The number of each masked patch in its image (M,): its distance from the image's [CLS], less one."""
    return Segments.from_ids(segment_ids_BL, 1).positions_BL.reshape(-1)[masked_M] - 1


def place_scorer(place_NV: NDArray[np.int64], ordinary: Sequence[Sequence[int]]) -> Scorer:
    """p(· | place)."""
    p_NV = np.stack([unigram(counts_V, ordinary) for counts_V in place_NV])
    logits_NV = torch.from_numpy(p_NV).log().float()
    return lambda tokens_BL, segment_ids_BL, masked_M, *_: logits_NV[index_of(segment_ids_BL, masked_M)]


def neighbour_scorer(counted: Counted, grid: Sequence[int], unigram_V: NDArray[np.float64], mask_id: int) -> Scorer:
    """p(· | the visible neighbours), as the module has it."""
    height, width = grid
    p_V, equal_4V = torch.from_numpy(unigram_V).float(), torch.from_numpy(counted.equal_4V).float()

    def logits(tokens_BL: Tensor, segment_ids_BL: Tensor, masked_M: Tensor, *_: Tensor) -> Tensor:
        tokens, index_M = tokens_BL.reshape(-1), index_of(segment_ids_BL, masked_M)
        row_M, column_M = index_M // width, index_M % width
        copied_M, rate_M = torch.zeros_like(masked_M), torch.zeros(len(masked_M))
        for way, inside_M, off in (  # the last that is visible stands
            (3, row_M < height - 1, width),
            (2, column_M < width - 1, 1),
            (1, row_M > 0, -width),
            (0, column_M > 0, -1),
        ):
            other_M = tokens[(masked_M + off).clamp(0, len(tokens) - 1)]
            visible_M = inside_M & (other_M != mask_id)
            copied_M = torch.where(visible_M, other_M, copied_M)
            rate_M = torch.where(visible_M, equal_4V[way][other_M], rate_M)
        others_M = (1 - rate_M) / (1 - p_V[copied_M]).clamp(min=1e-12)
        return (others_M[:, None] * p_V).scatter_(1, copied_M[:, None], rate_M[:, None]).log()

    return logits
