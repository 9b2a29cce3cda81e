"""Which documents are copies of others: equal ones, near ones, and near ones of what is held out.

Equal: of documents with the same id the first stays.

Near copies are two documents that share the key of a band and have enough equal minima (minhash.py). Documents have a
fixed order: those held out before those of train, each by id. Bands are looked at one after the other. In each bucket
(documents that share a key, and have not gone yet) the first is compared with all others; its near copies go for it.
What is left makes a bucket again, without the first, and so on. Hence

- no two documents that stay are near copies (but see ROUNDS): what a document was not compared with has gone;
- of a cluster (a document and what went for it, or for what went for it) the lowest id stays, or the lowest id of what
  is held out, where anything is: then its train documents go as near_heldout, all others as near_duplicate;
- what stays follows from texts alone, not from the order in which they are given.

Memory: a few bytes and 3 numbers of 4 bytes (of 8 from 2^31 documents on) for each document, and about `memory_bytes`
for keys and signatures, which are looked at in as many passes over ranges of keys as that needs. Documents without end
that share one key are not divided further.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .minhash import NO_WORDS, NearDuplicates

KEPT, DUPLICATE, NEAR_DUPLICATE, NEAR_HELDOUT = range(4)
"""Verdicts; others are left as they are."""
TRAIN = 0
"""The split that is not held out."""
CHUNK = 1 << 20
"""Documents whose columns are read together."""
PAIRS = 1 << 14
"""Pairs that are compared together."""
ROUNDS = 64
"""Where a bucket has more documents than this that are all unlike each other (pages of one template), the rest is left
to the other bands: comparing all of them would take the square of their number."""
LARGEST = 10
"""Clusters whose documents are told."""
_ENTRY_BYTES = 64
"""What a key takes while it is sorted, with all that belongs to it."""


class Columns(Protocol):
    """What is known of documents 0 … n-1."""

    def __len__(self) -> int: ...

    def ids(self, start: int, stop: int) -> NDArray[np.uint64]:
        """(documents, 2): both halves of each id, the higher one first."""

    def band(self, j: int, start: int, stop: int) -> NDArray[np.uint64]:
        """Keys of a band."""

    def signatures(self, rows: NDArray[np.int64]) -> NDArray[np.uint16]:
        """Signatures of the documents with these numbers."""


@dataclass
class Clusters:
    """Near copies that were found."""

    number: int
    documents: int
    """Documents of all clusters, the ones that stay too."""
    sizes: dict[int, int]
    """Documents of a cluster -> clusters."""
    largest: list[NDArray[np.int64]] = field(default_factory=list)
    """Documents of the largest clusters; the one that stays is the first."""
    passed_over: int = 0
    """Keys of documents that were not looked at, because ROUNDS were over."""


def exact(columns: Columns, verdict: NDArray[np.uint8], memory_bytes: int) -> None:
    """Marks what has the id of an earlier document as DUPLICATE, among what is KEPT so far."""
    for rows, ids in _by_id(columns, verdict == KEPT, memory_bytes):
        same = (ids[1:] == ids[:-1]).all(1)
        verdict[rows[1:][same]] = DUPLICATE


def near(
    columns: Columns,
    verdict: NDArray[np.uint8],
    split: NDArray[np.uint8],
    settings: NearDuplicates,
    memory_bytes: int,
) -> Clusters:
    """Marks near copies as NEAR_DUPLICATE or NEAR_HELDOUT, among what is KEPT so far (and has different ids)."""
    heldout, kept = split != TRAIN, verdict == KEPT
    numbers = np.int32 if len(columns) < 1 << 31 else np.int64
    ordered = [
        rows.astype(numbers)
        for some in (heldout & kept, ~heldout & kept)
        for rows, _ in _by_id(columns, some, memory_bytes)
    ]
    search = _Search(columns, np.concatenate([np.zeros(0, numbers), *ordered]), settings, memory_bytes)
    for band in range(settings.bands):
        search.look(band)
    goes, by = search.gone()
    documents = search.documents[goes]
    for_heldout = heldout[search.documents[by]] & ~heldout[documents]
    verdict[documents] = np.where(for_heldout, NEAR_HELDOUT, NEAR_DUPLICATE)
    return search.clusters(by)


class _Search:
    """What goes for which document. Documents are ranks here: their places in the fixed order."""

    def __init__(self, columns: Columns, documents: NDArray[Any], settings: NearDuplicates, memory_bytes: int) -> None:
        self.columns, self.documents, self.memory_bytes = columns, documents, memory_bytes
        self.least_equal, self.passed_over = settings.least_equal, 0
        self.first = np.arange(len(documents), dtype=documents.dtype)
        """The document that each goes for; itself where it stays."""
        self.rank = np.full(len(columns), -1, documents.dtype)
        """Rank of each document of the corpus; -1 for what has gone."""
        self.rank[documents] = self.first

    def look(self, band: int) -> None:
        """Finds what goes because of a band."""
        for rows, keys in _passes(partial(self.columns.band, band), self.rank >= 0, self.memory_bytes):
            order = np.argsort(keys)
            keys = keys[order]
            same = (keys[1:] == keys[:-1]) & (keys[1:] != NO_WORDS)
            shared = np.append(same, False) | np.insert(same, 0, False)
            ranks, keys = self.rank[rows[order[shared]]], keys[shared]
            order = np.lexsort((ranks, keys))
            self._compare(ranks[order], keys[order])

    def _compare(self, ranks: NDArray[Any], keys: NDArray[np.uint64]) -> None:
        """Rounds over all buckets at once: the first of each with all others."""
        for _ in range(ROUNDS):
            others = np.append(False, keys[1:] == keys[:-1])[: len(keys)]
            if not others.any():
                return
            firsts = ranks[~others][np.cumsum(~others)[others] - 1]
            ranks, keys = ranks[others], keys[others]
            copies = self._are_near(firsts, ranks)
            self.first[ranks[copies]] = firsts[copies]
            self.rank[self.documents[ranks[copies]]] = -1
            ranks, keys = ranks[~copies], keys[~copies]
        many = np.unique(keys, return_counts=True)[1]
        self.passed_over += int(many[many > 1].sum())

    def _are_near(self, left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.bool_]:
        """Have the pairs enough equal minima?"""
        found = np.zeros(len(left), bool)
        for start in range(0, len(left), PAIRS):
            some = slice(start, start + PAIRS)
            one, two = (
                self.columns.signatures(self.documents[ranks[some]].astype(np.int64)) for ranks in (left, right)
            )
            found[some] = np.count_nonzero(one == two, axis=1) >= self.least_equal
        return found

    def gone(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """What goes, and what it goes for that stays."""
        goes = np.flatnonzero(self.first != np.arange(len(self.first)))
        by = self.first[goes]
        while (self.first[by] != by).any():
            by = self.first[by]
        self.first[goes] = by
        return goes, by

    def clusters(self, by: NDArray[Any]) -> Clusters:
        """The clusters of what went for these documents."""
        stays, sizes = np.unique(by, return_counts=True)
        sizes += 1
        counts = zip(*(column.tolist() for column in np.unique(sizes, return_counts=True)))
        largest = stays[np.lexsort((stays, -sizes))[:LARGEST]]
        told = [self.documents[np.flatnonzero(self.first == one)].astype(np.int64) for one in largest]
        return Clusters(len(stays), int(sizes.sum()), dict(counts), told, self.passed_over)


def _by_id(
    columns: Columns, some: NDArray[np.bool_], memory_bytes: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint64]]]:
    """Documents by id, equal ids in their order, and the ids; a range of ids at a time, in order."""
    for rows, ids in _passes(columns.ids, some, memory_bytes):
        order = np.lexsort((ids[:, 1], ids[:, 0]))
        yield rows[order], ids[order]


def _passes(
    read: Callable[[int, int], NDArray[np.uint64]], some: NDArray[np.bool_], memory_bytes: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint64]]]:
    """Some documents, and what is read of them, as many as fit; those whose (first) number is in a range at a time."""
    passes = max(1, ceil(int(some.sum()) * _ENTRY_BYTES / max(memory_bytes, 1)))
    for number in range(passes):
        low, high = (np.uint64((number + one << 64) // passes - one) for one in (0, 1))
        rows, values = [], []
        for start in range(0, len(some), CHUNK):
            wanted = some[start : start + CHUNK]
            if wanted.any():
                found = read(start, start + len(wanted))
                key = found if found.ndim == 1 else found[:, 0]
                if passes > 1:
                    wanted = wanted & (key >= low) & (key <= high)
                rows.append(np.flatnonzero(wanted) + start)
                values.append(found[wanted])
        if any(map(len, rows)):
            yield np.concatenate(rows), np.concatenate(values)
