"""What a run would reuse, go on with, or make, and why. Reads manifests only; parses no corpus.

A run consists of parts: its six stages, the shards stage once more for each shorter length of pretrain.lengths. The
flow asks `judge` before each, with the manifests in hand; `plan` asks it for all in order, and knows no input of a part
that comes after one that has to be made. Both get the identity from the stage's own `identity`.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from flows import forks, ledger, runners
from flows.parts import INPUTS as INPUTS
from flows.parts import Part as Part
from flows.parts import parts as parts
from flows.recipe import Recipe
from tasks import adopted, artifacts, corpus, evaluate, modalities, pretrain, registry, shards, tracking, vocabulary
from tasks.artifacts import Identity, Manifest, Store
from tasks.errors import DataError
from tasks.manifests import json_of

LONGEST = 40
"""Characters of a value in a reason."""


SHOWN = 4
"""Differences that are named, where there are many."""


@dataclass(frozen=True)
class Verdict:
    """What is to be done with one part of a run."""

    stage: str
    """Name of the part."""
    action: str
    """reuse, fetch, resume or run."""
    why: str
    key: str | None = None
    """Name of the artifact's folder, where its inputs are known."""
    digest: str | None = None
    """Digest of the artifact, where it is known before the stage runs."""


def forced_stages(first: str | None) -> frozenset[str]:
    """`--from`: that stage and all that follow."""
    stages = list(INPUTS)
    return frozenset(stages[stages.index(first) :]) if first else frozenset()


def identity_of(
    part: Part, digests: Mapping[str, str], store: Store, champion: str | None = None, fork: Manifest | None = None
) -> Identity:
    """The identity under which the stage itself will look for its artifact.

    Args:
        digests: those of the parts before it.
        champion: digest of the pretrain artifact that it is compared with.
        fork: the pretrain artifact that the run is forked from.
    """
    inputs = [digests[name] for name in part.inputs]
    if part.stage in (corpus.STAGE, vocabulary.STAGE):
        of: str | Path = inputs[0] if inputs else store.root
        found: Identity = modalities.beside(part.config).identity(part.config, of)
        return found
    if part.stage == shards.STAGE:
        return shards.identity(part.config, *inputs)
    if part.stage == pretrain.STAGE:
        beside = [digests[name] for name in part.beside]
        return pretrain.identity(part.config, inputs[0], inputs[1], inputs[2:], fork, beside)
    if part.stage == evaluate.STAGE:
        alone = digests[part.alone] if part.alone else None
        return evaluate.identity(part.config, inputs[0], inputs[1], inputs[2], inputs[3], champion, alone)
    return registry.identity(part.config, *inputs)


def plan(recipe: Recipe, store: Store, home: Path | None = None) -> list[Verdict]:
    """A verdict for each part, in order.

    Raises what the stages' `identity` raise (a source that is not there), and what `refuse` does.

    home    asks the registry below it whether the model is still registered, and the ledger what artifacts that are
            gone were like: made again they are the same, so what follows may still be good; None takes the store's word
    """
    fork = refuse(recipe, store)
    entries = ledger.read(home) if home else []
    came_out = ledger.digests(entries)
    expected: list[str] = []  # parts that are gone, and come out as before
    digests: dict[str, str] = {}
    verdicts: list[Verdict] = []
    whole = parts(recipe)
    for part in whole.values():
        if part.stage == pretrain.STAGE:
            _check_inputs(part, whole, verdicts, store, fork)
        missing = [whole[name] for name in part.needs if name not in digests]
        if missing:
            verdict = Verdict(part.name, "run", _waits_for(missing, store))
        elif part.stage == evaluate.STAGE:
            verdict = _judge_report(part, digests, store, entries)
        else:
            verdict = judge(part, identity_of(part, digests, store, fork=fork), store)
        if part.stage == registry.STAGE and verdict.action == "reuse" and home and not _is_registered(verdict, home):
            verdict = replace(verdict, action="run", why="the registry does not have it")
        if verdict.action == "reuse" and (those := [name for name in part.inputs if name in expected]):
            verdict = replace(verdict, why=f"up to date, as {' and '.join(those)} will come out as before")
        if verdict.digest is None and _repeats(part) and (before := came_out.get(verdict.key or "")):
            verdict = replace(verdict, digest=before)
            expected.append(part.name)
        if verdict.digest:
            digests[part.name] = verdict.digest
        verdicts.append(verdict)
    return verdicts


def _repeats(part: Part) -> bool:
    """Does it come out the same whenever it is made? Not where a clock says when it ends."""
    return not (part.stage == pretrain.STAGE and part.config.minutes)


def refuse(recipe: Recipe, store: Store) -> Manifest | None:
    """What a stage would notice only after the ones before it. Returns the artifact that the run is forked from.

    Raises UsageError for a runner that is not installed, a tokenizer or a run to be forked that does not exist,
    settings of pretrain with which no training could begin, and an evaluation set that cannot be used.
    """
    runners.check(recipe.runner)
    for one in filter(None, (recipe, recipe.second)):
        modalities.beside(one.evaluate).check_sets(one.evaluate)
        if tokenizer := getattr(one.vocabulary, "tokenizer", ""):
            adopted.find(tokenizer)
    fork = forks.find(recipe.pretrain.fork, store)
    pretrain.refuse(recipe.pretrain, recipe.shards.length, fork)
    return fork


