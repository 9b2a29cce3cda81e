"""MinHash signatures and band keys of texts: what near copies are found by.

A text is taken as the set of its shingles (w words in a row). Of two sets with Jaccard similarity J, the smallest
member under a random permutation is the same with probability J (Broder, "On the resemblance and containment of
documents", 1997), so the share of equal minima under many permutations estimates J. In order not to compare every pair,
the minima are cut into bands of r; texts that agree in a whole band are candidates (Leskovec, Rajaraman and Ullman,
"Mining of Massive Datasets", section 3.4):

    P(candidate | J) = 1 - (1 - J^r)^b          b = 20, r = 6:    J    0.3   0.5   0.6   0.7    0.8    0.9
                                                                  P  0.014  0.27  0.62  0.92  0.998  1 - 3e-7

and a candidate is a near copy where at least `similarity` of its b·r minima are equal (duplicates.py).

Words are runs of ASCII letters and digits, whose case is ignored, and of characters of two bytes in UTF-8 (accented
Latin, Greek, Cyrillic, Hebrew, Arabic). A longer character (Chinese, Japanese, Korean, Thai, emoji) is a word by
itself, since those scripts put no blanks between words. Everything else separates: ASCII and Latin-1 punctuation,
U+2000–U+207F (dashes, curly quotes) and U+3000–U+303F.

All sums wrap at 2^64 or 2^32, so the numbers are the same on every machine and for every way to batch texts; they
are stored little-endian. Plain numpy: once shingling is counted, a compiled MinHash (rensa) is no faster.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

import numpy as np
from numpy.typing import NDArray

from .errors import UsageError

BLOCK = 1 << 17
"""Bytes that are looked at together: large enough for numpy, small enough for a core's cache."""
NO_WORDS = 0
"""Band key of a text without words, which is like no other."""
_MIX = np.uint64(0x9E3779B97F4A7C15)
_SHINGLE = 0xBF58476D1CE4E5B9
_BAND = 0x94D049BB133111EB
_POWERS: NDArray[np.uint64] = np.cumprod(np.full(BLOCK, _MIX), dtype=np.uint64)
_INVERSES: NDArray[np.uint64] = np.cumprod(np.full(BLOCK, np.uint64(pow(int(_MIX), -1, 1 << 64))), dtype=np.uint64)


def _is_word(byte: int) -> bool:
    return byte >= 0x80 or chr(byte).isalnum()


_VALUES = np.array([ord(chr(byte).lower()) + 1 if byte < 0x80 else byte + 1 for byte in range(256)], np.uint64)
_LABELS = np.array([_is_word(byte) for byte in range(256)], np.uint8)


@dataclass(frozen=True)
class NearDuplicates:
    """What counts as a near copy."""

    enabled: bool = True
    """Whether near copies are looked for; equal texts always are."""
    words: int = 5
    """Words of a shingle."""
    bands: int = 20
    """More bands find less similar pairs."""
    rows: int = 6
    """Minima of a band: more of them find fewer dissimilar pairs, which are looked at for nothing."""
    similarity: str = "0.8"
    """Share of equal minima from which on two texts are near copies; exact, so a string: "0.8" or "4/5"."""

    def __post_init__(self) -> None:
        for key, value in (("words", self.words), ("bands", self.bands), ("rows", self.rows)):
            if not 1 <= value <= 256:
                raise UsageError(f"corpus.near_duplicates.{key} is {value}; it must be from 1 to 256.")
        if self.bands * self.rows > 4096:
            raise UsageError(
                f"corpus.near_duplicates: {self.bands} bands of {self.rows} rows are {self.bands * self.rows} numbers "
                "for each document; 120 are plenty, 4096 the most."
            )
        try:
            good = 0 < Fraction(self.similarity) <= 1
        except (ValueError, ZeroDivisionError):
            good = False
        if not good:
            raise UsageError(
                f"corpus.near_duplicates.similarity is {self.similarity!r}; "
                'it must be a number above 0, at most 1, like "0.8".'
            )

    @property
    def least_equal(self) -> int:
        """How many minima of near copies are equal, at least."""
        return ceil(Fraction(self.similarity) * self.bands * self.rows)


