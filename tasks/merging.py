"""What was decided becomes Parquet: parts, each written by one process, the same for any number of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from . import arrays, packs
from .artifacts import finish_unit, finished_unit
from .selection import KEPT, SPLITS, TRAIN, Decided, times_taken

GROUP_BYTES = 4 << 20
"""Text in a row group: what the writer and the readers hold in memory."""
POOL = pa.system_memory_pool()
"""Arrow's own pools keep what they had: twice the memory, for no gain in speed."""
GROUP_ROWS = 1 << 17
PART_BYTES = (16 << 20, 512 << 20)
"""Least and most text of a part; in between, a corpus has PARTS of them."""
PARTS = 64
_SPLITS = [name.encode() for name in SPLITS]
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.large_string()),
        ("source", pa.string()),
        ("offset", pa.int64()),
        ("split", pa.string()),
        ("copies", pa.int32()),
    ]
)
"""id: 32 hex digits; source: name and path; offset: in the file; copies: how often training takes the document."""


@dataclass(frozen=True)
class Piece:
    """Documents of one file that lie in one pack one after the other."""

    pack: str
    first: int
    start: int
    rows: int
    label: str
    weight: str


@dataclass(frozen=True)
class Part:
    """What goes into one Parquet file."""

    name: str
    pieces: tuple[Piece, ...]


def parts(decided: Decided) -> Iterator[Part]:
    """The corpus in parts of about the same size: documents that follow each other."""
    kept = sum(numbers[1] for numbers in decided.kept)
    size = min(max(PART_BYTES[0], kept // PARTS), PART_BYTES[1])
    pieces: list[Piece] = []
    number = held = 0
    for piece in _pieces(decided):
        rest, ends = piece, _kept_so_far(piece, decided)
        while rest.rows:
            # No piece is larger than a row group: its text is held in memory.
            stop = min(int(np.searchsorted(ends, min(size - held, GROUP_BYTES))) + 1, rest.rows, GROUP_ROWS)
            pieces.append(_cut(rest, 0, stop))
            held += int(ends[stop - 1])
            rest, ends = _cut(rest, stop, rest.rows), ends[stop:] - ends[stop - 1]
            if held >= size:
                yield Part(f"part-{number:05d}", tuple(pieces))
                pieces, held, number = [], 0, number + 1
    if held:
        yield Part(f"part-{number:05d}", tuple(pieces))


def _kept_so_far(piece: Piece, decided: Decided) -> NDArray[np.int64]:
    """Bytes of the documents that are kept, from the first of the piece up to each."""
    stop = piece.start + piece.rows
    sizes = decided.columns.read("sizes", piece.start, stop, 0)
    return np.cumsum(np.where(decided.verdict[piece.start : stop] == KEPT, sizes, 0), dtype=np.int64)


def _cut(piece: Piece, first: int, stop: int) -> Piece:
    return Piece(piece.pack, piece.first + first, piece.start + first, stop - first, piece.label, piece.weight)


def _pieces(decided: Decided) -> Iterator[Piece]:
    for file in decided.selection.files:
        weight = decided.selection.surveyed[file.source].source.weight
        for run in decided.columns.between(file.start, file.start + file.rows):
            low, high = max(file.start, run.start), min(file.start + file.rows, run.start + run.rows)
            yield Piece(run.pack, run.first + low - run.start, low, high - low, file.label, weight)


def write_part(part: Part, folder: Path, scratch: Path) -> dict[str, Any]:
    """Writes <scratch>/<part>.parquet, unless an earlier run did. The facts: documents of each split."""
    facts = finished_unit(scratch, part.name)
    if facts is not None:
        return facts
    path = scratch / f"{part.name}.parquet"
    verdict = np.load(scratch / "verdict.npy", mmap_mode="r")
    split = np.load(scratch / "split.npy", mmap_mode="r")
    counts = dict.fromkeys(SPLITS, 0)
    # Texts do not repeat: a dictionary of them would be built, found too large and thrown away.
    named: Any = ["source", "split"]
    with pq.ParquetWriter(
        path, SCHEMA, use_dictionary=named, compression="zstd", write_page_checksum=True, memory_pool=POOL
    ) as writer:
        tables: list[pa.Table] = []
        held = 0
        for piece in part.pieces:
            rows = slice(piece.start, piece.start + piece.rows)
            keep = verdict[rows] == KEPT
            if not keep.any():
                continue
            table = _table(piece, folder, keep, split[rows][keep])
            for code, name in enumerate(SPLITS):
                counts[name] += int((split[rows][keep] == code).sum())
            tables.append(table)
            held += int(packs.column(folder, piece.pack, "sizes")[piece.first :][: piece.rows, 0][keep].sum())
            if held >= GROUP_BYTES:
                writer.write_table(_whole(tables))
                tables, held = [], 0
        if tables:
            writer.write_table(_whole(tables))
    return finish_unit(scratch, part.name, [path], counts)


def _whole(tables: list[pa.Table]) -> pa.Table:
    """One chunk a column: the writer's pages would otherwise follow the batches of the packs, which follow from what
    was read together."""
    return pa.concat_tables(tables).combine_chunks(POOL)


def _table(piece: Piece, folder: Path, keep: NDArray[np.bool_], split: NDArray[np.uint8]) -> pa.Table:
    rows = np.flatnonzero(keep)
    ids = packs.column(folder, piece.pack, "ids")[piece.first : piece.first + piece.rows][rows]
    texts = packs.texts(folder, piece.pack, piece.first, piece.rows)
    if len(rows) < piece.rows:  # `take` would first make one chunk of all, a gigabyte where most of it is dropped
        texts = pc.filter(texts, pa.array(keep), memory_pool=POOL)
    copies = np.where(split == TRAIN, times_taken(ids, Fraction(piece.weight)), 1).astype(np.int32)
    names = ids.astype(">u8").tobytes().hex().encode()
    splits = [_SPLITS[code] for code in split.tolist()]
    label = piece.label.encode()
    columns = [
        arrays.strings(names, np.full(len(ids), 32)),
        texts["text"],
        arrays.strings(label * len(ids), np.full(len(ids), len(label))),
        texts["offset"],
        arrays.strings(b"".join(splits), np.array(list(map(len, splits)))),
        arrays.numbers(copies, pa.int32()),
    ]
    return pa.table(columns, SCHEMA)
