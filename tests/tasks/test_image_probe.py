"""What states tell of labels: from features that are known."""

from dataclasses import replace

import numpy as np
import pytest

from tasks import image_probe
from tasks.agreement import apart
from tasks.artifacts import Store
from tasks.battery import Seen
from tasks.codebook import nearest, patches_of
from tasks.errors import UsageError
from tasks.image_probe import BAG_OF_CODES, PIXELS, Probe
from tasks.image_settings import ProbeConfig
from tasks.report_words import BETTER, EVEN, WORSE, beats
from tasks.results import CHAMPION, MODEL, UNTRAINED, Figure, Metric, Outcome
from tests.tasks import drawn_images, small_images

CONFIG = ProbeConfig(train=120, seeds=3, neighbours=5)


class Told:
    """Its states are a function of the pixels."""

    shape = (small_images.SIDE, small_images.SIDE, 1)

    def __init__(self, states):
        self.states_of = states

    def states(self, pixels, advance=lambda images: None):
        advance(len(pixels))
        return self.states_of(pixels).astype(np.float32)


def orientation(pixels):
    """Which way the bar lies, plainly to be seen."""
    whole = pixels[..., 0].astype(float)
    return np.stack([whole.mean(1).std(1), whole.mean(2).std(1), whole.mean((1, 2))], axis=1)


def noise(pixels):
    return np.random.default_rng(0).normal(size=(len(pixels), 8))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("probe"))
    corpus = small_images.corpus(store, 400)
    words = small_images.codebook(store, corpus)
    return corpus, words, small_images.shards(store, corpus, words)


@pytest.fixture(scope="module")
def outcome(made):
    task = Probe(CONFIG, made[0], made[2])
    scores = {
        MODEL: task.score(Told(orientation), lambda images: None),
        UNTRAINED: task.score(Told(noise), lambda images: None),
    }
    return task.outcome(scores, task.baselines(), Seen())


def test_states_that_tell_the_label_have_it_always_and_noise_is_as_good_as_the_majority(outcome):
    for way in ("probe_accuracy", "neighbours_accuracy"):
        by_label = outcome.figures[way]
        assert by_label[MODEL].value == 1 and by_label[MODEL].n == 40
        lone = by_label[UNTRAINED]
        assert lone.low <= by_label["baseline_majority"].value <= lone.high
    assert outcome.figures["probe_accuracy"][BAG_OF_CODES].value < 0.8  # as many bright patches either way
    assert outcome.counts == {"train": 120, "test": 40, "labels": 2}


def test_the_difference_to_untrained_and_to_the_bag_of_codes_is_said_with_its_interval(outcome):
    for label in (UNTRAINED, BAG_OF_CODES):
        ahead = outcome.details["ahead"][label]
        figures = outcome.figures["probe_accuracy"]
        assert ahead["value"] == pytest.approx(figures[MODEL].value - figures[label].value)
        assert 0 < ahead["low"] < ahead["value"] < ahead["high"]
    assert outcome.remarks[0].startswith("The model's probe beats that of the untrained encoder by ")
    assert outcome.remarks[1].startswith("The model's probe beats that of the bag of codes by ")
    assert any("not measured" in remark for remark in outcome.remarks)


def test_a_champion_of_other_images_costs_its_own_figures_only(made):
    other = Told(orientation)
    other.shape = (28, 28, 3)
    task = Probe(CONFIG, made[0], None)
    scores = {
        MODEL: task.score(Told(orientation), lambda images: None),
        CHAMPION: task.score(other, lambda images: None),
    }
    outcome = task.outcome(scores | {UNTRAINED: scores[MODEL]}, task.baselines(), Seen())
    assert scores[CHAMPION] == {} and CHAMPION not in outcome.figures["probe_accuracy"]
    assert outcome.remarks[-1] == "Nothing is said of the champion before: it reads images of another shape."


def test_a_difference_that_may_be_none_is_no_victory():
    assert image_probe.said(UNTRAINED, Figure(0.02, 100, -0.01, 0.05)) == (
        "The model's probe does not beat that of the untrained encoder: +2.0 points (−1.0 to +5.0), image by image."
    )


def test_a_paired_difference_is_surer_than_two_intervals_and_agrees_with_drawing_anew():
    generator = np.random.default_rng(1)
    truth = generator.integers(0, 2, 500)
    hard = generator.random(500) < 0.3
    worse = hard | (generator.random(500) < 0.05)
    first, second = (np.where(wrong, 1 - truth, truth) for wrong in (hard, worse))
    found = apart(truth, [first], [second])
    right = (first == truth).astype(float) - (second == truth)
    drawn = right[generator.integers(0, 500, (4000, 500))].mean(1)
    assert found.value == pytest.approx(right.mean())
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.004)
    seeds = apart(truth, [first, second, first], [second] * 3)
    assert seeds.high - seeds.low > found.high - found.low


