"""Training checkpoints: one safetensors file and one JSON receipt each, checked by digest before a byte is trusted.

    <folder>/step-000000100.safetensors    parameters and optimizer state
    <folder>/step-000000100.json           step, state, size and sha256 of the tensors, and its own digest; written last
    <folder>/quarantine/                   damaged ones, each with its reason

`torch.distributed.checkpoint` was rejected: it reads its metadata with pickle, keeps no checksum and replaces an old
checkpoint before the new one is safe. safetensors neither fsyncs nor checks its payload (396 of 400 single bit flips
load without an error), so the bytes are made in memory, written and synchronised by us, and hashed.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from .artifacts import canonical, digest_of, write_atomic
from .errors import DataError


@dataclass(frozen=True)
class Checkpoint:
    """What a training run goes on from."""

    step: int
    state: dict[str, Any]
    tensors: dict[str, Tensor]


def _name(step: int) -> str:
    return f"step-{step:09d}"


def steps(folder: Path) -> list[int]:
    """Steps of the finished checkpoints (those with a receipt), oldest first."""
    return sorted(int(path.stem.removeprefix("step-")) for path in folder.glob("step-*.json"))


def save(folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any], keep: int = 2) -> Path:
    """Write the checkpoint of a step; older ones beyond `keep` go only after the new one was read back.

    Args:
        tensors: parameters and optimizer state by name; no two may share memory.
        step: names the files; what the run goes on from is in the state.
        state: JSON that goes into the receipt (position in the data, digests, lengths of the logs).
    Raises:
        OSError: disk full, as the operating system says it; the previous checkpoints are untouched.
        DataError: the file does not read back as it was written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{_name(step)}.safetensors"
    data = safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    receipt = {"step": step, "state": state, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    write_atomic(path, data)
    write_atomic(path.with_suffix(".json"), canonical({**receipt, "seal": digest_of(receipt)}))
    if reason := _damage(path, path.read_bytes(), receipt):
        raise DataError(f"{reason}; check the disk, then run it again.")
    for old in steps(folder)[:-keep]:
        _remove(folder, old)
    return path


def newest(folder: Path, refuse: Callable[[dict[str, Any]], str | None]) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole and that `refuse` accepts, and a line for each one set aside.

    Args:
        refuse: given a receipt's state, the reason why it cannot be used, or None.
    A damaged checkpoint moves to quarantine/ with its reason, and the one before it is tried.
    """
    findings: list[str] = []
    for step in reversed(steps(folder)):
        try:
            return _load(folder, step, refuse), findings
        except DataError as error:
            findings.append(str(error))
            _quarantine(folder, step, str(error))
    for orphan in folder.glob("step-*.safetensors"):  # killed between tensors and receipt: never finished
        if not orphan.with_suffix(".json").exists():
            orphan.unlink()
    return None, findings


def _load(folder: Path, step: int, refuse: Callable[[dict[str, Any]], str | None]) -> Checkpoint:
    path = folder / f"{_name(step)}.safetensors"
    try:
        receipt = json.loads(path.with_suffix(".json").read_bytes())
        seal = receipt.pop("seal")
        sealed = digest_of(receipt) == seal and receipt["step"] == step
    except (ValueError, KeyError, AttributeError, RecursionError):
        sealed = False
    if not sealed:
        raise DataError(f"the receipt {path.stem}.json is damaged")
    if not path.exists():
        raise DataError(f"{path.name} is missing")
    data = path.read_bytes()
    if reason := _damage(path, data, receipt) or refuse(receipt["state"]):
        raise DataError(reason)
    return Checkpoint(step, receipt["state"], safetensors.torch.load(data))


def _damage(path: Path, data: bytes, receipt: dict[str, Any]) -> str | None:
    if len(data) != receipt["bytes"]:
        return f"{path.name} has {len(data)} bytes and its receipt says {receipt['bytes']}"
    if hashlib.sha256(data).hexdigest() != receipt["sha256"]:
        return f"the bytes of {path.name} are not those of its receipt"
    return None


def _quarantine(folder: Path, step: int, reason: str) -> None:
    aside = folder / "quarantine"
    aside.mkdir(exist_ok=True)
    write_atomic(aside / f"{_name(step)}.reason.txt", f"{reason}\n".encode())
    for suffix in (".json", ".safetensors"):  # the receipt first: without it the checkpoint does not exist
        if (folder / f"{_name(step)}{suffix}").exists():
            os.replace(folder / f"{_name(step)}{suffix}", aside / f"{_name(step)}{suffix}")


def _remove(folder: Path, step: int) -> None:
    for suffix in (".json", ".safetensors"):
        (folder / f"{_name(step)}{suffix}").unlink(missing_ok=True)
