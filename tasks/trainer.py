"""The training process: `python -m tasks.trainer JOB.json`, started by pretrain. What it does is in training.py.

SIGTERM or SIGINT: finish the step, write a checkpoint, exit 75. A second one: exit at once.
Exit status: 0 done, 65 damaged data, 71 out of memory, 74 disk full, 75 stopped by a signal (run again), 78 not finite.
"""

import ctypes
import json
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

from .artifacts import NO_SPACE, canonical, load, write_atomic
from .errors import DiskFullError, InterruptedRun, MaskmillError, MemoryExhausted

_signals: list[int] = []
"""Signals received so far."""


def _on_signal(number: int, _: FrameType | None) -> None:
    _signals.append(number)
    if len(_signals) > 1:  # the second one means now; what is on the disk is whole at any instant
        os._exit(InterruptedRun.exit_code)


def main(path: Path) -> int:
    """Runs a job; leaves outcome.json beside it; returns the exit status."""
    signal.signal(signal.SIGTERM, _on_signal)  # before torch is imported, which takes seconds
    signal.signal(signal.SIGINT, _on_signal)
    status, outcome = 0, {}
    try:
        outcome = run(json.loads(path.read_bytes()))
    except Exception as error:
        explained = _explained(error)
        if explained is None:
            traceback.print_exc()
        status = explained.exit_code if explained else 1
        outcome = {"message": str(explained or f"pretrain: {type(error).__name__}: {error}")}
    try:
        write_atomic(path.with_name("outcome.json"), canonical(outcome))
    except OSError as error:  # a full disk: the status alone must do
        status = status or (DiskFullError.exit_code if error.errno in NO_SPACE else 1)
    return status


def run(job: dict[str, Any]) -> dict[str, Any]:
    """The whole of it: prepare, resume, train, finish. Returns counts, facts and measurements of the artifact."""
    _bind_to_parent(job["parent"])
    import torch

    from .training import Training, finish, train

    torch.set_num_threads(job["config"]["threads"])
    training = Training(job)
    training.resume()
    _check_space(training.folder, sum(4 * parameter.numel() for parameter in training.model.parameters()))
    train(training, stopped=lambda: signal.Signals(_signals[0]).name if _signals else None)
    return finish(training, load(Path(job["vocabulary"])))


def _bind_to_parent(parent: int) -> None:
    """Die with the process that started us: it holds the means to hear of our end."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        raise InterruptedRun("pretrain: the process that started the training is gone; run it again.")


def _check_space(folder: Path, weights: int) -> None:
    """Room for three checkpoints (two kept, one in writing) of weights and two moments, missed now, not at the end."""
    free, need = shutil.disk_usage(folder).free, 3 * 3 * weights
    if free < need:
        raise DiskFullError(
            f"pretrain: {free:,} bytes are free for {folder}, checkpoints need {need:,}; free some, run again."
        )


def _explained(error: Exception) -> MaskmillError | None:
    """The error with a documented exit status that stands for what torch and the system say; None for a bug."""
    if isinstance(error, MaskmillError):
        return error
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        where = error.filename or "a checkpoint"
        return DiskFullError(f"pretrain: no space left for {where}; free some and run again: finished steps are kept.")
    # torch reports a failed host allocation as a plain RuntimeError, a device's as OutOfMemoryError
    said_so = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    if isinstance(error, MemoryError) or said_so:
        return MemoryExhausted("pretrain: out of memory; run again with a smaller pretrain.micro_rows.")
    return None


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
