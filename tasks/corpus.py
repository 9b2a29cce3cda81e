"""Stage 1: sources become documents in Parquet, the books of what was refused, and a card to look at.

    survey ─► read and clean each file, in parallel, kept per file ─► select, in order ─► documents-00000.parquet …
              packs.py: a new file costs only itself                   selection.py       card.html card.json
                        └─► quarantine.jsonl

The result is the same for any number of workers, any kind of pool and any order of finishing; a killed run loses no
more than the files and parts in work. Memory is bounded by the config: of a document a few bytes are held, of a file
two kilobytes, of a source with a budget the ids of its documents, beside `memory_bytes` and what each process works on.

Documents, bytes and characters are counted when they are read and again when they are written: in = kept + each reject
reason + what cleaning took off, per source; the stage fails if that is off (books.py).
"""

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from . import corpus_card, merging, packs, places
from .artifacts import Built, Identity, Manifest, Store, Workspace, canonical, digest_of, save_array, write_atomic
from .books import is_fault, listed, per_cent
from .cleaning import Cleaner, Cleaning, engines
from .errors import DataError, UsageError
from .findings import card
from .folders import PASSED_OVER
from .hardware import thread_count
from .leakage import Probe, probe_of
from .minhash import NearDuplicates
from .packs import Manner, Reading
from .parallel import Pool, in_order, processes
from .progress import Bar, progress, say
from .quarantine import lines
from .selection import SPLITS, Decided, Selection, shares_of
from .sources import Source, Surveyed, survey
from .streams import Item, Limits
from .units import read_unit, units

STAGE = "corpus"
VERSION = 2
LEAST_MEMORY = 16 << 20
NOT_IDENTITY = {"workers", "memory_bytes"}
FOLDER = ".packs"

SMALL_BYTES = 8 << 20
"""Less than this is read in this process: starting others would take longer."""


@dataclass(frozen=True)
class CorpusConfig:
    """Which text, and how it becomes documents."""

    sources: tuple[Source, ...]
    """Read in this order; of equal documents the first is kept."""
    cleaning: Cleaning = field(default_factory=Cleaning)
    """What is done to each text, and which ones are dropped."""
    near_duplicates: NearDuplicates = field(default_factory=NearDuplicates)
    """What counts as a near copy."""
    evaluation_files: tuple[Source, ...] = ()
    """Texts that models will be judged by: train documents that share 13 words in a row with one are dropped."""
    validation: str = "0.05"
    """Share of documents held out for validation; exact, so a string: "0.05" or "1/20"."""
    test: str = "0.05"
    """Share of documents held out for test."""
    max_bad_fraction: str = "0.5"
    """The run stops where a larger share of a source's documents is damaged (not merely dropped)."""
    limits: Limits = field(default_factory=Limits)
    """Where texts are cut, and from where on a thing is refused as too large."""
    workers: int = 0
    """Reading processes; 0 takes one per core. Does not change the result."""
    memory_bytes: int = 1 << 30
    """What looking for duplicates may take, about; more documents than fit are looked at in several passes."""

    def __post_init__(self) -> None:
        if self.memory_bytes < LEAST_MEMORY:
            raise UsageError(f"corpus.memory_bytes is {self.memory_bytes}; use {LEAST_MEMORY} or more.")


def identity(config: CorpusConfig, store_root: Path) -> Identity:
    """What the corpus is a function of. Hashes the sources (remembered in store_root); parses nothing.

    Raises UsageError for a source that does not exist or a share that is none.
    """
    shares_of(config)
    return _identity(config, survey(config.sources, store_root), _survey_evaluation(config, store_root))


def _survey_evaluation(config: CorpusConfig, store_root: Path) -> list[Surveyed]:
    return survey(config.evaluation_files, store_root) if config.evaluation_files else []


