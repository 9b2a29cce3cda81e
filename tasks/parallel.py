"""Work in several processes, its results taken in order: the same for any number of them and any kind of pool."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from typing import Any, Protocol, TypeVar

from .errors import MemoryExhausted

Job = TypeVar("Job")
Result = TypeVar("Result")

TICK = 0.5
"""Seconds between two calls of `waiting`."""


class Pending(Protocol):
    """A job that was handed out."""

    def done(self, timeout: float) -> bool:
        """Waits up to `timeout` seconds; is it finished?"""

    def result(self) -> Any:
        """What the work returned; raises what it raised, and MemoryExhausted where its process was killed."""


class Pool(Protocol):
    """Where jobs are worked: processes here, or workers of Dask or Ray (flows/runners.py)."""

    @property
    def workers(self) -> int:
        """Jobs that are worked at the same time."""

    def submit(self, work: Callable[[Job], Result], job: Job) -> Pending:
        """Hands out a job; `work` and `job` are picklable."""


class _Started:
    def __init__(self, future: "Future[Any]") -> None:
        self.future = future

    def done(self, timeout: float) -> bool:
        return bool(wait([self.future], timeout).done)

    def result(self) -> Any:
        try:
            return self.future.result()
        except BrokenProcessPool as error:
            raise MemoryExhausted(
                "A worker process was killed, most likely for memory; give fewer corpus.workers or shards.workers."
            ) from error


class _Processes:
    def __init__(self, workers: int) -> None:
        self.workers = workers
        # spawn: the parent may have threads, and a fork would copy their locks as they stand
        self.executor = ProcessPoolExecutor(workers, get_context("spawn"), _die_with_parent)

    def submit(self, work: Callable[[Job], Result], job: Job) -> Pending:
        try:
            return _Started(self.executor.submit(work, job))
        except BrokenProcessPool as error:
            broken: Future[Any] = Future()
            broken.set_exception(error)
            return _Started(broken)


@contextmanager
def threads(workers: int) -> Iterator[Pool | None]:
    """A pool of threads of this process, for work that hardly holds the interpreter; None for 0."""
    if workers == 0:
        yield None
        return
    pool = _Threads(workers)
    try:
        yield pool
    finally:
        pool.executor.shutdown(cancel_futures=True)


class _Threads:
    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.executor = ThreadPoolExecutor(workers, "worker")

    def submit(self, work: Callable[[Job], Result], job: Job) -> Pending:
        return _Started(self.executor.submit(work, job))


@contextmanager
def processes(workers: int) -> Iterator[Pool | None]:
    """A pool of processes on this machine; None for 0, which means this process."""
    if workers == 0:
        yield None
        return
    pool = _Processes(workers)
    try:
        yield pool
    finally:
        pool.executor.shutdown(cancel_futures=True)


def in_order(
    jobs: Iterable[Job],
    work: Callable[[Job], Result],
    pool: Pool | None,
    wanted: Callable[[Job], bool] = lambda job: True,
    waiting: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Job, Result]]:
    """(job, result) in the order of the jobs, a few of them in work ahead; unwanted ones are left out.

    work     a picklable function; called in this process where there is no pool
    wanted   asked again before a result is handed out: results that came too early are thrown away
    waiting  called now and then while a result is not there yet
    Raises what `work` raises, and MemoryExhausted when a process was killed.
    """
    if pool is None:
        yield from ((job, work(job)) for job in jobs if wanted(job))
        return
    rest = iter(jobs)
    queue: deque[tuple[Job, Pending]] = deque()
    while True:
        while len(queue) < pool.workers + 2 and (job := next(rest, None)) is not None:
            if wanted(job):
                queue.append((job, pool.submit(work, job)))
        if not queue:
            return
        job, pending = queue.popleft()
        while wanted(job):
            if pending.done(TICK):
                yield job, pending.result()
                break
            waiting()


def _die_with_parent() -> None:
    """A worker whose parent was killed must not go on writing where the next run builds."""
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_wait_and_exit, args=(parent.join,), daemon=True).start()


def _wait_and_exit(wait: Callable[[], None]) -> None:
    wait()
    os._exit(75)
