"""Packing: nothing is lost, nothing overlaps, hardly anything is padding."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import packing
from tasks.packing import METHODS, Block

documents = st.lists(st.integers(0, 700), max_size=60)
lengths = st.sampled_from([8, 16, 64, 128, 512])


def text_of(sizes, seed: int = 0, share: float = 0.7) -> Block:
    """Documents of these sizes, with words and sentences at random places."""
    sizes, rng = np.array(sizes, np.int64), np.random.default_rng(seed)
    words = rng.random(int(sizes.sum())) < share
    return Block(sizes, words, words & (rng.random(len(words)) < 0.05))


@settings(max_examples=200, deadline=None)
@given(documents, lengths, st.integers(0, 3), st.sampled_from([0.0, 0.05, 0.7, 1.0]), st.sampled_from(METHODS))
def test_segments_of_a_document_are_the_document(sizes, length, seed, share, method):
    segments, packed = packing.lay(text_of(sizes, seed, share), length, 4, method)
    assert ((segments.length >= 1) & (segments.length <= length - 2)).all()
    for document, size in enumerate(sizes):
        own = np.flatnonzero(segments.document == document)
        ends = np.cumsum(segments.length[own])
        assert list(segments.start[own]) == [0, *ends[:-1]][: len(own)]
        assert (ends[-1] if len(own) else 0) == size
    taken = np.zeros((packed.rows, length), int)
    for segment, row, column in zip(packed.order, packed.row, packed.column, strict=True):
        taken[row, column : column + segments.length[segment] + 2] += 1
    assert sorted(packed.order) == list(range(len(segments.length)))
    assert taken.max(initial=0) <= 1 and taken.sum() == (segments.length + 2).sum()
    assert (np.diff(taken, axis=1) <= 0).all(), "padding stands at the end"
    assert taken.any(axis=1).all(), "no row is empty"


@settings(max_examples=150, deadline=None)
@given(documents, st.sampled_from([64, 128]), st.sampled_from(["0.15", "0.3", "0.5", "0.07"]), st.sampled_from(METHODS))
def test_a_cut_leaves_no_piece_in_which_nothing_could_be_hidden(sizes, length, rate, method):
    p = Fraction(rate)
    segments, _ = packing.lay(text_of(sizes), length, -(-p.denominator // p.numerator), method)
    pieces = np.bincount(segments.document, minlength=len(sizes))
    assert (segments.length[pieces[segments.document] > 1] * p >= 1).all()


@pytest.mark.parametrize("length", [64, 128, 512])
def test_a_cut_falls_on_a_sentence_else_on_a_word_within_reach(length):
    text = text_of([50_000], share=0.3)
    segments = packing.cut(text, length, 4)
    kinds = []
    for start, size in zip(segments.start[:-2].tolist(), segments.length[:-2].tolist(), strict=True):
        furthest, stop = start + length - 2, start + size
        sentences, words = (
            np.flatnonzero(begins[furthest - reach : furthest + 1]) + furthest - reach
            for begins, reach in ((text.large, length // 32), (text.small, length // 16))
        )
        assert stop == (sentences[-1] if len(sentences) else words[-1] if len(words) else furthest)
        kinds.append((len(sentences) > 0, len(words) > 0))
    assert len(set(kinds)) >= 2


def test_documents_of_one_length_are_cut_to_fill_the_gaps_of_the_others():
    sizes = np.full(1000, 850)  # alone in a row of 1,024 each leaves 17 % empty, and nothing fits there
    segments, packed = packing.lay(text_of(sizes), 1024, 4)
    pieces = np.bincount(segments.document)
    assert (segments.length + 2).sum() / (packed.rows * 1024) > 0.99
    assert (pieces == 1).mean() > 0.75, "most documents stay whole"
    assert packing.best_fit(sizes, 1024)[1] == 1000


def test_in_order_neighbours_stay_neighbours():
    text = text_of(np.random.default_rng(1).integers(0, 200, 500))
    segments, packed = packing.lay(text, 128, 4, "in-order")
    assert (packed.order == np.arange(len(segments.length))).all() and (np.diff(packed.row) <= 1).all()
    assert (segments.length + 2).sum() / (packed.rows * 128) > 0.97


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sizes", [[], [0, 0, 0]])
def test_an_empty_corpus_and_empty_documents_give_no_rows(sizes, method):
    text = text_of(sizes)
    segments, packed = packing.lay(text, 64, 4, method)
    rows = packing.fill(np.zeros(0, np.int32), text.first, segments, packed, 64, (2, 3, 0))
    assert packed.rows == 0 and rows.shape == (0, 64)


def best_fit(positions: np.ndarray, length: int) -> int:
    """The textbook's algorithm, one segment at a time. Returns the number of rows."""
    gaps: list[int] = []
    for size in sorted(positions.tolist(), reverse=True):
        fitting = [row for row, gap in enumerate(gaps) if gap >= size]
        row = min(fitting, key=lambda row: gaps[row], default=None)
        if row is None:
            gaps.append(length - size)
        else:
            gaps[row] -= size
    return len(gaps)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 62), max_size=200))
