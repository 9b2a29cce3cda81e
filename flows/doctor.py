"""What the Prefect server believes of runs, set right by what the ledger knows: whose process lives holds a lock.

    the process is gone, the server says it runs            crashed (or cancelled, where it was being cancelled)
    the process lives, the server says it has ended         an orphan: said, and left alone; it keeps the store's locks
    the process lives, the server wants it cancelled        an orphan whose worker died before it could: it is stopped

A run of a deployment that crashed in the last days is taken up again, by policy: `rerun` sends it back to the queue,
MOST times at most. `maskmill worker` looks once a minute.
"""

import os
import shlex
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from flows import ledger
from flows.ledger import Entry
from tasks.errors import UsageError
from tasks.progress import say

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

MOST = 20
"""Attempts of a run of a deployment, crashed or interrupted; then a person looks."""
PAUSE = 15.0
"""Seconds until it may be taken up."""
SETTLED = 30.0
"""Seconds after a crash in which nobody sends a run back: a worker says it once more some 8 s later (on a busy machine
more), and would say it of the new attempt."""
ACTIVE = ("RUNNING", "PENDING", "CANCELLING")
"""What a server says of a run that it believes to be alive."""
GRACE = 30.0
"""Seconds that a worker has to stop a run that is being cancelled; then it has no worker any more."""
PAGE = 200
"""Runs that a server hands out at a time, at most."""


@dataclass(frozen=True)
class Finding:
    """A run that was not as the server had it."""

    run: str
    """Prefect's id."""
    name: str
    what: str
    """For people: what was wrong, and what was done or is to be done."""
    mended: bool


def examine(home: Path, again: bool = False) -> list[Finding]:
    """Every run of this home that the server has wrong, set right.

    again       crashed runs of deployments go back to the queue
    Raises what Prefect's client raises where the server does not answer.
    """
    from prefect import get_client

    known = newest(home)
    with get_client(sync_client=True) as client:
        asked = list(_questionable(client, known))
        return [found for run in asked for found in _examine(client, run, known[str(run.id)], again)]


def newest(home: Path) -> dict[str, Entry]:
    """The last entry of each flow run that Prefect knows: an earlier attempt says nothing of it any more."""
    return {entry.flow_run_id: entry for entry in reversed(ledger.read(home)) if entry.flow_run_id}


def _questionable(client: "SyncPrefectClient", known: Mapping[str, Entry]) -> "Iterator[FlowRun]":
    """Of these runs those that the server believes to be alive or crashed, or whose process lives."""
    from prefect.client.schemas.filters import (
        FlowRunFilter,
        FlowRunFilterId,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType

    types = [StateType(name) for name in (*ACTIVE, "CRASHED")]
    running = [UUID(run) for run, entry in known.items() if entry.state == "running"]
    of_state = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=types)))
    found: dict[str, FlowRun] = {}
    of_process = [FlowRunFilter(id=FlowRunFilterId(any_=running))] if running else []
    for wanted in (of_state, *of_process):
        offset = 0
        while runs := client.read_flow_runs(flow_run_filter=wanted, limit=PAGE, offset=offset):
            found |= {str(run.id): run for run in runs}
            offset += len(runs)
    return (found[run] for run in known if run in found)


def _examine(client: "SyncPrefectClient", run: "FlowRun", entry: Entry, again: bool) -> Iterator[Finding]:
    name, kind = entry.flow_run_name, run.state.type.value if run.state else "PENDING"
    if entry.state == "running":
        if what := _of_orphan(run, kind, entry):
            yield Finding(entry.flow_run_id, name, what, mended=kind in ACTIVE)
        return
    if kind in ACTIVE and _is_over(client, run, entry):
        yield Finding(entry.flow_run_id, name, _close(client, run, kind, entry), mended=True)
        run = client.read_flow_run(run.id)
    if run.state and run.state.is_crashed() and _was_cancelling(client, run):
        yield Finding(entry.flow_run_id, name, _close(client, run, "CANCELLING", entry), mended=True)
        return
    recent = time.time() - entry.started < ledger.GOES_ON_DAYS * 86400
    if again and recent and run.state and run.state.is_crashed() and run.deployment_id and not _unsettled(run):
        if run.run_count < MOST:
            yield Finding(entry.flow_run_id, name, retry(client, run), mended=True)
        else:
            yield Finding(entry.flow_run_id, name, f"crashed {run.run_count} times, and is left alone", mended=False)


def _of_orphan(run: "FlowRun", kind: str, entry: Entry) -> str:
    """What there is to say of a process that lives, and is done with it; "" where all is well."""
    pid = entry.id.rsplit("-", 1)[1]
    here = entry.host == os.uname().nodename
    if kind not in ACTIVE:
        where = "" if here else f" on {entry.host or 'another machine'}"
        return f"its process {pid}{where} still works, but the server has it as {kind}; stop it with: kill {pid}"
    since = run.state.timestamp.timestamp() if run.state else time.time()
    if kind != "CANCELLING" or not here or time.time() - since < GRACE:
        return ""
    with suppress(ProcessLookupError):
        os.kill(int(pid), signal.SIGTERM)  # the lock that says it lives is held by this very process
    return f"is being cancelled, but no worker did it: its process {pid} is told to stop"


