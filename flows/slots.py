"""One training at a time on all machines of a Prefect server, as its concurrency limit says; data stages may overlap.

The limit is the queue that people see and change. What keeps two processes off one artifact is the store's lock, and
that needs no server.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from prefect import get_client
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound

from flows import ui
from tasks.progress import say

TRAINING = "maskmill-training"
"""Made by `maskmill deploy`; without it nobody waits. `prefect gcl update maskmill-training --limit 2` changes it."""
LEASE = 60.0
"""Seconds after which the slot of a process that was killed is free again."""


@contextmanager
def training() -> Iterator[None]:
    """Holds the slot for the time of the block; waits for it as long as it takes.

    A server that is away costs the queue's order, never the training.
    """
    held = ExitStack()
    # An embedded server is this run's alone, and takes back no slot of a process that was killed.
    if not os.environ.get(ui.EMBEDDED):
        _told(lambda: _take(held))
    try:
        yield
    finally:
        _told(held.close)


def _take(held: ExitStack) -> None:
    with get_client(sync_client=True) as client:
        try:
            limit = client.read_global_concurrency_limit_by_name(TRAINING)
        except ObjectNotFound:
            return
    if limit.active:
        if limit.active_slots >= limit.limit:
            say(f"pretrain: waits for another training (concurrency limit {TRAINING})")
        held.enter_context(concurrency(TRAINING, lease_duration=LEASE, raise_on_lease_renewal_failure=False))


def _told(do: Callable[[], None]) -> None:
    """Whatever the server does, the run goes on."""
    try:
        do()
    except Exception as error:
        say(f"pretrain: the concurrency limit {TRAINING} is not kept ({type(error).__name__}); the run goes on")
