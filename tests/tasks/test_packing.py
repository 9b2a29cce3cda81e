"""Packing: nothing is lost, nothing overlaps, hardly anything is padding."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import packing

documents = st.lists(st.integers(0, 700), max_size=60)
lengths = st.sampled_from([8, 16, 64, 128, 512])


def begins_of(sizes: np.ndarray, seed: int = 0, share: float = 0.7) -> np.ndarray:
    return np.random.default_rng(seed).random(int(sizes.sum())) < share


@settings(max_examples=150, deadline=None)
@given(documents, lengths, st.integers(0, 3), st.sampled_from([0.0, 0.05, 0.7, 1.0]))
def test_segments_of_a_document_are_the_document(sizes, length, seed, share):
    sizes = np.array(sizes, np.int64)
    cut = packing.cut(sizes, begins_of(sizes, seed, share), length, shortest=4)
    assert ((cut.length >= 1) & (cut.length <= length - 2)).all()
    for document, size in enumerate(sizes):
        own = np.flatnonzero(cut.document == document)
        ends = np.cumsum(cut.length[own])
        assert list(cut.start[own]) == [0, *ends[:-1]][: len(own)]
        assert (ends[-1] if len(own) else 0) == size


@settings(max_examples=100, deadline=None)
@given(documents, st.sampled_from([64, 128]), st.sampled_from(["0.15", "0.3", "0.5", "0.07"]))
def test_a_cut_leaves_no_tail_in_which_nothing_could_be_hidden(sizes, length, rate):
    sizes = np.array(sizes, np.int64)
    p = Fraction(rate)
    shortest = -(-p.denominator // p.numerator)
    cut = packing.cut(sizes, begins_of(sizes), length, shortest)
    was_cut = sizes[cut.document] > length - 2
    assert (cut.length[was_cut] * p >= 1).all()


def test_a_cut_falls_on_a_word_where_one_begins_within_reach():
    sizes = np.array([5000], np.int64)
    begins = np.arange(5000) % 3 == 0
    cut = packing.cut(sizes, begins, 64, 4)
    assert begins[cut.start].all() and cut.length.min() >= 4
    begins[:] = False
    far = packing.cut(sizes, begins, 64, 4)
    assert (far.length[:-2] == 62).all()


def test_an_empty_corpus_and_empty_documents_give_no_rows():
    for sizes in (np.zeros(0, np.int64), np.zeros(3, np.int64)):
        cut = packing.cut(sizes, np.zeros(0, bool), 64, 4)
        packed = packing.pack(cut.length, 64)
        rows = packing.fill(np.zeros(0, np.int32), np.zeros(len(sizes), np.int64), cut, packed, 64, (2, 3, 0))
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
    packed = packing.pack(sizes, 64)
    assert packed.rows == best_fit(sizes + 2, 64)
    assert sorted(packed.order) == list(range(len(sizes)))
    taken = np.zeros((packed.rows, 64), int)
    for segment, row, column in zip(packed.order, packed.row, packed.column, strict=True):
        taken[row, column : column + sizes[segment] + 2] += 1
    assert taken.max(initial=0) <= 1 and taken.sum() == (sizes + 2).sum()
    assert (np.diff(taken, axis=1) <= 0).all(), "padding stands at the end"


def test_rows_follow_the_corpus():
    sizes = np.random.default_rng(1).integers(1, 62, 500)
    packed = packing.pack(sizes, 64)
    first_of_row = packed.order[np.flatnonzero(np.diff(packed.row, prepend=-1))]
    assert (np.diff(first_of_row) > 0).all()
    within = np.diff(packed.row) == 0
    assert (np.diff(packed.order)[within] > 0).all()


@settings(max_examples=60, deadline=None)
@given(documents, st.sampled_from([16, 64, 128]))
def test_every_document_can_be_read_back_from_the_rows(sizes, length):
    sizes = np.array(sizes, np.int64)
    tokens = np.random.default_rng(2).integers(5, 1000, int(sizes.sum())).astype(np.int32)
    first = np.cumsum(sizes) - sizes
    cut = packing.cut(sizes, begins_of(sizes), length, 4)
    packed = packing.pack(cut.length, length)
    rows = packing.fill(tokens, first, cut, packed, length, (2, 3, 0))
    back = np.full(len(tokens), -1)
    for segment, row, column in zip(packed.order, packed.row, packed.column, strict=True):
        size, at = cut.length[segment], first[cut.document[segment]] + cut.start[segment]
        assert rows[row, column] == 2 and rows[row, column + size + 1] == 3
        back[at : at + size] = rows[row, column + 1 : column + 1 + size]
    assert np.array_equal(back, tokens)
    assert (rows > 3).sum() == len(tokens) and (rows == 2).sum() == (rows == 3).sum() == len(cut.length)


@pytest.mark.parametrize("length", [64, 128, 512])
@pytest.mark.parametrize("median", [15, 120, 20_000])
def test_rows_are_99_percent_full(length, median):
    rng = np.random.default_rng(3)
    sizes = np.maximum(1, rng.lognormal(np.log(median), 1.0, max(100, 300_000 // median))).astype(np.int64)
    cut = packing.cut(sizes, begins_of(sizes), length, 4)
    packed = packing.pack(cut.length, length)
    assert (cut.length + 2).sum() / (packed.rows * length) >= 0.99
