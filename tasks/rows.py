"""The file of a shard: one Arrow IPC file, uncompressed, one record batch: in a memory map a column is an array.

tokens       fixed_size_list<uint16 | uint32, L>     uint16 iff the vocabulary fits
sequence     uint64                                  global id of the row in its split
segments     list<struct>                            of each row, its segments; ten bytes for each:
  length       uint16                                  specials included: M + 2
  document     uint32                                  the document's index in the split
  start        uint32                                  its first token's offset in the document
payload      fixed_size_binary(L · P)                bytes that go along with each token, zeros at other positions;
                                                     only where the vocabulary has them
draw_0 …     fixed_size_binary(L / 8)                draws of 𝓜, position j at bit j % 8 of byte j // 8
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from . import masking, modalities
from .arrays import numbers, values
from .errors import DataError, is_out_of_memory
from .masking import Policy
from .packing import SPECIALS, Packing, Segments

POSITIONS_AT_ONCE = 1 << 18
"""Positions whose masks are drawn together: their 64-bit keys fit into the cache; with eight times as many it takes
twice as long."""


SEGMENT = pa.struct([("length", pa.uint16()), ("document", pa.uint32()), ("start", pa.uint32())])


class Masks(NamedTuple):
    """What a split's draws of 𝓜 are a function of, beside the address."""

    seed: int
    rate: str
    """Mask rate p."""
    policy: Policy
    table_V: NDArray[np.uint8]
    """The vocabulary's table, which says where groups of tokens begin; its modality reads it."""
    modality: str = modalities.TEXT

    def draw(
        self,
        number: int,
        sequence: NDArray[np.uint64],
        lengths: NDArray[np.int64],
        offsets: NDArray[np.int64],
        tokens_RL: NDArray[Any],
        rate: str = "",
    ) -> NDArray[np.bool_]:
        """Draw `number` of 𝓜 for some rows, at another rate where one is given: bool (R, L). See `masking.draw`."""
        begins_RL = None
        if self.policy.of_groups:
            begins_RL = modalities.groups(self.modality).group_begins(self.table_V, tokens_RL)
        layout = lengths, offsets, tokens_RL.shape[1], rate or self.rate
        return masking.draw(self.seed, number, sequence, *layout, self.policy, begins_RL)


def table(
    rows: NDArray[np.int32],
    segments: Segments,
    packed: Packing,
    vocabulary: int,
    payload: NDArray[np.uint8] | None = None,
) -> pa.RecordBatch:
    """The columns of a block of rows that do not depend on where the block stands in its split.

    rows  (R, L) tokens;  vocabulary  V;  payload  (R, L, P)
    """
    offsets = np.searchsorted(packed.row, np.arange(packed.rows + 1))
    width = np.uint16 if vocabulary <= 1 << 16 else np.uint32
    columns = {
        "tokens": pa.FixedSizeListArray.from_arrays(numbers(rows.reshape(-1).astype(width)), rows.shape[1]),
        "segments": _records(
            offsets,
            segments.length[packed.order] + SPECIALS,
            segments.document[packed.order],
            segments.start[packed.order],
        ),
    }
    if payload is not None:
        columns["payload"] = _fixed_binary(payload.reshape(len(payload), rows.shape[1] * payload.shape[2]))
    return pa.record_batch(columns)


def _records(offsets: NDArray[Any], length: NDArray[Any], document: NDArray[Any], start: NDArray[Any]) -> pa.ListArray:
    columns = numbers(length.astype(np.uint16)), numbers(document.astype(np.uint32)), numbers(start.astype(np.uint32))
    records = pa.StructArray.from_arrays(columns, ["length", "document", "start"])
    return pa.ListArray.from_arrays(numbers(offsets.astype(np.int32)), records)


def joined(blocks: list[pa.RecordBatch], first_documents: list[int], first: int) -> pa.RecordBatch:
    """Blocks one after the other, with sequence ids counted from `first`, and documents from the split's first one.

    first_documents  of each block, the index in the split of its first document
    """
    tokens = np.concatenate([tokens_of(block) for block in blocks])
    parts = [block.column("segments") for block in blocks]
    counts = np.concatenate([np.diff(values(part.offsets)) for part in parts])
    columns = [
        np.concatenate([values(part.values.field(name)) for part in parts]) for name in ("length", "document", "start")
    ]
    if first_documents[-1] + len(counts) * tokens.shape[1] >= 1 << 32:  # at most so many in the last block
        raise DataError("A split has more documents than 32 bits can number; make shards of parts of the corpus.")
    columns[1] = columns[1] + np.repeat(first_documents, [len(part.values) for part in parts]).astype(np.uint32)
    whole = {
        "tokens": pa.FixedSizeListArray.from_arrays(numbers(tokens.reshape(-1)), tokens.shape[1]),
        "sequence": numbers(np.arange(first, first + len(tokens), dtype=np.uint64)),
        "segments": _records(np.cumsum([0, *counts]), *columns),
    }
    if "payload" in blocks[0].schema.names:
        whole["payload"] = _fixed_binary(np.concatenate([_bytes_of(block, "payload") for block in blocks]))
    return pa.record_batch(whole)


