"""A grid of settings as runs of the flow that share every artifact they have in common, and a table of what came of it.

    --set pretrain.learning_rate=0.001,0.002 --set shards.rate=15%,30%      four runs, corpus and vocabulary made once

A point that fails costs its line of the table, not the others.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact

from flows import chain, recipes, summary
from flows.mlm import OPTIONS, maskmill
from tasks.errors import InterruptedRun, MaskmillError, UsageError
from tasks.progress import say
from tasks.results import MODEL

LOSS, TOP1 = "masked_cross_entropy", "top1_accuracy"
BITS = f"{MODEL}/pseudo_likelihood/bits_per_byte"
MOST = 1000
"""Runs of a sweep; more are a slip of the pen."""


@dataclass(frozen=True)
class Point:
    """One combination of settings, and its run."""

    varied: Mapping[str, str]
    finished: summary.Finished | None
    error: str = ""


def points(settings: Sequence[str]) -> list[list[str]]:
    """The `--set`s of each run: a value with commas stands for several. In order, the last one varying fastest.

    Raises UsageError for an empty value, or for more than MOST runs.
    """
    each = []
    for setting in settings:
        key, equals, text = setting.partition("=")
        values = recipes.values(text)
        if equals and not all(values):
            raise UsageError(f"--set {setting}: a value between two commas is empty; take a comma out.")
        each.append([f"{key}={value}" for value in values] if equals else [setting])
    grid = [list(point) for point in itertools.product(*each)]
    if len(grid) > MOST:
        raise UsageError(f"These settings make {len(grid):,} runs, more than {MOST:,}; give fewer values.")
    return grid


def varied(grid: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    """Of each point the settings in which the points differ: key -> value."""
    given = [dict(setting.split("=", 1) for setting in point) for point in grid]
    keys = [key for key in given[0] if len({one[key] for one in given}) > 1] if given else []
    return [{key: one[key] for key in keys} for one in given]


@flow(name="maskmill-sweep", **OPTIONS)
def sweep(
    recipe: str = "quickstart",
    source: list[str] = [],  # noqa: B006  (Prefect copies it, and its form shows it)
    set: list[str] = [],  # noqa: B006
    wait: float = 600.0,
) -> list[Point]:
    """A run of the flow for each combination of settings; what they have in common is made once.

    Args:
        recipe: A name in deployments/recipes/, or the path of a YAML file.
        source: Files, folders, globs or hf:NAME that take the place of the recipe's sources.
        set: Settings, each as key.sub=value, or as key.sub=value,value for one that is varied.
        wait: Seconds to wait for another run that is making the same artifact.
    """
    grid = points(set)
    settings = [recipes.load(recipe, source, point) for point in grid]  # a slip in the last one costs no time
    with chain.gathered(settings[0], recipes.command(recipe, source, set, verb="sweep")):
        found = _each(recipe, source, grid, wait)
    with chain.mirrored():
        create_table_artifact(key="sweep", table=table(found), description=f"{recipe}: {len(grid)} runs")
    return found


def _each(recipe: str, source: list[str], grid: Sequence[list[str]], wait: float) -> list[Point]:
    found = []
    for number, (point, values) in enumerate(zip(grid, varied(grid), strict=True), 1):
        say(f"sweep {number} of {len(grid)}: {' '.join(f'{key}={value}' for key, value in values.items())}")
        state = maskmill(recipe, source, point, wait=wait, return_state=True)
        result = state.result(raise_on_failure=False)
        if isinstance(result, InterruptedRun):
            raise result
        done = result if isinstance(result, summary.Finished) else None
        found.append(Point(values, done, "" if done else f"{result}"))
    return found


def table(found: Sequence[Point]) -> list[dict[str, Any]]:
    """A row for each point, best first where the scores can be compared: those at the lowest rate that all have."""
    facts = [one.finished.manifests["evaluate"].facts for one in found if one.finished]
    rates = [rate for rate in facts[0]["rates"] if all(rate in one["rates"] for one in facts)] if facts else []
    rows = [_row(one, rates[0] if rates else "") for one in found]
    main = f"nats at {rates[0]}" if rates else "bits per byte"
    return sorted(rows, key=lambda row: (row.get(main) is None, row.get(main) or 0.0))


def _row(one: Point, rate: str) -> dict[str, Any]:
    row: dict[str, Any] = dict(one.varied)
    if one.finished is None:
        return row | {"version": "", "error": one.error}
    metrics, weights = one.finished.manifests["evaluate"].facts["metrics"], one.finished.manifests["pretrain"]
    if rate:
        row[f"nats at {rate}"] = round(metrics[f"{MODEL}/rate_{rate}/{LOSS}"], 4)
        row[f"top-1 at {rate}"] = round(metrics[f"{MODEL}/rate_{rate}/{TOP1}"], 4)
    row |= {"bits per byte": round(metrics[BITS], 4)} if BITS in metrics else {}
    row |= {"parameters": weights.facts["parameters"], "seconds": round(one.finished.stages["pretrain"]["seconds"], 1)}
    version = one.finished.version
    return row | {"version": f"{version.name}/{version.version}" if version else ""}


def show(found: Sequence[Point]) -> None:
    """The table, on stdout. Raises MaskmillError where a run failed, naming it, after the table."""
    from rich.console import Console
    from rich.table import Table

    rows, console = table(found), Console(highlight=False)
    if not console.is_terminal:
        console.width = 200  # a row is a line to whatever reads it
    shown = Table(box=None, pad_edge=False, header_style="bold")
    columns = list(dict.fromkeys(name for row in rows for name in row if name != "error"))
    for name in columns:
        shown.add_column(name, justify="left" if name in found[0].varied or name == "version" else "right")
    for row in rows:
        shown.add_row(
            *(f"{row[name]:,}" if isinstance(row.get(name), int) else str(row.get(name, "failed")) for name in columns)
        )
    console.print(shown)
    console.print("Nested runs   maskmill ui, then MLflow")
    failed = [one for one in found if one.error]
    if failed:
        which = " ".join(f"{key}={value}" for key, value in failed[0].varied.items())
        raise MaskmillError(
            f"{len(failed)} of {len(found)} runs of the sweep failed; the first, {which}: {failed[0].error}"
        )
