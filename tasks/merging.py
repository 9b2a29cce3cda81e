"""The one process that takes what was read, in order: duplicates out, budgets, books, Parquet."""

from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .artifacts import Workspace
from .errors import DataError
from .sources import Surveyed

GROUP_BYTES = 16 << 20
"""Text in a row group: what the writer and the readers hold in memory."""
FILE_BYTES = 512 << 20
COUNTED_ONLY = {"empty", "too_short", "duplicate", "repeated", "not_prose", "over_budget"}
"""Reasons that are no fault of the data: counted in the books, but no line in the quarantine."""
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.large_string()),
        ("source", pa.string()),
        ("offset", pa.int64()),
        ("split", pa.string()),
    ]
)

Row = tuple[str, str, str, int, str]
"""id, text, source, offset, split."""


class Books:
    """documents and bytes: what came in, and what became of it."""

    def __init__(self) -> None:
        self.came = [0, 0]
        self.rejected: dict[str, list[int]] = {}

    def take(self, size: int, reason: str = "") -> None:
        """A document (or what should have been one) came in; with a reason, it goes no further."""
        self.came = [self.came[0] + 1, self.came[1] + size]
        if reason:
            self.reject(size, reason)

    def reject(self, size: int, reason: str) -> None:
        entry = self.rejected.setdefault(reason, [0, 0])
        entry[0], entry[1] = entry[0] + 1, entry[1] + size

    def add(self, facts: dict[str, Any]) -> None:
        """Adds the books of a unit."""
        self.came = [a + b for a, b in zip(self.came, facts["came"])]
        for reason, numbers in facts["rejected"].items():
            entry = self.rejected.setdefault(reason, [0, 0])
            entry[:] = [a + b for a, b in zip(entry, numbers)]

    def facts(self) -> dict[str, Any]:
        return {"came": self.came, "rejected": self.rejected}

    def page(self, source: str, kept: list[int]) -> dict[str, Any]:
        """The books of a source, as the manifest has them. Raises DataError when they do not balance."""
        lost = [sum(entry[unit] for entry in self.rejected.values()) for unit in (0, 1)]
        if self.came != [kept[0] + lost[0], kept[1] + lost[1]]:
            raise DataError(
                f"The books of source {source} do not balance: {self.came} documents and bytes in, {kept} kept, "
                f"{lost} rejected; please report this."
            )
        rejected = {
            reason: {"documents": entry[0], "bytes": entry[1]} for reason, entry in sorted(self.rejected.items())
        }
        return {
            "source": source,
            "documents_in": self.came[0],
            "bytes_in": self.came[1],
            "documents_kept": kept[0],
            "bytes_kept": kept[1],
            "rejected": rejected,
        }


class Writer:
    """Rows into a Parquet file, a row group at a time."""

    def __init__(self, path: Path, compression: str) -> None:
        self.file = pq.ParquetWriter(path, SCHEMA, compression=compression, write_page_checksum=True)
        self.rows: list[Row] = []
        self.bytes = self.pending = 0

    def add(self, row: Row, size: int) -> None:
        self.rows.append(row)
        self.bytes, self.pending = self.bytes + size, self.pending + size
        if self.pending >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self.rows:
            columns = [pa.array(column, field.type) for column, field in zip(zip(*self.rows), SCHEMA)]
            self.file.write_table(pa.table(columns, SCHEMA))
        self.rows, self.pending = [], 0

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self._flush()
        self.file.close()


class Merge:
    """Takes units in order; drops what an earlier one had; writes documents and quarantine."""

    def __init__(self, surveyed: Sequence[Surveyed], work: Workspace) -> None:
        self.surveyed, self.work = surveyed, work
        self.books = [Books() for _ in surveyed]
        self.kept = [[0, 0] for _ in surveyed]
        self.splits: Counter[str] = Counter()
        self.seen: set[bytes] = set()
        self.paragraphs: set[bytes] = set()
        self.writer: Writer | None = None
        self.files: list[Path] = []

    @property
    def bytes(self) -> int:
        """Text kept so far, in bytes of UTF-8."""
        return sum(kept[1] for kept in self.kept)

    def room(self, source: int) -> bool:
        """Is there room in the budget of a source?"""
        budget = self.surveyed[source].source.budget_bytes
        return budget == 0 or self.kept[source][1] < budget

    def falls_short(self, source: int, name: str) -> bool:
        """Would the unit `name` leave room in the budget, after what earlier ones had is dropped?"""
        fresh = sum(
            len(row[1].encode())
            for row in _rows(self.work.scratch / f"{name}.parquet")
            if bytes.fromhex(row[0]) not in self.seen
        )
        return self.kept[source][1] + fresh < self.surveyed[source].source.budget_bytes

    def take(self, source: int, name: str, facts: dict[str, Any]) -> None:
        """Takes the unit `name`: its books, and its rows from the scratch."""
        books, kept = self.books[source], self.kept[source]
        books.add(facts)
        for row in _rows(self.work.scratch / f"{name}.parquet"):
            size = len(row[1].encode())
            reason = self._rejected(source, row)
            if reason:
                books.reject(size, reason)
            else:
                self._write(row, size)
                kept[0], kept[1] = kept[0] + 1, kept[1] + size
                self.splits[row[4]] += 1

    def _rejected(self, source: int, row: Row) -> str:
        name = bytes.fromhex(row[0])
        if name in self.seen:
            return "duplicate"
        if not self.room(source):
            return "over_budget"
        if self.surveyed[source].kind == "installed-docs" and self._repeats(row[1]):
            return "repeated"
        self.seen.add(name)
        return ""

    def _repeats(self, text: str) -> bool:
        """Does at least half of a docstring stand in earlier ones? Packages copy them from class to class."""
        parts = [(blake2b(part.encode(), digest_size=8).digest(), len(part)) for part in text.split("\n\n")]
        known = sum(size for digest, size in parts if digest in self.paragraphs)
        self.paragraphs.update(digest for digest, _ in parts)
        return known * 2 >= sum(size for _, size in parts)

    def _write(self, row: Row, size: int) -> None:
        if self.writer is None or self.writer.bytes >= FILE_BYTES:
            self.close()
            self.files.append(self.work.folder / f"documents-{len(self.files):05d}.parquet")
            self.writer = Writer(self.files[-1], "zstd")
        self.writer.add(row, size)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.__exit__(None)
            self.writer = None


def _rows(path: Path) -> Iterator[Row]:
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        for group in range(file.num_row_groups):
            yield from zip(*(column.to_pylist() for column in file.read_row_group(group).columns))
