"""Equation (1): exact counts, uniform, nested, addressed. pytest tests/tasks/test_masking.py"""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import masking
from tasks.errors import UsageError
from tasks.masking import Domain


def one_segment(rows, tokens, length):
    """Layout of `rows` rows with one segment of `tokens` ordinary tokens each."""
    return np.full(rows, tokens + 2), np.arange(rows + 1)


@st.composite
def layouts(draw):
    """Rows of segments of at least the two specials."""
    length = draw(st.sampled_from([8, 24, 64, 128]))
    lengths, offsets = [], [0]
    for _ in range(draw(st.integers(1, 6))):
        left = length
        while left >= 2 and draw(st.booleans()):
            lengths.append(draw(st.integers(2, left)))
            left -= lengths[-1]
        offsets.append(len(lengths))
    return np.array(lengths, dtype=np.int64), np.array(offsets), length


percents = st.integers(1, 99).map(lambda n: f"{n}%")
rates = st.one_of(st.sampled_from(["0.15", "0.29", "0.3", "0.5", "1/3", "29%", "0.999"]), percents)


def test_the_count_is_the_exact_floor_over_a_grid_of_tokens_and_rates():
    tokens = np.arange(0, 600)
    for percent in range(1, 100):
        exact = [tokens_ * percent // 100 for tokens_ in range(600)]
        assert masking.count(tokens, f"0.{percent:02d}").tolist() == exact
        assert masking.count(tokens, f"{percent}%").tolist() == exact
    assert masking.count(100, "0.29") == 29 and int(100 * 0.29) == 28


def test_a_rate_of_many_digits_does_not_overflow():
    assert masking.count([700, 510], "0.30000000000000001").tolist() == [210, 153]
    assert masking.count(4096, "0.3333333333333333") == 1365
    assert masking.count(np.arange(2000), "0.33333333333333333333333333").tolist() == [
        n // 3 - (n % 3 == 0 < n) for n in range(2000)
    ]


def test_a_rate_has_one_spelling():
    assert [masking.spelling(rate) for rate in ("0.30", "30%", ".3", "3/10", "1/3", "12.5%")] == ["0.3"] * 4 + [
        "1/3",
        "0.125",
    ]


@pytest.mark.parametrize("rate", ["0", "1", "-0.1", "1.5", "0%", "100%", "many", "1/0", ""])
def test_a_rate_outside_0_to_1_is_refused(rate):
    with pytest.raises(UsageError, match="mask rate"):
        masking.fraction(rate)


@given(layouts(), rates, st.integers(0, 2**63), st.integers(0, 9))
@settings(deadline=None)
def test_every_segment_hides_exactly_floor_of_m_times_p_ordinary_positions(layout, rate, seed, number):
    lengths, offsets, length = layout
    rows = len(offsets) - 1
    hidden = masking.draw(seed, number, np.arange(rows), lengths, offsets, length, rate)
    p = Fraction(rate[:-1]) / 100 if rate.endswith("%") else Fraction(rate)
    assert hidden.shape == (rows, length)
    for row in range(rows):
        begin = 0
        for tokens in lengths[offsets[row] : offsets[row + 1]]:
            segment = hidden[row, begin : begin + tokens]
            assert segment.sum() == (tokens - 2) * p.numerator // p.denominator
            assert not segment[0] and not segment[-1], "a special token is hidden"
            begin += tokens
        assert not hidden[row, begin:].any(), "padding is hidden"


@given(layouts(), st.integers(0, 2**63))
@settings(deadline=None, max_examples=30)
def test_a_lower_rate_hides_a_subset_of_a_higher_one(layout, seed):
    lengths, offsets, length = layout
    ids = np.arange(len(offsets) - 1)
    before = np.zeros((len(ids), length), dtype=bool)
    for percent in (5, 15, 29, 30, 50, 80, 99):
        hidden = masking.draw(seed, 0, ids, lengths, offsets, length, f"{percent}%")
        assert not (before & ~hidden).any()
        before = hidden


def test_positions_are_uniform_and_pairs_independent_over_200000_rows():
    rows, tokens, length = 204_800, 30, 32
    counts, pairs = np.zeros(length), np.zeros((length, length))
    for first in range(0, rows, 51_200):
        ids = np.arange(first, first + 51_200)
        hidden = masking.draw(7, 0, ids, *one_segment(len(ids), tokens, length), length, "0.3")
        counts += hidden.sum(0)
        pairs += hidden.T.astype(np.float32) @ hidden.astype(np.float32)
    expected = rows * 9 / tokens
    # Sampling without replacement: the variance of a count is n p (1-p), and the counts sum to a constant.
    chi2 = ((counts[1:-1] - expected) ** 2).sum() / (expected * (1 - 9 / tokens)) * (tokens - 1) / tokens
    assert counts[0] == counts[-1] == 0
    assert 8 < chi2 < 65, f"chi-square {chi2:.1f} on {tokens - 1} degrees of freedom"
    both = rows * 9 * 8 / (tokens * (tokens - 1))
    off = pairs[1:-1, 1:-1][np.triu_indices(tokens, 1)]
    assert (np.abs(off - both) / np.sqrt(both)).max() < 5


def test_keys_of_different_addresses_are_disjoint():
    seen = [
        masking.keys(seed, domain, number, np.arange(100), 64).ravel()
        for seed in (0, 1)
        for domain in Domain
        for number in (0, 1)
    ]
    everything = np.concatenate(seen)
    assert len(np.unique(everything)) == len(everything)


def test_a_key_does_not_depend_on_the_rows_beside_it():
    whole = masking.keys(3, Domain.CHOICE, 1, np.arange(50), 64)
    assert (masking.keys(3, Domain.CHOICE, 1, [17, 4], 64) == whole[[17, 4]]).all()


def test_golden_keys_and_draw_never_change():
    assert masking.SAMPLER == {"name": "uniform-splitmix64", "version": 1}
    # The published first outputs of splitmix64 from the state 1234567 pin the hash itself.
    state = 1234567
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [masking.mix_int(state + (i + 1) * masking.GOLDEN) for i in range(4)] == published
    golden = masking.keys(1, Domain.CHOICE, 2, [3], 4)[0]
    scalar = masking.mix_int(masking.stream(1, Domain.CHOICE, 2) + 4 * masking.GOLDEN)
    assert golden.tolist() == [masking.mix_int(scalar + (i + 1) * masking.GOLDEN) for i in range(4)]
    assert golden.tolist() == GOLDEN_KEYS
    hidden = masking.draw(1, 0, [0, 1], np.array([10, 6, 16]), np.array([0, 2, 3]), 16, "0.3")
    assert [np.flatnonzero(row).tolist() for row in hidden] == GOLDEN_DRAW


def test_packed_bits_come_back():
    hidden = np.random.default_rng(0).random((5, 24)) < 0.3
    assert masking.pack_bits(hidden).shape == (5, 3)
    assert (masking.unpack_bits(masking.pack_bits(hidden), 24) == hidden).all()


@given(st.integers(1, 300), st.integers(0, 5))
@settings(deadline=None, max_examples=30)
def test_the_order_is_a_permutation_and_differs_by_epoch(rows, epoch):
    order = masking.permutation(9, epoch, rows)
    assert sorted(order.tolist()) == list(range(rows))
    if rows > 20:
        assert (order != masking.permutation(9, epoch + 1, rows)).any()


def test_80_10_10_has_its_proportions_and_replaces_by_ordinary_tokens_only():
    rows, length = 4000, 64
    tokens = np.full((rows, length), 7, dtype=np.uint16)
    hidden = masking.draw(0, 0, np.arange(rows), *one_segment(rows, 62, length), length, "0.5")
    address = {"seed": 0, "draw": 0, "sequence_ids": np.arange(rows), "mask_id": 4, "ordinary_ids": (5, 1005)}
    corrupted = masking.corrupt(tokens, hidden, policy="80/10/10", **address)
    assert (corrupted[~hidden] == 7).all() and corrupted.dtype == tokens.dtype
    inside = corrupted[hidden]
    masked, replaced = (inside == 4).mean(), ((inside != 4) & (inside != 7)).mean()
    assert abs(masked - 0.8) < 0.005 and abs(replaced - 0.1) < 0.005
    assert inside[inside != 4].min() >= 5 and inside.max() < 1005
    assert (masking.corrupt(tokens, hidden, policy="mask", **address)[hidden] == 4).all()
    with pytest.raises(UsageError, match="corruption"):
        masking.corrupt(tokens, hidden, policy="90/5/5", **address)


def test_segment_ids_and_ordinary_positions_of_a_packed_row():
    lengths, offsets = np.array([3, 4, 8]), np.array([0, 2, 2, 3])
    assert masking.segment_ids(lengths, offsets, 8).tolist() == [
        [0, 0, 0, 1, 1, 1, 1, -1],
        [-1] * 8,
        [0] * 8,
    ]
    assert masking.ordinary(lengths, offsets, 8).astype(int).tolist() == [
        [0, 1, 0, 0, 1, 1, 0, 0],
        [0] * 8,
        [0, 1, 1, 1, 1, 1, 1, 0],
    ]


GOLDEN_KEYS = [12761035371966052739, 16540321255282251479, 502635664392209955, 803542101248773220]
GOLDEN_DRAW = [[2, 6, 12], [6, 10, 11, 12]]