def _is_over(client: "SyncPrefectClient", run: "FlowRun", entry: Entry) -> bool:
    """Is the entry that of the attempt which the server believes in? A new one that boots has no entry yet."""
    states = [state for state in client.read_flow_run_states(run.id) if state.is_running()]
    return entry.started >= max((state.timestamp.timestamp() for state in states), default=0.0) - 1


def _was_cancelling(client: "SyncPrefectClient", run: "FlowRun") -> bool:
    """Was it being cancelled when it crashed? Then nobody wants it back."""
    states = sorted(client.read_flow_run_states(run.id), key=lambda state: state.timestamp)
    before = [state for state in states if not state.is_crashed()]
    return bool(before) and before[-1].is_cancelling()


def _close(client: "SyncPrefectClient", run: "FlowRun", kind: str, entry: Entry) -> str:
    from prefect.states import Cancelled, Completed, Crashed, Failed

    if entry.state in ("completed", "failed"):  # the server was away when it ended
        ended = Completed if entry.state == "completed" else Failed
        client.set_flow_run_state(run.id, ended(message=entry.error or "As its process wrote it down."), force=True)
        return f"was {kind} at the server, but has {entry.state}: {entry.state}"
    if kind == "CANCELLING":
        client.set_flow_run_state(run.id, Cancelled(message="Its process is gone."), force=True)
        return "was being cancelled, and its process is gone: cancelled"
    where = f" in {entry.stage}" if entry.stage else ""
    client.set_flow_run_state(run.id, Crashed(message=f"Its process died{where}."), force=True)
    return f"was {kind} at the server, but its process died{where}: crashed"


def _unsettled(run: "FlowRun") -> float:
    """Seconds to wait until a crash is settled."""
    crashed = run.state.timestamp.timestamp() if run.state and run.state.is_crashed() else 0.0
    return max(crashed + SETTLED - time.time(), 0.0)


def retry(client: "SyncPrefectClient", run: "FlowRun") -> str:
    """What the Retry button does: the run goes back to the queue of its deployment. For people, what was done."""
    from prefect.states import AwaitingRetry

    if wait := _unsettled(run):
        say(f"{run.name}: crashed just now; waits {wait:.0f} s until its worker has said so")
        time.sleep(wait)
    at = datetime.now(UTC) + timedelta(seconds=PAUSE)
    client.set_flow_run_state(run.id, AwaitingRetry(scheduled_time=at, message="Rerun by maskmill."), force=True)
    return f"goes back to the queue; a worker takes it up in {PAUSE:.0f} s"


def rerun(home: Path, which: str, first: str | None, server: bool) -> list[str] | str:
    """Rerun a flow run: only what is missing or damaged is made, whichever way it is asked for.

    which       Prefect's id of the run, or how it begins
    first       make this stage and those that follow again
    server      ask the Prefect server; without one, a run of a deployment is run here like any other

    Returns what was done at the server, for a run of a deployment; else the words of the command that is to be run.
    Raises UsageError for a run that nobody knows, or that still runs.
    """
    from prefect import get_client
    from prefect.exceptions import ObjectNotFound

    entry = find(home, which)
    if entry.state == "running":
        raise UsageError(f"The run {entry.flow_run_name or entry.id} still runs; wait for it, or stop it.")
    if entry.flow_run_id and server:
        with suppress(ObjectNotFound), get_client(sync_client=True) as client:
            run = client.read_flow_run(UUID(entry.flow_run_id))
            for found in _examine(client, run, entry, again=False):
                say(f"{found.name}: {found.what}")
            if run.deployment_id and first:
                parameters = run.parameters | {"force_from": first}
                made = client.create_flow_run_from_deployment(run.deployment_id, parameters=parameters)
                return f"{made.name}: a new run from {first} on waits in the queue; a worker takes it up"
            if run.deployment_id:
                return f"{run.name}: {retry(client, client.read_flow_run(run.id))}"
    words = shlex.split(entry.command)[1:]
    if first:
        at = words.index("--from") if "--from" in words else len(words)
        words[at : at + 2] = ["--from", first]
    return words


def find(home: Path, which: str) -> Entry:
    """The last entry of a run. Raises UsageError where it is none, or not the only one."""
    found = {
        entry.flow_run_id or entry.id: entry
        for entry in reversed(ledger.read(home))
        if which and (entry.flow_run_id.startswith(which) or entry.id.startswith(which))
    }
    if len(found) != 1:
        what = "No run" if not found else f"{len(found)} runs"
        raise UsageError(f"{what} of {home} begins with {which!r}; `maskmill runs` shows them with their ids.")
    return next(iter(found.values()))


def page(findings: list[Finding]) -> list[dict[str, Any]]:
    """For programs."""
    return [asdict(finding) for finding in findings]
