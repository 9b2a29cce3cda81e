"""Classes of texts: what the states of a frozen encoder tell of them, and what the encoder learns to tell.

Every model has the same examples, seeds and ways. Beside it stand the untrained encoder, treated alike; the words and
pairs of words of a text with the same probe; and the commonest class of train. A text that is longer than the context
is cut at its end, of a pair the longer one first, and counted: so the model would be used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .agreement import TITLES, confusion, judged, metric_of
from .battery import Advance, Seen, Task
from .examples import ClassificationConfig, ExampleSet, read_examples
from .finetuning import Labelled, fine_tune, steps_of
from .labelled_files import Example
from .probes import Metric, Pooled, bag_of_words, features, one_text, probe, two_texts
from .results import BASELINE, MODEL, Figure, Outcome, name_of
from .results import Metric as Meaning
from .subjects import Subject

BAG_OF_WORDS, MAJORITY = BASELINE + "bag_of_words", BASELINE + "majority"
WAYS = {"probe": "linear probe, frozen", "fine_tuned": "fine-tuned", "neighbours": "nearest neighbours, frozen"}
"""How a model is asked -> how a report calls that."""
SEEDS_SAID = (
    "Means over {seeds} seeds. An interval holds both what another test set and what other seeds would change. A seed "
    "changes the training examples that the probe's penalty is chosen on{more}."
)


def read(config: ClassificationConfig) -> Classification:
    """The task of a set. Raises UsageError as `read_examples`."""
    return Classification(config, read_examples(config))


class Classification(Task):
    """One set of texts, or pairs of texts, with classes."""

    def __init__(self, config: ClassificationConfig, examples: ExampleSet) -> None:
        self.config, self.examples, self.name = config, examples, config.name
        index = {label: number for number, label in enumerate(examples.labels)}
        self.train_labels, self.truth = (
            np.array([index[one.label] for one in some], np.int64) for some in (examples.train, examples.test)
        )
        self.known = len(set(self.train_labels.tolist()))
        """Classes that a model can name; those behind them stand in test only."""
        paired = {len(one.texts) for one in (*examples.train, *examples.test)}
        self.parts = max(paired)
        two = self.known == len(examples.labels) == 2
        self.metrics: tuple[str, ...] = ("accuracy", "mcc") if two else ("accuracy", "macro_f1")
        if config.metric not in self.metrics:
            self.metrics = (*self.metrics, config.metric)

    def texts(self) -> Iterable[str]:
        return ("\n".join(one.texts) for one in self.examples.test)

    def size(self, subject: Subject) -> int:
        train, test = len(self.examples.train), len(self.examples.test)
        tuned = steps_of(train, test, self.config.fine_tuning) if self.config.fine_tuning.enabled else 0
        return train + test + self.config.seeds * tuned

    def score(self, subject: Subject, advance: Advance) -> dict[str, Any]:
        """The predicted class of every test example, for each way and seed, and how many texts were cut."""
        train, test = (self._sequences(subject, some) for some in (self.examples.train, self.examples.test))
        found: dict[str, Any] = {"cut": sum(one.cut for one in (*train, *test))}
        train_EF, test_EF = (features(subject, some, self.parts, advance) for some in (train, test))
        found["probe"] = probe(train_EF, self.train_labels, test_EF, self.config.seeds, self._metric())
        if self.config.fine_tuning.enabled:
            labelled = Labelled(train, list(self.train_labels[:, None]), self.parts)
            given = (self.config.fine_tuning, self._metric(), advance)
            found["fine_tuned"] = [
                fine_tune(subject, labelled, test, self.known, seed, *given).tolist()
                for seed in range(self.config.seeds)
            ]
        return found

    def baselines(self) -> dict[str, Any]:
        train, test = ([one.texts for one in some] for some in (self.examples.train, self.examples.test))
        return {"bag_of_words": bag_of_words(train, self.train_labels, test, self.config.seeds, self._metric())}

    def outcome(self, scores: Mapping[str, Mapping[str, Any]], baselines: Mapping[str, Any], seen: Seen) -> Outcome:
        commonest = int(np.bincount(self.train_labels).argmax())
        always = {
            BAG_OF_WORDS: baselines["bag_of_words"],
            MAJORITY: [[commonest] * len(self.truth)],
        }
        ways = [way for way in WAYS if way in next(iter(scores.values()))]
        answers = {way: {**{label: of[way] for label, of in scores.items()}, **always} for way in ways}
        meanings, figures, by_seed = tabled(
            self.metrics, answers, lambda answer: judged(self.metrics, self.truth, answer, len(self.examples.labels))
        )
        cut = {label: of["cut"] for label, of in scores.items() if of["cut"]}
        counts = dict(self.examples.counts)
        counts |= {"cut" if label == MODEL else f"cut_{label}": number for label, number in cut.items()}
        remarks = [seeds_said(self.config.seeds, "fine_tuned" in ways), *self._remarks(cut)]
        return Outcome(
            task=self.name,
            kind="classification",
            title=self.name,
            main=f"{ways[-1]}_{self.config.metric}",
            metrics=meanings,
            figures=figures,
            counts=counts,
            remarks=tuple(remarks),
            details={"classes": self._classes(), "by_seed": by_seed},
            exposure=seen.exposure,
        )

    def _remarks(self, cut: Mapping[str, int]) -> Iterable[str]:
        number = len(self.examples.train) + len(self.examples.test)
        for label, some in cut.items():
            yield f"{name_of(label)}: {some} of {number} texts are longer than its context and were cut at the end."
        if self.examples.unseen:
            unseen = ", ".join(self.examples.labels[self.known :])
            yield (
                f"{self.examples.unseen} of {len(self.truth)} test examples have a class that no training example has "
                f"({unseen}); they count as wrong for every model."
            )

    def _classes(self) -> dict[str, dict[str, int]]:
        train, test = (Counter(one.label for one in some) for some in (self.examples.train, self.examples.test))
        return {label: {"train": train[label], "test": test[label]} for label in self.examples.labels}

    def _metric(self) -> Metric:
        return lambda truth, predicted: float(metric_of(self.config.metric, confusion(truth, predicted, self.known)))

    def _sequences(self, subject: Subject, some: Sequence[Example]) -> list[Pooled]:
        first = subject.encode([one.text for one in some])
        if self.parts == 1:
            return [one_text(one, subject.length) for one in first]
        second = subject.encode([one.pair for one in some])
        return [two_texts(*both, subject.length) for both in zip(first, second, strict=True)]


Judge = Callable[[Any], tuple[dict[str, Figure], dict[str, list[float]]]]


def tabled(
    names: Sequence[str], answers: Mapping[str, Mapping[str, Any]], judge: Judge, of: str = "examples"
) -> tuple[dict[str, Meaning], dict[str, dict[str, Figure]], dict[str, Any]]:
    """Of answers by way and label: the metrics of an outcome, its figures, and the values of every seed.

    An answer that stands under several ways is judged once.
    """
    done: dict[int, tuple[dict[str, Figure], dict[str, list[float]]]] = {}
    meanings: dict[str, Meaning] = {}
    figures: dict[str, dict[str, Figure]] = {}
    by_seed: dict[str, Any] = {}
    for way, by_label in answers.items():
        for label, answer in by_label.items():
            if id(answer) not in done:
                done[id(answer)] = judge(answer)
            found, values = done[id(answer)]
            for name in names:
                key = f"{way}_{name}"
                plain = TITLES[name]
                meanings[key] = Meaning(f"{plain.title} ({WAYS[way]})", plain.unit, plain.better, of)
                figures.setdefault(key, {})[label] = found[name]
                by_seed.setdefault(key, {})[label] = values[name]
    return meanings, figures, by_seed


def seeds_said(seeds: int, fine_tuned: bool) -> str:
    """What the seeds and the intervals are."""
    more = ", and in fine-tuning those the epoch is chosen on, the order, the head's first values and dropout"
    return SEEDS_SAID.format(seeds=seeds, more=more if fine_tuned else "")
