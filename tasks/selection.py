"""Which of the documents that were read become the corpus: budgets, duplicates, leaks, near copies, weights; in order.

    1  repeated, over_budget      a source by itself, so that what it gives depends on nothing but itself
    2  downsampled                a train document of a source with a weight below 1
    3  duplicate                  the same normalised text again: the first stays
    4  evaluation_leak            a train document that shares 13 words in a row with an evaluation set
    5  near_duplicate, near_heldout    (duplicates.py)

A document is its number in the order of the sources. What is held per document is a verdict, a split and a source's
number; ids, sizes, band keys and signatures stay in the packs and are read by memory map.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import duplicates, packs
from .books import Books
from .errors import UsageError
from .minhash import NearDuplicates
from .sources import Surveyed

KEPT, REPEATED, OVER_BUDGET, LEAK, DOWNSAMPLED = 0, 11, 12, 13, 14
REASONS = {
    duplicates.DUPLICATE: "duplicate",
    duplicates.NEAR_DUPLICATE: "near_duplicate",
    duplicates.NEAR_HELDOUT: "near_heldout",
    REPEATED: "repeated",
    OVER_BUDGET: "over_budget",
    LEAK: "evaluation_leak",
    DOWNSAMPLED: "downsampled",
}
SPLITS = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = range(3)
CHUNK = 1 << 20
"""Documents that are looked at together."""
_MIX = np.uint64(0xD6E8FEB86659FD93)


def splits_of(ids: NDArray[np.uint64], validation: Fraction, test: Fraction) -> NDArray[np.uint8]:
    """Codes of cleaning.split_of for ids of shape (n, 2): number·d < n·2^64 where number < ⌈n·2^64 / d⌉."""
    number = np.ascontiguousarray(ids[:, 0])
    codes = np.full(len(number), TRAIN, np.uint8)
    codes[~number < np.uint64(_threshold(validation))] = VALIDATION
    codes[number < np.uint64(_threshold(test))] = TEST
    return codes


def _threshold(share: Fraction) -> int:
    return min(-((-share.numerator << 64) // share.denominator), (1 << 64) - 1)


def times_taken(ids: NDArray[np.uint64], weight: Fraction) -> NDArray[np.int64]:
    """How often a document of a source with this weight is taken: ⌊w⌋ times, and once more for a share w - ⌊w⌋ of them.

    Which ones follows from their ids alone, by other bits than the split.
    """
    whole, part = divmod(weight, 1)
    hashed = (ids[:, 1] ^ (ids[:, 1] >> np.uint64(32))) * _MIX
    more = hashed ^ (hashed >> np.uint64(29)) < np.uint64(_threshold(Fraction(part)))
    return int(whole) + more.astype(np.int64)


def shares_of(config: Any) -> tuple[Fraction, Fraction]:
    """The shares of validation and test in the settings of a corpus, exact.

    Raises UsageError for a share that is none, or shares that leave nothing to train on.
    """
    shares = []
    for name in ("validation", "test", "max_bad_fraction"):
        value = getattr(config, name)
        try:
            share = Fraction(value)
        except (ValueError, ZeroDivisionError):
            raise UsageError(f"corpus.{name} is {value!r}; write a share such as 0.05 or 1/20.") from None
        if not 0 <= share <= 1 or (share == 1 and name != "max_bad_fraction"):
            raise UsageError(f"corpus.{name} is {value}; it must be at least 0 and below 1.")
        shares.append(share)
    if shares[0] + shares[1] >= 1:
        raise UsageError(
            f"corpus.validation + corpus.test = {shares[0] + shares[1]} leaves nothing to train on; lower one."
        )
    return shares[0], shares[1]


@dataclass
class Run:
    """Documents that follow each other in a pack and in the corpus."""

    pack: str
    first: int
    """Row in the pack."""
    start: int
    """Number in the corpus."""
    rows: int


@dataclass(frozen=True)
class File:
    """A source file's documents in the corpus."""

    source: int
    label: str
    start: int
    rows: int


