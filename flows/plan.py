"""What a run would reuse, go on with, or make, and why. Reads manifests only; parses no corpus.

The flow asks `judge` before each stage, with the manifests in hand; `plan` asks it for all six in order, and knows no
input of a stage that comes after one that has to be made. Both get the identity from the stage's own `identity`.
"""

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from flows import runners
from flows.recipes import Recipe
from tasks import adopted, artifacts, corpus, evaluate, pretrain, registry, shards, tracking, vocabulary
from tasks.artifacts import Identity, Manifest, Store
from tasks.errors import DataError

INPUTS: dict[str, tuple[str, ...]] = {
    "corpus": (),
    "vocabulary": ("corpus",),
    "shards": ("corpus", "vocabulary"),
    "pretrain": ("vocabulary", "shards"),
    "evaluate": ("vocabulary", "shards", "pretrain"),
    "register": ("corpus", "vocabulary", "shards", "pretrain", "evaluate"),
}
"""Stage -> the stages whose manifests it reads, in the order of its arguments."""


LONGEST = 40
"""Characters of a value in a reason."""


SHOWN = 4
"""Differences that are named, where there are many."""


@dataclass(frozen=True)
class Verdict:
    """What is to be done with one stage."""

    stage: str
    action: str
    """reuse, resume or run."""
    why: str
    key: str | None = None
    """Name of the artifact's folder, where its inputs are known."""
    digest: str | None = None
    """Digest of the artifact, where it is known before the stage runs."""


def forced_stages(first: str | None) -> frozenset[str]:
    """`--from`: that stage and all that follow."""
    stages = list(INPUTS)
    return frozenset(stages[stages.index(first) :]) if first else frozenset()


def identity_of(stage: str, recipe: Recipe, digests: Mapping[str, str], store: Store, champion: str | None) -> Identity:
    """The identity under which the stage itself will look for its artifact."""
    inputs = [digests[name] for name in INPUTS[stage]]
    if stage == "corpus":
        return corpus.identity(recipe.corpus, store.root)
    if stage == "vocabulary":
        return vocabulary.identity(recipe.vocabulary, *inputs)
    if stage == "shards":
        return shards.identity(recipe.shards, *inputs)
    if stage == "pretrain":
        return pretrain.identity(recipe.pretrain, *inputs)
    if stage == "evaluate":
        return evaluate.identity(recipe.evaluate, inputs[0], inputs[1], inputs[2], champion)
    return registry.identity(recipe.register, *inputs)


def plan(recipe: Recipe, store: Store, home: Path | None = None) -> list[Verdict]:
    """A verdict for each stage, in order.

    Raises what the stages' `identity` raise (a source that is not there), and UsageError for a runner that is not
    installed.

    home    asks the registry below it whether the model is still registered; None takes the artifact's word
    """
    runners.check(recipe.runner)
    if recipe.vocabulary.tokenizer:  # its stage would notice after the whole corpus
        adopted.find(recipe.vocabulary.tokenizer)
    digests: dict[str, str] = {}
    verdicts = []
    for stage, inputs in INPUTS.items():
        missing = [name for name in inputs if name not in digests]
        if missing:
            verdict = Verdict(stage, "run", _waits_for(missing, store))
        elif stage == evaluate.STAGE:
            rivals = _rivals(digests, store)
            found = [judge(identity_of(stage, recipe, digests, store, rival), store) for rival in rivals]
            verdict = next((one for one in found if one.action == "reuse"), found[0])
        else:
            verdict = judge(identity_of(stage, recipe, digests, store, None), store)
        if stage == registry.STAGE and verdict.action == "reuse" and home and not _is_registered(verdict, home):
            verdict = replace(verdict, action="run", why="the registry does not have it")
        if verdict.digest:
            digests[stage] = verdict.digest
        verdicts.append(verdict)
    return verdicts


def judge(identity: Identity, store: Store) -> Verdict:
    """What is to be done with a stage whose inputs are known."""
    manifest, why = store.inspect(identity)
    stage, key = identity.stage, identity.key
    if manifest and stage not in store.forced:
        return Verdict(stage, "reuse", "up to date", key, manifest.digest)
    if stage in store.forced:
        return Verdict(stage, "run", "forced by --from", key, _digest(store.folder(identity)))
    if store.folder(identity).exists():
        # The same identity gives the same bytes, so what follows may still be good.
        return Verdict(stage, "run", f"damaged: {why}", key, _digest(store.folder(identity)))
    if _unfinished(store.partial(identity)):
        return Verdict(stage, "resume", "an interrupted run left finished work", key)
    return Verdict(stage, "run", _difference(identity, store), key)


def _waits_for(missing: list[str], store: Store) -> str:
    """Why a stage runs whose inputs are not known."""
    be = "are" if len(missing) > 1 else "is"
    made = any(store.folders(name) for name in missing)
    return f"its input {' and '.join(missing)} {be} {'made again' if made else 'not made yet'}"


