"""Stage 1 for images: sources become documents in Parquet, the books of what was refused, and a card to look at.

    survey ─► decode and scale each image, in parallel ─► of equal ones the first stays ─► documents-00000.parquet …
              image_units.py, image_decoding.py           image_merging.py                 card.html card.json
                        └─► quarantine.jsonl

A document is an image; all images of a corpus have one shape. Its id is the hash of its shape and pixels, after
scaling, and its split follows from that alone, so equal images never lie in two splits.

The result is the same for any number of workers, any kind of pool and any order of finishing; a killed run loses no
more than the units in work. Of a document some forty bytes are held, beside what each process works on.

Documents and bytes are counted: in = kept + each reject reason, per source; the stage fails if that is off (books.py).
Bytes are those of pixels; of what never became any, those of the file, member or row that was refused.
"""

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from . import image_card, image_merging, places
from .artifacts import Built, Identity, Manifest, Store, Workspace, canonical, save_array, write_atomic
from .books import Books, listed, per_cent
from .errors import DataError, UsageError
from .hardware import thread_count
from .image_books import tell, without_characters
from .image_decoding import ImageLimits, Refused, Shape, decode
from .image_files import pictures
from .image_merging import DUPLICATE, KEPT
from .image_sources import ImageSource, SurveyedImages, survey
from .image_streams import Picture
from .image_units import Manner, ids_of, read_unit, units
from .parallel import Pool, in_order, processes
from .progress import progress, say
from .selection import SPLITS, shares_of, splits_of

STAGE = "corpus"
VERSION = 1
NOT_IDENTITY = {"workers"}
COLOURS = ("auto", "grey", "rgb")
MOST_LABELS = 1 << 16
"""What has more of them are no classes, but texts or numbers of the images."""
SMALL_BYTES = 4 << 20
"""Less than this is read in this process: starting others would take longer."""


@dataclass(frozen=True)
class ImageCorpusConfig:
    """Which images, and how they become documents."""

    sources: tuple[ImageSource, ...]
    """Read in this order; of equal images the first is kept."""
    size: int = 0
    """Side of the images in pixels, which must be square then; 0 for `height` and `width`."""
    height: int = 0
    """Of the images, with `width`; 0 and 0 take the size of the first image that can be read."""
    width: int = 0
    colour: str = "auto"
    """grey, rgb, or auto: that of the first image that can be read."""
    validation: str = "0.05"
    """Share of documents held out for validation; exact, so a string: "0.05" or "1/20"."""
    test: str = "0.05"
    """Share of documents held out for test."""
    max_bad_fraction: str = "0.5"
    """The run stops where a larger share of a source's images is damaged (not merely dropped)."""
    limits: ImageLimits = field(default_factory=ImageLimits)
    """From where on a thing is refused as too large."""
    workers: int = 0
    """Reading processes; 0 takes one per core. Does not change the result."""

    def __post_init__(self) -> None:
        if self.colour not in COLOURS:
            raise UsageError(f"corpus.colour is {self.colour!r}; use {', '.join(COLOURS)}.")
        if min(self.size, self.height, self.width) < 0 or bool(self.height) != bool(self.width):
            raise UsageError("corpus.height and corpus.width go together, and none is below 0; or give corpus.size.")
        if self.size and self.height:
            raise UsageError("corpus.size says what corpus.height and corpus.width do; give one or the others.")
        if self.sides and self.sides[0] * self.sides[1] > self.limits.pixels:
            raise UsageError(f"corpus.size has more pixels than corpus.limits.pixels, {self.limits.pixels}.")

    @property
    def sides(self) -> tuple[int, int] | None:
        """Height and width, where they are given."""
        if self.size:
            return self.size, self.size
        return (self.height, self.width) if self.height else None


def identity(config: ImageCorpusConfig, store_root: Path) -> Identity:
    """What the corpus is a function of. Hashes the sources (remembered in store_root); decodes nothing.

    Raises UsageError for a source that does not exist, a share that is none, or where Pillow is missing.
    """
    shares_of(config)
    return _identity(config, survey(config.sources, store_root))


