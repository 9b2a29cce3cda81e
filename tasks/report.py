"""The report of an evaluation: one HTML file that loads nothing; short Markdown; JSON. Is it good yet, against what?

One model or several: their figures stand beside each other and beside baselines, each with its n and, where it has one,
its 95 % interval. Names and texts come from somebody's data: they are escaped, and the page forbids scripts and loading
anything. The same report gives the same bytes.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .charts import STYLE, Line, amount, plot, scale_of
from .report_sections import PICTURES, interval, number, of, pictures, section
from .report_words import (
    BASELINES,
    baselines_of,
    best_of,
    called,
    close,
    comparable,
    finite,
    listed,
    meaning,
    models_of,
    unit_of,
    verdict,
)
from .results import BASELINE, CHAMPION, MODEL, Figure, Outcome
from .sheet import POLICY, in_html, in_markdown, table_in_markdown
from .sheet import name_of as isolated
from .sheet import page as whole_page
from .sheet import section as part

INTERVAL = (
    "where the figure would lie in 95 of 100 evaluations on other {} of the same kind (bootstrap). Where two "
    "intervals overlap, this report does not call one better."
)
LOSS = "Masked cross-entropy in nats per masked token"
"""What a learning curve shows."""
DENSITY = (
    "−log of the density that the model gives to the bytes of a hidden token, in nats per masked token (not a loss of "
    "tokens, so none of the baselines is of its kind),"
)
"""What it shows where the bytes that go along with tokens are learnt."""
_EASIER = "<small>not ranked: see the set's remarks</small>"
_LINK = re.compile(r"https?://|(?![a-z][a-z0-9+.-]*:|//)[^\s]", re.IGNORECASE)
"""An address that a report may point to: http, https, or a path without a scheme."""
_DIGEST = re.compile(r"[0-9a-f]{16,}")


@dataclass(frozen=True)
class Examined:
    """A model of a report."""

    label: str
    """In the outcomes: "test", or the name that a comparison gives it."""
    name: str
    """For people: "quickstart", "bert-base-uncased"."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What it is and what it was made from: "parameters", "tokens trained on", digests. Shown in this order."""


@dataclass(frozen=True)
class Curve:
    """How it learnt."""

    points: Sequence[Mapping[str, Any]]
    """Of curve.jsonl: tokens, train/loss, validation/masked_cross_entropy."""
    rate: str
    """Mask rate of the shards."""
    levels: Mapping[str, Figure] = field(default_factory=dict)
    """Label -> masked cross-entropy on the test split at that rate: unigram, bigram, untrained, champion."""
    what: str = LOSS


@dataclass(frozen=True)
class Report:
    """All that a page shows."""

    title: str
    models: Sequence[Examined]
    outcomes: Sequence[Outcome]
    curve: Curve | None = None
    predictions: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """Label -> for each sentence {"text", "masks": [[{"token", "probability"}, …], …]}."""
    remarks: Sequence[str] = ()
    """What concerns the whole report: what was left out, and why."""
    links: Mapping[str, str] = field(default_factory=dict)
    """What -> address: the MLflow run, the Prefect flow run, the model card."""
    commands: Mapping[str, str] = field(default_factory=dict)
    """What it does -> command: makes the model again, asks it, compares it."""
    documents: str = "texts"
    """What the documents are that it was asked about."""
    baselines: Mapping[str, str] = field(default_factory=dict)
    """Label without its prefix -> what it is, where report_words does not say it or says it otherwise."""
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    """What it shows -> a PNG."""

    @property
    def names(self) -> dict[str, str]:
        """What its models are called."""
        alone = len([one for one in self.models if one.label != CHAMPION]) == 1
        return {one.label: one.name for one in self.models if not (alone and one.label == MODEL)}


def page(report: Report) -> str:
    """The report as one HTML file."""
    names = report.names
    parts = [
        _head(report),
        part("At a glance", _glance(report)),
        part("How it learnt", _curve(report.curve)),
        *(section(one, names) for one in report.outcomes),
        part("What it fills in", _predictions(report) + pictures(report.pictures)),
        part("How to read this", _reading(report)),
        part("Where it comes from", _origin(report)),
    ]
    body, more = "\n".join(filter(None, parts)), report.pictures
    policy, style = (f"{POLICY}; img-src data:", STYLE + PICTURES) if more else (POLICY, STYLE)
    return whole_page(body, report.title, style, policy)


def as_json(report: Report) -> dict[str, Any]:
    """For report.json: what programs read. Without links: they depend on where a run was tracked."""
    return {
        "title": report.title,
        "verdict": verdict(report.outcomes, report.names),
        "models": [{"label": one.label, "name": one.name, "facts": dict(one.facts)} for one in report.models],
        "outcomes": [one.as_json() for one in report.outcomes],
        "predictions": {label: list(found) for label, found in report.predictions.items()},
        "remarks": list(report.remarks),
    }


