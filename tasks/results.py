"""What an evaluation found: figures with what they are compared with, how many things they are of, and an interval.

One Outcome a task and evaluation set. The report, the model card, MLflow and `maskmill compare` read nothing else, so
what holds here holds everywhere: no score without a baseline, none without its n.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

MODEL, CHAMPION = "test", "champion"
"""Labels of the model itself (it goes by the split) and of the one to beat: the first part of a metric's name."""
ALONE = "alone"
"""Of a model that was trained on this modality alone, where the model was on two."""
BASELINE = "baseline_"
"""What the label of a baseline begins with."""
UNIGRAM, BIGRAM, UNTRAINED = BASELINE + "unigram", BASELINE + "bigram", BASELINE + "untrained"
PLACE, NEIGHBOUR = BASELINE + "place", BASELINE + "neighbour"
NAMES = {
    MODEL: "this model",
    CHAMPION: "champion before",
    ALONE: "trained alone",
    UNIGRAM: "unigram",
    BIGRAM: "bigram",
    UNTRAINED: "untrained",
    PLACE: "unigram of the place",
    NEIGHBOUR: "copied neighbour",
}
"""How a person reads the labels that have a name of their own; the others read as they are, without the prefix."""


@dataclass(frozen=True)
class Figure:
    """A number, and how sure it is."""

    value: float
    n: int
    """Things it is a mean over: masked tokens, pairs, examples."""
    low: float | None = None
    """Lower end of its 95 % interval; None where it has none."""
    high: float | None = None


@dataclass(frozen=True)
class Metric:
    """What a number means."""

    title: str
    """"accuracy", "masked cross-entropy"."""
    unit: str = ""
    """"nats per masked token"; "%" shows a share of 1 as per cent."""
    better: str = "higher"
    """higher, lower, or "" for one that is neither."""
    of: str = "examples"
    """What n counts."""


@dataclass(frozen=True)
class Table:
    """One metric in several classes: accuracy by paradigm, by frequency decile."""

    title: str
    axis: str
    """What the rows are: "paradigm"."""
    metric: Metric
    rows: tuple[str, ...]
    columns: Mapping[str, tuple[Figure | None, ...]]
    """Label -> a figure for each row; None where the class is empty."""
    main: bool = False
    """Shown open, not folded away."""


@dataclass(frozen=True)
class Units:
    """What a figure is made of: sums by document, passage, class. Two models are compared by them (evidence.py)."""

    kind: str
    """document, passage, class."""
    groups: tuple[str, ...]
    """Of a class its stratum, of a passage its document, of a document nothing."""
    names: tuple[str, ...]
    """The same wherever the same was asked."""
    n: NDArray[np.int64]
    """Masked tokens, or bytes (U,)."""
    sums: Mapping[str, NDArray[np.float64]]
    """Label -> summed −log p (U,): nats of tokens, bits of passages; NaN where the model could not be asked."""


@dataclass(frozen=True)
class Exposure:
    """What of an evaluation set the model has read in training: 13 words in a row shared with the train split."""

    examples: int
    looked_for: int
    """Examples of 13 words or more."""
    found: int


@dataclass(frozen=True)
class Outcome:
    """All that a task says of one evaluation set.

    Raises AssertionError for a metric without a baseline: then a task has forgotten it.
    """

    task: str
    """The set's name: unique in a report, and a part of metric names ("zorro", "rate_0.15")."""
    kind: str
    """intrinsic, pseudo_likelihood, minimal_pairs, cloze, classification, tagging."""
    title: str
    main: str
    """The metric that counts."""
    metrics: Mapping[str, Metric]
    figures: Mapping[str, Mapping[str, Figure]]
    """Metric -> label -> its figure."""
    tables: tuple[Table, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    """What was read, and what was left out, by reason."""
    remarks: tuple[str, ...] = ()
    """Sentences that a reader of the figures has to know."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What else belongs into the JSON, and pictures are drawn from (bins of calibration, examples)."""
    exposure: Exposure | None = None
    """None where it was not measured; `remarks` says why."""
    units: tuple[Units, ...] = field(default=(), repr=False, compare=False)
    """No part of the report."""

    def __post_init__(self) -> None:
        assert self.main in self.metrics and self.metrics.keys() == self.figures.keys(), self.task
        for metric, by_label in self.figures.items():
            assert any(label.startswith(BASELINE) for label in by_label), f"{self.task}: {metric} has no baseline"

    def without_tables(self) -> "Outcome":
        """Only the figures, and what a reader has to know of them."""
        return replace(self, tables=(), details={})

    def as_json(self) -> dict[str, Any]:
        """For report.json: plain dictionaries; a number that is not finite becomes null."""
        page: dict[str, Any] = _plain(asdict(replace(self, units=())))
        page.pop("units")
        return page


def outcome_of(page: Mapping[str, Any]) -> Outcome:
    """The inverse of `as_json`."""

    def figure(entry: Mapping[str, Any] | None) -> Figure | None:
        return (
            None
            if entry is None
            else Figure(**{**entry, "value": math.nan if entry["value"] is None else entry["value"]})
        )

    tables = tuple(
        Table(
            **{
                **entry,
                "metric": Metric(**entry["metric"]),
                "rows": tuple(entry["rows"]),
                "columns": {label: tuple(map(figure, column)) for label, column in entry["columns"].items()},
            }
        )
        for entry in page["tables"]
    )
    figures = {name: {label: figure(one) for label, one in row.items()} for name, row in page["figures"].items()}
    whole = {
        **page,
        "metrics": {name: Metric(**entry) for name, entry in page["metrics"].items()},
        "figures": figures,
        "tables": tables,
        "remarks": tuple(page["remarks"]),
        "exposure": Exposure(**page["exposure"]) if page["exposure"] else None,
    }
    return Outcome(**whole)


def metrics_of(outcome: Outcome) -> dict[str, float]:
    """Flat names for MLflow and the ledger, "test/zorro/accuracy", of what is finite; intervals are in the report."""
    return {
        f"{label}/{outcome.task}/{metric}": round(figure.value, 6)
        for metric, by_label in outcome.figures.items()
        for label, figure in by_label.items()
        if math.isfinite(figure.value)
    }


def name_of(label: str) -> str:
    """A label for people."""
    return NAMES.get(label, label.removeprefix(BASELINE).replace("_", " ") if label.startswith(BASELINE) else label)


def shown(figure: Figure | None, metric: Metric) -> str:
    """A figure as a report writes it: "54.2 % (50.1 to 58.0)", "3.608"."""
    if figure is None or not math.isfinite(figure.value):
        return "–"
    ends = () if figure.low is None or figure.high is None else (figure.low, figure.high)
    if metric.unit == "%":
        between = " ({:.1f} to {:.1f})".format(*(100 * end for end in ends)) if ends else ""
        return f"{100 * figure.value:.1f}\u00a0%{between}"
    return f"{figure.value:.3f}" + (" ({:.3f} to {:.3f})".format(*ends) if ends else "")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
