"""The commands that move the alias champion: through the gate, or by a person's word, which is written down."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows import environment, notices, terminal
from tasks.artifacts import Manifest, Store
from tasks.errors import UsageError
from tasks.gate import BETTER, FORCED
from tasks.progress import say

if TYPE_CHECKING:
    from tasks.promotion import Promotion
    from tasks.versions import Version

WORST = 5
"""Classes of tokens that are shown."""
Reason = Annotated[str, typer.Option(metavar="TEXT", help="Why; it is written down on the version.")]


def promote(
    version: Annotated[str, typer.Argument(metavar="NAME/VERSION", help="Or NAME@ALIAS, as quickstart@challenger.")],
    force: Annotated[bool, typer.Option("--force", help="Whatever the gate says; needs --reason.")] = False,
    reason: Reason = "",
    as_json: terminal.Json = False,
    debug: terminal.Debug = False,
) -> None:
    """Let a version stand for champion. Exit status 2 if the gate says no: the champion stays.

    The gate compares it with the champion on the same frozen test set, and scores both again where that is needed and
    the store still has what they were made from.

    Example: maskmill promote quickstart/3
    """
    from tasks import promotion

    home = _registry()
    found = promotion.promote(version, home, force, reason, again(terminal.store(home, remote="")))
    if found.promoted:
        notices.tell(home, notices.PROMOTED, found)
    terminal.as_json(found.as_json()) if as_json else show(found)
    if not found.promoted:
        raise typer.Exit(UsageError.exit_code)


def rollback(
    model: Annotated[str, typer.Argument(metavar="NAME", help="Name of a model.")],
    reason: Reason = "",
    as_json: terminal.Json = False,
    debug: terminal.Debug = False,
) -> None:
    """Make the champion before champion again. The version that goes is not promoted by the gate any more.

    Example: maskmill rollback quickstart --reason "names of people come out wrong"
    """
    from tasks import promotion

    home = _registry()
    found = promotion.rollback(model, home, reason)
    notices.tell(home, notices.ROLLED_BACK, found)
    terminal.as_json(found.as_json()) if as_json else show(found)


def _registry() -> Path:
    home = terminal.home()
    environment.settle(home)
    environment.reach_hub(False)
    return home


def again(store: Store) -> "Callable[[Version, Version], Path]":
    """Scores a challenger and a champion on the challenger's test set: an evaluation of held-out text alone."""

    def scored(challenger: "Version", champion: "Version") -> Path:
        from tasks import evaluate, evidence
        from tasks.evaluate_config import EvaluateConfig
        from tasks.passages import PseudoLikelihoodConfig

        corpus, vocabulary, shards, pretrain = (
            _made(store, challenger, stage, challenger.tags.get(stage, ""))
            for stage in ("corpus", "vocabulary", "shards", "pretrain")
        )
        rival = _made(store, champion, "pretrain", champion.tags.get("pretrain", ""))
        before = store.with_digest("evaluate", challenger.tags.get("evaluate", ""))
        kept = {name: before.config[name] for name in ("rows_per_batch", "max_rows", "threads")} if before else {}
        if before:
            kept["pseudo_likelihood"] = PseudoLikelihoodConfig(**before.config["pseudo_likelihood"])
        say(f"gate: version {challenger.version} and version {champion.version} are scored side by side")
        config = EvaluateConfig(rates=(), sentences=(), **kept)
        manifest, _ = evaluate.evaluate(config, corpus, vocabulary, shards, pretrain, rival, store)
        return manifest.whole(evidence.FILE)

    return scored


def _made(store: Store, version: "Version", stage: str, digest: str) -> Manifest:
    found = store.with_digest(stage, digest)
    if found is None:
        command = version.tags.get("command", "unknown")
        how = f"make it again ({command})" if command != "unknown" else "run this where it is"
        raise UsageError(
            f"They cannot be scored side by side: the store lacks the {stage} {digest[:12] or 'of an unknown digest'} "
            f"of version {version.version}; {how}, or give --force --reason."
        )
    return found


def show(found: "Promotion") -> None:
    """What was decided, the classes of tokens in which the version is worst, who is champion."""
    from rich.console import Console

    console, said = Console(highlight=False), found.decision
    name, number = found.version.name, found.version.version
    console.print(f"{name} version {number}: {said.verdict}", markup=False, soft_wrap=True)
    parts = sorted((part for part in said.parts if part.counts), key=lambda part: -part.difference)[:WORST]
    for part in parts:
        mark = "  worse than allowed" if part.worse else ""
        line = f"  {part.difference:+.3f} nats {part.stratum}, {part.name} (n {part.n:,}){mark}"
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"Champion is version {found.champion}.", markup=False)
    if found.promoted and found.before not in (None, number) and said.kind in (BETTER, FORCED):
        console.print(f"Take it back with: maskmill rollback {name}", markup=False)