def markdown(report: Report) -> str:
    """The main figure of each set, for places that show Markdown: the model card, Prefect. Narrow tables."""
    names, rows = report.names, []
    models = models_of(report.outcomes)
    for one in report.outcomes:
        row, metric = one.figures[one.main], one.metrics[one.main]
        best = next(iter(baselines_of(row, metric)), None)
        beside = f"{in_markdown(called(best, names))} {number(row[best], metric)}" if best else "–"
        cells = [f"{in_markdown(one.title)}, {in_markdown(metric.title)}"]
        cells += [_bare(row.get(label), one) for label in models]
        rows.append([*cells, beside, in_markdown(of(row.values(), metric))])
    head = ["set", *(in_markdown(called(label, names)) for label in models), "best baseline", "n"]
    remarks = [f"- {in_markdown(remark)}" for remark in report.remarks]
    lines = [in_markdown(verdict(report.outcomes, names)), "", *table_in_markdown(head, rows), *remarks]
    return "\n".join(lines) + "\n"


def _bare(figure: Figure | None, one: Outcome) -> str:
    metric = one.metrics[one.main]
    between = interval(figure, metric)
    return number(figure, metric) + (f" ({between})" if between else "")


def _head(report: Report) -> str:
    said = f'<p class="verdict">{in_html(verdict(report.outcomes, report.names))}</p>'
    remarks = "".join(f"<li>{in_html(remark)}</li>" for remark in report.remarks)
    return "\n".join(
        [
            f"<h1>{in_html(report.title)}</h1>",
            said,
            _facts(report.models),
            f'<ul class="notes">{remarks}</ul>' if remarks else "",
        ]
    )


def _facts(models: Sequence[Examined]) -> str:
    """One line for a model; a table for several."""
    if len(models) == 1:
        facts = [f"{in_html(name)} <b>{_fact(value)}</b>" for name, value in models[0].facts.items()]
        return f'<p class="notes">{" · ".join(facts)}</p>' if facts else ""
    every = dict.fromkeys(name for one in models for name in one.facts)
    head = "".join(f'<th scope="col">{isolated(one.name)}</th>' for one in models)
    rows = "".join(
        f'<tr><th scope="row">{in_html(name)}</th>'
        + "".join(f"<td>{_fact(one.facts.get(name, '–'))}</td>" for one in models)
        + "</tr>"
        for name in every
    )
    return f'<div class="wide"><table><tr><th></th>{head}</tr>{rows}</table></div>' if rows else ""


