"""The interval of a mean over documents."""

import math

import numpy as np
import pytest

from tasks.bootstrap import ratio_interval, ratio_intervals, share_interval


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    generator, inside = np.random.default_rng(1), 0
    for trial in range(200):
        sizes = generator.integers(1, 20, 60)
        sums = sizes * generator.normal(3.0, 1.0, 60)
        low, high = ratio_interval(sums, sizes, seed=trial)
        inside += low <= 3.0 <= high
    assert 0.88 <= inside / 200 <= 0.99


def test_it_is_the_same_every_time_and_shrinks_with_more_units():
    values = np.random.default_rng(0).random(4000)
    assert ratio_interval(values, np.ones(4000)) == ratio_interval(values, np.ones(4000))
    widths = [np.diff(ratio_interval(values[:units], np.ones(units)))[0] for units in (40, 4000)]
    assert widths[0] > 5 * widths[1]


def test_a_sure_thing_has_no_width_and_nothing_has_no_interval():
    assert ratio_interval([2.0, 4.0], [1.0, 2.0]) == pytest.approx((2.0, 2.0))
    assert all(map(math.isnan, ratio_interval([], [])))
    assert all(map(math.isnan, ratio_interval([0.0], [0.0])))


def test_several_at_once_are_those_of_each_alone_and_a_difference_is_paired():
    generator = np.random.default_rng(2)
    sizes, one = generator.integers(0, 9, 300), generator.random(300) * 5
    sums = np.stack([sizes * one, sizes * (one - 0.25), sizes * 0.25])
    together = ratio_intervals(sums, sizes)
    assert together == pytest.approx(np.array([ratio_interval(some, sizes) for some in sums]))
    assert together[2] == pytest.approx([0.25, 0.25])
    assert np.isnan(ratio_intervals(sums, np.zeros(300))).all()


def test_a_share_of_few_is_not_sure_even_where_all_are_hits():
    low, high = share_interval(3, 3)
    assert high == 1.0 and 0.43 < low < 0.45  # Wilson's for 3 of 3
    assert share_interval(0, 3) == pytest.approx((0.0, 1 - low))
    low, high = share_interval(5000, 10_000)
    assert (low, high) == pytest.approx((0.4902, 0.5098), abs=1e-4)
