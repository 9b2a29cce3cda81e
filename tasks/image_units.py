"""Units: the images that one process reads together, and what is kept of them until the corpus is written.

    unit-00000.pixels          one image after the other, all of one shape
    unit-00000.rows.parquet    id, label, source, offset of each
    unit-00000.rejects         lines of the quarantine

A unit is some small files that follow each other, one large one, or a slice of an IDX file; which ones follows from the
files alone, so a run that was killed finds its finished units again.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from . import arrays
from .artifacts import finish_unit, finished_unit
from .books import Books
from .image_decoding import ImageLimits, Refused, Shape, decode, fit
from .image_files import idx_header, pictures
from .image_sources import ImageFile, ImageSource, SurveyedImages
from .image_streams import Event, Misplaced, Picture, Slice
from .quarantine import LISTED
from .streams import Broken, Reject

UNIT_BYTES, UNIT_FILES = 8 << 20, 256
SLICE_BYTES = 32 << 20
"""Pixels of an IDX file that are read as one unit."""
ROWS = pa.schema([("id", pa.binary(16)), ("label", pa.string()), ("source", pa.string()), ("offset", pa.int64())])
EXAMPLE = 200


@dataclass(frozen=True)
class Unit:
    """Files of one source that come one after the other, or a part of one."""

    name: str
    source: int
    files: tuple[ImageFile, ...]
    part: Slice | None = None


@dataclass(frozen=True)
class Manner:
    """How images are read: the same for all units of a corpus."""

    sources: tuple[ImageSource, ...]
    shape: Shape
    limits: ImageLimits


def units(surveyed: Sequence[SurveyedImages], limits: ImageLimits) -> Iterator[Unit]:
    """All files, in order."""
    number = 0
    for source, one in enumerate(surveyed):
        group: list[ImageFile] = []
        size = 0
        for file in one.files:
            if group and (file.item.kind != "image" or len(group) == UNIT_FILES or size >= UNIT_BYTES):
                yield Unit(f"unit-{number:06d}", source, tuple(group))
                group, size, number = [], 0, number + 1
            if file.item.kind == "image":
                group.append(file)
                size += file.item.size
                continue
            for part in _parts(file, limits):
                yield Unit(f"unit-{number:06d}", source, (file,), part)
                number += 1
        if group:
            yield Unit(f"unit-{number:06d}", source, tuple(group))
            number += 1


def _parts(file: ImageFile, limits: ImageLimits) -> list[Slice | None]:
    """Slices of an IDX file that can be read from the middle; [None] for any other."""
    if file.item.kind != "idx" or file.item.remote or file.item.size < 2 * SLICE_BYTES:
        return [None]
    try:
        header = idx_header(file.item, limits)
    except (Broken, OSError):
        return [None]  # it is refused when it is read
    if header.packed:
        return [None]
    # By the size of the file: what the header says may be anything.
    there = min((file.item.size - header.bytes) // header.image_bytes, header.images)
    each = max(SLICE_BYTES // header.image_bytes, 1)
    starts = list(range(0, there, each)) or [0]
    return [Slice(first, None if first == starts[-1] else first + each) for first in starts]


def read_unit(unit: Unit, scratch: Path, manner: Manner) -> dict[str, Any]:
    """Reads the images of a unit, unless an earlier run did. The facts: rows, books and what else is counted."""
    facts = finished_unit(scratch, unit.name)
    if facts is not None:
        return facts
    paths = [scratch / f"{unit.name}.{end}" for end in ("pixels", "rows.parquet", "rejects")]
    with open(paths[0], "wb") as pixels, open(paths[2], "wb") as rejects:
        reading = _Reading(manner, pixels, rejects)
        for file in unit.files:
            source = manner.sources[unit.source]
            for event in pictures(file, source, manner.limits, reading.unread, unit.part):
                reading.take(event, file.item.label)
        reading.close()
    pq.write_table(reading.table(), paths[1], compression="none", write_page_checksum=True)
    return finish_unit(scratch, unit.name, paths, reading.facts())


class _Reading:
    """What a unit comes to."""

    def __init__(self, manner: Manner, pixels: Any, rejects: Any) -> None:
        self.manner, self.pixels, self.rejects = manner, pixels, rejects
        self.books = Books()
        self.unread, self.origins, self.listed = Counter[str](), Counter[str](), Counter[str]()
        self.stored = [0, 0]
        """Bytes as they are stored: of all, and of what was refused."""
        self.example = ""
        self.ids: list[bytes] = []
        self.labels: list[str | None] = []
        self.places: list[str] = []
        self.offsets: list[int] = []
        shape = manner.shape
        self.hash = blake2b(f"{shape.height} {shape.width} {shape.channels}\n".encode(), digest_size=16)

    def take(self, event: Event, label: str) -> None:
        if isinstance(event, Misplaced):
            self.refuse(event.reject, label + event.place)
        elif isinstance(event, Reject):
            self.refuse(event, label)
        else:
            try:
                self.keep(event, label)
            except Refused as refused:
                reject = Reject(refused.reason, event.offset, event.size, None, refused.detail)
                self.refuse(reject, label + event.place)

    def keep(self, picture: Picture, label: str) -> None:
        steps: list[str] = []
        pixels = picture.data
        if isinstance(pixels, bytes):
            pixels, steps = decode(pixels, self.manner.limits)
        pixels, more = fit(pixels, self.manner.shape)
        data = pixels.tobytes()
        digest = self.hash.copy()
        digest.update(data)
        self.pixels.write(data)
        self.ids.append(digest.digest())
        self.labels.append(picture.label)
        self.places.append(label + picture.place)
        self.offsets.append(picture.offset)
        self.origins[picture.origin] += 1
        self.stored[0] += picture.size
        self.books.take(len(data), 0)
        self.books.clean([*steps, *more], 0, 0)

    def refuse(self, reject: Reject, place: str) -> None:
        self.books.take(reject.bytes, 0, reject.reason)
        self.stored = [self.stored[0] + reject.bytes, self.stored[1] + reject.bytes]
        self.example = self.example or f"{reject.reason}: {place}: {reject.detail}"[:EXAMPLE]
        self.listed[reject.reason] += 1
        if self.listed[reject.reason] <= LISTED:
            self._write({"source": place, **asdict(reject)})

    def close(self) -> None:
        for reason, number in sorted(self.listed.items()):
            if number > LISTED:
                more = f"and {number - LISTED} more in this file, counted but not listed"
                self._write({"source": self.places[-1] if self.places else "", **asdict(Reject(reason, detail=more))})

    def _write(self, line: dict[str, Any]) -> None:
        self.rejects.write(json.dumps(line, sort_keys=True).encode() + b"\n")

    def table(self) -> pa.Table:
        ids = pa.Array.from_buffers(pa.binary(16), len(self.ids), [None, pa.py_buffer(b"".join(self.ids))])
        offsets = arrays.numbers(np.array(self.offsets, np.int64), pa.int64())
        return pa.table([ids, texts(self.labels), texts(self.places), offsets], ROWS)

    def facts(self) -> dict[str, Any]:
        return {
            "rows": len(self.ids),
            "books": self.books.facts(),
            "stored": self.stored,
            "unread": dict(self.unread),
            "origins": dict(self.origins),
            "example": self.example,
        }


def texts(values: Sequence[str | None]) -> pa.Array:
    """A column of texts with nulls (arrays.py says why not by `pa.array`)."""
    data = [(value or "").encode() for value in values]
    there = np.packbits([value is not None for value in values], bitorder="little") if None in values else None
    plain = arrays.strings(b"".join(data), np.array([len(one) for one in data], np.int64))
    if there is None:
        return plain
    return pa.Array.from_buffers(pa.string(), len(data), [pa.py_buffer(there.tobytes()), *plain.buffers()[1:]])


def ids_of(scratch: Path, unit: str) -> NDArray[np.uint64]:
    """(rows, 2): both halves of each id, the higher one first."""
    column = pq.read_table(scratch / f"{unit}.rows.parquet", columns=["id"]).column(0).combine_chunks()
    column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    data = column.buffers()[1] if len(column) else b""
    return np.frombuffer(data or b"", ">u8").astype(np.uint64)[: 2 * len(column)].reshape(-1, 2)


def pixels_of(scratch: Path, unit: str, rows: int, shape: Shape) -> NDArray[np.uint8]:
    """(rows, bytes), where they lie."""
    if not rows:
        return np.zeros((0, shape.bytes), np.uint8)
    return np.memmap(scratch / f"{unit}.pixels", np.uint8, "r", shape=(rows, shape.bytes))
