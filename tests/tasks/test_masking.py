"""Equation (1): exact counts, uniform, nested, addressed. pytest tests/tasks/test_masking.py"""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import keys, masking
from tasks.errors import UsageError
from tasks.keys import Domain
from tasks.masking import Policy


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


policies = st.builds(Policy, st.sampled_from(("uniform", "whole-word", "span")), st.sampled_from([1, 2, 3, 10]))


def words_at(rows, length, seed):
    """Where words begin in some rows: anywhere, for all that masking knows."""
    return np.random.default_rng(seed % 1000).random((rows, length)) < 0.5


def by_the_book(seed, number, lengths, offsets, length, rate, policy, begins_RL):
    """The definition, word for word: groups in the order of the key of their first position, ties by position."""
    p = Fraction(masking.spelling(rate))
    rows = len(offsets) - 1
    keys_RL = keys.keys(seed, Domain.CHOICE, number, np.arange(rows), length)
    spans_RL = keys.keys(seed, Domain.SPAN, number, np.arange(rows), length)
    hidden = np.zeros((rows, length), bool)
    for row in range(rows):
        begin = 0
        for positions in lengths[offsets[row] : offsets[row + 1]].tolist():
            order, key = [], 0
            for at in range(begin + 1, begin + positions - 1):
                span = int(spans_RL[row, at]) * policy.span < 2**64 - 2**64 % policy.span
                starts = {"uniform": True, "whole-word": begins_RL[row, at], "span": span}[policy.name]
                if starts or at == begin + 1:
                    key = int(keys_RL[row, at])
                order.append((key, at))
            for _, at in sorted(order)[: (positions - 2) * p.numerator // p.denominator]:
                hidden[row, at] = True
            begin += positions
    return hidden


@given(layouts(), rates, st.integers(0, 2**63), st.integers(0, 9), policies)
@settings(deadline=None, max_examples=200)
def test_a_draw_is_the_beginning_of_a_total_order(layout, rate, seed, number, policy):
    lengths, offsets, length = layout
    begins_RL = words_at(len(offsets) - 1, length, seed)
    hidden = masking.draw(seed, number, np.arange(len(begins_RL)), *layout[:2], length, rate, policy, begins_RL)
    assert (hidden == by_the_book(seed, number, lengths, offsets, length, rate, policy, begins_RL)).all()


@pytest.mark.parametrize("grouped", [False, True])
def test_keys_that_share_their_upper_half_are_told_apart_by_the_rest(grouped):
    # Sorting looks at the upper 32 bits first; here most of them are equal, so that the rest and the position decide.
    rng = np.random.default_rng(3)
    keys_NW = rng.integers(0, 3, (500, 40), np.uint64) << np.uint64(32) | rng.integers(0, 4, (500, 40), np.uint64)
    keys_NW[0] = 0xFFFFFFFFFFFFFFFF  # what stands outside a segment, too
    tokens_N = rng.integers(1, 41, 500)
    hidden_N = np.array([rng.integers(1, tokens + 1) for tokens in tokens_N])
    begins_NW = rng.random((500, 40)) < 0.4 if grouped else None
    if grouped:
        keys_NW = masking._of_groups(keys_NW, begins_NW)
    expected = np.zeros((500, 40), bool)
    for row in range(500):
        order = sorted(range(tokens_N[row]), key=lambda at, row=row: (int(keys_NW[row, at]), at))
        expected[row, order[: hidden_N[row]]] = True
    assert (masking._first(keys_NW.copy(), tokens_N, hidden_N, begins_NW) == expected).all()


@given(layouts(), rates, st.integers(0, 2**63), st.integers(0, 9), policies)
@settings(deadline=None)
def test_every_segment_hides_exactly_floor_of_m_times_p_ordinary_positions(layout, rate, seed, number, policy):
    lengths, offsets, length = layout
    rows = len(offsets) - 1
    begins_RL = words_at(rows, length, seed)
    hidden = masking.draw(seed, number, np.arange(rows), lengths, offsets, length, rate, policy, begins_RL)
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


@given(layouts(), st.integers(0, 2**63), policies)
@settings(deadline=None, max_examples=60)
def test_a_lower_rate_hides_a_subset_of_a_higher_one(layout, seed, policy):
    lengths, offsets, length = layout
    ids = np.arange(len(offsets) - 1)
    begins_RL = words_at(len(ids), length, seed)
    before = np.zeros((len(ids), length), dtype=bool)
    for percent in (5, 15, 29, 30, 50, 80, 99):
        hidden = masking.draw(seed, 0, ids, lengths, offsets, length, f"{percent}%", policy, begins_RL)
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


@pytest.mark.parametrize("policy", [Policy("whole-word"), Policy("span", 2), Policy("span", 5)])
def test_groups_of_one_kind_are_hidden_equally_often_and_whole(policy):
    rows, tokens, length = 40_000, 60, 64
    layout, begins_RL = one_segment(rows, tokens, length), np.zeros((rows, length), bool)
    begins_RL[:, 1:-1:3] = True  # twenty words of three tokens
    hidden = masking.draw(5, 1, np.arange(rows), *layout, length, "0.3", policy, begins_RL)
    inside = hidden[:, 1:61]
    assert (hidden.sum(1) == 18).all()
    if policy.of_groups:
        words = inside.reshape(rows, 20, 3).sum(2)
        assert set(np.unique(words)) == {0, 3}, "18 tokens are six words: none is cut"
        counts, share = (words == 3).sum(0), 6 / 20
        chi2 = ((counts - rows * share) ** 2).sum() / (rows * share * (1 - share)) * 19 / 20
        assert 4 < chi2 < 50, f"chi-square {chi2:.1f} on 19 degrees of freedom"
    else:  # neighbours are hidden together more often than chance has it, the more the longer spans are
        together = (inside[:, 1:] & inside[:, :-1]).mean()
        assert together > {2: 0.17, 5: 0.23}[policy.span] > 0.3 * 17 / 59


@pytest.mark.parametrize("mean", [1, 3, 10])
def test_lengths_of_spans_are_geometric(mean):
    rows, length = 4000, 256
    begins = keys.keys(2, Domain.SPAN, 0, np.arange(rows), length) <= np.uint64(Policy("span", mean).boundary)
    starts = np.flatnonzero(begins)
    lengths = np.diff(starts)
    observed = np.bincount(lengths)[1:]
    expected = len(lengths) * (1 - 1 / mean) ** np.arange(len(observed)) / mean
    enough = expected >= 5
    chi2 = ((observed - expected) ** 2 / np.maximum(expected, 1))[enough].sum()
    assert chi2 < enough.sum() + 5 * np.sqrt(2 * enough.sum()) and abs(lengths.mean() / mean - 1) < 0.02


def test_keys_of_different_addresses_are_disjoint():
    seen = [
        keys.keys(seed, domain, number, np.arange(100), 64).ravel()
        for seed in (0, 1)
        for domain in Domain
        for number in (0, 1)
    ]
    everything = np.concatenate(seen)
    assert len(np.unique(everything)) == len(everything)


def test_a_key_does_not_depend_on_the_rows_beside_it():
    whole = keys.keys(3, Domain.CHOICE, 1, np.arange(50), 64)
    assert (keys.keys(3, Domain.CHOICE, 1, [17, 4], 64) == whole[[17, 4]]).all()


def test_golden_keys_and_draw_never_change():
    assert masking.SAMPLER == {"name": "splitmix64", "version": 2}
    # The published first outputs of splitmix64 from the state 1234567 pin the hash itself.
    state = 1234567
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [keys.mix_int(state + (i + 1) * keys.GOLDEN) for i in range(4)] == published
    golden = keys.keys(1, Domain.CHOICE, 2, [3], 4)[0]
    scalar = keys.mix_int(keys.stream(1, Domain.CHOICE, 2) + 4 * keys.GOLDEN)
    assert golden.tolist() == [keys.mix_int(scalar + (i + 1) * keys.GOLDEN) for i in range(4)]
    assert golden.tolist() == GOLDEN_KEYS
    layout = np.array([10, 6, 16]), np.array([0, 2, 3]), 16, "0.3"
    begins_RL = np.arange(32).reshape(2, 16) % 3 == 1
    for policy, golden in GOLDEN_DRAWS.items():
        hidden = masking.draw(1, 0, [0, 1], *layout, Policy(policy), begins_RL)
        assert [np.flatnonzero(row).tolist() for row in hidden] == golden, policy


def test_golden_replacements_never_change():
    tokens_RL = np.arange(40, 80).reshape(1, 40)
    address = {"seed": 1, "draw": 2, "sequence_ids": [3], "mask_id": 4, "ordinary_ids": np.arange(5, 1005)}
    shown = masking.corrupt(tokens_RL, np.ones((1, 40), bool), policy="80/10/10", **address)[0]
    kept = np.flatnonzero(shown == tokens_RL[0]).tolist()
    replaced = {int(at): int(shown[at]) for at in np.flatnonzero((shown != tokens_RL[0]) & (shown != 4))}
    assert (kept, replaced) == GOLDEN_REPLACEMENTS


def test_packed_bits_come_back():
    hidden = np.random.default_rng(0).random((5, 24)) < 0.3
    assert masking.pack_bits(hidden).shape == (5, 3)
    assert (masking.unpack_bits(masking.pack_bits(hidden), 24) == hidden).all()


@given(st.integers(1, 300), st.integers(0, 5))
@settings(deadline=None, max_examples=30)
def test_the_order_is_a_permutation_and_differs_by_epoch(rows, epoch):
    order = keys.permutation(9, epoch, rows)
    assert sorted(order.tolist()) == list(range(rows))
    if rows > 20:
        assert (order != keys.permutation(9, epoch + 1, rows)).any()


def test_80_10_10_has_its_proportions_and_replaces_by_ordinary_tokens_only():
    rows, length = 4000, 64
    tokens = np.full((rows, length), 7, dtype=np.uint16)
    hidden = masking.draw(0, 0, np.arange(rows), *one_segment(rows, 62, length), length, "0.5")
    address = {"seed": 0, "draw": 0, "sequence_ids": np.arange(rows), "mask_id": 4, "ordinary_ids": np.arange(5, 1005)}
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
GOLDEN_DRAWS = {
    "uniform": [[2, 6, 12], [6, 10, 11, 12]],
    "whole-word": [[7, 8, 11], [6, 7, 8, 12]],
    "span": [[2, 3, 11], [6, 10, 11, 12]],
}
GOLDEN_REPLACEMENTS = ([1, 17, 23, 25, 27, 29], {8: 863, 14: 598, 15: 191, 32: 833, 36: 754, 39: 663})
