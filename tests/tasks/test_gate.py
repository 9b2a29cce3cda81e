"""The rule: evidence in, decision out. pytest tests/tasks/test_gate.py"""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import gate
from tasks.gate import BITS, NATS, Evidence, Rule, Sums, decide, first, opposite

NONE = Sums((), (), np.zeros(0, np.int64), np.zeros(0))
RULE = Rule(tolerance=0.1, class_tokens=1000)


def sums(per_unit, n, group=None, prefix="d"):
    n = np.full(len(per_unit), n)
    names = tuple(f"{prefix}{number}" for number in range(len(per_unit)))
    return Sums(names if group is None else (group,) * len(names), names, n, np.array(per_unit, float) * n)


def model(name, nats, test="t", classes=None, bits=None, **more):
    """nats: a masked cross-entropy for each document; bits: bits per byte for each passage."""
    return Evidence(
        pretrain=name,
        vocabulary="v",
        test=test,
        rate="0.3",
        documents=sums(nats, 100) if nats is not None else NONE,
        classes=sums(classes, 2000, "by source", "source ") if classes is not None else NONE,
        passages=sums(bits, 50, prefix="p") if bits is not None else NONE,
        **more,
    )


HARD = np.random.default_rng(0).normal(4, 1, 60)
"""Masked cross-entropy of documents: they differ more than any two models do."""
NOISE = np.random.default_rng(1).normal(0, 0.1, 60)
OLD = model("old", HARD, classes=[4.0, 4.0])


def test_better_on_most_documents_is_better_although_documents_differ_far_more():
    said = decide(model("new", HARD - 0.1 + NOISE, classes=[3.9, 3.9]), OLD, RULE, "version 1")
    assert said.promoted and (said.kind, said.measure) == (gate.BETTER, NATS)
    assert said.low < said.difference < said.high < 0 and said.units == 60 and said.n == 6000
    assert said.verdict.startswith(f"CHAMPION: {said.value:.3f} nats, {-said.difference:.3f} below version 1 (95 % int")


@pytest.mark.parametrize("shift", [0.0, 0.3, -0.005])
def test_as_good_worse_or_not_surely_better_is_not_better(shift):
    noise = NOISE - NOISE.mean()
    said = decide(model("new", HARD + shift + noise, classes=[4.0, 4.0]), OLD, RULE)
    assert not said.promoted and said.kind == gate.NOT_BETTER and said.high > 0
    assert said.verdict.startswith("not better: ")


def test_the_same_model_is_not_better_than_itself():
    assert not decide(OLD, OLD, RULE).promoted


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=3), st.integers(0, 2**32 - 1))
def test_no_three_models_beat_each_other_in_a_circle(shifts, seed):
    noise = np.random.default_rng(seed).normal(0, 0.3, (3, 60))
    one, two, three = (model(str(k), HARD + shifts[k] + noise[k], classes=[4.0]) for k in range(3))
    beats = [decide(*pair, RULE).promoted for pair in ((one, two), (two, three), (three, one))]
    assert not all(beats)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_never_is_each_of_two_better_than_the_other(seed):
    a, b = np.random.default_rng(seed).normal(4, 0.5, (2, 30))
    one, two = model("a", a, classes=[4.0]), model("b", b, classes=[4.0])
    assert not (decide(one, two, RULE).promoted and decide(two, one, RULE).promoted)


def test_a_class_of_tokens_that_is_much_worse_keeps_the_champion():
    new = model("new", HARD - 0.2, classes=[3.5, 4.15])
    said = decide(new, OLD, RULE, "version 1")
    assert not said.promoted and said.kind == gate.WORSE_IN_PART
    assert "+0.150 nats against version 1 by source, source 1 (n 2,000)" in said.reason
    assert [part.worse for part in said.parts] == [False, True]
    assert decide(new, OLD, replace(RULE, tolerance=0.2)).promoted
    assert decide(new, OLD, replace(RULE, class_tokens=2001)).promoted
    assert not decide(replace(new, classes=sums([3.5, np.nan], 2000, "by source", "source ")), OLD, RULE).promoted


def test_classes_that_are_not_the_same_tokens_are_no_evidence():
    other = replace(OLD, classes=sums([4.0, 4.0], 1999, "by source", "source "))
    said = decide(model("new", HARD - 0.2, classes=[3.8, 3.8]), other, RULE, "version 1")
    assert (
        not said.promoted and said.kind == gate.NOT_COMPARED and "not all classes of tokens of version 1" in said.reason
    )


