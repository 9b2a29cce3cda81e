"""Does a document hold a piece of an evaluation set? Then a model that has seen it is judged by what it was told.

A document leaks where it shares 13 words in a row with an example, punctuation, blanks and ASCII case ignored, as in
GPT-3 (Brown et al., 2020, appendix C, where N is 13 for most sets). What is a word is said in minhash.py. Shorter
examples are not looked for, since a few words in a row stand in texts that have nothing to do with each other; they
are counted.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .artifacts import save_array
from .books import listed
from .cleaning import Cleaner
from .errors import DataError, UsageError
from .minhash import shingles, word_hashes
from .progress import say
from .reading import documents
from .sources import Surveyed
from .streams import Document, Limits

WORDS = 13
_HEADER = 2
"""Numbers in a file before the hashes: words, short."""
_MOST_BITS = 26


class Probe:
    """The hashes of all runs of 13 words in the examples of evaluation sets."""

    def __init__(self, hashes: NDArray[np.uint64], words: int = WORDS, short: int = 0) -> None:
        self.hashes, self.words = hashes, words
        self.short = short
        """Examples with fewer words, which are not looked for."""
        # A table of the leading bits: nearly all runs of a text are told apart by one look into the cache.
        bits = min(len(hashes).bit_length() + 5, _MOST_BITS)
        self._shift = np.uint64(64 - bits)
        self._table = np.zeros(1 << bits, bool)
        self._table[hashes >> self._shift] = True

    @staticmethod
    def from_texts(texts: Iterable[str], words: int = WORDS) -> "Probe":
        """Of the examples of evaluation sets."""
        hashes, short = [np.zeros(0, np.uint64)], 0
        for text in texts:
            found = shingles(word_hashes(text.encode()), words)
            hashes.append(found)
            short += not len(found)
        return Probe(np.unique(np.concatenate(hashes)), words, short)

    def hits(self, data: bytes) -> bool:
        """Does a text in UTF-8 share a run of words with an example?"""
        found = shingles(word_hashes(data), self.words)
        found = found[self._table[found >> self._shift]]
        if not len(found):
            return False
        at = np.searchsorted(self.hashes, found)
        return bool((self.hashes.take(at, mode="clip") == found).any())

    def save(self, path: Path) -> None:
        """As .npy: words, short, hashes."""
        save_array(path, np.concatenate([np.array([self.words, self.short], "<u8"), self.hashes]))

    @staticmethod
    def load(path: Path) -> "Probe":
        """Raises DataError where the file is none of a probe."""
        try:
            numbers = np.load(path, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise DataError(f"{path} does not hold the runs of words of an evaluation set; run again.") from error
        return Probe(numbers[_HEADER:], int(numbers[0]), int(numbers[1]))

    def __len__(self) -> int:
        return len(self.hashes)


def probe_of(evaluation: Sequence[Surveyed], cleaner: Cleaner, limits: Limits) -> Probe:
    """The probe of some evaluation sets; their texts are cleaned as those of the corpus are.

    Raises UsageError for one that has no text: then nothing would be looked for.
    """
    return Probe.from_texts(text for one in evaluation for text in _texts(one, cleaner, limits))


def _texts(one: Surveyed, cleaner: Cleaner, limits: Limits) -> Iterator[str]:
    refused, number = Counter[str](), 0
    for item in one.items:
        for event in documents(item, limits):
            if isinstance(event, Document):
                number += 1
                yield cleaner.clean(event.text).text
            else:
                refused[event.reason] += 1
    why = f" ({listed(refused)})" if refused else ""
    if not number:
        raise UsageError(f"corpus.evaluation_files: {one.source.name} has no text{why}; check its text_key and format.")
    if refused:
        say(f"corpus: evaluation file {one.source.name}: {number} texts are looked for; unreadable{why}")
