"""Where words and sentences begin in a stream of tokens: for cutting documents and for masks of whole words.

A word is a maximal run of letters, or of digits, or of other characters without white space, as GPT-2's pre-tokenizer
has it: "well-known" is three words. A contraction goes with what stands before it: " don't" is one. White space goes
with what follows. Marks (accents, vowel signs) go with the character that they stand on.

A table holds one byte an id: how the token begins in the high half, how it ends in the low half. So a question about a
token and the one before it is a look-up of one byte, and streams are answered at memory speed.
"""

import unicodedata
from enum import IntEnum
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .spellings import Spelling, spellings

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class First(IntEnum):
    """How a token begins."""

    NEVER = 0  # inside a character, with a mark, or as the model says (##x)
    SPACE = 1
    LINE = 2  # white space with the end of a line
    EMPTY_LINE = 3  # white space with two of them
    UNSPACED = 4  # a script without spaces
    SPECIAL = 5
    LETTER = 6
    DIGIT = 7
    OTHER = 8
    CONTRACTION = 9  # 't
    WORD = 10  # begins a word as the model says, with a letter
    MARK = 11  # begins a word as the model says, with anything else; [UNK]
    ENDING = 12  # letters that make a contraction with an apostrophe before them: a token of just `t`


class Last(IntEnum):
    """How a token ends."""

    SPACE = 0
    LINE = 1
    EMPTY_LINE = 2
    APART = 3  # a script without spaces, [UNK], the end of a word as the model says: nothing goes on with it
    SPECIAL = 4
    LETTER = 5
    DIGIT = 6
    OTHER = 7
    STOP = 8  # the end of a sentence, closing quotes and brackets included
    CLOSING = 9  # closing quotes and brackets only: what stands before them decides
    SAME = 10  # the rest of a character, or marks only: as what stands before
    BLANK = 11  # a space proper, U+0020: it goes with what follows
    QUOTE = 12  # a token of just ': a quote, or the apostrophe of a contraction


STOPS = ".!?\u2026\u3002\uff01\uff1f"
ENDINGS = ("s", "t", "re", "ve", "m", "ll", "d")
"""What GPT-2's pre-tokenizer takes together with an apostrophe before it."""
CLOSERS = "\"'"
"""Straight quotes, which close as often as they open; the others are told by their category (Pe, Pf)."""
UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),
    (0x3040, 0x30FF),  # kana
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),
    (0x20000, 0x3FFFF),
)
"""First and last code points of scripts that put no space between words."""


def table(tokenizer: "Tokenizer") -> NDArray[np.uint8]:
    """(V,) for each id, how its token begins (high half byte) and ends (low half byte)."""
    return table_of(spellings(tokenizer))


def table_of(of: list[Spelling]) -> NDArray[np.uint8]:
    """The same, of spellings that are known."""
    return np.array([_first(spelling) << 4 | _last(spelling) for spelling in of], np.uint8)


def word_begins(table_V: NDArray[np.uint8], tokens: NDArray[Any]) -> NDArray[np.bool_]:
    """Does a word begin at this token? Same shape as `tokens`, which are read in flattened order.

    A token that begins with white space or is of a script without spaces begins one; so does a special or reserved
    token, [UNK], and whatever follows a special token. One that begins inside a character never does. The answer
    depends on the token and on the one before it; in a split character and in a contraction of two tokens (`'` `t`) on
    a few more, so whole segments should be asked about, not parts of them.
    """
    firsts, lasts = _halves(table_V, tokens)
    begins = _WORDS[firsts | lasts]
    # Two tokens, ' and t: where the quote has no other mark or space before it, the two are one, as 't is.
    ending = np.flatnonzero(lasts == Last.QUOTE)
    ending = ending[firsts[ending] == First.ENDING << 4]
    before = lasts[ending - 1]
    apart = np.isin(before, (*_MARKS, Last.BLANK))
    begins[ending[~apart]] = False
    begins[ending[np.isin(before, _CONTRACTED)] - 1] = False
    return begins.reshape(tokens.shape)


