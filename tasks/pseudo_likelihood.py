"""How probable is a text to a masked language model? Its pseudo-log-likelihood, and from it bits per byte.

    PLL(text) = Σ_t log p(t | the text with t hidden)                                   (Salazar et al. 2020)

A word of several tokens is overrated by that: its other tokens give the hidden one away. So a token is asked for with
itself and the tokens of its word to its right hidden (Kauf and Ivanova 2023, "within-word left-to-right"):

    PLL(text) = Σ_t log p(t | the text without t and what follows t in its word)

Every token takes a copy of the text of its own. All copies of all texts are computed together, longest first, and the
head sees one position of each.

Suffixes: N tokens of a text, M copies that are asked at a time, V vocabulary.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .artifacts import Manifest
from .battery import Advance, Seen, Task
from .bootstrap import ratio_interval
from .errors import NumericError, UsageError
from .passages import Passage, PseudoLikelihoodConfig, passages
from .results import BASELINE, UNIGRAM, Figure, Metric, Outcome, Units, name_of
from .scoring import unigram
from .subjects import POSITIONS, Encoded, Ids, Subject, groups

LOGITS = 1 << 25
"""Logits at a time, M·V at most: 128 MB."""
UNIFORM = BASELINE + "uniform"
BLANKS = re.compile(r"\s\s+|[^\S ]")
"""Blanks that are more than a space between two words."""
CHANGED = 0.05
"""A vocabulary that changes more of the passages than this share has less to predict: its figures are not ranked."""
METRICS = {
    "bits_per_byte": Metric("bits per byte", "bits per byte, comparable across vocabularies", "lower", "bytes"),
    "nats_per_token": Metric("pseudo-likelihood per token", "nats per token of its own vocabulary", "lower", "tokens"),
    "nats_per_word": Metric("pseudo-likelihood per word", "nats per word between blanks", "lower", "words"),
}
UNITS = {
    "bits_per_byte": ("bytes", 1 / math.log(2)),
    "nats_per_token": ("tokens", 1.0),
    "nats_per_word": ("words", 1.0),
}
"""What a metric divides by, and what its unit is in nats^-1."""


def log_probabilities(
    subject: Subject,
    encoded: Sequence[Encoded],
    advance: Callable[[int], None] = lambda copies: None,
    positions: int = POSITIONS,
    within_word: bool = True,
) -> list[NDArray[np.float64]]:
    """log p of each token of each text, in nats: (N,) for every text, 0 at its special tokens.

    advance        hears of the tokens that are done, Σ len(text.ordinary) in all
    positions      computed at a time; changes digits behind the fifth only
    within_word    hide what follows in the word, too; without, Salazar's PLL

    Raises UsageError for a text beyond the model's context.
    """
    found = [np.zeros(len(text)) for text in encoded]
    ends = [_ends(text.word, within_word) for text in encoded]
    copies = [(number, int(place)) for number, text in enumerate(encoded) for place in text.ordinary]
    at_most = max(1, LOGITS // subject.vocabulary_size)
    for group in groups([len(encoded[number]) for number, _ in copies], positions):
        for start in range(0, len(group), at_most):
            some = [copies[copy] for copy in group[start : start + at_most]]
            sequences = [_hidden(encoded[n].ids, place, ends[n][place], subject.mask_id) for n, place in some]
            logits_MV = subject.logits(sequences, [np.array([place]) for _, place in some])
            targets_M = torch.tensor([int(encoded[n].ids[place]) for n, place in some])
            values_M = log_softmax_at(logits_MV, targets_M)
            if not torch.isfinite(values_M).all():
                raise NumericError(
                    f"{subject.label} gives probabilities that are not finite; its weights are of no use."
                )
            for (n, place), value in zip(some, values_M.tolist(), strict=True):
                found[n][place] = value
            advance(len(some))
    return found


def log_softmax_at(logits_MV: Tensor, targets_M: Tensor) -> Tensor:
    """log p of the targets, float64 (M,). One copy of the logits is made."""
    shifted_MV = logits_MV - logits_MV.amax(dim=1, keepdim=True)
    target_M = shifted_MV.gather(1, targets_M[:, None])[:, 0].double()
    return target_M - shifted_MV.exp_().sum(dim=1).double().log()


def _ends(word: Ids, within_word: bool) -> Ids:
    """Where the tokens that are hidden with each token end (N,)."""
    after = np.arange(1, len(word) + 1)
    if within_word:
        last = np.flatnonzero(np.append(word[1:] != word[:-1], True))
        after = last[np.searchsorted(last, np.arange(len(word)))] + 1
    return after


def _hidden(ids: Ids, start: int, stop: int, mask_id: int) -> Ids:
    copy = ids.copy()
    copy[start:stop] = mask_id
    return copy


class PseudoLikelihood(Task):
    """Passages of the test split, each of their tokens asked for. Built by `read`."""

    name = "pseudo_likelihood"

    def __init__(self, passages: Sequence[Passage], unigram_V: NDArray[np.float64] | None = None) -> None:
        """unigram_V    probabilities (V,) in the vocabulary of the first model that is scored; None where nothing is
        known of it"""
        self.passages, self.unigram_V = passages, unigram_V

    def texts(self) -> list[str]:
        return [passage.text for passage in self.passages]

    def size(self, subject: Subject) -> int:
        return sum(len(text.ordinary) for text in subject.encode(self.texts()) if len(text) <= subject.length)

    def score(self, subject: Subject, advance: Advance) -> dict[str, Any]:
        """Of each passage: its tokens, and −log p in nats, None where it is longer than the model's context."""
        encoded = subject.encode(self.texts())
        fitting = [number for number, text in enumerate(encoded) if len(text) <= subject.length]
        found = log_probabilities(subject, [encoded[number] for number in fitting], advance)
        nats: list[float | None] = [None] * len(encoded)
        for number, values in zip(fitting, found, strict=True):
            nats[number] = float(-values.sum())
        return {
            "nats": nats,
            "tokens": [len(text.ordinary) for text in encoded],
            "uniform": math.log(subject.vocabulary_size),
            "unigram": self._unigram(encoded, subject.vocabulary_size),
            "changed": sum(
                not says(subject, text, passage.text) for text, passage in zip(encoded, self.passages, strict=True)
            ),
        }

    def _unigram(self, encoded: Sequence[Encoded], size: int) -> list[float] | None:
        if self.unigram_V is None or len(self.unigram_V) != size:
            return None
        with np.errstate(divide="ignore"):
            log_p_V = np.log(self.unigram_V)
        nats = [float(-log_p_V[text.ids[text.ordinary]].sum()) for text in encoded]
        return nats if np.isfinite(nats).all() else None  # a token that it holds for impossible

    def outcome(self, scores: Mapping[str, Mapping[str, Any]], baselines: Mapping[str, Any], seen: Seen) -> Outcome:
        """Raises UsageError where no passage fits into the contexts of all models."""
        fits = np.logical_and.reduce([[value is not None for value in score["nats"]] for score in scores.values()])
        left_out = int(np.count_nonzero(~fits))
        if left_out == len(self.passages):
            raise UsageError(
                f"pseudo_likelihood: none of {left_out} passages fits into the contexts of {', '.join(scores)}; lower "
                "pseudo_likelihood.passage_bytes."
            )
        return Outcome(
            task=self.name,
            kind="pseudo_likelihood",
            title="Pseudo-likelihood of the test split",
            main="bits_per_byte",
            metrics={
                # The tokens of one vocabulary are not those of another: no model is better by them.
                name: replace(metric, better="") if name == "nats_per_token" and _differ(scores) else metric
                for name, metric in METRICS.items()
            },
            figures=self._figures(scores, fits),
            counts={
                "passages": len(self.passages),
                "documents": len({passage.document for passage in self.passages}),
                "longer_than_a_context": left_out,
            },
            remarks=self._remarks(scores, left_out),
            details={
                "not_comparable": [label for label, score in scores.items() if score["changed"] > CHANGED * len(fits)]
            },
            exposure=seen.exposure,
            units=(self._units(scores),),
        )

    def _units(self, scores: Mapping[str, Mapping[str, Any]]) -> Units:
        """Of every model: the bits that it needs for each passage, NaN where that is beyond its context."""
        texts = [text.encode() for text in self.texts()]
        bits = {label: np.array(score["nats"], np.float64) / math.log(2) for label, score in scores.items()}
        return Units(
            kind="passage",
            groups=tuple(passage.id or f"document {passage.document}" for passage in self.passages),
            names=tuple(sha256(text).hexdigest()[:32] for text in texts),
            n=np.array([len(text) for text in texts]),
            sums=bits,
        )

    def _figures(
        self, scores: Mapping[str, Mapping[str, Any]], fits: NDArray[np.bool_]
    ) -> dict[str, dict[str, Figure]]:
        """Metric -> label -> figure. Baselines are those of the vocabulary of the first model."""
        sizes = {
            "bytes": [len(text.encode()) for text in self.texts()],
            "words": [len(text.split()) for text in self.texts()],
        }
        rows = {label: (score["nats"], score["tokens"]) for label, score in scores.items()}
        first = next(iter(scores.values()))
        rows[UNIFORM] = ([tokens * first["uniform"] for tokens in first["tokens"]], first["tokens"])
        if first["unigram"] is not None:
            rows[UNIGRAM] = (first["unigram"], first["tokens"])
        figures: dict[str, dict[str, Figure]] = {metric: {} for metric in METRICS}
        for label, (nats, tokens) in rows.items():
            for metric, (of, scale) in UNITS.items():
                per = np.array(tokens if of == "tokens" else sizes[of])
                figures[metric][label] = self._figure(np.array(nats, np.float64) * scale, per, fits)
        return figures

    def _figure(self, nats: NDArray[np.float64], per: NDArray[np.int64], fits: NDArray[np.bool_]) -> Figure:
        """Σ nats / Σ per over the passages that all models can read, drawn anew by document."""
        document = np.array([passage.document for passage in self.passages])[fits]
        _, unit = np.unique(document, return_inverse=True)
        above, below = (np.bincount(unit, weights=values[fits]) for values in (nats, per))
        # Of one document nothing says how much another would differ.
        interval = ratio_interval(above, below) if (below > 0).sum() > 1 else (None, None)
        return Figure(float(above.sum() / below.sum()), int(below.sum()), *interval)

    def _remarks(self, scores: Mapping[str, Mapping[str, Any]], left_out: int) -> tuple[str, ...]:
        remarks = [
            "Only bits per byte can be compared across vocabularies: a token or a word of one is not that of another."
        ]
        if _differ(scores):
            remarks.append(f"Uniform and unigram are those of the vocabulary of {name_of(next(iter(scores)))}.")
        if left_out:
            short = [label for label, score in scores.items() if None in score["nats"]]
            remarks.append(
                f"{left_out} passages are longer than the context of {', '.join(map(name_of, short))} and left out for "
                "every model."
            )
        for label, score in scores.items():
            if score["changed"]:
                remarks.append(
                    f"The vocabulary of {name_of(label)} does not keep {score['changed']} of the passages as they are "
                    "(it lowers case, or has no token for a character), so it has less to predict: its bits per byte "
                    "are too low."
                )
        return tuple(remarks)


