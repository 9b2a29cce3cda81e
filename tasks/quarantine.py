"""The quarantine: a line of JSON for each thing that was refused, with file, line, offset and reason."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from .streams import Reject

LISTED = 10_000
"""Refusals of one reason that are listed of a file; the books count all."""


class Faults:
    """A file's lines in the quarantine: LISTED of a reason, then how many more there were."""

    def __init__(self, quarantine: BinaryIO) -> None:
        self.quarantine, self.start = quarantine, quarantine.tell()
        self.number: Counter[str] = Counter()

    def add(self, fault: Reject) -> None:
        self.number[fault.reason] += 1
        if self.number[fault.reason] <= LISTED:
            self._write(fault)

    def _write(self, fault: Reject) -> None:
        self.quarantine.write(json.dumps(asdict(fault), sort_keys=True).encode() + b"\n")

    def close(self) -> list[int]:
        """[where they stand, their size in bytes]."""
        for reason, number in sorted(self.number.items()):
            if number > LISTED:
                self._write(Reject(reason, detail=f"and {number - LISTED} more in this file, counted but not listed"))
        return [self.start, self.quarantine.tell() - self.start]


def lines(path: Path, place: list[int], label: str) -> Iterator[dict[str, Any]]:
    """What `Faults.close` told the place of, with the file's label: one after the other, for there may be many."""
    start, size = place
    if not size:
        return
    with open(path, "rb") as faults:
        faults.seek(start)
        while faults.tell() < start + size:
            yield {"source": label, **json.loads(faults.readline())}
