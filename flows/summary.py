"""What a finished run shows: a short page on the terminal, and a card per stage for the Prefect UI."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks import modalities, report_sections
from tasks.artifacts import Manifest
from tasks.masking import fraction
from tasks.report import Examined, Report, markdown
from tasks.report_words import baselines_of, called
from tasks.results import MODEL, NAMES, outcome_of
from tasks.versions import Version


@dataclass(frozen=True)
class Finished:
    """What the flow hands back."""

    recipe: str
    manifests: Mapping[str, Manifest]
    """Of each part."""
    stages: Mapping[str, Mapping[str, Any]]
    """Of the ledger: part -> state, seconds, why."""
    version: Version | None
    """In the registry."""


def show(run: Finished) -> None:
    """The page, on stdout, in 80 columns; plain where it is not a terminal."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 80
    if "evaluate" in run.manifests:
        _show_scores(console, run.manifests["evaluate"].facts, _front(run.manifests))
    console.print(_stages(run))
    console.print()
    if run.version:
        _show_version(console, run.version, run.manifests)
    if "register" in run.manifests and (found := forks(run.manifests["pretrain"])):
        console.print(f"Go on from it {found}", markup=False, soft_wrap=True)
    console.print("Both UIs      maskmill ui")


def _front(manifests: Mapping[str, Manifest]) -> Any:
    """What is said of the modality."""
    return modalities.front(manifests["vocabulary"].facts if "vocabulary" in manifests else {})


def _show_scores(console: Any, facts: Mapping[str, Any], front: Any) -> None:
    console.print()
    console.print(_scores(facts, front.HELD_OUT))
    console.print()
    if facts.get("tasks"):
        console.print(_tasks(facts["tasks"]))
        console.print()
    for prediction in facts["predictions"]:
        _print_predictions(console, prediction["text"], prediction["masks"])


def _show_version(console: Any, version: Version, manifests: Mapping[str, Manifest]) -> None:
    aliases = " ".join(f"@{alias}" for alias in version.aliases)
    console.print(f"Registered    {version.name} version {version.version} {aliases}", markup=False)
    console.print(f"              {version.tags.get('verdict', '')}", markup=False, soft_wrap=True)
    asked = _front(manifests).try_it(manifests["evaluate"])
    command = shlex.join(["maskmill", "predict", *asked, "--model", f"{version.name}/{version.version}"])
    console.print(f"Try it        {command}", markup=False, soft_wrap=True)


def forks(weights: Manifest) -> str:
    """How a run is forked from this one; "" where it has no stable checkpoints."""
    steps = [str(one["step"]) for one in weights.facts.get("stable", [])]
    if not steps:
        return ""
    others = f" (or @{', @'.join(steps[:-1])})" if steps[1:] else ""
    return f"--set pretrain.fork={weights.key[:12]}@{steps[-1]}{others}"


def _scores(facts: Mapping[str, Any], title: str) -> Any:
    from rich.table import Table

    metrics = facts["metrics"]
    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left", title_style="bold")
    table.title = title
    table.add_column("masked", justify="right")
    table.add_column("")
    for column in ("cross-entropy", "top-1", "top-5"):
        table.add_column(column, justify="right")
    for rate in facts["rates"]:
        for prefix, label in NAMES.items():
            at = f"{prefix}/rate_{rate}"
            if f"{at}/masked_cross_entropy" in metrics:
                table.add_row(
                    f"{float(fraction(rate)):.0%}" if prefix == "test" else "",
                    label,
                    f"{metrics[f'{at}/masked_cross_entropy']:.3f} nats",
                    f"{metrics[f'{at}/top1_accuracy']:.1%}",
                    f"{metrics[f'{at}/top5_accuracy']:.1%}",
                    style="bold" if prefix == "test" else None,
                )
    return table


