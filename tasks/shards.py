"""Shards: rows of tokens, and the masks as data.

    block       a run of documents of one split, encoded and packed by itself: the unit that a killed run keeps
    shard       the file of a block's rows (see rows.py), with their global sequence ids and K draws of 𝓜

First every block is encoded and packed, in any order; then sequence ids are counted through and the shards are written.
So the bytes depend on the texts and the config only. A draw depends on (seed, draw, sequence id, position) only, hence
`verify_masks` can prove every stored one.
"""

import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from . import masking, packing
from .artifacts import Built, Identity, Manifest, Store, Workspace, finish_unit, finished_unit, save_array
from .errors import DataError, UsageError
from .progress import progress
from .rows import draw, numbered, read, segments_of, stored_draw, table, write
from .tokens import SPLITS, Block, blocks, encode, open_for_text, texts_of, word_begins

if TYPE_CHECKING:
    from tokenizers import Tokenizer

STAGE = "shards"
VERSION = 1
LONGEST = 65528
"""Segment lengths are stored in 16 bits."""


@dataclass(frozen=True)
class ShardsConfig:
    length: int = 128
    """L, positions of a row, specials included; a multiple of 8."""
    rate: str = "0.3"
    """p, the share of a segment's tokens that is hidden: a decimal, kept exact."""
    draws: int = 1
    """K, stored draws of 𝓜; later epochs draw theirs by the same rule."""
    seed: int = 0
    """Of the draws of the train split; validation and test have a frozen one."""
    corruption: str = "mask"
    """What stands at a hidden position: "mask" ([MASK] always) or "80/10/10" (BERT's)."""
    block_bytes: int = 32 << 20
    """Text of one shard, about. A shard is made in memory, some five times this."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "rate", masking.spelling(self.rate))
        p = masking.fraction(self.rate)
        least = packing.SPECIALS + -(-p.denominator // p.numerator)
        refuse = [
            (self.length % 8 or not 0 < self.length <= LONGEST, "length", f"a multiple of 8 up to {LONGEST}"),
            (self.length < least, "length", f"at least {least}: [CLS], [SEP] and ⌈1/p⌉ tokens"),
            (self.draws < 1, "draws", "1 or more"),
            (not 0 <= self.seed < 1 << 64, "seed", "a number from 0 to 2^64 - 1"),
            (self.corruption not in ("mask", "80/10/10"), "corruption", 'mask or "80/10/10"'),
            (self.block_bytes < 1, "block_bytes", "1 or more, such as 33554432"),
        ]
        for wrong, key, remedy in refuse:
            if wrong:
                raise UsageError(f"shards.{key} is {getattr(self, key)!r}; use {remedy}.")


def identity(config: ShardsConfig, corpus_digest: str, vocabulary_digest: str) -> Identity:
    """What the shards are a function of."""
    return Identity(STAGE, VERSION, asdict(config), {"corpus": corpus_digest, "vocabulary": vocabulary_digest})


def shards(config: ShardsConfig, corpus: Manifest, vocabulary: Manifest, store: Store) -> tuple[Manifest, bool]:
    """The stage. Second value: found, not made.

    Every document is kept whole, an empty one as no segment; a document of one token is a segment like any other.
    Raises UsageError when a split has no row, DataError when the books do not balance or a file is damaged.
    """

    def build(workspace: Workspace) -> Built:
        for split in SPLITS:
            _refuse_empty(split, texts_of(corpus, split))
        started = time.monotonic()
        receipts = _make_blocks(config, corpus, vocabulary, workspace.scratch)
        encoded = time.monotonic()
        splits = _make_shards(config, vocabulary, workspace, receipts)
        _save_unigrams(workspace.folder, vocabulary.facts["size"], splits["train"]["files"])
        counts = _balance(corpus, receipts, splits)
        positions = sum(split["rows"] for split in splits.values()) * config.length
        facts = {
            "length": config.length,
            "rate": config.rate,
            "draws": config.draws,
            "seed": config.seed,
            "corruption": config.corruption,
            "sampler": masking.SAMPLER,
            "vocabulary": {key: vocabulary.facts[key] for key in ("size", "special_ids", "ordinary")},
            "fill_rate": round((counts["tokens"] + packing.SPECIALS * counts["segments"]) / positions, 6),
            "splits": splits,
        }
        return Built(counts, facts, {"seconds_encode": encoded - started, "seconds_masks": time.monotonic() - encoded})

    wanted = identity(config, corpus.digest, vocabulary.digest)
    return store.make(wanted, build, libraries=("tokenizers", "pyarrow", "numpy"))


def seed_of(split: str, seed: int) -> int:
    """The seed of a split's draws: the config's for train, a frozen one for what models are judged by."""
    return seed if split == "train" else masking.EVALUATION_SEED


def _refuse_empty(split: str, rows: int) -> None:
    if not rows:
        raise UsageError(
            f"The {split} split has nothing to make a row of; add documents to the sources, or give that split a "
            "larger share of the corpus."
        )


# First pass: blocks of documents become blocks of rows.


def _make_blocks(
    config: ShardsConfig, corpus: Manifest, vocabulary: Manifest, scratch: Path
) -> dict[str, list[dict[str, Any]]]:
    """Encodes and packs what a killed run has not finished. Returns each split's receipts, in order."""
    receipts: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    tokenizer = open_for_text(vocabulary.whole("tokenizer.json"))
    begins = word_begins(tokenizer)
    total = sum(texts_of(corpus, split) for split in SPLITS)
    with progress(STAGE, total, "documents") as bar:
        for block in blocks(corpus, config.block_bytes):
            name = f"block-{block.split}-{block.number:05d}"
            receipt = finished_unit(scratch, name)
            if receipt is None:
                tokens, sizes = _encode(tokenizer, block, bar.advance)
                rows, facts = _pack(config, vocabulary.facts, begins, block.first, tokens, sizes)
                write(scratch / f"{name}.arrow", rows)
                receipt = finish_unit(scratch, name, [scratch / f"{name}.arrow"], facts)
            else:
                bar.advance(len(block))
            receipts[block.split].append(receipt | {"name": name})
    return receipts


