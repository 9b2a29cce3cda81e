"""Bytes of a source file as lines, and the names of what can be wrong with them."""

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from .errors import UsageError

CHUNK = 1 << 20


@dataclass(frozen=True)
class Limits:
    """How much of a thing is taken as one thing."""

    document_characters: int = 4096
    """A text file is cut at blank lines into documents of at most this size."""
    record_characters: int = 1_000_000
    """A longer text of a JSON line or a Parquet row is cut the same way."""
    line_bytes: int = 16 << 20
    """A longer line is refused without being held in memory."""
    archive_ratio: int = 200
    """A packed file that unpacks to more than this times its size is a bomb: it is read no further."""

    def __post_init__(self) -> None:
        for name, least in (
            ("document_characters", 64),
            ("record_characters", 64),
            ("line_bytes", 64),
            ("archive_ratio", 1),
        ):
            if getattr(self, name) < least:
                raise UsageError(f"corpus.limits.{name} is {getattr(self, name)}; use at least {least}.")


@dataclass(frozen=True)
class Item:
    """One file of a source."""

    kind: str
    """text, html, records, csv, parquet, arrow, hub, python, metadata, topics."""
    path: str
    """A local path, or a URL where it is remote."""
    label: str
    """Source name and relative path: the column `source`."""
    digest: str
    """sha256, hex; of a remote file its ETag or version, of a hub dataset its revision; or why there is none."""
    size: int
    text_key: str = "text"
    """Dotted path of the text, where there are keys."""
    cut: str = "pages"
    """What a document of a text file is: pages, file, paragraph, line."""
    encoding: str = "utf-8"
    """Of text, html, records and csv."""
    stamp: tuple[int, ...] = ()
    """size, mtime_ns, inode and ctime_ns of a local file when its digest was taken; () where they prove nothing."""
    remote: bool = False
    stop_bytes: int = 0
    """Reading may stop once it has yielded this much text; 0 reads all."""


@dataclass(slots=True)
class Document:
    """A text as it stands in the file. `offset` counts bytes of the (unpacked) file, or rows where it has rows."""

    text: str
    offset: int
    tidy: bool = False
    """Its lines end in "\\n" without blanks of ASCII before it, and no two blank ones come together."""


@dataclass(frozen=True)
class Reject:
    """Something that is no document, and why."""

    reason: str
    offset: int = 0
    bytes: int = 0
    line: int | None = None
    detail: str = ""


class Broken(Exception):
    """The rest of a file cannot be read. Carries a Reject."""

    def __init__(self, reason: str, detail: str, offset: int = 0, size: int = 0) -> None:
        super().__init__(reason)
        self.reject = Reject(reason, offset, size, None, detail)


@dataclass(frozen=True)
class Line:
    number: int
    offset: int
    data: bytes | None
    """With its end; None where it is longer than the limit."""
    size: int


def lines(chunks: Iterable[bytes], split: Callable[[bytes], list[bytes]], limit: int) -> Iterator[Line]:
    """Lines of a stream, in memory bounded by the limit. A line that Broken cuts off is part of what is refused."""
    number, offset, skipped, rest = 1, 0, 0, b""
    try:
        for chunk in chunks:
            pieces = split(rest + chunk)
            rest = b"" if pieces[-1].endswith(b"\n") else pieces.pop()
            for piece in pieces:
                size = skipped + len(piece)
                yield Line(number, offset, piece if size <= limit else None, size)
                number, offset, skipped = number + 1, offset + size, 0
            if skipped or len(rest) > limit:
                skipped, rest = skipped + len(rest), b""
    except Broken as broken:
        reject = broken.reject
        size = reject.bytes + skipped + len(rest)
        raise Broken(reject.reason, reject.detail, offset if size else reject.offset, size) from None
    if rest or skipped:
        yield Line(number, offset, None if skipped else rest, skipped + len(rest))


def newlines(data: bytes) -> list[bytes]:
    return io.BytesIO(data).readlines()


def universal(data: bytes) -> list[bytes]:
    return data.splitlines(keepends=True)  # of bytes: splits on \n, \r and \r\n only


def invalid(offset: int, size: int, line: int | None, error: UnicodeDecodeError) -> Reject:
    return Reject("invalid_utf8", offset, size, line, f"byte {error.start}: {error.reason}")


def too_long(line: Line, limits: Limits) -> Reject:
    return Reject("line_too_long", line.offset, line.size, line.number, f"more than {limits.line_bytes} bytes")


def first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).split("\n", 1)[0][:200]
