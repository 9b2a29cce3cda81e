"""Training checkpoints: one safetensors file and one JSON receipt each, checked by digest before a byte is trusted.

    <folder>/step-000000100.safetensors    parameters and optimizer state
    <folder>/step-000000100.json           step, state, size and sha256 of the tensors, and its own digest; written last
    <folder>/quarantine/                   damaged ones, each with its reason
    <model>/stable/step-000000100.*        the same two files, published with a model: what a decay fork starts from

Written beside, forced to the disk, read back from there, renamed, receipt: so one with a receipt was whole, and a kill
at any instant leaves the one before. keeper.py does it in a thread while training goes on.

`torch.distributed.checkpoint` was rejected: it reads its metadata with pickle, keeps no checksum and replaces an old
checkpoint before the new one is safe. safetensors neither fsyncs nor checks its payload (396 of 400 single bit flips
load without an error), so the bytes are laid out, written, synchronised and hashed by us.
"""

import errno
import json
import os
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .artifacts import NO_SPACE, canonical, digest_of, fsync, write_atomic
from .errors import DataError, DiskFullError
from .tensor_file import Image, parse, read, read_back, write

STABLE = "stable"
"""The folder of a model's stable checkpoints."""

Refuse = Callable[[dict[str, Any]], str | None]
"""Given a receipt's state: the reason why the checkpoint cannot be used, or None."""


@dataclass(frozen=True)
class Checkpoint:
    """What a training run goes on from. The tensors are views of one run of bytes, the file's."""

    step: int
    state: dict[str, Any]
    tensors: dict[str, Tensor]


def steps(folder: Path) -> list[int]:
    """Steps of the finished checkpoints (those with a receipt), oldest first."""
    names = (re.fullmatch(r"step-(\d{9,})\.json", path.name) for path in folder.glob("step-*.json"))
    return sorted(int(name[1]) for name in names if name)


# Writing.


