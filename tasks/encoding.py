"""First pass of the shards: a span of documents becomes rows of tokens, still without sequence ids and masks.

How a document is encoded, its modality knows (modalities.py); some hand over bytes that go along with each token.

One job, one unit of work: what a killed run has finished is not made again. Jobs know nothing of each other, so they
are worked in any order, here or at workers of Dask or Ray. Splits never share a row.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from . import modalities, packing
from .artifacts import file_digest, finish_unit, finished_unit, save_array
from .errors import DataError
from .packing import SPECIALS, Block
from .rows import table, write
from .spans import Span, read_span


class Differs(DataError):
    """An engine gave other ids than the reference, or fails: a reason to do without it."""


class Encoded(NamedTuple):
    """Documents as tokens."""

    tokens: NDArray[np.int32]
    """Ordinary ones, end to end (Σ,)."""
    sizes: NDArray[np.int64]
    """How many each document has (N,)."""
    payload: NDArray[np.uint8] | None = None
    """Bytes that go along with each token (Σ, P); None where there are none."""


@dataclass(frozen=True)
class Job:
    """What a worker needs to make the rows of a span; it can be pickled."""

    span: Span
    scratch: str
    modality: str
    engine: str
    tokenizer: str
    """Path of the vocabulary's file that documents are encoded by."""
    table: str
    """Path of the table that says which tokens belong together; "" where none do."""
    size: int
    """V."""
    special_ids: dict[str, int]
    length: int
    shortest: int
    """⌈1/p⌉"""
    packing: str
    alone: bool = True
    """Is it the only job that is worked here? Else threads of its own would be in the way of the others."""

    @property
    def name(self) -> str:
        """Of the unit. The engine is part of it: where it turns out to differ, all that it made is made again."""
        return f"span-{self.engine}-{self.span.number:05d}"

    def block(self, split: str) -> str:
        """File of a split's rows, below scratch."""
        return f"{self.name}-{split}.arrow"

    @property
    def unigrams(self) -> str:
        """File of the counts of each id in the train split, int64 (V,), below scratch."""
        return f"{self.name}-unigrams.npy"


def make_rows(job: Job) -> dict[str, Any]:
    """The unit's receipt: the books of each split ("splits"), its rows among them, and the sha256 of each file, which
    hours later is compared before the file is used ("digests"). Finished ones are found.

    Raises Differs where a fast engine is not equal to the reference, DataError for a damaged corpus.
    """
    scratch = Path(job.scratch)
    found = finished_unit(scratch, job.name)
    if found is not None:
        return found
    front = modalities.module(modalities.MODALITIES[job.modality].tokens)
    encode = front.open_encoder(job.engine, Path(job.tokenizer), job.alone)
    table_V = np.load(job.table, allow_pickle=False) if job.table else None
    books, files = {}, [scratch / job.unigrams]
    unigrams = np.zeros(job.size, np.int64)
    for split, documents in read_span(job.span).items():
        encoded = _checked(job, encode(documents))
        counts = np.bincount(encoded.tokens, minlength=job.size)
        rows, books[split] = _pack(job, table_V, encoded, counts)
        books[split]["bytes"] = sum(int(pc.sum(pc.binary_length(part)).as_py() or 0) for part in documents)
        files.append(scratch / job.block(split))
        write(files[-1], rows)
        if split == "train":
            unigrams += counts
    save_array(files[0], unigrams)
    digests = {path.name: file_digest(path) for path in files}
    return finish_unit(scratch, job.name, files, {"splits": books, "digests": digests})


def _checked(job: Job, encoded: Encoded) -> Encoded:
    tokens = encoded.tokens
    if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < job.size:
        raise DataError(
            f"{job.tokenizer} gives ids up to {int(tokens.max())}, but the vocabulary has {job.size}; "
            "run `maskmill verify vocabulary`."
        )
    return encoded


def _pack(
    job: Job, table_V: NDArray[np.uint8] | None, encoded: Encoded, counts: NDArray[np.int64]
) -> tuple[pa.RecordBatch, dict[str, int]]:
    """The rows of some documents, and their books. `counts` are those of the tokens, int64 (V,)."""
    tokens, sizes, payload = encoded
    small = large = np.ones(len(tokens), np.bool_)
    if table_V is not None:
        groups = modalities.groups(job.modality)
        small, large = groups.group_begins(table_V, tokens), groups.break_begins(table_V, tokens)
    block = Block(sizes, small, large)
    segments, packed = packing.lay(block, job.length, job.shortest, job.packing)
    special = job.special_ids
    ids = special["cls"], special["sep"], special["pad"]
    rows = packing.fill(tokens, block.first, segments, packed, job.length, ids)
    along = None if payload is None else packing.along(payload, block.first, segments, packed, job.length)
    _check(job, rows, counts, len(segments.length))
    cuts = block.first[segments.document[segments.start > 0]] + segments.start[segments.start > 0]
    pieces = np.bincount(segments.document, minlength=len(sizes))
    return table(rows, segments, packed, job.size, along), {
        "rows": packed.rows,
        "segments": len(segments.length),
        "tokens": int(segments.length.sum()),
        "documents": len(sizes),
        "documents_without_tokens": int((sizes == 0).sum()),
        "documents_of_one_token": int((sizes == 1).sum()),
        "documents_cut": int((pieces > 1).sum()),
        "cuts": len(cuts),
        "cuts_at_sentence": int(large[cuts].sum()),
        "cuts_at_word": int((small[cuts] & ~large[cuts]).sum()),
    }


def _check(job: Job, rows: NDArray[np.int32], came: NDArray[np.int64], segments: int) -> None:
    """The books of a block: each id lies in the rows as often as it came, and beside it only specials and padding."""
    counts = np.bincount(rows.reshape(-1), minlength=job.size)
    specials = SPECIALS * segments
    for name, number in (("cls", segments), ("sep", segments), ("pad", rows.size - specials - int(came.sum()))):
        counts[job.special_ids[name]] -= number
    if not np.array_equal(counts, came):
        raise DataError(
            f"The books of shards do not balance: of {came.sum()} tokens of {job.name}, not all lie in its rows once."
        )
