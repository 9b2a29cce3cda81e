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
from .hardware import compute_dtype, device_count, device_kind
from .journal import SPOOL
from .pace import BatchWarmup, Pace
from .pretrain_config import NOT_IDENTITY, PretrainConfig, fork_parts
from .sizes import dimensions
from .spool import Records, Spool
from .stretches import Begun, Supply
from .timeline import Timeline

__all__ = ["STAGE", "VERSION", "PretrainConfig", "check", "fork_parts", "identity", "pretrain", "profile", "refuse"]

STAGE = "pretrain"
VERSION = 2
ENDLESS = 1_000_000
"""Steps of a run that is only measured."""
STABLE_FILE = "stable/step-{:09d}.safetensors"


def identity(
    config: PretrainConfig,
    vocabulary_digest: str,
    shards_digest: str,
    shorter: Sequence[str] = (),
    fork: Manifest | None = None,
    beside: Sequence[str] = (),
) -> Identity:
    """What the weights are a function of: the settings with the hardware's choices filled in, and the inputs.

    The number of devices is not among them: with pretrain.reduction exact it changes no bit, and else a run may change
    it and goes on. Which ones it had is in measured.json.

    Args:
        shorter: digests of the shards of config.lengths, in their order.
        fork: the pretrain artifact that the run is forked from.
        beside: digests of vocabulary and shards of a second modality.
    """
    settings = {name: value for name, value in _resolved(config, fork).items() if name not in NOT_IDENTITY}
    inputs = {"vocabulary": vocabulary_digest, "shards": shards_digest}
    inputs |= {f"shards_{length}": one for length, one in zip(config.lengths.lengths, shorter, strict=True)}
    if fork:
        inputs["fork"] = fork.digest
    inputs |= dict(zip(("beside_vocabulary", "beside_shards"), beside))
    return Identity(STAGE, VERSION, settings, inputs)


def _resolved(config: PretrainConfig, fork: Manifest | None) -> dict[str, Any]:
    """All settings, with what follows from names and from this machine in place of auto and 0."""
    settings = asdict(config)
    del settings["size"]
    if (config.input, config.target) == ("tokens", "tokens"):
        del settings["input"], settings["target"]
    del settings["beside"]["alone"]  # of the flow
    if not config.beside.batch_tokens:
        del settings["beside"]
    settings |= dimensions(config.size, settings)
    device = device_kind(config.device)
    settings |= {
        "device": device,
        "dtype": compute_dtype(device, config.dtype),
        "threads": config.threads_of(device, ranks=1),  # of how many there are, the key knows nothing
        "fork": _fork_step(config, fork),
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


def _fork_step(config: PretrainConfig, fork: Manifest | None) -> int:
    """The step in pretrain.fork; 0 for the last one, also where that is written out. The run is said by its digest."""
    step = fork_parts(config.fork)[1]
    return 0 if fork and step == max(_stable(fork), default=0) else step


def pretrain(
    config: PretrainConfig,
    vocabulary: Manifest,
    shards: Manifest,
    store: Store,
    on_metrics: Callable[[Records], None] | None = None,
    shorter: Sequence[Manifest] = (),
    fork: Manifest | None = None,
    beside: Sequence[Manifest] = (),
) -> tuple[Manifest, bool]:
    """Train, or find the trained model. A killed run goes on from its last whole checkpoint.

    Args:
        on_metrics: called in this process, now and then, with new lines of the spool in the order of their steps. After
            a resume it gets the lines from before as well: whoever ships them knows what has arrived. Lines of a call
            that fails come again with the next; a failure never disturbs training.
        shorter: shards of each of config.lengths, in their order.
        fork: the pretrain artifact from whose stable checkpoint the run goes on.
        beside: vocabulary and shards of a second modality.
    Raises:
        UsageError: the shards were made with another vocabulary, or the settings do not fit them or the fork.
        InterruptedRun: stopped by a signal; the same call goes on.
        NumericError, MemoryExhausted, DiskError, DataError: as they say.
    """
    check(config, vocabulary, shards, shorter, fork)
    if beside:
        check_parent(STAGE, beside[1], beside[0])
    digests = [[one.digest for one in some] for some in (shorter, beside)]
    this = identity(config, vocabulary.digest, shards.digest, digests[0], fork, digests[1])

    def build(workspace: Workspace) -> Built:
        job = job_of(config, vocabulary, [*shorter, shards], workspace.folder, workspace.scratch, fork, beside)
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
    beside: Sequence[Manifest] = (),
) -> dict[str, Any]:
    """Where the time of a training step goes: some real steps in a training process of its own; nothing is published.

    Returns what profiling.profile does. Raises what `pretrain` raises.
    """
    check(config, vocabulary, shards, shorter, None)
    store.root.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".profile-", dir=store.root) as folder, open(os.devnull) as nothing:
        (scratch := Path(folder, "scratch")).mkdir()
        job = job_of(config, vocabulary, [*shorter, shards], Path(folder), scratch, None, beside)
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
    refuse(config, shards.facts["length"], fork)
    if not config.minutes:
        supplies = [Supply.of(one.facts, one.digest) for one in (*shorter, shards)]
        timeline = Timeline(Pace.of(_resolved(config, fork)), supplies, _begun(config, fork))
        timeline.stable_steps(config.stable_checkpoints)