def _fact(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    text = str(value)
    return f'<code title="{in_html(text)}">{text[:12]}</code>' if _DIGEST.fullmatch(text) else isolated(text)


def _glance(report: Report) -> str:
    """The main figure of every set: tiles of one model, a table of several."""
    models = models_of(report.outcomes)
    if len(models) > 1:
        return _table(report, models)
    tiles = "".join(_tile(one, models[0], report.names) for one in report.outcomes if models)
    return f'<div class="tiles sets">{tiles}</div>' if tiles else ""


def _tile(one: Outcome, model: str, names: Mapping[str, str]) -> str:
    row, metric = one.figures[one.main], one.metrics[one.main]
    figure, best = row.get(model), next(iter(baselines_of(row, metric)), None)
    unit = f", {said}" if (said := unit_of(metric).partition(",")[0]) else ""
    beside = f"best baseline: {called(best, names)} {number(row[best], metric)}" if best else ""
    n = f"n = {of([figure], metric)}" if figure else ""
    between = interval(figure, metric)
    lines = [f"{one.title}, {metric.title}{unit}", f"{between} ({95}\u00a0%)" if between else "", beside]
    small = "".join(f"<small>{in_html(line)}</small>" for line in lines[1:] if line)
    return f"<div><b>{number(figure, metric)}</b><span>{in_html(lines[0])}{small}<small>{n}</small></span></div>"


def _table(report: Report, models: Sequence[str]) -> str:
    names = report.names
    head = "".join(f'<th scope="col">{isolated(called(label, names))}</th>' for label in models)
    lines = []
    for one in report.outcomes:
        row, metric = one.figures[one.main], one.metrics[one.main]
        best = next(iter(baselines_of(row, metric)), None)
        best_models = best_of(one, one.main, models)
        easier = [label for label in models if label in row and not comparable(one, [label])]
        cells = "".join(
            f"<td>{_marked(row.get(label), one, label in best_models)}{_EASIER if label in easier else ''}</td>"
            for label in models
        )
        beside = f"{isolated(called(best, names))} {_marked(row[best], one, False)}" if best else "–"
        lines.append(
            f'<tr><th scope="row">{in_html(one.title)}<small>{in_html(metric.title)}</small></th>{cells}'
            f"<td>{beside}</td><td>{of(row.values(), metric, small=True)}</td></tr>"
        )
    near = listed([one.title for one in close(report.outcomes, models)])
    apart = (
        "" if near == "nothing" else f" Not told apart from the next best (their intervals overlap): {in_html(near)}."
    )
    return (
        f'<div class="wide"><table class="figures"><thead><tr><th></th>{head}<th scope="col">best baseline</th>'
        f'<th scope="col">n</th></tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
        f"<p>Bold is the best of the models.{apart}</p>"
    )


def _marked(figure: Figure | None, one: Outcome, best: bool) -> str:
    metric = one.metrics[one.main]
    value = number(figure, metric)
    return (f"<b>{value}</b>" if best else value) + (
        f"<small>{text}</small>" if (text := interval(figure, metric)) else ""
    )


def _curve(curve: Curve | None) -> str:
    """Loss by tokens, with the lines of the baselines that it must stay below."""
    if curve is None or not curve.points:
        return ""
    trained = _points(curve, "train/loss")
    held = _points(curve, "validation/masked_cross_entropy")
    lines = [Line("training", trained, "s0")] if trained else []
    lines += (
        [Line("validation", held, "s1", True, [f"{y:.3f} after {amount(x)} tokens" for x, y in held])] if held else []
    )
    levels = {
        f"{called(label, {})} {figure.value:.3f}": figure.value
        for label, figure in curve.levels.items()
        if finite(figure)
    }
    x = scale_of([0.0, *(x for x, _ in trained + held)], 0.0)
    y = scale_of([*(y for _, y in trained + held), *levels.values()])
    drawn = plot(
        lines, levels, (x, y), ("tokens trained on", "nats"), ({tick: amount(tick) for tick in x.ticks}, "{:g}")
    )
    keys = "".join(f'<li><i class="m{line.kind[1]}"></i>{line.label}</li>' for line in lines)
    counted = sorted({figure.n for figure in curve.levels.values()})
    of_levels = f" Dashed: the test split (n = {counted[-1]:,} masked tokens)." if counted else ""
    said = f"{curve.what} at mask rate {in_html(curve.rate)}; lower is better.{of_levels}"
    return f'<ul class="legend">{keys}</ul>{drawn}<p>{said}</p>'


def _points(curve: Curve, name: str) -> list[tuple[float, float]]:
    found = [(point.get("tokens"), point.get(name)) for point in curve.points]
    return [(x, y) for x, y in found if x is not None and y is not None and math.isfinite(x) and math.isfinite(y)]


def _predictions(report: Report) -> str:
    """What each model puts in place of [MASK]."""
    names, blocks = report.names, []
    for at in range(max(map(len, report.predictions.values()), default=0)):
        there = {label: found[at] for label, found in report.predictions.items() if at < len(found)}
        text = next(iter(there.values()))["text"]
        blocks.append(f'<blockquote dir="auto">{in_html(text)}</blockquote>')
        for label, one in there.items():
            name = f"<li>{isolated(called(label, names))}</li>" if len(there) > 1 else ""
            blocks += [f'<ul class="guess">{name}{"".join(map(_guess, row))}</ul>' for row in one["masks"]]
    return "".join(blocks)


def _guess(guess: Mapping[str, Any]) -> str:
    token = str(guess["token"])
    said = isolated(token.strip()) if token.strip() else f"<code>{in_html(repr(token))}</code>"
    return f"<li><b>{said}</b> <span>{float(guess['probability']):.1%}</span></li>"


def _reading(report: Report) -> str:
    """What n, intervals and baselines are; each metric in one line."""
    metrics = {metric.title: metric for one in report.outcomes for metric in one.metrics.values()}
    labels = dict.fromkeys(label for one in report.outcomes for row in one.figures.values() for label in row)
    known = {**BASELINES, **report.baselines}
    there = [(name, said) for label in labels if (said := known.get(name := label.removeprefix(BASELINE), ""))]
    entries = [
        ("n", "how many things a figure is a mean over. A figure of few things says little."),
        ("95 % interval", INTERVAL.format(report.documents)),
        ("baseline", "what one reaches without this model, or without training it. Only the distance to it counts."),
        *((f"baseline: {name}", said) for name, said in there),
        *((title, meaning(metric)) for title, metric in metrics.items()),
    ]
    lines = "".join(f"<div><dt>{in_html(word)}</dt><dd>{in_html(said)}</dd></div>" for word, said in entries if said)
    return f"<dl>{lines}</dl>"


def _origin(report: Report) -> str:
    links = " · ".join(
        f'<a href="{in_html(address)}">{in_html(what)}</a>'
        for what, address in report.links.items()
        if _LINK.match(address)
    )
    commands = "".join(
        f"<p>{in_html(what)}</p><pre><code>{in_html(command)}</code></pre>" for what, command in report.commands.items()
    )
    return (f"<p>{links}</p>" if links else "") + commands