def test_documents_may_come_in_any_order():
    was = OLD.documents
    back = Sums(was.groups[::-1], was.names[::-1], was.n, was.loss[::-1])
    new = model("new", HARD - 0.1 + NOISE, classes=[3.9, 3.9])
    one, two = decide(new, OLD, RULE), decide(new, replace(OLD, documents=back), RULE)
    assert (one.promoted, one.low, one.high) == (two.promoted, two.low, two.high)


@pytest.mark.parametrize("copies", [{"equal": 1, "near": 0}, {"near": 2}, {"unknown": "its corpus is gone"}])
def test_who_has_seen_the_test_set_is_refused_by_name(copies):
    new = model("new", HARD - 1, classes=[3.0, 3.0], copies=copies | {"examples": ["ab12"]})
    said = decide(new, OLD, RULE)
    assert not said.promoted and said.kind == gate.SAW_TEST_SET
    assert ("ab12" in said.reason) or ("its corpus is gone" in said.reason)


def test_across_vocabularies_bits_per_byte_over_the_same_passages_decide():
    bits = np.linspace(1, 3, 40)
    old = model("old", None, test="other", bits=bits)
    new = model("new", HARD, bits=bits - 0.05)
    said = decide(new, old, RULE)
    assert said.promoted and said.measure == BITS and said.difference == pytest.approx(-0.05) and not said.parts
    assert "bits" in said.reason
    assert not decide(replace(new, passages=old.passages), old, RULE).promoted
    said = decide(new, replace(old, changes_text=True), RULE, "version 1")
    assert said.kind == gate.NOT_COMPARED and "version 1 does not keep texts" in said.reason


def test_a_passage_that_one_model_cannot_read_counts_for_neither():
    bits = np.linspace(1, 3, 40)
    holes = bits.copy()
    holes[::2] = np.nan
    said = decide(model("new", HARD, bits=bits - 0.05), model("old", None, test="other", bits=holes), RULE)
    assert said.units == 20 and said.n == 20 * 50 and said.difference == pytest.approx(-0.05)


@pytest.mark.parametrize("documents", [1, 5, 6])
def test_a_few_documents_say_nothing(documents):
    some = HARD[:documents]
    said = decide(model("new", some - 1, classes=[3.0]), model("old", some, classes=[4.0]), RULE)
    assert said.promoted == (documents >= gate.LEAST)
    assert said.promoted or (said.kind == gate.NOT_COMPARED and f"{documents} documents" in said.reason)


def test_a_missing_champion_is_no_comparison():
    none = decide(model("new", HARD), None, RULE, "version 1", "version 1 was registered without scores")
    assert none.verdict == "not compared: version 1 was registered without scores"


def test_the_first_version_is_champion_without_comparison():
    said = first(OLD, RULE)
    assert said.promoted and said.verdict == f"CHAMPION: first version, {OLD.nats:.3f} nats"
    assert first(None, RULE).promoted


def test_the_opposite_is_what_was_measured_on_the_same_test_set_and_of_the_champion_of_now():
    mine = {"test": model("new", HARD, bits=[1.0, 2.0])}
    beside = model("old", HARD + 1, bits=[1.0, 2.0])
    own = model("old", HARD + 2, bits=[1.0, 2.0])
    assert opposite(mine | {"champion": beside}, {"test": own}, "old") is beside
    assert opposite(mine | {"champion": replace(beside, pretrain="another")}, {"test": own}, "old") is own
    assert opposite(mine | {"champion": beside}, {"test": replace(own, test="u")}, "old") is beside
    assert opposite(mine, {"test": replace(own, test="u", passages=NONE)}, "old") is None
    assert opposite(mine, {}, "old") is None and opposite({}, {"test": own}, "old") is None
    assert opposite(mine, {"test": own}, "another") is None
    strange = replace(own, test="u", documents=NONE)
    assert opposite(mine, {"test": strange}, "old") is strange  # passages in common
    assert opposite(mine, {"test": replace(strange, passages=sums([1.0], 50, prefix="q"))}, "old") is None


def test_a_decision_is_plain_json():
    said = decide(model("new", HARD - 0.1, classes=[3.9, 3.9]), OLD, RULE)
    page = json.loads(json.dumps(said.as_json(), allow_nan=False))
    assert page["rule"] == {"tolerance": 0.1, "class_tokens": 1000} and page["parts"][0]["n"] == 2000
    assert page["verdict"] == said.verdict
