"""What was decided on images becomes Parquet: parts, each written by one process, the same for any number of them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from . import arrays
from .artifacts import finish_unit, finished_unit
from .image_decoding import Shape
from .image_units import ids_of, pixels_of, texts
from .merging import GROUP_BYTES, PARTS, POOL
from .selection import SPLITS

KEPT, DUPLICATE = 0, 1
"""Verdicts."""
PART_BYTES = (16 << 20, 512 << 20)
"""Least and most pixels of a part; in between, a corpus has PARTS of them."""
SAMPLES = 12
"""Images of each label that the card shows."""
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("pixels", pa.binary()),
        ("label", pa.string()),
        ("source", pa.string()),
        ("offset", pa.int64()),
        ("split", pa.string()),
    ]
)
"""id: 32 hex digits; pixels: H·W·C bytes; label: null where unknown; source: name, path, place in the file."""


@dataclass(frozen=True)
class Piece:
    """A unit's images [first, first + rows), which are the corpus's from `start` on."""

    unit: str
    first: int
    rows: int
    total: int
    """Images of the unit."""
    start: int


@dataclass(frozen=True)
class Part:
    """What goes into one Parquet file."""

    name: str
    pieces: tuple[Piece, ...]


def parts(rows: Sequence[tuple[str, int]], verdict: NDArray[np.uint8], shape: Shape) -> Iterator[Part]:
    """The corpus in parts of about the same size: images that follow each other.

    rows    name and number of images of each unit, in order
    """
    kept = np.flatnonzero(verdict == KEPT)
    total = len(kept) * shape.bytes
    each = max(min(max(PART_BYTES[0], total // PARTS), PART_BYTES[1]) // shape.bytes, 1)
    starts = np.cumsum([0, *(number for _, number in rows)]).tolist()
    for number, low in enumerate(range(0, len(kept), each)):
        first, last = int(kept[low]), int(kept[min(low + each, len(kept)) - 1]) + 1
        pieces = []
        for (unit, there), start in zip(rows, starts):
            begin, end = max(first, start), min(last, start + there)
            if begin < end:
                pieces.append(Piece(unit, begin - start, end - begin, there, begin))
        yield Part(f"part-{number:05d}", tuple(pieces))


def write_part(part: Part, scratch: Path, shape: Shape) -> dict[str, Any]:
    """Writes <scratch>/<part>.parquet, unless an earlier run did.

    The facts: images of each split, those of each label in each split, and samples of each label for the card.
    """
    facts = finished_unit(scratch, part.name)
    if facts is not None:
        return facts
    path = scratch / f"{part.name}.parquet"
    told = _Told()
    group = max(GROUP_BYTES // shape.bytes, 1)
    with pq.ParquetWriter(
        path,
        SCHEMA,
        use_dictionary=["label", "split"],  # type: ignore[arg-type]
        compression="zstd",
        write_page_checksum=True,
        memory_pool=POOL,
    ) as writer:
        held: list[pa.Table] = []
        for piece in part.pieces:
            for table in _tables(piece, scratch, shape, group, told):
                held.append(table)
                while sum(map(len, held)) >= group:
                    whole = pa.concat_tables(held)
                    writer.write_table(whole.slice(0, group).combine_chunks(POOL), row_group_size=group)
                    held = [whole.slice(group)]
        if sum(map(len, held)):
            writer.write_table(pa.concat_tables(held).combine_chunks(POOL), row_group_size=group)
    return finish_unit(scratch, part.name, [path], told.facts())


class _Told:
    """What a part says of itself."""

    def __init__(self) -> None:
        self.splits = dict.fromkeys(SPLITS, 0)
        self.labels: dict[str, list[int]] = {}
        self.samples: dict[str, list[list[Any]]] = {}

    def add(self, labels: Sequence[str | None], codes: Sequence[int], found: Sequence[list[Any]]) -> None:
        for code, number in Counter(codes).items():
            self.splits[SPLITS[code]] += number
        for (label, code), number in Counter(zip(labels, codes)).items():
            self.labels.setdefault(label or "", [0] * len(SPLITS))[code] += number
        for label, sample in zip(labels, found):
            some = self.samples.setdefault(label or "", [])
            if len(some) < SAMPLES or sample[0] < some[-1][0]:
                self.samples[label or ""] = sorted([*some, sample])[:SAMPLES]

    def facts(self) -> dict[str, Any]:
        return {"splits": self.splits, "labels": self.labels, "samples": self.samples}


def _tables(piece: Piece, scratch: Path, shape: Shape, group: int, told: _Told) -> Iterator[pa.Table]:
    rows = pq.read_table(scratch / f"{piece.unit}.rows.parquet").slice(piece.first, piece.rows)
    ids = ids_of(scratch, piece.unit)[piece.first :][: piece.rows]
    pixels = pixels_of(scratch, piece.unit, piece.total, shape)[piece.first :][: piece.rows]
    span = slice(piece.start, piece.start + piece.rows)
    kept = np.flatnonzero(np.load(scratch / "verdict.npy", mmap_mode="r")[span] == KEPT)
    split = np.load(scratch / "split.npy", mmap_mode="r")[span]
    for low in range(0, len(kept), group):
        some = kept[low : low + group]
        codes = split[some].tolist()
        about = rows.take(arrays.numbers(some, pa.int64()))
        labels = about.column("label").to_pylist()
        lower = ids[some, 1].tolist()
        told.add(labels, codes, [[key, piece.unit, piece.first + row] for key, row in zip(lower, some.tolist())])
        names = ids[some].astype(">u8").tobytes().hex().encode()
        yield pa.table(
            [
                arrays.strings(names, np.full(len(some), 32)),
                _binary(pixels[some], shape),
                about.column("label"),
                about.column("source"),
                about.column("offset"),
                texts([SPLITS[code] for code in codes]),
            ],
            SCHEMA,
        )


def _binary(pixels: NDArray[np.uint8], shape: Shape) -> pa.Array:
    ends = np.arange(len(pixels) + 1, dtype=np.int32) * shape.bytes
    return pa.Array.from_buffers(pa.binary(), len(pixels), [None, pa.py_buffer(ends), pa.py_buffer(pixels.tobytes())])