def _tasks(pages: Sequence[Mapping[str, Any]]) -> Any:
    """The main figure of each evaluation set beside the best of its baselines."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left", title_style="bold")
    table.title = "Evaluation sets"
    for column in ("", "this model", "best baseline", "n"):
        table.add_column(column, justify="left" if column in ("", "best baseline") else "right")
    for one in map(outcome_of, pages):
        row, metric = one.figures[one.main], one.metrics[one.main]
        best = next(iter(baselines_of(row, metric)))
        beside = f"{called(best, {})} {report_sections.number(row[best], metric)}"
        cells = [
            f"{one.title}, {metric.title}",
            report_sections.number(row.get(MODEL), metric),
            beside,
            f"{row[MODEL].n:,}",
        ]
        table.add_row(*map(Text, cells))
    return table


def _print_predictions(console: Any, text: str, masks: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    from rich.text import Text

    console.print(Text(text, "italic"))
    for ranked in masks:
        words = [f"{_visible(it['token'])} {it['probability']:.1%}" for it in ranked]
        console.print(Text("    " + "  ".join(words)))


def _visible(token: str) -> str:
    """A token without the space before it; a blank one so that it can be seen."""
    return token.strip() or repr(token)


def _stages(run: Finished) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("stage")
    table.add_column("")
    table.add_column("seconds", justify="right")
    table.add_column("what")
    for name, entry in run.stages.items():
        manifest = run.manifests[name]
        table.add_row(name, entry["state"], f"{entry['seconds']:.1f}", what(manifest))
    return table


def show_filled(answer: Mapping[str, Any]) -> None:
    """The answer of `maskmill predict` for an image: for each hidden patch the most probable codes."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("patch", "row", "column", "codes"):
        table.add_column(column, justify="left" if column == "codes" else "right")
    for patch, ranked in zip(answer["hidden"], answer["codes"], strict=True):
        row, column = divmod(patch, answer["grid"][1])
        table.add_row(
            *map(str, (patch, row, column)), "  ".join(f"{it['code']} {it['probability']:.1%}" for it in ranked)
        )
    Console(highlight=False).print(table)


def show_predictions(text: str, masks: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    """The answer of `maskmill predict`: for each mask a list of tokens, most probable first."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(text, markup=False)
    for number, ranked in enumerate(masks, 1):
        table = Table(box=None, show_header=False, pad_edge=False, title_justify="left")
        if len(masks) > 1:
            table.title = f"[MASK] {number}".replace("[", "\\[")
        for it in ranked:
            table.add_row(f"{it['probability']:7.2%}", _visible(it["token"]).replace("[", "\\["))
        console.print(table)


def what(manifest: Manifest) -> str:
    """One phrase about what an artifact holds."""
    counts, facts = manifest.counts, manifest.facts
    size = f"{manifest.bytes / 1e6:,.1f} MB"
    if manifest.stage == "corpus":
        size = f"{counts.get('bytes_kept', 0) / 1e6:,.1f} MB of {modalities.front(facts).BYTES}"
        return f"{counts.get('documents_kept', 0):,} documents, {size}"
    if manifest.stage == "vocabulary":
        return f"{facts.get('size', 0):,} tokens"
    if manifest.stage == "shards":
        train = facts["splits"]["train"]
        return f"{train['rows']:,} rows, {train['tokens']:,} tokens to train on, {size}"
    if manifest.stage == "pretrain":
        return f"{facts.get('parameters', 0):,} parameters, {facts.get('tokens', 0):,} tokens seen"
    if manifest.stage == "evaluate":
        return f"{counts.get('rows', 0):,} held-out rows"
    return size


def _report(manifest: Manifest) -> str:
    """The figures of an evaluation; the whole is in its report."""
    outcomes = [outcome_of(page) for page in json.loads(manifest.path("report.json").read_bytes()).get("outcomes", [])]
    report = Report("", [Examined(MODEL, NAMES[MODEL])], outcomes)
    return f"{markdown(report)}\nThe whole report: `{manifest.path('report.html')}`" if outcomes else ""


def card(name: str, manifest: Manifest, entry: Mapping[str, Any], recipe: str) -> str:
    """Markdown about one part of a run, for the Prefect UI."""
    lines = [f"**{name}** of `{recipe}`: {entry['state']} in {entry['seconds']:.1f} s ({entry['why']})"]
    lines += ["", what(manifest), ""]
    if manifest.stage == "evaluate":
        lines += [_report(manifest), ""]
    shown = modalities.front(manifest.facts).CARDS.get(manifest.stage)
    if shown and "card.json" in manifest.files:
        lines.append(modalities.module(shown).markdown(json.loads(manifest.path("card.json").read_bytes())))
    else:
        lines += ["| count | |", "|---|--:|", *(f"| {name} | {number:,} |" for name, number in manifest.counts.items())]
    lines += ["", f"`{manifest.stage}/{manifest.key}`, digest `{manifest.digest[:16]}`, {manifest.bytes:,} bytes"]
    lines += [f"made from {name} `{digest[:16]}`" for name, digest in manifest.identity.inputs.items()]
    return "\n".join(lines)
