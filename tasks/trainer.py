"""A training process: `python -m tasks.trainer JOB.json`, started by pretrain, alone or as one of several ranks.

SIGTERM, SIGINT or SIGUSR1 to any rank: all finish the step, write a checkpoint, and end as interrupted. A second one,
seconds later: exit at once. How it ended stands in outcome.json beside the job, whatever torchrun makes of the exit
status:

    status 0 done, 1 a bug, 65 damaged data, 71 out of memory, 74 disk full or failing, 75 stopped by a signal (run
    again), 78 not finite

Several ranks wait for each other, so one that fails must be gone at once: it leaves the outcome and exits with its
status, without the interpreter's own end, which may wait for a device or a peer. torchrun then stops the others (those
that wait for a device it kills, after 30 s), starts all again, and they see that there is nothing left to do. A rank
that is lost, or whose device failed, leaves no outcome: then all go on from the last checkpoint (pretrain.restarts).
"""

import json
import math
import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from . import elastic, progress
from .artifacts import canonical, write_atomic
from .errors import InterruptedRun, MaskmillError, MemoryExhausted, end_without_threads, is_out_of_memory, of_disk
from .launch import BUG, OUTCOME, STOP

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
RANKS = "WORLD_SIZE"
"""Set by torchrun."""
LOOK = 1.0
"""Seconds between two looks at the marker of the process that started the ranks."""

_signals: list[int] = []
"""Signals received so far."""


class Stop:
    """The signal that asks this rank to stop, 0 for none: heard by itself, or by the process that started it all."""

    def __init__(self, marker: Path) -> None:
        self.marker, self.looked = marker, -math.inf

    def __call__(self) -> int:
        if not _signals and time.monotonic() - self.looked >= LOOK:
            self.looked = time.monotonic()
            with suppress(OSError, ValueError):
                return int(self.marker.read_text())
        return _signals[0] if _signals else 0


def _on_signal(number: int, _: FrameType | None) -> None:
    if elastic.again():
        return
    _signals.append(number)
    if len(_signals) > 1:  # the second one means now; what is on the disk is whole at any instant
        os._exit(InterruptedRun.exit_code)


def main(path: Path) -> int:
    """Runs a job; leaves outcome.json beside it; returns the exit status."""
    for number in SIGNALS:  # before torch is imported, which takes seconds
        signal.signal(number, _on_signal)
    end_without_threads()
    several, outcome = RANKS in os.environ, path.with_name(OUTCOME)
    if several and _over(outcome):
        return 0
    try:
        said = run(json.loads(path.read_bytes()), several)
        status = 0
    except Exception as error:
        explained = _explained(error)
        if explained is None and not (several and _lost_peer(error)):
            traceback.print_exc()
        if several and _worth_a_restart(error):
            return _leave_at_once(_recorded(error))
        status = explained.exit_code if explained else MaskmillError.exit_code
        said = {"message": str(explained)} if explained else {"message": _bug(error), BUG: True}
    if said is not None:
        try:
            write_atomic(outcome, canonical({**said, "status": status}))
        except OSError as error:  # a full disk: the status alone must do
            status = status or (of_disk(error, outcome) or MaskmillError()).exit_code
    if several and status not in (0, InterruptedRun.exit_code):
        return _leave_at_once(status)
    return 0 if several else status


def _bug(error: Exception) -> str:
    first = next(iter(str(error).strip().splitlines()), "")[:300]
    return f"pretrain: {type(error).__name__}: {first} (traceback above)"


def _worth_a_restart(error: Exception) -> bool:
    """Is a peer or the device gone, or may they be? What a compiler or Python says comes again with each start."""
    compiler = type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))
    return _lost_peer(error) or (isinstance(error, RuntimeError) and _explained(error) is None and not compiler)


def _recorded(error: Exception) -> int:
    """Leaves the error for torchrun, for the case that all restarts are used up; the status of one that is lost."""
    if _lost_peer(error):
        return InterruptedRun.exit_code
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    get_error_handler().record_exception(error)
    return MaskmillError.exit_code


def _leave_at_once(status: int) -> int:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


def _over(outcome: Path) -> bool:
    """Did a rank say why it ended, and torchrun start us all the same?

    torchrun also stops its ranks by a signal where their number changes: then they are to go on.
    """
    try:
        status = json.loads(outcome.read_bytes())["status"]
    except FileNotFoundError:
        return False
    if status != InterruptedRun.exit_code or outcome.with_name(STOP).exists():
        return True
    outcome.unlink(missing_ok=True)
    return False


def run(job: dict[str, Any], several: bool) -> dict[str, Any] | None:
    """The whole of it: join the ranks, begin, train, finish. Returns what the first rank has to say."""
    if not elastic.bind_to_parent():
        raise InterruptedRun("pretrain: the process that started the training is gone; run it again.")
    import torch

    from . import heap, looping
    from .ranks import Ranks
    from .training import FLIGHT, Training

    if int(os.environ.get("RANK", 0)):
        progress.hush()
    config = job["config"]
    torch.set_num_threads(config["threads"])
    heap.keep_freed_memory()
    if config["reduction"] == "exact" and config["device"] == "cuda":
        torch.use_deterministic_algorithms(True)
    ranks = Ranks.join(config["device"], job["rank_timeout"])
    training = Training(job, ranks, Stop(Path(job["scratch"], STOP)))
    try:
        said = looping.profile(training, job["profile"]) if job["profile"] else looping.train(training)
    except Exception:
        if training.keeper:
            training.keeper.settle(FLIGHT)
        raise
    ranks.leave()
    return said if ranks.first else None


def _lost_peer(error: Exception) -> bool:
    from .ranks import lost_peer

    return lost_peer(error)


def _explained(error: Exception) -> MaskmillError | None:
    """The error with a documented exit status that stands for what torch and the system say; None for a bug."""
    if isinstance(error, MaskmillError):
        return error
    if told := of_disk(error, "a checkpoint", "finished steps are kept"):
        return told
    if is_out_of_memory(error):
        return MemoryExhausted("pretrain: out of memory; run again with a smaller pretrain.micro_tokens.")
    return None


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