def test_the_same_images_are_asked_again_and_no_more_than_wanted(made):
    ours, again = (Probe(CONFIG, made[0], made[2]).images for _ in range(2))
    for split in ("train", "test"):
        assert np.array_equal(ours[split].index_E, again[split].index_E)
        images, labels = small_images.bars(400)
        number = np.flatnonzero([drawn_images.split_of(one) == split for one in range(400)])[ours[split].index_E]
        assert np.array_equal(ours[split].pixels_EHWC, images[number])
        names = Probe(CONFIG, made[0], made[2]).classes
        assert [names[one] for one in ours[split].label_E] == [labels[one] for one in number]
    assert len(ours["train"].index_E) == 120


def test_codes_are_those_of_the_images_that_are_asked(made):
    corpus, words, rows = made
    task, codes_KP = Probe(CONFIG, corpus, rows), np.load(words.path("codebook.npy"))
    for split, some in task.images.items():
        patches = patches_of(some.pixels_EHWC, small_images.PATCH)
        ids = 5 + nearest(patches.reshape(-1, codes_KP.shape[1]), codes_KP).reshape(len(patches), -1)
        assert np.array_equal(image_probe.codes_of(rows, split, some.index_E), ids)
        assert (image_probe.histograms(ids, 64)[:, 5] ** 2).round().tolist() == (ids == 5).sum(1).tolist()


def test_large_images_are_averaged_over_squares_and_small_ones_left(made):
    images = np.random.default_rng(0).integers(0, 256, (3, 33, 40, 3)).astype(np.uint8)
    found = image_probe.reduced(images).reshape(3, 17, 20, 3)
    assert found[1, 2, 3] == pytest.approx(images[1, 4:6, 6:8].mean((0, 1)), rel=1e-5)
    assert found[2, 16, 19] == pytest.approx(images[2, 32:, 38:].mean((0, 1)), rel=1e-5)
    small = images[:, :8, :8]
    assert np.array_equal(image_probe.reduced(small), small.reshape(3, -1))


def test_without_shards_there_is_no_bag_of_codes_and_pixels_stay(made):
    assert set(Probe(CONFIG, made[0], None).baselines()) == {PIXELS}


@pytest.mark.parametrize("labels", [["a"] * 100, [None] * 96 + ["a", "b"] * 2])
def test_too_few_labels_are_a_reason_and_no_crash(tmp_path, labels):
    images, _ = small_images.bars(100)
    task = Probe(CONFIG, drawn_images.corpus(Store(tmp_path), images, labels=labels), None)
    with pytest.raises(UsageError, match="two labels"):
        task.size(None)


def test_a_label_that_train_lacks_counts_as_wrong_and_is_named(tmp_path):
    images, labels = small_images.bars(200)
    odd = ["odd" if drawn_images.split_of(one) == "test" and one % 3 else label for one, label in enumerate(labels)]
    task = Probe(CONFIG, drawn_images.corpus(Store(tmp_path), images, labels=odd), None)
    scores = {MODEL: task.score(Told(orientation), lambda images: None)}
    outcome = task.outcome(scores, task.baselines(), Seen())
    known = np.mean([label != "odd" for one, label in enumerate(odd) if drawn_images.split_of(one) == "test"])
    assert outcome.figures["probe_accuracy"][MODEL].value == pytest.approx(known)
    assert any("No train image has the label odd" in remark for remark in outcome.remarks)


def test_a_difference_image_by_image_is_surer_than_two_intervals_that_overlap():
    metric = Metric("accuracy", "%", "higher", "images")
    row = {MODEL: Figure(0.45, 526, 0.406, 0.49), BAG_OF_CODES: Figure(0.376, 526, 0.335, 0.42)}
    one = Outcome("probe", "probe", "Labels", "accuracy", {"accuracy": metric}, {"accuracy": row})
    assert beats(one, MODEL, BAG_OF_CODES) == EVEN
    for low, high, how in ((0.024, 0.12, BETTER), (-0.01, 0.15, EVEN), (-0.2, -0.1, WORSE)):
        ahead = {"ahead": {BAG_OF_CODES: vars(Figure(0.07, 526, low, high))}}
        assert beats(replace(one, details=ahead), MODEL, BAG_OF_CODES) == how
