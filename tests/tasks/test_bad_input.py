"""The catalogue of bad input: each kind of file is read in a process of its own, in bounded memory and time.

python -m pytest tests/tasks/test_bad_input.py
"""

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.tasks.made_files import GOOD, PACKERS, development, jsonl, put, read

ROOT = Path(__file__).parents[2]
SECONDS = 60
"""A file that takes longer hangs. Generous: the machine may be busy."""
MEGABYTES = 200
"""Memory that reading any file may take: a line of 16 MiB in all its forms, and what unpacking needs."""
if not Path("/proc/self/clear_refs").exists():
    pytest.skip("measures memory as Linux tells it", allow_module_level=True)


class Child:
    """Reads one file after the other; a new process after one that died or hung."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def read(self, path: Path, kind: str, **more: Any) -> dict[str, Any]:
        if self.process is None:
            command = [sys.executable, "-m", "tests.tasks.reading_child"]
            self.process = subprocess.Popen(command, stdin=-1, stdout=-1, text=True, cwd=ROOT)
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps([str(path), kind, more]) + "\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], SECONDS)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            self.close()
            pytest.fail(f"the reader {'died' if ready else 'hung'} over {path.name}")
        found: dict[str, Any] = json.loads(line)
        assert found["peak"] < MEGABYTES, found
        return found

    def close(self) -> None:
        if self.process:
            self.process.kill()
            self.process.communicate()
        self.process = None


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    one = Child()
    yield one
    one.close()


def table(column: Any, compression: str = "zstd") -> bytes:
    """As a dictionary, however long its texts are: two thousand rows of a megabyte are a few kilobytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": column}), sink, compression=compression, dictionary_pagesize_limit=1 << 30)
    return sink.getvalue().to_pybytes()


ROWS = jsonl([f"text number {number}" for number in range(300)])
TEXT = b"\n\n".join(b"Paragraph number %d of a text." % number for number in range(300))
MIXED = b'{"text": 5}\n{"text": null}\n[]\n7\n'
WRAPPED = b"lower case words up to the end of a line, as is usual in books\n" * 9 + b"\n"
NOISE = jsonl([os.urandom(200).hex() for _ in range(5000)])
"""Does not shrink to less than half, so that there is much before any damage."""

