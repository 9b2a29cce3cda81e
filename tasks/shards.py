"""Shards: rows of tokens, and the masks as data.

    corpus ─► spans ─► encoding.py: encode, cut, pack ─► draws.py: sequence ids, K draws of 𝓜 ─► train-00000.arrow …
              spans.py     a span of documents is a unit       a shard is a unit                     rows.py

First every span is encoded and packed, in any order; then rows are counted through, and the shards are written. So the
bytes depend on the texts and the config only, for any number of workers, any kind of pool and either engine.
"""

import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import draws, encoding, masking, modalities, packing
from .artifacts import Built, Identity, Manifest, Store, Workspace, save_array
from .draws import verify_masks
from .encoding import Differs
from .errors import DataError, UsageError
from .hardware import thread_count
from .masking import Policy
from .parallel import Pool, in_order, processes, threads
from .progress import progress, say
from .shards_config import NOT_IDENTITY, ShardsConfig
from .spans import SPLITS, Span, documents_of, spans

__all__ = ["STAGE", "VERSION", "ShardsConfig", "identity", "shards", "verify_masks"]

STAGE = "shards"
VERSION = 3
SMALL_BYTES = 8 << 20
"""Less than this is worked in this process: starting others would take longer."""
FEW = 4
"""So many workers are threads of this process: encoding and numpy run beside each other there, and processes take a
second to start. What holds the interpreter, some 15 ms for a megabyte of text, would slow down more of them."""
UNDER_TRAINED = 100
"""An id that occurs more rarely in the train split will hardly be learnt."""


class Done(NamedTuple):
    """A span that is encoded."""

    job: encoding.Job
    books: dict[str, dict[str, int]]
    """Of each split."""
    digests: dict[str, str]
    """Of each file below scratch."""


def identity(config: ShardsConfig, corpus_digest: str, vocabulary_digest: str) -> Identity:
    """What the shards are a function of."""
    settings = {name: value for name, value in asdict(config).items() if name not in NOT_IDENTITY}
    return Identity(STAGE, VERSION, settings, {"corpus": corpus_digest, "vocabulary": vocabulary_digest})


def shards(
    config: ShardsConfig, corpus: Manifest, vocabulary: Manifest, store: Store, pool: Pool | None = None
) -> tuple[Manifest, bool]:
    """The stage. Second value: found, not made.

    pool    where documents are encoded and masks drawn; None for processes of its own

    Every document is kept whole, an empty one as no segment; a document of one token is a segment like any other.
    Raises UsageError when a split has no row, DataError when the books do not balance or a file is damaged.
    """

    def build(workspace: Workspace) -> Built:
        return _Making(config, corpus, vocabulary, workspace).make(pool)

    wanted = identity(config, corpus.digest, vocabulary.digest)
    return store.make(wanted, build, libraries=("tokenizers", "pyarrow", "numpy"))


