"""The guards: a function of the losses alone, whatever the resumes. python -m pytest tests/tasks/test_guards.py"""

import json
import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import UsageError
from tasks.guards import Action, Guards, GuardsConfig, mean_and_deviation, sentences

GO, SKIP, ROLLBACK, STOP = Action.GO, Action.SKIP, Action.ROLLBACK, Action.STOP
SMALL = GuardsConfig(window=8, deviations="3", patience=2, rollbacks=2)

ordinary = st.floats(0.0, 12.0)
losses = st.one_of(ordinary, ordinary, ordinary, st.floats(20.0, 1e9), st.sampled_from([math.nan, math.inf, -math.inf]))
norms = st.one_of(ordinary, ordinary, ordinary, st.just(math.nan))
configs = st.builds(
    GuardsConfig,
    window=st.integers(4, 12),
    deviations=st.sampled_from(["1", "3", "6"]),
    on_spike=st.sampled_from(["report", "rollback"]),
    patience=st.integers(0, 3),
    rollbacks=st.integers(0, 3),
    plateau_after=st.sampled_from(["0", "1/4", "1"]),
)


def feed(guards, numbers, first=1, total=0):
    actions = []
    for step, (loss, norm) in enumerate(numbers, first):
        actions.append(guards.see(step, loss, norm, total))
        if actions[-1] is ROLLBACK:
            guards.rolled_back(step - 1)
    return actions


@given(configs, st.lists(st.tuples(losses, norms), max_size=60), st.data())
def test_saved_and_loaded_anywhere_it_decides_the_same_and_holds_the_same(config, numbers, data):
    undisturbed = Guards(config, 6.0)
    expected = feed(undisturbed, numbers, total=len(numbers))
    resumed, actions, at = Guards(config, 6.0), [], 0
    for cut in sorted(data.draw(st.lists(st.integers(0, len(numbers)), max_size=4))):
        actions += feed(resumed, numbers[at:cut], at + 1, len(numbers))
        resumed, at = Guards(config, 6.0, json.loads(json.dumps(resumed.state(), allow_nan=False))), cut
    actions += feed(resumed, numbers[at:], at + 1, len(numbers))
    assert actions == expected
    assert json.dumps(resumed.state()) == json.dumps(undisturbed.state())


@given(configs, st.lists(st.tuples(losses, norms), max_size=60))
def test_what_is_not_finite_is_never_trained_on_and_the_books_balance(config, numbers):
    guards = Guards(config, 6.0)
    actions = feed(guards, numbers)
    facts = guards.facts()
    for (loss, norm), action in zip(numbers, actions, strict=True):
        assert action is not GO or (math.isfinite(loss) and math.isfinite(norm))
        assert action in (GO, ROLLBACK) or not (math.isfinite(loss) and math.isfinite(norm))
    assert (facts["skipped"] or {"count": 0})["count"] == sum(action is not GO for action in actions)
    assert len(facts["rollbacks"]) == actions.count(ROLLBACK) <= config.rollbacks
    assert STOP not in actions or len(facts["rollbacks"]) == config.rollbacks
    assert [one["from_step"] for one in facts["rollbacks"]] == [n for n, a in enumerate(actions, 1) if a is ROLLBACK]
    assert not numbers or bool(sentences(facts)) == (actions != [GO] * len(actions) or facts["spikes"] is not None)


@given(st.lists(ordinary, min_size=2, max_size=40), st.randoms())
def test_mean_and_deviation_know_no_order(numbers, random):
    shuffled = list(numbers)
    random.shuffle(shuffled)
    assert mean_and_deviation(numbers) == mean_and_deviation(shuffled)


@given(st.lists(ordinary, min_size=2, max_size=40))
def test_the_deviation_is_that_of_a_sample(numbers):
    assert mean_and_deviation(numbers)[1] == pytest.approx(statistics.stdev(numbers), abs=1e-9)


@given(st.lists(ordinary, max_size=40))
def test_the_window_holds_the_last_losses(numbers):
    guards = Guards(SMALL, 6.0)
    feed(guards, [(loss, 1.0) for loss in numbers])
    assert guards.state()["losses"] == numbers[-8:]


def test_a_quiet_run_is_never_disturbed_and_has_nothing_to_say():
    guards = Guards(SMALL, 6.0)
    assert set(feed(guards, [(5.0 - 0.01 * n + 0.02 * (n % 3), 1.0) for n in range(200)], total=200)) == {GO}
    assert guards.facts() == {"skipped": None, "spikes": None, "rollbacks": [], "plateau": None}
    assert sentences(guards.facts()) == sentences(None) == sentences({}) == []


