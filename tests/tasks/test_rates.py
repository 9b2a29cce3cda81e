"""The mask rate over a run: exact, monotone, refused by name. pytest tests/tasks/test_rates.py"""

import json
from dataclasses import asdict
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import masking
from tasks.errors import UsageError
from tasks.rates import FINEST, MaskRates

RATE = st.integers(1, 9999).map(lambda number: f"{number}/10000")
THIRDS = st.sampled_from(["1/3", "2/3", "1/30", "2/7"])  # which no decimal can say
SHARE = st.fractions(Fraction(1, 1000), Fraction(999, 1000), max_denominator=1000)


def fractions(rates, total):
    return [masking.fraction(rates.rate_at(step, total)) for step in range(total)]


def test_without_a_schedule_the_rate_is_that_of_the_shards():
    rates = MaskRates()
    assert {rates.rate_at(step, 9) for step in range(9)} == {""} and rates.highest("0.3") == "0.3"
    assert not rates.varies


def test_one_rate_is_the_rate_of_every_step():
    rates = MaskRates(rates=("40%",))
    assert {rates.rate_at(step, 9) for step in range(9)} == {"0.4"} and rates.highest("0.3") == "0.4"
    assert not rates.varies


@settings(max_examples=100, deadline=None)
@given(first=RATE, last=RATE, total=st.integers(1, 400))
def test_a_linear_run_begins_with_the_first_rate_ends_with_the_last_and_turns_nowhere(first, last, total):
    rates = MaskRates("linear", (first, last))
    run = fractions(rates, total)
    low, high = sorted((masking.fraction(first), masking.fraction(last)))
    assert run[0] == masking.fraction(first) and (total == 1 or run[-1] == masking.fraction(last))
    assert run == sorted(run, reverse=run[0] > run[-1])
    assert all(low <= rate <= high and FINEST % rate.denominator == 0 for rate in run)
    if total > 1:  # within one part in FINEST below the straight line
        line = [run[0] + (run[-1] - run[0]) * Fraction(step, total - 1) for step in range(total)]
        assert all(0 <= exact - rate < Fraction(1, FINEST) for exact, rate in zip(line, run, strict=True))


def test_a_linear_schedule_in_short():
    rates = MaskRates("linear", ("0.3", "0.15"))
    assert [rates.rate_at(step, 7) for step in range(7)] == ["0.3", "0.275", "0.25", "0.225", "0.2", "0.175", "0.15"]
    assert rates.rate_at(1, 8) == "0.2785"  # 0.27857… rounded down
    assert MaskRates("linear", ("1/3", "0.15")).rate_at(0, 8) == "0.3333"
    assert rates.highest("0.9") == "0.3" and rates.varies


@settings(max_examples=100, deadline=None)
@given(
    shares=st.sets(SHARE, min_size=1, max_size=4),
    pick=st.lists(RATE, min_size=5, max_size=5),
    total=st.integers(1, 500),
)
def test_each_rate_of_steps_begins_at_its_share_of_the_run_exactly(shares, pick, total):
    at = sorted(shares)
    rates = MaskRates("steps", tuple(pick[: len(at) + 1]), tuple(map(str, at)))
    for step in range(total):
        begun = [rate for rate, share in zip(pick, [Fraction(0), *at], strict=False) if share * total <= step]
        assert masking.fraction(rates.rate_at(step, total)) == masking.fraction(begun[-1])


def test_half_of_ten_steps_is_five():
    rates = MaskRates("steps", ("0.3", "0.15"), ("0.5",))
    assert [rates.rate_at(step, 10) for step in range(10)] == ["0.3"] * 5 + ["0.15"] * 5
    assert [rates.rate_at(step, 5) for step in range(5)] == ["0.3"] * 3 + ["0.15"] * 2


@settings(max_examples=60, deadline=None)
@given(
    total=st.integers(1, 200),
    size=st.integers(1, 10**6),
    rates=st.sampled_from(
        [
            MaskRates(),
            MaskRates("linear", ("0.4", "0.15")),
            MaskRates("linear", ("1/7", "2/3")),
            MaskRates("steps", ("0.3", "0.4", "0.1"), ("1/3", "0.77")),
        ]
    ),
)
def test_in_positions_a_run_of_equal_steps_has_the_rates_that_it_has_in_steps(total, size, rates):
    for step in range(total):
        assert rates.rate_at(step * size, total * size, size) == rates.rate_at(step, total)


