"""Where the corpus is read and shards are made: processes of this machine, or workers of Dask or Ray (`runner:`).

processes   the stage's own; nothing to install
dask        Prefect's DaskTaskRunner: pip install 'maskmill[dask]'
ray         Prefect's RayTaskRunner: pip install 'maskmill[ray]'

An existing cluster is named the way its own clients find it: DASK_SCHEDULER_ADDRESS, RAY_ADDRESS. Its workers need the
same packages, the same paths (sources and MASKMILL_HOME on a shared file system) and a PREFECT_API_URL that they reach.
Without one, a cluster on this machine lives as long as the run: one process per core, no dashboard, and keys that only
this run has keep others out.

The bytes are the same everywhere: only who works on a job differs. Each job is a task run of its own in Prefect.
"""

import itertools
import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from functools import cached_property, partial
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeAlias, TypeVar

from tasks.errors import MemoryExhausted, UsageError
from tasks.hardware import thread_count
from tasks.parallel import Pending, Pool
from tasks.progress import say

Name: TypeAlias = Literal["processes", "dask", "ray"]
Job = TypeVar("Job")
Result = TypeVar("Result")

LOOPBACK = "127.0.0.1"
PACKAGES = {"processes": (), "dask": ("prefect_dask", "distributed"), "ray": ("prefect_ray", "ray")}
ADDRESSES = {"dask": "DASK_SCHEDULER_ADDRESS", "ray": "RAY_ADDRESS"}
KILLED = {"KilledWorker", "WorkerCrashedError", "OutOfMemoryError", "NodeDiedError"}
"""How Dask and Ray say that a worker is gone: by name, since they are imported only where they are used."""
PATIENCE = 10.0
"""Seconds to wait for the answer of an existing Ray cluster."""
OBJECTS_BYTES = 256 << 20
"""Ray's store for results, which are small here; its default is 30 % of the memory."""


def check(name: Name) -> None:
    """Raises UsageError where a package is missing; imports nothing."""
    missing = [package for package in PACKAGES[name] if find_spec(package) is None]
    if missing:
        raise UsageError(f"runner: {name} needs {' and '.join(missing)}; pip install 'maskmill[{name}]'.")


@contextmanager
def pool(name: Name) -> Iterator[Pool | None]:
    """A pool for the time of the block, inside a flow run; None for processes: the stage makes its own.

    The cluster starts with the first job: a run that reuses its corpus and shards never waits for one.
    """
    check(name)
    if name == "processes":
        yield None
        return
    with ExitStack() as stack:
        yield _Pool(name, stack)


class _Pool:
    """Jobs become runs of a Prefect task, children of the flow run in which the pool was opened."""

    def __init__(self, name: Name, stack: ExitStack) -> None:
        self._name, self._stack = name, stack
        # Not the context of the stage's own task: its parameters, this pool among them, would travel with each job.
        self._context = copy_context()
        self._numbers = itertools.count(1)

    @cached_property
    def _cluster(self) -> tuple[Callable[..., Any], int]:
        say(f"{'runner':<10}  starting {self._name} …")
        try:
            return (_dask if self._name == "dask" else _ray)(self._stack)
        except (OSError, ValueError, RuntimeError) as error:
            where = os.environ.get(ADDRESSES[self._name])
            at = f" at {where} ({ADDRESSES[self._name]})" if where else ""
            said = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise UsageError(f"runner: {self._name}: no cluster{at}: {said}.") from error

    @cached_property
    def _unit(self) -> Any:
        from prefect import task
        from prefect.cache_policies import NO_CACHE

        return task(name="unit", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)(_work)

    @property
    def workers(self) -> int:
        """Jobs that are worked at the same time."""
        return self._cluster[1]

    def submit(self, work: Callable[[Job], Result], job: Job) -> Pending:
        """Hands out a job; `work` and `job` are picklable."""
        hand_out, _ = self._cluster
        name = f"{_called(work)} {next(self._numbers)}"
        # A partial, since Prefect looks into lists, dicts and dataclasses for results that it might have to wait for.
        parameters = {"call": partial(work, job), "name": name}
        return _Handed(self._context.run(hand_out, self._unit, parameters))


