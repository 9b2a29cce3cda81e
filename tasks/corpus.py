"""Stage 1: sources become documents in Parquet, and the books of what was refused.

    sources ─► units of files, read in parallel ─► in order: duplicates out, budget ─► documents-00000.parquet …
                                        └─► quarantine.jsonl

Each unit (a large file, or several small ones) is read into scratch, with a receipt, so that a killed run loses no more
than the units in work. One process then takes them in order: the result is the same for any number of workers.

Documents are counted when they are read and again when they are written: in = kept + each reject reason, per source,
and the same for bytes; the stage fails if that is off. Bytes are those of the normalised text in UTF-8; for what never
became a text, those of the line, row or file that was refused.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from .artifacts import Built, Identity, Manifest, Store, Workspace, finish_unit, finished_unit
from .cleaning import document_id, split_of
from .errors import DataError, UsageError
from .hardware import thread_count
from .merging import COUNTED_ONLY, Books, Merge, Writer
from .parallel import in_order
from .progress import progress, say
from .reading import documents
from .sources import Source, Surveyed, survey
from .streams import Document, Item, Limits

STAGE = "corpus"
VERSION = 1
NOT_IDENTITY = {"workers"}
SPLITS = ("train", "validation", "test")

UNIT_BYTES = 4 << 20
UNIT_FILES = 256
SMALL_BYTES = 8 << 20
"""Less than this is read in this process: starting others would take longer."""


@dataclass(frozen=True)
class CorpusConfig:
    """Which text, and how it becomes documents."""

    sources: tuple[Source, ...]
    """Read in this order; of equal documents the first is kept."""
    min_characters: int = 64
    """A shorter document is dropped."""
    validation: str = "0.05"
    """Share of documents held out for validation; exact, so a string: "0.05" or "1/20"."""
    test: str = "0.05"
    """Share of documents held out for test."""
    limits: Limits = field(default_factory=Limits)
    """Where texts are cut, and from where on a thing is refused as too large."""
    workers: int = 0
    """Reading processes; 0 takes one per core. Does not change the result."""


def identity(config: CorpusConfig, store_root: Path) -> Identity:
    """What the corpus is a function of. Hashes the sources (remembered in store_root); parses nothing.

    Raises UsageError for a source that does not exist or a share that is none.
    """
    _fractions(config)
    return _identity(config, survey(config.sources, store_root))


def _identity(config: CorpusConfig, surveyed: Sequence[Surveyed]) -> Identity:
    values = {key: value for key, value in asdict(config).items() if key not in NOT_IDENTITY}
    # The address of a source is no part of the key: the same files elsewhere are the same corpus.
    values["sources"] = [
        {"kind": one.kind, **{key: getattr(one.source, key) for key in ("name", "text_key", "budget_bytes")}}
        for one in surveyed
    ]
    inputs = {one.source.name: one.digest for one in surveyed}
    return Identity(STAGE, VERSION, values, inputs)


def corpus(config: CorpusConfig, store: Store) -> tuple[Manifest, bool]:
    """Makes the corpus, or finds it made. Returns its manifest and whether it was reused.

    Raises UsageError when a source does not exist, nothing is left, or a split would be empty; DataError when the books
    do not balance or a file changes while it is read.
    """
    _fractions(config)
    surveyed = survey(config.sources, store.root)
    this = _identity(config, surveyed)
    return store.make(this, lambda work: _build(config, surveyed, work, store.folder(this)), ["pyarrow"])


def _fractions(config: CorpusConfig) -> tuple[Fraction, Fraction]:
    shares = []
    for name in ("validation", "test"):
        value = getattr(config, name)
        try:
            share = Fraction(value)
        except (ValueError, ZeroDivisionError):
            raise UsageError(f"corpus.{name} is {value!r}; write a share such as 0.05 or 1/20.") from None
        if not 0 <= share < 1:
            raise UsageError(f"corpus.{name} is {value}; it must be at least 0 and below 1.")
        shares.append(share)
    if sum(shares) >= 1:
        raise UsageError(f"corpus.validation + corpus.test = {sum(shares)} leaves nothing to train on; lower one.")
    return shares[0], shares[1]


# Units: read in parallel, resumable


@dataclass(frozen=True)
class Unit:
    """Some files of one source, read by one process."""

    name: str
    source: int
    items: tuple[Item, ...]
    budget_bytes: int


def _units(surveyed: Sequence[Surveyed]) -> Iterator[Unit]:
    """Consecutive files in groups of about UNIT_BYTES: a fsync per small file would cost more than reading it."""
    number = 0
    for index, one in enumerate(surveyed):
        group: list[Item] = []
        for position, item in enumerate(one.items, 1):
            group.append(item)
            full = sum(file.size for file in group) >= UNIT_BYTES or len(group) == UNIT_FILES
            if full or position == len(one.items):
                yield Unit(f"unit-{number:06d}", index, tuple(group), one.source.budget_bytes)
                number, group = number + 1, []


def read_unit(unit: Unit, scratch: Path, config: CorpusConfig) -> dict[str, Any]:
    """Reads the files of a unit into <scratch>/<unit>.parquet and .jsonl, unless an earlier run did.

    Returns the facts of its receipt. It stops by itself when its own text fills the budget of its source.
    """
    if (facts := finished_unit(scratch, unit.name)) is not None:
        return facts
    validation, test = _fractions(config)
    books = Books()
    seen: set[str] = set()
    stopped = False
    table, refused = scratch / f"{unit.name}.parquet", scratch / f"{unit.name}.jsonl"
    with Writer(table, "lz4") as writer, open(refused, "wb") as quarantine:
        for item, event in _events(unit, config.limits):
            if isinstance(event, Document):
                data = event.text.encode()
                name = document_id(data)
                reason = _dropped(event.text, name in seen, config)
                books.take(len(data), reason)
                if not reason:
                    seen.add(name)
                    split = split_of(name, validation, test)
                    writer.add((name, event.text, item.label, event.offset, split), len(data))
            else:
                books.take(event.bytes, event.reason)
                if event.reason not in COUNTED_ONLY:
                    line = {"source": item.label, **asdict(event)}
                    quarantine.write(json.dumps(line, sort_keys=True).encode() + b"\n")
            if 0 < unit.budget_bytes <= writer.bytes:
                stopped = True
                break
    return finish_unit(scratch, unit.name, [table, refused], {**books.facts(), "stopped": stopped})


def _events(unit: Unit, limits: Limits) -> Iterator[tuple[Item, Any]]:
    for item in unit.items:
        for event in documents(item, limits):
            yield item, event


def _dropped(text: str, duplicate: bool, config: CorpusConfig) -> str:
    if not text:
        return "empty"
    if len(text) < config.min_characters:
        return "too_short"
    return "duplicate" if duplicate else ""


# The stage


def _build(config: CorpusConfig, surveyed: Sequence[Surveyed], work: Workspace, final: Path) -> Built:
    for stale in work.folder.glob("documents-*.parquet"):  # of a run that was killed here
        stale.unlink()
    units = list(_units(surveyed))
    small = sum(item.size for unit in units for item in unit.items) < SMALL_BYTES
    workers = 0 if small else min(config.workers or thread_count(), len(units))
    merge = Merge(surveyed, work)
    with progress("corpus", unit="documents") as bar, open(work.folder / "quarantine.jsonl", "wb") as quarantine:

        def show() -> None:
            """A large file takes a while: what is read of it already lies in scratch."""
            ahead = sum(path.stat().st_size for path in work.scratch.glob("*.parquet"))
            bar.note(f"{merge.bytes / 1e6:.1f} MB kept, {ahead / 1e6:.1f} MB read")

        read = partial(read_unit, scratch=work.scratch, config=config)
        for unit, facts in in_order(units, read, workers, lambda unit: merge.room(unit.source), show):
            name = unit.name
            if facts["stopped"] and merge.falls_short(unit.source, name):
                # Earlier units had part of its text, so its own budget ended it too early: read all of it.
                name += "-whole"
                facts = read(replace(unit, name=name, budget_bytes=0))
            merge.take(unit.source, name, facts)
            quarantine.write((work.scratch / f"{name}.jsonl").read_bytes())
            bar.advance(facts["came"][0])
            show()
        merge.close()
    return _account(config, surveyed, merge, final / "quarantine.jsonl")


def _account(config: CorpusConfig, surveyed: Sequence[Surveyed], merge: Merge, quarantine: Path) -> Built:
    """Closes the books; says what was refused."""
    pages = [books.page(one.source.name, kept) for one, books, kept in zip(surveyed, merge.books, merge.kept)]
    total = Counter[str]()
    rejected = Counter[str]()
    for page in pages:
        total.update({key: page[key] for key in ("documents_in", "documents_kept", "bytes_in", "bytes_kept")})
        rejected.update({reason: entry["documents"] for reason, entry in page["rejected"].items()})
        lost = {reason: n["documents"] for reason, n in page["rejected"].items()}
        if dropped := {reason: n for reason, n in lost.items() if reason in COUNTED_ONLY}:
            say(f"corpus: {page['source']}: dropped {_list(dropped)}")
        if faults := {reason: n for reason, n in lost.items() if reason not in COUNTED_ONLY}:
            say(f"corpus: {page['source']}: quarantined {_list(faults)}; see {quarantine}")
    for one in surveyed:
        if one.skipped:
            say(f"corpus: {one.source.name}: files left unread by their suffix: {_list(one.skipped)}")
    written = sum(pq.read_metadata(path).num_rows for path in merge.files)
    if written != total["documents_kept"]:
        raise DataError(f"corpus: {written} documents written, {total['documents_kept']} kept; please report this.")
    _check_splits(config, merge.splits, rejected)
    counts = dict(total) | {f"documents_{split}": merge.splits[split] for split in SPLITS}
    counts |= {f"rejected_{reason}": number for reason, number in sorted(rejected.items())}
    sources = [{"name": one.source.name, "kind": one.kind, "files": len(one.items)} for one in surveyed]
    # What was skipped is no part of the key, so it may be no part of the digest either.
    skipped = {one.source.name: one.skipped for one in surveyed if one.skipped}
    return Built(counts, {"sources": sources, "books": pages}, {"skipped": skipped})


def _check_splits(config: CorpusConfig, splits: Counter[str], rejected: Counter[str]) -> None:
    """Raises UsageError for a corpus that nothing can be trained or judged on."""
    documents = splits.total()
    if not documents:
        why = f" of {rejected.total()} documents: {_list(rejected)}" if rejected else ""
        raise UsageError(f"Nothing is left{why}; check corpus.sources, their text_key and corpus.min_characters.")
    for split, share in (("train", "1"), ("validation", config.validation), ("test", config.test)):
        if Fraction(share) and not splits[split]:
            raise UsageError(
                f"None of the {documents} documents falls into the {split} split; give more text, or make "
                f"corpus.limits.document_characters smaller."
            )


def _list(numbers: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in sorted(numbers.items()))
