"""The commands about what a store holds: where a model came from, and what nobody needs any more."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows import terminal
from tasks.progress import progress

if TYPE_CHECKING:
    from rich.text import Text
    from rich.tree import Tree

    from tasks.lineage import Artifact, Lineage, Origin
    from tasks.retention import Plan, Spare
    from tasks.versions import Version

FILES = 10
"""Files of a source that are listed; those that are not what they were come first."""
SHORT = 12
"""Digits of a digest that tell it apart, for people."""
KEEP_DAYS = 14.0
"""As long as what was read of a corpus is kept for its next one (packs.UNUSED_DAYS)."""


def lineage(
    model: Annotated[str, typer.Argument(metavar="NAME[@ALIAS|/VERSION]", help="NAME is its champion.")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Hash every file, the source files and the model, too.")
    ] = False,
    as_json: terminal.Json = False,
    debug: terminal.Debug = False,
) -> None:
    """Show what a registered model was made from, down to the source files, and whether that is still there and whole.

    Exit status 65 if something of it is damaged; what is merely gone is said.

    Example: maskmill lineage quickstart@champion --verify
    """
    from tasks import lineage, versions

    home = terminal.home()
    version = versions.find(model, home)
    found = lineage.trace(version.tags, terminal.store(home), verify)
    wrong = list(found.lacking)
    if verify:
        with TemporaryDirectory() as folder:
            wrong += lineage.model_findings(versions.fetch(version, home, Path(folder)))
    terminal.as_json(_page(version, found, wrong)) if as_json else _show(version, found, wrong)
    if found.damaged or wrong:
        raise typer.Exit(65)


def _page(version: "Version", found: "Lineage", wrong: list[str]) -> dict[str, Any]:
    """The chain for programs."""
    from dataclasses import asdict

    each = [asdict(one) | {"stage": one.stage, "folder": str(one.folder or "")} for one in found.artifacts.values()]
    about = {"model": version.name, "version": version.version, "aliases": list(version.aliases)}
    verdict = "damaged" if found.damaged or wrong else "incomplete" if found.gone else "whole"
    return about | {"verdict": verdict, "wrong": wrong, "artifacts": each}


def _show(version: "Version", found: "Lineage", wrong: list[str]) -> None:
    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200
    title = Text(f"{version.name} version {version.version}", "bold")
    title.append("".join(f" @{alias}" for alias in version.aliases), "cyan")
    title.append(f"  {version.tags.get('verdict', '')}", "dim")
    tree = Tree(title, guide_style="dim")
    branches: dict[str, Tree] = {}
    for one in found.artifacts.values():
        branches[one.digest] = branches.get(found.above(one), tree).add(_line(one))
        for origin in one.origins:
            _source(branches[one.digest], origin)
    console.print(tree)
    for line in wrong:
        console.print(Text(line, "red"))
    console.print(Text(_verdict(found, wrong), "bold"))


def _verdict(found: "Lineage", wrong: list[str]) -> str:
    files = [file for one in found.artifacts.values() for origin in one.origins for file in origin.files]
    many = {state: sum(file.state == state for file in files) for state in ("there", "changed", "gone", "not asked")}
    said = ", ".join(f"{number:,} {state}" for state, number in many.items() if number)
    sources = f" Source files: {said}." if files else ""
    if found.damaged or wrong:
        return (
            f"Damaged: {len(found.damaged) + len(wrong)}. Run its recipe again: what is damaged is made anew.{sources}"
        )
    if found.gone:
        return f"{len(found.gone)} of {len(found.artifacts)} artifacts are gone, the others are whole.{sources}"
    return f"All {len(found.artifacts)} artifacts are there and whole.{sources}"


def _line(one: "Artifact") -> "Text":
    from rich.text import Text

    text = Text(f"{one.name.replace('_', ' '):<11}")
    text.append(f"{one.digest[:SHORT]}  ", "dim")
    text.append(one.state, {"whole": "green", "gone": "yellow"}.get(one.state, "red"))
    said = one.why or {"fork": "trained on from its checkpoint", "rival": "the champion to beat"}.get(one.name, "")
    return text.append(f"  {said}" if said else "", "dim")


def _source(above: "Tree", origin: "Origin") -> None:
    from rich.text import Text

    text = Text(f"{origin.name}  ")
    text.append(f"{origin.digest[:SHORT]}  ", "dim")
    text.append(", ".join(part for part in (origin.kind, origin.licence or "licence not noted") if part), "dim")
    branch = above.add(text)
    if origin.note:
        branch.add(Text(origin.note, "yellow"))
    order = ("gone", "changed", "not asked", "there")
    files = sorted(origin.files, key=lambda file: order.index(file.state))
    for file in files[:FILES]:
        line = Text(f"{file.path}  ")
        line.append(f"{file.digest[:SHORT]}  ", "dim")
        line.append(file.state, {"there": "green", "not asked": "dim"}.get(file.state, "yellow"))
        branch.add(line)
    if len(files) > FILES:
        rest = [file.state for file in files[FILES:]]
        branch.add(
            Text(
                f"and {len(rest):,} more: " + ", ".join(f"{rest.count(it):,} {it}" for it in order if it in rest), "dim"
            )
        )


def gc(
    delete: Annotated[bool, typer.Option("--delete", help="Remove it; without, it is only shown.")] = False,
    keep_days: Annotated[float, typer.Option(min=0, help="What was made or used in so many days stays.")] = KEEP_DAYS,
    as_json: terminal.Json = False,
    debug: terminal.Debug = False,
) -> None:
    """Show what of the store no registered version, running flow or recent run needs; remove it with --delete.

    Whatever a version was made from stays, over any number of steps. Where MLflow cannot be asked, nothing goes. What
    machines share (a recipe's remote) is never touched.

    Example: maskmill gc --keep-days 30 --delete
    """
    home = terminal.home()
    found, asked = _planned(home, keep_days)
    done: list[Spare] = []
    if delete and found.spare:
        done = _removed(found, home, keep_days)
    if as_json:
        terminal.as_json(_gc_page(found, done, asked, delete, keep_days))
    else:
        _show_gc(found, done, asked, delete)


def _planned(home: Path, keep_days: float) -> tuple["Plan", list[str]]:
    """What can go, and which registries were asked."""
    from flows import ledger
    from flows.parts import INPUTS
    from tasks import lineage, retention
    from tasks.errors import MaskmillError, without_secrets

    since = time.time() - keep_days * retention.DAY
    recent = [one for one in ledger.read(home) if one.state == "running" or max(one.started, one.ended or 0.0) >= since]
    try:
        versions = lineage.every(home)
    except MaskmillError as error:
        raise type(error)(f"{error} Nothing was removed: what is registered there is not known.") from None
    keys, digests = ledger.needed(recent)
    roots = dict.fromkeys(digests, "a recent run")
    for version in versions:
        roots |= dict.fromkeys(lineage.roots(version.tags).values(), f"{version.name} version {version.version}")
    store = terminal.store(home)
    found = retention.plan(store, INPUTS, roots, keys, keep_days, home / "compare" / "units")
    return found, [without_secrets(address) for address in lineage.addresses(home)]


def _removed(found: "Plan", home: Path, keep_days: float) -> list["Spare"]:
    """Removes what can go; what could not is moved to what was skipped."""
    from flows import ledger
    from tasks import retention

    def wanted() -> set[str]:
        keys, digests = ledger.needed(one for one in ledger.read(home) if one.state == "running")
        return keys | digests

    done = []
    with progress("gc", len(found.spare), "removed") as bar:
        for spare in found.spare:
            why = retention.remove(terminal.store(home), spare, keep_days, wanted)
            if why:
                found.skipped.append(f"{spare.path}: {why}")
            else:
                done.append(spare)
            bar.advance()
    return done


def _gc_page(found: "Plan", done: list["Spare"], asked: list[str], delete: bool, keep_days: float) -> dict[str, Any]:
    """For programs."""
    from dataclasses import asdict

    each = [asdict(spare) | {"path": str(spare.path)} for spare in (done if delete else found.spare)]
    kept = {stage: {"artifacts": number, "bytes": size} for stage, (number, size) in found.kept.items()}
    total = sum(spare["bytes"] for spare in each)
    about = {"removed": delete, "keep_days": keep_days, "registries": asked, "bytes": total}
    return about | {"spare": each, "kept": kept, "skipped": found.skipped}


def _show_gc(found: "Plan", done: list["Spare"], asked: list[str], delete: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    some = done if delete else found.spare
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "removed" if delete else "can go", "MB", "stays", "MB"):
        table.add_column(column, justify="right" if column else "left")
    for stage in dict.fromkeys([*found.kept, *(spare.stage for spare in found.spare)]):
        gone = [spare for spare in some if spare.stage == stage]
        number, size = found.kept.get(stage, (0, 0))
        cells = (
            f"{len(gone):,}",
            f"{sum(spare.bytes for spare in gone) / 1e6:,.1f}",
            f"{number:,}",
            f"{size / 1e6:,.1f}",
        )
        table.add_row(stage, *cells)
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 80
    if table.row_count:
        console.print(table)
    for line in found.skipped:
        console.print(f"Skipped  {line}", markup=False)
    total = sum(spare.bytes for spare in some) / 1e6
    console.print(f"Registries asked: {', '.join(asked) or 'none, there is none yet'}", markup=False, style="dim")
    if not some:
        console.print("Nothing else can go." if found.skipped else "Everything is needed, or younger than that.")
    elif delete:
        console.print(f"{len(some):,} removed: {total:,.1f} MB.")
    else:
        console.print(f"{total:,.1f} MB can go: maskmill gc --delete removes them.")
