"""Work in several processes, its results taken in order: the same outcome for any number of workers."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import TypeVar

from .errors import MemoryExhausted

Job = TypeVar("Job")
Result = TypeVar("Result")

TICK = 0.5
"""Seconds between two calls of `waiting`."""


def in_order(
    jobs: Iterable[Job],
    work: Callable[[Job], Result],
    workers: int,
    wanted: Callable[[Job], bool],
    waiting: Callable[[], None],
) -> Iterator[tuple[Job, Result]]:
    """(job, result) in the order of the jobs, a few of them in work ahead; unwanted ones are left out.

    work     a picklable function; called in this process when workers is 0
    wanted   asked again before a result is handed out: results that came too early are thrown away
    waiting  called now and then while a result is not there yet
    Raises MemoryExhausted when a process was killed.
    """
    if workers == 0:
        yield from ((job, work(job)) for job in jobs if wanted(job))
        return
    # spawn: the parent may have threads, and a fork would copy their locks as they stand
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _die_with_parent)
    rest = iter(jobs)
    queue: deque[tuple[Job, Future[Result]]] = deque()
    try:
        while True:
            while len(queue) < workers + 2 and (job := next(rest, None)) is not None:
                if wanted(job):
                    queue.append((job, pool.submit(work, job)))
            if not queue:
                return
            job, future = queue.popleft()
            while wanted(job):
                if wait([future], TICK).done:
                    yield job, future.result()
                    break
                waiting()
    except BrokenProcessPool as error:
        raise MemoryExhausted("A worker process was killed, most likely for memory; give fewer workers.") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _die_with_parent() -> None:
    """A worker whose parent was killed must not go on writing where the next run builds."""
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_wait_and_exit, args=(parent.join,), daemon=True).start()


def _wait_and_exit(wait: Callable[[], None]) -> None:
    wait()
    os._exit(75)