class _Handed:
    """A job at a worker."""

    def __init__(self, future: Any) -> None:
        self._future, self._settled = future, threading.Event()
        future.add_done_callback(lambda _: self._settled.set())

    def done(self, timeout: float) -> bool:
        """Waits up to `timeout` seconds; is it finished?"""
        return self._settled.wait(timeout)

    def result(self) -> Any:
        """What the work returned; raises what it raised, and MemoryExhausted where its process was killed."""
        try:
            return self._future.result()
        except Exception as error:
            if type(error).__name__ in KILLED:
                raise MemoryExhausted(
                    "A worker was killed, most likely for memory; give its machine more, or run fewer workers on it."
                ) from error
            raise


def _work(call: Callable[[], Any], name: str) -> Any:
    """The body of the task, at the worker."""
    # What a job raises is said once, by the run itself; here it would come with a traceback on the same terminal.
    logging.getLogger("prefect.task_runs").propagate = False
    return call()


def _called(work: Callable[..., Any]) -> str:
    """A function's name for people: read_unit → "read unit"."""
    return str(getattr(work.func if isinstance(work, partial) else work, "__name__", "unit")).replace("_", " ")


def _dask(stack: ExitStack) -> tuple[Callable[..., Any], int]:
    """(submit, threads of the workers)"""
    import dask
    from prefect_dask.task_runners import DaskTaskRunner

    if address := dask.config.get("scheduler-address", None):
        runner: Any = DaskTaskRunner(address=address)
    else:
        settings = {
            "distributed.scheduler.allowed-failures": 0,  # a job that kills its worker would kill the next three, too
            "distributed.scheduler.http.routes": [],  # its web server cannot be left out
        }
        stack.enter_context(dask.config.set(settings))
        local = {
            "n_workers": thread_count(),
            "threads_per_worker": 1,
            "processes": True,
            "host": LOOPBACK,
            "dashboard_address": None,
            "scheduler_kwargs": {"dashboard_address": f"{LOOPBACK}:0"},
            "security": True,  # TLS with keys that never leave this run: who can connect can run code
            "memory_limit": 0,  # its share of the memory would kill a large job while others leave room
            "local_directory": stack.enter_context(TemporaryDirectory(prefix="maskmill-dask-")),
        }
        runner = DaskTaskRunner(cluster_kwargs=local)
    stack.enter_context(runner)
    client: Any = runner.client
    return runner.submit, max(1, sum(client.nthreads().values()))


def _ray(stack: ExitStack) -> tuple[Callable[..., Any], int]:
    """(submit, CPUs of the workers)"""
    address = os.environ.get("RAY_ADDRESS")
    if not address:  # Ray listens on all interfaces, and who can connect can run code: only this run knows the token
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    else:
        _knock(address)
    import ray
    from prefect_ray.context import remote_options
    from prefect_ray.task_runners import RayTaskRunner

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if not address:
        options |= {
            "address": "local",  # never one that happens to run here
            "num_cpus": thread_count(),
            "include_dashboard": False,
            "object_store_memory": OBJECTS_BYTES,
            # its sockets lie there, and the path of a socket must be short
            "_temp_dir": stack.enter_context(TemporaryDirectory(prefix="maskmill-ray-", dir="/tmp")),
        }
    runner: Any = RayTaskRunner(address=address, init_kwargs=options)
    before = signal.getsignal(signal.SIGTERM)
    stack.enter_context(runner)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)  # Ray puts its own there

    def submit(unit: Any, parameters: dict[str, Any]) -> Any:
        with remote_options(max_retries=0):  # a job that kills its worker would kill the next three, too
            return runner.submit(unit, parameters)

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return submit, max(1, int(resources.get("CPU", 1)))


def _knock(address: str) -> None:
    """Raises OSError where nobody listens at host:port or ray://host:port: Ray itself would try for minutes."""
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
