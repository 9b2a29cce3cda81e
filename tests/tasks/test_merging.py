"""python -m pytest tests/tasks/test_merging.py"""

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import merging
from tasks.selection import File, Run


class Columns:
    """Sizes by document; packs of ten."""

    def __init__(self, sizes: np.ndarray) -> None:
        self.sizes = sizes
        self.runs = [Run(f"pack-{start}", 7, start, min(10, len(sizes) - start)) for start in range(0, len(sizes), 10)]

    def read(self, name: str, start: int, stop: int, index: int) -> np.ndarray:
        return self.sizes[start:stop]

    def between(self, start: int, stop: int) -> list[Run]:
        return [run for run in self.runs if run.start < stop and start < run.start + run.rows]


@given(
    st.lists(st.tuples(st.integers(0, 50), st.booleans()), max_size=60),
    st.lists(st.integers(0, 9), max_size=9),
    st.data(),
)
def test_parts_hold_every_kept_document_once_and_in_order(
    documents: list[tuple[int, bool]], borders: list[int], data: Any
) -> None:
    sizes = np.array([size for size, _ in documents], np.uint32)
    verdict = np.array([not kept for _, kept in documents], np.uint8)
    edges = [0, *sorted(min(border * 7, len(sizes)) for border in borders), len(sizes)]
    files = [File(0, f"file-{low}", low, high - low) for low, high in itertools.pairwise(edges)]
    source = SimpleNamespace(source=SimpleNamespace(weight="1"))
    kept = int(sizes[verdict == 0].sum()) if len(sizes) else 0
    decided = SimpleNamespace(
        selection=SimpleNamespace(files=files, surveyed=[source]),
        columns=Columns(sizes),
        verdict=verdict,
        kept=[[0, kept, 0]],
    )
    least = data.draw(st.integers(1, 200))
    group = data.draw(st.integers(1, 200))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merging, "PART_BYTES", (least, 10_000))
        patch.setattr(merging, "GROUP_BYTES", group)
        parts = list(merging.parts(decided))  # type: ignore[arg-type]
    numbers = [n for part in parts for piece in part.pieces for n in range(piece.start, piece.start + piece.rows)]
    assert numbers == sorted(set(numbers))
    missing = set(range(len(sizes))) - set(numbers)
    assert all(verdict[number] or not sizes[number] for number in missing)
    assert [part.name for part in parts] == [f"part-{number:05d}" for number in range(len(parts))]
    for part in parts:
        inside = [n for piece in part.pieces for n in range(piece.start, piece.start + piece.rows) if not verdict[n]]
        assert sum(int(sizes[n]) for n in inside) < least + 51
        for piece in part.pieces:
            run = decided.columns.between(piece.start, piece.start + 1)[0]
            assert piece.pack == run.pack and piece.first - run.first == piece.start - run.start
            assert piece.rows <= run.rows
            held = [int(sizes[n]) for n in range(piece.start, piece.start + piece.rows) if not verdict[n]]
            assert sum(held) < group + 51
