"""One evaluation set on the report's page: its figures beside their baselines, its classes, what was left out."""

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .charts import Dot, Line, Scale, dots, kind_of, legend, plot, scale_of, track
from .report_words import (
    baselines_of,
    best_of,
    called,
    capital,
    closeness,
    ends,
    exposed,
    finite,
    models_of,
    standing,
    unit_of,
)
from .results import BASELINE, CHAMPION, Figure, Metric, Outcome, Table, shown
from .sheet import in_html
from .sheet import name_of as isolated

ARROWS = {"higher": ("↑", "higher is better"), "lower": ("↓", "lower is better"), "": ("", "")}

PICTURES = "figure img { max-width: 100%; } .classes thead th { overflow-wrap: normal; }\n"
"""Style of a page with pictures."""


def section(one: Outcome, names: Mapping[str, str]) -> str:
    """A set's part of the page. `names` are what the report calls its models, by label."""
    models = models_of([one])
    parts = [
        f"<section>\n<h2>{in_html(one.title)}</h2>",
        _lead(one, models, names),
        _chart(one, models, names),
        metrics_table(one, models, names),
        *(_table(table, one, models, names) for table in sorted(one.tables, key=lambda table: not table.main)),
        _calibration(one, models, names),
        _notes(one),
        "</section>",
    ]
    return "\n".join(filter(None, parts))


def number(figure: Figure | None, metric: Metric) -> str:
    """A figure without its interval."""
    return shown(replace(figure, low=None, high=None) if figure else None, metric)


def interval(figure: Figure | None, metric: Metric) -> str:
    """ "50.1 to 58.0", or nothing."""
    if figure is None or not finite(figure) or figure.low is None or figure.high is None:
        return ""
    if not math.isfinite(figure.low + figure.high):
        return ""
    factor, form = (100, "{:.1f} to {:.1f}") if metric.unit == "%" else (1, "{:.3f} to {:.3f}")
    return form.format(factor * figure.low, factor * figure.high)


def of(figures: Iterable[Figure | None], metric: Metric, small: bool = False) -> str:
    """What n is, as HTML: "24,000 pairs", "120 to 300 examples"."""
    counts = sorted({figure.n for figure in figures if figure is not None})
    what = f"<small>{in_html(metric.of)}</small>" if small else in_html(metric.of)
    return f"{_counted(counts)} {what}" if counts else ""


def _counted(counts: Sequence[int]) -> str:
    return f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}" if counts else "–"


def _lead(one: Outcome, models: Sequence[str], names: Mapping[str, str]) -> str:
    if not models:
        return ""
    alone = [label for label in models if label != CHAMPION]
    said = closeness(one, models, names) if len(alone) > 1 else f"{standing(one, models[0], names)}."
    return f"<p>{in_html(capital(one.metrics[one.main].title))}: {in_html(said)}</p>" if said else ""


def marks(labels: Iterable[str], models: Sequence[str]) -> dict[str, str]:
    """Label -> its kind of mark."""
    return {label: kind_of(models.index(label) if label in models else None) for label in labels}


def _form(scale: Scale, metric: Metric) -> str:
    """How ticks are written."""
    wide = scale.high - scale.low
    if metric.unit == "%":
        return "{:.0%}" if wide > 0.05 else "{:.1%}"
    return "{:g}" if wide > 5 else "{:.1f}" if wide > 0.5 else "{:.3g}"


def _scale(figures: Iterable[Figure | None], metric: Metric) -> Scale:
    values = [end for figure in figures if figure and finite(figure) for end in (figure.value, *ends(figure))]
    if metric.unit == "%":
        return scale_of(values, 0.0, 1.0)
    return scale_of(values, 0.0 if values and min(values) >= 0 else -math.inf)


def _chart(one: Outcome, models: Sequence[str], names: Mapping[str, str]) -> str:
    """The main metric: the models, then the baselines, the hardest first."""
    row, metric = one.figures[one.main], one.metrics[one.main]
    labels = [*(label for label in models if label in row), *baselines_of(row, metric)]
    scale, kinds = _scale(row.values(), metric), marks(labels, models)
    rows = [
        (
            f"<b>{isolated(called(label, names))}</b>" if label in models else isolated(called(label, names)),
            _dot(kinds[label], row[label], metric, called(label, names)),
            f"<b>{number(row[label], metric)}</b> <small>{interval(row[label], metric)}</small>",
        )
        for label in labels
    ]
    arrow, better = ARROWS[metric.better]
    unit = f", {unit_of(metric)}" if unit_of(metric) else ""
    title = f"{in_html(metric.title)}{in_html(unit)} · {of(row.values(), metric)} {arrow} {better}"
    return f'<figure class="main"><h4>{title}</h4>{dots(rows, scale, _form(scale, metric))}</figure>'


