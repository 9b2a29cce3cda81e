"""What happened to each run, as the process itself saw it: one small JSON file per run in <home>/runs.

Prefect's rows are not the truth after kill -9 (they stay "Running" for ever, and late events are lost). Here a running
process holds an flock on its entry, which the kernel lets go of when it dies: an entry that says "running" and is not
held is a crash.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tasks.artifacts import write_atomic
from tasks.errors import InterruptedRun, MaskmillError, without_secrets
from tasks.manifests import json_of

STAGES = ("corpus", "vocabulary", "shards", "pretrain", "evaluate", "register")
DONE = ("reused", "fetched", "made")
"""States of a stage that ended well."""
GOES_ON_DAYS = 14
"""After so many days what a stopped run left is removed (maskmill gc), and a new one begins."""


@dataclass
class Entry:
    """One run."""

    id: str
    recipe: str
    command: str
    """Runs the same again, from any folder."""
    state: str = "running"
    """running, completed, failed, interrupted; `read` adds crashed."""
    started: float = 0.0
    """Seconds since 1970."""
    ended: float | None = None
    exit_code: int | None = None
    error: str = ""
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Stage -> state (running, one of DONE, failed, interrupted, crashed), seconds, why, key, digest, inputs."""
    flow_run_id: str = ""
    flow_run_name: str = ""
    needs: list[str] = field(default_factory=list)
    """Digests of artifacts that the run uses before their stage: what it is forked from, the champion."""
    settings: str = ""
    """Digest of the recipe with all its settings."""
    run: str = ""
    """What the attempts of one run have in common; MLflow's run is found by it."""
    host: str = ""
    """The machine whose process it is."""

    @property
    def stage(self) -> str:
        """The stage that did not end well, or that is running; "" otherwise."""
        return next((name for name, it in self.stages.items() if it["state"] not in DONE), "")


NO_STRINGS = ("started", "ended", "exit_code", "stages", "needs")
"""Fields of an entry that are no texts."""


class Recorder:
    """Writes the entry of the run of this process."""

    def __init__(self, folder: Path, entry: Entry) -> None:
        self.path = folder / f"{entry.id}.json"
        self.entry = entry
        self.save()

    def save(self) -> None:
        # A full disk must not turn a run that can go on into one that cannot: the artifacts are the truth.
        with suppress(OSError):
            write_atomic(self.path, json.dumps(asdict(self.entry), indent=1).encode() + b"\n")

    def stage(self, name: str, state: str, **facts: Any) -> None:
        self.entry.stages[name] = self.entry.stages.get(name, {}) | {"state": state, **facts}
        self.save()

    def needs(self, digest: str) -> None:
        self.entry.needs.append(digest)
        self.save()

    def end(self, state: str, exit_code: int, error: str = "") -> None:
        entry = self.entry
        entry.state, entry.exit_code, entry.error, entry.ended = state, exit_code, error, time.time()
        if entry.stage:
            entry.stages[entry.stage]["state"] = state
        self.save()