def _identity(config: CorpusConfig, surveyed: Sequence[Surveyed], evaluation: Sequence[Surveyed]) -> Identity:
    values = {key: value for key, value in asdict(config).items() if key not in NOT_IDENTITY}
    # The address of a source is no part of the key: the same files elsewhere are the same corpus.
    for key, some in (("sources", surveyed), ("evaluation_files", evaluation)):
        values[key] = [_described(one) for one in some]
    values["engines"] = _engines(config, [*surveyed, *evaluation])
    inputs = {one.source.name: one.digest for one in surveyed}
    inputs |= {f"evaluation/{one.source.name}": one.digest for one in evaluation}
    return Identity(STAGE, VERSION, json.loads(canonical(values)), inputs)


def _engines(config: CorpusConfig, surveyed: Sequence[Surveyed]) -> dict[str, str]:
    return engines(config.cleaning, any(item.kind == "html" for one in surveyed for item in one.items))


def _described(one: Surveyed) -> dict[str, Any]:
    """A source without its address."""
    return {"kind": one.kind, **{name: value for name, value in asdict(one.source).items() if name != "uri"}}


def corpus(config: CorpusConfig, store: Store, pool: Pool | None = None) -> tuple[Manifest, bool]:
    """Makes the corpus, or finds it made. Returns its manifest and whether it was reused.

    pool    where files are read and parts written; None for processes of its own
    Raises UsageError when a source does not exist, nothing is left, or a split would be empty; DataError when too much
    of a source is damaged, the books do not balance, or a file changes while it is read.
    """
    shares_of(config)
    surveyed = survey(config.sources, store.root)
    evaluation = _survey_evaluation(config, store.root)
    this = _identity(config, surveyed, evaluation)

    def build(work: Workspace) -> Built:
        made = _Making(config, surveyed, evaluation, work, store.root / STAGE / FOLDER)
        return made.make(pool, store.folder(this))

    manifest, reused = store.make(this, build, ["pyarrow", "numpy"])
    places.remember(manifest.folder, surveyed, evaluation)
    if reused:
        _tell(surveyed, manifest.facts["books"], manifest.folder)
    return manifest, reused


# The stage