def word_hashes(data: bytes) -> NDArray[np.uint64]:
    """A hash of each word of a text in UTF-8, in order."""
    return np.concatenate([np.zeros(0, np.uint64), *(hashes for hashes, _ in _words(data))])


def shingles(words: NDArray[np.uint64], size: int) -> NDArray[np.uint64]:
    """A hash of each `size` words in a row."""
    number = max(len(words) - size + 1, 0)
    found = np.zeros(number, np.uint64)
    for k in range(size if number else 0):
        found += words[k : k + number] * np.uint64(pow(_SHINGLE, k + 1, 1 << 64))
    return _mixed(found)


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Every bit of a number depends on all of them; in place."""
    numbers ^= numbers >> np.uint64(32)
    numbers *= _MIX
    numbers ^= numbers >> np.uint64(29)
    return numbers


def _words(data: bytes) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.int64]]]:
    """Hashes and offsets of the words, a block at a time; up to BLOCK bytes are one block.

    The hash of bytes x_0, x_1, … is Σ (x_i + 1)·B^i, mixed: a difference of prefix sums over the whole block, times the
    inverse of B^start. A word that fills a whole block ends there.
    """
    at = 0
    while at < len(data):
        text = np.frombuffer(data, np.uint8, min(BLOCK, len(data) - at), at)
        labels = _labels(text)
        inner = np.flatnonzero(labels[1:] != labels[:-1])
        inner += 1
        bounds = np.concatenate(([0], inner, [len(text)]))
        if at + len(text) < len(data):  # the last piece may go on: it is looked at again in the next block
            bounds = bounds[:-1] if len(bounds) > 2 else np.array([0, _whole_characters(text)])
        sums = np.zeros(len(text) + 1, np.uint64)
        np.cumsum(_VALUES.take(text) * _POWERS[: len(text)], out=sums[1:])
        starts, sums = bounds[:-1], sums.take(bounds)
        hashes = _mixed((sums[1:] - sums[:-1]) * _INVERSES.take(starts))
        words = labels.take(starts) > 0
        yield hashes[words], starts[words] + at
        at += int(bounds[-1])


def _whole_characters(text: NDArray[np.uint8]) -> int:
    """How many bytes of a block are whole characters, as far as one can tell from what does not begin one."""
    leads = np.flatnonzero((text[-4:] & 0xC0) != 0x80)
    return len(text) - 4 + int(leads[-1]) if len(leads) and len(text) > 4 else len(text)


def _labels(text: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Bytes of the same word have the same label, neighbouring pieces different ones; 0 is between words."""
    labels = _LABELS.take(text)
    at = np.flatnonzero(text >= 0xC2)  # the first bytes of characters of two to four
    if len(at):
        lead, second = text[at], text.take(at + 1, mode="clip")
        separates = lead == 0xC2
        separates |= (lead == 0xE2) & ((second == 0x80) | (second == 0x81))
        separates |= (lead == 0xE3) & (second == 0x80)
        alone = (lead >= 0xE0) & ~separates
        label = np.where(alone, 2 + (np.cumsum(alone) & 1), ~separates).astype(np.uint8)
        for k, longer in enumerate((0xC2, 0xC2, 0xE0, 0xF0)):
            some = (lead >= longer) & (at + k < len(text))
            labels[at[some] + k] = label[some]
    return labels