def refuse(config: PretrainConfig, length: int, fork: Manifest | None = None) -> None:
    """Raises UsageError for what no shards with rows of `length` could make good; can be asked before these are made.

    How many steps a budget in tokens comes to, and so the room for stable checkpoints, is known with the shards only.
    """
    config.check(length)
    _check_ranks(config, length)
    _check_beside(config)
    if fork:
        _check_model(config, fork)
    if not config.minutes:
        supplies = [Supply(one, 1, one) for one in (*config.lengths.lengths, length)]
        timeline = Timeline(Pace.of(_resolved(config, fork)), supplies, _begun(config, fork))
        timeline.stable_steps(config.stable_checkpoints if config.steps else 0)


def _check_model(config: PretrainConfig, fork: Manifest) -> None:
    mine, its = _resolved(config, fork), fork.config
    for name in ("layers", "width", "heads", "intermediate", "global_every", "window", "optimizer"):
        if mine[name] != its.get(name):
            raise UsageError(
                f"pretrain.{name} is {mine[name]}, and that of the run in pretrain.fork is {its.get(name)}; a fork "
                "goes on with the same model."
            )


def _check_beside(config: PretrainConfig) -> None:
    """Raises UsageError for what a training on two modalities cannot do."""
    if not config.beside.batch_tokens:
        return
    if config.fork:
        raise UsageError("pretrain.fork: a run on two modalities cannot be forked; leave pretrain.beside out.")
    if config.several(device_kind(config.device)) and config.reduction != "exact":
        raise UsageError(
            "pretrain.beside: several ranks train on two modalities with pretrain.reduction: exact only; use that, or "
            "pretrain.devices: 1."
        )
    if config.beside.alone and not config.steps:
        raise UsageError(
            "pretrain.beside.alone: what is trained alone has as many steps; give the budget as pretrain.steps."
        )


def _check_ranks(config: PretrainConfig, length: int) -> None:
    """Raises UsageError for ranks that have no device, no row in some step, or no equal part of the logical shards.

    Of a range of machines (2:4) the smallest number must do, and where rows or batches grow the largest, too: the run
    would find out only when it gets there.
    """
    device = device_kind(config.device)
    here = config.ranks_here(device)
    if device == "cuda" and here > device_count():
        raise UsageError(f"pretrain.devices is {here}, and there are {device_count()} CUDA devices; use so many.")
    low, _, high = config.nodes.partition(":")
    start = config.batch_warmup.start
    ranks = here * int(high or low if config.lengths.lengths else low)
    for name, positions, row in (
        ("batch_tokens", config.batch_tokens, length),
        ("batch_warmup.start", start or config.batch_tokens, min(config.lengths.lengths, default=length)),
    ):
        if positions // row < ranks:
            raise UsageError(
                f"pretrain.{name} is {positions}, {positions // row} rows of {row}, and there are {ranks} ranks; raise "
                f"it to {ranks * row}, or lower pretrain.devices or pretrain.nodes."
            )
    numbers = [here * nodes for nodes in range(int(low), int(high or low) + 1)]
    if config.reduction == "exact" and all(config.logical_shards % ranks for ranks in numbers):
        raise UsageError(
            f"pretrain.logical_shards is {config.logical_shards}, and there are {numbers[0]} ranks; use a number of "
            "ranks that divides it (pretrain.devices, pretrain.nodes)."
        )


def job_of(
    config: PretrainConfig,
    vocabulary: Manifest,
    shards: Sequence[Manifest],
    folder: Path,
    scratch: Path,
    fork: Manifest | None,
    beside: Sequence[Manifest] = (),
) -> dict[str, Any]:
    """What the training process is to do, as JSON. shards: the shorter ones, then the main ones."""
    settings = _resolved(config, fork)
    device = settings["device"]
    of_run = {name: value for name, value in settings.items() if name not in NOT_IDENTITY}
    inputs = {"vocabulary": vocabulary.digest, "fork": fork.digest if fork else ""}
    inputs |= {"beside": beside[0].digest} if beside else {}
    ranks = config.ranks_here(device)
    settings |= {"devices": ranks, "torchrun": config.several(device), "threads": config.threads_of(device, ranks)}
    return {
        "folder": str(folder.absolute()),
        "scratch": str(scratch.absolute()),
        "vocabulary": str(vocabulary.folder.absolute()),
        "shards": [[str(one.folder.absolute()), one.digest] for one in shards],
        "beside": [[str(one.folder.absolute()), one.digest] for one in beside],
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
    there = _stable(fork)
    step = fork_parts(config.fork)[1] or max(there, default=0)
    if step not in there:
        steps = ", ".join(map(str, there)) or "none"
        raise UsageError(f"pretrain.fork: {fork.folder} has no stable checkpoint after step {step}; it has {steps}.")
    return Begun(**there[step])


def _stable(fork: Manifest) -> dict[int, dict[str, Any]]:
    """Steps of its stable checkpoints -> where it stood."""
    return {entry["step"]: entry for entry in fork.facts.get("stable", [])}