class _Making:
    """One making of shards."""

    def __init__(self, config: ShardsConfig, corpus: Manifest, vocabulary: Manifest, work: Workspace) -> None:
        self.config, self.corpus, self.work = config, corpus, work
        self.vocabulary, self.facts = vocabulary, vocabulary.facts
        self.modality = modalities.of(self.facts)
        self.front = modalities.module(self.modality.tokens)
        self.tokenizer = vocabulary.whole(self.modality.files[0])
        self.table = str(vocabulary.whole(modalities.TABLE)) if modalities.TABLE in vocabulary.files else ""
        self.engine = self.front.REFERENCE
        self.alone = True

    def make(self, pool: Pool | None) -> Built:
        for split in SPLITS:
            _refuse_empty(split, documents_of(self.corpus, split))
        _check_grid(self.config, self.facts)
        started = time.monotonic()
        found = spans(self.corpus, self.config.block_bytes)
        with ExitStack() as stack:
            workers = self._workers(found)
            here = pool is None or self._small()  # to start a cluster would take longer than the work
            self.alone = here and workers <= FEW
            if here:
                pool = stack.enter_context((threads if self.alone else processes)(workers))
            done = self._rows(found, pool)
            encoded = time.monotonic()
            splits, seconds = self._shards(done, pool)
        unigrams = self._save_tables(done)
        counts = self._balance(done, splits)
        positions = sum(split["rows"] for split in splits.values()) * self.config.length
        full = counts["tokens"] + packing.SPECIALS * counts["segments"]
        facts = {
            **{name: value for name, value in asdict(self.config).items() if name not in NOT_IDENTITY},
            "sampler": masking.SAMPLER,
            "vocabulary": {key: self.facts[key] for key in ("size", "special_ids", "ordinary")},
            **{key: self.facts[key] for key in ("modality", "payload") if key in self.facts},
            "fill_rate": round(full / positions, 6),
            "cut_rate": round(counts["documents_cut"] / max(counts["documents"], 1), 6),
            **_rare(unigrams, masking.ids_in(self.facts["ordinary"])),
            "splits": splits,
        }
        measured = {"engine": self.engine, "seconds_encode": encoded - started, "cpu_seconds_draws": seconds}
        return Built(counts, facts, measured | {"seconds_masks": time.monotonic() - encoded})

    def _small(self) -> bool:
        return self.corpus.counts.get("bytes_kept", SMALL_BYTES) < SMALL_BYTES

    def _workers(self, found: list[Span]) -> int:
        wanted = self.config.workers or thread_count()
        return 0 if self._small() or wanted == 1 else min(wanted, max(len(found), 2))

    # First pass: spans of documents become blocks of rows.

    def _rows(self, found: list[Span], pool: Pool | None) -> list[Done]:
        """The spans' jobs and receipts, in order. Where the fast engine is not equal after all, all is made again."""
        self.engine, why = self.front.settle(self.tokenizer, found)
        if why:
            say(f"{STAGE:<10}  engine {self.engine}: {why}")
        try:
            return self._encode(found, pool)
        except Differs as error:
            say(f"{STAGE:<10}  {error} All spans are encoded again by {self.front.REFERENCE}.")
            self.engine = self.front.REFERENCE
            return self._encode(found, pool)

    def _encode(self, found: list[Span], pool: Pool | None) -> list[Done]:
        done = []
        with progress(STAGE, sum(documents_of(self.corpus, split) for split in SPLITS), "documents") as bar:
            for job, receipt in in_order(map(self._job, found), encoding.make_rows, pool):
                done.append(Done(job, receipt["splits"], receipt["digests"]))
                bar.advance(sum(books["documents"] for books in receipt["splits"].values()))
        return done

    def _job(self, span: Span) -> encoding.Job:
        return encoding.Job(
            span,
            str(self.work.scratch),
            modalities.name_of(self.facts),
            self.engine,
            str(self.tokenizer),
            self.table,
            self.facts["size"],
            dict(self.facts["special_ids"]),
            self.config.length,
            self.config.shortest,
            self.config.packing,
            self.alone,
        )

    # Second pass: rows get their global sequence ids and their masks.

    def _shards(self, done: list[Done], pool: Pool | None) -> tuple[dict[str, Any], float]:
        """Writes the shards. Returns facts["splits"], and the CPU seconds that the draws took."""
        for path in self.work.folder.glob("*.arrow"):  # a run was killed while they moved: back to their receipts
            os.replace(path, self.work.scratch / path.name)
        splits: dict[str, dict[str, Any]] = {split: {"rows": 0, "masked": 0, "files": []} for split in SPLITS}
        jobs = [job for split in SPLITS for job in self._shard_jobs(split, done)]
        seconds = 0.0
        with progress("masks", sum(books["rows"] for one in done for books in one.books.values()), "rows") as bar:
            for job, books in in_order(jobs, draws.make_shard, pool):
                split = splits[job.name.partition("-")[0]]
                split["files"].append({"name": job.name, "rows": books["rows"], "first_sequence": job.first})
                for key in ("rows", "segments", "tokens", "masked", "segments_without_mask"):
                    split[key] = split.get(key, 0) + books[key]
                seconds += books["seconds"]
                bar.advance(books["rows"])
        for name, facts in splits.items():  # all are there: only now may a receipt lose its file
            _refuse_empty(name, facts["rows"])
            if not facts["masked"]:
                raise UsageError(
                    f"Nothing of the {name} split is hidden at shards.rate {self.config.rate}: none of its segments "
                    f"has {self.config.shortest} tokens; use a higher rate, or longer documents."
                )
        for facts in splits.values():
            for entry in facts["files"]:
                os.replace(self.work.scratch / entry["name"], self.work.folder / entry["name"])
        return splits, seconds

    def _shard_jobs(self, split: str, done: list[Done]) -> Iterator[draws.Job]:
        """Shards of consecutive blocks, as many as have about `shard_bytes` of documents together."""
        policy = Policy(self.config.policy, self.config.span, draws.grid_of(self.facts))
        seed, policy, number_of_draws = masking.manner_of(split, self.config.seed, policy, self.config.draws)
        fixed: dict[str, Any] = {"scratch": str(self.work.scratch), "seed": seed, "policy": policy}
        number, first, document = 0, 0, 0
        for some in _grouped([(one, one.books[split]) for one in done], self.config.shard_bytes):
            documents = [books["documents"] for _, books in some]
            firsts = tuple(document + sum(documents[:at]) for at in range(len(some)))
            rows = [
                (one, one.job.block(split), at) for (one, books), at in zip(some, firsts, strict=True) if books["rows"]
            ]
            if rows:
                yield draws.Job(
                    name=f"{split}-{number:05d}.arrow",
                    blocks=tuple(block for _, block, _ in rows),
                    digests=tuple(one.digests[block] for one, block, _ in rows),
                    first_documents=tuple(at for _, _, at in rows),
                    first=first,
                    rate=self.config.rate,
                    draws=number_of_draws,
                    modality=modalities.name_of(self.facts),
                    table=self.table,
                    **fixed,
                )
                number, first = number + 1, first + sum(books["rows"] for _, books in some)
            document += sum(documents)

    # The books.

    def _save_tables(self, done: list[Done]) -> NDArray[np.int64]:
        """unigrams.npy: how often each id occurs in the train split, int64 (V,); and the vocabulary's table."""
        unigrams = np.zeros(self.facts["size"], np.int64)
        for one in done:
            path = self.work.scratch / one.job.unigrams
            draws.check_bytes(path, one.digests[path.name])
            unigrams += np.load(path, allow_pickle=False)
        save_array(self.work.folder / "unigrams.npy", unigrams)
        if self.table:
            shutil.copyfile(self.table, self.work.folder / modalities.TABLE)
        return unigrams

    def _balance(self, done: list[Done], splits: dict[str, Any]) -> dict[str, int]:
        """The stage's books. Raises DataError when a document or a token is missing or too many."""
        counts: Counter[str] = Counter()
        for split in SPLITS:
            sums: Counter[str] = Counter()
            for one in done:
                sums.update(one.books[split])
            pairs = [
                ("documents", documents_of(self.corpus, split), sums["documents"]),
                ("tokens", sums["tokens"], splits[split]["tokens"]),
            ]
            for what, came, kept in pairs:
                if came != kept:
                    raise DataError(
                        f"The books of shards do not balance: {came} {what} came into the {split} split, {kept} are in "
                        "its rows; run `maskmill verify corpus`."
                    )
            counts.update(sums)
            counts[f"documents_{split}"], counts[f"tokens_{split}"] = sums["documents"], sums["tokens"]
        return dict(counts)


