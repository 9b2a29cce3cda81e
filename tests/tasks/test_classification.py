"""Classification: what can be told is told, what cannot is not, and nothing is said without its baselines."""

import json
import random

import numpy as np
import pytest

from tasks import classification
from tasks.battery import Seen
from tasks.classification import BAG_OF_WORDS, MAJORITY
from tasks.examples import ClassificationConfig, FineTuning
from tasks.finetuning import steps_of
from tasks.results import MODEL, UNTRAINED, Exposure, outcome_of
from tests.tasks import toy

LABELS = {MODEL, UNTRAINED, BAG_OF_WORDS, MAJORITY}
QUICK = FineTuning(epochs=4, learning_rate=0.01)


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return toy.subject(tmp_path_factory.mktemp("store"))


def animal(text: str) -> str:
    return "animal" if "cat" in text or "dog" in text else "thing"


def task_of(folder, labels, fine_tuning=QUICK, **settings) -> classification.Classification:
    texts = toy.texts(len(labels) if isinstance(labels, list) else 400)
    entries = [
        {"text": text, "label": labels[n] if isinstance(labels, list) else labels(text)} for n, text in enumerate(texts)
    ]
    config = ClassificationConfig("toy", toy.jsonl(folder / "toy.jsonl", entries), fine_tuning=fine_tuning, **settings)
    return classification.read(config)


def outcome_of_task(task, subject, exposure=None):
    scores, baselines = toy.scored(task, subject), json.loads(json.dumps(task.baselines()))
    return task.outcome(scores, baselines, Seen(exposure))


def test_classes_that_a_word_tells_are_learnt_by_the_probe_and_by_fine_tuning(tmp_path, subject):
    outcome = outcome_of_task(task_of(tmp_path, animal), subject, Exposure(120, 100, 3))
    assert set(outcome.figures) == {f"{way}_{name}" for way in ("probe", "fine_tuned") for name in ("accuracy", "mcc")}
    assert outcome.main == "fine_tuned_accuracy"
    for metric, row in outcome.figures.items():
        assert set(row) == LABELS
        assert {figure.n for figure in row.values()} == {outcome.counts["test"]}
        assert all(figure.low <= figure.value <= figure.high for figure in row.values())
        least = 0.95 if "accuracy" in metric else 0.9
        assert row[MODEL].value >= least and row[BAG_OF_WORDS].value >= least and row[UNTRAINED].value > 0.5
    assert outcome.figures["probe_mcc"][MAJORITY].value == 0
    assert outcome.exposure == Exposure(120, 100, 3)
    assert outcome_of(json.loads(json.dumps(outcome.as_json()))) == outcome


def test_shuffled_classes_stay_at_the_level_of_chance(tmp_path, subject):
    labels = [animal(text) for text in toy.texts(400)]
    random.Random(3).shuffle(labels)
    outcome = outcome_of_task(task_of(tmp_path, labels, FineTuning(epochs=1, learning_rate=0.003)), subject)
    for way in ("probe", "fine_tuned"):
        for label in (MODEL, UNTRAINED, BAG_OF_WORDS):
            figure = outcome.figures[f"{way}_mcc"][label]
            assert abs(figure.value) < 0.25 and figure.low < 0 < figure.high, (way, label, figure)


def test_the_same_seeds_give_the_same_answers_whatever_was_drawn_before(tmp_path, subject):
    import torch

    task = task_of(tmp_path, animal, FineTuning(epochs=1), max_train=60, max_test=40)
    first = task.score(subject, lambda amount: None)
    torch.rand(7)
    before = torch.random.get_rng_state()
    assert task.score(subject, lambda amount: None) == first
    assert torch.equal(torch.random.get_rng_state(), before)  # and nothing that is drawn later changes
    assert first["fine_tuned"][0] != first["fine_tuned"][1] or first["fine_tuned"][1] != first["fine_tuned"][2]


def test_the_bar_ends_where_it_should(tmp_path, subject):
    task = task_of(tmp_path, animal, FineTuning(epochs=2), max_train=50, max_test=30)
    steps: list[int] = []
    task.score(subject, steps.append)
    assert sum(steps) == pytest.approx(task.size(subject), rel=0.05)
    assert steps_of(100, 10, FineTuning(epochs=2)) == 2 * (3 * 90 + 10) + 10


def test_a_text_beyond_the_context_is_cut_and_counted(tmp_path):
    small = toy.subject(tmp_path / "store", length=8)
    task = task_of(tmp_path, animal, FineTuning(enabled=False), max_train=60, max_test=40)
    outcome = outcome_of_task(task, small)
    assert outcome.counts["cut"] > 50 and outcome.counts[f"cut_{UNTRAINED}"] == outcome.counts["cut"]
    assert any("longer than its context" in remark for remark in outcome.remarks)
    assert set(outcome.figures) == {"probe_accuracy", "probe_mcc"} and outcome.main == "probe_accuracy"


def test_pairs_whose_texts_are_equal_are_told_from_others(tmp_path, subject):
    nouns = random.Random(5)
    entries = []
    for number in range(400):
        first = nouns.choice(toy.NOUNS)
        second = first if number % 2 else nouns.choice([one for one in toy.NOUNS if one != first])
        entries.append(
            {"a": f"the {first} {number}", "b": f"a {second}", "label": "same" if first == second else "other"}
        )
    config = ClassificationConfig(
        "pairs",
        toy.jsonl(tmp_path / "pairs.jsonl", entries),
        text="a",
        pair="b",
        metric="macro_f1",
        fine_tuning=FineTuning(enabled=False),
    )
    outcome = outcome_of_task(classification.read(config), subject)
    row = outcome.figures["probe_macro_f1"]
    assert row[MODEL].value > 0.75 and row[BAG_OF_WORDS].value > 0.95  # |u − v| and u·v say it


def test_a_class_that_train_lacks_counts_as_wrong_and_is_said(tmp_path, subject):
    texts = toy.texts(200)
    train = toy.jsonl(tmp_path / "train.jsonl", [{"text": text, "label": animal(text)} for text in texts[:150]])
    test = [{"text": text, "label": animal(text)} for text in texts[150:190]]
    test += [{"text": text, "label": "new"} for text in texts[190:]]
    config = ClassificationConfig(
        "set", train, toy.jsonl(tmp_path / "test.jsonl", test), fine_tuning=FineTuning(enabled=False)
    )
    outcome = outcome_of_task(classification.read(config), subject)
    figure = outcome.figures["probe_accuracy"][MODEL]
    assert figure.n == 50 and figure.value < 0.801
    assert "mcc" not in str(outcome.metrics) and "probe_macro_f1" in outcome.metrics
    assert any(
        "10 of 50 test examples have a class that no training example has (new)" in one for one in outcome.remarks
    )


def test_the_texts_looked_for_in_training_are_those_of_test(tmp_path):
    task = task_of(tmp_path, animal)
    assert list(task.texts()) == [one.text for one in task.examples.test]
    assert len(np.unique(task.truth)) == 2
