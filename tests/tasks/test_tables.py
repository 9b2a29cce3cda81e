"""CSV. python -m pytest tests/tasks/test_tables.py"""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import tables
from tasks.streams import Limits
from tests.tasks.made_files import PACKERS, put, read

FIELDS = st.text(st.sampled_from("ab é,;|\t\"'\n\r#"), max_size=12)


def written(rows: list[list[str]], **dialect: str) -> bytes:
    out = io.StringIO()
    csv.writer(out, **dialect).writerows(rows)  # type: ignore[arg-type]
    return out.getvalue().encode()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(FIELDS, FIELDS), max_size=8), st.sampled_from(",;\t|"), st.sampled_from(["\n", "\r\n"]))
def test_what_a_writer_wrote_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], delimiter: str, end: str
) -> None:
    data = written([["id", "text"], *map(list, rows)], delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
    path = put(tmp_path_factory.mktemp("csv") / "a.csv", data)
    good, bad = read(path, "csv")
    assert [one.text for one in good] == [text for _, text in rows]
    assert [one.reason for one in bad] == ([] if rows else ["empty_file"])
    starts = [0]
    for row in [["id", "text"], *map(list, rows)]:
        line = written([row], delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
        starts.append(starts[-1] + len(line))
    assert [one.offset for one in good] == starts[1:-1]


@pytest.mark.parametrize("suffix", ["csv", *(f"csv.{name}" for name in PACKERS)])
def test_packed_tables_and_byte_order_marks_are_read(tmp_path: Path, suffix: str) -> None:
    data = b'\xef\xbb\xbf\r\nid;text\r\n1;caf\xc3\xa9\r\n\r\n2;"two\r\nlines"\r\n'
    data = PACKERS[suffix.partition(".")[2]](data) if "." in suffix else data
    good, bad = read(put(tmp_path / f"a.{suffix}", data), "csv")
    assert [one.text for one in good] == ["café", "two\r\nlines"] and not bad


BAD_RECORDS = {
    b'2,"no closing quote': "broken_csv",
    b'2,"a"b': "broken_csv",
    b"2,x,too many": "broken_csv",
    b"2": "broken_csv",
    b"2,caf\xe9": "invalid_utf8",
    b'2,"caf\xe9': "broken_csv",
    b'2,"two\n\xff lines"': "invalid_utf8",
    b"2," + b"x" * 2000: "line_too_long",
    b'2,"' + b"x" * 2000 + b'"': "line_too_long",
}


@pytest.mark.parametrize(("record", "reason"), BAD_RECORDS.items())
@pytest.mark.parametrize("after", [1, 300])
def test_a_bad_record_is_lost_alone(tmp_path: Path, record: bytes, reason: str, after: int) -> None:
    behind = [f"{number},good {number}".encode() for number in range(after)]
    data = b"id,text\n1,good\n" + record + b"\n" + b"\n".join(behind)
    good, bad = read(put(tmp_path / "a.csv", data), "csv", Limits(line_bytes=1000))
    assert [one.text for one in good] == ["good", *(f"good {number}" for number in range(after))]
    assert [(one.reason, one.offset) for one in bad] == [(reason, 15)]
    assert bad[0].bytes == len(record) + 1


def test_an_open_quote_takes_in_no_more_than_so_many_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "RECORD_LINES", 10)
    data = b'id,text\n1,"open\n' + b"2,good\n" * 50
    good, bad = read(put(tmp_path / "a.csv", data), "csv")
    assert len(good) == 50 and [one.reason for one in bad] == ["broken_csv"]


@pytest.mark.parametrize(
    ("header", "reason", "said"),
    [
        (b"id,body", "missing_key", "no column 'text'; it has id, body"),
        (b"text,text", "duplicate_key", "two columns are called 'text'"),
        (b'"open', "broken_csv", "the header"),
        (b"x" * 2000, "broken_csv", "the header"),
    ],
)
def test_a_header_that_will_not_do_is_named(tmp_path: Path, header: bytes, reason: str, said: str) -> None:
    good, bad = read(put(tmp_path / "a.csv", header + b"\n1,2\n"), "csv", Limits(line_bytes=1000))
    assert not good and [one.reason for one in bad] == [reason] and said in bad[0].detail


def test_a_tsv_is_cut_at_tabs_only_and_one_column_is_enough(tmp_path: Path) -> None:
    path = put(tmp_path / "a.tsv", b"text\none, two; three | four\n")
    assert [one.text for one in read(path, "csv")[0]] == ["one, two; three | four"]
    path = put(tmp_path / "b.csv", b"text\none\n")
    assert [one.text for one in read(path, "csv")[0]] == ["one"]


def test_where_a_packed_table_breaks_off_the_record_is_refused_too(tmp_path: Path) -> None:
    text = "".join(f"{n},{n**9}\n" for n in range(5000))
    data = PACKERS["gz"](b"id,text\n" + text.encode() + b'1,"open\n' + b"2,good\n" * 3)
    good, bad = read(put(tmp_path / "a.csv.gz", data[:-9]), "csv")
    assert len(good) >= 5000 and "truncated_archive" in [one.reason for one in bad]


def test_quotes_that_open_again_in_every_line_are_read_again_only_so_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each line closes the quote of the one before and opens another: whichever is the first, none is ever closed.
    path = put(tmp_path / "a.csv", b"text\n" + b'a","b\n' * 20_000)
    monkeypatch.setattr(tables, "AGAIN", 1 << 22)
    kept, rejects = read(path, "csv")
    assert not kept and 2 < len(rejects) < 20 and rejects[-1].detail == "too many quotes that nobody closed"
