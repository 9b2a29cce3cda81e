"""How much the compressed buffers of an Arrow file unpack to, asked before pyarrow allocates it.

Each compressed buffer begins with its unpacked length, which pyarrow believes and afterwards compares with what came
out. So the lengths are a true bound, and 40 kilobytes of them can stand for gigabytes. pyarrow shows a message's
metadata, but not where its buffers are; the format (Arrow columnar format 1.5, "Serialization and interprocess
communication"; Message.fbs, File.fbs) is read here as far as that.

    stream   message message …            file   "ARROW1" pad, stream, footer, its length, "ARROW1"
    message  0xFFFFFFFF, length of metadata, metadata (a flatbuffer), body
    footer   a flatbuffer, with the offset of each dictionary's and batch's message

Where something is damaged, pyarrow refuses it too, and by name: here it counts for nothing.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

MAGIC = b"ARROW1"
CONTINUES = b"\xff\xff\xff\xff"
"""Before the length, since Arrow 0.15."""
DICTIONARY, BATCH = 2, 3
"""Kinds of message that have a body."""
BLOCK = np.dtype([("offset", "<i8"), ("metadata", "<i4"), ("pad", "<i4"), ("body", "<i8")])
BUFFER = np.dtype([("offset", "<i8"), ("length", "<i8")])


def unpacked(source: pa.NativeFile) -> int:
    """Bytes that the compressed buffers of all messages come to; 0 where none is compressed. Moves the position."""
    source.seek(0)
    found = _of_file(source) if source.read(len(MAGIC)) == MAGIC else _of_stream(source)
    return sum(message.unpacked(source) for message in found)


@dataclass(frozen=True)
class Table:
    """A table of a flatbuffer: a vtable says at which offset each of its fields is, 0 where it has none."""

    data: bytes
    at: int

    def field(self, slot: int) -> int:
        """Position of a field; 0 where it is absent. Raises struct.error."""
        (back,) = struct.unpack_from("<i", self.data, self.at)
        (size,) = struct.unpack_from("<H", self.data, self.at - back)
        offset = struct.unpack_from("<H", self.data, self.at - back + 4 + 2 * slot)[0] if 4 + 2 * slot < size else 0
        return self.at + offset if offset else 0

    def table(self, slot: int) -> "Table | None":
        position = self.field(slot)
        return Table(self.data, position + struct.unpack_from("<I", self.data, position)[0]) if position else None

    def vector(self, slot: int, kind: np.dtype) -> np.ndarray:
        """Structures of a vector. Raises ValueError where it is longer than the data."""
        if not (position := self.field(slot)):
            return np.empty(0, kind)
        position += struct.unpack_from("<I", self.data, position)[0]
        (number,) = struct.unpack_from("<I", self.data, position)
        return np.frombuffer(self.data, kind, number, position + 4)

    def number(self, slot: int, form: str) -> int:
        position = self.field(slot)
        return int(struct.unpack_from(form, self.data, position)[0]) if position else 0


def _root(data: bytes) -> Table:
    return Table(data, struct.unpack_from("<I", data)[0])


@dataclass(frozen=True)
class Message:
    """A message's metadata, and where its body is."""

    table: Table
    body: int
    length: int

    def unpacked(self, source: pa.NativeFile) -> int:
        """Bytes that its buffers unpack to; 0 where they are not compressed."""
        total = 0
        try:
            for buffer in self._compressed():
                (size,) = struct.unpack("<q", _bytes(source, self.body + int(buffer["offset"]), 8))
                total += max(size, 0)  # -1: this one is not compressed
        except (struct.error, ValueError, OSError):
            pass
        return total

    def _compressed(self) -> np.ndarray:
        kind, batch = self.table.number(1, "<B"), self.table.table(2)
        if batch and kind == DICTIONARY:
            batch = batch.table(1)
        if not batch or kind not in (DICTIONARY, BATCH) or not batch.table(3):
            return np.empty(0, BUFFER)
        buffers = batch.vector(2, BUFFER)
        return buffers[buffers["length"] > 0]


def _bytes(source: pa.NativeFile, at: int, size: int) -> bytes:
    if not 0 <= at <= at + size <= source.size():
        raise ValueError("outside the file")
    source.seek(at)
    return source.read(size)


def _message(source: pa.NativeFile, at: int) -> Message | None:
    try:
        head = _bytes(source, at, 8)
        modern = head[:4] == CONTINUES
        (length,) = struct.unpack("<i", head[4:] if modern else head[:4])
        if length <= 0:  # the end of a stream
            return None
        metadata = at + (8 if modern else 4)
        table = _root(_bytes(source, metadata, length))
        return Message(table, metadata + length, max(table.number(3, "<q"), 0))
    except (struct.error, ValueError, OSError):
        return None


def _of_stream(source: pa.NativeFile) -> Iterator[Message]:
    at = 0
    while message := _message(source, at):
        yield message
        at = message.body + message.length


def _of_file(source: pa.NativeFile) -> Iterator[Message]:
    """By the footer, as pyarrow finds them; an offset may stand there twice."""
    try:
        end = source.size() - len(MAGIC) - 4
        (length,) = struct.unpack("<i", _bytes(source, end, 4))
        footer = _root(_bytes(source, end - length, length))
        blocks = [*footer.vector(2, BLOCK), *footer.vector(3, BLOCK)]
    except (struct.error, ValueError, OSError):
        return
    for block in blocks:
        if message := _message(source, int(block["offset"])):
            yield message
