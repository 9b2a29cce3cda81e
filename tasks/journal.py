"""What a training run writes as it goes, and how a resume cuts it back.

    curve.jsonl               points of the curve: a function of the weights, published under the artifact's digest
    measured.metrics.jsonl    the spool: the same points with the clock's figures, for whoever ships metrics

Lines are appended, one write each. A checkpoint records how far both had come (`mark`); a resume goes on from there, so
no step is written twice.
"""

import hashlib
from pathlib import Path
from typing import Any

from .artifacts import canonical, fsync, write_atomic

CURVE = "curve.jsonl"
SPOOL = "measured.metrics.jsonl"


class Journal:
    """Curve and spool of one run."""

    def __init__(self, folder: Path) -> None:
        self.curve, self.spool = folder / CURVE, folder / SPOOL

    def write(self, point: dict[str, Any], line: dict[str, Any]) -> None:
        """Append a point to the curve and a line to the spool; they reach the disk with the next mark."""
        for path, record in ((self.curve, point), (self.spool, line)):
            with open(path, "ab") as file:
                file.write(canonical(record) + b"\n")

    def mark(self) -> dict[str, Any]:
        """How far both have come, forced to the disk."""
        fsync(self.curve)
        fsync(self.spool)
        curve = self.curve.read_bytes()
        return {
            "curve_bytes": len(curve),
            "curve_sha256": hashlib.sha256(curve).hexdigest(),
            "spool_bytes": self.spool.stat().st_size,
        }

    def holds(self, mark: dict[str, Any]) -> bool:
        """Does the curve still begin with what it was at the mark? The spool may have lost lines: it proves nothing."""
        curve = self.curve.read_bytes()[: mark["curve_bytes"]] if self.curve.exists() else b""
        return hashlib.sha256(curve).hexdigest() == mark["curve_sha256"]

    def cut_back(self, mark: dict[str, Any] | None) -> None:
        """Both as they were at the mark, or empty. New files, not shorter ones: a reader sees it by the inode."""
        for path, size in ((self.curve, "curve_bytes"), (self.spool, "spool_bytes")):
            write_atomic(path, path.read_bytes()[: mark[size]] if mark and path.exists() else b"")
