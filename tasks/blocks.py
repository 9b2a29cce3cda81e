"""Bytes of a text file as blocks of paragraphs, and what has to be refused."""

import codecs
from collections.abc import Iterable, Iterator

import numpy as np

from .paragraphs import Block, Lines, find_lines
from .streams import Broken, Limits, Line, Reject, invalid, too_long

BLOCK = 1 << 18
"""Bytes that are looked at together: with their numbers, they fit into the processor's cache."""


def blocks(
    chunks: Iterable[bytes], limits: Limits, wrap: bool = True, lone: bool = False, size: int = BLOCK
) -> Iterator[Block | Reject]:
    """The paragraphs of a file, in memory bounded by `limits.line_bytes`.

    A line that is not UTF-8 or too long is refused, and divides paragraphs as a blank line does. Where the file breaks
    off, what was read before it stays; the line that is cut off belongs to what is refused.
    """
    reader = _Reader(limits, wrap, lone)
    held: list[bytes] = []
    total = 0
    try:
        for chunk in chunks:
            for at in range(0, len(chunk), size):
                held.append(chunk[at : at + size])
                total += len(held[-1])
                ends = b"\n" in held[-1] or b"\r" in held[-1]
                most = 0 if ends or reader.skipped else limits.line_bytes  # a long line is put together once
                if total > most and total >= max(size, len(codecs.BOM_UTF8)):
                    yield from reader.take(_joined(held))
                    total = 0
    except Broken as broken:
        yield from reader.take(_joined(held), closing=True)
        yield reader.cut_off(broken.reject)
    else:
        yield from reader.take(_joined(held), closing=True, ended=True)


def _joined(held: list[bytes]) -> bytes:
    """The pieces as one; their memory is free at once."""
    data = b"".join(held)
    held.clear()
    return data


class _Reader:
    """Between two portions of bytes: the last paragraph, which may go on, or the size of a line that is too long."""

    def __init__(self, limits: Limits, wrap: bool, lone: bool) -> None:
        self.limits, self.wrap, self.lone = limits, wrap, lone
        self.rest = b""
        self.offset, self.number, self.skipped = 0, 1, 0

    def take(self, data: bytes, closing: bool = False, ended: bool = False) -> Iterator[Block | Reject]:
        """What is certain now.

        closing   no more bytes come: the last paragraph is complete
        ended     and the last line is
        """
        data = self.rest + data
        if not self.offset and data.startswith(codecs.BOM_UTF8):
            data, self.offset = data[len(codecs.BOM_UTF8) :], len(codecs.BOM_UTF8)
        if self.skipped:
            size = _first_line(data, ended)
            if not size and not ended:
                self._skip(data)
                return
            yield too_long(Line(self.number, self.offset, None, self.skipped + size), self.limits)
            self._advance(self.skipped + size, 1)
            data, self.skipped = data[size:], 0
        whole = len(data) if ended else max(data.rfind(b"\n"), data.rfind(b"\r", 0, -1)) + 1
        endless = len(data) - whole > self.limits.line_bytes
        self.rest = data
        if whole:
            yield from self._block(data[:whole], closing or endless)
        if endless:
            self._skip(self.rest)

    def _skip(self, data: bytes) -> None:
        self.rest = b"\r" if data.endswith(b"\r") else b""  # the line ends there, or behind the "\n" that follows
        self.skipped += len(data) - len(self.rest)

    def _advance(self, size: int, lines: int) -> None:
        self.offset, self.number = self.offset + size, self.number + lines

    def _block(self, data: bytes, closing: bool) -> Iterator[Block | Reject]:
        lines = find_lines(data)
        blank = lines.end == lines.start
        for number, reject in self._refused(data, lines):
            blank[number] = True
            yield reject
        taken = len(blank)
        if not blank.all():
            solid = np.flatnonzero(~blank)
            apart = np.diff(solid, prepend=-2) > 1
            block = Block(data, lines[solid], apart, self.offset, self.wrap, self.lone)
            if not closing and not blank[-1]:
                taken = int(solid[block.drop_last()])
            if len(block):
                yield block
        size = int(lines.start[taken]) if taken < len(blank) else len(data)
        self.rest = self.rest[size:]
        self._advance(size, taken)

    def _refused(self, data: bytes, lines: Lines) -> list[tuple[int, Reject]]:
        """(line of the block, why it is refused)."""
        refused = []
        for number in np.flatnonzero(lines.stop - lines.start > self.limits.line_bytes).tolist():
            refused.append((number, too_long(self._line(lines, number), self.limits)))
        if not _decodes(data):
            long = {number for number, _ in refused}
            for number, (start, stop) in enumerate(zip(lines.start.tolist(), lines.stop.tolist())):
                try:
                    data[start:stop].decode()
                except UnicodeDecodeError as error:
                    if number not in long:
                        line = self._line(lines, number)
                        refused.append((number, invalid(line.offset, line.size, line.number, error)))
        return sorted(refused, key=lambda one: one[0])

    def _line(self, lines: Lines, number: int) -> Line:
        start, stop = int(lines.start[number]), int(lines.stop[number])
        return Line(self.number + number, self.offset + start, None, stop - start)

    def cut_off(self, reject: Reject) -> Reject:
        """What broke the file off, and the line that it cut off."""
        size = self.skipped + len(self.rest)
        return Reject(
            reject.reason, self.offset if size else reject.offset, reject.bytes + size, reject.line, reject.detail
        )


def _first_line(data: bytes, ended: bool) -> int:
    """Bytes up to the first line end and with it, 0 where there is none; a last "\\r" may be half of one."""
    newline = data.find(b"\n")
    line = data[: newline + 1] if newline >= 0 else data
    at = line.find(b"\r", 0, len(line) if ended else -1) if newline < 0 else line.find(b"\r", 0, -2)
    return at + 1 or newline + 1 or (len(data) if ended else 0)


def _decodes(data: bytes) -> bool:
    try:
        return data.isascii() or data.decode() is not None
    except UnicodeDecodeError:
        return False
