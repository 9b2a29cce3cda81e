"""The timeline: contiguous, exact, within its budget, whatever grows. pytest tests/tasks/test_timeline.py"""

import json
import math
from dataclasses import asdict, replace
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tasks.errors import UsageError
from tasks.rates import MaskRates
from tasks.timeline import BatchWarmup, Lengths, Pace, Supply, Timeline

SHARE = st.integers(1, 99).map(lambda number: f"{number}/100")
some = settings(max_examples=80, deadline=None)


@st.composite
def paces(draw, *, budget=None, batch_warmup=None, lengths=None):
    """(pace, shards) of every kind; a budget of "steps" or "tokens" where it is given."""
    count = draw(st.integers(0, 2)) if lengths is None else lengths
    rows = sorted(draw(st.sets(st.sampled_from([16, 24, 32, 64, 128]), min_size=count + 1, max_size=count + 1)))
    at = sorted(draw(st.sets(st.integers(1, 99), min_size=count, max_size=count)))
    batch = draw(st.integers(rows[-1], 3000))
    warm = draw(st.booleans()) if batch_warmup is None else batch_warmup
    start = draw(st.integers(rows[0], batch)) if warm else 0
    kind = budget or draw(st.sampled_from(["steps", "tokens"]))
    pace = Pace(
        batch_tokens=batch,
        steps=draw(st.integers(1, 400)) if kind == "steps" else 0,
        tokens=draw(st.integers(1, 400_000)) if kind == "tokens" else 0,
        schedule=draw(st.sampled_from(["wsd", "cosine", "linear"])),
        warmup=draw(st.sampled_from([0, 0.05, 0.1, 0.37, "1/3"])),
        decay=draw(st.sampled_from([0, 0.1, 0.3, 0.5])),
        batch_warmup=BatchWarmup(start, draw(SHARE)),
        lengths=Lengths(tuple(rows[:-1]), tuple(f"{number}/100" for number in at)),
    )
    return pace, [supply(length, draw(st.integers(1, 5000)), draw(st.integers(50, 100))) for length in rows]


