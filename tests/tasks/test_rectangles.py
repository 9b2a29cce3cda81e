"""Block masks: rectangles of a grid. pytest tests/tasks/test_rectangles.py"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks import masking, masking_torch, rectangles
from tasks.errors import UsageError
from tasks.masking import Policy

grids = st.tuples(st.integers(1, 12), st.integers(1, 12)).filter(lambda grid: grid[0] * grid[1] > 1)
rates = st.sampled_from(["0.1", "0.29", "0.4", "0.75", "0.9"])


def rows_of(grid, rows=5, each=2):
    """Layout of some rows with as many whole grids each: sequence ids, lengths, offsets, L."""
    size = grid[0] * grid[1] + 2
    return np.arange(rows) + 7, np.full(rows * each, size), np.arange(rows + 1) * each, -(-each * size // 8) * 8


@given(grids, rates, st.integers(0, 2**63), st.integers(0, 3))
def test_as_many_as_the_equation_says_nested_and_the_same_in_torch(grid, rate, seed, draw):
    layout, policy = rows_of(grid), Policy("block", grid=grid)
    hidden = masking.draw(seed, draw, *layout, rate, policy)
    assert (hidden.sum(axis=1) == 2 * masking.count(grid[0] * grid[1], rate)).all()
    assert not (hidden & ~masking.ordinary(*layout[1:])).any()
    assert (hidden <= masking.draw(seed, draw, *layout, "0.95", policy)).all()
    ids = torch.from_numpy(layout[0])
    assert (masking_torch.draw_torch(seed, draw, ids, *layout[1:], rate, policy).numpy() == hidden).all()


@given(grids.filter(lambda grid: grid[0] * grid[1] > 8), st.integers(0, 99))
def test_the_first_group_is_a_rectangle_of_the_sizes_of_the_paper(grid, draw):
    size = grid[0] * grid[1]
    keys = rectangles.in_rectangles(
        3, draw, np.array([5], np.uint64), np.array([1]), grid, np.zeros((1, size), np.uint64)
    )[0]
    first = (keys >> np.uint64(48)).astype(int).reshape(grid) == 0
    rows, columns = np.flatnonzero(first.any(axis=1)), np.flatnonzero(first.any(axis=0))
    area = first.sum()
    assert area == (np.ptp(rows) + 1) * (np.ptp(columns) + 1), "what is hidden first is no rectangle"
    shapes = rectangles.shapes(grid).tolist()
    assert [np.ptp(rows) + 1, np.ptp(columns) + 1] in shapes
    if shapes != [[1, 1]]:
        assert 16 / 196 <= area / size <= 75 / 196
        assert 0.3 <= (np.ptp(rows) + 1) / (np.ptp(columns) + 1) <= 1 / 0.3


def test_hidden_patches_lie_together_and_every_place_is_hidden_as_often_as_its_distance_from_the_border_allows():
    grid, rows = (8, 8), 4000
    layout = rows_of(grid, rows, 1)
    hidden = masking.draw(1, 0, *layout, "0.4", Policy("block", grid=grid))[:, 1:65].reshape(rows, 8, 8)
    alone = masking.draw(1, 0, *layout, "0.4")[:, 1:65].reshape(rows, 8, 8)

    def together(some):
        return (some[:, :, 1:] & some[:, :, :-1]).mean() / some.mean()

    assert together(hidden) > 1.7 * together(alone)
    mean = hidden.mean(axis=0)
    for turned in (mean[::-1], mean[:, ::-1], mean.T):
        assert np.abs(mean - turned).max() < 0.04, "one side is hidden more often than another"
    assert mean.min() > 0.08, "no part of the grid is left out"
    assert np.abs(alone.mean(axis=0) - alone.mean()).max() < 0.03


def test_a_draw_does_not_depend_on_what_else_is_drawn():
    grid = (7, 7)
    ids, lengths, offsets, length = rows_of(grid, 6, 3)
    policy = Policy("block", grid=grid)
    whole = masking.draw(2, 1, ids, lengths, offsets, length, "0.4", policy)
    for row in range(6):
        one = masking.draw(2, 1, ids[row : row + 1], lengths[:3], np.array([0, 3]), length, "0.4", policy)
        assert (one[0] == whole[row]).all()


@pytest.mark.parametrize("lengths", [[51, 40], [60]])
def test_segments_that_are_no_grid_are_refused(lengths):
    layout = np.arange(1), np.array(lengths), np.array([0, len(lengths)]), 128
    with pytest.raises(UsageError, match=r"shards\.policy is block, and the tokens of a document do not lie in a grid"):
        masking.draw(0, 0, *layout, "0.4", Policy("block", grid=(7, 7)))
    with pytest.raises(UsageError, match=r"shards\.policy is block"):
        masking_torch.draw_torch(0, 0, torch.arange(1), *layout[1:], "0.4", Policy("block", grid=(7, 7)))