@dataclass
class Selection:
    """Takes the files in order, then decides on every document."""

    folder: Path
    """Where the packs are."""
    surveyed: Sequence[Surveyed]
    books: list[Books] = field(init=False)
    runs: list[Run] = field(default_factory=list)
    files: list[File] = field(default_factory=list)
    taken: list[int] = field(init=False)
    """Bytes of each source, its own duplicates left out; what budgets are about."""

    def __post_init__(self) -> None:
        self.books = [Books() for _ in self.surveyed]
        self.taken = [0 for _ in self.surveyed]
        self._early: list[tuple[int, NDArray[np.uint8]]] = []
        self._own: list[set[bytes]] = [set() for _ in self.surveyed]
        self._paragraphs: set[bytes] = set()
        self.documents = 0

    def room(self, source: int) -> bool:
        """Is there room in the budget of a source?"""
        budget = self.surveyed[source].source.budget_bytes
        return budget == 0 or self.taken[source] < budget

    def take(self, source: int, label: str, pack: str, entry: dict[str, Any]) -> None:
        """A file comes next: its books, and its rows in the pack."""
        self.books[source].add(entry["books"])
        first, rows = entry["first"], entry["rows"]
        self.files.append(File(source, label, self.documents, rows))
        last = self.runs[-1] if self.runs else None
        if last and last.pack == pack and last.first + last.rows == first:
            last.rows += rows
        elif rows:
            self.runs.append(Run(pack, first, self.documents, rows))
        one = self.surveyed[source]
        if rows and (one.source.budget_bytes or one.kind == "installed-docs"):
            self._early.append((self.documents, self._by_itself(source, pack, first, rows)))
        self.documents += rows

    def file_of(self, document: int) -> File:
        """The file that a document came from."""
        return self.files[bisect_right(self.files, document, key=lambda file: file.start) - 1]

    def _by_itself(self, source: int, pack: str, first: int, rows: int) -> NDArray[np.uint8]:
        """Verdicts on what a source repeats by itself, and on what its budget has no room for."""
        verdict = np.zeros(rows, np.uint8)
        ids = packs.column(self.folder, pack, "ids")[first : first + rows]
        sizes = packs.column(self.folder, pack, "sizes")[first : first + rows, 0].tolist()
        texts = None
        if self.surveyed[source].kind == "installed-docs":
            texts = packs.texts(self.folder, pack, first, rows).column("text").to_pylist()
        own = self._own[source]
        for row in range(rows):
            name = ids[row].tobytes()
            if name in own:
                continue
            if not self.room(source):
                verdict[row] = OVER_BUDGET
            elif texts is not None and self._repeats(texts[row]):
                verdict[row] = REPEATED
            else:
                own.add(name)
                self.taken[source] += sizes[row]
        return verdict

    def _repeats(self, text: str) -> bool:
        """Does at least half of a docstring stand in earlier ones? Packages copy them from class to class."""
        parts = [(blake2b(part.encode(), digest_size=8).digest(), len(part)) for part in text.split("\n\n")]
        known = sum(size for digest, size in parts if digest in self._paragraphs)
        self._paragraphs.update(digest for digest, _ in parts)
        return known * 2 >= sum(size for _, size in parts)

    # The whole corpus

    def decide(
        self,
        shares: tuple[Fraction, Fraction],
        near: NearDuplicates,
        leaks: bool,
        memory_bytes: int,
    ) -> "Decided":
        """A verdict on every document; the books get what is rejected."""
        verdict = np.zeros(self.documents, np.uint8)
        for start, early in self._early:
            verdict[start : start + len(early)] = early
        columns = Columns(self.folder, self.runs, self.documents)
        split = np.zeros(self.documents, np.uint8)
        for low, high in chunks(self.documents):
            split[low:high] = splits_of(columns.ids(low, high), *shares)
        decided = Decided(self, columns, verdict, split)
        decided.downsample()
        duplicates.exact(columns, verdict, memory_bytes)
        if leaks:
            for low, high in chunks(self.documents):
                hit = columns.read("leaks", low, high) > 0
                verdict[low:high][hit & (split[low:high] == TRAIN) & (verdict[low:high] == KEPT)] = LEAK
        if near.enabled:
            decided.clusters = duplicates.near(columns, verdict, split, near, memory_bytes)
        decided.account()
        return decided