def _rivals(digests: Mapping[str, str], store: Store) -> list[str | None]:
    """Champions that these weights may be compared with. The registry knows for sure, but asking it takes seconds.

    What was compared once stays compared with the same rival, so the reports that are there tell.
    """
    rivals: list[str | None] = [None]
    for folder in store.folders(evaluate.STAGE):
        with suppress(DataError):
            inputs = dict(artifacts.load(folder).identity.inputs)
            rival = inputs.pop("champion", None)
            if rival and all(digests[name] == digest for name, digest in inputs.items()):
                rivals.append(rival)
    return rivals


def _is_registered(verdict: Verdict, home: Path) -> bool:
    """Does the embedded registry hold the model? Read from its database, since importing MLflow takes seconds."""
    if not tracking.exists(home):
        return False
    if tracking.tracking_uri(home) != f"sqlite:///{tracking.database(home)}":
        return True  # a server: the run will ask it
    query = (  # a deleted version keeps its tags
        "select count(*) from model_version_tags t join model_versions v on v.name = t.name and v.version = t.version "
        "where t.key = 'settled' and t.value = ? and v.current_stage <> 'Deleted_Internal'"
    )
    try:
        with closing(sqlite3.connect(f"{tracking.database(home).as_uri()}?mode=ro", uri=True)) as database:
            return bool(database.execute(query, [verdict.digest]).fetchone()[0])
    except sqlite3.Error:
        return True


def _digest(folder: Path) -> str | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        return json.loads((folder / artifacts.MANIFEST).read_bytes())["digest"]
    return None


def _unfinished(partial: Path) -> bool:
    return any(path.is_file() for path in partial.rglob("*")) if partial.exists() else False


def _difference(identity: Identity, store: Store) -> str:
    """What sets it apart from the closest artifact of that stage."""
    closest: list[str] | None = None
    for folder in store.folders(identity.stage):
        with suppress(DataError):
            found = differences(artifacts.load(folder), identity)
            if closest is None or len(found) <= len(closest):  # of two equally close ones, the newer
                closest = found
    if closest is None:
        return "not made yet"
    more = f"; and {len(closest) - SHOWN} more" if len(closest) > SHOWN else ""
    return "; ".join(closest[:SHOWN]) + more


def differences(old: Manifest, new: Identity) -> list[str]:
    """What changed, a short phrase each."""
    found = []
    if old.identity.version != new.version:
        found.append(f"{new.stage} itself changed: version {old.identity.version} → {new.version}")
    before, after = _by_name(old.config), _by_name(json.loads(artifacts.canonical(dict(new.config))))
    found += [f"{new.stage}.{phrase}" for phrase in _changes(before, after)]
    was, now = old.identity.inputs, new.inputs
    for what, names in (
        ("changed", [name for name in was if name in now and was[name] != now[name]]),
        ("added", [name for name in now if name not in was]),
        ("removed", [name for name in was if name not in now]),
    ):
        if names:
            found.append(f"input {what}: {', '.join(sorted(names))}")
    return found or [f"{new.stage}: its sources come in another order"]


def _by_name(value: Any) -> Any:
    """Lists of named things, such as sources, as mappings: a place in a list tells nobody which one is meant."""
    if isinstance(value, Mapping):
        return {key: _by_name(inner) for key, inner in value.items()}
    if isinstance(value, list) and value and all(isinstance(one, Mapping) and "name" in one for one in value):
        return {one["name"]: one for one in value}
    return value


def _changes(before: Mapping[str, Any], after: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for key in sorted({*before, *after}, key=lambda one: ((one in before) + (one in after) == 1, one in before, one)):
        name, old, new = f"{above}{key}", before.get(key), after.get(key)
        if old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _changes(old, new, f"{name}.")
        elif isinstance(new, Mapping) and key not in before:
            yield f"{name} is new"
        elif key not in after:
            yield f"{name} is gone" if isinstance(old, Mapping) else f"{name} does not count any more"
        else:
            yield "{} changed: {} → {}".format(name, *_side_by_side(old, new))


def _side_by_side(old: Any, new: Any) -> tuple[str, str]:
    """Both as short texts that show where they part: what they begin with alike is cut first."""
    texts = [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in (old, new)]
    if max(map(len, texts)) > LONGEST:
        alike = next((at for at, (a, b) in enumerate(zip(*texts)) if a != b), min(map(len, texts)))
        start = max(0, alike - 10)
        texts = [("…" if start else "") + text[start:] for text in texts]
    first, second = (text if len(text) <= LONGEST else text[: LONGEST - 1] + "…" for text in texts)
    return first, second


def page(verdicts: list[Verdict]) -> list[dict[str, Any]]:
    """The plan for programs."""
    return [asdict(verdict) for verdict in verdicts]


def show(recipe: Recipe, verdicts: list[Verdict]) -> None:
    """The plan for people, on stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
    for column in ("stage", "", "why"):
        table.add_column(column, overflow="fold")
    colour = {"reuse": "green", "resume": "yellow", "run": "cyan"}
    for verdict in verdicts:
        table.add_row(verdict.stage, f"[{colour[verdict.action]}]{verdict.action}[/]", verdict.why.replace("[", "\\["))
    console = Console()
    console.print(table)
    reused = sum(verdict.action == "reuse" for verdict in verdicts)
    console.print(f"\n{recipe.name}: {reused} of {len(verdicts)} stages are up to date.", highlight=False)
