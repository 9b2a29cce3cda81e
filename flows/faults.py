"""What of a stage is tried again, and how long one may take. Prefect does both; here is what it is told.

A server or a network that does not answer is worth another try: TIMES of them, after about 15, 30, 60 and 120 seconds,
each longer or shorter by up to half, so that the runs of a cluster do not all come back at once. Wrong settings, bad
data, a full disk, a loss that is not finite are the same after a pause. (An interrupted training: flows/preempted.py.)
"""

from typing import Any

from prefect.client.schemas.objects import State
from prefect.tasks import exponential_backoff

from tasks.errors import StageTimeout, UnreachableError
from tasks.progress import say

TIMES, FIRST, JITTER = 4, 15.0, 0.5


def is_worth_it(task: Any, run: Any, state: State[Any]) -> bool:
    """Does Prefect try the stage again after this? Says so."""
    error = state.data
    if not isinstance(error, UnreachableError):
        return False
    say(f"{run.name}: {error} It is tried again in about {FIRST * 2 ** (run.run_count - 1):.0f} s.")
    return True


RETRIES: dict[str, Any] = {
    "retries": TIMES,
    "retry_delay_seconds": exponential_backoff(FIRST),
    "retry_jitter_factor": JITTER,
    "retry_condition_fn": is_worth_it,
}
"""Options of a task."""


def limit(minutes: float) -> dict[str, Any]:
    """Options of a task that may take so long; 0 is for ever."""
    return {"timeout_seconds": 60 * minutes} if minutes else {}


def refuse_late(state: State[Any], stage: str, minutes: float) -> None:
    """Raises StageTimeout where Prefect stopped the stage."""
    if state.name == "TimedOut":
        raise StageTimeout(
            f"{stage}: stopped after {minutes:g} minutes (timeouts.{stage}); what is finished is kept: run again to go "
            "on, or allow more."
        )
