"""Parts of speech: what the states of a frozen encoder tell of words, and what the encoder learns to tell.

A sentence is read as it is written, and a word is the tokens that share a character with it: the mean of their states.
A token that spans two words ("don't" as one token) tells of both. Words that a model's context does not reach, or
that its tokenizer has no token for, are left out of the figures of all models, so that all have the same n.

Beside the model stand the untrained encoder, treated alike; the commonest tag of each word form in train (for one that
train lacks, the commonest tag of all), which an encoder has to beat to show that it reads the context; and that
commonest tag alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .agreement import confusion, judged, metric_of
from .battery import Advance, Seen, Task
from .bootstrap import ratio_interval
from .classification import MAJORITY, WAYS, seeds_said, tabled
from .errors import UsageError
from .examples import TaggingConfig
from .finetuning import Labelled, fine_tune, steps_of
from .probes import Pooled, features, probe
from .results import BASELINE, Figure, Metric, Outcome, Table
from .subjects import Encoded, Subject
from .treebank import Sentence, Treebank, read_treebank

WORD_FORM = BASELINE + "word_form"
MISSING = -1
"""Stands for the tag of a word that a model cannot be asked about."""


def read(config: TaggingConfig) -> Tagging:
    """The task of a treebank. Raises UsageError as `read_treebank`."""
    return Tagging(config, read_treebank(config))


class Tagging(Task):
    """One treebank."""

    def __init__(self, config: TaggingConfig, treebank: Treebank) -> None:
        self.config, self.treebank, self.name = config, treebank, config.name
        index = {tag: number for number, tag in enumerate(treebank.tags)}
        self.train_tags, self.test_tags = (
            [np.array([index[word.tag] for word in one.words], np.int64) for one in some]
            for some in (treebank.train, treebank.test)
        )
        self.truth = np.concatenate(self.test_tags)
        self.sentence = np.repeat(np.arange(len(self.test_tags)), [len(some) for some in self.test_tags])
        self.known = len(np.unique(np.concatenate(self.train_tags)))

    def texts(self) -> Iterable[str]:
        return (one.text for one in self.treebank.test)

    def size(self, subject: Subject) -> int:
        train, test = len(self.treebank.train), len(self.treebank.test)
        tuned = steps_of(train, test, self.config.fine_tuning) if self.config.fine_tuning.enabled else 0
        return train + test + self.config.seeds * tuned

    def score(self, subject: Subject, advance: Advance) -> dict[str, Any]:
        """The predicted tag of every test word, for each way and seed; −1 where the model cannot be asked."""
        train, train_kept = _sequences(subject, self.treebank.train)
        test, test_kept = _sequences(subject, self.treebank.test)
        train_tags = [tags[kept] for tags, kept in zip(self.train_tags, train_kept, strict=True)]
        labels, reached = np.concatenate(train_tags), np.concatenate(test_kept)
        if len(np.unique(labels)) < 2 or not reached.any():
            raise UsageError(
                f"evaluation set {self.name}: the context of {subject.label}, {subject.length} tokens, reaches too few "
                "words; leave the set out for this model."
            )

        def spread(predicted: Any) -> list[int]:
            whole = np.full(len(reached), MISSING)
            whole[reached] = predicted
            return whole.tolist()

        train_EF, test_EF = (features(subject, some, 1, advance) for some in (train, test))
        frozen = probe(train_EF, labels, test_EF, self.config.seeds, self._accuracy)
        found: dict[str, Any] = {"probe": [spread(one) for one in frozen]}
        if self.config.fine_tuning.enabled:
            labelled = Labelled(train, train_tags)
            given = (self.config.fine_tuning, self._accuracy, advance)
            found["fine_tuned"] = [
                spread(fine_tune(subject, labelled, test, self.known, seed, *given))
                for seed in range(self.config.seeds)
            ]
        return found

    def _accuracy(self, truth: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
        return float(metric_of("accuracy", confusion(truth, predicted, self.known)))

    def outcome(self, scores: Mapping[str, Mapping[str, Any]], baselines: Mapping[str, Any], seen: Seen) -> Outcome:
        ways = [way for way in WAYS if way in next(iter(scores.values()))]
        kept = np.all([np.array(of[way]) != MISSING for of in scores.values() for way in ways], axis=(0, 1))
        if not kept.any():
            raise UsageError(f"evaluation set {self.name}: no word can be read by every model; leave the set out.")
        always = {label: [tags] for label, tags in self._without_models().items()}
        answers = {way: {**{label: of[way] for label, of in scores.items()}, **always} for way in ways}
        units = np.unique(self.sentence[kept], return_inverse=True)[1]

        def judge(answer: Any) -> tuple[dict[str, Figure], dict[str, list[float]]]:
            predicted_SN = np.array(answer)[:, kept]
            return judged(("accuracy",), self.truth[kept], predicted_SN, len(self.treebank.tags), units)

        metrics, figures, by_seed = tabled(("accuracy",), answers, judge, "words")
        left_out = int((~kept).sum())
        remarks = [seeds_said(self.config.seeds, "fine_tuned" in ways)]
        if left_out:
            remarks.append(
                f"{left_out} of {len(kept)} test words lie beyond a model's context or have no token of their own; "
                "they are left out for all models."
            )
        if self.treebank.unseen:
            unseen = ", ".join(self.treebank.tags[self.known :])
            remarks.append(
                f"{self.treebank.unseen} test words have a tag that no training word has ({unseen}); wrong for all."
            )
        return Outcome(
            task=self.name,
            kind="tagging",
            title=self.name,
            main=f"{ways[-1]}_accuracy",
            metrics=metrics,
            figures=figures,
            tables=(self._unknown(answers[ways[-1]], kept, ways[-1]), self._by_tag(answers[ways[-1]], kept, ways[-1])),
            counts=self.treebank.counts | ({"words_left_out": left_out} if left_out else {}),
            remarks=tuple(remarks),
            details={"by_seed": by_seed},
            exposure=seen.exposure,
        )

    def _without_models(self) -> dict[str, list[int]]:
        """Tags of the test words by label: of the word's form, and the commonest one."""
        of_form: dict[str, Counter[int]] = {}
        for one, tags in zip(self.treebank.train, self.train_tags, strict=True):
            for word, tag in zip(one.words, tags.tolist(), strict=True):
                of_form.setdefault(word.form, Counter())[tag] += 1
        whole = Counter(np.concatenate(self.train_tags).tolist())
        # Of two that are as common the first in the list of tags, whatever was read first.
        commonest = _commonest(whole)
        forms = {form: _commonest(counter) for form, counter in of_form.items()}
        words = [word for one in self.treebank.test for word in one.words]
        return {WORD_FORM: [forms.get(word.form, commonest) for word in words], MAJORITY: [commonest] * len(words)}

    def _unknown(self, answers: Mapping[str, Any], kept: NDArray[np.bool_], way: str) -> Table:
        """Words whose form train has, and those whose form it has not."""
        known = {word.form for one in self.treebank.train for word in one.words}
        seen = np.array([word.form in known for one in self.treebank.test for word in one.words])
        rows = {"form in train": kept & seen, "form not in train": kept & ~seen}
        return self._table(f"Accuracy by word form ({WAYS[way]})", "word", rows, answers)

    def _by_tag(self, answers: Mapping[str, Any], kept: NDArray[np.bool_], way: str) -> Table:
        rows = {tag: kept & (self.truth == number) for number, tag in enumerate(self.treebank.tags)}
        return self._table(f"Accuracy by tag ({WAYS[way]})", "tag", rows, answers)

    def _table(self, title: str, axis: str, rows: Mapping[str, NDArray[np.bool_]], answers: Mapping[str, Any]) -> Table:
        columns = {}
        for label, answer in answers.items():
            right = (np.array(answer) == self.truth).mean(0)
            columns[label] = tuple(self._share(right, chosen) for chosen in rows.values())
        return Table(title, axis, Metric("accuracy", "%", of="words"), tuple(rows), columns)

    def _share(self, right: NDArray[np.float64], chosen: NDArray[np.bool_]) -> Figure | None:
        """Accuracy over some words; its interval is that of the test sentences alone."""
        if not chosen.any():
            return None
        sentences = len(self.test_tags)
        numerators, denominators = (
            np.bincount(self.sentence[chosen], weights=some, minlength=sentences)
            for some in (right[chosen], np.ones(int(chosen.sum())))
        )
        low, high = ratio_interval(numerators, denominators)
        return Figure(float(right[chosen].mean()), int(chosen.sum()), low, high)