def _check_inputs(
    part: Part, whole: Mapping[str, Part], verdicts: list[Verdict], store: Store, fork: Manifest | None
) -> None:
    """Raises UsageError where training would refuse those of its inputs that are there already."""
    found = {one.stage: one for one in verdicts if one.action in ("reuse", "fetch")}
    there = {name: _manifest(whole[name].stage, found[name], store) for name in part.inputs if name in found}
    if len(there) == len(part.inputs):
        words, rows, *shorter = there.values()
        pretrain.check(part.config, words, rows, shorter, fork)
    elif fork and vocabulary.STAGE in there:
        artifacts.check_parent(pretrain.STAGE, fork, there[vocabulary.STAGE])


def _manifest(stage: str, verdict: Verdict, store: Store) -> Manifest:
    """Of what is here, or in the remote."""
    if verdict.action == "fetch" and store.remote:
        return store.remote.offers[str(verdict.key)].manifest
    return artifacts.load(store.root / stage / str(verdict.key))


def judge(part: Part, identity: Identity, store: Store) -> Verdict:
    """What is to be done with a part whose inputs are known."""
    manifest, why = store.inspect(identity)
    name, key = part.name, identity.key
    if manifest and part.stage not in store.forced:
        return Verdict(name, "reuse", "up to date", key, manifest.digest)
    if part.stage in store.forced:
        return Verdict(name, "run", "forced by --from", key, _digest(store.folder(identity)))
    if offer := store.offer(identity):
        damaged = f"damaged: {why}; " if store.folder(identity).exists() else ""
        said = f"{damaged}in the remote {store.remote}, {offer.manifest.bytes / 1e6:,.1f} MB"
        return Verdict(name, "fetch", said, key, offer.manifest.digest)
    if store.folder(identity).exists():
        # The same identity gives the same bytes, so what follows may still be good.
        return Verdict(name, "run", f"damaged: {why}", key, _digest(store.folder(identity)))
    if _unfinished(store.partial(identity)):
        return Verdict(name, "resume", "an interrupted run left finished work", key)
    return Verdict(name, "run", _difference(identity, store, part.others), key)


def outcome(store: Store, manifest: Manifest, found: bool) -> str:
    """What was done with a part; found: it was not made."""
    return "made" if not found else "fetched" if manifest.key in store.fetched else "reused"


def _waits_for(missing: list[Part], store: Store) -> str:
    """Why a part is made whose inputs are not known."""
    be = "are" if len(missing) > 1 else "is"
    made = any(store.folders(part.stage) for part in missing)
    return f"its input {' and '.join(part.name for part in missing)} {be} {'made again' if made else 'not made yet'}"


def _judge_report(part: Part, digests: Mapping[str, str], store: Store, entries: list[ledger.Entry]) -> Verdict:
    """That of evaluate, whose inputs may include a champion. The registry knows which, but asking it takes seconds.

    What was compared once stays compared with the same rival, so the reports that are there tell, and the ledger.
    """
    own = {digests[name] for name in part.inputs}
    told = {rival for inputs in ledger.inputs(entries, part.stage) if own < inputs for rival in inputs - own}
    rivals = dict.fromkeys([*_rivals(digests, store), *sorted(told)])
    found = [judge(part, identity_of(part, digests, store, rival), store) for rival in (*rivals, None)]
    if store.remote and part.stage not in store.forced and not any(one.action in ("reuse", "fetch") for one in found):
        there = [offer.manifest for offer in store.remote.of_stage(part.stage, store.root)]
        found += [judge(part, identity_of(part, digests, store, one), store) for one in _compared(there, digests)]
    order = {"reuse": 0, "fetch": 1, "resume": 2}
    return min(found, key=lambda one: order.get(one.action, 3))


def _rivals(digests: Mapping[str, str], store: Store) -> list[str]:
    """Champions that these weights were compared with here."""
    reports = []
    for folder in store.folders(evaluate.STAGE):
        with suppress(DataError):
            reports.append(artifacts.load(folder))
    return _compared(reports, digests)


def _compared(reports: Iterable[Manifest], digests: Mapping[str, str]) -> list[str]:
    """The champions of those reports that are about these weights."""
    rivals = []
    for report in reports:
        inputs = dict(report.identity.inputs)
        rival = inputs.pop("champion", None)
        if rival and all(digests.get(name) == digest for name, digest in inputs.items()):
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
        return str(json_of((folder / artifacts.MANIFEST).read_bytes())["digest"])
    return None


def _unfinished(partial: Path) -> bool:
    return any(path.is_file() for path in partial.rglob("*")) if partial.exists() else False


def _difference(identity: Identity, store: Store, others: frozenset[int]) -> str:
    """What sets it apart from the closest artifact of that stage, but for those of the run's other lengths."""
    closest: list[str] | None = None
    for folder in store.folders(identity.stage):
        with suppress(DataError):
            made = artifacts.load(folder)
            if made.config.get("length") in others:
                continue
            found = differences(made, identity)
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
    colour = {"reuse": "green", "fetch": "blue", "resume": "yellow", "run": "cyan"}
    for verdict in verdicts:
        table.add_row(verdict.stage, f"[{colour[verdict.action]}]{verdict.action}[/]", verdict.why.replace("[", "\\["))
    console = Console()
    console.print(table)
    reused, fetched = (sum(verdict.action == action for verdict in verdicts) for action in ("reuse", "fetch"))
    there = f", {fetched} in the remote" if fetched else ""
    console.print(f"\n{recipe.name}: {reused} of {len(verdicts)} stages are up to date{there}.", highlight=False)
