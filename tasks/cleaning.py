"""What a text goes through before it is a document: normal form, unwrapping, cutting, prose, identity, split.

Pure functions on strings; no files, no state. Lines are split on "\\n" only: str.splitlines() also splits on form feed,
U+0085 and U+2028, which would make lines out of nothing.
"""

import hashlib
import inspect
import re
import unicodedata
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import pairwise

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff]")
_BREAKING = "\x0b\x0c\x1c\x1d\x1e\x1f\x85"
"""Control characters that separate words; all others stand inside them."""


def normalise(text: str) -> str:
    """Normal form: NFC, "\\n" the only line end, no trailing blanks, one blank line at most. Idempotent.

    Of control characters only the tab stays: a form feed and its like become a blank, all others vanish, and so do
    byte order marks.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if _CONTROL.search(text):
        text = _CONTROL.sub(lambda found: " " if found[0] in _BREAKING else "", text)
    text = "\n".join(line.rstrip() for line in unicodedata.normalize("NFC", text).split("\n"))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def document_id(text: bytes) -> str:
    """32 hex characters: the first 128 bits of the sha256 of the normalised text in UTF-8."""
    return hashlib.sha256(text).hexdigest()[:32]


def split_of(identifier: str, validation: Fraction, test: Fraction) -> str:
    """Split of a document: a function of its own text alone, so adding data never moves one.

    The first 64 bits of the id are a uniform number: test from the low end, validation from the high end, so that a
    change of one fraction does not reshuffle the other.
    """
    number = int(identifier[:16], 16)
    if number * test.denominator < test.numerator << 64:
        return "test"
    if ((1 << 64) - 1 - number) * validation.denominator < validation.numerator << 64:
        return "validation"
    return "train"


# Text files: hard-wrapped lines become paragraphs, paragraphs become documents.

_MARKUP = re.compile(r"\s|[-*+•|>#=]|\.\.|```|\d+[.)]\s")


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
        joined += (" " if full and line and not _MARKUP.match(line) else "\n") + line
    return joined


def assemble(paragraphs: Iterable[tuple[int, str]], size: int) -> Iterator[tuple[int, str]]:
    """Documents of at most `size` characters from (offset, paragraph), cut at blank lines wherever possible.

    A paragraph longer than `size` is cut at the end of a line, a sentence or a word, in this order of preference.
    The offset of a document is that of its first paragraph.
    """
    parts: list[str] = []
    start = length = 0
    for offset, paragraph in paragraphs:
        for piece in _pieces(paragraph, size):
            if parts and length + len(piece) > size:
                yield start, "\n\n".join(parts)
                parts, length = [], 0
            start = start if parts else offset
            parts.append(piece)
            length += len(piece) + 2
    if parts:
        yield start, "\n\n".join(parts)


def _pieces(text: str, size: int) -> Iterator[str]:
    while len(text) > size:
        cuts = (text.rfind(end, size // 2, size) + len(end.rstrip(" ")) for end in ("\n", ". ", " "))
        cut = next((cut for cut in cuts if cut >= size // 2), size)
        yield text[:cut].rstrip()
        text = text[cut:].lstrip()
    if text:
        yield text


def cut(text: str, size: int) -> list[str]:
    """A normalised text as documents of at most `size` characters."""
    return [text] if len(text) <= size else [part for _, part in assemble([(0, p) for p in text.split("\n\n")], size)]


# Documentation: what in a docstring or README reads as prose.

_INLINE = (
    (re.compile(r"<!--.*?-->|</?\w[^<>\n]*>", re.S), ""),  # HTML
    (re.compile(r"!\[[^]]*\]\([^)]*\)|\|\w+\|"), ""),  # pictures, badges
    (re.compile(r"\[([^]\n]+)\](?:\([^)\s]*\)|\[[^]\n]*\])"), r"\1"),  # Markdown links
    (re.compile(r":[\w:+.-]+:`[~!]?(?:[\w.]+\.)?(\w+)(?:\(\))?`"), r"\1"),  # :class:`~a.b.C` -> C
    (re.compile(r":[\w:+.-]+:`([^`<]+?)(?:\s*<[^>`]*>)?`"), r"\1"),
    (re.compile(r"`([^`<\n]+?)\s*<[^>`\n]*>`_{1,2}"), r"\1"),  # reST links
    (re.compile(r"(`{1,2})([^`\n]+)\1_?"), r"\2"),
    (re.compile(r"(\*{1,2})(?=\S)([^*\n]+?)(?<=\S)\1"), r"\2"),
)
_ITEM = re.compile(
    r"(?:[-*+•]|\d+[.)])\s+"  # a list item
    r"|[:@](?:param|type|raises?|returns?|rtype|keyword|arg|var|ivar)\b[^:]*:\s*"  # reST field
    r"|\*{0,2}`{0,2}[\w.]+`{0,2}(?:\s*\([^)]*\):\s+|:\s+(?=[A-Z*]))"  # Google: name (type): text
)
_DROPPED = re.compile(r"\s*(?:>>>|\.\.\s|\.\.\.\s|[|#$%{}]|[-=~^\"'*+_]{3,}\s*$)")
_WORD = re.compile(r"[(\[\"'“‘]*[^\W\d_]+(?:[-'’][^\W\d_]+)*[)\]\"'”’]*[.,;:!?]*[)\]\"'”’]*")
_COMMON = frozenset(
    re.findall(r"\w+", "a an and are as at be by can for from if in is it not of on or that the this to when with")
)


def prose(documentation: str) -> str:
    """The paragraphs of a docstring or README that read as English sentences; "" where there are none.

    Code, doctests, tables, headings, directives, signatures and the heads of parameter lists go; the sentences that
    describe a parameter stay. Markup inside a sentence is taken off.
    """
    kept = []
    for paragraph in _paragraphs(inspect.cleandoc(documentation)):
        for pattern, replacement in _INLINE:
            paragraph = pattern.sub(replacement, paragraph)
        paragraph = " ".join(paragraph.split())
        if reads_as_prose(paragraph):
            kept.append(paragraph)
    return "\n\n".join(kept)


def _paragraphs(text: str) -> Iterator[str]:
    """Runs of lines that belong together: same indentation, or the going on of a long line."""
    run: list[str] = []
    level, fenced, literal = 0, False, -1  # literal: indentation of the line that opened a `::` block
    for line in [*text.split("\n"), ""]:
        body = line.strip()
        indent = len(line) - len(line.lstrip())
        if body.startswith(("```", "~~~")):
            fenced, body = not fenced, ""
        if body and literal >= 0 and indent <= literal:
            literal = -1
        hidden = fenced or literal >= 0 or _DROPPED.match(body) is not None
        item = _ITEM.match(body)
        goes_on = run and not item and (indent == level or (indent > level and len(run[-1]) >= 50))
        if run and (not body or hidden or not goes_on):
            yield " ".join(run)
            run = []
        if body and not hidden:
            level = indent if not run else level
            run.append(body[item.end() :] if item else body)
        if body.endswith("::"):
            literal = indent


def reads_as_prose(paragraph: str) -> bool:
    """At least eight words, an end of sentence, three quarters plain words, and enough of the commonest ones."""
    words = paragraph.split(" ")
    if len(words) < 8 or paragraph[-1] not in ".!?:)" or not paragraph[0].isalpha():
        return False
    plain = [word for word in words if _WORD.fullmatch(word)]
    common = sum(word.lower() in _COMMON for word in words)
    return len(plain) * 4 >= len(words) * 3 and common * 6 >= len(words)