def _grouped(blocks: list[tuple[Done, dict[str, int]]], bytes_each: int) -> Iterator[list[Any]]:
    """Runs of blocks of about so many bytes of documents; a larger block alone."""
    some: list[Any] = []
    held = 0
    for block in blocks:
        if some and held + block[1]["bytes"] > bytes_each:
            yield some
            some, held = [], 0
        some.append(block)
        held += block[1]["bytes"]
    if some:
        yield some


def _rare(unigrams_V: NDArray[np.int64], ordinary: NDArray[np.int64]) -> dict[str, int]:
    """Ids that a document can have, but that the train split has never, or too rarely to be learnt."""
    counts = unigrams_V[ordinary]
    return {"ids_unused": int((counts == 0).sum()), "ids_under_trained": int((counts < UNDER_TRAINED).sum())}


def _check_grid(config: ShardsConfig, facts: Mapping[str, Any]) -> None:
    """Raises UsageError where the settings do not fit documents whose tokens lie in a grid, or do not."""
    rows, columns = draws.grid_of(facts)
    if config.policy == "block" and not rows:
        raise UsageError("shards.policy is block, and the tokens of these documents lie in no grid; use uniform.")
    if (tokens := rows * columns) > config.length - packing.SPECIALS:
        least = -(-(tokens + packing.SPECIALS) // 8) * 8
        raise UsageError(
            f"shards.length is {config.length}, and a document has {tokens:,} tokens that must not be cut, and two "
            f"special ones; use {least} or more, or larger tokens."
        )
    if rows and config.packing != "whole":
        raise UsageError(
            f"shards.packing is {config.packing}, which may cut a document, and its tokens lie in a grid; use whole."
        )


def _refuse_empty(split: str, rows: int) -> None:
    if not rows:
        raise UsageError(
            f"The {split} split has nothing to make a row of; add documents to the sources, or give that split a "
            "larger share of the corpus."
        )
