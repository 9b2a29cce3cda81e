"""Cloze: does the model find the word that is missing?

    rank            = how many tokens of the vocabulary the model finds more probable than the best answer, from 0
    top-k accuracy  = share of the items with rank < k
    mean reciprocal rank = mean of 1 / (rank + 1)

One position is asked for, so an answer can be given where it is one token of the model, with or without a space before
it. An item none of whose answers is one token cannot be answered, and counts as wrong (its reciprocal rank is 0): the
main figure is of all items, and the same items, for every vocabulary. Beside it stands the accuracy on the items that
every model here can answer.

Two rules that read no text stand beside the score: the most common answers of the set itself, and the set's answers in
the order of how often they stand in the train split.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .battery import Advance, Seen, Task
from .bootstrap import ratio_interval, share_interval
from .cloze_file import ClozeConfig, Item, items_of
from .errors import NumericError, UsageError
from .evaluation_sets import LeftOut
from .exposure import words_in
from .pseudo_likelihood import LOGITS
from .results import BASELINE, UNIGRAM, Figure, Metric, Outcome, name_of
from .scoring import target_ranks
from .subjects import Encoded, Ids, Subject, groups

MAJORITY = BASELINE + "majority"
BEYOND, UNREAD = "beyond_the_context", "with_a_mask_not_read"
"""Why a model cannot be asked an item."""
EXAMPLES = 10
"""Items whose answer of each model goes into the report."""
METRICS = {
    "top1_accuracy": Metric("top-1 accuracy", "%", of="items"),
    "top5_accuracy": Metric("top-5 accuracy", "%", of="items"),
    "mean_reciprocal_rank": Metric("mean reciprocal rank", of="items"),
    "top1_answerable": Metric("top-1 accuracy where an answer is one token of every model", "%", of="items"),
}

Ranks = NDArray[np.float64]
"""One for each item; infinite where it cannot be answered."""


def read(config: ClozeConfig) -> Cloze:
    """The task of a set. Raises as `items_of`."""
    return Cloze(config, *items_of(config))


class Cloze(Task):
    """A set of sentences with a word missing."""

    def __init__(self, config: ClozeConfig, items: Sequence[Item], found: int, left_out: LeftOut) -> None:
        self.config, self.name = config, config.name
        self.items, self.found, self.left_out = items, found, left_out

    def texts(self) -> Iterable[str]:
        """Each with its first answer."""
        return (item.whole for item in self.items)

    def words(self) -> Iterable[str]:
        """The answers that are one word."""
        return sorted({word for item in self.items for answer in item.answers if (word := _one_word(answer))})

    def size(self, subject: Subject) -> int:
        return sum(not why for _, why in self._questions(subject))

    def score(self, subject: Subject, advance: Advance) -> dict[str, Any]:
        """Of each item the rank (None: no answer is one token), why it cannot be asked ("": it can), and of the first
        ones the guess."""
        questions = self._questions(subject)
        answers = _tokens_of(subject, {answer for item in self.items for answer in item.answers})
        ranks: list[int | None] = [None] * len(self.items)
        guesses: list[str | None] = [None] * min(EXAMPLES, len(self.items))
        asked = [number for number, (_, why) in enumerate(questions) if not why]
        at_most = max(1, LOGITS // subject.vocabulary_size)
        for group in groups([len(questions[number][0]) for number in asked]):
            for start in range(0, len(group), at_most):
                some = [asked[at] for at in group[start : start + at_most]]
                places = [np.flatnonzero(questions[number][0].ids == subject.mask_id) for number in some]
                logits_MV = subject.logits([questions[number][0].ids for number in some], places)
                if not torch.isfinite(logits_MV).all():
                    raise NumericError(f"{self.name}: {subject.label} gives logits that are not finite.")
                for number, logits_V in zip(some, logits_MV, strict=True):
                    right = sorted({token for answer in self.items[number].answers for token in answers[answer]})
                    if right:
                        logits_KV = logits_V.expand(len(right), -1)
                        ranks[number] = int(target_ranks(logits_KV, torch.tensor(right)).min())
                    if number < len(guesses):
                        guesses[number] = subject.decode(logits_V.argmax()[None].numpy())
                advance(len(some))
        return {"rank": ranks, "why": [why for _, why in questions], "guess": guesses}

    def _questions(self, subject: Subject) -> list[tuple[Encoded, str]]:
        """Every item as the model reads it, and why it cannot be asked."""
        encoded = subject.encode([item.text for item in self.items], prompts=True)
        return [
            (one, UNREAD if (one.ids == subject.mask_id).sum() != 1 else BEYOND if len(one) > subject.length else "")
            for one in encoded
        ]

    def outcome(self, scores: Mapping[str, Mapping[str, Any]], baselines: Mapping[str, Any], seen: Seen) -> Outcome:
        whys = [next((why for why in some if why), "") for some in zip(*(score["why"] for score in scores.values()))]
        kept = [number for number, why in enumerate(whys) if not why]
        if not kept:
            raise UsageError(f"evaluation set {self.name}: no item can be read by every model; leave it out.")
        models = {label: _array([score["rank"][number] for number in kept]) for label, score in scores.items()}
        ranks = models | self._rules(kept, seen)
        by_all = np.all([np.isfinite(one) for one in models.values()], axis=0)
        figures = {
            "top1_accuracy": {label: _within(one, 1) for label, one in ranks.items()},
            "top5_accuracy": {label: _within(one, 5) for label, one in ranks.items()},
            "mean_reciprocal_rank": {label: _reciprocal(one) for label, one in ranks.items()},
        }
        if by_all.any():
            figures["top1_answerable"] = {label: _within(one[by_all], 1) for label, one in ranks.items()}
        dropped = Counter(why for why in whys if why)
        counts = {"items": len(kept), "not_drawn": self.found - len(self.items), "answerable_by_all": int(by_all.sum())}
        counts |= {f"left_out_{why}": n for why, n in sorted((self.left_out.counts + dropped).items())}
        return Outcome(
            task=self.name,
            kind="cloze",
            title=f"Cloze: {self.name}",
            main="top1_accuracy",
            metrics={name: METRICS[name] for name in figures},
            figures=figures,
            counts=counts,
            remarks=tuple(self._remarks(models, dropped, seen)),
            details={"examples": self._examples(scores)},
            exposure=seen.exposure,
        )

    def _rules(self, kept: Sequence[int], seen: Seen) -> dict[str, Ranks]:
        """The ranks of guessing the same everywhere."""
        items = [self.items[number] for number in kept]
        common = Counter(answer for item in items for answer in item.answers)
        rules = {MAJORITY: _constant(items, common)}
        if seen.words:
            often = {answer: seen.words.get(_one_word(answer), 0) for answer in common}
            rules[UNIGRAM] = _constant(items, often)
        return rules

    def _examples(self, scores: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [
            {
                "text": item.text,
                "answers": list(item.answers),
                "guesses": {label: score["guess"][number] for label, score in scores.items()},
            }
            for number, item in enumerate(self.items[:EXAMPLES])
        ]

    def _remarks(self, models: Mapping[str, Ranks], dropped: Counter[str], seen: Seen) -> Iterable[str]:
        for label, ranks in models.items():
            answerable = np.isfinite(ranks)
            if not answerable.all():
                yield (
                    f"{name_of(label)}: {(~answerable).sum():,} of {len(ranks):,} items have no answer that is one of "
                    "its tokens and count as wrong."
                )
        yield f"The baseline {name_of(MAJORITY)} guesses the most common answers of the set itself, everywhere."
        if seen.words:
            yield (
                f"The baseline {name_of(UNIGRAM)} guesses the answers of the set in the order of how often they stand "
                "in the train split, everywhere."
            )
        if self.found > len(self.items):
            yield f"{len(self.items):,} of {self.found:,} items are drawn."
        if self.left_out.counts:
            yield f"Rows left out: {self.left_out}."
        if dropped:
            listed = ", ".join(f"{n:,} {why.replace('_', ' ')}" for why, n in sorted(dropped.items()))
            yield f"Items left out for every model, since one cannot be asked them: {listed}."


def _tokens_of(subject: Subject, answers: Iterable[str]) -> dict[str, list[int]]:
    """The tokens that each answer is, alone or with a space before it."""
    listed = sorted(answers)
    candidates = [
        sorted({_only(one) for one in forms} - {-1})
        for forms in zip(subject.encode(listed), subject.encode([f" {answer}" for answer in listed]))
    ]
    known = _known(subject, sorted({token for some in candidates for token in some}))
    return {answer: [token for token in some if token in known] for answer, some in zip(listed, candidates)}


def _known(subject: Subject, tokens: Sequence[int]) -> set[int]:
    """Those that stand for their own text: what a vocabulary cannot spell is [UNK] to it, and that answers nothing."""
    texts = [subject.decode(np.array([token])) for token in tokens]
    again = subject.encode([text or "" for text in texts])
    return {token for token, text, one in zip(tokens, texts, again) if text is None or _only(one) == token}


def _only(encoded: Encoded) -> int:
    """The one token of a text; −1 where it has more or none."""
    ids: Ids = encoded.ids[encoded.ordinary]
    return int(ids[0]) if len(ids) == 1 else -1


def _one_word(answer: str) -> str:
    words = words_in(answer)
    return words[0] if len(words) == 1 else ""


def _constant(items: Sequence[Item], weights: Mapping[str, int]) -> Ranks:
    """Ranks where the answers are guessed by falling weight, in the order of the alphabet where it is the same."""
    order = {answer: rank for rank, answer in enumerate(sorted(weights, key=lambda one: (-weights[one], one)))}
    return _array([min(order[answer] for answer in item.answers) for item in items])


def _array(ranks: Iterable[int | None]) -> Ranks:
    return np.array([np.inf if rank is None else rank for rank in ranks], np.float64)


def _within(ranks: Ranks, k: int) -> Figure:
    hits = int((ranks < k).sum())
    return Figure(hits / len(ranks), len(ranks), *share_interval(hits, len(ranks)))


def _reciprocal(ranks: Ranks) -> Figure:
    values = 1 / (ranks + 1)
    return Figure(float(values.mean()), len(values), *ratio_interval(values, np.ones(len(values))))
