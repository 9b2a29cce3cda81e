"""Paragraphs of a text file, a megabyte at a time with numpy: what pages.unwrap does line by line, at memory speed.

A paragraph is a run of lines that are not blank. Its text is that of its lines without the blanks at their ends, each
with "\\n" behind it, or with " " where the line was hard-wrapped; between two paragraphs stands one empty line. So a
text is the same whatever its line ends are, and where one block ends and the next begins makes no difference.
"""

import re
from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

MARKUP = re.compile(r"\s|[-*+•|>#=]|\.\.|```|\d+[.)]\s")
"""What no line is joined to: an indented line, an item of a list, a row of a table, a heading."""
PARAGRAPH = 1 << 16
"""Bytes of lines without a blank one between them that are a paragraph, whatever comes next."""
UPPER, SHUT, ASK = 1, 2, 4
"""What a line's first character says: a capital; MARKUP matches; MARKUP has to be asked."""
_BLANK = np.zeros(256, bool)
_BLANK[list(b" \t\r\n\x0b\x0c")] = True

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(slots=True)
class Lines:
    """Lines of a block: bytes [start, end) without the line end and the blanks before it; [start, stop) with them."""

    start: Ints
    end: Ints
    stop: Ints

    def __getitem__(self, which: Any) -> "Lines":
        return Lines(self.start[which], self.end[which], self.stop[which])


def find_lines(data: bytes) -> Lines:
    """Lines end at "\\n", "\\r\\n" or a lone "\\r"; the last one may lack its end. `data` is not empty."""
    array = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(array == 10)
    if b"\r" in data:
        returns = np.flatnonzero(array == 13)
        follower = array[np.minimum(returns + 1, len(array) - 1)]
        lone = returns[follower != 10]
        ends = np.sort(np.concatenate([ends, lone])) if len(lone) else ends
    stop = ends + 1
    if not len(ends) or stop[-1] < len(data):
        ends, stop = np.append(ends, len(data)), np.append(stop, len(data))
    start = np.concatenate([[0], stop[:-1]])
    return Lines(start, _stripped(array, start, ends), stop)


def _stripped(array: NDArray[np.uint8], start: Ints, end: Ints) -> Ints:
    """Ends of the lines without the blanks before them: one at most, mostly (the "\\r" of "\\r\\n")."""
    end = end.copy()
    more = np.flatnonzero((end > start) & _BLANK[array[end - 1]])
    for _ in range(8):
        end[more] -= 1
        more = more[(end[more] > start[more]) & _BLANK[array[end[more] - 1]]]
    if len(more):  # a long tail of blanks
        solid = np.concatenate([[-1], np.flatnonzero(~_BLANK[array])])
        end[more] = np.maximum(start[more], solid[np.searchsorted(solid, end[more]) - 1] + 1)
    return end


class Block:
    """Paragraphs of a run of whole lines.

    data    UTF-8 in all lines that count
    lines   of `data`, none of them blank; `apart` is where a line does not follow the one before it directly
    wrap    whether hard-wrapped lines are joined
    lone    every line is a paragraph
    """

    def __init__(self, data: bytes, lines: Lines, apart: Bools, offset: int, wrap: bool, lone: bool = False) -> None:
        array = np.frombuffer(data, np.uint8)
        leading = None
        if not data.isascii():  # where a character starts; one more, for reduceat
            leading = np.ones(len(data) + 1, bool)
            np.greater_equal(array.view(np.int8), -64, out=leading[:-1])
        first = np.ones(len(apart), bool) if lone else _broken_up(lines, apart)
        heads = np.flatnonzero(first)
        characters = _count(leading, lines.start, lines.end)
        joined = _joined(data, array, leading, lines, characters, first) if wrap else np.zeros(len(first), bool)
        del leading
        text, moved = _rewritten(array, lines, apart, joined)
        self.data = text.data
        tails = np.append(heads[1:], len(first)) - 1
        self.heads: list[int] = heads.tolist()
        self.start: list[int] = (lines.start - moved)[heads].tolist()
        self.stop: list[int] = (lines.end - moved)[tails].tolist()
        self.offset: list[int] = (lines.start[heads] + offset).tolist()
        self.characters: list[int] = (np.add.reduceat(characters + 1, heads) - 1).tolist()
        self.reach = [0, *accumulate(number + 2 for number in self.characters)]
        """Characters up to a paragraph, with two for each blank line."""
        self.breaks: list[int] = [*np.flatnonzero(~apart[heads]).tolist(), len(heads)]
        """Paragraphs that no blank line comes before."""

    def __len__(self) -> int:
        return len(self.start)

    def drop_last(self) -> int:
        """Takes the last paragraph off; returns which line it starts at."""
        for column in (self.start, self.stop, self.offset, self.characters, self.reach):
            column.pop()
        self.breaks = [*self.breaks[: bisect_right(self.breaks, len(self) - 1)], len(self)]
        return self.heads.pop()

    def text(self, first: int, last: int = 0) -> str:
        """Of one paragraph, or of those up to `last`, which has to be one of `together`."""
        return str(self.data[self.start[first] : self.stop[(last or first + 1) - 1]], "utf-8")

    def together(self, first: int) -> int:
        """The end of the paragraphs, from this one on, that have blank lines between them."""
        return self.breaks[bisect_right(self.breaks, first)]


