"""What the train split holds of some evaluation sets: of each example, whether 13 words in a row stand in it, and how
often words stand in it. One pass over the corpus for all sets together.

An example has been seen where a train document shares 13 words in a row with it (leakage.py says why 13); shorter
examples are not looked for, and are counted. A document that comes several times, as its source's weight says, counts
as often. What a word is is said in minhash.py. Exact but for two words that have the same hash of 64 bits: one in
4·10^12 for four million different words.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .artifacts import Manifest
from .leakage import WORDS
from .minhash import shingles, word_hashes
from .progress import progress
from .results import Exposure
from .spans import documents_of
from .tokens import read_texts

AT_ONCE = 1 << 19
"""Bytes of text whose words are looked at together."""
_NO_CHARACTER = "\U0010ffff"
_BETWEEN = f"\n{_NO_CHARACTER}\n".encode()
"""Stands between two texts: a word by itself that no text has, so no run of words of an example goes on from one
document to the next."""
_WORD = re.compile("[0-9A-Za-z\u00c0-\u07ff]+|[\u0800-\u1fff\u2080-\u2fff\u3040-\U0010ffff]")
_CAPITALS = {capital: capital + 32 for capital in range(ord("A"), ord("Z") + 1)}
_MOST_BITS = 22

Hashes: TypeAlias = NDArray[np.uint64]


def words_in(text: str) -> list[str]:
    """The words of a text in order, as minhash.py splits it: ASCII letters small."""
    return _WORD.findall(text.translate(_CAPITALS))


def exposure(
    corpus: Manifest, texts: Mapping[str, Iterable[str]], words: Mapping[str, Iterable[str]]
) -> dict[str, tuple[Exposure, dict[str, int]]]:
    """Of each set in `texts` or `words`: how many of its examples have been seen, and how often each word stands in the
    train split.

    texts       set -> its examples, one text each
    words       set -> its words, each as `words_in` gives it

    Raises DataError naming the file of the corpus that cannot be read, AssertionError for a word that is not one.
    """
    runs = {name: _Runs(examples) for name, examples in texts.items()}
    asked = {name: list(dict.fromkeys(some)) for name, some in words.items()}
    hashes_of = {name: _hashes(some) for name, some in asked.items()}
    sought = _Numbers([one.hashes for one in runs.values()])
    counted = _Numbers(hashes_of.values())
    found = np.zeros(len(sought.hashes), bool)
    counts = np.zeros(len(counted.hashes), np.int64)
    if len(found) or len(counts):
        with progress("exposure", total=documents_of(corpus, "train"), unit="texts") as bar:
            for some, data in _portions(corpus):
                hashes = word_hashes(data)
                if len(found):
                    found[sought.of(shingles(hashes, WORDS))] = True
                if len(counts):
                    counts += np.bincount(counted.of(hashes), minlength=len(counts))
                bar.advance(some)
    result = {}
    for name in dict.fromkeys((*texts, *words)):
        seen = runs.get(name, _NONE).exposure(found[sought.of(runs[name].hashes)] if name in runs else found[:0])
        often = counts[counted.of(hashes_of[name])].tolist() if name in asked else []
        result[name] = seen, dict(zip(asked.get(name, ()), often, strict=True))
    return result


class _Runs:
    """All runs of 13 words of an evaluation set, example after example."""

    def __init__(self, examples: Iterable[str]) -> None:
        texts = [text.replace(_NO_CHARACTER, " ").encode() for text in examples]
        words = word_hashes(_BETWEEN.join([*texts, b""]))  # one _BETWEEN after each
        last = words == word_hashes(_BETWEEN)[0]
        example = np.cumsum(last) - last
        first = example[: max(len(words) - WORDS + 1, 0)]
        within = (first == example[WORDS - 1 :]) & ~last[WORDS - 1 :]
        self.hashes: Hashes = shingles(words, WORDS)[within]
        self.sizes = np.bincount(first[within], minlength=len(texts))
        """Runs of each example (E,)."""

    def exposure(self, seen: NDArray[np.bool_]) -> Exposure:
        """From whether each run has been seen."""
        long = np.flatnonzero(self.sizes)
        starts = (np.cumsum(self.sizes) - self.sizes)[long]
        examples = np.logical_or.reduceat(seen, starts) if len(starts) else seen
        return Exposure(len(self.sizes), len(long), int(examples.sum()))


_NONE = _Runs(())


class _Numbers:
    """Different hashes, sorted, and the number of each."""

    def __init__(self, some: Iterable[Hashes]) -> None:
        self.hashes: Hashes = np.unique(np.concatenate([np.zeros(0, np.uint64), *some]))
        # A table of the leading bits: most hashes of a text are known not to be there by one look into the cache.
        bits = min(len(self.hashes).bit_length() + 5, _MOST_BITS)
        self._shift = np.uint64(64 - bits)
        self._table = np.zeros(1 << bits, bool)
        self._table[self.hashes >> self._shift] = True

    def of(self, hashes: Hashes) -> NDArray[np.int64]:
        """The numbers of those hashes that are among ours, in order, each as often as it comes."""
        hashes = hashes[self._table[hashes >> self._shift]]
        at = np.searchsorted(self.hashes, hashes)
        return at[self.hashes.take(at, mode="clip") == hashes] if len(self.hashes) else at[:0]


def _hashes(words: list[str]) -> Hashes:
    found = word_hashes("\n".join(words).encode())
    assert len(found) == len(words), "what is counted has to be one word each"
    return found


def _portions(corpus: Manifest) -> Iterator[tuple[int, bytes]]:
    """(how many, their text) of the train split, about AT_ONCE bytes at a time."""
    held: list[bytes] = []
    size = 0
    for split, texts in read_texts(corpus):
        if split != "train":
            continue
        for data in texts.cast(pa.large_binary()).to_pylist():
            held.append(data)
            size += len(data)
            if size >= AT_ONCE:
                yield len(held), _BETWEEN.join(held)
                held, size = [], 0
    if held:
        yield len(held), _BETWEEN.join(held)