def supply(length, rows=1000, full=90, digest=""):
    """Shards whose positions are ordinary tokens, `full` of a hundred."""
    return Supply(length, rows, max(rows * length * full // 100, 1), digest or f"shards of {length}")


def in_steps(step, total, warmup, decay):
    """Warmup-stable-decay of `total` steps, of which `warmup` rise and `decay` fall (Hägele et al. 2024)."""
    rise = min(1.0, (step + 1) / (warmup + 1))
    left = total - step
    return min(rise, 1.0 if left > decay else 1.0 - math.sqrt((decay - left + 1) / (decay + 1)))


def walk(timeline):
    return [timeline.at(step) for step in range(timeline.first, timeline.total)]


@some
@given(paces())
def test_samples_follow_each_other_in_each_shards_and_positions_add_up(given):
    timeline = Timeline(*given)
    expected, done = [0] * len(given[1]), 0
    for step, take in enumerate(walk(timeline)):
        assert take.first == expected[take.shards] and take.done == done == timeline.done(step)
        assert take.rows >= 1 and take.length == given[1][take.shards].length
        expected[take.shards] += take.rows
        done += take.rows * take.length
        stand = timeline.begun_at(step + 1, 5)
        assert {name: count for name, count in stand.samples.items() if count} == {
            one.digest: count for one, count in zip(given[1], expected, strict=True) if count
        }
        assert (stand.step, stand.positions) == (step + 1, done)
    assert done == timeline.positions
    assert timeline.shapes() == list(dict.fromkeys((take.rows, take.length) for take in walk(timeline)))


@some
@given(paces(budget="tokens"))
def test_the_last_step_is_the_first_that_reaches_a_budget_in_tokens(given):
    pace, shards = given
    timeline = Timeline(pace, shards)
    tokens = [Fraction(take.rows * shards[take.shards].tokens, shards[take.shards].rows) for take in walk(timeline)]
    assert sum(tokens) >= pace.tokens > sum(tokens[:-1])


@some
@given(paces(budget="steps"))
def test_a_budget_in_steps_has_that_many(given):
    assert len(walk(Timeline(*given))) == given[0].steps


@some
@given(paces(batch_warmup=False))
def test_each_length_begins_with_the_first_step_behind_its_share_of_the_budget(given):
    pace, shards = given
    takes = walk(Timeline(pace, shards))
    assert [take.shards for take in takes] == sorted(take.shards for take in takes)
    assert all(take.rows == pace.batch_tokens // take.length for take in takes)
    # The budget in positions: a budget in steps does not know it better than to one step's.
    shares = [Fraction(0), *map(Fraction, pace.lengths.at), Fraction(1)]
    mean = sum((b - a) * Fraction(one.tokens, one.rows * one.length) for one, a, b in zip(shards, shares, shares[1:]))
    budget = Fraction(pace.tokens) / mean if pace.tokens else Timeline(pace, shards).positions
    slack = 1 if pace.tokens else pace.batch_tokens
    for number, share in enumerate(map(Fraction, pace.lengths.at), 1):
        before = [take for take in takes if take.shards < number]
        assert before[-1].done < share * budget + slack
        if number <= takes[-1].shards:
            assert before[-1].done + before[-1].rows * before[-1].length >= share * budget - slack


@some
@given(paces(batch_warmup=True, lengths=0))
def test_a_batch_grows_linearly_with_the_positions_over_its_share_and_stays(given):
    pace, shards = given
    takes, length = walk(Timeline(pace, shards)), shards[0].length
    assert takes[0].rows == pace.batch_warmup.start // length
    rows = [take.rows for take in takes]
    assert rows == sorted(rows) and rows[-1] <= pace.batch_tokens // length
    budget = Timeline(pace, shards).positions
    warm = Fraction(pace.batch_warmup.share) * budget
    for take in takes:
        line = pace.batch_warmup.start + (pace.batch_tokens - pace.batch_warmup.start) * min(1, take.done / warm)
        # the budget is known to one step
        off = (pace.batch_tokens - pace.batch_warmup.start) * pace.batch_tokens / budget + 1e-9
        assert abs(take.rows - line / length) <= 1 + off / length


def test_a_warm_up_and_two_lengths_in_short():
    pace = Pace(64, tokens=1600, batch_warmup=BatchWarmup(16, "1/4"), lengths=Lengths((8, 16), ("0.5", "0.8")))
    timeline = Timeline(pace, [supply(8, full=100), supply(16, full=100), supply(32, full=100)])
    growing = [2] * 5 + [3] * 3 + [4] * 2 + [5] * 2 + [6, 7]  # a quarter of 1600 positions is 400, and 400 they are
    assert [take.rows for take in walk(timeline)] == growing + [8] * 7 + [4] * 7 + [2] * 5
    assert timeline.at(13) == (0, 43, 7, 344, 8) and timeline.at(14) == (0, 50, 8, 400, 8)
    assert timeline.at(21) == (1, 0, 4, 848, 16) and timeline.at(28) == (2, 0, 2, 1296, 32)
    assert timeline.positions == 1616


@settings(max_examples=200, deadline=None)
@given(
    total=st.integers(1, 3000),
    rows=st.integers(1, 50),
    length=st.sampled_from([8, 64, 128]),
    warmup=st.integers(0, 50).map(lambda number: number / 100),
    decay=st.integers(0, 50).map(lambda number: number / 100),
)
def test_with_a_constant_batch_wsd_is_that_in_steps_to_the_last_bit(total, rows, length, warmup, decay):
    for share in (warmup, decay):  # decimals are exact here: 7 % of 150 steps are a tie, in floats they are more
        assume(round(share * total) == round(Fraction(str(share)) * total))
    timeline = Timeline(Pace(rows * length, steps=total, warmup=warmup, decay=decay), [supply(length)])
    rounded = round(warmup * total), round(decay * total)
    for step in {0, total - 1, *range(0, total, max(total // 40, 1)), total - rounded[1], rounded[0]} - {total}:
        assert timeline.multiplier(step) == in_steps(step, total, *rounded)


@pytest.mark.parametrize("share", [0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5])
def test_usual_shares_are_the_same_steps_as_in_floats(share):
    assert all(round(share * total) == round(Fraction(str(share)) * total) for total in range(1, 20_000))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 10**7), st.integers(1, 10**5), st.integers(1, 100), st.integers(1, 64))
def test_with_a_constant_batch_a_budget_in_tokens_is_that_of_whole_steps(tokens, rows, per_row, rows_per_step):
    timeline = Timeline(Pace(rows_per_step * 128, tokens=tokens), [Supply(128, rows, rows * per_row)])
    assert timeline.total == -(-tokens // (rows_per_step * per_row))


@some
@given(paces())
def test_multipliers_rise_to_one_and_then_fall_and_no_step_is_wasted(given):
    timeline = Timeline(*given)
    values = [timeline.multiplier(step) for step in range(timeline.total)]
    assert all(0 < value <= 1 for value in values)
    top = values.index(max(values))
    assert values[: top + 1] == sorted(values[: top + 1]) and values[top:] == sorted(values[top:], reverse=True)


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_cosine_and_linear_are_what_their_names_say(name):
    timeline = Timeline(Pace(64, steps=1000, schedule=name, warmup="0.1"), [supply(64)])
    for step in (100, 101, 350, 550, 999):
        share = (step - 100) / 900
        expected = 1 - share if name == "linear" else 0.5 * (1 + math.cos(math.pi * share))
        assert math.isclose(timeline.multiplier(step), expected, rel_tol=1e-9)
    assert timeline.multiplier(99) == 100 / 101 and timeline.multiplier(100) == 1
    long = Timeline(Pace(64, steps=10**9, schedule=name), [supply(64)])
    assert 0 < long.multiplier(10**9 - 1) < long.multiplier(10**9 - 2) < 1e-8


def test_shares_of_a_run_whose_batch_grows_are_shares_of_its_positions():
    pace = Pace(4096, tokens=4_000_000, warmup=0.2, decay=0.3, batch_warmup=BatchWarmup(512, "0.5"))
    timeline = Timeline(pace, [supply(64)])
    values = [timeline.multiplier(step) for step in range(timeline.total)]
    risen, falls = values.index(1.0), timeline.total - values[::-1].index(1.0)
    size = 4096 / timeline.positions
    assert abs(timeline.done(risen) / timeline.positions - 0.2) < size
    assert abs(timeline.done(falls) / timeline.positions - 0.7) < size
    assert risen / timeline.total > 0.35  # of the steps, many of which are small


@some
@given(paces(), st.sampled_from(["constant", "linear", "steps"]))
def test_mask_rates_go_by_positions(given, kind):
    rates = {"constant": MaskRates(), "linear": MaskRates("linear", ("1/2", "0.3"))}.get(kind)
    rates = rates or MaskRates("steps", ("1/2", "0.3"), ("2/5",))
    timeline = Timeline(replace(given[0], mask_rates=rates), given[1])
    found = [timeline.mask_rate(step) for step in range(timeline.total)]
    if kind == "constant":
        assert set(found) == {""}
    elif kind == "steps":
        expected = [take.done >= Fraction(2, 5) * timeline.positions for take in walk(timeline)]
        assert [rate == "0.3" for rate in found] == expected
    else:
        exact = [Fraction(rate) for rate in found]
        assert exact == sorted(exact, reverse=True) and found[0] == "0.5" and (found[-1] == "0.3" or len(found) == 1)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 5), st.sampled_from([MaskRates("linear", ("0.4", "0.15")),
       MaskRates("steps", ("0.4", "0.2", "0.3"), ("1/3", "0.77"))]))  # fmt: skip
def test_with_a_constant_batch_mask_rates_are_those_in_steps(total, rows, rates):
    timeline = Timeline(Pace(rows * 128, steps=total, mask_rates=rates), [supply(128)])
    assert [timeline.mask_rate(step) for step in range(total)] == [rates.rate_at(step, total) for step in range(total)]


# Stable checkpoints and forks.


@some
@given(paces(), st.integers(1, 6))
def test_stable_checkpoints_lie_evenly_in_the_stable_phase_and_the_last_ends_it(given, number):
    pace, shards = replace(given[0], schedule="wsd", decay=0.3, warmup=0.1), given[1]
    timeline = Timeline(pace, shards)
    assert timeline.stable_steps(0) == ()
    try:
        steps = timeline.stable_steps(number)
    except UsageError as error:
        assert "pretrain.stable_checkpoints" in str(error)
        return
    assert len(steps) == number and list(steps) == sorted(set(steps))
    for step in steps:  # up to there nothing has fallen; the batch is whole
        assert timeline.multiplier(step - 1) == 1
        take = timeline.at(step - 1)
        assert take.rows == pace.batch_tokens // take.length
    assert steps[-1] == timeline.total or timeline.multiplier(steps[-1]) < 1
    gaps = [timeline.done(after) - timeline.done(before) for before, after in pairwise(steps)]
    assert not gaps or max(gaps) - min(gaps) <= 2 * pace.batch_tokens


@settings(max_examples=40, deadline=None)
@given(paces(budget="steps"), st.integers(1, 4), st.data())
def test_a_fork_with_the_same_budget_is_the_rest_of_the_run(given, number, data):
    parent = replace(given[0], schedule="wsd", decay=0.3, warmup=0.1, steps=200)
    timeline = Timeline(parent, given[1])
    try:
        step = data.draw(st.sampled_from(timeline.stable_steps(number)))
    except UsageError:
        return
    assume(timeline.at(step).shards == len(given[1]) - 1)
    alone = replace(parent, lengths=Lengths(), batch_warmup=BatchWarmup())
    fork = Timeline(alone, given[1][-1:], timeline.begun_at(step, tokens=1))
    assert (fork.first, fork.total, fork.positions) == (step, timeline.total, timeline.positions)
    for later in range(step, fork.total):
        assert fork.at(later)[1:] == timeline.at(later)[1:]
        assert fork.multiplier(later) == timeline.multiplier(later)


def begun(**changes):
    whole = Timeline(Pace(640, steps=100), [supply(64)]).begun_at(70, tokens=40_000)
    return replace(whole, **changes)


def test_a_fork_with_a_larger_budget_stays_at_the_full_rate_and_then_decays():
    fork = Timeline(Pace(640, steps=200, warmup=0.5, decay=0.2), [supply(64)], begun())
    values = [fork.multiplier(step) for step in range(70, 200)]
    assert values[:90] == [1.0] * 90 and 1 > values[90] > values[129] > 0
    assert fork.at(70).first == 700 and fork.stable_steps(3) == (100, 130, 160)
    assert fork.begun_at(90, 5).samples == {"shards of 64": 900}


def test_a_fork_on_other_shards_begins_with_their_first_sample():
    fork = Timeline(Pace(640, steps=200), [supply(64, digest="other")], begun())
    assert fork.at(70) == (0, 0, 10, 44_800, 64)
    assert fork.begun_at(80, 1).samples == {"shards of 64": 700, "other": 100}


def test_a_fork_s_budget_in_tokens_is_that_of_both_runs():
    shards = Supply(64, 100, 5000)
    fork = Timeline(Pace(640, tokens=40_000 + 7 * 500), [shards], begun())
    assert fork.total - fork.first == 7
    with pytest.raises(UsageError, match=r"pretrain.tokens is 40,000, and the run .* had 40,000 by then; set more"):
        Timeline(Pace(640, tokens=40_000), [shards], begun())
    with pytest.raises(UsageError, match=r"pretrain.steps is 70, and the run .* had 70 by then; set more"):
        Timeline(Pace(640, steps=70), [shards], begun())


def test_a_decay_that_is_longer_than_what_is_left_takes_all_of_it():
    fork = Timeline(Pace(640, steps=80, decay=0.5), [supply(64)], begun())
    expected = [1 - math.sqrt((step + 1) / 11) for step in range(10)]
    assert [fork.multiplier(step) for step in range(70, 80)] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schedule": "cosine"}, "set pretrain.schedule to wsd"),
        ({"batch_warmup": BatchWarmup(64)}, "leave out pretrain.batch_warmup"),
        ({"lengths": Lengths((32,), ("0.5",))}, "leave out pretrain.lengths"),
    ],
)
def test_what_a_fork_cannot_have_is_refused(change, said):
    shards = [supply(32)] * ("lengths" in change) + [supply(64)]
    with pytest.raises(UsageError, match=f"pretrain.fork goes on at the full learning rate, .* {said}"):
        Timeline(Pace(640, steps=200, **change), shards, begun())


# Wrong use.


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: BatchWarmup(-1), r"pretrain\.batch_warmup\.start is -1"),
        (lambda: BatchWarmup(1, "2"), r"pretrain\.batch_warmup\.share: '2'"),
        (lambda: Lengths((12,), ("0.5",)), r"pretrain\.lengths\.lengths: 12 .* multiples of 8"),
        (lambda: Lengths((8, 16), ("0.5",)), r"pretrain\.lengths\.at has 1 shares for 2 lengths"),
        (lambda: Lengths((16, 8), ("0.5", "0.6")), r"pretrain\.lengths\.lengths is \[16, 8\]; each must be larger"),
        (lambda: Lengths((8, 16), ("0.6", "1/2")), r"pretrain\.lengths\.at is \['0.6', '0.5'\]; each must be larger"),
        (lambda: Lengths((8,), ("1",)), r"pretrain\.lengths\.at: '1'"),
        (lambda: Lengths((8, 64), ("0.1", "0.2")).check(64), r"shards\.length is 64; .* give shorter ones"),
        (lambda: Pace(64), "pretrain needs a budget"),
        (lambda: Pace(64, steps=1, schedule="step"), r"pretrain\.schedule is 'step'; use wsd, cosine or linear"),
        (lambda: Pace(64, steps=1, warmup=0.8), "together at most 1"),
        (lambda: Pace(64, steps=1, warmup=-0.1), "together at most 1"),
        (lambda: Pace(64, steps=1, batch_warmup=BatchWarmup(65)), r"pretrain\.batch_warmup\.start is 65"),
        (lambda: Pace(64, steps=1).check(128), r"pretrain\.batch_tokens is 64, and a row has 128 positions"),
        (lambda: Pace(256, steps=1, batch_warmup=BatchWarmup(64)).check(128), r"pretrain\.batch_warmup\.start is 64"),
        (lambda: Pace(64, steps=1, mask_rates=MaskRates(rates=("0.01",))).check(64), "0.01 hides no token of a row"),
        (
            lambda: Pace(
                256, steps=1, mask_rates=MaskRates(rates=("0.05",)), lengths=Lengths((16,), ("0.5",))
            ).check(128),
            "0.05 hides no token of a row of 16",
        ),
        (lambda: Timeline(Pace(64, steps=1), [supply(32), supply(64)]), r"is \[\], and the shorter shards .*\[32\]"),
        (lambda: Timeline(Pace(64, steps=9), [supply(64)]).at(9), "step 9 is none .* from 0 to 8"),
        (lambda: Timeline(Pace(64, steps=9), [supply(64)]).stable_steps(9), "the stable phase has 6 steps; use fewer"),
        (lambda: Timeline(Pace(64, steps=9, schedule="linear"), [supply(64)]).stable_steps(1), "has 0 steps"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_its_key(make, said):
    with pytest.raises(UsageError, match=said):
        make()


def test_cosine_may_warm_up_for_its_whole_life_and_has_no_decay():
    timeline = Timeline(Pace(64, steps=9, schedule="cosine", warmup=1, decay=0.9), [supply(64)])
    assert [timeline.multiplier(step) for step in range(9)] == [(step + 1) / 10 for step in range(9)]


def test_the_pace_comes_out_of_json_as_it_went_in_and_shares_have_one_spelling():
    lengths = Lengths((16, 32), ("50%", "8/10"))
    pace = Pace(
        512, tokens=9, batch_warmup=BatchWarmup(64, "1/5"), lengths=lengths, mask_rates=MaskRates(rates=("0.3",))
    )
    assert Pace.of(json.loads(json.dumps(asdict(pace) | {"layers": 4}))) == pace
    assert lengths == Lengths((16, 32), ("0.5", "0.80"))


def test_what_is_to_be_known_of_shards_is_in_their_manifest():
    facts = {"length": 64, "splits": {"train": {"rows": 10, "tokens": 600, "files": []}}}
    assert Supply.of(facts, "d") == Supply(64, 10, 600, "d")


def test_a_long_run_is_looked_up_without_being_walked():
    pace = Pace(1 << 20, steps=10**9, batch_warmup=BatchWarmup(1 << 17, "0.05"), lengths=Lengths((512,), ("0.5",)))
    timeline = Timeline(pace, [supply(512), supply(1024)])
    assert timeline.total == 10**9 and timeline.at(10**9 - 1).rows == 1024
    assert timeline.at(10**8).done + timeline.at(10**8).rows * 512 == timeline.at(10**8 + 1).done
    assert len(timeline.shapes()) < 2000
