"""Reads the training process's metrics as they come: new lines of measured.metrics.jsonl, each once, in order."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .manifests import json_of
from .progress import say

Records = list[dict[str, Any]]
"""Lines of the spool: {"step": int, "timestamp_ms": int, "metrics": {name: float}}."""


def record_of(line: bytes) -> dict[str, Any]:
    """A line of the spool. Raises ValueError where it is none."""
    record = json_of(line)
    whole = isinstance(record, dict) and all(isinstance(record.get(name), int) for name in ("step", "timestamp_ms"))
    metrics = record.get("metrics") if whole else None
    if not isinstance(metrics, dict) or not all(isinstance(one, int | float) for one in metrics.values()):
        raise ValueError("no step, time or metrics")
    return dict(record)


class Spool:
    """The trainer replaces the file when it resumes, else it only appends."""

    def __init__(self, path: Path, on_metrics: Callable[[Records], None] | None) -> None:
        self.path, self.on_metrics = path, on_metrics
        self.inode, self.offset, self.shipped_step = -1, 0, -1
        self.waiting: Records = []
        self.failed = False

    def ship(self) -> None:
        """Hand on what is new. A callback that raises gets the same lines again with the next; training goes on."""
        if self.on_metrics is None:
            return
        self.waiting += self._new_records()
        if not self.waiting:
            return
        try:
            self.on_metrics(self.waiting)
        except Exception as error:  # it is not for a mirror of the training to end it
            if not self.failed:
                say(f"pretrain: metrics are kept back for now, handing them on failed: {type(error).__name__}: {error}")
            self.failed = True
        else:
            self.failed, self.waiting = False, []

    def _new_records(self) -> Records:
        try:
            with open(self.path, "rb") as file:
                now = os.fstat(file.fileno())
                if now.st_ino != self.inode or now.st_size < self.offset:
                    self.inode, self.offset = now.st_ino, 0
                file.seek(self.offset)
                lines = file.read().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        records = []
        for line in lines:
            if not line.endswith(b"\n"):  # still being written
                break
            try:
                record = record_of(line)
            except ValueError:  # the tail of before a power cut, which the trainer is about to cut off
                break
            self.offset += len(line)
            if record["step"] > self.shipped_step:
                self.shipped_step = record["step"]
                records.append(record)
        return records
