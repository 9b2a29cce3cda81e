"""Is a challenger better than the champion? The rule alone: evidence in, decision out.

    the same test set            Δ = Σ_documents (loss of the challenger - loss of the champion) / Σ masked tokens
    another vocabulary           the same in bits per byte, over passages that both read (a token of one is none of the
                                 other's)
    better                       the whole 95 % interval of Δ is below 0; documents are drawn anew, in pairs
    in no part worse             no class of tokens (frequency, part of word, place, source) with at least
                                 `class_tokens` masked tokens is worse by more than `tolerance`; vocabularies that
                                 differ have no classes in common
    honest                       the challenger was trained on no document of that test set and on no near copy of one

Where one of these cannot be shown, the champion stays. Δ is a mean over one set of documents, so of three models that
are compared on one test set none can be better than the next in a circle (contest.py needs that).

Suffixes: U units (documents, passages, classes).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bootstrap import ratio_interval

FIRST, BETTER, NOT_BETTER, WORSE_IN_PART = "first", "better", "not better", "worse in part"
SAW_TEST_SET, NOT_COMPARED, NO_ANSWER, FORCED = "saw test set", "not compared", "no answer", "forced"
NATS, BITS = "nats per masked token", "bits per byte"
LEAST = 6
"""Documents. Of two models that are alike, one is better on each of 6 with a probability of 2^-6; of 5, above 2.5 %."""
ENOUGH = 0.5
"""Share of the challenger's passages that a champion must have been asked, too."""


@dataclass(frozen=True)
class Rule:
    """What of the rule can be set.

    The defaults are above what chance does: between two seeds of one recipe (6×256, 7 pairs, 18,407 masked tokens of
    400 documents) the difference on a class is the whole one ± 0.035 nats where it has 1000 to 3000 tokens, and off by
    0.095 at most.
    """

    tolerance: float = 0.1
    """Nats per masked token by which a class of tokens may be worse."""
    class_tokens: int = 1000
    """Masked tokens of a class that is looked at."""


@dataclass(frozen=True)
class Sums:
    """What a model lost on each of some things that it was asked; all (U,)."""

    groups: tuple[str, ...]
    """Of a class its stratum, of a passage its document."""
    names: tuple[str, ...]
    n: NDArray[np.int64]
    """Masked tokens, or bytes."""
    loss: NDArray[np.float64]
    """Summed −log p in nats, or in bits; NaN where the model could not be asked."""


@dataclass(frozen=True)
class Evidence:
    """A model's scores on one frozen test set. Two with the same `test` were asked the same tokens."""

    pretrain: str
    """Digest of the model."""
    vocabulary: str
    test: str
    """Digest of tokens, masks and rows."""
    rate: str
    documents: Sums
    classes: Sums
    passages: Sums
    changes_text: bool = False
    """Its vocabulary drops a part of the passages (case, unknown characters), so its bits per byte are too low."""
    copies: Mapping[str, Any] = field(default_factory=dict)
    """What of this test set it was trained on (overlap.py)."""

    @property
    def nats(self) -> float:
        """Masked cross-entropy; NaN where its tokens could not be asked for."""
        n = int(self.documents.n.sum())
        return float(self.documents.loss.sum()) / n if n else math.nan


@dataclass(frozen=True)
class Part:
    """A class of tokens, in both models."""

    stratum: str
    name: str
    n: int
    difference: float
    """Nats per masked token, the challenger's less the champion's."""
    counts: bool
    """It is large enough to be looked at."""
    worse: bool


@dataclass(frozen=True)
class Decision:
    """What the gate says, and why."""

    promoted: bool
    kind: str
    """FIRST, BETTER, …: the reason in a word or two."""
    reason: str
    measure: str = ""
    """NATS or BITS; "" where nothing was compared."""
    value: float | None = None
    """The challenger's figure."""
    champion: float | None = None
    difference: float | None = None
    low: float | None = None
    """Lower end of the difference's 95 % interval."""
    high: float | None = None
    n: int = 0
    """Masked tokens, or bytes."""
    units: int = 0
    """Documents that were drawn anew."""
    parts: tuple[Part, ...] = ()
    test: str = ""
    rule: Rule = Rule()

    @property
    def verdict(self) -> str:
        """For the first line of a version's page."""
        return f"{'CHAMPION' if self.promoted else self.kind}: {self.reason}"

    def as_json(self) -> dict[str, Any]:
        """For the report of the gate."""
        return asdict(self) | {"verdict": self.verdict}


