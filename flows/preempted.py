"""A run of a deployment that was preempted goes back into the queue, and a worker goes on with it.

The training ends with status 75 at a step boundary, its checkpoint safe; the run's state becomes AwaitingRetry, the one
that the Retry button sets, after a pause. So does one that a network cost, after longer and longer pauses and a few
times only. Bad data, a full disk, a loss that is not finite are no reason to try again.
A run on the command line has no worker that would take it up: it ends with status 75, and its user runs it again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect import get_client, runtime
from prefect.client.schemas.objects import State
from prefect.exceptions import Abort
from prefect.states import AwaitingRetry, Cancelled
from prefect.utilities.engine import propose_state_sync

from flows import faults
from flows.doctor import MOST
from tasks.errors import InterruptedRun, MaskmillError, UnreachableError, without_secrets
from tasks.progress import say

PAUSE = 30.0
"""Seconds until a worker may take the run up again: what was interrupted is gone by then, and a machine that goes down
is down."""


@contextmanager
def goes_on() -> Iterator[None]:
    """What interrupts the block, or a server that is away, reschedules the flow run, where it belongs to a deployment.

    Raises Abort then: Prefect's engine leaves the state as it is and the process ends with 0. The interruption of the
    last of MOST attempts is raised as it is.
    """
    try:
        yield
    except (
        InterruptedRun,
        UnreachableError,
        SystemExit,
    ) as error:  # Prefect exits where a run without worker is cancelled
        run = runtime.flow_run.id
        if not run or not runtime.deployment.id or not _is_settled(UUID(str(run)), error):
            raise
        raise Abort(str(error)) from error


def _is_settled(run: UUID, error: MaskmillError | SystemExit) -> bool:
    try:
        return _settle(run, error)
    except Exception as trouble:  # the server is away: the run will be found to have crashed, and taken up then
        say(without_secrets(f"The run cannot be rescheduled ({type(trouble).__name__}: {trouble})."))
        return False


def _settle(run: UUID, error: MaskmillError | SystemExit) -> bool:
    """Does the server agree that the run is tried again, or that it is cancelled?"""
    attempts = runtime.flow_run.run_count
    most, pause = MOST, PAUSE
    if isinstance(error, UnreachableError):
        most, pause = faults.TIMES, 4 * faults.FIRST * 2.0**attempts
    at = datetime.now(UTC) + timedelta(seconds=pause)
    with get_client(sync_client=True) as client:
        now = client.read_flow_run(run).state
        if now is not None and now.is_cancelling():  # its worker says so, too, where it has one
            client.set_flow_run_state(run, Cancelled(message="Finished work is kept."), force=True)
            return True
        if isinstance(error, SystemExit) or (now is not None and now.is_final()):
            return False
        if attempts >= most:
            say(f"This was attempt {attempts} of the run, the last one; it is not rescheduled.")
            return False
        state: State[Any] = AwaitingRetry(scheduled_time=at, message=f"Attempt {attempts}: {error}")
        accepted = propose_state_sync(client, state, flow_run_id=run)
    if accepted.is_scheduled():
        say(f"A worker goes on with this run in {pause:.0f} s.")
    return accepted.is_scheduled()