@contextmanager
def record(home: Path, recipe: str, command: str, flow_run_id: str = "", flow_run_name: str = "") -> Iterator[Recorder]:
    """Keeps the entry of a run for the time of the block, and says how it ended."""
    folder = home / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    started = time.time()
    name = time.strftime("%Y%m%d-%H%M%S", time.localtime(started)) + f"-{os.getpid()}"
    with open(folder / f"{name}.lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        entry = Entry(name, recipe, command, started=started, host=os.uname().nodename)
        entry.flow_run_id, entry.flow_run_name = flow_run_id, flow_run_name
        recorder = Recorder(folder, entry)
        try:
            yield recorder
        except BaseException as error:
            recorder.end(*_outcome(error))
            raise
        else:
            recorder.end("completed", 0)


def _outcome(error: BaseException) -> tuple[str, int, str]:
    """state, exit status, and one line."""
    if isinstance(error, InterruptedRun) or not isinstance(error, Exception):  # Ctrl-C, SIGTERM
        return "interrupted", InterruptedRun.exit_code, "stopped from outside"
    code = error.exit_code if isinstance(error, MaskmillError) else MaskmillError.exit_code
    said = f"{error}" if isinstance(error, MaskmillError) else f"{type(error).__name__}: {error}"
    return "failed", code, without_secrets(said)


def read(home: Path, limit: int | None = None) -> list[Entry]:
    """The runs, newest first. One that says "running" and whose process is gone is shown as crashed."""
    paths = sorted((home / "runs").glob("*.json"), reverse=True)[:limit]
    entries = []
    for path in paths:
        with suppress(
            OSError, ValueError, TypeError, KeyError, AttributeError
        ):  # a damaged entry hides one line of history, nothing else
            entry = _entry(path.read_bytes())
            if entry.state == "running" and not _held(path.with_suffix(".lock")):
                entry.state = "crashed"
                if entry.stage:
                    entry.stages[entry.stage]["state"] = "crashed"
            entries.append(entry)
    return entries


def _entry(data: bytes) -> Entry:
    """Raises ValueError or TypeError for what no Recorder wrote."""
    entry = Entry(**json_of(data))
    texts = [value for name, value in vars(entry).items() if name not in NO_STRINGS]
    stages = list(entry.stages.values())
    texts += [*entry.needs, *entry.stages]
    for stage in stages:
        texts += [stage["state"], stage.get("key", ""), stage.get("digest", ""), *stage.get("inputs", ())]
    times = [entry.started, entry.ended or 0, entry.exit_code or 0]
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(one, int | float) for one in times):
        raise TypeError("a field has another type")
    if not all(abs(one) < 1e11 for one in times):
        raise ValueError("no time")
    return entry


def stopped(home: Path, settings: str) -> Entry | None:
    """The last run with these settings, where it did not come to its end in the last days: what is run now goes on
    with it. None where it completed, or still runs."""
    last = next((entry for entry in read(home) if entry.settings == settings), None)
    recent = last is not None and time.time() - last.started < GOES_ON_DAYS * 86400
    return last if last and last.run and recent and last.state not in ("completed", "running") else None


def needed(entries: Iterable[Entry]) -> tuple[set[str], set[str]]:
    """Keys and digests of the artifacts that these runs made, used or were about to."""
    keys, digests = set[str](), set[str]()
    for entry in entries:
        digests.update(entry.needs)
        for stage in entry.stages.values():
            keys.add(stage.get("key", ""))
            digests.update([stage.get("digest", ""), *stage.get("inputs", ())])
    return keys - {""}, digests - {""}


def digests(entries: Iterable[Entry]) -> dict[str, str]:
    """Key -> digest of what runs made or used, where it always was the same one."""
    found: dict[str, set[str]] = {}
    for entry in entries:
        for stage in entry.stages.values():
            if stage.get("digest") and stage.get("key"):
                found.setdefault(stage["key"], set()).add(stage["digest"])
    return {key: next(iter(digests)) for key, digests in found.items() if len(digests) == 1}


def inputs(entries: Iterable[Entry], stage: str) -> list[set[str]]:
    """Of each run the digests of what went into a stage."""
    return [set(entry.stages[stage].get("inputs", ())) for entry in entries if stage in entry.stages]


def _held(path: Path) -> bool:
    """Does a living process hold the lock?"""
    try:
        with open(path, "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:
        return False


def page(entry: Entry) -> dict[str, Any]:
    """An entry for programs."""
    return asdict(entry) | {"stage": entry.stage}


def show(entries: list[Entry]) -> None:
    """The runs for people, on stdout."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    if not entries:
        console.print("No runs yet. Start with: maskmill run quickstart")
    colour = {"completed": "green", "running": "cyan", "interrupted": "yellow"}
    for entry in entries:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.started))
        took = f"{entry.ended - entry.started:,.0f} s" if entry.ended else ""
        line = Text(f"{when}  {entry.recipe:<12} ")
        line.append(f"{entry.state:<11}", colour.get(entry.state, "red"))
        line.append(f" {entry.stage or '':<10} {took}")
        console.print(line)
        if entry.error and entry.state != "interrupted":
            console.print(Text(f"    {entry.error}"))
        name = f"  (run {entry.flow_run_id[:8]})" if entry.flow_run_id else ""
        console.print(Text(f"    {entry.command}{name}", "dim"))
