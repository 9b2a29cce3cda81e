"""torchrun, bound to the process that started it: `python -m tasks.elastic TORCHRUN-OPTIONS -m tasks.trainer JOB.json`.

torchrun starts the ranks of this node, starts all of them again where one is lost, and with `--nnodes=2:4` goes on with
as many nodes as there are. It exits with 1 on SIGTERM, so how the training ended stands in outcome.json.
"""

import ctypes
import logging
import os
import signal
import sys
import time
from types import FrameType

from .launch import PARENT

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


def main(arguments: list[str]) -> None:
    """Never returns before the ranks have ended."""
    if not bind_to_parent():
        sys.exit(1)
    os.environ[PARENT] = str(os.getpid())  # of the ranks
    os.environ.setdefault("LOGLEVEL", "ERROR")  # a signal is no reason for warnings
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import api

    logging.getLogger("torch.distributed.elastic").setLevel(logging.ERROR)

    heard = api._terminate_process_handler

    def once(signum: int, frame: FrameType | None) -> None:  # a second one makes torchrun abandon its ranks
        if not again():
            heard(signum, frame)

    api._terminate_process_handler = once
    try:
        run.main(arguments)
    except api.SignalException:  # nor for a traceback: the ranks have said what became of it
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
