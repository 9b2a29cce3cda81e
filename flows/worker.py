"""A worker: looks once a minute after the runs of its home, and ends them first when it ends, in their own time.

Prefect's worker kills the processes of its runs when it is stopped. So SIGTERM and Ctrl-C are heard here, and reach the
runs before the worker: a training finishes its step and writes a checkpoint, and the run goes back into the queue
(preempted.py). What else is under way ends, too, and is sent back by the doctor of the next worker.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType

from flows import environment, ui
from tasks.progress import say

LOOK = 60.0
"""Seconds between two looks at what the server believes of runs."""
GRACE = 120.0
"""Seconds that runs get to end. systemd's TimeoutStopSec and a container's grace period are longer."""
PATIENCE = 20.0
"""Seconds that the worker itself gets."""


def work(pool: str, look: Callable[[], None]) -> int:
    """A worker of the pool, until Ctrl-C or SIGTERM; a second signal ends it at once. Its exit status.

    look    what is done at the start and once a minute

    It answers GET /health where PREFECT_WORKER_WEBSERVER_PORT is set.
    """
    command = [sys.executable, "-P", "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process"]
    command += ["--with-healthcheck"] if os.environ.get("PREFECT_WORKER_WEBSERVER_PORT") else []
    with _heard() as signals:
        # A session of its own: Ctrl-C would reach it first, and its runs would be killed.
        process = subprocess.Popen(
            command,
            cwd=environment.CHECKOUT,
            start_new_session=True,
            preexec_fn=partial(ui.die_with_parent, signal.SIGKILL),
        )
        looks = time.monotonic()
        while process.poll() is None and not signals:
            if time.monotonic() >= looks:
                look()
                looks = time.monotonic() + LOOK
            time.sleep(0.2)
        if process.poll() is not None:
            return process.returncode
        _end_runs(process.pid, signals)
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return 0


@contextmanager
def _heard() -> Iterator[list[int]]:
    """The signals that have come so far."""
    signals: list[int] = []

    def hear(number: int, _: FrameType | None) -> None:
        signals.append(number)

    before = {number: signal.signal(number, hear) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_runs(worker: int, signals: list[int]) -> None:
    """Each process that the worker has started is told once, also one that it starts meanwhile."""
    import psutil

    told: set[int] = set()
    end = time.monotonic() + GRACE
    while time.monotonic() < end and len(signals) < 2:
        runs = []
        with suppress(psutil.NoSuchProcess):
            runs = [run for run in psutil.Process(worker).children() if run.status() != psutil.STATUS_ZOMBIE]
        if not runs:
            return
        for run in runs:
            if run.pid not in told:
                say(f"stopping a run (process {run.pid}): it finishes its step; a second signal ends it at once")
                told.add(run.pid)
                with suppress(psutil.NoSuchProcess):
                    run.terminate()
        time.sleep(0.2)
