"""The order of "block" masks: rectangles of a grid, drawn by keys, so that it is a pure function of an address.

    BEiT (Bao et al. 2022, arXiv 2106.08254, algorithm 1) hides rectangles of 16 to 75 of 196 patches with a ratio of
    their sides of 0.3 to 1 / 0.3 until 40 % are hidden. Here a segment draws R = ⌊N / 3⌋, and its positions come
    in the order of the first rectangle that holds them, row after row from one of its corners; what none holds comes
    last, by its own key.

As there a rectangle holds 16/196 to 75/196 of the grid. Unlike there its shape is drawn evenly from all shapes of these
areas and ratios, in integers, so that numpy, torch and every machine draw the same, and it does not depend on how many
are still to be hidden: a lower rate hides a subset of what a higher one hides.

Suffixes: N segments, W positions of a segment, K rectangles.
"""

from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .errors import UsageError
from .keys import Domain, keys_from

Grid: TypeAlias = tuple[int, int]
"""Rows and columns."""
DRAWS = 3
"""Keys of a rectangle: its shape, its first row, its first column."""
LARGEST = 1 << 15
"""Positions of a grid: an order of rectangle and position has to fit into 32 bits."""


@lru_cache(8)
def shapes(grid: Grid) -> NDArray[np.int64]:
    """(height, width) of every rectangle that may be drawn: int64 (S, 2), in a fixed order."""
    rows, columns = grid
    size = rows * columns
    found = [
        (height, width)
        for height in range(1, rows + 1)
        for width in range(1, columns + 1)
        if 16 * size <= 196 * height * width <= 75 * size and 3 * width <= 10 * height and 3 * height <= 10 * width
    ]
    return np.array(found or [(1, 1)], np.int64)


def number_of(grid: Grid) -> int:
    """R: rectangles of a segment. Each takes three keys of the segment's own positions, so that none is shared."""
    return max(1, grid[0] * grid[1] // DRAWS)


def in_rectangles(
    seed: int, draw: int, ids_N: NDArray[np.uint64], at_N: NDArray[np.int64], grid: Grid, keys_NW: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """Keys whose order is that of the rectangles: uint64 (N, W).

    ids, at     sequence id of each segment's row, and the position of its first token in it
    keys_NW     of the choice, for positions in no rectangle
    """
    keys_N3K = keys_from(seed, Domain.BLOCK, draw, ids_N, at_N, DRAWS * number_of(grid))
    upper_N3K = (keys_N3K >> np.uint64(32)).astype(np.int64)
    order_NW, inside_NW = order(upper_N3K, grid, np)
    lower_NW = np.where(inside_NW, np.uint64(0), keys_NW >> np.uint64(32))
    return (order_NW.astype(np.uint64) << np.uint64(32)) | lower_NW


def check(grid: Grid, tokens_S: NDArray[np.int64]) -> None:
    """Raises UsageError where a segment is not the whole grid."""
    size = grid[0] * grid[1]
    if not (size and (tokens_S == size).all()):
        raise UsageError(
            "shards.policy is block, and the tokens of a document do not lie in a grid (or a document was cut); use "
            "uniform, or shards.packing: whole with a longer shards.length."
        )
    if size > LARGEST:
        raise UsageError(f"shards.policy is block, and a grid has {size:,} tokens; use uniform beyond {LARGEST:,}.")


def order(upper_N3K: Any, grid: Grid, library: Any) -> tuple[Any, Any]:
    """Where each position comes, int64 below 2^31 (N, W), equal for those in no rectangle; and which are in one.

    upper       the upper 32 bits of the rectangles' keys, int64; arrays of `library`, numpy or torch

    The higher bits of a number choose, the lowest says from which side a rectangle is filled: always from the same one,
    the last rectangle, which is cut, would leave its opposite corner visible more often than the others.
    """
    (rows, columns), number, table = grid, number_of(grid), shapes(grid)
    if library is not np:
        table = library.from_numpy(table).to(upper_N3K.device)
    held_N3K = upper_N3K.reshape(len(upper_N3K), number, DRAWS)
    size_NK2 = table[(held_N3K[..., 0] * len(table)) >> 32]
    top_NK = (held_N3K[..., 1] * (rows + 1 - size_NK2[..., 0])) >> 32
    left_NK = (held_N3K[..., 2] * (columns + 1 - size_NK2[..., 1])) >> 32
    place_W = library.arange(rows * columns) if library is np else library.arange(rows * columns, device=table.device)
    row_W, column_W = place_W // columns, place_W % columns
    order_NW = library.zeros_like(place_W + top_NK[:, :1]) + (number << 16)
    for k in range(number - 1, -1, -1):
        down_NW, across_NW = row_W - top_NK[:, k, None], column_W - left_NK[:, k, None]
        inside_NW = (down_NW >= 0) & (down_NW < size_NK2[:, k, 0, None])
        inside_NW &= (across_NW >= 0) & (across_NW < size_NK2[:, k, 1, None])
        below_N1, right_N1 = held_N3K[:, k, 1, None] & 1, held_N3K[:, k, 2, None] & 1
        row_NW = row_W + below_N1 * (rows - 1 - 2 * row_W)
        column_NW = column_W + right_N1 * (columns - 1 - 2 * column_W)
        order_NW = library.where(inside_NW, (k << 16) + row_NW * columns + column_NW, order_NW)
    return order_NW, order_NW < number << 16