def test_buckets_pack_as_well_as_best_fit_one_by_one(sizes):
    sizes = np.array(sizes, np.int64)
    row_of, rows = packing.best_fit(sizes, 64)
    assert rows == best_fit(sizes + 2, 64)
    assert (np.bincount(row_of, sizes + 2, rows) <= 64).all() if rows else not len(sizes)


@settings(max_examples=100, deadline=None)
@given(documents, lengths, st.integers(0, 3))
def test_filling_gaps_never_takes_more_rows(sizes, length, seed):
    text = text_of(sizes, seed)
    whole = packing.cut(text, length, 4)
    assert packing.lay(text, length, 4)[1].rows <= packing.best_fit(whole.length, length)[1]


def test_rows_follow_the_corpus():
    _, packed = packing.lay(text_of(np.random.default_rng(1).integers(1, 62, 500)), 64, 4)
    first_of_row = packed.order[np.flatnonzero(np.diff(packed.row, prepend=-1))]
    assert (np.diff(first_of_row) > 0).all()
    within = np.diff(packed.row) == 0
    assert (np.diff(packed.order)[within] > 0).all()


@settings(max_examples=60, deadline=None)
@given(documents, st.sampled_from([16, 64, 128]), st.sampled_from(METHODS))
def test_every_document_can_be_read_back_from_the_rows(sizes, length, method):
    text = text_of(sizes)
    tokens = np.random.default_rng(2).integers(5, 1000, len(text.small)).astype(np.int32)
    cut, packed = packing.lay(text, length, 4, method)
    rows = packing.fill(tokens, text.first, cut, packed, length, (2, 3, 0))
    back = np.full(len(tokens), -1)
    for segment, row, column in zip(packed.order, packed.row, packed.column, strict=True):
        size, at = cut.length[segment], text.first[cut.document[segment]] + cut.start[segment]
        assert rows[row, column] == 2 and rows[row, column + size + 1] == 3
        back[at : at + size] = rows[row, column + 1 : column + 1 + size]
    assert np.array_equal(back, tokens)
    assert (rows > 3).sum() == len(tokens) and (rows == 2).sum() == (rows == 3).sum() == len(cut.length)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("length", [64, 128, 512, 1024])
@pytest.mark.parametrize("median", [15, 120, 850, 20_000])
def test_rows_are_99_percent_full(length, median, method):
    rng = np.random.default_rng(3)
    sizes = np.maximum(1, rng.lognormal(np.log(median), 1.0, max(100, 600_000 // median))).astype(np.int64)
    segments, packed = packing.lay(text_of(sizes), length, 4, method)
    assert (segments.length + 2).sum() / (packed.rows * length) >= (0.99 if method == "best-fit" else 0.97)
