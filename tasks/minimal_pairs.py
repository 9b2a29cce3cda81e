"""Minimal pairs: of two sentences that differ in one point of grammar, does the model find the good one more probable?

    right  ⟺  PLL(good) > PLL(bad)          pseudo_likelihood.py; a tie is wrong, and ties are reported

Sentences are scored as they stand in the file (pairs_file.py), Zorro's spaces before punctuation and small letters
included, as the published figures are.

As published, the accuracy is the mean over paradigms, each counting the same however many pairs it has.

A PLL is a sum over tokens, so a model that knows nothing but how many there are still prefers the shorter sentence:
with uniform logits, PLL = -N ln V, and the accuracy is the share of pairs whose good sentence has fewer tokens. Three
controls stand beside every score: what going by length alone (in characters, which no tokenizer decides) would reach,
the accuracy on pairs of equally many tokens, and the accuracy by which of the two has fewer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .battery import Advance, Seen, Task
from .bootstrap import share_interval, shares_interval
from .errors import UsageError
from .evaluation_sets import LeftOut
from .exposure import words_in
from .pairs_file import UNNAMED, MinimalPairsConfig, Pair, drawn, pairs_of
from .pseudo_likelihood import log_probabilities
from .results import BASELINE, Figure, Metric, Outcome, Table, name_of
from .subjects import Encoded, Subject

TIE = 1e-5
"""Nats per token of the longer sentence: so far do equal numbers differ by rounding in float32, with the size of a
batch. Two sentences closer than that are tied. A model that answers the same everywhere (an untrained one) gives two
orders of the same words exactly the same PLL: without this bound rounding would decide."""
CHANCE, SHORTER = BASELINE + "chance", BASELINE + "shorter"
LENGTHS = ("the good sentence has fewer tokens", "equally many tokens", "the good sentence has more tokens")
Bools = NDArray[np.bool_]


def read(config: MinimalPairsConfig) -> MinimalPairs:
    """The task of a set. Raises as `pairs_of`."""
    return MinimalPairs(config, *pairs_of(config))


class MinimalPairs(Task):
    """A set of minimal pairs."""

    def __init__(self, config: MinimalPairsConfig, pairs: Sequence[Pair], left_out: LeftOut) -> None:
        self.config, self.name, self.left_out, self.all = config, config.name, left_out, len(pairs)
        self.pairs = drawn(pairs, config.max_pairs)
        self.sentences = list(dict.fromkeys(text for pair in self.pairs for text in (pair.good, pair.bad)))
        """Each once, however many pairs it is in."""

    def texts(self) -> Iterable[str]:
        """The good sentences: a bad one stands in no text."""
        return (pair.good for pair in self.pairs)

    def words(self) -> Iterable[str]:
        return sorted({word for text in self.sentences for word in words_in(text)})

    def size(self, subject: Subject) -> int:
        return sum(len(one.ordinary) for one in subject.encode(self.sentences) if _scorable(one, subject))

    def score(self, subject: Subject, advance: Advance) -> dict[str, Any]:
        """Of each sentence its PLL in nats (None: not to be scored) and how many tokens it has."""
        encoded = subject.encode(self.sentences)
        numbers = [number for number, one in enumerate(encoded) if _scorable(one, subject)]
        found: list[float | None] = [None] * len(encoded)
        for number, values in zip(numbers, log_probabilities(subject, [encoded[n] for n in numbers], advance)):
            found[number] = float(values.sum())
        return {"log_probability": found, "tokens": [len(one.ordinary) for one in encoded]}

    def outcome(self, scores: Mapping[str, Mapping[str, Any]], baselines: Mapping[str, Any], seen: Seen) -> Outcome:
        return _Examined(self, scores, seen).outcome()


def _scorable(encoded: Encoded, subject: Subject) -> bool:
    return len(encoded) <= subject.length and len(encoded.ordinary) > 0


@dataclass
class Judged:
    """What a model, or a rule, says of all pairs that every model can read (P,)."""

    right: Bools
    tied: Bools
    fewer: NDArray[np.int64] | None = None
    """Sign of the tokens of the good sentence less those of the bad one; None for a rule, which has no tokens."""


def judged(score: Mapping[str, Any], good: Sequence[int], bad: Sequence[int]) -> Judged:
    """Of pairs by the numbers of their sentences, which all have a PLL."""
    value = np.array([math.nan if one is None else one for one in score["log_probability"]])
    tokens = np.array(score["tokens"], np.int64)
    margin, noise = value[good] - value[bad], TIE * np.maximum(tokens[good], tokens[bad])
    return Judged(margin > noise, np.abs(margin) <= noise, np.sign(tokens[good] - tokens[bad]))


ACCURACY = Metric("accuracy, mean over paradigms", "%", of="pairs")
PAIR_ACCURACY = Metric("accuracy", "%", of="pairs")
METRICS = {
    "accuracy": ACCURACY,
    "pair_accuracy": Metric("accuracy over all pairs", "%", of="pairs"),
    "equal_length_accuracy": Metric("accuracy where both have equally many tokens", "%", of="pairs"),
    "ties": Metric("ties, counted wrong", "%", better="lower", of="pairs"),
}


class _Examined:
    """The figures of one set."""

    def __init__(self, task: MinimalPairs, scores: Mapping[str, Mapping[str, Any]], seen: Seen) -> None:
        self.task, self.seen = task, seen
        number = {text: at for at, text in enumerate(task.sentences)}
        self.dropped, kept = _dropped(task, scores, number)
        self.pairs = [task.pairs[at] for at in kept]
        if not self.pairs:
            raise UsageError(f"evaluation set {task.name}: no pair of sentences can be read by every model; leave it.")
        good, bad = ([number[text] for text in some] for some in zip(*((p.good, p.bad) for p in self.pairs)))
        self.models = {label: judged(score, good, bad) for label, score in scores.items()}
        length = np.array([len(pair.good) - len(pair.bad) for pair in self.pairs])
        self.columns = {**self.models, SHORTER: Judged(length < 0, length == 0)}
        paradigms = {(pair.phenomenon, pair.paradigm): len(self.pairs) for pair in self.pairs}
        self.paradigms = {key: at for at, key in enumerate(paradigms)}
        self.paradigm = np.array([self.paradigms[pair.phenomenon, pair.paradigm] for pair in self.pairs])

    def outcome(self) -> Outcome:
        figures = self._figures()
        task = self.task
        counts = {"pairs": len(self.pairs), "paradigms": len(self.paradigms), "not_drawn": task.all - len(task.pairs)}
        counts |= {f"left_out_{reason}": n for reason, n in sorted((task.left_out.counts | self.dropped).items())}
        return Outcome(
            task=task.name,
            kind="minimal_pairs",
            title=f"Minimal pairs: {task.name}",
            main="accuracy",
            metrics={name: METRICS[name] for name in figures},
            figures=figures,
            tables=tuple(self._tables()),
            counts=counts,
            remarks=tuple(self._remarks()),
            exposure=self.seen.exposure,
        )

    def _figures(self) -> dict[str, dict[str, Figure]]:
        everything = np.ones(len(self.pairs), bool)
        figures: dict[str, dict[str, Figure]] = {
            "accuracy": {label: self._mean(one.right, everything) for label, one in self.columns.items()},
            "pair_accuracy": {label: _share(one.right) for label, one in self.columns.items()},
            "equal_length_accuracy": {
                label: _share(one.right[one.fewer == 0])
                for label, one in self.models.items()
                if one.fewer is not None and (one.fewer == 0).any()
            },
            "ties": {label: _share(one.tied) for label, one in self.columns.items()},
        }
        for name in ("accuracy", "pair_accuracy", "equal_length_accuracy"):
            most = max((figure.n for figure in figures[name].values()), default=0)
            figures[name] |= {CHANCE: Figure(0.5, most)} if most else {}
        return {name: by_label for name, by_label in figures.items() if by_label}

    def _mean(self, right: Bools, among: Bools) -> Figure:
        """The mean over paradigms that have pairs `among` (P,) all."""
        size = np.bincount(self.paradigm[among], minlength=len(self.paradigms))
        hits = np.bincount(self.paradigm[among & right], minlength=len(self.paradigms))
        there = size > 0
        low, high = shares_interval(hits[there], size[there])
        return Figure(float((hits[there] / size[there]).mean()), int(size.sum()), low, high)

    def _tables(self) -> Iterable[Table]:
        phenomena = sorted({phenomenon for phenomenon, _ in self.paradigms})
        of = np.array([phenomena.index(pair.phenomenon) for pair in self.pairs])
        if phenomena != [UNNAMED]:
            rows = {name: of == at for at, name in enumerate(phenomena)}
            yield self._table("By phenomenon", "phenomenon", ACCURACY, rows, main=True)
        names = [paradigm for _, paradigm in self.paradigms]
        rows = {
            paradigm if names.count(paradigm) == 1 else f"{phenomenon}-{paradigm}": self.paradigm == at
            for (phenomenon, paradigm), at in self.paradigms.items()
        }
        yield self._table("By paradigm", "paradigm", PAIR_ACCURACY, rows)
        if self.seen.words:
            hardly = self._hardly_seen()
            rows = {f"with a word seen fewer than {self.task.config.rare} times": hardly, "other pairs": ~hardly}
            yield self._table("Words hardly seen in training", "pairs", PAIR_ACCURACY, rows)
        yield self._by_length()

    def _table(self, title: str, axis: str, metric: Metric, rows: Mapping[str, Bools], main: bool = False) -> Table:
        """Figures of pairs in classes (P,) each."""
        score = self._mean if metric is ACCURACY else lambda right, among: _share(right[among])
        columns: dict[str, tuple[Figure | None, ...]] = {
            label: tuple(score(one.right, among) if among.any() else None for among in rows.values())
            for label, one in self.columns.items()
        }
        columns[CHANCE] = tuple(Figure(0.5, int(among.sum())) if among.any() else None for among in rows.values())
        return Table(title, axis, metric, tuple(rows), columns, main)

    def _by_length(self) -> Table:
        """Of each model by its own tokens. One that goes by length alone has 100 % in the first row and 0 % below."""
        columns: dict[str, tuple[Figure | None, ...]] = {}
        for label, one in self.models.items():
            classes = [one.right[one.fewer == sign] for sign in (-1, 0, 1)]
            columns[label] = tuple(_share(some) if len(some) else None for some in classes)
        most = [max((one.n for one in row if one), default=0) for row in zip(*columns.values(), strict=True)]
        columns[CHANCE] = tuple(Figure(0.5, n) if n else None for n in most)
        return Table("By number of tokens", "pairs", PAIR_ACCURACY, LENGTHS, columns)

    def _hardly_seen(self) -> Bools:
        counts, rare = self.seen.words, self.task.config.rare
        found = [min(counts.get(w, 0) for w in words_in(f"{p.good} {p.bad}") or [""]) < rare for p in self.pairs]
        return np.array(found)

    def _remarks(self) -> Iterable[str]:
        task, total = self.task, len(self.pairs)
        for label, one in self.models.items():
            assert one.fewer is not None
            fewer, equal = int((one.fewer < 0).sum()), one.fewer == 0
            correct = f", and in {one.right[equal].mean():.1%} of them the good one is preferred" if equal.any() else ""
            yield (
                f"{name_of(label)}: in {fewer / total:.1%} of the pairs the good sentence has fewer tokens, which is "
                f"what going by length alone would score; in {equal.sum() / total:.1%} both have equally many{correct}."
            )
            if one.tied.any():
                yield f"{name_of(label)}: {int(one.tied.sum()):,} ties are counted wrong."
        if task.all > len(task.pairs):
            yield f"{len(task.pairs):,} of {task.all:,} pairs are drawn, {task.config.max_pairs} of a paradigm at most."
        if task.left_out.counts:
            yield f"Rows left out: {task.left_out}."
        if self.dropped:
            listed = ", ".join(f"{n:,} {reason.replace('_', ' ')}" for reason, n in sorted(self.dropped.items()))
            yield f"Pairs left out for every model, since one cannot read them: {listed}."
        if not self.seen.words:
            yield "Pairs with words hardly seen are not counted apart: the train split was not looked through."


def _dropped(
    task: MinimalPairs, scores: Mapping[str, Mapping[str, Any]], number: Mapping[str, int]
) -> tuple[dict[str, int], list[int]]:
    """How many pairs some model cannot read, by reason, and the numbers of the others."""
    bad = dict.fromkeys(range(len(task.sentences)), "")
    for score in scores.values():
        for at, (value, tokens) in enumerate(zip(score["log_probability"], score["tokens"], strict=True)):
            if value is None:
                bad[at] = "beyond_the_context" if tokens else "without_tokens"
    reasons = [bad[number[pair.good]] or bad[number[pair.bad]] for pair in task.pairs]
    counts = {reason: reasons.count(reason) for reason in sorted(set(reasons)) if reason}
    return counts, [at for at, reason in enumerate(reasons) if not reason]


def _share(right: Bools) -> Figure:
    low, high = share_interval(int(right.sum()), len(right))
    return Figure(float(right.mean()), len(right), low, high)