# name of the file, kind, bytes, documents at least, reasons of what is refused
CASES: list[tuple[str, str, bytes | Callable[[], bytes], int, dict[str, int]]] = [
    ("invalid-utf8.txt", "text", TEXT + b"\n\ncaf\xe9\n\n" + TEXT, 3, {"invalid_utf8": 1}),
    ("invalid-utf8.jsonl", "records", ROWS + b'{"text": "\xff"}\n' + ROWS, 600, {"invalid_utf8": 1}),
    ("invalid-utf8.csv", "csv", b"id,text\n1,caf\xe9\n2,good", 1, {"invalid_utf8": 1}),
    ("broken.jsonl", "records", ROWS + b'{"text": "a\n' + ROWS, 600, {"broken_json": 1}),
    ("not-json.jsonl", "records", TEXT, 0, {"broken_json": 300}),
    ("mixed.jsonl", "records", ROWS + MIXED, 300, {"not_text": 1, "null": 1, "not_an_object": 2}),
    ("no-key.jsonl", "records", b'{"body": "x"}\n' * 50, 0, {"missing_key": 50}),
    ("duplicate-key.jsonl", "records", ROWS + b'{"text": "a", "text": "b"}', 300, {"duplicate_key": 1}),
    ("surrogate.jsonl", "records", ROWS + b'{"text": "\\ud800"}', 300, {"lone_surrogate": 1}),
    ("deep.jsonl", "records", b"[" * 1_000_000 + b"\n" + GOOD, 1, {"broken_json": 1}),
    ("nul.txt", "text", TEXT + b"\0" + TEXT, 3, {}),
    ("nul.jsonl", "records", b"\0\0\0\n" + GOOD, 1, {"broken_json": 1}),
    ("only-nul.txt", "text", b"\0" * 5000, 0, {"binary": 1}),
    ("bom.txt", "text", b"\xef\xbb\xbf" + TEXT, 2, {}),
    ("bom.jsonl", "records", b"\xef\xbb\xbf" + ROWS, 300, {}),
    ("bom.csv", "csv", b"\xef\xbb\xbftext\ngood", 1, {}),
    ("utf16.txt", "text", "text".encode("utf-16"), 0, {"utf16": 1}),
    ("utf16.jsonl", "records", ROWS.decode().encode("utf-16"), 0, {"utf16": 1}),
    ("utf16.txt.gz", "text", PACKERS["gz"]("text".encode("utf-16")), 0, {"utf16": 1}),
    ("utf32.csv", "csv", "text\ngood".encode("utf-32"), 0, {"utf16": 1}),
    ("cp1252.txt", "text", "été à la carte\n".encode("cp1252") * 99, 0, {"not_utf8": 1}),
    ("crlf.txt", "text", TEXT.replace(b"\n", b"\r\n"), 2, {}),
    ("cr.txt", "text", TEXT.replace(b"\n", b"\r"), 2, {}),
    ("crlf.jsonl", "records", ROWS.replace(b"\n", b"\r\n"), 300, {}),
    ("u2028.jsonl", "records", '{"text": "a\u2028b\x85c\x7f"}\n'.encode() + GOOD, 2, {}),
    ("empty.txt", "text", b"", 0, {"empty_file": 1}),
    ("empty.jsonl", "records", b"", 0, {"empty_file": 1}),
    ("empty.csv", "csv", b"", 0, {"empty_file": 1}),
    ("empty.html", "html", b"", 0, {"empty_file": 1}),
    ("empty.parquet", "parquet", b"", 0, {"broken_parquet": 1}),
    ("empty.arrow", "arrow", b"", 0, {"broken_arrow": 1}),
    ("blank.txt", "text", b" \r\n\t\n" * 99, 0, {"empty_file": 1}),
    ("no-rows.parquet", "parquet", table(pa.array([], pa.string())), 0, {"empty_file": 1}),
    ("plain.txt.gz", "text", TEXT, 0, {"not_an_archive": 1}),
    ("open-quote.csv", "csv", b'text\n"open\n' + b"good\n" * 200_000, 200_000, {"broken_csv": 1}),
    ("wrong-type.parquet", "parquet", table([1, 2]), 0, {"not_text": 1}),
    ("cut-footer.parquet", "parquet", table(["a"])[:-9], 0, {"broken_parquet": 1}),
    ("text.parquet", "parquet", TEXT, 0, {"broken_parquet": 1}),
    ("text.arrow", "arrow", TEXT, 0, {"broken_arrow": 1}),
    ("open.html", "html", b"<" * 100_000, 1, {}),
    ("deep.html", "html", b"<div>" * 200_000 + b"text", 0, {"no_main_text": 1}),
    ("huge.html", "html", b"<p>word</p>" * 1_000_000, 0, {"page_too_long": 1}),
    ("line.txt", "text", lambda: TEXT + b"\n" + b"word " * 40_000_000 + b"\n" + TEXT, 3, {"line_too_long": 1}),
    ("line.jsonl", "records", lambda: ROWS + b"word " * 40_000_000 + b"\n" + ROWS, 600, {"line_too_long": 1}),
    ("line.csv", "csv", lambda: b"text\ngood\n" + b"word " * 40_000_000 + b"\ngood", 2, {"line_too_long": 1}),
    ("quoted.csv", "csv", lambda: b'text\n"' + b"word\n" * 500_000, 499_999, {"broken_csv": 1}),
    ("wide.html", "html", b"<p>a few words</p>" * 110_000, 1, {}),
    ("line.html", "html", lambda: b"<p>" + b"word " * 40_000_000, 0, {"page_too_long": 1}),
    ("long-line.txt", "text", lambda: b"word " * 3_300_000, 4000, {}),
    ("long-line-cjk.txt", "text", lambda: "日本語の文章。".encode() * 790_000, 1300, {}),
    ("blank-line.txt", "text", lambda: TEXT + b"\n" * 20_000_000 + TEXT, 3, {}),
    ("wrapped.txt", "text", lambda: WRAPPED + b"a b " * 4_000_000, 1, {}),
    ("blanks.txt", "text", lambda: (TEXT + b" " * 15_000_000 + b"\n") * 2, 4, {}),
    ("short-lines.txt", "text", lambda: b"a\n" * 4_000_000, 1900, {}),
    ("parquet-bomb.parquet", "parquet", lambda: table(["word " * 20_000_000]), 0, {"archive_bomb": 1}),
    ("parquet-rows.parquet", "parquet", lambda: table(["word " * 200_000] * 600), 600, {}),
    ("parquet-long.parquet", "parquet", lambda: table(["word " * 4_000_000, "good"], "none"), 1, {"line_too_long": 1}),
]  # fmt: skip
for _name, _pack in PACKERS.items():
    CASES += [
        (f"members.jsonl.{_name}", "records", _pack(ROWS) + _pack(ROWS), 600, {}),
        (f"cut.jsonl.{_name}", "records", _pack(NOISE)[:-30], 500, {"truncated_archive": 1}),
        (f"junk.jsonl.{_name}", "records", _pack(ROWS) + b"junk behind the end", 300, {"trailing_junk": 1}),
        (f"half.jsonl.{_name}", "records", _pack(ROWS) + _pack(ROWS)[:-9], 300, {"truncated_archive": 1}),
        (f"bomb.txt.{_name}", "text", lambda pack=_pack: pack(b"bomb\n" * 1_000_000) * 60, 1, {"archive_bomb": 1}),
        (
            f"line.jsonl.{_name}",
            "records",
            lambda pack=_pack: pack(ROWS) + pack(b"ab" * 1_000_000) * 10 + pack(b"\n" + GOOD),
            301,
            {"line_too_long": 1},
        ),
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "kind", "data", "documents", "reasons"), CASES, ids=[case[0] for case in CASES])
def test_bad_input_is_named_and_the_rest_is_kept(
    tmp_path: Path,
    child: Child,
    name: str,
    kind: str,
    data: bytes | Callable[[], bytes],
    documents: int,
    reasons: dict[str, int],
) -> None:
    path = put(tmp_path / name, data if isinstance(data, bytes) else data())
    del data
    found = child.read(path, kind)
    path.unlink()
    assert found["reasons"] == reasons
    assert found["documents"] >= documents and (documents or not found["documents"])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [("a.txt", "text"), ("a.jsonl", "records"), ("a.csv", "csv")])
