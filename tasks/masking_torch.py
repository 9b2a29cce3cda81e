"""Masks on the device: `masking` in torch, bit for bit, for all policies.

int64 carries the bits of uint64, for which torch has no shift, no product and no sort. The order is that of masking:
segments, then keys of the groups (all 64 bits), then positions. Where the segments lie comes from the host.

Suffixes: R rows, L positions, S segments.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import keys, masking, rectangles

_SIGN = -(2**63)
"""Flipping the sign turns the unsigned order into the signed one."""


def draw_torch(
    seed: int,
    number: int,
    sequence_ids_R: Tensor,
    lengths: NDArray[np.int64],
    offsets: NDArray[np.int64],
    length: int,
    rate: str,
    policy: masking.Policy = masking.Policy(),  # noqa: B008 - frozen
    begins_RL: Tensor | None = None,
) -> Tensor:
    """`masking.draw` in torch, on the device of the sequence ids: bool (R, L).

    begins_RL   where groups begin (of text: words), bool (R, L): what "whole-word" needs
    """
    if policy.of_groups:
        assert begins_RL is not None, "masks of whole groups need to know where these begin"
    elif policy.name == "span":
        keys_RL = keys_torch(seed, keys.Domain.SPAN, number, sequence_ids_R, length)
        begins_RL = (keys_RL ^ _SIGN) <= (_signed(policy.boundary) ^ _SIGN)
    else:
        begins_RL = None
    keys_RL = keys_torch(seed, keys.Domain.CHOICE, number, sequence_ids_R, length)
    if policy.name == "block":
        layout = masking.Layout(lengths, offsets, length, rate)
        keys_RL = _in_rectangles(seed, number, sequence_ids_R, layout, policy.grid, keys_RL)
    return choose_torch(keys_RL, lengths, offsets, rate, begins_RL)


def keys_torch(seed: int, domain: keys.Domain, draw: int, sequence_ids_R: Tensor, length: int) -> Tensor:
    """`keys.keys` in torch: int64 (R, L) with the bits of the uint64; products wrap around in both."""
    golden = _signed(keys.GOLDEN)
    row_R = _mix(_signed(keys.stream(seed, domain, draw)) + (sequence_ids_R + 1) * golden)
    steps_L = torch.arange(1, length + 1, device=sequence_ids_R.device) * golden
    return _mix(row_R[:, None] + steps_L)


def choose_torch(
    keys_RL: Tensor,
    lengths: NDArray[np.int64],
    offsets: NDArray[np.int64],
    rate: str,
    begins_RL: Tensor | None = None,
) -> Tensor:
    """𝓜 of every segment: its first ⌊M·p⌋ ordinary positions by key of the group, ties by position. bool (R, L).

    begins_RL   where a group begins; None: every position is one. A segment's first ordinary position always is.
    """
    rows, length = keys_RL.shape
    device = keys_RL.device
    layout = masking.Layout(lengths, offsets, length, rate)
    first_S = torch.from_numpy(layout.first_S).to(device)
    ordinary_RL = torch.from_numpy(masking.ordinary(lengths, offsets, length)).to(device)
    segment_RL = torch.from_numpy(masking.segment_ids(lengths, offsets, length)).to(device)
    if begins_RL is not None:
        # an empty segment's first_S is its [SEP] or beyond it, where nothing is chosen
        begins_RL = begins_RL.flatten().index_fill(0, first_S[torch.from_numpy(layout.tokens_S > 0).to(device)], True)
        keys_RL = _of_groups(keys_RL, begins_RL.reshape(rows, length))
    # two stable sorts, the last one by what comes first: segment, key, position
    by_key_RL = (keys_RL ^ _SIGN).sort(dim=1, stable=True).indices
    segment_RL = torch.where(ordinary_RL, segment_RL, length).gather(1, by_key_RL)
    order_RL = by_key_RL.gather(1, segment_RL.sort(dim=1, stable=True).indices)
    # Now a row is: the ordinary positions of its segment 0 by key, then of segment 1, …, then all that may not be.
    before = np.concatenate([[0], np.cumsum(layout.tokens_S)])
    begins_S = layout.row_S * length + before[:-1] - before[offsets[layout.row_S]]
    hidden_S = layout.hidden_S
    taken = np.repeat(begins_S - (np.cumsum(hidden_S) - hidden_S), hidden_S) + np.arange(int(hidden_S.sum()))
    positions = order_RL.flatten()[torch.from_numpy(taken).to(device)]
    flat = torch.from_numpy(np.repeat(layout.row_S, hidden_S) * length).to(device) + positions
    return torch.zeros(rows * length, dtype=torch.bool, device=device).index_fill(0, flat, True).reshape(rows, length)


def _in_rectangles(
    seed: int, number: int, sequence_ids_R: Tensor, layout: masking.Layout, grid: rectangles.Grid, keys_RL: Tensor
) -> Tensor:
    """`rectangles.in_rectangles` for the positions of all segments; the others keep their keys."""
    rectangles.check(grid, layout.tokens_S)
    device, size, count = keys_RL.device, grid[0] * grid[1], rectangles.number_of(grid)
    row_S, first_S = (torch.from_numpy(one).to(device) for one in (layout.row_S, layout.first_S))
    wide = layout.length + rectangles.DRAWS * count
    drawn_RX = _shifted(keys_torch(seed, keys.Domain.BLOCK, number, sequence_ids_R, wide), 32)
    at_S1 = (first_S + row_S * (wide - layout.length))[:, None]
    upper_S3K = drawn_RX.flatten()[at_S1 + torch.arange(rectangles.DRAWS * count, device=device)]
    order_SW, inside_SW = rectangles.order(upper_S3K, grid, torch)
    at_SW = first_S[:, None] + torch.arange(size, device=device)
    keys_N = keys_RL.flatten()
    lower_SW = torch.where(inside_SW, 0, _shifted(keys_N[at_SW], 32))
    return keys_N.index_put((at_SW,), (order_SW << 32) | lower_SW).reshape(keys_RL.shape)


def _of_groups(keys_RL: Tensor, begins_RL: Tensor) -> Tensor:
    """Gives every position the key of its group's first one; what lies before the first group has its row's first."""
    positions_L = torch.arange(keys_RL.shape[1], device=keys_RL.device)
    return keys_RL.gather(1, torch.where(begins_RL, positions_L, 0).cummax(dim=1).values)


def _signed(value: int) -> int:
    return (value & (2**64 - 1)) - ((value & 2**63) << 1)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical right shift: torch's is arithmetic and would drag the sign along."""
    return (x >> bits) & (2 ** (64 - bits) - 1)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shifted(z, 30)) * _signed(keys.MIX_1)
    z = (z ^ _shifted(z, 27)) * _signed(keys.MIX_2)
    return z ^ _shifted(z, 31)
