"""python -m pytest tests/tasks/test_sources.py"""

import gzip
import json
import os
import random
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks import installed_docs
from tasks.artifacts import file_digest
from tasks.errors import DataError, UsageError
from tasks.reading import documents
from tasks.sources import Source, survey
from tasks.streams import CHUNK, Document, Item, Limits, Reject

DATA = Path(__file__).parents[2].parent / "shared" / "data"


LIMITS = Limits()


def read(path: Path, kind: str, limits: Limits = LIMITS) -> tuple[list[Document], list[Reject]]:
    item = Item(kind, str(path), path.name, file_digest(path), path.stat().st_size)
    events = list(documents(item, limits))
    return [e for e in events if isinstance(e, Document)], [e for e in events if isinstance(e, Reject)]


def put(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


GOOD = b'{"text": "good"}'
BAD_LINES = {
    b'{"text": "bad \xff byte"}': "invalid_utf8",
    b'{"text": "cut off': "broken_json",
    b'{"other": "no text"}': "missing_key",
    b'{"text": 5}': "not_text",
    b'{"text": null}': "not_text",
    b'{"text": "a", "text": "b"}': "duplicate_key",
    b'{"text": "\\ud800"}': "lone_surrogate",
    b"[1, 2]": "not_an_object",
    b"[" * 100_000: "broken_json",
    b'{"text": "' + b"x" * 200_000 + b'"}': "line_too_long",
}


@pytest.mark.parametrize(("line", "reason"), BAD_LINES.items(), ids=list(BAD_LINES.values()))
def test_a_bad_line_is_lost_alone(tmp_path: Path, line: bytes, reason: str) -> None:
    path = put(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + GOOD + b"\n\n" + line + b"\r\n" + GOOD)
    good, bad = read(path, "records", Limits(line_bytes=150_000))
    assert [one.text for one in good] == ["good", "good"]
    assert [(one.reason, one.line, one.offset, one.bytes) for one in bad] == [(reason, 3, 21, len(line) + 2)]
    assert path.read_bytes()[bad[0].offset :].startswith(line)


def test_every_form_of_the_json_test_suite_is_taken_or_refused(tmp_path: Path) -> None:
    folder = DATA / "dirty" / "json"
    if not folder.exists():
        pytest.skip("needs the development data")
    cases = [path.read_bytes().replace(b"\n", b" ") for path in sorted(folder.glob("*.json"))]
    good, bad = read(put(tmp_path / "all.jsonl", b"\n".join([*cases, GOOD])), "records")
    assert good[-1].text == "good" and len(good) + len(bad) == 1 + sum(bool(case.strip()) for case in cases)


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
        ("a.txt", "text".encode("utf-16"), "utf16"),
        ("a.txt", b"a\x00b\x00" * 50, "binary"),
        ("a.txt", b"", "empty_file"),
        ("a.txt", b" \n\t\n", "empty_file"),
        ("a.txt.gz", b"plain text", "not_gzip"),
    ],
)
def test_a_file_of_another_kind_is_refused_whole_and_by_name(
    tmp_path: Path, name: str, data: bytes, reason: str
) -> None:
    good, bad = read(put(tmp_path / name, data), "text")
    assert (good, [(one.reason, one.bytes) for one in bad]) == ([], [(reason, len(data))])


def test_gzip_is_told_by_its_magic_bytes_and_read_through_all_members(tmp_path: Path) -> None:
    members = gzip.compress(GOOD + b"\n") + gzip.compress(GOOD + b"\n")
    assert [len(part) for part in read(put(tmp_path / "a.jsonl", members), "records")] == [2, 0]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda data: data[:-30], "truncated_gzip"),
        (lambda data: data + b"junk behind the end", "broken_gzip"),
        (lambda data: data[:-8] + bytes(4) + data[-4:], "broken_gzip"),
    ],
)
def test_what_was_unpacked_before_the_damage_stays(tmp_path: Path, spoil, reason: str) -> None:
    lines = b"".join(json.dumps({"text": os.urandom(300).hex()}).encode() + b"\n" for _ in range(200))
    good, bad = read(put(tmp_path / "a.jsonl.gz", spoil(gzip.compress(lines))), "records")
    assert len(good) > 150 and [one.reason for one in bad] == [reason]


def test_a_gzip_bomb_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.streams.FREE_EXPANSION", 1 << 20)
    good, bad = read(put(tmp_path / "a.txt.gz", gzip.compress(b"bomb\n" * 4_000_000)), "text")
    assert [one.reason for one in bad] == ["gzip_bomb"] and sum(len(one.text) for one in good) < 4 << 20


