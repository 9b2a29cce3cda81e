"""Rows of CSV. Each text is a document of its own; its offset is that of the record."""

import csv
from collections import deque
from collections.abc import Iterator
from typing import Any

from .archives import chunks
from .records import named, record
from .streams import Broken, Document, Item, Limits, Line, Reject, first_line, lines, too_long, universal

AGAIN = 1 << 31
"""Bytes (and fifty for each line) that are read again behind quotes that nobody closed; then the rest of the file is
refused: lines that each open a quote would be read some ten thousand times."""
DELIMITERS = ",;\t|"
RECORD_LINES = 1 << 16
"""A record may go over so many lines: a quote that nobody closed takes in what follows up to there, or line_bytes."""


def delimited(item: Item, limits: Limits) -> Iterator[Document | Reject]:
    """Rows of CSV with a header, whose delimiter is found out (a tab in .tsv). Raises Broken.

    Strict: a quote in the wrong place refuses its record, and not those behind it, by taking them in. What is refused
    is the record's first line; the line after it is read as a record of its own.
    """
    csv.field_size_limit(limits.line_bytes)
    feed = _Feed(item, limits)
    column, names = _header(feed, item)
    reader = feed.reader()
    while True:
        try:
            fields = next(reader, None)
        except Broken:
            if feed.taken:
                yield feed.reject("the file breaks off inside this record")
            raise
        except (csv.Error, _Endless) as error:
            yield feed.give_back(first_line(error))
            reader = feed.reader()
            continue
        if fields is None:
            return
        if fields:
            yield from _row(fields, column, names, feed, limits)
        feed.forget()


def _row(
    fields: list[str], column: int, names: list[str], feed: "_Feed", limits: Limits
) -> Iterator[Document | Reject]:
    if feed.undecodable:
        line = feed.undecodable
        yield Reject("invalid_utf8", feed.taken[0].offset, feed.size, line.number, "a record that is not UTF-8")
    elif len(fields) > len(names) or len(fields) <= column:
        yield feed.reject(f"the record has {len(fields)} fields, the header {len(names)}")
    else:
        line = feed.taken[0]
        yield from record(fields[column], line.offset, limits, line)


class _Endless(Exception):
    pass


class _Feed:
    """Lines for csv.reader, which asks for one line after the other until a record is complete."""

    def __init__(self, item: Item, limits: Limits) -> None:
        self.limits = limits
        self.source = lines(chunks(item, limits), universal, limits.line_bytes)
        self.returned: deque[Line] = deque()
        self.delimiter = ","
        self.taken: list[Line] = []
        """Lines of the record that is being read, and their size."""
        self.size = self.again = 0
        self.undecodable: Line | None = None

    def line(self) -> Line | None:
        return self.returned.popleft() if self.returned else next(self.source, None)

    def reader(self) -> Any:
        return csv.reader(self._texts(), delimiter=self.delimiter, strict=True)

    def _texts(self) -> Iterator[str]:
        while line := self.line():
            full = self.size + line.size > self.limits.line_bytes or len(self.taken) == RECORD_LINES
            if line.data is None or full:
                self.returned.appendleft(line)
                raise _Endless(f"a quote is not closed within {self.limits.line_bytes} bytes and {RECORD_LINES} lines")
            self.taken.append(line)
            self.size += line.size
            try:
                text = line.data.decode()
            except UnicodeDecodeError:
                self.undecodable = line
                text = line.data.decode(errors="replace")  # so that the record ends where it ends
            yield text

    def forget(self) -> None:
        self.taken.clear()
        self.size, self.undecodable = 0, None

    def reject(self, detail: str) -> Reject:
        line = self.taken[0]
        return Reject("broken_csv", line.offset, self.size, line.number, detail)

    def give_back(self, detail: str) -> Reject:
        """Refuses the first line of a record; those behind it will be read again."""
        self.again += self.size + 50 * len(self.taken)
        if self.again > AGAIN and self.taken:
            raise Broken("broken_csv", "too many quotes that nobody closed", self.taken[0].offset, self.size)
        self.returned.extendleft(reversed(self.taken[1:]))
        line = self.taken[0] if self.taken else self.line()
        self.forget()
        assert line is not None  # either a record has begun, or its first line is what is too long
        if line.data is None:
            return too_long(line, self.limits)
        return Reject("broken_csv", line.offset, line.size, line.number, detail)


def _header(feed: _Feed, item: Item) -> tuple[int, list[str]]:
    """(column of the text, names of all columns); the feed goes on behind the header."""
    line = feed.line()
    while line and line.data is not None and not line.data.removeprefix(b"\xef\xbb\xbf").strip():
        line = feed.line()
    if line is None:
        raise Broken("empty_file", "", 0, item.size)
    data = (line.data or b"").removeprefix(b"\xef\xbb\xbf")
    path = item.path.partition("?")[0].lower() if item.remote else item.path.lower()
    feed.delimiter = "\t" if ".tsv" in path[-9:] else _delimiter(data.decode(errors="replace"), item.text_key)
    feed.returned.appendleft(Line(line.number, line.offset, data if line.data else None, line.size))
    try:
        names = [name.strip() for name in next(feed.reader())]
    except (csv.Error, _Endless, StopIteration) as error:
        raise Broken("broken_csv", f"the header: {first_line(error)}", 0, item.size) from None
    if names.count(item.text_key) != 1:
        reason = "duplicate_key" if item.text_key in names else "missing_key"
        problem = "two columns are called" if item.text_key in names else "no column"
        raise Broken(reason, f"{problem} {item.text_key!r}; it has {named(names)}", 0, item.size)
    feed.forget()
    return names.index(item.text_key), names


def _delimiter(header: str, key: str) -> str:
    """Which of them cuts the header so that there is a column of this name; or into the most parts."""

    def merit(delimiter: str) -> tuple[bool, int]:
        names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
        return key in names, len(names)

    return max(DELIMITERS, key=merit)