def sentence_begins(table_V: NDArray[np.uint8], tokens: NDArray[Any]) -> NDArray[np.bool_]:
    """Does a sentence begin at this token? Same shape as `tokens`, which are read in flattened order.

    Where what stands before ends with . ! ? … 。 ！ ？, perhaps with closing quotes or brackets after it, and the token
    begins with white space or is of a script without spaces; where white space with an empty line lies between (one
    half of it may be the token's own); at a special token and after it. WordPiece has no white space: there a token
    that begins with a letter counts. "Mr. Smith" is two sentences: a place to cut, no more.
    """
    firsts, lasts = _halves(table_V, tokens)
    lasts[lasts == Last.QUOTE] = Last.CLOSING
    closing = np.flatnonzero(lasts == Last.CLOSING)
    for _ in range(2):  # `.` `"` and `.` `"` `)`
        lasts[closing] = np.where(lasts[closing] == Last.CLOSING, lasts[np.maximum(closing - 1, 0)], lasts[closing])
    return _SENTENCES[firsts | lasts].reshape(tokens.shape)


group_begins, break_begins = word_begins, sentence_begins
"""What shards ask of any modality whose tokens belong together."""


def _halves(table_V: NDArray[np.uint8], tokens: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Of each token, how it begins (in the high half) and how what stands before it ends (in the low half)."""
    both = table_V[tokens.reshape(-1)]
    lasts = np.empty_like(both)
    lasts[:1] = Last.SPECIAL
    np.bitwise_and(both[:-1], 15, out=lasts[1:])
    same = np.flatnonzero(lasts == Last.SAME)
    for _ in range(3):  # a character has at most three bytes after its first
        lasts[same] = np.where(lasts[same] == Last.SAME, lasts[same - 1], lasts[same])
    both &= 0xF0
    return both, lasts


# Tables of the answers, one byte in: how the token begins << 4 | how the one before it ends.


_MARKS = (Last.OTHER, Last.STOP, Last.CLOSING, Last.QUOTE)
_CONTRACTED = (Last.LETTER, Last.DIGIT, Last.APART, Last.SAME)
_GOES_ON: dict[int, tuple[Last, ...]] = {
    First.NEVER: tuple(Last),
    First.LETTER: (Last.LETTER, Last.SAME, Last.BLANK),
    First.ENDING: (Last.LETTER, Last.SAME, Last.BLANK),
    First.DIGIT: (Last.DIGIT, Last.BLANK),
    First.OTHER: (*_MARKS, Last.BLANK),
    First.CONTRACTION: (*_CONTRACTED, Last.BLANK),
}
"""How a token begins -> after which ends it goes on with the word; any other token begins one."""


def _begins_word(first: int, last: int) -> bool:
    return last == Last.SPECIAL or last not in _GOES_ON.get(first, ())


def _begins_sentence(first: int, last: int) -> bool:
    if first == First.SPECIAL or last == Last.SPECIAL:
        return True
    lines = {First.LINE: 1, First.EMPTY_LINE: 2}.get(first, 0) + {Last.LINE: 1, Last.EMPTY_LINE: 2}.get(last, 0)  # type: ignore[call-overload]
    spaced = first in (First.SPACE, First.LINE, First.EMPTY_LINE, First.UNSPACED, First.WORD)
    return (lines >= 2 and first != First.NEVER) or (last == Last.STOP and spaced)


_WORDS = np.array([_begins_word(byte >> 4, byte & 15) for byte in range(256)])
_SENTENCES = np.array([_begins_sentence(byte >> 4, byte & 15) for byte in range(256)])


# How a token begins and ends.


def _first(spelling: Spelling) -> int:
    if spelling.role == "special":
        return First.SPECIAL
    if spelling.follows:
        return First.NEVER
    kind, character = _head(spelling.text)
    if spelling.leads:
        return First.UNSPACED if kind == "unspaced" else First.WORD if kind == "letter" else First.MARK
    if kind == "space":
        text = spelling.text.decode("utf-8", "replace")
        return _lines(text[: len(text) - len(text.lstrip())], First.SPACE)
    if character in ("'", "\u2019") and _head(spelling.text[len(character.encode()) :])[0] == "letter":
        return First.CONTRACTION
    if spelling.text.decode("utf-8", "replace") in ENDINGS:
        return First.ENDING
    return {
        "": First.NEVER,
        "mark": First.NEVER,
        "letter": First.LETTER,
        "digit": First.DIGIT,
        "unspaced": First.UNSPACED,
    }.get(kind, First.OTHER)


def _last(spelling: Spelling) -> int:
    if spelling.role == "special":
        return Last.SPECIAL
    if spelling.role == "unknown":
        return Last.APART
    kind, text = _tail(spelling.text)
    if text == "'":
        return Last.QUOTE
    if kind == "space":
        lines = _lines(text[len(text.rstrip()) :], Last.SPACE)
        return Last.BLANK if lines == Last.SPACE and text.endswith(" ") else lines
    if kind == "other" and text:
        bare = text.rstrip("".join(c for c in set(text) if c in CLOSERS or unicodedata.category(c) in ("Pe", "Pf")))
        if bare != text and not bare.strip():
            return Last.CLOSING if not bare else Last.OTHER  # with a space before it, it opens
        if bare.endswith(tuple(STOPS)):
            return Last.STOP
    if spelling.ends or kind == "unspaced":
        return Last.APART
    return {"": Last.SAME, "letter": Last.LETTER, "digit": Last.DIGIT}.get(kind, Last.OTHER)


def _lines(space: str, none: int) -> int:
    """SPACE, LINE or EMPTY_LINE, which follow each other in both enumerations."""
    return none + min(2, space.count("\n") or space.count("\r"))


def _head(text: bytes) -> tuple[str, str]:
    """Class of the first character and the character; "" inside one; a begun character's class is its likely one."""
    if not text or 0x80 <= text[0] < 0xC0:
        return "", ""
    size = 1 + (text[0] >= 0xC0) + (text[0] >= 0xE0) + (text[0] >= 0xF0)
    if len(text) < size:
        return _likely(text), ""
    try:
        character = text[:size].decode()
    except UnicodeDecodeError:
        return "other", ""
    return _class(character), character


def _tail(text: bytes) -> tuple[str, str]:
    """Class of the last character that is no mark, and the text that ends with it; "" where there is none."""
    lead = len(text)
    while lead and 0x80 <= text[lead - 1] < 0xC0:
        lead -= 1
    if not lead:
        return "", ""
    kind, character = _head(text[lead - 1 :])
    if kind == "mark":
        return _tail(text[: lead - 1])
    return kind, text.decode("utf-8", "replace") if character else ""


def _class(character: str) -> str:
    code, category = ord(character), unicodedata.category(character)
    if character.isspace() and not 0x1C <= code <= 0x1F:
        return "space"
    if category[0] == "M":
        return "mark"
    if category[0] == "N":
        return "digit"
    if category[0] == "L":
        return "unspaced" if any(first <= code <= last for first, last in UNSPACED) else "letter"
    return "other"


@cache
def _likely(begun: bytes) -> str:
    """What most characters are that begin with these bytes: E2 is punctuation, E4 Han, C3 a letter."""
    size = 1 + (begun[0] >= 0xC0) + (begun[0] >= 0xE0) + (begun[0] >= 0xF0)
    seen: dict[str, int] = {}
    missing = size - len(begun)
    step = 1 if missing < 3 else 61  # a sample of the 2 ** 18 of four bytes
    for number in range(0, 64**missing, step):
        rest = bytes(0x80 | (number >> 6 * place) & 0x3F for place in reversed(range(missing)))
        try:
            character = (begun + rest).decode()
        except UnicodeDecodeError:
            continue
        if unicodedata.category(character) != "Cn":
            kind = _class(character)
            seen[kind] = seen.get(kind, 0) + 1
    return max(sorted(seen), key=lambda kind: seen[kind], default="other")