def test_parquet_rows_are_read_and_bad_ones_named(tmp_path: Path) -> None:
    good_path, cut_path, other = tmp_path / "a.parquet", tmp_path / "b.parquet", tmp_path / "c.parquet"
    raw = pa.array([b"good", b"\xff", None, b"fine"], pa.binary())
    text = pa.StringArray.from_buffers(4, raw.buffers()[1], raw.buffers()[2], raw.buffers()[0])
    pq.write_table(pa.table({"text": text}), good_path)
    good, bad = read(good_path, "parquet")
    assert [(one.text, one.offset) for one in good] == [("good", 0), ("fine", 3)]
    assert [(one.reason, one.offset) for one in bad] == [("invalid_utf8", 1), ("not_text", 2)]
    put(cut_path, good_path.read_bytes()[:-9])
    assert [one.reason for one in read(cut_path, "parquet")[1]] == ["broken_parquet"]
    pq.write_table(pa.table({"text": [1], "body": ["x"]}), other)
    assert [one.reason for one in read(other, "parquet")[1]] == ["not_text"]


def test_one_damaged_row_group_of_parquet_is_lost_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [f"row {number} " + os.urandom(40).hex() for number in range(300)]})
    pq.write_table(table, path, row_group_size=100, write_page_checksum=True, use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    good, bad = read(put(path, bytes(data)), "parquet")
    assert len(good) == 200 and [(one.reason, one.offset) for one in bad] == [("broken_parquet", 100)]


def test_offsets_point_at_the_text(tmp_path: Path) -> None:
    data = b"\xef\xbb\xbf" + "".join(f"Paragraph {n} é.\r\n\r\n" for n in range(200)).encode()
    good, _ = read(put(tmp_path / "a.txt", data), "text", Limits(document_characters=100))
    assert len(good) > 20
    for one in good:
        assert data[one.offset :].removeprefix(b"\xef\xbb\xbf").startswith(one.text.split("\n")[0].encode())


def test_a_file_that_changes_after_it_was_digested_is_an_error(tmp_path: Path) -> None:
    path = put(tmp_path / "a.txt", "before")
    item = Item("text", str(path), "a.txt", file_digest(path), 6)
    path.write_text("behind")
    with pytest.raises(DataError, match=r"a\.txt changed"):
        list(documents(item, Limits()))


@pytest.mark.parametrize("kind", ["text", "records", "parquet", "arrow"])
def test_no_flipped_bits_and_no_cut_make_a_reader_fail(tmp_path: Path, kind: str) -> None:
    table = pa.table({"text": [f"row {number} of a table é" for number in range(50)]})
    good = tmp_path / "good"
    if kind == "parquet":
        pq.write_table(table, good, write_page_checksum=True)
    elif kind == "arrow":
        with pa.ipc.new_stream(str(good), table.schema) as writer:
            writer.write_table(table)
    else:
        rows = [json.dumps(row, ensure_ascii=kind == "text") for row in table.to_pylist()]
        good.write_bytes(gzip.compress("\n".join(rows).encode()))
    random_, data = random.Random(1), good.read_bytes()
    for _ in range(60):
        spoilt = bytearray(data[: random_.choice([len(data), len(data), random_.randrange(len(data))])])
        for _ in range(random_.randrange(3)):
            spoilt[random_.randrange(len(spoilt))] ^= 1 << random_.randrange(8)
        found, refused = read(put(tmp_path / "bad", bytes(spoilt)), kind)
        assert bytes(spoilt) == data or kind == "arrow" or refused or len(found) > 0


# Enumeration


def test_folders_globs_and_files_are_found_in_order_and_the_rest_is_counted(tmp_path: Path) -> None:
    for name in ("b/two.txt", "a/one.md", "z.jsonl.gz", "c.html", ".git/x.txt", "b/noise.parquet.gz"):
        put(tmp_path / "text" / name, name)
    os.symlink("nowhere", tmp_path / "text" / "dangling.txt")
    os.mkfifo(tmp_path / "text" / "pipe.txt")
    (folder,) = survey([Source(str(tmp_path / "text"))], tmp_path)
    labels = [one.label for one in folder.items]
    expected = ["dangling.txt", "pipe.txt", "z.jsonl.gz", "a/one.md", "b/two.txt"]
    assert labels == [f"text/{name}" for name in expected]
    assert folder.skipped == {".gz": 1, ".html": 1}
    assert [event.reason for item in folder.items[:2] for event in documents(item, Limits())] == ["unreadable"] * 2
    (matched,) = survey([Source(str(tmp_path / "text" / "**" / "*.txt"), name="n")], tmp_path)
    assert "n/b/two.txt" in [one.label for one in matched.items]
    (single,) = survey([Source(str(tmp_path / "text" / "c.html"))], tmp_path)
    assert [(one.kind, one.label) for one in single.items] == [("text", "c.html")]


@pytest.mark.parametrize("uri", ["missing", "missing/*.txt", "hf:.", "empty", "installed-docs:no-such-distribution"])
def test_a_source_that_is_not_there_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError) as error:
        survey([Source(uri)], tmp_path)
    assert error.value.exit_code == 2 and "\n" not in str(error.value)
    assert uri.removeprefix("installed-docs:") in str(error.value)


def test_the_digest_of_a_source_does_not_depend_on_where_it_lies(tmp_path: Path) -> None:
    for place in ("here/text", "there/text", "other/text"):
        put(tmp_path / place / "a.txt", "other" if "other" in place else "same")
    digests = [survey([Source(str(tmp_path / p / "text"))], tmp_path)[0].digest for p in ("here", "there", "other")]
    assert digests[0] == digests[1] != digests[2]


