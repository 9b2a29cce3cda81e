"""Second pass of the shards: rows get their global sequence ids and their masks; and the proof of both.

A draw of 𝓜 depends on (seed, draw, sequence id, position) and on the layout of the row only, so every stored bit can be
drawn again, by anyone, from the file and the manifest.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from . import masking, modalities
from .arrays import values
from .artifacts import Manifest, file_digest, finish_unit, finished_unit
from .errors import DataError
from .masking import Policy
from .packing import SPECIALS
from .rectangles import Grid
from .rows import Masks, draw, joined, read, segments_of, stored_draw, with_draws, write


@dataclass(frozen=True)
class Job:
    """What a worker needs to make a shard; it can be pickled."""

    name: str
    """File of the shard, below scratch."""
    scratch: str
    blocks: tuple[str, ...]
    """Files of rows, below scratch."""
    digests: tuple[str, ...]
    """Of each block, its sha256 when it was written."""
    first_documents: tuple[int, ...]
    """Of each block, the index in the split of its first document."""
    first: int
    """Sequence id of the first row."""
    seed: int
    rate: str
    policy: Policy
    draws: int
    """K"""
    modality: str
    table: str
    """Path of the table that says which tokens belong together; "" where none do."""


def make_shard(job: Job) -> dict[str, Any]:
    """Writes a shard, unless an earlier run did from the same blocks. Returns its books; "seconds" is what the draws
    took. Raises DataError for a block whose bytes have changed since: what is made of it would be sealed as good.
    """
    scratch = Path(job.scratch)
    found = finished_unit(scratch, job.name)
    if found is not None and found["blocks"] == list(job.digests):
        return found
    for block, digest in zip(job.blocks, job.digests, strict=True):
        check_bytes(scratch / block, digest)
    rows = joined([read(scratch / block) for block in job.blocks], list(job.first_documents), job.first)
    table_V = np.load(job.table, allow_pickle=False) if job.table else np.zeros(0, np.uint8)
    masks = Masks(job.seed, job.rate, job.policy, table_V, job.modality)
    started = time.process_time()
    draws_K = [np.concatenate(list(draw(rows, masks, number))) for number in range(job.draws)]
    seconds = time.process_time() - started
    write(scratch / job.name, with_draws(rows, draws_K))
    lengths, _ = segments_of(rows)
    hidden_S = masking.count(lengths - SPECIALS, job.rate)
    facts = {
        "blocks": list(job.digests),
        "rows": rows.num_rows,
        "segments": len(lengths),
        "tokens": int((lengths - SPECIALS).sum()),
        "masked": int(hidden_S.sum()),
        "segments_without_mask": int((hidden_S == 0).sum()),
        "seconds": round(seconds, 6),
    }
    return finish_unit(scratch, job.name, [scratch / job.name], facts)


def check_bytes(path: Path, digest: str) -> None:
    """Raises DataError where a file is not the one that was written."""
    if file_digest(path) != digest:
        raise DataError(f"{path} is damaged: its bytes are not those that were written; run again to make it anew.")


def masks_of(manifest: Manifest, split: str) -> Masks:
    """What the draws of a split of finished shards are a function of.

    Raises DataError where another sampler drew them, or its table of groups is damaged.
    """
    facts = manifest.facts
    if facts["sampler"] != masking.SAMPLER:
        raise DataError(
            f"{manifest.folder}: its masks come from the sampler {facts['sampler']}, here is {masking.SAMPLER}; "
            "make the shards again."
        )
    table_V = np.zeros(facts["vocabulary"]["size"], np.uint8)
    if modalities.TABLE in manifest.files:
        table_V = np.load(manifest.whole(modalities.TABLE), allow_pickle=False)
    seed, policy, _ = manner(facts, split)
    return Masks(seed, facts["rate"], policy, table_V, modalities.name_of(facts))


def manner(facts: Mapping[str, Any], split: str) -> tuple[int, Policy, int]:
    """(seed, policy, K) of a split of shards."""
    policy = Policy(facts["policy"], facts["span"], grid_of(facts))
    return masking.manner_of(split, facts["seed"], policy, facts["draws"])


def grid_of(facts: Mapping[str, Any]) -> Grid:
    """Rows and columns in which the tokens of a document lie, by the facts of a vocabulary or of shards; (0, 0)
    where they lie in none."""
    rows, columns = facts.get("payload", {}).get("grid", (0, 0))
    return rows, columns


def verify_masks(manifest: Manifest) -> list[str]:
    """Draws every stored mask again. A line for each row and draw that differs; an empty list is a clean bill."""
    findings = []
    for split, of_split in manifest.facts["splits"].items():
        try:
            masks = masks_of(manifest, split)
        except (DataError, ValueError) as error:
            return [str(error)]
        for entry in of_split["files"]:
            path = manifest.folder / entry["name"]
            try:
                draws = manner(manifest.facts, split)[2]
                findings += [f"{path}: {what}" for what in _verify_shard(path, masks, entry, draws)]
            except (DataError, pa.ArrowInvalid, ValueError, IndexError, KeyError) as error:
                findings.append(f"{path}: its masks cannot be drawn again ({error})")
    return findings


def _verify_shard(path: Path, masks: Masks, entry: Any, draws: int) -> Iterator[str]:
    rows = read(path)
    rows.validate(full=True)
    sequence = entry["first_sequence"] + np.arange(entry["rows"], dtype=np.uint64)
    if not np.array_equal(values(rows.column("sequence")), sequence):
        yield f"its sequence ids are not {entry['rows']} from {entry['first_sequence']} on"
        return
    for number in range(draws):
        stored = stored_draw(rows, number)
        row = 0
        for bits in draw(rows, masks, number):
            differs = np.bitwise_count(stored[row : row + len(bits)] ^ bits).sum(axis=1)
            for at in np.flatnonzero(differs):
                bits_differ = "1 bit differs" if differs[at] == 1 else f"{differs[at]} bits differ"
                yield f"row {row + at}, draw {number}: {bits_differ} from the mask of its address"
            row += len(bits)
