"""How well hidden tokens of held-out text are predicted: masked scores in full, an Outcome for each rate.

On the frozen draws of the test split, the same for all models of one vocabulary. Masks are nested: 15 % hides a part
of what 30 % hides, 50 % hides more. Beside the scores of scoring.py: intervals over documents, since the tokens of one
document depend on each other (bootstrap.py); tables by classes of tokens (strata.py); calibration (calibration.py).
Everything is summed as it is read, in float64, so that memory grows with the segments only.

Suffixes: B rows, L positions, M masked positions, S segments, K classes of a stratum, U documents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .artifacts import Manifest
from .batches import Batch, ShardReader
from .bootstrap import ratio_intervals
from .calibration import BINS, Reliability, expected_error
from .errors import UsageError
from .evidence import document_ids
from .masking import fraction
from .results import CHAMPION, MODEL, Figure, Metric, Outcome, Table, Units
from .scoring import Answers, Scorer, answered, frozen_batches, perplexity
from .strata import Places, Stratum, by_source, documents, sources

LOGITS_AT_ONCE = 1 << 26
"""Logits of a batch at most: 256 MB."""
LOSS, PERPLEXITY, TOP1, TOP5, ECE = (
    "masked_cross_entropy",
    "perplexity",
    "top1_accuracy",
    "top5_accuracy",
    "calibration_error",
)
METRICS = {
    LOSS: Metric("masked cross-entropy", "nats per masked token", "lower", "masked tokens"),
    PERPLEXITY: Metric("perplexity", "", "lower", "masked tokens"),
    TOP1: Metric("top-1 accuracy", "%", "higher", "masked tokens"),
    TOP5: Metric("top-5 accuracy", "%", "higher", "masked tokens"),
    ECE: Metric("expected calibration error", "%", "lower", "masked tokens"),
}
SUMS = (LOSS, TOP1, TOP5)
"""What is summed for each segment."""
IN_TABLES = (TOP1, LOSS)
"""What a table is made of, for each stratum."""


@dataclass(frozen=True)
class Asked:
    """The rows that every model is asked about."""

    reader: ShardReader
    rows: NDArray[np.int64]
    """Global sequence ids."""
    document_S: NDArray[np.int64]
    """Of each segment of these rows, its document."""
    counts_V: NDArray[np.int64]
    """How often each id stands in the train split."""
    strata: tuple[Stratum, ...]
    remarks: tuple[str, ...]
    ids: tuple[str, ...] = ()
    """Of every document of the test split; none where they are not known."""


def asked(
    reader: ShardReader,
    shards: Manifest,
    rows: NDArray[np.int64],
    classes: Sequence[Stratum],
    corpus: Manifest | None = None,
) -> Asked:
    """Some rows of the test split of finished shards.

    classes     of tokens, for tables
    corpus      what the shards were made of: says the source of each document
    Raises DataError for shards that are damaged.
    """
    begins = reader.segment_offsets[rows]
    per_row = reader.segment_offsets[rows + 1] - begins
    at_S = np.arange(per_row.sum()) + np.repeat(begins - (np.cumsum(per_row) - per_row), per_row)
    document_S = documents(shards, "test")[at_S]
    counts_V = np.load(shards.whole("unigrams.npy"), allow_pickle=False)
    strata = list(classes)
    names, source_U = sources(corpus, "test") if corpus else ((), np.zeros(0, np.int64))
    ids = document_ids(corpus, "test") if corpus else ()
    if len(names) > 1:
        strata.append(by_source(names, source_U[document_S]))
        return Asked(reader, rows, document_S, counts_V, tuple(strata), (), ids)
    why = "the corpus has one source only" if names else "which document is of which source is not known"
    return Asked(reader, rows, document_S, counts_V, tuple(strata), (f"There is no table by source: {why}.",), ids)


def outcomes(
    what: Asked,
    rates: Sequence[str],
    scorers: Mapping[str, Scorer],
    rows_per_batch: int,
    advance: Callable[[int], None],
    remarks: Sequence[str] = (),
) -> list[Outcome]:
    """Scores of all scorers at each rate; tables and calibration at the rate of the shards.

    scorers     by label (results.py): a baseline has to be among them
    remarks     what a reader has to know of the scorers
    advance     hears of the rows that are done, at each rate anew
    Raises UsageError for a rate that hides nothing.
    """
    found = []
    for rate in rates:
        own = fraction(rate) == fraction(what.reader.rate)
        strata = what.strata if own else ()
        sums = Sums.empty(scorers, len(what.document_S), strata)
        at_once = _rows_at_once(what.reader, rate, rows_per_batch)
        base = 0
        for batch, answers in answered(scorers, frozen_batches(what.reader, what.rows, rate, at_once)):
            base += sums.add(what.reader, batch, answers, base)
            advance(len(batch.tokens_BL))
        if not sums.masked_S.sum():
            raise UsageError(f"evaluate: rate {rate} hides no token of the test split; give more documents.")
        found.append(_outcome(what, rate, sums, (*remarks, *what.remarks) if own else tuple(remarks)))
    return found


def _rows_at_once(reader: ShardReader, rate: str, rows: int) -> int:
    """At most `rows`, fewer where their logits would take too much memory."""
    logits = int(reader.length * fraction(rate)) * len(reader.masks.table_V)
    return max(1, min(rows, LOGITS_AT_ONCE // max(1, logits)))


@dataclass
class OfLabel:
    """Sums of one scorer."""

    by_segment: dict[str, NDArray[np.float64]]
    """Of SUMS, each (S,)."""
    by_class: list[dict[str, NDArray[np.float64]]]
    """For each stratum, of IN_TABLES, each (K,)."""
    reliability: Reliability = field(default_factory=Reliability)


@dataclass
class Sums:
    """Sums over 𝓜 at one rate."""

    masked_S: NDArray[np.int64]
    strata: tuple[Stratum, ...]
    masked_K: list[NDArray[np.int64]]
    """For each stratum, masked tokens of each class."""
    labels: dict[str, OfLabel]

    @classmethod
    def empty(cls, labels: Mapping[str, Any], segments: int, strata: tuple[Stratum, ...]) -> Sums:
        def of_label() -> OfLabel:
            by_class = [{name: np.zeros(len(one.rows)) for name in IN_TABLES} for one in strata]
            return OfLabel({name: np.zeros(segments) for name in SUMS}, by_class)

        counts = [np.zeros(len(one.rows), np.int64) for one in strata]
        return cls(np.zeros(segments, np.int64), strata, counts, {label: of_label() for label in labels})

    def add(self, reader: ShardReader, batch: Batch, answers: Mapping[str, Answers], base: int) -> int:
        """Adds a batch whose first segment is number `base` of all; returns how many segments it has."""
        places, segments = _places(reader, batch, base)
        here, at_M = slice(base, base + segments), places.segment_M - base
        self.masked_S[here] += np.bincount(at_M, minlength=segments)
        classes = [one.classes(places) for one in self.strata]
        for masked_K, class_M in zip(self.masked_K, classes, strict=True):
            masked_K += np.bincount(class_M, minlength=len(masked_K))
        for label, found in answers.items():
            mine = self.labels[label]
            right_M = found.rank_M < 1
            of_M: dict[str, NDArray[Any]] = {LOSS: found.nll_M, TOP1: right_M, TOP5: found.rank_M < 5}
            for name, sums_S in mine.by_segment.items():
                sums_S[here] += _summed(at_M, of_M[name], segments)
            for class_M, of_class in zip(classes, mine.by_class, strict=True):
                for name, sums_K in of_class.items():
                    sums_K += _summed(class_M, of_M[name], len(sums_K))
            mine.reliability.add(found.sure_M, right_M)
        return segments


def _places(reader: ShardReader, batch: Batch, base: int) -> tuple[Places, int]:
    """Where the masked positions of a batch lie, and how many segments it has."""
    ids_B, at_M = batch.sequence_ids_B, batch.masked_M[: batch.count].numpy()
    lengths_S, offsets = reader.segments_of_rows(ids_B)
    row_M, column_M = np.divmod(at_M, reader.length)
    segment_M = offsets[row_M] + batch.segment_ids_BL.reshape(-1).numpy()[at_M]
    ends = np.concatenate([[0], np.cumsum(lengths_S)])
    begin_S = ends[:-1] - np.repeat(ends[offsets[:-1]], np.diff(offsets))
    return Places(reader.stored_rows(ids_B), at_M, base + segment_M, column_M - begin_S[segment_M]), len(lengths_S)


def _outcome(what: Asked, rate: str, sums: Sums, remarks: tuple[str, ...]) -> Outcome:
    units, unit_S = np.unique(what.document_S, return_inverse=True)
    masked_U = _summed(unit_S, sums.masked_S, len(units))
    by_document = {
        label: {name: _summed(unit_S, one, len(units)) for name, one in mine.by_segment.items()}
        for label, mine in sums.labels.items()
    }
    figures = _figures(by_document, masked_U)
    reliability = {label: mine.reliability.bins() for label, mine in sums.labels.items()}
    figures[ECE] = {label: Figure(expected_error(bins), int(masked_U.sum())) for label, bins in reliability.items()}
    details: dict[str, Any] = {"rate": rate}
    if sums.strata:
        details["reliability"] = {label: [list(one) for one in bins] for label, bins in reliability.items()}
    if difference := _difference(by_document, masked_U):
        details["difference_to_champion"] = difference
    return Outcome(
        task=f"rate_{rate}",
        kind="intrinsic",
        title=f"Hidden tokens, {_percent(rate)} of each segment",
        main=LOSS,
        metrics=METRICS,
        figures=figures,
        tables=tuple(_tables(sums)),
        counts={
            "rows": len(what.rows),
            "documents": len(units),
            "segments": len(sums.masked_S),
            "segments_without_mask": int((sums.masked_S == 0).sum()),
            "masked": int(masked_U.sum()),
        },
        remarks=(*_remarks(int((masked_U > 0).sum())), *remarks),
        details=details,
        units=_units(what, units, masked_U, by_document, sums) if sums.strata else (),
    )


def _units(
    what: Asked,
    document_U: NDArray[np.int64],
    masked_U: NDArray[np.float64],
    by_document: Mapping[str, Mapping[str, NDArray[np.float64]]],
    sums: Sums,
) -> tuple[Units, ...]:
    """Of the model and the champion: what they lost on each document and on each class of tokens."""
    models = [label for label in (MODEL, CHAMPION) if label in by_document]
    asked_U = masked_U > 0
    # Shards that are not of this corpus have documents that it does not: their number names them.
    ids = [what.ids[one] if one < len(what.ids) else f"document {one}" for one in document_U[asked_U].tolist()]
    losses = {label: by_document[label][LOSS][asked_U] for label in models}
    documents = Units("document", ("",) * len(ids), tuple(ids), masked_U[asked_U].astype(np.int64), losses)
    rows = [(one.title, row) for one in sums.strata for row in one.rows]
    classes = {label: np.concatenate([by_class[LOSS] for by_class in sums.labels[label].by_class]) for label in models}
    groups, names = (tuple(column) for column in zip(*rows, strict=True))
    return documents, Units("class", groups, names, np.concatenate(sums.masked_K), classes)


def _summed(class_N: NDArray[np.int64], values_N: NDArray[Any], classes: int) -> NDArray[np.float64]:
    """Σ values of each class, (classes,)."""
    return np.bincount(class_N, values_N, classes).astype(np.float64, copy=False)


def _figures(
    by_document: Mapping[str, Mapping[str, NDArray[np.float64]]], masked_U: NDArray[np.float64]
) -> dict[str, dict[str, Figure]]:
    """Metric -> label -> figure, with intervals over documents."""
    sums = [(name, label, of[name]) for label, of in by_document.items() for name in SUMS]
    n, ends = int(masked_U.sum()), _intervals([one for _, _, one in sums], masked_U)
    figures: dict[str, dict[str, Figure]] = {name: {} for name in (LOSS, PERPLEXITY, TOP1, TOP5)}
    for (name, label, one), (low, high) in zip(sums, ends, strict=True):
        figures[name][label] = Figure(float(one.sum()) / n, n, low, high)
    for label, loss in figures[LOSS].items():
        between = (None if end is None else perplexity(end) for end in (loss.low, loss.high))
        figures[PERPLEXITY][label] = Figure(perplexity(loss.value), n, *between)
    return figures


def _intervals(
    numerators: Sequence[NDArray[np.float64]], masked_U: NDArray[np.float64]
) -> list[tuple[float | None, float | None]]:
    """None where there is one document only: nothing says how much another would differ. Rounded, since the order in
    which a product sums is the library's."""
    if (masked_U > 0).sum() < 2:
        return [(None, None)] * len(numerators)
    return [
        (round(float(low), 9), round(float(high), 9)) for low, high in ratio_intervals(np.stack(numerators), masked_U)
    ]


