"""Probes and fine-tuning: pooling by hand, texts that fit, steps that are of the whole batch."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks import finetuning
from tasks.agreement import confusion, judged, metric_of
from tasks.finetuning import Classifier, Labelled, _batches, _multiplier, _step
from tasks.probes import Pooled, _shares, bag_of_words, features, one_text, parted, probe, side_by_side, two_texts
from tests.tasks import toy


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return toy.subject(tmp_path_factory.mktemp("store"))


def accuracy(truth, predicted) -> float:
    return float(np.mean(truth == predicted))


# Pooling


def test_a_text_is_the_mean_of_its_ordinary_states_whatever_else_is_asked(subject):
    encoded = subject.encode([*toy.texts(40), "cat"])
    found = features(subject, [one_text(one, subject.length) for one in encoded], 1, lambda amount: None)
    for row, one in zip(found, encoded, strict=True):
        states = subject.states([one.ids])
        np.testing.assert_allclose(row, states[1:-1].mean(0).numpy(), atol=1e-5)


def test_two_texts_stand_in_one_sequence_and_side_by_side(subject):
    first, second = subject.encode(["the cat", "a dog sat"])
    pair = two_texts(first, second, 64)
    assert pair.ids.tolist() == [*first.ids, *second.ids[1:]] and not pair.cut
    states = subject.states([pair.ids]).numpy()
    u, v = states[1 : len(first) - 1].mean(0), states[len(first) : -1].mean(0)
    found = features(subject, [pair], 2, lambda amount: None)
    np.testing.assert_allclose(found[0], np.concatenate([u, v, abs(u - v), u * v]), atol=1e-5)
    assert side_by_side(torch.zeros(4, 3), 2).shape == (2, 12)


def test_what_does_not_fit_is_cut_at_the_end_and_keeps_its_special_tokens(subject):
    first, second = subject.encode(["the cat sat on the mat and the dog", "a log"])
    cut = one_text(first, 6)
    assert cut.cut and cut.ids.tolist() == [2, *first.ids[1:5], 3]
    pair = two_texts(first, second, len(second) + 5)
    assert pair.cut and len(pair.ids) == len(second) + 5
    assert pair.ids.tolist()[-len(second) + 1 :] == second.ids[1:].tolist()  # the longer one gave way


def test_a_text_without_tokens_is_what_its_end_is(subject):
    empty = subject.encode([""])[0]
    found = one_text(empty, 8)
    assert found.ids.tolist() == [2, 3] and found.places.tolist() == [1]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=2), st.integers(0, 60))
def test_the_longer_text_gives_way_first(sizes, room):
    kept = _shares(sizes, room)
    assert sum(kept) == min(room, sum(sizes)) and all(0 <= a <= b for a, b in zip(kept, sizes))
    shorter = [one for one, size in zip(kept, sizes) if size < max(kept)]
    assert all(one == size for one, size in zip(kept, sizes) if one in shorter and size < max(kept))


# The probe


def test_the_probe_learns_what_is_linear_and_chooses_its_penalty_without_test():
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(400, 20)), rng.normal(size=(200, 20))
    labels, truth = ((some[:, 0] > 0).astype(np.int64) for some in (train, test))
    for scale in (1.0, 1000.0):  # features are standardised
        assert accuracy(truth, probe(train * scale, labels, test * scale, 3, accuracy)[0]) > 0.93
    constant = np.c_[train, np.ones(400)]
    assert accuracy(truth, probe(constant, labels, np.c_[test, np.ones(200)], 3, accuracy)[2]) > 0.93


def test_penalties_under_which_nothing_is_told_apart_do_not_end_the_search():
    rng = np.random.default_rng(0)
    labels = (rng.random(400) < 0.2).astype(np.int64)
    small = 0.2 * np.c_[labels - 0.2, rng.normal(size=(400, 3))]  # the first penalties leave the commonest class only

    def mcc(truth, predicted) -> float:
        return float(metric_of("mcc", confusion(truth, predicted, 2)))

    assert mcc(labels, np.array(probe(small, labels, small, 3, mcc, scaled=False)[0])) > 0.8


def test_every_class_of_train_is_held_out_in_part_and_by_the_seed():
    labels = np.array([0] * 50 + [1] * 10 + [2])
    fit, held = parted(labels, 0)
    assert sorted([*fit, *held]) == list(range(61)) and np.bincount(labels[held]).tolist() == [10, 2]
    assert parted(labels, 1)[1].tolist() != held.tolist() and parted(labels, 0)[1].tolist() == held.tolist()


def test_a_bag_of_words_is_learnt_of_few_texts_too():
    test = [["good"], ["bad"]]
    for words in (["good", "bad"], ["good film", "bad film", "good", "bad", "so good", "so bad"]):
        labels = np.array([1, 0] * (len(words) // 2))
        assert bag_of_words([[text] for text in words], labels, test, 3, accuracy) == [[1, 0]] * 3


# Fine-tuning


def labelled(subject, number: int) -> Labelled:
    sequences = [one_text(one, subject.length) for one in subject.encode(toy.texts(number))]
    return Labelled(sequences, [np.array([n % 3]) for n in range(number)])


def test_a_step_is_the_same_in_one_pass_and_in_several(subject, monkeypatch):
    batch, after = labelled(subject, 24), []
    first = Classifier(subject.trainable(), subject.width, 3, 0, torch.device("cpu"))
    monkeypatch.setattr(finetuning, "DROPOUT", 0.0)
    for positions in (8192, 60):
        model = copy.deepcopy(first)
        monkeypatch.setattr(
            finetuning, "groups", lambda lengths, p=positions: __import__("tasks.subjects").subjects.groups(lengths, p)
        )
        _step(model, batch, torch.optim.SGD(model.parameters(), lr=0.1))
        after.append(model.state_dict())
    for name, value in after[0].items():
        torch.testing.assert_close(value, after[1][name], atol=1e-5, rtol=1e-5)


def test_every_sequence_comes_once_an_epoch_in_an_order_of_the_seed(subject):
    some = labelled(subject, 70)
    orders = [
        [one for batch in _batches(some, seed, epoch, 8) for one in batch] for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert all(sorted(order) == list(range(70)) for order in orders)
    assert orders[0] != orders[1] != orders[2] and orders[0] != orders[2]


def test_the_learning_rate_goes_up_and_down():
    rates = [_multiplier(step, 100) for step in range(100)]
    assert rates[9] == rates[10] == 1.0 and rates[0] == 0.1 and rates[-1] == pytest.approx(1 / 90)
    assert _multiplier(0, 1) == 1.0


def test_the_subject_itself_learns_nothing(subject):
    before = {name: value.clone() for name, value in subject.model.state_dict().items()}
    settings = finetuning.FineTuning(epochs=1)
    some = labelled(subject, 30)
    finetuning.fine_tune(subject, some, some.sequences, 3, 0, settings, accuracy, lambda amount: None)
    assert all(torch.equal(value, before[name]) for name, value in subject.model.state_dict().items())
    assert not subject.model.training


# Figures


def test_metrics_are_those_of_scikit_learn():
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    rng = np.random.default_rng(1)
    for classes in (2, 5):
        truth, predicted = rng.integers(0, classes, 300), rng.integers(0, classes, 300)
        found = confusion(truth, predicted, classes)
        assert metric_of("accuracy", found) == pytest.approx(accuracy_score(truth, predicted))
        assert metric_of("macro_f1", found) == pytest.approx(f1_score(truth, predicted, average="macro"))
        if classes == 2:
            assert metric_of("mcc", found) == pytest.approx(matthews_corrcoef(truth, predicted))


def test_an_interval_covers_the_truth_of_other_test_sets_and_other_seeds():
    """Ability differs by seed (sd 0.03) and a test set is of 200: 19 of 20 intervals should hold 0.7."""
    rng, inside = np.random.default_rng(2), 0
    for _ in range(60):
        abilities = np.clip(0.7 + 0.03 * rng.normal(size=3), 0, 1)
        right = rng.random(200)[None] < abilities[:, None]  # the same examples are hard for all seeds
        figure = judged(("accuracy",), np.ones(200, int), right.astype(int), 2)[0]["accuracy"]
        inside += figure.low <= 0.7 <= figure.high
    assert inside >= 55


def test_units_that_hang_together_make_an_interval_wider():
    rng = np.random.default_rng(3)
    right = np.repeat(rng.random(50) < 0.7, 20).astype(int)[None]
    words, sentences = (
        judged(("accuracy",), np.ones(1000, int), right, 2, units)[0]["accuracy"]
        for units in (None, np.repeat(np.arange(50), 20))
    )
    assert words.value == sentences.value
    assert sentences.high - sentences.low > 3 * (words.high - words.low)


def test_pooled_groups_may_share_tokens():
    from tasks.probes import pool

    states = torch.arange(8.0).reshape(4, 2)
    shared = Pooled(np.array([2, 7, 8, 3]), np.array([1, 2, 2]), np.array([0, 0, 1]), 2)
    assert pool(states, [shared]).tolist() == [[3.0, 4.0], [4.0, 5.0]]