class Signer:
    """Signatures and band keys of texts."""

    def __init__(self, settings: NearDuplicates) -> None:
        self.settings = settings
        number = settings.bands * settings.rows
        drawn = _mixed(np.arange(1, 2 * number + 1, dtype=np.uint64) * np.uint64(_BAND)) >> np.uint64(32)
        # x -> a·x + b permutes the numbers below 2^32 where a is odd
        self.factors = drawn[:number].astype(np.uint32) | np.uint32(1)
        self.terms = drawn[number:].astype(np.uint32)

    def sign(self, texts: Sequence[bytes]) -> tuple[NDArray[np.uint16], NDArray[np.uint64]]:
        """Signatures (texts, bands·rows), 16 bits of each minimum, and band keys (texts, bands) of texts in UTF-8.

        Fewer words than a shingle has are one shingle.
        """
        minima = np.full((len(self.factors), len(texts)), 0xFFFFFFFF, np.uint32)
        words = np.zeros(len(texts), np.int64)
        for first, last in _groups(texts):
            if last - first > 1:
                words[first:last] = self._together(texts[first:last], minima[:, first:last])
            else:
                words[first] = self._alone(texts[first], minima[:, first])
        keys = self._keys(minima)
        keys[words == 0] = NO_WORDS
        return np.ascontiguousarray(minima.T).astype("<u2"), keys.astype("<u8")

    def _together(self, texts: Sequence[bytes], minima: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Enters the minima of texts that make one block; returns how many words each has."""
        size = self.settings.words
        for words, starts in _words(b"\n".join(texts)):
            ends = np.cumsum([len(text) + 1 for text in texts])
            text_of = np.searchsorted(ends, starts, side="right")
            number = np.bincount(text_of, minlength=len(texts))
            within = text_of[: max(len(words) - size + 1, 0)] == text_of[size - 1 :]
            found = np.maximum(number - size + 1, 0)
            some = np.flatnonzero(found)
            if len(some):
                minima[:, some] = self._minima(shingles(words, size)[within], (np.cumsum(found) - found)[some])
            for text in np.flatnonzero((number > 0) & (number < size)).tolist():
                few = words[text_of == text]
                minima[:, text] = self._minima(shingles(few, len(few)))[:, 0]
            return number
        return np.zeros(len(texts), np.int64)

    def _alone(self, text: bytes, minima: NDArray[np.uint32]) -> int:
        """Enters the minima of a text of any length; returns how many words it has."""
        size, number = self.settings.words, 0
        last = np.zeros(0, np.uint64)
        for words, _ in _words(text):
            number += len(words)
            words = np.concatenate([last, words])
            if len(words) >= size:
                np.minimum(minima, self._minima(shingles(words, size))[:, 0], out=minima)
            last = words[max(len(words) - size + 1, 0) :]
        if 0 < number < size:
            minima[:] = self._minima(shingles(last, number))[:, 0]
        return number

    def _minima(
        self, found: NDArray[np.uint64], starts: Sequence[int] | NDArray[np.int64] = (0,)
    ) -> NDArray[np.uint32]:
        """Minima (permutations, texts) of the shingles of texts that begin at `starts`."""
        numbers = (found >> np.uint64(32)).astype(np.uint32)
        permuted = np.empty_like(numbers)
        minima = np.empty((len(self.factors), len(starts)), np.uint32)
        for row, factor, term in zip(minima, self.factors, self.terms):
            np.multiply(numbers, factor, out=permuted)
            np.add(permuted, term, out=permuted)
            np.minimum.reduceat(permuted, starts, out=row)
        return minima

    def _keys(self, minima: NDArray[np.uint32]) -> NDArray[np.uint64]:
        """Keys (texts, bands): a hash of the band's number and minima, and never NO_WORDS."""
        bands, rows = self.settings.bands, self.settings.rows
        keys = np.empty((minima.shape[1], bands), np.uint64)
        for band in range(bands):
            key = np.full(minima.shape[1], band + 1, np.uint64)
            for row in minima[band * rows : (band + 1) * rows]:
                key *= np.uint64(_BAND)
                key += row
            keys[:, band] = np.maximum(_mixed(key), np.uint64(NO_WORDS + 1))
        return keys


def _groups(texts: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """[first, last) of texts that make a block together, or of one text."""
    first = held = 0
    for number, text in enumerate(texts):
        if number > first and held + len(text) > BLOCK:
            yield first, number
            first, held = number, 0
        held += len(text) + 1
    if texts:
        yield first, len(texts)
