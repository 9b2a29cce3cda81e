"""Reading one file of a source: documents out of bytes, with a name for everything that is wrong with them.

One bad byte or line never loses the rest of a file, and nothing passes silently:

    text (.txt .md .rst)    a line that is not UTF-8 is refused, the others stay; where more than one line in ten is
                            not, the whole file is (it has another encoding)
    records (.jsonl)        a bad line is refused, the others stay
    gzip                    told by its magic bytes; what was unpacked before the damage stays
    Parquet                 a row group that cannot be decoded is refused, the others stay
"""

import codecs
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from .artifacts import file_digest
from .cleaning import assemble, cut, normalise, prose, unwrap
from .errors import DataError
from .installed_docs import documentation
from .records import arrow, hub, parquet, record, records
from .streams import (
    Broken,
    Document,
    Item,
    Limits,
    Line,
    Reject,
    chunks,
    first_line,
    invalid,
    lines,
    too_long,
    universal,
)

BLOCK = 1 << 16
"""Bytes of text without a blank line that are looked at together."""
PROSE_CHARACTERS = 150
"""A docstring with less prose than this is left out."""
DOCUMENTATION = ("python", "metadata", "topics")


def documents(item: Item, limits: Limits) -> Iterator[Document | Reject]:
    """The documents of a file, in order, and all that was refused.

    Raises DataError when a file is no longer the one whose digest went into the key.
    """
    if item.kind == "hub":
        yield from hub(item, limits)
        return
    if len(item.digest) != 64:
        yield Reject("unreadable", bytes=item.size, detail=item.digest)
        return
    try:
        if file_digest(Path(item.path)) != item.digest:
            if item.kind not in DOCUMENTATION:
                raise DataError(f"{item.path} changed while the corpus was being made; run again.")
            yield Reject("changed_since_install", bytes=item.size)
            return
        found = False
        for event in READERS[item.kind](item, limits):
            found = True
            yield event
        if not found and item.kind not in DOCUMENTATION:
            yield Reject("empty_file", bytes=item.size)
    except Broken as broken:
        yield broken.reject
    except OSError as error:
        if item.kind not in DOCUMENTATION:  # it was readable a moment ago, when the key was made
            raise DataError(f"{item.path} cannot be read any more ({error.strerror}); run again.") from error
        yield Reject("unreadable", bytes=item.size, detail=error.strerror or type(error).__name__)


def _text(item: Item, limits: Limits) -> Iterator[Document | Reject]:
    refused = _other_encoding(item, limits)
    if refused:
        yield refused
        return
    rejects: list[Reject] = []
    for offset, text in assemble(_paragraphs(item, limits, rejects), limits.document_characters):
        yield Document(text, offset)
    yield from rejects


def _paragraphs(item: Item, limits: Limits, rejects: list[Reject]) -> Iterator[tuple[int, str]]:
    """(offset, paragraph) of a text file; what is refused goes to the list."""
    block: list[tuple[Line, bytes]] = []
    size = 0
    try:
        for line in lines(chunks(item, limits), universal, limits.line_bytes):
            if line.data is None:
                rejects.append(too_long(line, limits))
            elif line.data.strip():
                block.append((line, line.data))
                size += line.size
            if block and (size > BLOCK or line.data is None or not line.data.strip()):
                yield from _paragraph(block, rejects)
                block, size = [], 0
    except Broken as broken:
        rejects.append(broken.reject)
    if block:
        yield from _paragraph(block, rejects)


def _paragraph(block: list[tuple[Line, bytes]], rejects: list[Reject]) -> Iterator[tuple[int, str]]:
    try:
        text = b"".join(data for _, data in block).decode()
    except UnicodeDecodeError:
        text = ""
        for line, data in block:
            try:
                text += data.decode()
            except UnicodeDecodeError as error:
                rejects.append(invalid(line.offset, line.size, line.number, error))
    text = unwrap(normalise(text))
    if text:
        yield block[0][0].offset, text


def _other_encoding(item: Item, limits: Limits) -> Reject | None:
    """Refuses a whole file that is not UTF-8 text: a first pass over it, at memory speed when all is well."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    zeros = size = 0
    decodes = False
    try:
        for chunk in chunks(item, limits):
            zeros, size = zeros + chunk.count(0), size + len(chunk)
            decoder.decode(chunk)
        decoder.decode(b"", final=True)
        decodes = True
    except Broken:
        decodes = True  # the second pass says what is wrong
    except UnicodeDecodeError:
        pass
    if zeros * 10 > size:
        return Reject("binary", 0, item.size, None, "more than one byte in ten is zero")
    if decodes:
        return None
    bad = total = 0
    with suppress(Broken):
        for line in lines(chunks(item, limits), universal, limits.line_bytes):
            if line.data and line.data.strip():
                total += 1
                bad += not _decodes(line.data)
    if bad <= 1 or bad * 10 <= total:  # one bad line never loses the others, however few they are
        return None
    return Reject("not_utf8", 0, item.size, None, f"{bad} of {total} lines are not UTF-8; convert the file to UTF-8")


def _decodes(data: bytes) -> bool:
    try:
        data.decode()
        return True
    except UnicodeDecodeError:
        return False


def _documentation(item: Item, limits: Limits) -> Iterator[Document | Reject]:
    """Prose of installed documentation. A docstring without any is counted, not quarantined: it is not damaged."""
    try:
        for offset, raw in documentation(item.kind, Path(item.path)):
            text = normalise(prose(raw))
            if len(text) < PROSE_CHARACTERS:
                yield Reject("not_prose", offset, len(raw.encode(errors="surrogatepass")))
                continue
            for part in cut(text, limits.document_characters):
                yield from record(part, offset, limits)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Broken("broken_python", first_line(error), 0, item.size) from None


READERS: dict[str, Callable[[Item, Limits], Iterator[Document | Reject]]] = {
    "text": _text,
    "records": records,
    "parquet": parquet,
    "arrow": arrow,
    "python": _documentation,
    "metadata": _documentation,
    "topics": _documentation,
}