def _commonest(counter: Counter[int]) -> int:
    return min(counter, key=lambda tag: (-counter[tag], tag))


def _sequences(subject: Subject, some: Sequence[Sentence]) -> tuple[list[Pooled], list[NDArray[np.bool_]]]:
    """Every sentence as tokens, and which of its words have any."""
    found = [
        align(one, encoded, subject.length)
        for one, encoded in zip(some, subject.encode([one.text for one in some]), strict=True)
    ]
    return [pooled for pooled, _ in found], [kept for _, kept in found]


def align(sentence: Sentence, encoded: Encoded, length: int) -> tuple[Pooled, NDArray[np.bool_]]:
    """The sentence's words as groups of its tokens, and which of its words have a group.

    length      tokens that the model sees: what is beyond is cut off in front of the special tokens at the end, and
                words that lose a token there have no group
    """
    ordinary = encoded.ordinary
    tail = len(encoded) - (int(ordinary[-1]) + 1 if len(ordinary) else 1)
    keep = max(0, length - tail) if len(encoded) > length else len(encoded) - tail
    ids = np.concatenate([encoded.ids[:keep], encoded.ids[len(encoded) - tail :]])
    places, group, kept = [], [], list[bool]()
    start_N, stop_N = encoded.offsets[:, 0], encoded.offsets[:, 1]
    for word in sentence.words:
        tokens = ordinary[(start_N[ordinary] < word.stop) & (stop_N[ordinary] > word.start)]
        there = bool(len(tokens)) and int(tokens[-1]) < keep
        if there:
            places.append(tokens)
            group.append(np.full(len(tokens), sum(kept)))
        kept.append(there)
    none = [np.zeros(0, np.int64)]
    pooled = Pooled(ids, np.concatenate(none + places), np.concatenate(none + group), sum(kept), len(encoded) > length)
    return pooled, np.array(kept, bool)
