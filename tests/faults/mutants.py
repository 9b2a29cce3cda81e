"""Three defects that the harness has to find: a publication in place, digests that nobody compares, no fsync.

Each is put into the process of a trial (and not into the processes that this starts).
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks import artifacts, manifests


def without_rename() -> None:
    """Files are written straight to their final names, and an artifact is built where it is published."""

    def write_in_place(path: Path, data: bytes) -> None:
        with open(path, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        manifests.fsync(path.parent)

    for module in _importers("write_atomic"):
        module.write_atomic = write_in_place
    artifacts.Store.partial = artifacts.Store.folder  # type: ignore[method-assign]
    artifacts.Store._publish = lambda self, identity, ready: None  # type: ignore[method-assign, assignment]


def without_digests() -> None:
    """A file is what it should be when it has the size."""
    manifests.Manifest.whole = manifests.Manifest.path  # type: ignore[method-assign]
    known: dict[Path, str] = {}
    real = manifests.file_digest
    for module in _importers("file_digest"):
        module.file_digest = lambda path: known.setdefault(path, real(path))
    manifests.verify = artifacts.verify = lambda manifest: []  # type: ignore[assignment]
    artifacts.finished_unit = _unhashed_unit


def _unhashed_unit(scratch: Path, name: str) -> Any:
    path = scratch / f"{name}.receipt.json"
    return manifests.read_sealed(path)["facts"] if path.exists() else None


def without_fsync() -> None:
    """What is written is left to the page cache."""
    os.fsync = os.fdatasync = lambda descriptor: None  # type: ignore[assignment]


def _importers(name: str) -> list[Any]:
    """Modules that hold a function under that name."""
    ours = [module for name, module in sys.modules.items() if name.startswith("tasks")]
    return [module for module in ours if hasattr(module, name)]


MUTANTS: dict[str, Callable[[], None]] = {
    "rename": without_rename,
    "digest": without_digests,
    "fsync": without_fsync,
}