def decide(
    challenger: Evidence | None, champion: Evidence | None, rule: Rule, against: str = "the champion", why: str = ""
) -> Decision:
    """May the challenger be champion?

    champion    what it answered on the challenger's test set (`opposite`); None where that is not known
    against     how it is called
    why         what is missing, where something is
    """
    if challenger is None or champion is None:
        return Decision(False, NOT_COMPARED, why or f"{against} has no scores on this test set", rule=rule)
    if seen := _seen(challenger.copies):
        return Decision(False, SAW_TEST_SET, seen, test=challenger.test, rule=rule)
    if challenger.test == champion.test and len(champion.documents.n):
        return _by_tokens(challenger, champion, rule, against)
    return _by_bytes(challenger, champion, rule, against)


def first(challenger: Evidence | None, rule: Rule) -> Decision:
    """Where there is no champion."""
    nats = challenger.nats if challenger else math.nan
    known = math.isfinite(nats)
    reason = "first version" + (f", {nats:.3f} nats" if known else "")
    test = challenger.test if challenger else ""
    return Decision(
        True, FIRST, reason, NATS if known else "", value=nats if known else None, test=test, rule=rule
    )  # fmt: skip


def opposite(challenger: Mapping[str, Evidence], champion: Mapping[str, Evidence], pretrain: str) -> Evidence | None:
    """The champion on the challenger's test set, from what each of the two brings; None where neither has it.

    Scored beside the challenger it is best: then the classes are the same, too. Its own scores will do where they are
    on the same test set, or where both read the same passages.

    challenger  by label: "test" its own scores, "champion" those of the model that it was scored beside
    champion    its own, by label
    pretrain    digest of the champion's weights
    """
    if not challenger:
        return None
    mine, own, beside = challenger["test"], champion.get("test"), challenger.get("champion")
    beside = beside if beside and beside.pretrain == pretrain else None
    if own and own.pretrain != pretrain:
        own = None
    for one in (beside, own):
        if one and one.test == mine.test and len(one.documents.n):
            return one
    for one in (beside, own):
        if one and len(_passages(mine, one)[0]) >= max(1, ENOUGH * len(mine.passages.n)):
            return one
    return None


def _seen(copies: Mapping[str, Any]) -> str:
    """Why the challenger may know its test set; "" where it does not."""
    if copies.get("unknown"):
        return f"whether it was trained on the test set is not known: {copies['unknown']}"
    number = copies.get("equal", 0) + copies.get("near", 0)
    if not number:
        return ""
    named = ", ".join(copies.get("examples", [])[:3])
    return f"{number:,} documents that it was trained on are copies of documents of the test set ({named})"


def _by_tokens(challenger: Evidence, champion: Evidence, rule: Rule, against: str) -> Decision:
    mine, other = challenger.documents, champion.documents
    at = {name: number for number, name in enumerate(other.names)}
    if set(at) != set(mine.names) or not np.array_equal(mine.n, other.n[[at[name] for name in mine.names]]):
        why = f"{against} was not asked the same documents, although the test set is the same"
        return Decision(False, NOT_COMPARED, why, test=challenger.test, rule=rule)
    order_U = np.array([at[name] for name in mine.names])
    found = _difference(mine.loss, other.loss[order_U], mine.n, NATS, challenger.test, rule, against)
    parts = _parts(challenger.classes, champion.classes, rule)
    worse = [part for part in parts if part.worse]
    if found.promoted and len(parts) < len(challenger.classes.n):
        why = f"not all classes of tokens of {against} are known; it has to be scored beside this version"
        found = replace(found, promoted=False, kind=NOT_COMPARED, reason=why)
    elif found.promoted and worse:
        worst = max(worse, key=lambda part: part.difference)
        said = f"{worst.difference:+.3f} nats against {against} {worst.stratum}, {worst.name} (n {worst.n:,})"
        more = f", and in {len(worse) - 1} more" if worse[1:] else ""
        why = f"{found.reason}; but {said}{more}"
        found = replace(found, promoted=False, kind=WORSE_IN_PART, reason=why)
    return replace(found, parts=parts)