def _encode(tokenizer: "Tokenizer", block: Block, advance: Any) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The tokens of a block's documents, end to end, and how many each has."""
    tokens, sizes = [], []
    for texts in block.batches():
        some, of_each = encode(tokenizer, texts)
        tokens.append(some)
        sizes.append(of_each)
        advance(len(texts))
    return np.concatenate(tokens), np.concatenate(sizes)


def _pack(
    config: ShardsConfig,
    vocabulary: Any,
    begins: NDArray[np.bool_],
    first: int,
    tokens: NDArray[np.int32],
    sizes: NDArray[np.int64],
) -> tuple[pa.RecordBatch, dict[str, int]]:
    """A block's rows, still without sequence ids and masks, and its books."""
    p = masking.fraction(config.rate)
    segments = packing.cut(sizes, begins[tokens], config.length, -(-p.denominator // p.numerator))
    packed = packing.pack(segments.length, config.length)
    special = vocabulary["special_ids"]
    ids = special["cls"], special["sep"], special["pad"]
    rows = packing.fill(tokens, np.cumsum(sizes) - sizes, segments, packed, config.length, ids)
    kept = int((rows >= vocabulary["ordinary"][0]).sum())
    if kept != len(tokens):
        raise DataError(f"The books of shards do not balance: {len(tokens)} tokens came in, {kept} lie in rows.")
    facts = {
        "rows": packed.rows,
        "segments": len(segments.length),
        "tokens": int(segments.length.sum()),
        "documents": len(sizes),
        "documents_without_tokens": int((sizes == 0).sum()),
        "documents_of_one_token": int((sizes == 1).sum()),
        "documents_cut": int((sizes > config.length - packing.SPECIALS).sum()),
    }
    return table(rows, segments, packed, first, vocabulary["size"]), facts


# Second pass: rows get their global sequence ids and their masks.


def _make_shards(
    config: ShardsConfig, vocabulary: Manifest, workspace: Workspace, receipts: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    """Writes the shards. Returns facts["splits"]."""
    splits: dict[str, dict[str, Any]] = {}
    total = sum(receipt["rows"] for some in receipts.values() for receipt in some)
    with progress("masks", total, "rows") as bar:
        for split, some in receipts.items():
            files, sums, first = [], Counter[str](), 0
            for number, receipt in enumerate(some):
                if not receipt["rows"]:
                    continue
                name = f"{split}-{number:05d}.arrow"
                block = workspace.scratch / f"{receipt['name']}.arrow"
                sums.update(_make_shard(config, split, first, block, workspace.scratch, name))
                files.append({"name": name, "rows": receipt["rows"], "first_sequence": first})
                first += receipt["rows"]
                bar.advance(receipt["rows"])
            _refuse_empty(split, first)
            splits[split] = {"rows": first, **sums, "files": files}
    for facts in splits.values():  # all are there: only now may a receipt lose its file
        for entry in facts["files"]:
            os.replace(workspace.scratch / entry["name"], workspace.folder / entry["name"])
    return splits


def _make_shard(config: ShardsConfig, split: str, first: int, block: Path, scratch: Path, name: str) -> dict[str, int]:
    found = finished_unit(scratch, name)
    if found is not None:
        return found
    rows = read(block)
    lengths, offsets = segments_of(rows)
    sequence = np.arange(first, first + rows.num_rows, dtype=np.uint64)
    seed = seed_of(split, config.seed)
    draws_K = [
        np.concatenate(list(draw(seed, number, sequence, lengths, offsets, config.length, config.rate)))
        for number in range(config.draws)
    ]
    write(scratch / name, numbered(rows, first, draws_K))
    hidden_S = masking.count(lengths - packing.SPECIALS, config.rate)
    facts = {
        "segments": len(lengths),
        "tokens": int((lengths - packing.SPECIALS).sum()),
        "masked": int(hidden_S.sum()),
        "segments_without_mask": int((hidden_S == 0).sum()),
    }
    return finish_unit(scratch, name, [scratch / name], facts)


def _save_unigrams(folder: Path, size: int, files: list[dict[str, Any]]) -> None:
    """unigrams.npy: how often each ordinary token occurs in the train split; special ids count 0. int64 (V,)."""
    counts = np.zeros(size, np.int64)
    for entry in files:
        rows = read(folder / entry["name"])
        lengths, offsets = segments_of(rows)
        length = rows.column("tokens").type.list_size
        tokens = rows.column("tokens").flatten().to_numpy()
        counts += np.bincount(tokens[masking.ordinary(lengths, offsets, length).reshape(-1)], minlength=size)
    save_array(folder / "unigrams.npy", counts)


def _balance(corpus: Manifest, receipts: dict[str, list[dict[str, Any]]], splits: dict[str, Any]) -> dict[str, int]:
    """The stage's books. Raises DataError when a document or a token is missing or too many."""
    counts: Counter[str] = Counter()
    for split, some in receipts.items():
        sums: Counter[str] = Counter()
        for receipt in some:
            sums.update({key: value for key, value in receipt.items() if key != "name"})
        pairs = [
            ("documents", texts_of(corpus, split), sums["documents"]),
            ("tokens", sums["tokens"], splits[split]["tokens"]),
        ]
        for what, came, kept in pairs:
            if came != kept:
                raise DataError(
                    f"The books of shards do not balance: {came} {what} came into the {split} split, {kept} are in its "
                    "rows; run `maskmill verify corpus`."
                )
        counts.update(sums)
        counts[f"documents_{split}"], counts[f"tokens_{split}"] = sums["documents"], sums["tokens"]
    return dict(counts)


# Proof.


def verify_masks(manifest: Manifest) -> list[str]:
    """Draws every stored mask again. A line for each row and draw that differs; an empty list is a clean bill."""
    facts = manifest.facts
    if facts["sampler"] != masking.SAMPLER:
        return [f"{manifest.folder}: its masks come from the sampler {facts['sampler']}, here is {masking.SAMPLER}"]
    findings = []
    for split, of_split in facts["splits"].items():
        for entry in of_split["files"]:
            path = manifest.folder / entry["name"]
            try:
                findings += [f"{path}: {what}" for what in _verify_shard(path, split, entry, facts)]
            except (DataError, pa.ArrowInvalid, ValueError, IndexError, KeyError) as error:
                findings.append(f"{path}: its masks cannot be drawn again ({error})")
    return findings


def _verify_shard(path: Path, split: str, entry: Any, facts: Any) -> Iterator[str]:
    rows = read(path)
    rows.validate(full=True)
    lengths, offsets = segments_of(rows)
    sequence = entry["first_sequence"] + np.arange(entry["rows"], dtype=np.uint64)
    if not np.array_equal(rows.column("sequence").to_numpy(), sequence):
        yield f"its sequence ids are not {entry['rows']} from {entry['first_sequence']} on"
        return
    length, seed = facts["length"], seed_of(split, facts["seed"])
    for number in range(facts["draws"]):
        stored = stored_draw(rows, number, length)
        row = 0
        for bits in draw(seed, number, sequence, lengths, offsets, length, facts["rate"]):
            differs = np.bitwise_count(stored[row : row + len(bits)] ^ bits).sum(axis=1)
            for at in np.flatnonzero(differs):
                yield f"row {row + at}, draw {number}: {differs[at]} bits differ from the mask of its address"
            row += len(bits)
