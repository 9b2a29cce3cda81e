"""A process that dies, or meets an error, at the k-th change of a folder. Started or used by test_keeper*.py.

A line of standard input is {"folder", "at", "how"}; for each, a child of this process (which has torch already) writes
three checkpoints and stops at its `at`-th change: "kill" before it, "torn" after half of the bytes where it is a write.
The answer is a line {"status", "changes"}.
"""

import builtins
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from tasks import checkpoint
from tasks.journal import Journal
from tasks.keeper import Keeper, Stable
from tasks.tensor_file import Image

DIED = 99
STEPS = (5, 10, 12)
"""The last one is of an interruption."""


def tensors(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {"model/a": torch.randn(7, 3, generator=generator), "optimizer/adamw/a/step": torch.tensor(float(step))}


def save(folder: Path, step: int, given: dict[str, torch.Tensor], state: dict[str, Any]) -> Path:
    """What a Keeper does, without its thread."""
    image = Image()
    image.fill(given)
    path = checkpoint.store(folder, step, image, state)
    checkpoint.prune(folder, step)
    return path


def accept(state: dict[str, Any]) -> str | None:
    return None


def is_of(found: checkpoint.Checkpoint) -> bool:
    return all(torch.equal(found.tensors[name], value) for name, value in tensors(found.step).items())


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())


@contextmanager
def watched(folder: Path, act: Callable[[str, str, bytes | None], None]) -> Iterator[None]:
    """Calls act(call, path, bytes of a write) before each change below the folder."""
    inside = str(folder)
    real = {name: getattr(os, name) for name in ("fsync", "replace", "unlink", "mkdir")}
    real_open = builtins.open

    class Raw(io.FileIO):
        def write(self, data):  # type: ignore[no-untyped-def]
            act("write", str(self.name), bytes(data))
            return super().write(data)

    def opened(path, mode="r", buffering=-1, **keywords):  # type: ignore[no-untyped-def]
        if not str(path).startswith(inside) or not set(mode) & set("wax+"):
            return real_open(path, mode, buffering, **keywords)
        act("open", str(path), None)
        raw = Raw(path, mode.replace("b", ""))
        return raw if buffering == 0 else io.BufferedWriter(raw)

    def of_path(name: str) -> Callable[..., None]:
        def call(path, *rest, **keywords):  # type: ignore[no-untyped-def]
            if str(path).startswith(inside) and not (name == "mkdir" and os.path.exists(path)):
                act(name, str(path), None)
            return real[name](path, *rest, **keywords)

        return call

    def fsync(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if path.startswith(inside):
            act("fsync", path, None)
        real["fsync"](descriptor)

    calls = {name: of_path(name) for name in ("replace", "unlink", "mkdir")} | {"fsync": fsync}
    with patch.multiple(os, **calls), patch.object(builtins, "open", opened):
        yield


def sequence(folder: Path) -> None:
    """Three checkpoints, a line of the curve before each, and the second one published as well."""
    journal = Journal(folder)
    with Keeper(folder / "checkpoints", before_receipt=journal.sync) as keeper:
        for step in STEPS:
            journal.write({"step": step}, {"step": step})
            stable = Stable(folder / "model", {"tokens": step * 10}) if step == 10 else None
            state = {"tokens": step * 10, "journal": journal.mark()}
            keeper.begin(step, tensors(step), state, regular=step % 5 == 0, stable=stable)
            keeper.wait()


def die(folder: Path, at: int, how: str) -> None:
    """In the child."""
    changes = 0

    def act(call: str, path: str, data: bytes | None) -> None:
        nonlocal changes
        changes += 1
        if changes == at:
            if how == "torn" and data is not None:
                descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
                os.write(descriptor, data[: len(data) // 2])
            os._exit(DIED)

    with watched(folder, act):
        sequence(folder)
    os._exit(0)


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            try:
                die(Path(job["folder"]), job["at"], job["how"])
            finally:
                os._exit(1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