def store(
    folder: Path,
    step: int,
    image: Image,
    state: dict[str, Any],
    regular: bool = True,
    before_receipt: Callable[[], None] = lambda: None,
) -> Path:
    """Write a checkpoint from the bytes of its file. Where that fails, nothing of it is left.

    Args:
        step: names the files; what the run goes on from is in the state.
        state: JSON that goes into the receipt (position in the data, digests, lengths of the logs).
        regular: of those that a rollback goes back to (pretrain.guards.rollback_every).
        before_receipt: forces to the disk what the state speaks of.
    Raises:
        DiskFullError, OSError: with the file's name; every other checkpoint is untouched.
        DataError: the file does not read back as it was written.
    """
    image.settle()
    path, moved = _path(folder, step), False
    receipt: dict[str, Any] = {"step": step, "regular": regular, "state": state}
    temporary = path.with_suffix(".safetensors.tmp")
    with _explained(path, len(image.bytes)):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary, image.bytes)
            receipt |= {"bytes": len(image.bytes), "sha256": read_back(temporary, image.bytes)}
            before_receipt()
            os.replace(temporary, path)
            moved = True
            fsync(folder)
            write_atomic(path.with_suffix(".json"), canonical({**receipt, "seal": digest_of(receipt)}))
            _receipt(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
                if moved and not _is_of(path, receipt["sha256"]):  # else an earlier receipt of the same bytes is there
                    _remove(folder, step)
            raise
    return path


def prune(folder: Path, step: int, keep: int = 2) -> None:
    """After the checkpoint of `step` was written: remove all but the newest `keep` and the newest regular one.

    Those of later steps go, too: the run went back to before them, so they are not of its past.
    """
    there = steps(folder)
    past = [one for one in there if one <= step]
    kept = set(past[-keep:]) | set([one for one in past if _is_regular(folder, one)][-1:])
    for one in there:
        if one not in kept:
            _remove(folder, one)


def sweep(folder: Path) -> None:
    """Remove what a killed process had not finished. Only where no other process writes here."""
    finished = {_path(folder, step).name for step in steps(folder)}
    for path in folder.glob("step-*"):
        if path.suffix == ".tmp" or (path.suffix == ".safetensors" and path.name not in finished):
            path.unlink()


def room(folder: Path, bytes_of_one: int, more: int = 0) -> None:
    """Is there room for three checkpoints (two kept, one in writing) and what else is to be written?

    Args:
        bytes_of_one: of a checkpoint; those that are in the folder already count as room.
        more: bytes of the model and the stable checkpoints.
    Raises:
        DiskFullError: missed now, and not after hours.
    """
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if most not in (resource.RLIM_INFINITY, -1) and bytes_of_one > most:
        raise DiskFullError(
            f"pretrain: a file may have {most:,} bytes here (ulimit -f) and a checkpoint has {bytes_of_one:,}; "
            "raise the limit and run again."
        )
    there = next(one for one in (folder, *folder.parents) if one.exists())
    held = sum(path.stat().st_size for path in folder.glob("step-*.safetensors"))
    free, need = shutil.disk_usage(there).free, max(3 * bytes_of_one - held, bytes_of_one) + more
    if free < need:
        raise DiskFullError(
            f"pretrain: {free:,} bytes are free for {folder}, and three checkpoints and the model need {need:,}; "
            "free some and run again."
        )


# Reading.


def newest(folder: Path, refuse: Refuse, regular_only: bool = False) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole and that `refuse` accepts, and a line for each one set aside.

    Args:
        regular_only: pass over the others, so that what is found does not depend on when these were taken.
    A damaged checkpoint moves to quarantine/ with its reason, and the one before it is tried.
    """
    findings: list[str] = []
    for step in reversed(steps(folder)):
        try:
            if regular_only and not _receipt(_path(folder, step))["regular"]:
                continue
            return load(folder, step, refuse), findings
        except (DataError, OSError) as error:
            if isinstance(error, OSError) and error.errno != errno.EIO:
                raise
            findings.append(str(error))
            _quarantine(folder, step, str(error))
    return None, findings


def load(folder: Path, step: int, refuse: Refuse = lambda _: None) -> Checkpoint:
    """The checkpoint of a step, from the very bytes that were hashed.

    Raises DataError with the reason: it is damaged, or refused.
    """
    path = _path(folder, step)
    receipt = _receipt(path)
    if not path.exists():
        raise DataError(f"{path.name} is missing")
    if (size := path.stat().st_size) != receipt["bytes"]:
        raise DataError(f"{path.name} has {size} bytes and its receipt says {receipt['bytes']}")
    if reason := refuse(receipt["state"]):
        raise DataError(reason)
    image, digest = read(path, size)
    if digest != receipt["sha256"]:
        raise DataError(f"the bytes of {path.name} are not those of its receipt")
    return Checkpoint(step, receipt["state"], parse(image))


def load_stable(path: Path) -> Checkpoint:
    """A stable checkpoint, given either of its two files. Raises DataError where it is missing or damaged."""
    name = re.fullmatch(r"step-(\d{9,})\.(json|safetensors)", path.name)
    if not name:
        raise DataError(f"{path} is not a stable checkpoint; give a file {STABLE}/step-N.safetensors of a model.")
    try:
        return load(path.parent, int(name[1]))
    except DataError as error:
        raise DataError(f"{path} cannot be used: {error}; verify the model, or make it again.") from None


# The parts.


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:09d}.safetensors"


def _receipt(path: Path) -> dict[str, Any]:
    """What the receipt beside the tensors says. DataError where it is missing or damaged."""
    if not path.with_suffix(".json").exists():
        raise DataError(f"the receipt {path.stem}.json is missing")
    try:
        receipt = json.loads(path.with_suffix(".json").read_bytes())
        seal = receipt.pop("seal")
        sealed = digest_of(receipt) == seal and _path(path.parent, receipt["step"]) == path
        kinds = {"bytes": int, "sha256": str, "regular": bool, "state": dict}
        sealed = sealed and all(isinstance(receipt[name], kind) for name, kind in kinds.items())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        sealed = False
    if not sealed:
        raise DataError(f"the receipt {path.stem}.json is damaged")
    return receipt


def _is_regular(folder: Path, step: int) -> bool:
    try:
        return _receipt(_path(folder, step))["regular"]
    except DataError:
        return False


def _is_of(path: Path, sha256: str) -> bool:
    """Is there a receipt beside these tensors, and is it theirs?"""
    try:
        return _receipt(path)["sha256"] == sha256
    except DataError:
        return False


def _quarantine(folder: Path, step: int, reason: str) -> None:
    aside, path = folder / "quarantine", _path(folder, step)
    aside.mkdir(exist_ok=True)
    write_atomic(aside / f"{path.stem}.reason.txt", f"{reason}\n".encode())
    for one in (path.with_suffix(".json"), path):  # the receipt first: without it the checkpoint does not exist
        if one.exists():
            os.replace(one, aside / one.name)


def _remove(folder: Path, step: int) -> None:
    path = _path(folder, step)
    path.with_suffix(".json").unlink(missing_ok=True)
    path.unlink(missing_ok=True)


@contextmanager
def _explained(path: Path, size: int) -> Iterator[None]:
    """What the system says of a write, with the file's name, and of a full disk what is needed."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        if error.errno not in NO_SPACE:
            raise
        raise DiskFullError(
            f"pretrain: no space left for {path}, which takes {size:,} bytes ({error.strerror}); free some and run "
            "again: the checkpoints before it are kept."
        ) from error
