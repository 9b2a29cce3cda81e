"""Spans: the corpus in portions that are encoded and packed by themselves; what the workers of shards get as jobs.

A span is a run of row groups. It is named by file and numbers, not sent as text, so that jobs are small and the parent
reads nothing. Row groups are part of the corpus's bytes, hence of its digest: spans are a function of it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from . import modalities
from .arrays import numbers, values
from .artifacts import Manifest
from .errors import DataError

SPLITS = ("train", "validation", "test")
BATCH_BYTES = 4 << 20
"""Of documents read or encoded at a time; an encoder's results take some 100 bytes per token of text."""


@dataclass(frozen=True)
class Span:
    """Row groups in corpus order."""

    number: int
    parts: tuple[tuple[str, int, int], ...]
    """(path of a Parquet file, first row group, one past the last)"""
    column: str
    """What a document is, in these files."""


def documents_of(corpus: Manifest, split: str) -> int:
    """How many documents of a split there are to read: one of train counts as often as its source's weight says."""
    return corpus.counts[f"documents_{split}"] + (corpus.counts.get("copies", 0) if split == "train" else 0)


def spans(corpus: Manifest, bytes_each: int) -> list[Span]:
    """The corpus in spans of about `bytes_each` of documents; a larger row group is a span alone.

    Every file is hashed first. Raises DataError naming the file that is damaged or cannot be read.
    """
    column = modalities.of(corpus.facts).column
    found: list[Span] = []
    parts: list[tuple[str, int, int]] = []
    held = 0
    for name in sorted(name for name in corpus.files if name.endswith(".parquet")):
        path = corpus.whole(name)
        for group, size in enumerate(_group_bytes(path, column)):
            if held and held + size > bytes_each:
                found.append(Span(len(found), tuple(parts), column))
                parts, held = [], 0
            if parts and parts[-1][0] == str(path):
                parts[-1] = (*parts[-1][:2], group + 1)
            else:
                parts.append((str(path), group, group + 1))
            held += size
    return [*found, Span(len(found), tuple(parts), column)] if parts else found


def _group_bytes(path: Path, column: str) -> Iterator[int]:
    """Bytes of each row group's documents, about, each as often as its copies say."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            number = file.schema_arrow.names.index(column)
            copies = "copies" in file.schema_arrow.names
            for group in range(file.num_row_groups):
                about = file.metadata.row_group(group)
                size = about.column(number).total_uncompressed_size
                if copies and about.num_rows:
                    size *= pc.mean(file.read_row_group(group, ["copies"]).column(0)).as_py()
                yield int(size)
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def read_span(span: Span) -> dict[str, list[pa.Array]]:
    """The documents of each split, in corpus order; a document with copies comes so often, one after the other.

    Raises DataError naming the file that cannot be read.
    """
    found: dict[str, list[pa.Array]] = {split: [] for split in SPLITS}
    for path, first, end in span.parts:
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                names = [name for name in (span.column, "split", "copies") if name in file.schema_arrow.names]
                table = file.read_row_groups(range(first, end), names)
            for batch in table.to_batches():
                _sort_in(batch, span.column, found)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, KeyError) as error:
            raise _unreadable(path, error) from None
    return found


def _sort_in(batch: pa.RecordBatch, column: str, found: dict[str, list[pa.Array]]) -> None:
    documents, split = batch.column(column), batch.column("split")
    documents.validate(full=True)  # UTF-8 too: a lone surrogate can only be damage here
    if documents.null_count or split.null_count:
        raise pa.ArrowInvalid("a document is null")
    if "copies" in batch.schema.names:
        again = numbers(np.repeat(np.arange(len(batch)), values(batch.column("copies"))))
        documents, split = documents.take(again), split.take(again)
    for label in SPLITS:
        found[label].append(documents.filter(pc.equal(split, label)))


def in_batches(documents: Sequence[pa.Array]) -> Iterator[pa.Array]:
    """BATCH_BYTES at a time (a longer document alone)."""
    for part in documents:
        rest = part
        while len(rest):
            ends = np.cumsum(values(pc.binary_length(rest)))
            count = max(1, int(np.searchsorted(ends, BATCH_BYTES, side="right")))
            yield rest[:count]
            rest = rest[count:]


def _unreadable(path: Path | str, error: Exception) -> DataError:
    why = (str(error) or type(error).__name__).splitlines()[0]
    return DataError(f"{path} cannot be read ({why}); run `maskmill verify corpus`.")