def read(
    config: PseudoLikelihoodConfig,
    corpus: Manifest,
    counts_V: NDArray[np.int64] | None = None,
    ordinary: Sequence[Sequence[int]] | None = None,
) -> PseudoLikelihood:
    """The task on a corpus's test split.

    counts_V    (V,) unigram counts of the train split in the vocabulary of the model that is scored first
    ordinary    half-open ranges of the ids that a text can have; with counts_V

    Raises UsageError where the test split has no text, DataError where a file cannot be read.
    """
    if counts_V is None:
        return PseudoLikelihood(passages(config, corpus))
    everything = [[0, len(counts_V)]]
    return PseudoLikelihood(passages(config, corpus), unigram(counts_V, everything if ordinary is None else ordinary))


def _differ(scores: Mapping[str, Mapping[str, Any]]) -> bool:
    """Are there models of several vocabularies?"""
    return len({(score["uniform"], *score["tokens"]) for score in scores.values()}) > 1


def says(subject: Subject, encoded: Encoded, text: str) -> bool:
    """Whether the tokens spell the text, single spaces apart; True where a subject cannot tell. Line ends, tabs and
    runs of blanks count: a vocabulary that drops them has less to predict, and all bytes to divide by."""
    decoded = subject.decode(encoded.ids[encoded.ordinary])
    return decoded is None or _spelt(decoded) == _spelt(text)


def _spelt(text: str) -> tuple[str, list[str]]:
    return "".join(text.split()), BLANKS.findall(text.strip())
