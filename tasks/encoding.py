"""First pass of the shards: a span of documents becomes rows of tokens, still without sequence ids and masks.

One job, one unit of work: what a killed run has finished is not made again. Jobs know nothing of each other, so they
are worked in any order, here or at workers of Dask or Ray. Splits never share a row.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from . import packing
from .artifacts import file_digest, finish_unit, finished_unit, save_array
from .engines import REFERENCE, TextEncoder, check_parity, open_engine
from .errors import DataError
from .packing import SPECIALS, Text
from .rows import table, write
from .spans import Span, in_batches, read_span
from .words import sentence_begins, word_begins

CHECKED_BYTES = 2048
"""Text of each span, and split, that a fast engine's ids are compared on: some 3 % of its time."""


class ParityError(DataError):
    """A fast engine gave other ids than the reference."""


@dataclass(frozen=True)
class Job:
    """What a worker needs to make the rows of a span; it can be pickled."""

    span: Span
    scratch: str
    engine: str
    tokenizer: str
    """Path of tokenizer.json."""
    words: str
    """Path of words.npy."""
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

    Raises ParityError where a fast engine is not equal to the reference, DataError for a damaged corpus.
    """
    scratch = Path(job.scratch)
    found = finished_unit(scratch, job.name)
    if found is not None:
        return found
    if not job.alone:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    engine = open_engine(job.engine, Path(job.tokenizer))
    words_V = np.load(job.words, allow_pickle=False)
    books, files = {}, [scratch / job.unigrams]
    unigrams = np.zeros(job.size, np.int64)
    for split, texts in read_span(job.span).items():
        tokens, sizes = _encode(job, engine, texts)
        counts = np.bincount(tokens, minlength=job.size)
        rows, books[split] = _pack(job, words_V, tokens, sizes, counts)
        books[split]["bytes"] = sum(int(pc.sum(pc.binary_length(part)).as_py() or 0) for part in texts)
        files.append(scratch / job.block(split))
        write(files[-1], rows)
        if split == "train":
            unigrams += counts
    save_array(files[0], unigrams)
    digests = {path.name: file_digest(path) for path in files}
    return finish_unit(scratch, job.name, files, {"splits": books, "digests": digests})


def _encode(job: Job, engine: TextEncoder, texts: list[pa.Array]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The tokens of a span's documents of one split, end to end, and how many each has."""
    tokens, sizes = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
    for number, some in enumerate(in_batches(texts)):
        if engine.name != REFERENCE and number == 0:
            differs = check_parity(engine, open_engine(REFERENCE, Path(job.tokenizer)), _sample(some))
            if differs:
                raise ParityError(f"{engine.name} {engine.version} differs from {REFERENCE}: {differs}.")
        ids, of_each = engine.encode(some)
        tokens.append(ids)
        sizes.append(of_each)
    both = np.concatenate(tokens), np.concatenate(sizes)
    if len(both[0]) and not 0 <= int(both[0].min()) <= int(both[0].max()) < job.size:
        raise DataError(
            f"{job.tokenizer} gives ids up to {int(both[0].max())}, but the vocabulary has {job.size}; "
            "run `maskmill verify vocabulary`."
        )
    return both


def _sample(texts: list[str]) -> list[str]:
    """Some of the texts, evenly spread: as many as are about CHECKED_BYTES, but each one's beginning only."""
    step = max(1, len(texts) // 8)
    return [text[: CHECKED_BYTES // 8] for text in texts[::step]]


def _pack(
    job: Job, words_V: NDArray[np.uint8], tokens: NDArray[np.int32], sizes: NDArray[np.int64], counts: NDArray[np.int64]
) -> tuple[pa.RecordBatch, dict[str, int]]:
    """The rows of some documents, and their books. `counts` are those of the tokens, int64 (V,)."""
    words, sentences = word_begins(words_V, tokens), sentence_begins(words_V, tokens)
    text = Text(sizes, words, sentences)
    segments, packed = packing.lay(text, job.length, job.shortest, job.packing)
    special = job.special_ids
    ids = special["cls"], special["sep"], special["pad"]
    rows = packing.fill(tokens, text.first, segments, packed, job.length, ids)
    _check(job, rows, counts, len(segments.length))
    cuts = text.first[segments.document[segments.start > 0]] + segments.start[segments.start > 0]
    pieces = np.bincount(segments.document, minlength=len(sizes))
    return table(rows, segments, packed, job.size), {
        "rows": packed.rows,
        "segments": len(segments.length),
        "tokens": int(segments.length.sum()),
        "documents": len(sizes),
        "documents_without_tokens": int((sizes == 0).sum()),
        "documents_of_one_token": int((sizes == 1).sum()),
        "documents_cut": int((pieces > 1).sum()),
        "cuts": len(cuts),
        "cuts_at_sentence": int(sentences[cuts].sum()),
        "cuts_at_word": int((words[cuts] & ~sentences[cuts]).sum()),
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