def test_digests_are_remembered_but_not_those_of_fresh_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, fresh = put(tmp_path / "t" / "old.txt", "old"), put(tmp_path / "t" / "fresh.txt", "fresh")
    os.utime(old, (time.time() - 100, time.time() - 100))
    hashed: list[str] = []
    monkeypatch.setattr("tasks.sources.file_digest", lambda path: (hashed.append(path.name), file_digest(path))[1])
    first = survey([Source(str(old.parent))], tmp_path)
    assert survey([Source(str(old.parent))], tmp_path) == first
    assert hashed == ["fresh.txt", "old.txt", "fresh.txt"]
    old.write_text("new")
    assert survey([Source(str(old.parent))], tmp_path) != first
    (tmp_path / "digests.json").write_bytes(b"{damaged")
    fresh.unlink()
    assert len(survey([Source(str(old.parent))], tmp_path)[0].items) == 1


def test_a_save_to_disk_folder_is_read_through_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    table = datasets.Dataset.from_dict({"body": ["first text", None, "third text"], "n": [1, 2, 3]})
    datasets.DatasetDict({"train": table, "test": table.select([2])}).save_to_disk(tmp_path / "saved")
    (found,) = survey([Source(f"hf:{tmp_path / 'saved'}", text_key="body")], tmp_path)
    events = [event for item in found.items for event in documents(item, Limits())]
    assert [one.text for one in events if isinstance(one, Document)] == ["third text", "first text", "third text"]
    assert [(one.reason, one.offset) for one in events if isinstance(one, Reject)] == [("not_text", 1)]


# Installed documentation


def test_installed_documentation_is_a_fixed_mix_that_leaves_the_project_out() -> None:
    files, identities = installed_docs.survey("pyarrow,rich")
    assert (files, identities) == installed_docs.survey("rich,pyarrow")
    names = [name for name, *_ in identities]
    assert "maskmill" not in names and {"pyarrow", "rich", "markdown-it-py", "python"} <= set(names)
    kinds = [one.kind for one in files]
    assert kinds == sorted(kinds, key=["topics", "metadata", "python"].index)
    first = {one.label.split("/")[0] for one in files[kinds.index("python") :][:40]}
    assert {"pyarrow", "rich", "markdown-it-py"} <= first
    assert all(str(Path(one.path).parent) not in one.label for one in files)


def test_docstrings_are_found_where_they_stand(tmp_path: Path) -> None:
    source = '"""Module é."""\n\nclass A:\n    """Class."""\n    if A:\n        def f():\n            """Function."""\n'
    path = put(tmp_path / "a.py", source)
    found = list(installed_docs.documentation("python", path))
    assert [text for _, text in found] == ["Module é.", "Class.", "Function."]
    assert all(text in path.read_bytes()[offset:].split(b"\n")[0].decode() for offset, text in found)


def test_a_package_file_that_was_edited_or_is_broken_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path / "a.py", '"""' + "word " * 100 + '"""\ndef (')
    assert [one.reason for one in read(path, "python")[1]] == ["broken_python"]
    item = Item("python", str(path), "a.py", "0" * 64, 1)
    assert [one.reason for one in documents(item, Limits())] == ["changed_since_install"]


def test_one_bad_byte_never_loses_a_text_file(tmp_path: Path) -> None:
    few = put(tmp_path / "few.txt", b"first paragraph\n\ncaf\xe9\n\nlast paragraph\n")
    texts, rejects = read(few, "text")
    assert [one.reason for one in rejects] == ["invalid_utf8"]
    assert "first paragraph" in texts[0].text and "last paragraph" in texts[-1].text
    tail = put(tmp_path / "tail.txt", b"word " * (CHUNK // 5) + b"w\n\na\0b\n")
    texts, rejects = read(tail, "text")
    assert texts and not rejects


def test_names_of_sources_are_unique_and_every_one_is_in_the_key(tmp_path: Path) -> None:
    for name in ("x", "y", "z"):
        put(tmp_path / name / "a.txt", f"the text of {name}")
    sources = [Source(str(tmp_path / folder), name) for folder, name in (("x", "a"), ("y", "a"), ("z", "a-2"))]
    names = [one.source.name for one in survey(sources, tmp_path / "store")]
    assert len(set(names)) == 3


def test_how_a_file_is_read_is_part_of_its_digest(tmp_path: Path) -> None:
    text, lines = put(tmp_path / "same.txt", GOOD), put(tmp_path / "same.jsonl", GOOD)
    first, second = (survey([Source(str(path), "one")], tmp_path / "store")[0].digest for path in (text, lines))
    assert first != second


def test_rows_of_a_hub_dataset_become_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    table = {"train": [{"text": "one"}, {"text": 5}], "test": [{"other": "x"}]}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: table)
    item = Item("hub", "name", "name", "revision", 0)
    events = list(documents(item, LIMITS))
    assert [e.text for e in events if isinstance(e, Document)] == ["one"]
    assert [e.reason for e in events if isinstance(e, Reject)] == ["missing_key", "not_text"]