def _dot(kind: str, figure: Figure | None, metric: Metric, name: str) -> Dot:
    if figure is None:
        return Dot(kind, "", math.nan)
    said = f"{name}: {shown(figure, metric)}, n {figure.n:,}"
    return Dot(kind, said, figure.value, figure.low, figure.high)


def metrics_table(one: Outcome, models: Sequence[str], names: Mapping[str, str]) -> str:
    """All metrics of all labels."""
    every = dict.fromkeys(label for row in one.figures.values() for label in row)
    labels = [*models, *(label for label in baselines_of(one.figures[one.main], one.metrics[one.main]))]
    labels += [label for label in every if label not in labels]
    head = "".join(f'<th scope="col">{_head(name, one)}</th>' for name in one.metrics)
    lines = []
    best = {name: best_of(one, name, models) for name in one.metrics}
    for label in labels:
        cells = "".join(
            f"<td>{_cell(row.get(label), one.metrics[name], row, label in best[name])}</td>"
            for name, row in one.figures.items()
        )
        kind = "model" if label in models else "baseline"
        lines.append(f'<tr class="{kind}"><th scope="row">{isolated(called(label, names))}</th>{cells}</tr>')
    return (
        f'<div class="wide"><table class="figures"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _head(name: str, one: Outcome) -> str:
    metric = one.metrics[name]
    arrow, better = ARROWS[metric.better]
    unit = f"<small>{in_html(unit_of(metric))}</small>" if unit_of(metric) else ""
    mark = f'<span title="{better}">{arrow}</span>' if arrow else ""
    return f'{in_html(metric.title)} {mark}{unit}<small class="n">n = {of(one.figures[name].values(), metric)}</small>'


def _cell(figure: Figure | None, metric: Metric, row: Mapping[str, Figure], best: bool = False) -> str:
    if figure is None:
        return "–"
    value = f"<b>{number(figure, metric)}</b>" if best else number(figure, metric)
    same = len({other.n for other in row.values()}) == 1
    small = [interval(figure, metric), "" if same else f"n {figure.n:,}"]
    return value + "".join(f"<small>{text}</small>" for text in small if text)


def _table(table: Table, one: Outcome, models: Sequence[str], names: Mapping[str, str]) -> str:
    """One metric in several classes, with a picture of each row; folded away unless it is a main one."""
    metric, labels = table.metric, [*(label for label in models if label in table.columns)]
    labels += [label for label in table.columns if label not in labels]
    if not table.rows or not labels:
        return ""
    kinds = marks(labels, models)
    scale = _scale((figure for column in table.columns.values() for figure in column), metric)
    head = "".join(f'<th scope="col">{isolated(called(label, names))}</th>' for label in labels)
    lines = []
    for at, row in enumerate(table.rows):
        figures = {label: table.columns[label][at] for label in labels}
        drawn = track((_dot(kinds[label], figures[label], metric, called(label, names)) for label in labels), scale)
        there = {label: figure for label, figure in figures.items() if figure is not None}
        cells = "".join(f"<td>{_cell(figure, metric, there)}</td>" for figure in figures.values())
        counts = sorted({figure.n for figure in there.values()})
        lines.append(f'<tr><th scope="row">{isolated(row)}</th><td>{drawn}</td>{cells}<td>{_counted(counts)}</td></tr>')
    ends_of = f"{_tick(scale.low, metric)} to {_tick(scale.high, metric)}"
    body = (
        f"{legend((kinds[label], isolated(called(label, names))) for label in labels)}"
        f'<div class="wide"><table class="classes"><thead><tr><th>{in_html(table.axis)}</th>'
        f'<th scope="col">{ends_of}</th>{head}<th scope="col">n, {in_html(metric.of)}</th></tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>{_without(table, one, names)}"
    )
    title = f"{in_html(capital(table.title))} <small>{len(table.rows):,} rows</small>"
    return f"<h3>{title}</h3>{body}" if table.main else f"<details><summary>{title}</summary>{body}</details>"


def _tick(value: float, metric: Metric) -> str:
    return f"{value:.0%}" if metric.unit == "%" else f"{value:.2g}"


def _without(table: Table, one: Outcome, names: Mapping[str, str]) -> str:
    """Of a table without a baseline: where its baseline stands."""
    if any(label.startswith(BASELINE) for label in table.columns):
        return ""
    row, metric = one.figures[one.main], one.metrics[one.main]
    best = next(iter(baselines_of(row, metric)), None)
    said = f"{called(best, names)} {number(row[best], metric)}" if best else "none"
    return f'<p class="baseline">No baseline by {in_html(table.axis)}; over all of them: {in_html(said)}.</p>'


def _calibration(one: Outcome, models: Sequence[str], names: Mapping[str, str]) -> str:
    """Reliability: how often it is right, by how sure it is. Bins from details["reliability"], by label."""
    found = one.details.get("reliability")
    if not isinstance(found, Mapping) or not found:
        return ""
    labels = [*(label for label in models if label in found), *(label for label in found if label not in models)]
    kinds = marks(labels, models)
    shown_bins = "".join(
        f"<figure>{_reliability(found[label], kinds[label])}<figcaption><b>{isolated(called(label, names))}</b>"
        f"{_error(one, label)}</figcaption></figure>"
        for label in labels
        if _bins(found[label])
    )
    said = (
        "Tokens in bins by the probability of the model's first guess. On the dashed line it is right as often as it "
        "says; below it, it is too sure of itself."
    )
    return f'<h3>Calibration</h3><p>{said}</p><div class="several">{shown_bins}</div>' if shown_bins else ""


def _bins(found: Any) -> list[tuple[float, float, int]]:
    """Bins as (confidence, accuracy, n); those that say nothing are left out."""
    rows = [tuple(row) for row in found if None not in row]
    return [(sure, right, n) for sure, right, n in rows if n and math.isfinite(sure) and math.isfinite(right)]


def _reliability(found: Any, kind: str) -> str:
    bins = _bins(found)
    said = [f"sure {sure:.1%}, right {right:.1%}, n {n:,}" for sure, right, n in bins]
    unit = Scale(0.0, 1.0)
    lines = [
        Line("right as often as it says", [(0.0, 0.0), (1.0, 1.0)], "diagonal"),
        Line("reliability", [(sure, right) for sure, right, _ in bins], f"s{kind}", True, said),
    ]
    ticks = {0.0: "0%", 0.25: "", 0.5: "50%", 0.75: "", 1.0: "100%"}
    return plot(lines, {}, (unit, unit), ("how sure it is", "how often it is right"), (ticks, "{:.0%}"), square=True)


def _error(one: Outcome, label: str) -> str:
    """The figure that sums the picture up, with its n."""
    for name, metric in one.metrics.items():
        if "calibration" in metric.title.lower() and label in one.figures[name]:
            figure = one.figures[name][label]
            return f"<br>{in_html(metric.title)} {shown(figure, metric)}, n\u00a0{figure.n:,}"
    return ""


def pictures(shown: Mapping[str, bytes]) -> str:
    """PNGs with what they show below them; part of the page, which loads nothing."""
    return "".join(
        f'<figure><img alt="{in_html(what)}" src="data:image/png;base64,'
        f'{base64.b64encode(png).decode()}"><figcaption>{in_html(what)}</figcaption></figure>'
        for what, png in shown.items()
    )


def _notes(one: Outcome) -> str:
    """Exposure, what was read and left out, remarks."""
    why = exposed(one.exposure, one.remarks)
    lines = [f"<li>{in_html(remark)}</li>" for remark in one.remarks if remark != why]
    counts = ", ".join(f"{in_html(name.replace('_', ' '))} <b>{n:,}</b>" for name, n in one.counts.items())
    read = f"<li>Counted: {counts}.</li>" if counts else ""
    held_out = one.kind == "intrinsic" and one.exposure is None  # its remarks say what both splits share
    return f'<ul class="notes">{"" if held_out else f"<li>{in_html(why)}</li>"}{read}{"".join(lines)}</ul>'