def _by_bytes(challenger: Evidence, champion: Evidence, rule: Rule, against: str) -> Decision:
    for one, who in ((challenger, "this version"), (champion, against)):
        if one.changes_text:
            why = f"the vocabulary of {who} does not keep texts as they are, so its bits per byte are too low"
            return Decision(False, NOT_COMPARED, why, test=challenger.test, rule=rule)
    mine_P, other_P = _passages(challenger, champion)
    if not len(mine_P):
        why = f"{against} and this version have read no passage in common"
        return Decision(False, NOT_COMPARED, why, test=challenger.test, rule=rule)
    mine, other = challenger.passages, champion.passages
    _, unit_P = np.unique(np.array(mine.groups)[mine_P], return_inverse=True)
    mine_U, other_U, n_U = (
        np.bincount(unit_P, values).astype(np.float64)
        for values in (mine.loss[mine_P], other.loss[other_P], mine.n[mine_P])
    )
    return _difference(mine_U, other_U, n_U, BITS, challenger.test, rule, against)


def _passages(challenger: Evidence, champion: Evidence) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places of the passages that both could read, in each of them."""
    mine, other = challenger.passages, champion.passages
    at = {name: number for number, name in enumerate(other.names)}
    pairs = [
        (number, at[name])
        for number, name in enumerate(mine.names)
        if name in at and math.isfinite(mine.loss[number]) and math.isfinite(other.loss[at[name]])
    ]
    found = np.array(pairs, np.int64).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def _difference(
    mine_U: NDArray[np.float64],
    other_U: NDArray[np.float64],
    n_U: NDArray[Any],
    measure: str,
    test: str,
    rule: Rule,
    against: str,
) -> Decision:
    """Of two models on the same units: is the whole interval of the difference below 0?"""
    n, units, unit = int(n_U.sum()), int((n_U > 0).sum()), measure.split()[0]
    value, champion = (float(some.sum()) / n if n else math.nan for some in (mine_U, other_U))
    apart = value - champion
    if not math.isfinite(apart) or units < LEAST:
        why = "a score is not finite" if units >= LEAST else f"{units} documents are too few; it takes {LEAST}"
        return Decision(False, NOT_COMPARED, why, test=test, rule=rule)
    low, high = (round(end, 9) for end in ratio_interval(mine_U - other_U, n_U))
    better = high < 0
    ends = sorted(abs(end) for end in (low, high)) if low * high > 0 else (low, high)
    between = f"95 % interval {ends[0]:.3f} to {ends[1]:.3f}"
    where = "below" if apart < 0 else "above"
    reason = f"{value:.3f} {unit}, {abs(apart):.3f} {where} {against} ({between})"
    kind = BETTER if better else NOT_BETTER
    return Decision(better, kind, reason, measure, value, champion, apart, low, high, n, units, (), test, rule)


def _parts(mine: Sums, other: Sums, rule: Rule) -> tuple[Part, ...]:
    """The classes that have the same name and as many tokens in both."""
    at = {key: number for number, key in enumerate(zip(other.groups, other.names, strict=True))}
    found = []
    for number, key in enumerate(zip(mine.groups, mine.names, strict=True)):
        n, there = int(mine.n[number]), at.get(key)
        if there is not None and int(other.n[there]) == n:
            apart = float(mine.loss[number] - other.loss[there]) / n if n else 0.0
            counts = n >= rule.class_tokens
            found.append(Part(*key, n, apart, counts, counts and not apart <= rule.tolerance))
    return tuple(found)
