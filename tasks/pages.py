"""Text files: hard-wrapped lines become paragraphs, paragraphs become documents.

Lines end at "\\n", "\\r\\n" or a lone "\\r": str.splitlines() also splits on form feed, U+0085 and U+2028, which would
make lines out of nothing. `unwrap` and `assemble` are the rules, as they are read; paragraphs.py applies the first to a
megabyte at a time, and `pages` takes its paragraphs in bulk.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import pairwise

from .paragraphs import MARKUP, Block
from .streams import Document, Reject

_SOLID = re.compile(r"\S")


def unwrap(paragraph: str) -> str:
    """Joins the lines of a hard-wrapped paragraph; leaves verse, lists, tables and long lines as they are.

    A line is joined to the next where it was full: the next word would not have fitted into the paragraph's width
    (give or take 8, for wrapping by hand). Only where that width is 50 to 100 and most lines go on in lower case;
    never into a line that is indented or opens a list. A newline inside a sentence costs a byte-level tokenizer the
    word's usual token, so it is worth the trouble.
    """
    lines = paragraph.split("\n")
    width = max(map(len, lines))
    if len(lines) == 1 or not 50 <= width <= 100:
        return paragraph
    if sum(line[:1].isupper() for line in lines[1:]) * 2 > len(lines) - 1:
        return paragraph
    joined = lines[0]
    for before, line in pairwise(lines):
        word = line.split(" ", 1)[0]
        full = len(before) + 1 + len(word) > width - 8
        joined += (" " if full and line and not MARKUP.match(line) else "\n") + line
    return joined


def assemble(paragraphs: Iterable[tuple[int, str]], size: int) -> Iterator[tuple[int, str]]:
    """Documents of at most `size` characters from (offset, paragraph), cut at blank lines wherever possible.

    A paragraph longer than `size` is cut at the end of a line, a sentence or a word, in this order of preference.
    The offset of a document is that of its first paragraph.
    """
    page = _Page(size)
    for offset, paragraph in paragraphs:
        for piece in _pieces(paragraph, size):
            yield from page.add(offset, piece, len(piece))
    yield from page.close()


def pages(blocks: Iterable[Block | Reject], size: int) -> Iterator[Document | Reject]:
    """What `assemble` makes of the paragraphs of these blocks, many paragraphs at a step."""
    page = _Page(size)
    for block in blocks:
        if isinstance(block, Reject):
            yield block
            continue
        for offset, text, length in _steps(block, page):
            for start, document in page.add(offset, text, length):
                yield Document(document, start, True)
    for start, document in page.close():
        yield Document(document, start, True)


def each(blocks: Iterable[Block | Reject], size: int) -> Iterator[Document | Reject]:
    """Every paragraph a document of its own, cut only where it is longer than `size` characters."""
    for block in blocks:
        if isinstance(block, Reject):
            yield block
            continue
        for number, offset in enumerate(block.offset):
            for part in cut(block.text(number), size):
                yield Document(part, offset)


def _steps(block: Block, page: "_Page") -> Iterator[tuple[int, str, int]]:
    """(offset, text, characters): paragraphs that go on the page together, or a piece of one that is longer."""
    number = 0
    while number < len(block):
        if block.characters[number] > page.size:
            for piece in _pieces(block.text(number), page.size):
                yield block.offset[number], piece, len(piece)
            number += 1
            continue
        room = page.size - page.length  # a paragraph after another costs two characters for the blank line
        last = bisect_right(block.reach, block.reach[number] + room + 2, number) - 1
        last = min(max(last, number + 1), block.together(number))
        yield block.offset[number], block.text(number, last), block.reach[last] - block.reach[number] - 2
        number = last


class _Page:
    """The document that is being filled."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.parts: list[str] = []
        self.start = self.length = 0

    def add(self, offset: int, text: str, length: int) -> Iterator[tuple[int, str]]:
        if self.parts and self.length + length > self.size:
            yield from self.close()
        self.start = self.start if self.parts else offset
        self.parts.append(text)
        self.length += length + 2

    def close(self) -> Iterator[tuple[int, str]]:
        if self.parts:
            yield self.start, "\n\n".join(self.parts)
        self.parts, self.length = [], 0


def _pieces(text: str, size: int) -> Iterator[str]:
    at = 0
    while len(text) - at > size:
        least = at + size // 2
        ends = (text.rfind(end, least, at + size) + len(end.rstrip(" ")) for end in ("\n", ". ", " "))
        cut = next((cut for cut in ends if cut >= least), at + size)
        if piece := text[at:cut].rstrip():
            yield piece
        solid = _SOLID.search(text, cut)
        at = solid.start() if solid else len(text)
    if rest := text[at:]:
        yield rest


def cut(text: str, size: int) -> list[str]:
    """A text as documents of at most `size` characters; as it is where it is no longer."""
    return [text] if len(text) <= size else [part for _, part in assemble([(0, p) for p in text.split("\n\n")], size)]
