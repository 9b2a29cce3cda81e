"""python -m pytest tests/tasks/test_reading.py"""

import os
from dataclasses import replace
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks import installed_docs, remotes
from tasks.artifacts import file_digest
from tasks.errors import DataError
from tasks.reading import HEAD, documents, refuse_changed
from tasks.streams import Document, Item, Limits, Reject
from tests.tasks.made_files import GOOD, PACKERS, item_of, put, read

# Text


def test_a_line_that_is_not_utf8_leaves_the_rest_of_a_text(tmp_path: Path) -> None:
    lines = [f"line number {number} of a text".encode() for number in range(40)]
    lines[7] = b"caf\xe9"
    good, bad = read(put(tmp_path / "a.txt", b"\r\n".join(lines)), "text")
    assert "number 6" in good[0].text and "number 39" in good[0].text
    assert [(one.reason, one.line, one.bytes) for one in bad] == [("invalid_utf8", 8, 6)]


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.txt", "café à la carte\n".encode("cp1252") * 20, "not_utf8"),
        ("a.txt", b"plain words\n" * 50_000 + "café à la carte\n".encode("cp1252") * 20_000, "not_utf8"),
        ("a.txt", "text".encode("utf-16"), "utf16"),
        ("a.txt", b"a\x00b\x00" * 50, "binary"),
        ("a.txt", b"", "empty_file"),
        ("a.txt", b" \n\t\n", "empty_file"),
        ("a.txt.gz", b"plain text", "not_an_archive"),
    ],
)
def test_a_file_of_another_kind_is_refused_whole_and_by_name(
    tmp_path: Path, name: str, data: bytes, reason: str
) -> None:
    good, bad = read(put(tmp_path / name, data), "text")
    assert (good, [(one.reason, one.bytes) for one in bad]) == ([], [(reason, len(data))])


def test_bad_lines_far_into_a_file_are_refused_one_by_one(tmp_path: Path) -> None:
    words = b"plain words and no end\n"
    data = words * (HEAD // len(words) + 10) + b"caf\xe9\n" * 20 + b"\nlast words\n"
    good, bad = read(put(tmp_path / "a.txt", data), "text")
    assert len(bad) == 20 and good[-1].text.endswith("last words")


def test_one_bad_byte_never_loses_a_text_file(tmp_path: Path) -> None:
    texts, rejects = read(put(tmp_path / "few.txt", b"first paragraph\n\ncaf\xe9\n\nlast paragraph\n"), "text")
    assert [one.reason for one in rejects] == ["invalid_utf8"]
    assert "first paragraph" in texts[0].text and "last paragraph" in texts[-1].text
    texts, rejects = read(put(tmp_path / "tail.txt", b"word " * (HEAD // 5) + b"w\n\na\0b\n"), "text")
    assert texts and not rejects


@pytest.mark.parametrize("around", [HEAD - 2, HEAD - 1, HEAD])
def test_a_character_that_lies_across_the_head_is_no_bad_line(tmp_path: Path, around: int) -> None:
    data = b"x" * around + "é\nmore\n".encode()
    assert not read(put(tmp_path / "a.txt", data), "text")[1]


def test_offsets_point_at_the_text(tmp_path: Path) -> None:
    data = b"\xef\xbb\xbf" + "".join(f"Paragraph {n} é.\r\n\r\n" for n in range(200)).encode()
    good, _ = read(put(tmp_path / "a.txt", data), "text", Limits(document_characters=100))
    assert len(good) > 20
    for one in good:
        assert data[one.offset :].startswith(one.text.split("\n")[0].encode())


WRAPPED = "It was a Sunday evening in October, and in common with many\nother ladies of her class she poured out tea.\n"


@pytest.mark.parametrize(
    ("cut", "texts"),
    [
        ("pages", [WRAPPED.replace("\n", " ").strip() + "\n\nSecond."]),
        ("file", [WRAPPED.replace("\n", " ").strip() + "\n\nSecond."]),
        ("paragraph", [WRAPPED.replace("\n", " ").strip(), "Second."]),
        ("line", [*WRAPPED.strip().split("\n"), "Second."]),
    ],
)
@pytest.mark.parametrize("suffix", ["", *PACKERS])
def test_a_text_is_cut_as_the_source_says(tmp_path: Path, cut: str, texts: list[str], suffix: str) -> None:
    data = f"{WRAPPED}\n\n\nSecond.".encode()
    data = PACKERS[suffix](data) if suffix else data
    good, bad = read(put(tmp_path / f"a.txt.{suffix}".strip("."), data), "text", cut=cut)
    assert [one.text for one in good] == texts and not bad


def test_a_whole_file_is_one_document_up_to_the_size_of_a_record(tmp_path: Path) -> None:
    path = put(tmp_path / "a.txt", "\n\n".join(f"Paragraph number {n}." for n in range(2000)))
    assert len(read(path, "text", cut="file")[0]) == 1
    parts = read(path, "text", Limits(record_characters=10_000), cut="file")[0]
    assert len(parts) > 3 and all(9_000 < len(one.text) <= 10_000 for one in parts[:-1])


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "cp1252", "utf-32"])
def test_another_encoding_is_read_where_the_source_names_it(tmp_path: Path, encoding: str) -> None:
    path = put(tmp_path / "a.txt", "Café à la carte.\r\n\r\nMore.".encode(encoding))
    good, bad = read(path, "text", encoding=encoding)
    assert [one.text for one in good] == ["Café à la carte.\n\nMore."] and not bad


# Files that change or cannot be read


def test_a_file_that_changed_after_it_was_digested_is_an_error(tmp_path: Path) -> None:
    path = put(tmp_path / "a.txt", "before")
    item = item_of(path, "text")
    path.write_text("behind")
    with pytest.raises(DataError, match=r"a\.txt changed"):
        list(documents(item, Limits()))


@pytest.mark.parametrize("stamped", [True, False])
def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path: Path, stamped: bool) -> None:
    path = put(tmp_path / "a.jsonl", (GOOD + b"\n") * 200_000)
    item = item_of(path, "records")
    if stamped:
        state = path.stat()
        item = replace(item, stamp=(state.st_size, state.st_mtime_ns, state.st_ino, state.st_ctime_ns))
    events = documents(item, Limits())
    next(events)
    with open(path, "r+b") as file:
        file.seek(-len(GOOD) - 1, os.SEEK_END)
        file.write(GOOD)
    with pytest.raises(DataError, match=r"a\.jsonl changed"):
        list(events)


def test_a_stamp_that_holds_saves_the_hashing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "a.txt", "text")
    state = path.stat()
    item = replace(item_of(path, "text"), stamp=(state.st_size, state.st_mtime_ns, state.st_ino, state.st_ctime_ns))
    monkeypatch.setattr("tasks.reading.file_digest", None)
    assert [one.text for one in documents(item, Limits()) if isinstance(one, Document)] == ["text"]