@settings(max_examples=60, deadline=None)
@given(pick=st.lists(RATE | THIRDS, min_size=2, max_size=2), total=st.integers(1, 100), steps=st.booleans())
def test_no_step_is_above_the_highest_rate(pick, total, steps):
    rates = MaskRates("steps", tuple(pick), ("1/2",)) if steps else MaskRates("linear", tuple(pick))
    highest = masking.fraction(rates.highest("0.0001"))
    assert max(fractions(rates, total)) <= highest == max(map(masking.fraction, pick))


def test_equal_schedules_are_equal_however_they_are_spelt_and_survive_json():
    one = MaskRates("steps", ("30%", "0.150"), ("1/2",))
    assert one == MaskRates("steps", ("0.3", "3/20"), ("0.50",))
    assert MaskRates(**json.loads(json.dumps(asdict(one)))) == one


def test_a_recipe_writes_rates_as_numbers_per_cent_or_fractions():
    from flows import recipes

    written = "pretrain.mask_rates={schedule: steps, rates: [0.3, 20%, 3/20], at: [1/2, 0.75]}"
    loaded = recipes.load("tiny", ["README.md"], [written]).pretrain
    assert loaded.mask_rates == MaskRates("steps", ("0.3", "0.2", "0.15"), ("0.5", "0.75"))
    with pytest.raises(UsageError, match=r"did you mean pretrain\.mask_rates\.schedule\?"):
        recipes.load("tiny", ["README.md"], ["pretrain.mask_rates.shedule=linear"])
    with pytest.raises(UsageError, match=r"pretrain\.mask_rates\.rates is \['0\.3'\]"):
        recipes.load("tiny", ["README.md"], ["pretrain.mask_rates={schedule: linear, rates: [0.3]}"])


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"schedule": "cosine"}, "schedule"),
        ({"rates": ("0.3", "0.2")}, "rates"),
        ({"rates": ("1.3",)}, "rates"),
        ({"rates": ("x",)}, "rates"),
        ({"at": ("0.5",)}, "at"),
        ({"schedule": "linear"}, "rates"),
        ({"schedule": "linear", "rates": ("0.3",)}, "rates"),
        ({"schedule": "linear", "rates": ("0.3", "0.2", "0.1")}, "rates"),
        ({"schedule": "linear", "rates": ("0.3", "0.00001")}, "rates"),
        ({"schedule": "linear", "rates": ("0.3", "0.2"), "at": ("0.5",)}, "at"),
        ({"schedule": "steps", "rates": ("0.3",)}, "rates"),
        ({"schedule": "steps", "rates": ("0.3", "0.2")}, "at"),
        ({"schedule": "steps", "rates": ("0.3", "0.2", "0.1"), "at": ("0.5", "0.5")}, "at"),
        ({"schedule": "steps", "rates": ("0.3", "0.2", "0.1"), "at": ("0.5", "1/4")}, "at"),
        ({"schedule": "steps", "rates": ("0.3", "0.2"), "at": ("1",)}, "at"),
        ({"schedule": "steps", "rates": ("0.3", "0.2"), "at": ("0",)}, "at"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_by_its_key(given, key):
    with pytest.raises(UsageError, match=rf"pretrain\.mask_rates\.{key}\b"):
        MaskRates(**given)


def test_a_rate_at_which_a_full_row_hides_nothing_is_refused_before_anything_runs():
    MaskRates("linear", ("0.3", "0.05")).check(22)
    for rates in (MaskRates(rates=("0.01",)), MaskRates("linear", ("0.3", "0.01"))):
        with pytest.raises(UsageError, match=r"pretrain\.mask_rates\.rates: 0\.01 hides no token of a row of 32"):
            rates.check(32)
    with pytest.raises(UsageError, match="hides no token of a row of 16"):
        MaskRates("linear", ("0.3", "1/14")).check(16)  # its last step has 0.0714
