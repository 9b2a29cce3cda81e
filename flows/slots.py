"""One training at a time on all machines of a Prefect server, as its concurrency limit says; data stages may overlap.

The limit is the queue that people see and change. What keeps two processes off one artifact is the store's lock, and
that needs no server.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from prefect import get_client
from prefect.concurrency.sync import concurrency

from flows import ui
from tasks.progress import say

TRAINING = "maskmill-training"
"""Made by `maskmill deploy`; without it nobody waits. `prefect gcl update maskmill-training --limit 2` changes it."""
LEASE = 60.0
"""Seconds after which the slot of a process that was killed is free again."""


@contextmanager
def training() -> Iterator[None]:
    """Holds the slot for the time of the block; waits for it as long as it takes."""
    with ExitStack() as stack:
        if os.environ.get(ui.EMBEDDED):  # it is this run's alone, and takes back no slot of a process that was killed
            yield
            return
        try:
            with get_client(sync_client=True) as client:
                limit = client.read_global_concurrency_limit_by_name(TRAINING)
        except Exception:  # there is no limit, or no server: the run goes on, as everywhere
            limit = None
        if limit is not None and limit.active:
            if limit.active_slots >= limit.limit:
                say(f"pretrain: waits for another training (concurrency limit {TRAINING})")
            lost_is_fatal = False  # a server that is away for a while costs the queue's order, not the training
            stack.enter_context(
                concurrency(TRAINING, lease_duration=LEASE, raise_on_lease_renewal_failure=lost_is_fatal)
            )
        yield