def _identity(config: ImageCorpusConfig, surveyed: Sequence[SurveyedImages]) -> Identity:
    values = {key: value for key, value in asdict(config).items() if key not in NOT_IDENTITY}
    # The address of a source is no part of the key: the same files elsewhere are the same corpus.
    values["sources"] = [
        {"kind": one.kind, **{name: value for name, value in asdict(one.source).items() if name != "uri"}}
        for one in surveyed
    ]
    values["modality"] = "images"
    try:
        values["engines"] = {"pillow": version("pillow")}
    except PackageNotFoundError:
        raise UsageError("Images need Pillow; pip install 'maskmill[images]'.") from None
    return Identity(STAGE, VERSION, json.loads(canonical(values)), {one.source.name: one.digest for one in surveyed})


def corpus(config: ImageCorpusConfig, store: Store, pool: Pool | None = None) -> tuple[Manifest, bool]:
    """Makes the corpus, or finds it made. Returns its manifest and whether it was reused.

    pool    where images are read and parts written; None for processes of its own
    Raises UsageError when a source does not exist, nothing is left, or a split would be empty; DataError when too much
    of a source is damaged, labels do not fit, the books do not balance, or a file changes while it is read.
    """
    shares_of(config)
    surveyed = survey(config.sources, store.root)
    this = _identity(config, surveyed)

    def build(work: Workspace) -> Built:
        return _Making(config, surveyed, work).make(pool, store.folder(this))

    manifest, reused = store.make(this, build, ["pyarrow", "numpy", "pillow"])
    places.remember(manifest.folder, [one.as_surveyed() for one in surveyed])
    if reused:
        tell(surveyed, manifest.facts["books"], manifest.folder, {})
    return manifest, reused


# The stage


