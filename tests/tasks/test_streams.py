"""python -m pytest tests/tasks/test_streams.py"""

import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import UsageError
from tasks.streams import Broken, Limits, lines, newlines, universal

PIECES = st.lists(st.sampled_from([b"a", b"bc" * 40, b"\n", b"\r", b"\r\n", b"\x0b", "\u2028".encode()]), max_size=30)


def in_steps(data: bytes, size: int, broken: bool = False) -> Iterator[bytes]:
    yield from (data[start : start + size] for start in range(0, len(data), size))
    if broken:
        raise Broken("truncated_archive", "", len(data), 0)


@given(PIECES, st.integers(1, 200), st.integers(1, 100))
def test_lines_are_whole_whatever_the_chunks_are(pieces: list[bytes], size: int, limit: int) -> None:
    data = b"".join(pieces)
    found = list(lines(in_steps(data, size), newlines, limit))
    assert [one.number for one in found] == list(range(1, len(found) + 1))
    expected = re.findall(rb"[^\n]*\n|[^\n]+", data)
    assert [one.size for one in found] == [len(line) for line in expected]
    for one, line in zip(found, expected):
        assert data[one.offset :].startswith(line)
        assert one.data == line or (one.data is None and len(line) > limit)


@given(PIECES, st.integers(1, 200))
def test_lines_end_at_n_r_and_rn_only(pieces: list[bytes], size: int) -> None:
    data = b"".join(pieces)
    found = [one.data for one in lines(in_steps(data, size), universal, 10**6)]
    assert b"".join(one or b"" for one in found) == data
    assert all(re.search(rb"\n|\r", (one or b"").rstrip(b"\r\n")) is None for one in found)


@given(PIECES, st.integers(1, 50))
def test_a_line_that_is_cut_off_is_part_of_what_is_refused(pieces: list[bytes], size: int) -> None:
    data = b"".join(pieces)
    found, reject = [], None
    try:
        found += lines(in_steps(data, size, broken=True), newlines, 10**6)
    except Broken as broken:
        reject = broken.reject
    whole = data[: data.rfind(b"\n") + 1]
    assert reject and (reject.bytes, reject.offset) == (len(data) - len(whole), len(whole))


@pytest.mark.parametrize("name", ["document_characters", "record_characters", "line_bytes", "archive_ratio"])
def test_a_limit_that_lets_nothing_through_is_named(name: str) -> None:
    with pytest.raises(UsageError, match=rf"corpus\.limits\.{name} is 0"):
        Limits(**{name: 0})
