"""What the Prefect server believes of runs, set right by what the ledger knows: whose process lives holds a lock.

    the process is gone, the server says it runs            crashed (or cancelled, where it was being cancelled)
    the process lives, the server says it has ended         an orphan: said, and left alone; it keeps the store's locks

A run of a deployment that crashed is taken up again, by policy: `rerun` sends it back to the queue, MOST times at most.
"""

import shlex
from collections.abc import Iterator
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
"""Seconds until it may be taken up: a worker says some 8 s after a crash once more that the run crashed."""
ACTIVE = {"RUNNING", "PENDING", "CANCELLING"}
"""What a server says of a run that it believes to be alive."""


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

    with get_client(sync_client=True) as client:
        return [found for entry in newest(home) for found in _examine(client, entry, again)]


def newest(home: Path) -> Iterator[Entry]:
    """The last entry of each flow run that Prefect knows: an earlier attempt says nothing of it any more."""
    seen: set[str] = set()
    for entry in ledger.read(home):
        if entry.flow_run_id and entry.flow_run_id not in seen:
            seen.add(entry.flow_run_id)
            yield entry


def _examine(client: "SyncPrefectClient", entry: Entry, again: bool) -> Iterator[Finding]:
    from prefect.exceptions import ObjectNotFound

    try:
        run = client.read_flow_run(UUID(entry.flow_run_id))
    except ObjectNotFound:  # of another server, or deleted there
        return
    state, name = run.state, entry.flow_run_name
    kind = state.type.value if state else "PENDING"
    if entry.state == "running":
        if kind not in ACTIVE:
            pid = entry.id.rsplit("-", 1)[1]
            what = f"its process {pid} still works, but the server has it as {kind}; stop it with: kill {pid}"
            yield Finding(entry.flow_run_id, name, what, mended=False)
        return
    if kind in ACTIVE and _is_over(client, run, entry):
        yield Finding(entry.flow_run_id, name, _close(client, run, kind, entry), mended=True)
        run = client.read_flow_run(UUID(entry.flow_run_id))
    if again and run.state and run.state.is_crashed() and run.deployment_id:
        if run.run_count < MOST:
            yield Finding(entry.flow_run_id, name, retry(client, run), mended=True)
        else:
            yield Finding(entry.flow_run_id, name, f"crashed {run.run_count} times, and is left alone", mended=False)


def _is_over(client: "SyncPrefectClient", run: "FlowRun", entry: Entry) -> bool:
    """Is the entry that of the attempt which the server believes in? A new one that boots has no entry yet."""
    states = [state for state in client.read_flow_run_states(run.id) if state.is_running()]
    return entry.started >= max((state.timestamp.timestamp() for state in states), default=0.0) - 1


def _close(client: "SyncPrefectClient", run: "FlowRun", kind: str, entry: Entry) -> str:
    from prefect.states import Cancelled, Crashed

    if kind == "CANCELLING":
        client.set_flow_run_state(run.id, Cancelled(message="Its process is gone."), force=True)
        return "was being cancelled, and its process is gone: cancelled"
    where = f" in {entry.stage}" if entry.stage else ""
    client.set_flow_run_state(run.id, Crashed(message=f"Its process died{where}."), force=True)
    return f"was {kind} at the server, but its process died{where}: crashed"


def retry(client: "SyncPrefectClient", run: "FlowRun") -> str:
    """What the Retry button does: the run goes back to the queue of its deployment. For people, what was done."""
    from prefect.states import AwaitingRetry

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
            for found in _examine(client, entry, again=False):
                say(f"{found.name}: {found.what}")
            if run.deployment_id and first:
                parameters = run.parameters | {"force_from": first}
                made = client.create_flow_run_from_deployment(run.deployment_id, parameters=parameters)
                return f"{made.name}: a new run from {first} on waits in the queue; a worker takes it up"
            if run.deployment_id:
                return f"{run.name}: {retry(client, run)}"
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