class _Making:
    """One making of a corpus of images."""

    def __init__(self, config: ImageCorpusConfig, surveyed: Sequence[SurveyedImages], work: Workspace) -> None:
        self.config, self.surveyed, self.work = config, surveyed, work
        self.books = [Books() for _ in surveyed]
        self.facts: list[dict[str, Any]] = [
            {"stored": [0, 0], "unread": Counter(), "origins": Counter(), "example": ""} for _ in surveyed
        ]
        self.rows: list[tuple[int, str, int]] = []
        """Source, unit and its number of images."""

    def make(self, pool: Pool | None, final: Path) -> Built:
        for moved in self.work.folder.glob("documents-*.parquet"):  # of a run that was killed here
            moved.replace(self.work.scratch / moved.name.replace("documents", "part"))
        with ExitStack() as stack:
            workers = self._workers()
            if pool is None or not workers:  # to start a cluster would take longer than the work
                pool = stack.enter_context(processes(workers))
            shape = self._shape()
            ids = self._read(pool, Manner(tuple(one.source for one in self.surveyed), shape, self.config.limits))
            self._refuse_bad()
            verdict = _verdict(ids)
            kept = self._account(verdict, shape)
            written = self._write(pool, ids, verdict, shape)
        return self._close(kept, written, shape, final)

    def _workers(self) -> int:
        items = [item for one in self.surveyed for item in one.items]
        small = sum(item.size for item in items) < SMALL_BYTES and not any(item.remote for item in items)
        return 0 if small else self.config.workers or thread_count()

    def _shape(self) -> Shape:
        """The shape of all images, where need be that of the first one that can be read."""
        sides, colour = self.config.sides, self.config.colour
        channels = {"grey": 1, "rgb": 3}.get(colour, 0)
        if sides and channels:
            return Shape(*sides, channels)
        first = self._first()
        if first is None:
            return Shape(*(sides or (1, 1)), channels or 1)  # of no image: what is wrong with them all is said later
        height, width, there = first[1]
        shape = Shape(*(sides or (height, width)), channels or there)
        say(f"corpus: images of {shape}{'' if sides else ', as the first one'} ({first[0]})")
        return shape

    def _first(self) -> tuple[str, tuple[int, ...]] | None:
        for one in self.surveyed:
            for file in one.files:
                for event in pictures(file, one.source, self.config.limits, Counter()):
                    if not isinstance(event, Picture):
                        continue
                    pixels = event.data
                    try:
                        if isinstance(pixels, bytes):
                            pixels, _ = decode(pixels, self.config.limits)
                    except Refused:
                        continue
                    return file.item.label + event.place, pixels.shape
        return None

    def _read(self, pool: Pool | None, manner: Manner) -> NDArray[np.uint64]:
        """Reads all units; writes the quarantine. The ids of all images, in order."""
        work = partial(read_unit, scratch=self.work.scratch, manner=manner)
        jobs = list(units(self.surveyed, self.config.limits))
        ids = [np.zeros((0, 2), np.uint64)]
        with (
            progress("corpus", None, "images") as bar,
            open(self.work.folder / "quarantine.jsonl", "wb") as quarantine,
        ):
            for unit, facts in in_order(jobs, work, pool, waiting=lambda: bar.advance(0)):
                self.books[unit.source].add(facts["books"])
                self.rows.append((unit.source, unit.name, facts["rows"]))
                ids.append(ids_of(self.work.scratch, unit.name))
                quarantine.write((self.work.scratch / f"{unit.name}.rejects").read_bytes())
                whole = self.facts[unit.source]
                whole["stored"] = [a + b for a, b in zip(whole["stored"], facts["stored"])]
                whole["unread"].update(facts["unread"])
                whole["origins"].update(facts["origins"])
                whole["example"] = whole["example"] or facts["example"]
                bar.advance(facts["rows"])
        return np.concatenate(ids)

    def _refuse_bad(self) -> None:
        """Raises DataError where too much of a source is damaged: most likely it is not what its owner meant."""
        most = Fraction(self.config.max_bad_fraction)
        for one, books, facts in zip(self.surveyed, self.books, self.facts):
            faults = books.faults()
            bad, (stored, size) = sum(numbers[0] for numbers in faults.values()), facts["stored"]
            if bad > most * books.came[0] or size > most * stored:
                reasons = listed({reason: numbers[0] for reason, numbers in faults.items()})
                raise DataError(
                    f"{bad} of {books.came[0]} images of source {one.source.name}, {per_cent(size, stored)} of its "
                    f"bytes, are damaged: {reasons}, such as {facts['example']}; see "
                    f"{self.work.folder / 'quarantine.jsonl'}, correct the source's format or image_key, or set "
                    "corpus.max_bad_fraction to 1."
                )

    def _account(self, verdict: NDArray[np.uint8], shape: Shape) -> list[int]:
        """Enters the copies into the books; the images kept of each source."""
        kept, start = [0 for _ in self.surveyed], 0
        for source, _, rows in self.rows:
            some = int((verdict[start : start + rows] == KEPT).sum())
            kept[source] += some
            if rows > some:
                self.books[source].reject("duplicate", rows - some, (rows - some) * shape.bytes, 0)
            start += rows
        return kept

    def _write(
        self, pool: Pool | None, ids: NDArray[np.uint64], verdict: NDArray[np.uint8], shape: Shape
    ) -> list[dict[str, Any]]:
        """Writes the documents; what each part says of itself."""
        scratch = self.work.scratch
        save_array(scratch / "verdict.npy", verdict)
        save_array(scratch / "split.npy", splits_of(ids, *shares_of(self.config)))
        names, told = [], []
        work = partial(image_merging.write_part, scratch=scratch, shape=shape)
        parts = image_merging.parts([(unit, rows) for _, unit, rows in self.rows], verdict, shape)
        with progress("corpus", int((verdict == KEPT).sum()), "documents written") as bar:
            for part, facts in in_order(parts, work, pool):
                names.append(part.name)
                told.append(facts)
                bar.advance(sum(facts["splits"].values()))
        for number, name in enumerate(names):  # now only: a part stays a finished unit until all are there
            (scratch / f"{name}.parquet").rename(self.work.folder / f"documents-{number:05d}.parquet")
        return told

    def _close(self, kept: Sequence[int], told: Sequence[dict[str, Any]], shape: Shape, final: Path) -> Built:
        """Closes the books; says what was refused; draws the card."""
        pages = []
        for one, books, facts, number in zip(self.surveyed, self.books, self.facts, kept):
            page = without_characters(books.page(one.source.name, [number, number * shape.bytes, 0]))
            pages.append(page | {"labels_from": dict(sorted(facts["origins"].items()))})
        total, rejected, splits = Counter[str](), Counter[str](), Counter[str]()
        for page in pages:
            total.update({key: value for key, value in page.items() if isinstance(value, int)})
            rejected.update({reason: numbers["documents"] for reason, numbers in page["rejected"].items()})
        for part in told:
            splits.update(part["splits"])
        unread = {one.source.name: dict(facts["unread"]) for one, facts in zip(self.surveyed, self.facts)}
        tell(self.surveyed, pages, final, unread)
        rows = sum(pq.read_metadata(path).num_rows for path in self.work.folder.glob("documents-*.parquet"))
        if not rows == splits.total() == total["documents_kept"]:
            raise DataError(f"corpus: {rows} documents written, {total['documents_kept']} kept; please report this.")
        _check_splits(self.config, splits, rejected)
        counts = dict(total) | {f"documents_{split}": splits[split] for split in SPLITS} | {"copies": 0}
        counts |= {f"rejected_{reason}": number for reason, number in sorted(rejected.items())}
        labels = {label for part in told for label in part["labels"] if label}
        if len(labels) > MOST_LABELS:
            raise UsageError(
                f"The images have {len(labels)} different labels, more than {MOST_LABELS}; name another label_key, or "
                "set the labels of their source to none."
            )
        card = self._card(pages, counts, told, shape)
        facts = {
            "modality": "images",
            "image": asdict(shape),
            "labels": sorted(labels),
            "sources": card["sources"],
            "books": pages,
        }
        skipped = {one.source.name: {**one.skipped, **unread[one.source.name]} for one in self.surveyed}
        # What was skipped is no part of the key, so it may be no part of the digest either.
        return Built(counts, facts, {"skipped": {name: some for name, some in skipped.items() if some}})

    def _card(
        self, pages: Sequence[dict[str, Any]], counts: dict[str, int], told: Sequence[dict[str, Any]], shape: Shape
    ) -> dict[str, Any]:
        sources = [
            {"name": one.source.name, "kind": one.kind, "files": len(one.items), "licence": one.source.licence}
            for one in self.surveyed
        ]
        settings = {key: value for key, value in asdict(self.config).items() if key not in ("sources", *NOT_IDENTITY)}
        card = image_card.card(settings, shape, sources, pages, counts, told)
        totals = {unit: rows for _, unit, rows in self.rows}
        sheets = image_card.sheets(card, told, self.work.scratch, totals, shape)
        write_atomic(self.work.folder / "card.json", json.dumps(card, indent=1, ensure_ascii=False).encode())
        write_atomic(self.work.folder / "card.html", image_card.render(card, sheets).encode())
        return card


def _verdict(ids: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """KEPT for the first of images with the same id, DUPLICATE for the others."""
    verdict = np.full(len(ids), KEPT, np.uint8)
    order = np.lexsort((ids[:, 1], ids[:, 0]))  # stable: of equal ones the first stays the first
    verdict[order[1:][(ids[order[1:]] == ids[order[:-1]]).all(1)]] = DUPLICATE
    return verdict


def _check_splits(config: ImageCorpusConfig, splits: Counter[str], rejected: Counter[str]) -> None:
    """Raises UsageError for a corpus that nothing can be trained or judged on."""
    number = splits.total()
    if not number:
        why = f" of {rejected.total()} images: {listed(rejected)}" if rejected else ""
        raise UsageError(f"Nothing is left{why}; check corpus.sources and their format.")
    for split, share in (("train", "1"), ("validation", config.validation), ("test", config.test)):
        if Fraction(share) and not splits[split]:
            raise UsageError(
                f"None of the {number} images falls into the {split} split; give more images, or a larger share."
            )
