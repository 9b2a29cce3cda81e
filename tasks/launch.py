"""Starts the training process, or several under torchrun, watches them, and says how they ended. Never imports torch.

    the parent (here)                        tasks.trainer (one process)      torchrun -> n times tasks.trainer
      job.json, the artifact's lock   ───►     trains, checkpoints, appends to the spool (the first rank)
      looks at the spool now and then ◄───     measured.metrics.jsonl, curve.jsonl
      SIGTERM, SIGINT, SIGUSR1        ───►     finish the step, checkpoint, end
      an error of errors.py           ◄───     outcome.json, which tells more than torchrun's exit status

A rank that is lost makes torchrun start all of them again, from the last checkpoint.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from .artifacts import canonical, write_atomic
from .errors import DataError, DiskError, InterruptedRun, MaskmillError, UsageError
from .manifests import json_of
from .progress import say

JOB, OUTCOME = "job.json", "outcome.json"
BUG = "bug"
"""Key of an outcome whose message is to end in what the same command goes on from. Only the parent can say that, when
all ranks have ended: the one that failed may not be the one that is still writing a checkpoint."""
STOP = "stop"
"""Says to ranks that they are to stop, and to those that torchrun starts again that they were stopped on purpose. Holds
the number of the signal: torchrun may lose one that comes while it starts ranks (seen on a busy machine)."""
PARENT = "MASKMILL_PARENT"
"""Name in the environment: id of the process that started this one, and with which it is to end."""
NOT_OURS = re.compile(r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|ROLE_NAME|(TORCHELASTIC|PET)_\w+")
"""Names in the environment by which torchrun, or a cluster in its place, tells a process which rank it is."""
POLL = 0.5
"""Seconds between two looks at the spool."""
GRACE = 30.0
"""Seconds that an abandoned trainer gets to finish its step and write a checkpoint."""
SHUTDOWN = 120
"""Seconds that torchrun gives its ranks to end, after a signal or where another rank was lost."""


def train(job: dict[str, Any], lock_fd: int, look: Callable[[], None]) -> dict[str, Any]:
    """Run a job to its end; what the trainer said of it. Calls `look` now and then.

    Raises what the outcome or the exit status stands for.
    """
    scratch = Path(job["scratch"])
    write_atomic(scratch / JOB, canonical(job))
    for name in (OUTCOME, STOP):
        (scratch / name).unlink(missing_ok=True)
    if job["config"]["nodes"] != "1":
        where = scratch / JOB
        say(f"pretrain: this is the first of {job['config']['nodes']} machines; on the others: maskmill join {where}")
    return outcome(scratch, _watch(scratch / JOB, job["config"], (lock_fd,), look))


def join(job: Path) -> None:
    """The ranks of this machine, in a training that another one started; to its end.

    Raises UsageError where there is no such job, and what the outcome stands for.
    """
    try:
        config = json.loads(job.read_bytes())["config"]
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"{job} is not the job of a training ({error}); give the path that the first machine printed."
        ) from None
    if returned := _watch(job, config, (), lambda: None):  # else the first machine may have published it already
        outcome(job.parent, returned)


def _watch(job: Path, config: Mapping[str, Any], keep: Sequence[int], look: Callable[[], None]) -> int:
    """Exit status of the training process, which is started here."""
    scratch = job.parent
    # A process group of its own: the terminal's Ctrl-C then reaches it once, through us, and not twice.
    process = subprocess.Popen(
        command(job, config),
        pass_fds=keep,
        process_group=0,
        env=environment(config),
        stdin=subprocess.DEVNULL,
    )
    try:
        with _forwarded_signals(process, scratch):
            while process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(POLL)
                look()
    finally:
        _stop(process, scratch)
    look()
    return process.returncode


def command(job: Path, config: Mapping[str, Any]) -> list[str]:
    """The words that start it, on this node."""
    if not config["torchrun"]:
        return [sys.executable, "-m", "tasks.trainer", str(job)]
    rendezvous = ["--standalone"]
    if config["nodes"] != "1":
        rendezvous = ["--rdzv-backend=c10d", f"--rdzv-endpoint={config['rendezvous']}", "--rdzv-id=maskmill"]
    return [
        *(sys.executable, "-m", "tasks.elastic"),
        *(f"--nnodes={config['nodes']}", f"--nproc-per-node={config['devices']}", *rendezvous),
        *(f"--max-restarts={config['restarts']}", f"--shutdown-timeout={SHUTDOWN}"),
        *("--signals-to-handle=SIGTERM,SIGINT,SIGUSR1", "-m", "tasks.trainer", str(job)),
    ]


def environment(config: Mapping[str, Any]) -> dict[str, str]:
    """The environment of the training processes."""
    root = str(Path(__file__).resolve().parents[1])
    fixed = {
        "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH")))),
        "PYTHONSAFEPATH": "1",  # the current folder is not searched: it may have a `tasks` of its own
        "OMP_NUM_THREADS": str(config["threads"]),
        PARENT: str(os.getpid()),
    }
    # Threads that wait for each other spin only briefly: as fast on a quiet machine (23.1k against 23.9k tokens/s), and
    # beside one busy process 7k instead of 1.5k to 4k tokens/s. OMP_WAIT_POLICY=passive was rejected: 15 % slower.
    usual = {"GOMP_SPINCOUNT": "1000", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    if config["nodes"] == "1" and config["device"] == "cpu" and sys.platform == "linux":
        usual["GLOO_SOCKET_IFNAME"] = "lo"  # else gloo asks a name server who this machine is
    # What a launcher of ours (a cluster's, say) told us of ranks is not about the ranks that we start.
    ours = {name: value for name, value in os.environ.items() if not NOT_OURS.fullmatch(name)}
    return usual | ours | fixed


def outcome(scratch: Path, returned: int) -> dict[str, Any]:
    """What the trainer left. Raises what it stands for, where it is not success."""
    path = scratch / OUTCOME
    try:
        said = dict(json_of(path.read_bytes())) if path.exists() else {}
    except (ValueError, TypeError):
        raise DataError(f"{path} is damaged; run again to go on from {kept(scratch)}.") from None
    if not said and returned > 0 and (scratch / STOP).exists():  # torchrun, before its ranks could say anything
        raise InterruptedRun("pretrain: stopped by a signal while it started; run again to go on from where it was.")
    if said.get(BUG):
        said["message"] += f"; the same command goes on from {kept(scratch)}."
    if said.get("status") != 0:
        raise error_of(said.get("status", returned), said.get("message"), kept(scratch), scratch)
    return dict(said)


def kept(scratch: Path) -> str:
    """What the same command goes on from, in words."""
    receipts = sorted((scratch / "checkpoints").glob("step-*.json"))
    return f"the checkpoint after step {int(receipts[-1].stem[5:])}" if receipts else "its beginning"


def error_of(
    status: int, message: str | None, kept: str = "the last checkpoint", scratch: Path = Path()
) -> MaskmillError:
    """The error that an exit status, or minus the number of a signal, stands for.

    kept        what the same command goes on from
    scratch     where it worked
    """
    if -status in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):  # heard too early: no handler yet
        memory = " (by hand, or by the kernel for want of memory: then lower pretrain.micro_tokens)"
        return InterruptedRun(
            f"pretrain: the training process was ended by {signal.Signals(-status).name}"
            f"{memory if -status == signal.SIGKILL else ''}; run again to go on from {kept}."
        )
    kinds = {kind.exit_code: kind for kind in MaskmillError.__subclasses__()}
    how = f"died of signal {-status}" if status < 0 else f"ended with status {status}"
    if status == DiskError.exit_code and not message:  # no room, or no disk, for what it had to say
        how += f" (disk full or failing) at {scratch}"
    explained = message or f"pretrain: the training process {how}; run again to go on from {kept}."
    return kinds.get(status, MaskmillError)(explained)


@contextmanager
def _forwarded_signals(process: subprocess.Popen[bytes], scratch: Path) -> Iterator[None]:
    """SIGTERM and SIGINT go to the trainer, which ends in its own time; a second one ends it at once."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers; see _stop
        yield
        return

    def forward(received: int, _: FrameType | None) -> None:
        (scratch / STOP).write_text(str(received))
        process.send_signal(received)

    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(process: subprocess.Popen[bytes], scratch: Path) -> None:
    """End a trainer that is still running because this process leaves by an exception (a cancelled flow, for one)."""
    if process.poll() is not None:
        return
    with suppress(OSError):
        (scratch / STOP).write_text(str(int(signal.SIGTERM)))
    process.terminate()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