@pytest.mark.parametrize("kind", ["text", "records", "csv", "html", "parquet", "arrow"])
def test_a_file_that_is_gone_is_an_error_that_says_so(tmp_path: Path, kind: str) -> None:
    path = put(tmp_path / "a.txt", "text")
    item = item_of(path, kind)
    path.unlink()
    with pytest.raises(DataError, match=r"a\.txt cannot be read any more .*; run again\."):
        list(documents(item, Limits()))


def test_a_file_without_a_digest_is_counted_with_its_reason() -> None:
    events = list(documents(Item("text", "pipe", "pipe", "not a regular file", 3), Limits()))
    assert events == [Reject("unreadable", bytes=3, detail="not a regular file")]


@pytest.mark.parametrize("kind", ["text", "records", "csv", "html", "parquet", "arrow"])
def test_remote_files_are_read_and_asked_again_whether_they_changed(kind: str) -> None:
    sentence = "One sentence of a text that is long enough to be taken. " * 8
    data = {
        "text": sentence,
        "records": f'{{"text": "{sentence}"}}',
        "csv": f"text\n{sentence}",
        "html": f"<p>{sentence}",
    }
    table = pa.table({"text": [sentence] * 3})
    sink = pa.BufferOutputStream()
    if kind == "parquet":
        pq.write_table(table, sink)
    elif kind == "arrow":
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    url = f"memory://reading/{kind}"
    written = data[kind].encode() if kind in data else sink.getvalue().to_pybytes()
    with fsspec.open(url, "wb") as file:
        file.write(written)
    item = Item(kind, url, kind, remotes.identity_of(url), len(written), remote=True)
    found = list(documents(item, Limits()))
    assert found and {one.text.strip() for one in found if isinstance(one, Document)} == {sentence.strip()}
    with fsspec.open(url, "wb") as file:
        file.write(b"text\nother words than there were")
    with pytest.raises(DataError, match="changed while"):
        list(documents(item, Limits()))


# Installed documentation


def test_docstrings_of_a_package_are_read_as_prose(tmp_path: Path) -> None:
    sentence = "Return the largest of the values that are found in the given array of numbers. "
    source = f'"""{sentence * 3}"""\n\ndef f():\n    """Short."""\n' + f'\ndef g():\n    """{sentence * 4}"""\n'
    good, bad = read(put(tmp_path / "a.py", source), "python")
    assert [one.text for one in good] == [sentence.strip() + (" " + sentence.strip()) * n for n in (2, 3)]
    assert [one.reason for one in bad] == ["not_prose"]


def test_a_package_file_that_was_edited_or_is_broken_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path / "a.py", '"""' + "word " * 100 + '"""\ndef (')
    assert [one.reason for one in read(path, "python")[1]] == ["broken_python"]
    item = Item("python", str(path), "a.py", "0" * 64, 1)
    assert [one.reason for one in documents(item, Limits())] == ["changed_since_install"]


def test_docstrings_are_found_where_they_stand(tmp_path: Path) -> None:
    source = '"""Module é."""\n\nclass A:\n    """Class."""\n    if A:\n        def f():\n            """Function."""\n'
    path = put(tmp_path / "a.py", source)
    found = list(installed_docs.documentation("python", path))
    assert [text for _, text in found] == ["Module é.", "Class.", "Function."]
    assert all(text in path.read_bytes()[offset:].split(b"\n")[0].decode() for offset, text in found)


def test_who_stops_early_asks_whether_the_file_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("text")
    item = Item("text", str(path), "a.txt", file_digest(path), 4)
    refuse_changed(item)
    refuse_changed(Item("hub", "NAME:CONFIG", "NAME", "revision", 0))
    path.write_text("TEXT")
    with pytest.raises(DataError, match=r"a\.txt changed while"):
        refuse_changed(item)
