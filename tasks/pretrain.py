"""Stage 4, pretrain: shards -> weights. The training itself is a process of its own, or several (launch.py).

So a crash, a kernel that kills for memory or a hung device takes down training only, and the orchestrator's threads
never share an interpreter with it. This module never imports torch.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from . import launch
from .artifacts import Built, Identity, Manifest, Store, Workspace, check_parent, digest_of
from .errors import UsageError
from .hardware import compute_dtype, device_count, device_kind, thread_count
from .journal import SPOOL
from .pace import BatchWarmup, Pace
from .pretrain_config import NOT_IDENTITY, PretrainConfig, fork_parts
from .sizes import dimensions
from .spool import Records, Spool
from .stretches import Begun, Supply
from .timeline import Timeline

__all__ = ["STAGE", "VERSION", "PretrainConfig", "fork_parts", "identity", "pretrain", "profile"]

STAGE = "pretrain"
VERSION = 2
ENDLESS = 1_000_000
"""Steps of a run that is only measured."""
STABLE_FILE = "stable/step-{:09d}.safetensors"


def identity(
    config: PretrainConfig, vocabulary_digest: str, shards_digest: str, shorter: Sequence[str] = (), fork: str = ""
) -> Identity:
    """What the weights are a function of: the settings with the hardware's choices filled in, and the inputs.

    The number of devices is not among them: with pretrain.reduction exact it changes no bit, and else a run may change
    it and goes on. Which ones it had is in measured.json.

    Args:
        shorter: digests of the shards of config.lengths, in their order.
        fork: digest of the pretrain artifact that the run is forked from.
    """
    settings = {name: value for name, value in _resolved(config).items() if name not in NOT_IDENTITY}
    inputs = {"vocabulary": vocabulary_digest, "shards": shards_digest}
    inputs |= {f"shards_{length}": one for length, one in zip(config.lengths.lengths, shorter, strict=True)}
    if fork:
        inputs["fork"] = fork
    return Identity(STAGE, VERSION, settings, inputs)


def _resolved(config: PretrainConfig) -> dict[str, Any]:
    """All settings, with what follows from names and from this machine in place of auto and 0."""
    settings = asdict(config)
    del settings["size"]
    settings |= dimensions(config.size, settings)
    device = device_kind(config.device)
    settings |= {
        "device": device,
        "dtype": compute_dtype(device, config.dtype),
        "threads": _threads(config, device),
        "fork": fork_parts(config.fork)[1],  # the step; which run it is, is said by its digest
    }
    if config.minutes:
        settings |= {"tokens": 0, "steps": 0}
    elif config.steps:
        settings["tokens"] = 0
    if config.optimizer == "adamw":
        settings |= {"matrix_learning_rate": 0.0, "matrix_adjustment": "", "momentum": 0.0}
    return settings | _unused(config)


def _unused(config: PretrainConfig) -> dict[str, Any]:
    """Settings that mean nothing beside the others, each in one spelling: one computation has one key."""
    unused: dict[str, Any] = {}
    if config.fork:
        unused["warmup"] = 0.0  # a fork has none
    if config.schedule != "wsd":
        unused["decay"] = 0.0
    if config.reduction != "exact":
        unused["logical_shards"] = 0
    if config.micro_tokens >= config.batch_tokens:
        unused["micro_tokens"] = 0
    if not config.batch_warmup.start:
        unused["batch_warmup"] = asdict(BatchWarmup())
    return unused


def _threads(config: PretrainConfig, device: str) -> int:
    """Threads of a rank: sums are split by thread. On a CUDA device they are no matter."""
    if device == "cuda":
        return 1
    if config.reduction == "exact":
        return 1
    return config.threads or max(1, thread_count(0) // config.ranks_here(device))


def pretrain(
    config: PretrainConfig,
    vocabulary: Manifest,
    shards: Manifest,
    store: Store,
    on_metrics: Callable[[Records], None] | None = None,
    shorter: Sequence[Manifest] = (),
    fork: Manifest | None = None,
) -> tuple[Manifest, bool]:
    """Train, or find the trained model. A killed run goes on from its last whole checkpoint.

    Args:
        on_metrics: called in this process, now and then, with new lines of the spool in the order of their steps. After
            a resume it gets the lines from before as well: whoever ships them knows what has arrived. Lines of a call
            that fails come again with the next; a failure never disturbs training.
        shorter: shards of each of config.lengths, in their order.
        fork: the pretrain artifact from whose stable checkpoint the run goes on.
    Raises:
        UsageError: the shards were made with another vocabulary, or the settings do not fit them or the fork.
        InterruptedRun: stopped by a signal; the same call goes on.
        NumericError, MemoryExhausted, DiskFullError, DataError: as they say.
    """
    check(config, vocabulary, shards, shorter, fork)
    digests = [one.digest for one in shorter]
    this = identity(config, vocabulary.digest, shards.digest, digests, fork.digest if fork else "")

    def build(workspace: Workspace) -> Built:
        job = job_of(config, vocabulary, [*shorter, shards], workspace.folder, workspace.scratch, fork)
        spool = Spool(workspace.folder / SPOOL, on_metrics)
        said = launch.train(job, workspace.lock_fd, spool.ship)
        return Built(said["counts"], said["facts"], said["measured"])

    return store.make(this, build, libraries=("torch", "safetensors", "numpy"))


def profile(
    config: PretrainConfig,
    vocabulary: Manifest,
    shards: Manifest,
    store: Store,
    steps: int = 20,
    shorter: Sequence[Manifest] = (),
) -> dict[str, Any]:
    """Where the time of a training step goes: some real steps in a training process of its own; nothing is published.

    Returns what profiling.profile does. Raises what `pretrain` raises.
    """
    check(config, vocabulary, shards, shorter, None)
    store.root.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".profile-", dir=store.root) as folder, open(os.devnull) as nothing:
        (scratch := Path(folder, "scratch")).mkdir()
        job = job_of(config, vocabulary, [*shorter, shards], Path(folder), scratch, None)
        job["config"] |= {"tokens": 0, "steps": ENDLESS, "minutes": 0.0, "stable_checkpoints": 0}
        job["config"]["compile"] = "on" if config.compile == "on" else "off"
        said = launch.train(job | {"profile": steps}, nothing.fileno(), lambda: None)
    return dict(said["profile"])


def check(
    config: PretrainConfig, vocabulary: Manifest, shards: Manifest, shorter: Sequence[Manifest], fork: Manifest | None
) -> None:
    """Raises UsageError where the inputs do not fit together, or the settings do not fit them."""
    for one in (*shorter, shards, *([fork] if fork else [])):
        check_parent(STAGE, one, vocabulary)
    config.check(shards.facts["length"])
    _check_ranks(config, shards.facts["length"])
    supplies = [Supply.of(one.facts, one.digest) for one in (*shorter, shards)]
    if not config.minutes:
        timeline = Timeline(Pace.of(_resolved(config)), supplies, _begun(config, fork))
        timeline.stable_steps(config.stable_checkpoints)
    if fork:
        mine, its = _resolved(config), fork.config
        for name in ("layers", "width", "heads", "intermediate", "global_every", "window", "optimizer"):
            if mine[name] != its.get(name):
                raise UsageError(
                    f"pretrain.{name} is {mine[name]}, and that of the run in pretrain.fork is {its.get(name)}; a fork "
                    "goes on with the same model."
                )


def _check_ranks(config: PretrainConfig, length: int) -> None:
    """Raises UsageError for ranks that have no device, or no row when rows have got longer."""
    device = device_kind(config.device)
    here = config.ranks_here(device)
    if device == "cuda" and here > device_count():
        raise UsageError(f"pretrain.devices is {here}, and there are {device_count()} CUDA devices; use so many.")
    ranks, rows = here * int(config.nodes.rpartition(":")[2]), config.batch_tokens // length
    if config.lengths.lengths and rows < ranks:
        raise UsageError(
            f"pretrain.batch_tokens is {config.batch_tokens}, {rows} rows of {length}, which is what the rows get to, "
            f"and there are {ranks} ranks; raise it to {ranks * length}, or lower pretrain.devices or pretrain.nodes."
        )


def job_of(
    config: PretrainConfig,
    vocabulary: Manifest,
    shards: Sequence[Manifest],
    folder: Path,
    scratch: Path,
    fork: Manifest | None,
) -> dict[str, Any]:
    """What the training process is to do, as JSON. shards: the shorter ones, then the main ones."""
    settings = _resolved(config)
    device = settings["device"]
    of_run = {name: value for name, value in settings.items() if name not in NOT_IDENTITY}
    inputs = {"vocabulary": vocabulary.digest, "fork": fork.digest if fork else ""}
    settings |= {"devices": config.ranks_here(device), "torchrun": config.several(device)}
    return {
        "folder": str(folder.absolute()),
        "scratch": str(scratch.absolute()),
        "vocabulary": str(vocabulary.folder.absolute()),
        "shards": [[str(one.folder.absolute()), one.digest] for one in shards],
        "fork": str(_stable_file(config, fork)) if fork else "",
        "config": settings,
        "run": digest_of([of_run, inputs]),  # a checkpoint knows the shards by its position
        "rank_timeout": config.rank_timeout,
        "profile": 0,
    }


def _stable_file(config: PretrainConfig, fork: Manifest) -> Path:
    """The stable checkpoint that is asked for; the last one where no step is."""
    begun = _begun(config, fork)
    assert begun
    return fork.whole(STABLE_FILE.format(begun.step)).absolute()


def _begun(config: PretrainConfig, fork: Manifest | None) -> Begun | None:
    """Where the fork's run stood at the checkpoint that is asked for."""
    if not fork:
        return None
    there = {entry["step"]: entry for entry in fork.facts.get("stable", [])}
    step = fork_parts(config.fork)[1] or max(there, default=0)
    if step not in there:
        steps = ", ".join(map(str, there)) or "none"
        raise UsageError(f"pretrain.fork: {fork.folder} has no stable checkpoint after step {step}; it has {steps}.")
    return Begun(**there[step])
