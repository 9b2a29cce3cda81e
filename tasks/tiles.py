"""Where the segments of packed rows are, and which attention scores are computed for them.

A row holds several texts and attention stays inside each; in a local layer it stays inside the window, too. Padding is
in no segment: what stands there afterwards is finite and means nothing.

On a CPU scores are products over tiles, groups of queries that meet the same keys. Which tiles is decided by (L, layer
kind) alone, and where they lie by the segments:

    rows      L <= 256: a tile is a row, and what is not to be seen is masked
    pieces    global layers beyond: a tile is a segment, padded to a multiple of 64; segments of one size go together
    bands     local layers from L 384: a tile is w queries and the 3 w positions around them, w the half window (64 at
              least), so that time and memory grow with L and not with its square

Suffixes: B rows, L positions, N = B·L, H heads, K width of a head, T tiles of a size, Q queries and S keys of a tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

ROWS_LENGTH = 256
"""Up to this many positions a tile of a global layer is a row."""
BANDS_LENGTH = 384
"""From this many positions on a local layer computes bands."""
NARROWEST_BAND = 64
"""Queries of a band, at least."""
SIZE_STEP = 64
"""The padded length of a segment is a multiple of this."""
TOGETHER = 1 << 20
"""Scores, per head, of the segments that are taken together."""


class Tiles(Protocol):
    """Which queries meet which keys. Tensors are (H, N, K); the tiles of one size are a group (H·T, Q or S, K).

    Another arrangement is a class with these methods and a case in `Segments.tiles`; tests/tasks/test_attention.py
    compares them all with one product per segment.
    """

    hidden: list[Tensor | None]
    """bool (T, Q or 1, S) of every group, True where a key is not to be seen; None where all are."""

    def queries(self, x_HNK: Tensor) -> list[Tensor]:
        """The queries of every group."""

    def keys(self, x_HNK: Tensor) -> list[Tensor]:
        """The keys, or values, of every group."""

    def from_queries(self, groups: list[Tensor]) -> Tensor:
        """The inverse of `queries`: (H, N, K), zero where no tile is."""

    def from_keys(self, groups: list[Tensor]) -> Tensor:
        """The adjoint of `keys`: a position that is a key of several tiles gets their sum."""


class Rows:
    """A tile is a row."""

    def __init__(self, rows: int, hidden_BLL: Tensor | None) -> None:
        self.rows = rows
        self.hidden = [hidden_BLL]

    def queries(self, x_HNK: Tensor) -> list[Tensor]:
        return [x_HNK.reshape(len(x_HNK) * self.rows, -1, x_HNK.shape[-1])]

    def from_queries(self, groups: list[Tensor]) -> Tensor:
        return groups[0].reshape(len(groups[0]) // self.rows, -1, groups[0].shape[-1])

    keys, from_keys = queries, from_queries


class Pieces:
    """A tile is a segment, padded to one of few sizes. Padding is zero, so as a query it has no gradient either."""

    def __init__(self, starts: NDArray[np.int64], lengths: NDArray[np.int64], positions: int) -> None:
        """Tiles of the segments [start, start + length) of the N positions."""
        self.places: list[tuple[int, Tensor]] = []
        """T and int64 (T·S,) of every group: the position that stands there, N in padding."""
        self.hidden: list[Tensor | None] = []
        if not len(starts):  # nothing but padding
            starts, lengths = np.zeros(1, np.int64), np.ones(1, np.int64)
        slot_N, filled = np.full(positions, -1, dtype=np.int64), 0
        size_of = -(-lengths // SIZE_STEP) * SIZE_STEP
        for size in np.unique(size_of)[::-1]:
            chosen, together = np.flatnonzero(size_of == size), max(1, TOGETHER // int(size) ** 2)
            for first in range(0, len(chosen), together):
                some = chosen[first : first + together, None]
                inside_TS = np.arange(size) < lengths[some]
                place_TS = np.where(inside_TS, starts[some] + np.arange(size), positions)
                slot_N[place_TS[inside_TS]] = filled + np.flatnonzero(inside_TS)
                filled += place_TS.size
                self.places.append((len(some), torch.from_numpy(place_TS.reshape(-1))))
                self.hidden.append(None if inside_TS.all() else torch.from_numpy(~inside_TS[:, None]))
        self.slot_N = torch.from_numpy(np.where(slot_N < 0, filled, slot_N))
        """int64: where a position is among the places of all groups; one past their end for one in no segment."""

    def queries(self, x_HNK: Tensor) -> list[Tensor]:
        x_HNK = F.pad(x_HNK, (0, 0, 0, 1))
        heads, width = len(x_HNK), x_HNK.shape[-1]
        return [x_HNK.index_select(1, place).view(heads * tiles, -1, width) for tiles, place in self.places]

    def from_queries(self, groups: list[Tensor]) -> Tensor:
        parts = [x.reshape(len(x) // tiles, -1, x.shape[-1]) for x, (tiles, _) in zip(groups, self.places, strict=True)]
        return torch.cat([*parts, torch.zeros_like(parts[0][:, :1])], dim=1).index_select(1, self.slot_N)

    keys, from_keys = queries, from_queries


class Bands:
    """A tile is w queries of a row and the 3 w positions around them."""

    def __init__(self, segment_ids_BL: NDArray[np.int64], reach: int, width: int) -> None:
        """Bands of w = `width` queries that see `reach` <= w positions to either side."""
        self.rows, self.length = segment_ids_BL.shape
        self.width, self.count = width, -(-self.length // width)
        around = np.full((self.rows, (self.count + 2) * width), -1, dtype=np.int64)
        around[:, width : width + self.length] = segment_ids_BL
        query = around[:, width:-width].reshape(self.rows, self.count, width, 1)
        key = np.lib.stride_tricks.sliding_window_view(around, 3 * width, axis=1)[:, ::width, None]
        distance_QS = np.arange(width)[:, None] + width - np.arange(3 * width)
        seen = (query == key) & (query >= 0) & (np.abs(distance_QS) <= reach)
        seen |= distance_QS == 0  # padding sees itself: a softmax over nothing would be NaN
        self.hidden: list[Tensor | None] = [torch.from_numpy(~seen.reshape(-1, width, 3 * width))]

    def _whole_bands(self, x_HNK: Tensor, around: int) -> Tensor:
        """(H, B, around + count · w + around, K), zero outside the row."""
        x = x_HNK.reshape(len(x_HNK), self.rows, self.length, -1)
        return F.pad(x, (0, 0, around, around + self.count * self.width - self.length))

    def queries(self, x_HNK: Tensor) -> list[Tensor]:
        return [self._whole_bands(x_HNK, 0).reshape(-1, self.width, x_HNK.shape[-1])]

    def keys(self, x_HNK: Tensor) -> list[Tensor]:
        x = self._whole_bands(x_HNK, self.width).contiguous()
        heads, rows, _, width = x.shape
        strides = (x.stride(0), x.stride(1), self.width * width, width, 1)
        tiles = x.as_strided((heads, rows, self.count, 3 * self.width, width), strides)
        return [tiles.reshape(-1, 3 * self.width, width)]

    def from_queries(self, groups: list[Tensor]) -> Tensor:
        x = groups[0].reshape(-1, self.rows, self.count * self.width, groups[0].shape[-1])
        return x[:, :, : self.length].reshape(len(x), self.rows * self.length, -1)

    def from_keys(self, groups: list[Tensor]) -> Tensor:
        x = groups[0].view(-1, self.rows, self.count, 3, self.width, groups[0].shape[-1])
        own = x[:, :, :, 1].contiguous()
        own[:, :, :-1] += x[:, :, 1:, 0]
        own[:, :, 1:] += x[:, :, :-1, 2]
        return self.from_queries([own])


@dataclass(frozen=True)
class Segments:
    """Where the segments of each packed row are: a row holds several texts and attention stays inside each."""

    segment_ids_BL: Tensor
    """int64: number of the segment in its row, -1 on padding."""
    positions_BL: Tensor
    """int64: position inside the segment, from 0."""
    bounds_S: Tensor
    """int32: starts of the segments among the N positions, in order, runs of padding among them, and then N. Its length
    is a power of two and 2 B at least, so that it is the same for almost every batch of a size."""
    window: int
    """A local layer sees positions at a distance of at most window // 2."""

    @classmethod
    def from_ids(cls, segment_ids_BL: Tensor, window: int) -> Segments:
        """Segment numbers (B, L) on the host, -1 on padding, equal in one contiguous run per segment."""
        ids_BL = segment_ids_BL.numpy()
        begins_BL = np.ones(ids_BL.shape, dtype=np.bool_)
        begins_BL[:, 1:] = ids_BL[:, 1:] != ids_BL[:, :-1]
        at_L = np.arange(ids_BL.shape[1])
        positions_BL = np.where(ids_BL < 0, 0, at_L - np.maximum.accumulate(np.where(begins_BL, at_L, 0), axis=1))
        starts = np.flatnonzero(begins_BL)
        size = 1 << max(len(starts), 2 * len(ids_BL) - 1).bit_length()
        bounds_S = np.full(size, ids_BL.size, dtype=np.int32)
        bounds_S[: len(starts)] = starts
        return cls(segment_ids_BL, torch.from_numpy(positions_BL), torch.from_numpy(bounds_S), window)

    def to(self, device: torch.device | str) -> Segments:
        """The same segments on another device, without waiting for it."""
        if torch.device(device) == self.segment_ids_BL.device:
            return self

        def moved(one: Tensor) -> Tensor:
            pinned = one.pin_memory() if torch.device(device).type == "cuda" else one  # pageable memory would wait
            return pinned.to(device, non_blocking=True)

        return Segments(moved(self.segment_ids_BL), moved(self.positions_BL), moved(self.bounds_S), self.window)

    def sees_all(self, is_global: bool) -> bool:
        """Whether only the segments limit what is seen: a global layer, or a window that covers the row."""
        return is_global or self.window // 2 >= self.segment_ids_BL.shape[1] - 1

    def mask_B1LL(self, is_global: bool) -> Tensor:
        """bool: query position (third axis) may see key position (fourth). Padding sees itself only."""
        ids_BL = self.segment_ids_BL
        at_L = torch.arange(ids_BL.shape[1], device=ids_BL.device)
        distance_LL = (at_L[:, None] - at_L).abs()
        same_BLL = (ids_BL[:, :, None] == ids_BL[:, None]) & (ids_BL >= 0)[:, :, None]
        if not self.sees_all(is_global):
            same_BLL &= distance_LL <= self.window // 2
        return (same_BLL | (distance_LL == 0))[:, None]

    def tiles(self, is_global: bool) -> Tiles:
        """The arrangement of a layer on the host, made once."""
        return self._tiles_unlimited if self.sees_all(is_global) else self._tiles_windowed

    def bias(self, is_global: bool, dtype: torch.dtype) -> list[Tensor | None]:
        """What is added to the scores of every group of tiles, 0 or -inf; made once. None: nothing."""
        key = (self.sees_all(is_global), dtype)
        if key not in self._biases:
            self._biases[key] = [
                None if one is None else torch.zeros(one.shape, dtype=dtype).masked_fill_(one, -torch.inf)
                for one in self.tiles(is_global).hidden
            ]
        return self._biases[key]

    @cached_property
    def _biases(self) -> dict[tuple[bool, torch.dtype], list[Tensor | None]]:
        return {}

    @cached_property
    def _tiles_unlimited(self) -> Tiles:
        rows, length = self.segment_ids_BL.shape
        if length <= ROWS_LENGTH:
            mask_BLL = self.mask_B1LL(True)[:, 0]
            return Rows(rows, None if mask_BLL.all() else ~mask_BLL)
        bounds = np.unique(self.bounds_S.numpy()).astype(np.int64)
        inside = self.segment_ids_BL.numpy().reshape(-1)[bounds[:-1]] >= 0
        return Pieces(bounds[:-1][inside], np.diff(bounds)[inside], rows * length)

    @cached_property
    def _tiles_windowed(self) -> Tiles:
        rows, length = self.segment_ids_BL.shape
        if length < BANDS_LENGTH:
            return Rows(rows, ~self.mask_B1LL(False)[:, 0])
        reach = self.window // 2
        return Bands(self.segment_ids_BL.numpy(), reach, max(reach, NARROWEST_BAND))
