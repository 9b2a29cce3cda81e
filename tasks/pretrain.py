"""Stage 4, pretrain: shards -> weights. This half starts the training process and watches it; it never imports torch.

    pretrain (here)                                  tasks.trainer (a process of its own)
      job.json, the artifact's lock        ───►        trains, checkpoints, appends to the spool
      hands new lines of the spool on      ◄───        measured.metrics.jsonl, curve.jsonl
      SIGTERM, SIGINT                      ───►        finishes the step, checkpoints, exits 75
      exit status -> an error of errors.py ◄───        outcome.json

The trainer is a process of its own, so that a crash, a kernel that kills for memory or a hung device takes down
training only, and so that the orchestrator's threads never share an interpreter with it.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .artifacts import Built, Identity, Manifest, Store, Workspace, canonical, check_parent, digest_of, write_atomic
from .errors import InterruptedRun, MaskmillError, UsageError
from .hardware import compute_dtype, device_kind, thread_count
from .journal import SPOOL
from .progress import say
from .rates import MaskRates

STAGE = "pretrain"
VERSION = 1
NOT_IDENTITY = {"checkpoint_every"}
"""Settings that cannot change the bytes: a checkpoint holds the whole state, so it is no matter when one is taken."""

POLL = 0.5
"""Seconds between two looks at the spool."""
GRACE = 30.0
"""Seconds that an abandoned trainer gets to finish its step and write a checkpoint."""

Records = list[dict[str, Any]]
"""Lines of the spool: {"step": int, "timestamp_ms": int, "metrics": {name: float}}."""


@dataclass(frozen=True)
class PretrainConfig:
    """The model, how it is trained, and on what."""

    layers: int = 4
    """Blocks of the encoder."""
    width: int = 128
    """Width of the residual stream; a multiple of 2 * heads."""
    heads: int = 2
    """Attention heads."""
    intermediate: int = 256
    """Width inside the GeGLU."""
    global_every: int = 3
    """Every n-th layer attends to the whole segment, the others to a window."""
    window: int = 128
    """Width of the local layers' window, in tokens."""
    optimizer: str = "muon"
    """"muon" (hidden matrices; AdamW on the rest) or "adamw"."""
    matrix_learning_rate: float = 0.02
    """Muon's learning rate; unused with adamw."""
    learning_rate: float = 3e-3
    """AdamW's learning rate."""
    weight_decay: float = 0.01
    """Decoupled, on matrices only."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises."""
    decay: float = 0.3
    """Share of the steps in which it falls, as 1 - sqrt."""
    clip: float = 1.0
    """Largest gradient norm; larger ones are scaled down to it."""
    rows_per_step: int = 64
    """Rows of L tokens in an optimiser step."""
    micro_rows: int = 0
    """Rows at a time on the device; 0 takes the whole step at once. Less memory, the same gradient."""
    mask_rates: MaskRates = field(default_factory=MaskRates)
    """The mask rate over the run; by default that of the shards all along."""
    tokens: int = 2_400_000
    """Budget in ordinary tokens, rounded up to whole steps."""
    steps: int = 0
    """Budget in steps; takes the place of `tokens` where it is not 0."""
    checkpoint_every: int = 100
    """Steps between two checkpoints: what a kill can cost at most."""
    validation_every: int = 200
    """Steps between two looks at the validation split; the last step always has one."""
    validation_rows: int = 512
    """Rows of the validation split that a look takes at most."""
    log_every: int = 10
    """Steps between two points of the curve."""
    seed: int = 0
    """Of the initial weights and of the sample order; the masks have the shards' own."""
    device: str = "auto"
    """auto, cpu or cuda."""
    dtype: str = "auto"
    """auto, bfloat16 or float32: type of the matrix products. Weights and sums stay float32."""
    threads: int = 0
    """CPU threads; 0 takes all cores. Part of the identity: sums are split by thread."""

    def __post_init__(self) -> None:
        sizes = ("layers", "width", "heads", "intermediate", "global_every", "window", "rows_per_step", "log_every")
        for name in (*sizes, "checkpoint_every", "validation_every", "validation_rows"):
            if getattr(self, name) < 1:
                raise UsageError(f"pretrain.{name} is {getattr(self, name)}; use at least 1.")
        if self.width % (2 * self.heads):
            raise UsageError(f"pretrain.width is {self.width}; use a multiple of 2 * heads, {2 * self.heads}.")
        if self.optimizer not in ("muon", "adamw"):
            raise UsageError(f"pretrain.optimizer is {self.optimizer!r}; use muon or adamw.")
        if min(self.warmup, self.decay) < 0 or self.warmup + self.decay > 1:
            raise UsageError("pretrain.warmup and pretrain.decay are shares of the steps; their sum is at most 1.")
        if self.steps < 0 or self.micro_rows < 0 or (self.steps == 0 and self.tokens < 1):
            raise UsageError("pretrain needs a budget: set pretrain.tokens or pretrain.steps to a positive number.")
        if self.clip <= 0:
            raise UsageError(f"pretrain.clip is {self.clip}; use a positive number.")


def identity(config: PretrainConfig, vocabulary_digest: str, shards_digest: str) -> Identity:
    """What the weights are a function of: the settings with the hardware's choices filled in, and the inputs."""
    device = device_kind(config.device)
    settings = {name: value for name, value in asdict(config).items() if name not in NOT_IDENTITY}
    settings |= {
        "device": device,
        "dtype": compute_dtype(device, config.dtype),
        "threads": thread_count(config.threads),
        "reduction": "one-device",
    }
    return Identity(STAGE, VERSION, settings, {"vocabulary": vocabulary_digest, "shards": shards_digest})