class _Making:
    """One making of a corpus."""

    def __init__(
        self,
        config: CorpusConfig,
        surveyed: Sequence[Surveyed],
        evaluation: Sequence[Surveyed],
        work: Workspace,
        store_of_packs: Path,
    ) -> None:
        self.config, self.surveyed, self.evaluation, self.work = config, surveyed, evaluation, work
        how = [VERSION, asdict(config.cleaning), asdict(config.limits), _engines(config, [*surveyed, *evaluation])]
        near = asdict(config.near_duplicates) if config.near_duplicates.enabled else None
        probes = [[one.digest, _described(one)] for one in evaluation]
        self.folder = store_of_packs / digest_of([*how, near, probes])[:32]
        self.entries: dict[str, tuple[str, dict[str, Any]]] = {}
        """Key of a file -> its pack and entry, for as long as it may be needed."""
        digests = Counter(item.digest for one in surveyed for item in one.items)
        self.examples = ["" for _ in surveyed]
        """Of each source, the first thing that was wrong."""
        self.repeated = {digest for digest, number in digests.items() if number > 1}

    def make(self, pool: Pool | None, final: Path) -> Built:
        for moved in self.work.folder.glob("documents-*.parquet"):  # of a run that was killed here
            moved.replace(self.work.scratch / moved.name.replace("documents", "part"))
        with packs.in_use(self.folder), ExitStack() as stack:
            workers = self._workers()
            if pool is None or not workers:  # to start a cluster would take longer than the work
                pool = stack.enter_context(processes(workers))
            manner, probe = self._manner()
            selection = self._read(pool, manner)
            self._refuse_bad(selection)
            near, shares = self.config.near_duplicates, shares_of(self.config)
            decided = selection.decide(shares, near, bool(manner.probe), self.config.memory_bytes)
            counts = self._write(pool, decided)
            return self._account(decided, counts, probe, final)

    def _workers(self) -> int:
        sizes = [item.size for one in self.surveyed for item in one.items]
        small = sum(sizes) < SMALL_BYTES and not any(item.remote for one in self.surveyed for item in one.items)
        return 0 if small else self.config.workers or thread_count()

    def _manner(self) -> tuple[Manner, Probe | None]:
        """How files are read; the 13-grams of the evaluation sets go through a file, so that every process has them."""
        manner = Manner(self.config.cleaning, self.config.limits, self.config.near_duplicates)
        if not self.evaluation:
            return manner, None
        probe = probe_of(self.evaluation, Cleaner(self.config.cleaning), self.config.limits)
        path = self.work.scratch / "evaluation.npy"
        probe.save(path)
        return replace(manner, probe=str(path)), probe

    def _read(self, pool: Pool | None, manner: Manner) -> Selection:
        """Reads all files, new ones in parallel; writes the quarantine."""
        selection = Selection(self.folder, self.surveyed)
        total = sum(item.size for one in self.surveyed for item in one.items) / 1e6
        open_end = any(one.source.budget_bytes or one.kind == "hub" for one in self.surveyed)
        work = partial(read_unit, folder=self.folder, manner=manner)
        jobs = units(self.surveyed, packs.index(self.folder))
        quarantine = open(self.work.folder / "quarantine.jsonl", "wb")  # noqa: SIM115
        with progress("corpus", None if open_end else total, "MB") as bar, quarantine:
            show = partial(_show, bar, selection)
            for unit, (pack, found) in in_order(jobs, work, pool, lambda unit: selection.room(unit.source), show):
                self.entries |= {key: (pack, entry) for key, entry in found.items()}
                for key, item in unit.files:
                    if not selection.room(unit.source):
                        continue
                    if key not in self.entries:  # it was asked for by a source whose budget was full before it came
                        pack, found = packs.read(Reading(packs.name_of([key]), ((key, item),)), self.folder, manner)
                        self.entries |= {key: (pack, entry) for key, entry in found.items()}
                    self._take(selection, unit.source, item, key, quarantine)
                    if item.digest not in self.repeated:
                        self.entries.pop(key, None)
                bar.advance(sum(item.size for _, item in unit.files) / 1e6)
                show()
        return selection

    def _take(self, selection: Selection, source: int, item: Item, key: str, quarantine: Any) -> None:
        pack, entry = self.entries[key]
        selection.take(source, item.label, pack, entry)
        for fault in lines(self.folder / pack / "quarantine.jsonl", entry["faults"], item.label):
            self.examples[source] = self.examples[source] or f"{fault['reason']}: {fault['detail'] or item.label}"
            quarantine.write(json.dumps(fault, sort_keys=True).encode() + b"\n")

    def _refuse_bad(self, selection: Selection) -> None:
        """Raises DataError where too much of a source is damaged: most likely it is not what its owner meant."""
        most = Fraction(self.config.max_bad_fraction)
        for one, books, example in zip(self.surveyed, selection.books, self.examples):
            faults = books.faults()
            bad, size = (sum(numbers[unit] for numbers in faults.values()) for unit in (0, 1))
            if bad > most * books.came[0] or size > most * books.came[1]:
                reasons = listed({reason: numbers[0] for reason, numbers in faults.items()})
                size_said, where = per_cent(size, books.came[1]), self.work.folder / "quarantine.jsonl"
                raise DataError(
                    f"{bad} of {books.came[0]} documents of source {one.source.name}, {size_said} of its bytes, are "
                    f"damaged: {reasons}, such as {example}; see {where}, correct the source's text_key, format or "
                    "encoding, or set corpus.max_bad_fraction to 1."
                )

    def _write(self, pool: Pool | None, decided: Decided) -> Counter[str]:
        """Writes the documents; returns how many each split has."""
        scratch = self.work.scratch
        save_array(scratch / "verdict.npy", decided.verdict)
        save_array(scratch / "split.npy", decided.split)
        counts: Counter[str] = Counter()
        kept = sum(numbers[0] for numbers in decided.kept)
        names: list[str] = []
        work = partial(merging.write_part, folder=self.folder, scratch=scratch)
        with progress("corpus", kept, "documents written") as bar:
            for part, written in in_order(merging.parts(decided), work, pool):
                names.append(part.name)
                counts.update(written)
                bar.advance(sum(written.values()))
        for number, name in enumerate(names):  # now only: a part stays a finished unit until all are there
            (scratch / f"{name}.parquet").rename(self.work.folder / f"documents-{number:05d}.parquet")
        return counts

    def _account(self, decided: Decided, written: Counter[str], probe: Probe | None, final: Path) -> Built:
        """Closes the books; says what was refused; draws the card."""
        pages = [
            books.page(one.source.name, kept)
            for one, books, kept in zip(self.surveyed, decided.selection.books, decided.kept)
        ]
        total = Counter[str]()
        rejected = Counter[str]()
        for page in pages:
            total.update({key: value for key, value in page.items() if isinstance(value, int)})
            rejected.update({reason: numbers["documents"] for reason, numbers in page["rejected"].items()})
        _tell(self.surveyed, pages, final)
        if decided.clusters and decided.clusters.passed_over:
            number = decided.clusters.passed_over
            say(f"corpus: near copies: {number} comparisons were left out, too many unlike documents share a key")
        rows = sum(pq.read_metadata(path).num_rows for path in self.work.folder.glob("documents-*.parquet"))
        if not rows == written.total() == total["documents_kept"]:
            raise DataError(f"corpus: {rows} documents written, {total['documents_kept']} kept; please report this.")
        _check_splits(self.config, written, rejected)
        counts = dict(total) | {f"documents_{split}": written[split] for split in SPLITS} | {"copies": decided.copies}
        counts |= {f"rejected_{reason}": number for reason, number in sorted(rejected.items())}
        sources = [
            {"name": one.source.name, "kind": one.kind, "files": len(one.items), "licence": one.source.licence}
            for one in self.surveyed
        ]
        found = card(asdict(self.config), decided, pages, counts, probe)
        write_atomic(self.work.folder / "card.json", json.dumps(found, indent=1, ensure_ascii=False).encode())
        write_atomic(self.work.folder / "card.html", corpus_card.render(found).encode())
        # What was skipped is no part of the key, so it may be no part of the digest either.
        skipped = {one.source.name: one.skipped for one in self.surveyed if one.skipped}
        return Built(counts, {"sources": sources, "books": pages}, {"skipped": skipped})


