"""The file of a shard: one Arrow IPC file, uncompressed, one record batch: in a memory map a column is an array.

tokens           fixed_size_list<uint16 | uint32, L>     uint16 iff the vocabulary fits
sequence         uint64                                  global id of the row in its split
segment_lengths  list<uint16>                            specials included: M + 2
documents        list<uint32>                            of each segment, the document's index in the split
starts           list<uint32>                            of each segment, its first token's offset in the document
draw_0 …         fixed_size_binary(L / 8)                draws of 𝓜, position j at bit j % 8 of byte j // 8
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from . import masking
from .errors import DataError
from .packing import SPECIALS, Packing, Segments

ROWS_AT_ONCE = 4096
"""Rows whose masks are drawn together: bounds the memory of their 64-bit keys."""


def table(rows: NDArray[np.int32], segments: Segments, packed: Packing, first: int, vocabulary: int) -> pa.RecordBatch:
    """The columns of a block of rows that do not depend on where the block stands in its split.

    rows  (R, L) tokens;  first  index, in the split, of the block's first document;  vocabulary  V
    """
    offsets = np.searchsorted(packed.row, np.arange(packed.rows + 1))
    width = np.uint16 if vocabulary <= 1 << 16 else np.uint32
    columns = {
        "tokens": pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1).astype(width)), rows.shape[1]),
        "segment_lengths": _list(offsets, segments.length[packed.order] + SPECIALS, np.uint16),
        "documents": _list(offsets, segments.document[packed.order] + first, np.uint32),
        "starts": _list(offsets, segments.start[packed.order], np.uint32),
    }
    return pa.record_batch(columns)


def numbered(block: pa.RecordBatch, first: int, draws_K: list[NDArray[np.uint8]]) -> pa.RecordBatch:
    """A block with its sequence ids, counted from `first`, and its stored draws, each (R, L / 8)."""
    columns = dict(zip(block.schema.names, block.columns, strict=True))
    sequence = pa.array(np.arange(first, first + block.num_rows, dtype=np.uint64))
    stored = {f"draw_{number}": _fixed_binary(bits) for number, bits in enumerate(draws_K)}
    return pa.record_batch({"tokens": columns.pop("tokens"), "sequence": sequence, **columns, **stored})


def _list(offsets: NDArray[np.int64], values: NDArray[np.int64], width: type) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values.astype(width)))


def _fixed_binary(bits: NDArray[np.uint8]) -> pa.FixedSizeBinaryArray:
    data = pa.py_buffer(np.ascontiguousarray(bits))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(bits.shape[1]), len(bits), [None, data])


def write(path: Path, batch: pa.RecordBatch) -> None:
    """Writes a file of one record batch; the caller forces it to the disk."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)


def read(path: Path) -> pa.RecordBatch:
    """The one record batch of a shard or block, memory-mapped. Raises DataError when it is not readable."""
    try:
        with pa.memory_map(str(path)) as file:
            reader = pa.ipc.open_file(file)
            if reader.num_record_batches != 1:
                raise pa.ArrowInvalid(f"{reader.num_record_batches} record batches instead of one")
            return reader.get_batch(0)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read ({error}); run `maskmill verify shards`.") from None


def segments_of(batch: pa.RecordBatch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Segment lengths with specials, row after row (S,), and where each row begins in them (R + 1,)."""
    column = batch.column("segment_lengths")
    offsets = column.offsets.to_numpy().astype(np.int64)
    return column.values.to_numpy().astype(np.int64)[offsets[0] : offsets[-1]], offsets - offsets[0]


def stored_draw(batch: pa.RecordBatch, number: int, length: int) -> NDArray[np.uint8]:
    """A stored draw, as in the memory map: uint8 (R, L / 8)."""
    column = batch.column(f"draw_{number}")
    return np.frombuffer(column.buffers()[1], np.uint8).reshape(-1, length // 8)[column.offset :][: len(column)]


def draw(
    seed: int,
    number: int,
    sequence: NDArray[np.uint64],
    lengths: NDArray[np.int64],
    offsets: NDArray[np.int64],
    length: int,
    rate: str,
) -> Iterator[NDArray[np.uint8]]:
    """One draw of 𝓜 for many rows, as stored: uint8 (R, L / 8), ROWS_AT_ONCE rows at a time. See `masking.draw`."""
    for first in range(0, len(sequence), ROWS_AT_ONCE):
        rows = slice(first, first + ROWS_AT_ONCE)
        bounds = offsets[first : first + ROWS_AT_ONCE + 1]
        own = lengths[bounds[0] : bounds[-1]]
        yield masking.pack_bits(masking.draw(seed, number, sequence[rows], own, bounds - bounds[0], length, rate))