def with_draws(rows: pa.RecordBatch, draws_K: list[NDArray[np.uint8]]) -> pa.RecordBatch:
    """Rows with their stored draws, each (R, L / 8)."""
    columns = dict(zip(rows.schema.names, rows.columns, strict=True))
    return pa.record_batch(columns | {f"draw_{number}": _fixed_binary(bits) for number, bits in enumerate(draws_K)})


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
            batch = reader.get_batch(0)
            _check(batch)
            return batch
    except (pa.ArrowException, OSError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        raise DataError(f"{path} cannot be read ({error}); run `maskmill verify shards`.") from None


def _check(batch: pa.RecordBatch) -> None:
    """Raises ArrowInvalid where an array would look outside the file, or a column is not what stands above.

    Only offsets are walked through, one for each row.
    """
    batch.validate(full=True)
    kinds = {"sequence": pa.uint64(), "segments": pa.list_(SEGMENT)}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        kind = column.type
        if name == "tokens":
            right = pa.types.is_fixed_size_list(kind) and kind.value_type in (pa.uint16(), pa.uint32())
            right = right and kind.list_size > 0
        elif name in kinds:
            right = kind == kinds[name]
        else:
            right = pa.types.is_fixed_size_binary(kind) and kind.byte_width > 0
        if not right or column.null_count:
            raise pa.ArrowInvalid(f"column {name} is {kind}, or has nulls")
    if not {"tokens", "segments"} <= set(batch.schema.names) or len(set(batch.schema.names)) != batch.num_columns:
        raise pa.ArrowInvalid(f"its columns are {', '.join(batch.schema.names)}")


def _column(batch: pa.RecordBatch, name: str) -> pa.Array:
    if name not in batch.schema.names:
        raise DataError(f"A file of shards lacks the column {name}; run `maskmill verify shards`.")
    return batch.column(name)


def segments_of(batch: pa.RecordBatch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Segment lengths with specials, row after row (S,), and where each row begins in them (R + 1,)."""
    column = batch.column("segments")
    offsets = values(column.offsets).astype(np.int64)
    lengths = values(column.values.field("length")).astype(np.int64)[offsets[0] : offsets[-1]]
    return lengths, offsets - offsets[0]


def tokens_of(batch: pa.RecordBatch) -> NDArray[Any]:
    """Token ids as in the memory map: uint16 or uint32 (R, L)."""
    column = batch.column("tokens")
    length = column.type.list_size
    end = column.offset + len(column)
    return values(column.values)[: end * length].reshape(-1, length)[column.offset :]


def stored_draw(batch: pa.RecordBatch, number: int) -> NDArray[np.uint8]:
    """A stored draw, as in the memory map: uint8 (R, L / 8)."""
    return _bytes_of(batch, f"draw_{number}")


def payload_of(batch: pa.RecordBatch, length: int) -> NDArray[np.uint8]:
    """The bytes that go along with each token, as in the memory map: uint8 (R, L, P)."""
    return _bytes_of(batch, "payload").reshape(len(batch), length, -1)


def _bytes_of(batch: pa.RecordBatch, name: str) -> NDArray[np.uint8]:
    column = _column(batch, name)
    width = column.type.byte_width
    end = column.offset + len(column)
    return np.frombuffer(column.buffers()[1].slice(0, end * width), np.uint8).reshape(-1, width)[column.offset :]


def draw(batch: pa.RecordBatch, masks: Masks, number: int) -> Iterator[NDArray[np.uint8]]:
    """One draw of 𝓜 of a shard, as stored: uint8 (R, L / 8), some rows at a time. See `masking.draw`."""
    lengths, offsets = segments_of(batch)
    tokens_RL, sequence_R = tokens_of(batch), values(batch.column("sequence"))
    some = max(1, POSITIONS_AT_ONCE // tokens_RL.shape[1])
    for at in range(0, batch.num_rows, some):
        bounds = offsets[at : at + some + 1]
        own = lengths[bounds[0] : bounds[-1]]
        sequence, tokens = sequence_R[at : at + some], tokens_RL[at : at + some]
        yield masking.pack_bits(masks.draw(number, sequence, own, bounds - bounds[0], tokens))