def test_failures_in_a_row_are_skipped_then_rolled_back_then_stop_the_run():
    bad = (math.nan, 1.0)
    guards = Guards(SMALL, 6.0)
    assert feed(guards, [bad] * 9) == [SKIP, SKIP, ROLLBACK, SKIP, SKIP, ROLLBACK, SKIP, SKIP, STOP]
    assert "pretrain.guards.rollbacks" in guards.sentence
    assert guards.facts()["rollbacks"] == [
        {"from_step": 3, "to_step": 2, "reason": "not finite"},
        {"from_step": 6, "to_step": 5, "reason": "not finite"},
    ]
    assert guards.facts()["skipped"] == {"count": 9, "first_step": 1, "last_step": 9}


@pytest.mark.parametrize("bad", [(math.inf, 1.0), (5.0, math.nan), (math.nan, math.nan), (5.0, math.inf)])
def test_one_good_step_forgives_those_before_it(bad):
    assert feed(Guards(SMALL, 6.0), [bad, bad, (5.0, 1.0)] * 4) == [SKIP, SKIP, GO] * 4


def test_a_spike_is_a_rise_out_of_a_window_that_is_half_full():
    calm = [(5.0 + 0.1 * (n % 2), 1.0) for n in range(4)]
    early, guards, falling = Guards(SMALL, 6.0), Guards(SMALL, 6.0), Guards(SMALL, 6.0)
    feed(early, [*calm[:3], (50.0, 1.0)])
    feed(falling, [*calm, (0.1, 1.0)])
    assert early.facts()["spikes"] is falling.facts()["spikes"] is None
    assert feed(guards, [*calm, (50.0, 1.0)])[-1] is GO  # reported only
    assert guards.facts()["spikes"] == {"count": 1, "first_step": 5, "last_step": 5}
    assert "step 5 has loss 50.000" in guards.sentence
    guards.see(6, 5.0, 1.0)
    assert guards.sentence == ""


def test_a_spike_can_be_undone_while_rollbacks_last_and_leaves_no_trace_in_the_window():
    calm = [(5.0 + 0.1 * (n % 2), 1.0) for n in range(8)]
    guards = Guards(GuardsConfig(window=8, on_spike="rollback", rollbacks=1), 6.0)
    feed(guards, calm)
    before = guards.state()["losses"]
    assert guards.see(9, 50.0, 1.0) is ROLLBACK and guards.state()["losses"] == before
    assert guards.facts()["rollbacks"] == [{"from_step": 9, "to_step": None, "reason": "spike"}]
    assert guards.see(10, 50.0, 1.0) is GO and guards.facts()["spikes"]["count"] == 2


def test_a_plateau_is_said_once_after_its_share_and_left_where_the_loss_falls():
    guards, said = Guards(SMALL, 6.0), []
    for step in range(1, 61):
        guards.see(step, 5.95 if step < 40 else 4.0, 1.0, 60)
        said += [(step, guards.sentence)] if guards.sentence else []
    assert [step for step, _ in said] == [15]
    assert "the model is only learning token frequencies" in said[0][1] and "learning rate" in said[0][1]
    assert guards.facts()["plateau"] == {"step": 15, "loss": 5.95, "unigram_entropy": 6.0, "left_at": 40}


@pytest.mark.parametrize(("level", "total"), [(5.89, 60), (5.95, 0), (5.95, 1000)])
def test_no_plateau_below_the_unigram_level_without_a_budget_or_before_its_share(level, total):
    guards = Guards(SMALL, 6.0)
    feed(guards, [(level, 1.0)] * 60, total=total)
    assert guards.facts()["plateau"] is None


def test_the_card_says_which_guards_fired():
    guards = Guards(GuardsConfig(window=4, patience=0, plateau_after="0"), 6.0)
    feed(guards, [(5.95 + 0.01 * (n % 2), 1.0) for n in range(4)] + [(9.0, 1.0), (math.nan, 1.0)], total=100)
    assert sentences(json.loads(json.dumps(guards.facts()))) == [
        "1 step (6) without an update: the loss or the gradient was not finite, or a spike was undone.",
        "The loss spiked in 1 step (5).",
        "At step 6 the weights went back to those of step 5, because losses or gradients in a row were not finite.",
        "At step 2 the loss (5.96) was at the unigram level (6.00 nats): "
        "the model was only learning token frequencies.",
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("deviations", "0"),
        ("deviations", "1e400000000"),
        ("deviations", "six"),
        ("window", 3),
        ("on_spike", "ignore"),
        ("patience", -1),
        ("rollbacks", -1),
        ("plateau_after", "1.5"),
        ("plateau_after", "-1"),
        ("plateau_after", "1/0"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_by_its_key(key, value):
    with pytest.raises(UsageError, match=f"pretrain.guards.{key} is"):
        GuardsConfig(**{key: value})


@pytest.mark.parametrize(("written", "spelt"), [("6.0", "6"), ("25%", "0.25"), (" 1/4 ", "0.25"), ("1/3", "1/3")])
def test_equal_settings_have_one_spelling(written, spelt):
    assert GuardsConfig(deviations=written).deviations == spelt
