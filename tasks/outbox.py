"""What is to be told, on disk until it has been: one file for each run of a flow, JSON lines, appended only.

    <home>/outbox/<nanoseconds since 1970>.jsonl
        {"do": "open", "stage": "", "run": …, "address": …, …}    the head: whose entries these are, and for whom
        {"do": …, "stage": …, …}                                  entries, in the order in which they were said
        {"sent": 1234}                                            what stands before this byte has been delivered

The process whose run it is holds an flock on the file. It is gone with that process, also after kill -9: a file that is
not held was left behind, and whoever can take the lock may deliver it. The file goes when all of it was delivered.
"""

import fcntl
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from .artifacts import canonical, fsync
from .manifests import json_of

FOLDER = "outbox"
CHUNK = 1 << 20
"""Bytes that are read at once, at most, but for a line that is longer."""

Entry = Mapping[str, Any]


class Line(NamedTuple):
    """An entry, and the byte of the file at which it ends."""

    entry: Entry
    end: int


class Outbox:
    """One file, held by this process."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self._descriptor, self._lock = path, descriptor, Lock()
        self.head: Entry = {}
        self.size = 0
        """Bytes up to the end of the last whole line."""
        self.sent = 0
        """Bytes that are delivered."""
        self.end = 0
        """Byte at which the last entry ends."""
        self.waiting = 0
        """Entries that are not delivered."""
        self.running: list[str] = []
        """Stages that were opened and did not end, the outermost ("", the run itself) first."""

    @classmethod
    def create(cls, folder: Path, head: Entry) -> "Outbox":
        """A new one. Nobody else sees it before its lock is held and its head is written. Raises OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{time.time_ns()}.jsonl"
        hidden = path.with_suffix(f".{os.getpid()}.new")
        descriptor = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        outbox = cls(path, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            outbox.append(head)
            os.rename(hidden, path)
            fsync(folder)
        except BaseException:
            os.close(descriptor)
            hidden.unlink(missing_ok=True)
            raise
        return outbox

    @classmethod
    def take(cls, path: Path) -> "Outbox | None":
        """One that was left behind; None where its process still lives, where it is gone, or is somebody else's."""
        try:
            descriptor = os.open(path, os.O_RDWR)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:  # else it was delivered while we waited
                outbox = cls(path, descriptor)
                outbox._recall()
                return outbox
        except (BlockingIOError, FileNotFoundError):
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    @property
    def entries(self) -> list[Line]:
        """The next entries that are not delivered, up to CHUNK bytes of them; none where there are none."""
        at, found = self.sent, list[Line]()
        while not found:
            lines, end = self._lines(at, self.size)
            found = [line for line in lines if "do" in line.entry]
            if end == at:
                break
            at = end
        return found

    def append(self, *entries: Entry) -> None:
        """All or none of them; they are on the disk after the next `sync`. Raises OSError."""
        with self._lock:
            self._append(entries)

    def acknowledge(self, lines: Sequence[Line]) -> None:
        """These are delivered. Raises OSError where that cannot be remembered; this process knows it all the same."""
        with self._lock:
            self.sent, self.waiting = lines[-1].end, self.waiting - len(lines)
            self._append([{"sent": self.sent}])

    def sync(self) -> None:
        """What was appended is on the disk, also after a power cut."""
        os.fsync(self._descriptor)

    def remove(self, kept: bool = False) -> None:
        """The file goes; or it is kept under another name, for a person to read."""
        self.path.rename(self.path.with_suffix(".refused")) if kept else self.path.unlink()

    def close(self) -> None:
        """Let go of the lock."""
        os.close(self._descriptor)
        self._descriptor = -1  # the number will be another file's

    def _append(self, entries: Sequence[Entry]) -> None:
        lines = [canonical(entry) + b"\n" for entry in entries]
        rest, at = b"".join(lines), self.size
        try:
            while rest:
                written = os.pwrite(self._descriptor, rest, at)
                rest, at = rest[written:], at + written
        except OSError:  # of a full disk: half a line would hide what is said later
            os.ftruncate(self._descriptor, self.size)
            raise
        for entry, line in zip(entries, lines, strict=True):
            self.size += len(line)
            self._count(Line(entry, self.size))

    def _count(self, line: Line) -> None:
        entry = line.entry
        if "sent" in entry:
            self.sent = entry["sent"]
            return
        self.head = self.head or entry
        self.end, self.waiting = line.end, self.waiting + 1
        if entry["do"] == "open":
            self.running.append(entry["stage"])
        elif entry["do"] == "end" and entry["stage"] in self.running:
            self.running.remove(entry["stage"])

    def _recall(self) -> None:
        """What the process before had said, without the line that it was writing when it died."""
        ends, at, size = [], 0, os.fstat(self._descriptor).st_size
        while (read := self._lines(at, size))[1] > at:
            for line in read[0]:
                self._count(line)
                if "do" in line.entry:
                    ends.append(line.end)
            at = read[1]
        self.size = at
        self.waiting = sum(end > self.sent for end in ends)
        os.ftruncate(self._descriptor, at)

    def _lines(self, at: int, size: int) -> tuple[list[Line], int]:
        """Whole lines from a byte on, and where the last of them ends; a damaged one is passed over."""
        wanted, data = CHUNK, b""
        while b"\n" not in data and len(data) < size - at:
            data = os.pread(self._descriptor, min(wanted, size - at), at)
            wanted *= 2
        lines = []
        for text in data[: data.rfind(b"\n") + 1].splitlines(keepends=True):
            at += len(text)
            with suppress(ValueError):
                lines.append(Line(_entry(text), at))
        return lines, at


def heads(folder: Path) -> Iterator[tuple[Path, Entry]]:
    """The outboxes of a home, oldest first, with their heads; a file whose head cannot be read is none."""
    for path in sorted(folder.glob("*.jsonl")):
        try:
            with open(path, "rb") as file:
                head = _entry(file.readline())
        except (OSError, ValueError):
            continue
        if head.get("do") == "open":
            yield path, head


def _entry(line: bytes) -> Entry:
    """Raises ValueError where a line is none."""
    entry = json_of(line)
    sent = entry.get("sent") if isinstance(entry, dict) else None
    known = isinstance(entry, dict) and all(isinstance(entry.get(name), str) for name in ("do", "stage"))
    if known and (entry["do"] != "metrics" or isinstance(entry.get("metrics"), dict)):
        return dict(entry)
    if isinstance(sent, int) and sent >= 0 and "do" not in entry:
        return {"sent": sent}
    raise ValueError("neither an entry nor how far they are delivered")


def batches(lines: Sequence[Line], most: int) -> Iterator[list[Line]]:
    """What may be delivered in one call: one entry, or neighbouring metrics of a stage, up to `most` values of them."""
    batch, size = list[Line](), 0
    for line in lines:
        more = len(line.entry["metrics"]) if line.entry["do"] == "metrics" else most
        alike = batch and all(line.entry[name] == batch[0].entry[name] for name in ("do", "stage"))
        if batch and not (alike and size + more <= most):
            yield batch
            batch, size = [], 0
        batch.append(line)
        size += more
    if batch:
        yield batch