def _show(bar: Bar, selection: Selection) -> None:
    bar.note(f"{selection.documents:,} documents, {selection.documents / max(bar.seconds, 1e-9):,.0f} documents/s")


def _tell(surveyed: Sequence[Surveyed], pages: Sequence[dict[str, Any]], folder: Path) -> None:
    """Says of each source what was dropped, quarantined and left unread."""
    for one, page in zip(surveyed, pages):
        lost = {reason: numbers["documents"] for reason, numbers in page["rejected"].items()}
        if page["documents_in"] and not page["documents_kept"]:
            say(f"corpus: {page['source']}: NOTHING of {page['documents_in']} documents was kept")
        if dropped := {reason: number for reason, number in lost.items() if not is_fault(reason)}:
            say(f"corpus: {page['source']}: dropped {listed(dropped)}")
        if faults := {reason: number for reason, number in lost.items() if is_fault(reason)}:
            say(f"corpus: {page['source']}: quarantined {listed(faults)}; see {folder / 'quarantine.jsonl'}")
        if one.skipped:
            hint = "; their source's `format` would read them" if set(one.skipped) - set(PASSED_OVER) else ""
            say(f"corpus: {page['source']}: files left unread: {listed(one.skipped)}{hint}")


def _check_splits(config: CorpusConfig, splits: Counter[str], rejected: Counter[str]) -> None:
    """Raises UsageError for a corpus that nothing can be trained or judged on."""
    number = splits.total()
    if not number:
        why = f" of {rejected.total()} documents: {listed(rejected)}" if rejected else ""
        raise UsageError(f"Nothing is left{why}; check corpus.sources, their text_key and corpus.cleaning.")
    for split, share in (("train", "1"), ("validation", config.validation), ("test", config.test)):
        if Fraction(share) and not splits[split]:
            raise UsageError(
                f"None of the {number} documents falls into the {split} split; give more text, or make "
                f"corpus.limits.document_characters smaller."
            )
