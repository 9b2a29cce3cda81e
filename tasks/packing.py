"""Packing: documents are cut into segments, and segments are laid into rows with next to no padding.

A segment is what equation (1) calls a text: `[CLS] t… [SEP]`, at most L positions, also when it was cut from a longer
document. Everything here is a pure function of the lengths (and of where a word may begin), so it is the same on every
machine and for any number of threads. Nothing here knows what a token is.

    n tokens of a document      M ordinary tokens of a segment      M + 2 positions in a row of L
"""

from bisect import bisect_left, insort
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SPECIALS = 2
"""[CLS] and [SEP]: positions of every segment that are never hidden."""

Ints = NDArray[np.int64]


class Segments(NamedTuple):
    """S segments of a run of documents, in the order of the documents. All int64."""

    document: Ints
    """(S,) index of the document."""
    start: Ints
    """(S,) offset of the segment's first token in its document."""
    length: Ints
    """(S,) ordinary tokens, M >= 1."""


class Packing(NamedTuple):
    """Where the segments lie. Rows are numbered by their first segment; inside a row segments keep their order."""

    order: Ints
    """(S,) the segments, row after row."""
    row: Ints
    """(S,) row of each segment of `order`."""
    column: Ints
    """(S,) position of its [CLS] in that row."""
    rows: int


def cut(sizes: Ints, begins: NDArray[np.bool_], length: int, shortest: int) -> Segments:
    """Cuts documents into segments of at most L - 2 tokens. A document without tokens gives no segment.

    sizes     (N,) tokens of each document
    begins    (Σ sizes,) for each token of the documents end to end, whether a word may begin there
    length    L, positions of a row
    shortest  ⌈1/p⌉: a cut leaves no tail with fewer tokens, because nothing of it could be hidden

    A cut moves back to where a word begins, but by no more than L/16 positions: what it gives up is padding, since
    nothing fits into a gap of one or two. Documents that are short by themselves stay as they are.
    """
    room = length - SPECIALS
    first = np.cumsum(sizes) - sizes
    cuts = memoryview(_nearest_word(begins, length // 16).data)  # plain ints, fast: each cut depends on the last
    long_documents, starts, lengths = [], [], []
    for document in np.flatnonzero(sizes > room).tolist():
        origin = at = int(first[document])
        end = at + int(sizes[document])
        while at < end:
            stop = end
            if end - at > room:
                stop = min(at + room, max(end - shortest, at + 1))
                stop = cuts[stop] if cuts[stop] > at else stop
            long_documents.append(document)
            starts.append(at - origin)
            lengths.append(stop - at)
            at = stop
    whole = np.flatnonzero((sizes > 0) & (sizes <= room))
    documents = np.concatenate([whole, np.array(long_documents, np.int64)])
    order = np.argsort(documents, kind="stable")
    return Segments(
        documents[order],
        np.concatenate([np.zeros_like(whole), np.array(starts, np.int64)])[order],
        np.concatenate([sizes[whole], np.array(lengths, np.int64)])[order],
    )


def _nearest_word(begins: NDArray[np.bool_], slack: int) -> Ints:
    """For each token the nearest one, at or before it, where a word may begin; itself when that is beyond the slack."""
    here = np.arange(len(begins), dtype=np.int64)
    word = np.maximum.accumulate(np.where(begins, here, -1))
    return np.where((word >= 0) & (here - word <= slack), word, here)


def pack(lengths: Ints, length: int) -> Packing:
    """Best fit, longest first: each segment goes to the row where it leaves the smallest gap.

    lengths  (S,) ordinary tokens of each segment, 1 <= M <= L - 2
    length   L

    Segments of one length, and rows with one gap, are interchangeable: so both are kept in buckets and moved many at a
    time, and the work grows with the number of different gaps, not with S (histogram packing, Krell et al. 2021,
    arXiv 2107.02027, with best fit instead of shortest pack first).
    """
    positions = lengths + SPECIALS
    by_length = np.argsort(-positions, kind="stable")
    row_of = np.empty(len(lengths), np.int64)
    open_rows: dict[int, list[Ints]] = {}  # gap -> row numbers, in pieces
    gaps: list[int] = []  # its keys, sorted
    rows = 0
    bounds = np.flatnonzero(np.diff(positions[by_length], prepend=-1))
    for segments in np.split(by_length, bounds[1:]):
        if not len(segments):
            continue
        size = int(positions[segments[0]])
        while len(segments):
            tightest = bisect_left(gaps, size)
            gap = gaps.pop(tightest) if tightest < len(gaps) else length
            if gap in open_rows:
                chosen = np.concatenate(open_rows.pop(gap))
            else:
                chosen = np.arange(rows, rows - (-len(segments) // (length // size)), dtype=np.int64)
                rows += len(chosen)
            each = gap // size  # the tightest row stays the tightest until nothing fits any more
            used = chosen[: -(-len(segments) // each)]
            now, segments = segments[: len(used) * each], segments[len(used) * each :]
            row_of[now] = np.repeat(used, each)[: len(now)]
            last = len(now) - (len(used) - 1) * each
            for left, numbers in (
                (gap - each * size, used[:-1]),
                (gap - last * size, used[-1:]),
                (gap, chosen[len(used) :]),
            ):
                if left > SPECIALS and len(numbers):
                    if left not in open_rows:
                        insort(gaps, left)
                    open_rows.setdefault(left, []).append(numbers)
    return _laid_out(row_of, positions, rows)


def _laid_out(row_of: Ints, positions: Ints, rows: int) -> Packing:
    """Renumbers rows by their first segment, so that neighbours in the corpus stay neighbours, and places segments."""
    first = np.full(rows, len(row_of), np.int64)
    np.minimum.at(first, row_of, np.arange(len(row_of)))
    rank = np.empty(rows, np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(rows)
    row = rank[row_of]
    order = np.argsort(row, kind="stable")
    row = row[order]
    ends = np.cumsum(positions[order])
    begin = ends - positions[order]
    starts_row = np.flatnonzero(np.diff(row, prepend=-1))
    column = begin - np.repeat(begin[starts_row], np.diff(starts_row, append=len(row)))
    return Packing(order, row, column, rows)


def fill(
    tokens: NDArray[np.int32],
    first: Ints,
    segments: Segments,
    packing: Packing,
    length: int,
    ids: tuple[int, int, int],
) -> NDArray[np.int32]:
    """The rows, (R, L).

    tokens  tokens of all documents end to end;  first  (N,) where each document begins in them
    ids     of [CLS], [SEP] and [PAD]
    """
    cls, sep, pad = ids
    rows = np.full(packing.rows * length, pad, np.int32)
    size = segments.length[packing.order]
    target = packing.row * length + packing.column
    source = first[segments.document[packing.order]] + segments.start[packing.order]
    rows[target] = cls
    rows[target + size + 1] = sep
    within = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
    rows[np.repeat(target + 1, size) + within] = tokens[np.repeat(source, size) + within]
    return rows.reshape(packing.rows, length)
