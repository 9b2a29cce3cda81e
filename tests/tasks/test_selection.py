"""python -m pytest tests/tasks/test_selection.py"""

from fractions import Fraction
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import packs
from tasks.cleaning import split_of
from tasks.selection import SPLITS, Columns, Run, chunks, splits_of, times_taken

SHARES = st.fractions(0, Fraction(49, 100), max_denominator=10**6)


def ids_of(names: list[str]) -> np.ndarray:
    return np.array([[int(name[:16], 16), int(name[16:], 16)] for name in names], np.uint64).reshape(-1, 2)


def some_ids(number: int) -> np.ndarray:
    return ids_of([sha256(str(one).encode()).hexdigest()[:32] for one in range(number)])


@given(st.lists(st.text("0123456789abcdef", min_size=32, max_size=32)), SHARES, SHARES)
def test_splits_of_many_ids_are_those_of_each(names: list[str], validation: Fraction, test: Fraction) -> None:
    names += ["0" * 32, "f" * 32]
    codes = splits_of(ids_of(names), validation, test)
    assert [SPLITS[code] for code in codes] == [split_of(name, validation, test) for name in names]


@pytest.mark.parametrize("weight", ["0.1", "1", "3/2", "4"])
def test_a_weight_is_met_on_average_in_every_split(weight: str) -> None:
    ids = some_ids(20_000)
    times = times_taken(ids, Fraction(weight))
    assert set(times) <= {int(float(Fraction(weight))), int(float(Fraction(weight))) + 1}
    heldout = splits_of(ids, Fraction("0.2"), Fraction("0.2")) > 0
    for some in (times[heldout], times[~heldout]):
        assert abs(some.mean() - float(Fraction(weight))) < 0.02
    assert (times_taken(ids, Fraction(weight) + Fraction(1, 7)) >= times).all()


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 5)), max_size=8), st.data())
def test_columns_are_read_as_if_they_were_one(pieces: list[tuple[int, int]], data: st.DataObject) -> None:
    stored = {f"pack-{number}": some_ids(40)[number * 10 : number * 10 + 10] for number in range(3)}
    runs, whole, start = [], [np.zeros((0, 2), np.uint64)], 0
    for pack, rows in pieces:
        first = data.draw(st.integers(0, 10 - rows))
        runs.append(Run(f"pack-{pack}", first, start, rows))
        whole.append(stored[f"pack-{pack}"][first : first + rows])
        start += rows
    expected = np.concatenate(whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packs, "column", lambda folder, pack, name: stored[pack])
        columns = Columns(Path("nowhere"), runs, start)
        low = data.draw(st.integers(0, start))
        high = data.draw(st.integers(low, start))
        assert (columns.ids(low, high) == expected[low:high]).all()
        assert (columns.band(1, low, high) == expected[low:high, 1]).all()
        rows = np.array(data.draw(st.lists(st.integers(0, max(start - 1, 0)), max_size=9 if start else 0)), np.int64)
        assert len(rows) == 0 or (columns.signatures(rows) == expected[rows].astype(np.uint16)).all()


def test_chunks_cover_a_range_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.selection.CHUNK", 3)
    assert list(chunks(7, 2)) == [(2, 5), (5, 8), (8, 9)] and list(chunks(0)) == []
