"""What a training run writes as it goes, and how a resume cuts it back.

    curve.jsonl               points of the curve: a function of the weights, published under the artifact's digest
    measured.metrics.jsonl    the spool: the same points with the clock's figures, for whoever ships metrics

Lines are appended, one write each, by one process (rank 0). A checkpoint records how far both had come (`mark`); a
resume goes on from there, so no step is written twice.
"""

import hashlib
from pathlib import Path
from typing import Any

from .artifacts import canonical, fsync, write_atomic

CURVE = "curve.jsonl"
SPOOL = "measured.metrics.jsonl"
PIECE = 1 << 20


class Journal:
    """Curve and spool of one run. What was written is counted and hashed as it goes, so that a mark costs nothing."""

    def __init__(self, folder: Path, writer: bool = True) -> None:
        """
        writer    False on every rank but the first: `write`, `cut_back` and `sync` then do nothing
        """
        self.curve, self.spool = folder / CURVE, folder / SPOOL
        self.writer = writer
        self._hash, self._curve_bytes, self._spool_bytes = hashlib.sha256(), 0, 0
        self._counted = False

    def write(self, point: dict[str, Any], line: dict[str, Any]) -> None:
        """Append a point to the curve and a line to the spool; `sync` forces them to the disk.

        Raises OSError, with the file's name, where they cannot be written.
        """
        if not self.writer:
            return
        self._count()
        record = canonical(point) + b"\n"
        _append(self.curve, record)
        self._hash.update(record)
        self._curve_bytes += len(record)
        self._spool_bytes += _append(self.spool, canonical(line) + b"\n")

    def mark(self) -> dict[str, Any]:
        """How far both have come. It may only be relied on after a `sync`."""
        self._count()
        return {
            "curve_bytes": self._curve_bytes,
            "curve_sha256": self._hash.hexdigest(),
            "spool_bytes": self._spool_bytes,
        }

    def sync(self) -> None:
        """Force to the disk what was written, and so every mark taken before. Another thread may `write` meanwhile."""
        if self.writer:
            for path in (self.curve, self.spool):
                if path.exists():
                    fsync(path)

    def holds(self, mark: dict[str, Any]) -> bool:
        """Does the curve still begin with what it was at the mark? The spool may have lost lines: it proves nothing."""
        return _hashed(self.curve, mark["curve_bytes"])[0].hexdigest() == mark["curve_sha256"]

    def cut_back(self, mark: dict[str, Any] | None) -> None:
        """Both as they were at the mark, or empty. New files, not shorter ones: a reader sees it by the inode."""
        if not self.writer:
            return
        for path, size in ((self.curve, "curve_bytes"), (self.spool, "spool_bytes")):
            write_atomic(path, path.read_bytes()[: mark[size]] if mark and path.exists() else b"")
        self._counted = False

    def _count(self) -> None:
        """What is there already, read once."""
        if not self._counted:
            self._hash, self._curve_bytes = _hashed(self.curve)
            self._spool_bytes = self.spool.stat().st_size if self.spool.exists() else 0
            self._counted = True


def _append(path: Path, record: bytes) -> int:
    try:
        with open(path, "ab") as file:
            file.write(record)
    except OSError as error:  # of a write, the system does not say to which file
        error.filename = error.filename or str(path)
        raise
    return len(record)


def _hashed(path: Path, most: int | None = None) -> tuple[Any, int]:
    """sha256 of a file's first bytes (all of them by default), and how many they are; of none where it is missing."""
    digest, size = hashlib.sha256(), 0
    if not path.exists():
        return digest, size
    with open(path, "rb") as file:
        while piece := file.read(PIECE if most is None else min(PIECE, most - size)):
            digest.update(piece)
            size += len(piece)
    return digest, size
