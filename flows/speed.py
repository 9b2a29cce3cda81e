"""`maskmill profile`: a few real training steps, where their time goes, and what to change first. Publishes no weights.

The stages before training are called directly, without a Prefect server: what they make is an artifact like any other,
and the next run reuses it. (Not named profile.py: Prefect puts the folder of a flow file on the path, and the standard
library's cProfile, which torch imports, would find this file as `profile`.)
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

from flows import plan, summary
from flows.recipe import Recipe
from tasks import corpus, modalities, pretrain, shards, vocabulary
from tasks.artifacts import Manifest, Store
from tasks.errors import UsageError
from tasks.progress import say

RUNS: dict[str, Callable[..., tuple[Manifest, bool]]] = {
    corpus.STAGE: modalities.corpus,
    vocabulary.STAGE: modalities.vocabulary,
    shards.STAGE: shards.shards,
}
PARTS = {
    "data": "waiting for batches",
    "forward": "from tokens to the loss",
    "backward": "from the loss to gradients",
    "communication": "exchanging gradients",
    "optimizer": "from gradients to new weights",
    "other": "everything else",
}
"""Part of a step -> what happens in it."""
BOUND = {
    "data": "making batches, while the device waits",
    "launch": "what a step costs whatever its size",
    "compute": "arithmetic, and the device does what it can",
    "memory": "moving numbers, not multiplying them",
    "communication": "other devices, for which this one waits",
}
"""Verdict -> in plain words."""
BUSY = 0.05
"""Share of the time in which others had the cores, from which it is said."""


def profile(recipe: Recipe, store: Store, steps: int) -> dict[str, Any]:
    """Makes or reuses corpus, vocabulary and shards, and takes `steps` measured training steps.

    Raises UsageError for fewer steps than one, and what the stages raise.
    """
    if steps < 1:
        raise UsageError(f"--steps is {steps}; use 1 or more, 20 is usual.")
    plan.plan(recipe, store)  # a source that is missing shall be said before anything else
    made: dict[str, Manifest] = {}
    for part in plan.parts(recipe).values():
        if part.stage == pretrain.STAGE:
            break
        made[part.name] = _make(part, made, store)
    shorter = [made[f"shards {config.length}"] for config in recipe.shorter]
    say(f"{'profile':<10}  {steps} steps of training; no weights are kept")
    beside = [made[name] for name in plan.parts(recipe)["pretrain"].beside]
    return pretrain.profile(recipe.pretrain, made["vocabulary"], made["shards"], store, steps, shorter, beside)


def _make(part: plan.Part, made: Mapping[str, Manifest], store: Store) -> Manifest:
    """The artifact of a stage before training, made or found."""
    digests = {name: manifest.digest for name, manifest in made.items()}
    verdict = plan.judge(part, plan.identity_of(part, digests, store), store)
    if verdict.action != "reuse":
        say(f"{part.name:<10}  {verdict.action}: {verdict.why}")
    began = time.monotonic()
    manifest, reused = RUNS[part.stage](part.config, *(made[name] for name in part.inputs), store)
    state = plan.outcome(store, manifest, reused)
    say(f"{part.name:<10}  {state} in {time.monotonic() - began:.1f} s: {summary.what(manifest)}")
    return manifest


def show(found: Mapping[str, Any]) -> None:
    """The profile for people, on stdout, in 80 columns; plain where it is not a terminal."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 80
    console.print(_shares(found))
    console.print()
    console.print(_figures(found))
    console.print()
    console.print(_words(found))


def _words(found: Mapping[str, Any]) -> Any:
    """The verdict and what to do about it."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column("", no_wrap=True)
    table.add_column("")
    table.add_row("Bound by", Text(f"{found['bound_by']}: {BOUND[found['bound_by']]}", "bold"))
    table.add_row("", Text(found["why"]))
    if found["waiting_for_core_share"] >= BUSY:
        share = f"others had the cores for {found['waiting_for_core_share']:.0%} of the time"
        table.add_row("Careful", f"{share}: on a quiet machine all of this is faster")
    for number, advice in enumerate(found["advice"]):
        table.add_row("Then" if number else "Change first", Text(advice))
    return table


def _shares(found: Mapping[str, Any]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left", title_style="bold")
    table.title = f"One step, {_seconds(found['step_seconds'])}"
    table.add_column("part")
    table.add_column("share", justify="right")
    table.add_column("", no_wrap=True)
    table.add_column("time", justify="right")
    table.add_column("what happens")
    for name in PARTS:
        share = found["shares"][name]
        bar = "█" * round(share * 20)
        table.add_row(
            name, f"{share:.1%}", bar, _seconds(share * found["step_seconds"]), PARTS.get(name, ""), style=_dim(share)
        )
    return table


def _figures(found: Mapping[str, Any]) -> Any:
    from rich.table import Table

    held, products = found["positions"], found["products"]
    own = f" on one of {found['ranks']} ranks" if found["ranks"] > 1 else ""
    threads = f", {_counted(found['threads'], 'thread')}" if found["device"] == "cpu" else ""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column("figure")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("what it is")
    for figure, value, what in (
        ("tokens/s", f"{found['tokens_per_second']:,.0f}", "of text: no padding, no special tokens"),
        (
            "a step",
            f"{held['per_step']:,}",
            f"positions{own}: {held['tokens']:.1%} text, {held['specials']:.1%} special tokens, {held['padding']:.1%} "
            f"padding; {held['masked']:,} are hidden",
        ),
        ("model", f"{found['parameters']:,}", "parameters"),
        ("operations", _short(found["flops"]["total"]), f"that a step needs, on {found['device']}{threads}"),
        ("peak", f"{_short(found['matmul_peak_flops'])}/s", f"the fastest product seen here, in {found['dtype']}"),
        ("MFU", f"{found['mfu']:.1%}", "of that peak is used: model FLOPs utilisation"),
        ("products", f"{products['share']:.1%}", "of a step is spent inside matrix products"),
        (
            "at best",
            f"{products['at_best_share']:.1%}",
            f"of a step, {_seconds(products['at_best_seconds'])}, is what its matrix products take alone"
            + (", waits for a core left out" if found["waiting_for_core_share"] >= BUSY else ""),
        ),
        ("fixed", f"{found['fixed_share']:.1%}", "of a step does not grow with its rows"),
        ("memory", f"{found['peak_memory_bytes'] / 1e9:,.2f} GB", "held at most"),
    ):
        table.add_row(figure, value, what)
    return table


def _dim(share: float) -> str | None:
    return "dim" if share < 0.005 else None


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.1f} ms"


def _short(number: float) -> str:
    """1.234e12 as "1.2 T"."""
    for power, letter in ((15, "P"), (12, "T"), (9, "G"), (6, "M")):
        if number >= 10**power:
            return f"{number / 10**power:.1f} {letter}FLOP"
    return f"{number:,.0f} FLOP"


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