@dataclass
class Decided:
    """What became of every document."""

    selection: Selection
    columns: "Columns"
    verdict: NDArray[np.uint8]
    split: NDArray[np.uint8]
    clusters: "duplicates.Clusters | None" = None
    kept: list[list[int]] = field(default_factory=list)
    """Documents, bytes and characters of each source."""
    copies: int = 0
    """How often train documents are taken a second time, and so on."""

    @cached_property
    def spans(self) -> list[tuple[int, int]]:
        """[first, last) document of each source."""
        ends = [0 for _ in self.selection.surveyed]
        for file in self.selection.files:
            ends[file.source] = max(ends[file.source], file.start + file.rows)
        for source in range(1, len(ends)):
            ends[source] = max(ends[source], ends[source - 1])
        return list(zip([0, *ends[:-1]], ends))

    def downsample(self) -> None:
        """Drops what a weight below 1 does not take: before copies are looked for, so that none goes for such a one."""
        for (first, last), one in zip(self.spans, self.selection.surveyed):
            weight = Fraction(one.source.weight)
            if weight >= 1:
                continue
            for low, high in chunks(last - first, first):
                train = (self.split[low:high] == TRAIN) & (self.verdict[low:high] == KEPT)
                times = times_taken(self.columns.ids(low, high), weight)
                self.verdict[low:high][train & (times == 0)] = DOWNSAMPLED

    def account(self) -> None:
        """Enters what was kept and rejected into the books of each source."""
        for (first, last), books, one in zip(self.spans, self.selection.books, self.selection.surveyed):
            kept, weight = [0, 0, 0], Fraction(one.source.weight)
            for low, high in chunks(last - first, first):
                if weight > 1:
                    train = (self.split[low:high] == TRAIN) & (self.verdict[low:high] == KEPT)
                    self.copies += int((times_taken(self.columns.ids(low, high), weight)[train] - 1).sum())
                sizes = self.columns.read("sizes", low, high)
                for code in np.unique(self.verdict[low:high]).tolist():
                    mask = self.verdict[low:high] == code
                    numbers = [int(mask.sum()), *sizes[mask].sum(0, dtype=np.int64).tolist()]
                    if code:
                        books.reject(REASONS[code], *numbers)
                    else:
                        kept = [a + b for a, b in zip(kept, numbers)]
            self.kept.append(kept)


def chunks(number: int, start: int = 0) -> Iterator[tuple[int, int]]:
    """[low, high) of `number` documents from `start` on, a bounded number of them each."""
    for low in range(start, start + number, CHUNK):
        yield low, min(low + CHUNK, start + number)


class Columns:
    """Columns of all documents, in corpus order, read from the packs (duplicates.Columns)."""

    def __init__(self, folder: Path, runs: Sequence[Run], documents: int) -> None:
        self.folder, self.runs, self.documents = folder, runs, documents
        self.starts = np.array([run.start for run in runs], np.int64)

    def __len__(self) -> int:
        return self.documents

    def read(self, name: str, start: int, stop: int, index: Any = ...) -> NDArray[Any]:
        """Documents [start, stop) of a column, or of one of its columns."""
        parts = []
        for run in self.between(start, stop):
            low, high = max(start, run.start), min(stop, run.start + run.rows)
            rows = packs.column(self.folder, run.pack, name)[run.first + low - run.start : run.first + high - run.start]
            parts.append(rows[:, index] if index is not ... else rows)
        empty = np.zeros(0 if index is not ... else (0, 2), np.uint64)
        return np.concatenate(parts) if parts else empty

    def between(self, start: int, stop: int) -> Sequence[Run]:
        """The runs that have documents of [start, stop)."""
        if start >= stop or not len(self.starts):
            return []
        first = int(np.searchsorted(self.starts, start, side="right")) - 1
        last = int(np.searchsorted(self.starts, stop, side="left"))
        return self.runs[first:last]

    def ids(self, start: int, stop: int) -> NDArray[np.uint64]:
        return self.read("ids", start, stop)

    def band(self, j: int, start: int, stop: int) -> NDArray[np.uint64]:
        return self.read("bands", start, stop, j)

    def signatures(self, rows: NDArray[np.int64]) -> NDArray[np.uint16]:
        run_of = np.searchsorted(self.starts, rows, side="right") - 1
        order = np.argsort(run_of, kind="stable")
        found: NDArray[np.uint16] | None = None
        for some in np.split(order, np.flatnonzero(np.diff(run_of[order])) + 1) if len(rows) else []:
            run = self.runs[int(run_of[some[0]])]
            column = packs.column(self.folder, run.pack, "signatures")
            if found is None:
                found = np.empty((len(rows), column.shape[1]), np.uint16)
            found[some] = column[run.first + rows[some] - run.start]
        return found if found is not None else np.zeros((0, 0), np.uint16)