def pretrain(
    config: PretrainConfig,
    vocabulary: Manifest,
    shards: Manifest,
    store: Store,
    on_metrics: Callable[[Records], None] | None = None,
) -> tuple[Manifest, bool]:
    """Train, or find the trained model. A killed run goes on from its last whole checkpoint.

    Args:
        on_metrics: called in this process, now and then, with new lines of the spool in the order of their steps. After
            a resume it gets the lines from before as well: whoever ships them knows what has arrived. Lines of a call
            that fails come again with the next; a failure never disturbs training.
    Raises:
        UsageError: the shards were made with another vocabulary, or a mask rate would hide nothing of their rows.
        InterruptedRun: stopped by a signal; the same call goes on.
        NumericError, MemoryExhausted, DiskFullError, DataError: as they say.
    """
    check_parent(STAGE, shards, vocabulary)
    config.mask_rates.check(shards.facts["length"])
    this = identity(config, vocabulary.digest, shards.digest)
    settings = [dict(this.config), {"vocabulary": vocabulary.digest}]  # a checkpoint knows the shards by its position

    def build(workspace: Workspace) -> Built:
        job = {
            "folder": str(workspace.folder.absolute()),
            "scratch": str(workspace.scratch.absolute()),
            "vocabulary": str(vocabulary.folder.absolute()),
            "shards": str(shards.folder.absolute()),
            "inputs": dict(this.inputs),
            "config": {**this.config, "checkpoint_every": config.checkpoint_every},
            "run": digest_of(settings),
            "parent": os.getpid(),
        }
        return _train(job, workspace, Spool(workspace.folder / SPOOL, on_metrics))

    return store.make(this, build, libraries=("torch", "safetensors", "numpy"))


class Spool:
    """Reads the trainer's metrics as they come. The trainer replaces the file when it resumes, else it only appends."""

    def __init__(self, path: Path, on_metrics: Callable[[Records], None] | None) -> None:
        self.path, self.on_metrics = path, on_metrics
        self.inode, self.offset, self.shipped_step = -1, 0, -1
        self.waiting: Records = []
        self.failed = False

    def ship(self) -> None:
        """Hand on what is new."""
        if self.on_metrics is None:
            return
        self.waiting += self._new_records()
        if not self.waiting:
            return
        try:
            self.on_metrics(self.waiting)
        except Exception as error:  # the callback talks to servers; whatever it raises, training goes on
            if not self.failed:
                say(f"pretrain: metrics are kept back for now, handing them on failed: {type(error).__name__}: {error}")
            self.failed = True
        else:
            self.failed, self.waiting = False, []

    def _new_records(self) -> Records:
        try:
            with open(self.path, "rb") as file:
                if os.fstat(file.fileno()).st_ino != self.inode:
                    self.inode, self.offset = os.fstat(file.fileno()).st_ino, 0
                file.seek(self.offset)
                lines = file.read().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        records = []
        for line in lines:
            if not line.endswith(b"\n"):  # still being written
                break
            try:
                record = json.loads(line)
            except ValueError:  # the tail of before a power cut, which the trainer is about to cut off
                break
            self.offset += len(line)
            if record["step"] > self.shipped_step:
                self.shipped_step = record["step"]
                records.append(record)
        return records


def _train(job: dict[str, Any], workspace: Workspace, spool: Spool) -> Built:
    """Run the trainer to its end. Raises what its exit status stands for."""
    path, outcome = workspace.scratch / "job.json", workspace.scratch / "outcome.json"
    write_atomic(path, canonical(job))
    outcome.unlink(missing_ok=True)
    root = str(Path(__file__).resolve().parents[1])
    # Threads that wait for each other spin only briefly: as fast on a quiet machine (23.1k against 23.9k tokens/s), and
    # beside one busy process 7k instead of 1.5k to 4k tokens/s. OMP_WAIT_POLICY=passive was rejected: 15 % slower.
    environment = (
        {"GOMP_SPINCOUNT": "1000"}
        | os.environ
        | {
            "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH")))),
            "OMP_NUM_THREADS": str(job["config"]["threads"]),
        }
    )
    # A process group of its own: the terminal's Ctrl-C then reaches it once, through us, and not twice.
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "tasks.trainer", str(path)],
        pass_fds=(workspace.lock_fd,),
        process_group=0,
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    try:
        with _forwarded_signals(process):
            while process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(POLL)
                spool.ship()
    finally:
        _stop(process)
    spool.ship()
    said = json.loads(outcome.read_bytes()) if outcome.exists() else {}
    if process.returncode != 0 or not said:
        raise _error(process.returncode, said.get("message"))
    return Built(said["counts"], said["facts"], said["measured"])


@contextmanager
def _forwarded_signals(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """SIGTERM and SIGINT go to the trainer, which ends in its own time; a second one ends it at once."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers; see _stop
        yield
        return
    before = {
        number: signal.signal(number, lambda received, _: process.send_signal(received))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a trainer that is still running because this process leaves by an exception (a cancelled flow, for one)."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _error(status: int, message: str | None) -> MaskmillError:
    if -status in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        memory = " (by hand, or by the kernel for want of memory: then lower pretrain.micro_rows)"
        return InterruptedRun(
            f"pretrain: the training process was ended by {signal.Signals(-status).name}"
            f"{memory if -status == signal.SIGKILL else ''}; run again to go on from the last checkpoint."
        )
    kinds = {kind.exit_code: kind for kind in MaskmillError.__subclasses__()}
    how = f"died of signal {-status}" if status < 0 else f"ended with status {status}"
    explained = message or f"pretrain: the training process {how}; run again to go on from the last checkpoint."
    return kinds.get(status, MaskmillError)(explained)