def _difference(
    by_document: Mapping[str, Mapping[str, NDArray[np.float64]]], masked_U: NDArray[np.float64]
) -> dict[str, Any]:
    """Masked cross-entropy less the champion's, on the same tokens: below 0 the model is better."""
    if not {MODEL, CHAMPION} <= by_document.keys():
        return {}
    apart_U = by_document[MODEL][LOSS] - by_document[CHAMPION][LOSS]
    ((low, high),) = _intervals([apart_U], masked_U)
    return {"value": float(apart_U.sum() / masked_U.sum()), "n": int(masked_U.sum()), "low": low, "high": high}


def _tables(sums: Sums) -> list[Table]:
    tables = []
    for number, (stratum, masked_K) in enumerate(zip(sums.strata, sums.masked_K, strict=True)):
        for name in IN_TABLES:
            columns = {
                label: tuple(
                    Figure(float(value) / int(n), int(n)) if n else None
                    for value, n in zip(mine.by_class[number][name], masked_K, strict=True)
                )
                for label, mine in sums.labels.items()
            }
            title = f"{METRICS[name].title} {stratum.title}"
            tables.append(Table(title, stratum.axis, METRICS[name], stratum.rows, columns, main=number == 0))
    return tables


def _percent(rate: str) -> str:
    percent = 100 * fraction(rate)
    return f"{float(percent):g}\u00a0%" if percent.denominator in (1, 2, 5, 10) else rate


def _remarks(units: int) -> list[str]:
    """What holds at every rate."""
    among = "there is one only, so there are none" if units == 1 else f"{units:,} of them"
    return [
        f"Intervals: 95 %, bootstrap over documents ({among}).",
        f"Expected calibration error: {BINS} bins of about as many tokens (Nguyen and O'Connor 2015), not of equal "
        "width as in Guo et al. 2017.",
        "The test split is held out of the same corpus: what both splits share is said in the corpus's card.",
    ]