def _count(leading: Bools | None, start: Ints, end: Ints) -> Ints:
    """Characters in [start, end), which are in order, and none of them empty."""
    if leading is None:
        return end - start
    pairs = np.stack([start, end], 1).ravel()
    return np.add.reduceat(leading, pairs, dtype=np.int32)[::2].astype(np.int64)  # makes a copy of that type


def _broken_up(lines: Lines, apart: Bools) -> Bools:
    """Where paragraphs start: at the lines that stand apart, and where one gets too long."""
    heads = np.flatnonzero(apart)
    tails = np.append(heads[1:], len(apart)) - 1
    long = np.flatnonzero(lines.stop[tails] - lines.start[heads] > PARAGRAPH)
    if not len(long):
        return apart
    first = apart.copy()
    for head, tail in zip(heads[long].tolist(), tails[long].tolist()):
        while head <= tail:
            first[head] = True
            head = int(np.searchsorted(lines.stop, lines.start[head] + PARAGRAPH, "right")) + 1
    return first


def _joined(
    data: bytes, array: NDArray[np.uint8], leading: Bools | None, lines: Lines, characters: Ints, first: Bools
) -> Bools:
    """Which lines are joined to the line before them: the rule of pages.unwrap."""
    heads = np.flatnonzero(first)
    number = np.diff(np.append(heads, len(first)))
    width = np.maximum.reduceat(characters, heads)
    flags = _flags(array, lines.start)
    capitals = np.add.reduceat((flags & UPPER != 0) & ~first, heads, dtype=np.int64)
    wrapped = (number > 1) & (width >= 50) & (width <= 100) & (capitals * 2 <= number - 1)
    joined = np.zeros(len(first), bool)
    at = np.flatnonzero(np.repeat(wrapped, number) & ~first & (flags & SHUT == 0))
    if not len(at):
        return joined
    short = np.repeat(width, number)[at] - 9 - characters[at - 1]  # joined where the first word is longer than this
    joined[at[short < 1]] = True
    asked = (short >= 1) & (characters[at] > short)
    start = lines.start[at[asked]]
    blanks = np.append(np.flatnonzero(array == 32), len(array))
    word_end = np.minimum(blanks[np.searchsorted(blanks, start)], lines.end[at[asked]])
    joined[at[asked]] = _count(leading, start, word_end) > short[asked] if len(start) else False
    at = at[joined[at]]
    for one in at[flags[at] & ASK != 0].tolist():
        joined[one] = not MARKUP.match(data[lines.start[one] : lines.end[one]].decode())
    return joined


def _flags(array: NDArray[np.uint8], start: Ints) -> NDArray[np.uint8]:
    """What the first character of each line says."""
    point = array[start].astype(np.int64)
    wide = np.flatnonzero(point >= 128)
    if not len(wide):
        return _ASCII[point]
    last = len(array) - 1
    lead = point[wide]
    second, third, fourth = (array[np.minimum(start[wide] + step, last)].astype(np.int64) & 63 for step in (1, 2, 3))
    two = (lead & 31) << 6 | second
    three = (lead & 15) << 12 | second << 6 | third
    four = (lead & 7) << 18 | second << 12 | third << 6 | fourth
    some, which = np.unique(np.select([lead < 224, lead < 240], [two, three], four), return_inverse=True)
    point[wide] = 0
    flags = _ASCII[point]
    flags[wide] = np.array([_flag(chr(one)) for one in some.tolist()], np.uint8)[which]
    return flags


@lru_cache(4096)
def _flag(one: str) -> int:
    asked = one in ".`" or one.isdecimal()
    return UPPER * one.isupper() | ASK * asked | SHUT * (not asked and MARKUP.match(one) is not None)


_ASCII = np.array([_flag(chr(point)) for point in range(128)], np.uint8)


def _rewritten(array: NDArray[np.uint8], lines: Lines, apart: Bools, joined: Bools) -> tuple[NDArray[np.uint8], Ints]:
    """The text of a block, and by how much each line has moved to the front."""
    front, back = int(lines.start[0]), int(lines.end[-1])
    text = array[:back].copy()
    end = lines.end[:-1]
    text[end] = np.where(joined[1:], 32, 10)
    text[end[apart[1:]] + 1] = 10  # of a line end and a blank line, two bytes are left at least
    kept = np.where(apart[1:], 2, 1)
    surplus = lines.start[1:] - end - kept
    moved = front + np.concatenate([[0], np.cumsum(surplus)])
    if not moved[-1]:
        return text, moved
    keep = np.ones(back, bool)
    keep[:front] = False
    for number in np.flatnonzero(surplus > 64).tolist():
        keep[end[number] + kept[number] : lines.start[number + 1]] = False
    some = np.flatnonzero((surplus > 0) & (surplus <= 64))
    size = surplus[some]
    keep[np.repeat((end + kept)[some] - np.cumsum(size) + size, size) + np.arange(size.sum())] = False
    return text[keep], moved