def test_a_line_of_a_gigabyte_is_refused_and_what_stands_around_it_kept(
    tmp_path: Path, child: Child, name: str, kind: str
) -> None:
    with open(tmp_path / name, "wb") as file:
        file.write(b"text\ngood\n\n" if kind != "records" else GOOD + b"\n")
        for _ in range(1024):
            file.write(b"words of a line without end, " * 36_157)
        file.write(b"\n" + (b"good" if kind != "records" else GOOD))
    found = child.read(tmp_path / name, kind)
    (tmp_path / name).unlink()
    assert found["reasons"] == {"line_too_long": 1}
    assert found["last"].endswith("good") and found["documents"] == (1 if kind == "text" else 2)


KINDS = {".txt": "text", ".html": "html", ".json": "records", ".jsonl": "records", ".csv": "csv"}


def test_all_of_the_dirty_files_are_read_through() -> None:
    files = [path for path in sorted(development("dirty").rglob("*")) if path.is_file()]
    assert len(files) > 300
    for path in files:
        plain = path.with_suffix("") if path.suffix in (".gz", ".zst") else path
        good, bad = read(path, KINDS.get(plain.suffix, "text"))
        assert good or bad, path


def test_what_was_made_to_be_dirty_is_called_by_its_name() -> None:
    folder = development("dirty", "made")
    expected = {
        "empty.txt": "empty_file",
        "only_whitespace.txt": "empty_file",
        "utf16.txt": "utf16",
        "not_gzip.txt.gz": "not_an_archive",
        "truncated.txt.gz": "truncated_archive",
        "truncated.txt.zst": "truncated_archive",
    }
    found = {name: [one.reason for one in read(folder / name, "text")[1]] for name in expected}
    assert found == {name: [reason] for name, reason in expected.items()}
