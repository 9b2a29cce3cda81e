"""Reading one file of a source: documents out of bytes, with a name for everything that is wrong with them.

One bad byte or line never loses the rest of a file, and nothing passes silently:

    text (.txt .md .rst)    a line that is not UTF-8 is refused, the others stay; where more than one line in ten is
                            not, and one of them near the start, the whole file is (it has another encoding)
    records (.jsonl)        a bad line is refused, the others stay
    csv                     a bad record is refused, the others stay
    Parquet                 a row group that cannot be decoded is refused, the others stay
    packed files            told by their magic bytes; what was unpacked before the damage stays
    html                    one page, one document: it is taken or refused
"""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path

from . import remotes
from .archives import chunks
from .artifacts import file_digest
from .blocks import blocks
from .columns import arrow, parquet
from .errors import DataError
from .installed_docs import documentation
from .markup import html
from .pages import cut, each, pages
from .prose import prose
from .records import hub, record, records
from .streams import Broken, Document, Item, Limits, Reject, first_line, lines, universal
from .tables import delimited

HEAD = 1 << 20
"""Bytes that are looked at before a text file is taken for one."""
PROSE_CHARACTERS = 150
"""A docstring with less prose than this is left out."""
DOCUMENTATION = ("python", "metadata", "topics")
CHANGED = "{} changed while the corpus was being made; run again."


def documents(item: Item, limits: Limits) -> Iterator[Document | Reject]:
    """The documents of a file, in order, and all that was refused.

    Raises DataError when a file is no longer the one whose digest went into the key.
    """
    if item.kind == "hub":
        yield from hub(item, limits)
        return
    if len(item.digest) != 64 and not item.remote:
        yield Reject("unreadable", bytes=item.size, detail=item.digest)
        return
    try:
        before = () if item.remote else _stamp(item.path)
        if not item.remote and not _unchanged(item, before):
            if item.kind not in DOCUMENTATION:
                raise DataError(CHANGED.format(item.path))
            yield Reject("changed_since_install", bytes=item.size)
            return
        found = False
        try:
            for event in READERS[item.kind](item, limits):
                found = True
                yield event
            if not found and item.kind not in DOCUMENTATION:
                yield Reject("empty_file", bytes=item.size)
        except Broken as broken:
            yield broken.reject
        if remotes.identity_of(item.path) != item.digest if item.remote else _stamp(item.path) != before:
            raise DataError(CHANGED.format(item.label if item.remote else item.path))
    except OSError as error:
        if item.kind not in DOCUMENTATION:  # it was readable a moment ago, when the key was made
            why = error.strerror or first_line(error)
            raise DataError(f"{item.label} cannot be read any more ({why}); run again.") from error
        yield Reject("unreadable", bytes=item.size, detail=error.strerror or type(error).__name__)


def refuse_changed(item: Item) -> None:
    """For those who do not read to the end. Raises DataError when it is no longer the file that the key is of."""
    if item.kind == "hub":  # its revision is fixed
        return
    same = remotes.identity_of(item.path) == item.digest if item.remote else _unchanged(item, _stamp(item.path))
    if not same:
        raise DataError(CHANGED.format(item.label if item.remote else item.path))


def _stamp(path: str) -> tuple[int, ...]:
    """What changes when a file does; () for a pipe or a device. A modification time can be set back, ctime cannot."""
    state = os.stat(path)
    if not stat.S_ISREG(state.st_mode):
        return ()
    return state.st_size, state.st_mtime_ns, state.st_ino, state.st_ctime_ns


def _unchanged(item: Item, stamp: tuple[int, ...]) -> bool:
    """Is it the file whose digest was taken? Hashes it only where its stamp proves nothing."""
    if not stamp or item.stamp:
        return stamp != () and stamp == item.stamp
    return file_digest(Path(item.path)) == item.digest


def _text(item: Item, limits: Limits) -> Iterator[Document | Reject]:
    head, stream = _head(chunks(item, limits))
    refused = _other_kind(head, item, limits)
    if refused:
        yield refused
        return
    paragraphs = blocks(stream, limits, wrap=item.cut != "line", lone=item.cut == "line")
    if item.cut in ("paragraph", "line"):
        yield from each(paragraphs, limits.record_characters)
    else:
        yield from pages(paragraphs, limits.record_characters if item.cut == "file" else limits.document_characters)


def _head(stream: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """The first bytes of a stream, and the whole of it."""
    head: list[bytes] = []
    rest = stream
    try:
        while sum(map(len, head)) < HEAD and (chunk := next(stream, None)) is not None:
            head.append(chunk)
    except Broken as broken:
        rest = _raising(broken)
    return b"".join(head), chain(head, rest)


def _raising(broken: Broken) -> Iterator[bytes]:
    raise broken
    yield


def _other_kind(head: bytes, item: Item, limits: Limits) -> Reject | None:
    """Refuses a whole file that is not UTF-8 text. It is read twice only where its head has a line that is not."""
    if head.count(0) * 10 > len(head):
        return Reject("binary", 0, item.size, None, "more than one byte in ten is zero")
    if _decodes(head) or all(map(_decodes, universal(head)[:-1])):  # the last line may go on behind the head
        return None
    bad = total = 0
    with suppress(Broken):
        for line in lines(chunks(item, limits), universal, limits.line_bytes):
            if line.data and line.data.strip():
                total += 1
                bad += not _decodes(line.data)
    if bad <= 1 or bad * 10 <= total:  # one bad line never loses the others, however few they are
        return None
    return Reject("not_utf8", 0, item.size, None, f"{bad} of {total} lines are not UTF-8; set the source's `encoding`")


def _decodes(data: bytes) -> bool:
    try:
        return data.isascii() or data.decode() is not None
    except UnicodeDecodeError:
        return False


def _documentation(item: Item, limits: Limits) -> Iterator[Document | Reject]:
    """Prose of installed documentation. A docstring without any is counted, not quarantined: it is not damaged."""
    try:
        for offset, raw in documentation(item.kind, Path(item.path)):
            text = prose(raw)
            if len(text) < PROSE_CHARACTERS:
                yield Reject("not_prose", offset, len(raw.encode(errors="surrogatepass")))
                continue
            for part in cut(text, limits.document_characters):
                yield from record(part, offset, limits)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Broken("broken_python", first_line(error), 0, item.size) from None


READERS: dict[str, Callable[[Item, Limits], Iterator[Document | Reject]]] = {
    "text": _text,
    "html": html,
    "records": records,
    "csv": delimited,
    "parquet": parquet,
    "arrow": arrow,
    "python": _documentation,
    "metadata": _documentation,
    "topics": _documentation,
}
