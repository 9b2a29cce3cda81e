"""torchrun, bound to the process that started it: `python -m tasks.elastic TORCHRUN-OPTIONS -m tasks.trainer JOB.json`.

torchrun starts the ranks of this node, starts all of them again where one is lost, and with `--nnodes=2:4` goes on with
as many nodes as there are. It exits with 1 on SIGTERM, and where all restarts are used up, so how the training ended
stands in outcome.json: as the ranks say, else as this process does.
"""

import ctypes
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Protocol

from .artifacts import canonical, write_atomic
from .errors import InterruptedRun, MaskmillError, MemoryExhausted
from .launch import OUTCOME, PARENT, kept

SAME = 2.0
"""Seconds in which further signals are the first one again: some systems signal every process of a job, and each of
these hands it on."""

_since: list[float] = []


def bind_to_parent() -> bool:
    """Die with the process that started us: it holds the means to hear of our end. False where it is gone already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    return os.getppid() == int(os.environ.get(PARENT, os.getppid()))


def again() -> bool:
    """Called for every signal: is it the first one again, and not another one?"""
    _since.append(time.monotonic())
    return 0 < _since[-1] - _since[0] < SAME and len(_since) > 1


KILLED = -signal.SIGKILL
BY_TORCHRUN = 20
"""Seconds after the first failure, from which on a rank was killed by torchrun, which gives it 30 to end."""


class Failure(Protocol):
    """What torchrun says of a rank that ended with another status than 0."""

    @property
    def exitcode(self) -> int:
        """Minus the number where it was a signal."""

    @property
    def timestamp(self) -> int:
        """Seconds since 1970."""

    @property
    def message(self) -> object:
        """{"message": "TypeError: …"} where the rank left it."""


STOPPED = {InterruptedRun.exit_code, -signal.SIGTERM, -signal.SIGINT, -signal.SIGUSR1}
"""Exit codes of ranks that were stopped, or that have lost another one."""


def used_up(failures: Sequence[Failure], restarts: int, kept: str) -> MaskmillError:
    """What the failures of the last attempt stand for, where no restart is left.

    Only stopped, or only lost to each other: an interruption, which the same command mends. Killed once: as with a
    process of its own; killed again and again: by the kernel, for want of memory. All else is an error of training.
    """
    again = f"and pretrain.restarts ({restarts}) are used up; run again to go on from {kept}"
    began = min(one.timestamp for one in failures)
    causes = [
        one
        for one in sorted(failures, key=lambda one: one.timestamp)
        if one.exitcode not in STOPPED and not (one.exitcode == KILLED and one.timestamp - began >= BY_TORCHRUN)
    ]
    if not causes:
        return InterruptedRun(f"pretrain: the ranks were stopped or lost each other, {again}.")
    first = next((one for one in causes if isinstance(one.message, dict)), causes[0])
    if first.exitcode == KILLED:
        by = "most likely by the kernel" if restarts else "by hand, or by the kernel"
        kind = MemoryExhausted if restarts else InterruptedRun
        return kind(f"pretrain: a rank was killed ({by} for want of memory: lower pretrain.micro_tokens), {again}.")
    how = f"died of signal {-first.exitcode}" if first.exitcode < 0 else f"ended with status {first.exitcode}"
    if isinstance(first.message, dict):
        how = f"failed ({str(first.message.get('message')).strip().splitlines()[0][:300]})"
    return MaskmillError(f"pretrain: a rank {how}, {again}.")


def _leave(job: Path, error: MaskmillError) -> None:
    """The outcome, where no rank left one, which says more."""
    if not (path := job.with_name(OUTCOME)).exists():
        write_atomic(path, canonical({"message": str(error), "status": error.exit_code}))


def main(arguments: list[str]) -> None:
    """Never returns before the ranks have ended."""
    if not bind_to_parent():
        sys.exit(1)
    os.environ[PARENT] = str(os.getpid())  # of the ranks
    os.environ.setdefault("LOGLEVEL", "ERROR")  # a signal is no reason for warnings
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import api
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.ERROR)
    api.logger.setLevel(logging.CRITICAL)  # of a rank that failed we say more

    heard = api._terminate_process_handler

    def once(signum: int, frame: FrameType | None) -> None:  # a second one makes torchrun abandon its ranks
        if not again():
            heard(signum, frame)

    api._terminate_process_handler = once
    job = Path(arguments[-1])
    try:
        run.main(arguments)
    except api.SignalException:  # no reason for a traceback: the ranks have said what became of it
        _leave(job, InterruptedRun(f"pretrain: stopped by a signal; run again to go on from {kept(job.parent)}."))
        sys.exit(1)
    except ChildFailedError as error:
        restarts = json.loads(job.read_bytes())["config"]["restarts"]
        _leave(job, used_up(list(error.failures.values()), restarts, kept(job.parent)))
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
