"""Parquet and Arrow. python -m pytest tests/tasks/test_columns.py"""

import gzip
import json
import os
import random
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks import columns
from tests.tasks.made_files import put, read

KINDS = ("parquet", "stream", "file")


def write(path: Path, table: pa.Table, kind: str, **options: Any) -> Path:
    if kind == "parquet":
        pq.write_table(table, path, **options)
    else:
        with (pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file)(str(path), table.schema) as writer:
            writer.write_table(table, **options)
    return path


def reader(kind: str) -> str:
    return "parquet" if kind == "parquet" else "arrow"


def not_utf8(values: list[bytes | None], kind: pa.DataType) -> pa.Array:
    raw = pa.array(values, pa.large_binary() if kind == pa.large_string() else pa.binary())
    return pa.Array.from_buffers(kind, len(raw), raw.buffers())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["string", "large_string", "dictionary", "struct", "string_view"])
def test_rows_are_read_and_bad_ones_named(tmp_path: Path, kind: str, form: str) -> None:
    values = [b"good", b"\xff", None, b"fine", b""]
    wide = form == "large_string"
    column: pa.Array = not_utf8(values, pa.large_string() if wide else pa.string())
    key = "text"
    if form == "dictionary":
        column = pa.DictionaryArray.from_arrays(
            pa.array([0, 1, None, 2, 3]), not_utf8([b"good", b"\xff", b"fine", b""], pa.string())
        )
    if form == "struct":
        column, key = pa.StructArray.from_arrays([column, pa.array(range(5))], ["text", "n"]), "meta.text"
    if form == "string_view":
        column, values = pa.array(["good", None, "fine", ""], pa.string_view()), [b"good", None, b"fine", b""]
    table = pa.table({"meta" if form == "struct" else "text": column, "other": list(range(len(column)))})
    good, bad = read(write(tmp_path / "a", table, kind), reader(kind), text_key=key)
    bad_rows = [
        (row, "null" if value is None else "invalid_utf8")
        for row, value in enumerate(values)
        if value in (None, b"\xff")
    ]
    assert [(one.offset, one.text.encode()) for one in good] == [
        (row, value) for row, value in enumerate(values) if value not in (None, b"\xff")
    ]
    assert [(one.offset, one.reason) for one in bad] == bad_rows


@pytest.mark.parametrize("kind", KINDS)
def test_columns_that_are_not_there_or_hold_no_text_are_named(tmp_path: Path, kind: str) -> None:
    table = pa.table({"n": [1], "body": ["x"], "a.b": ["dotted"], "a": [{"b": "deep", "c": {"d": 1}}]})
    path = write(tmp_path / "a", table, kind)
    assert read(path, reader(kind), text_key="a.b")[0][0].text == "dotted"
    for key, reason, said in [
        ("text", "missing_key", "no column 'text'; it has n, body, a.b, a"),
        ("n", "not_text", "column 'n' is int64"),
        ("a", "not_text", "struct"),
        ("a.c.d", "not_text", "int64"),
        ("a.x", "missing_key", "no column 'a.x'"),
        ("body.x", "missing_key", "no column 'body.x'"),
    ]:
        good, bad = read(path, reader(kind), text_key=key)
        assert not good and [one.reason for one in bad] == [reason] and said in bad[0].detail


def test_one_damaged_row_group_of_parquet_is_lost_alone(tmp_path: Path) -> None:
    table = pa.table({"text": [f"row {number} " + os.urandom(40).hex() for number in range(300)]})
    options = {"row_group_size": 100, "write_page_checksum": True, "use_dictionary": False}
    data = bytearray(write(tmp_path / "a", table, "parquet", **options).read_bytes())
    data[len(data) // 2] ^= 1
    good, bad = read(put(tmp_path / "b", bytes(data)), "parquet")
    assert len(good) == 200 and [(one.reason, one.offset) for one in bad] == [("broken_parquet", 100)]


@pytest.mark.parametrize("rows", [1, 255, 256, 257, 1000])
def test_all_rows_are_read_whatever_the_batches_are(tmp_path: Path, rows: int) -> None:
    table = pa.table({"text": [f"text {number % 7} of {number // 3}" for number in range(rows)]})
    paths = [
        write(tmp_path / "a", table, "parquet", row_group_size=300, data_page_size=500),
        write(tmp_path / "b", table, "stream", max_chunksize=300),
        write(tmp_path / "c", table, "file"),
    ]
    for path, kind in zip(paths, KINDS):
        good, bad = read(path, reader(kind))
        assert [(one.offset, one.text) for one in good] == list(enumerate(table["text"].to_pylist())) and not bad


def test_a_cut_arrow_file_keeps_the_batches_before_the_cut(tmp_path: Path) -> None:
    table = pa.table({"text": [f"row {number}" for number in range(1000)]})
    data = write(tmp_path / "a", table, "stream", max_chunksize=100).read_bytes()
    good, bad = read(put(tmp_path / "b", data[: len(data) // 2]), "arrow")
    assert len(good) >= 300 and [(one.reason, one.offset) for one in bad] == [("broken_arrow", len(good))]


@pytest.mark.parametrize("kind", ["text", "records", "csv", "html", *KINDS])
def test_no_flipped_bits_and_no_cut_make_a_reader_fail(tmp_path: Path, kind: str) -> None:
    texts = [f"row {number} of a table é" for number in range(50)]
    if kind in KINDS:
        table = pa.table({"text": texts, "words": pa.array(texts).dictionary_encode()})
        options = {"write_page_checksum": True} if kind == "parquet" else {"max_chunksize": 20}
        data = write(tmp_path / "good", table, kind, **options).read_bytes()
    elif kind == "html":
        data = ("<html><body><p>" + "</p><p>".join(texts) + "</p></body></html>").encode()
    else:
        lines = ["text", *texts] if kind == "csv" else [json.dumps({"text": text}) for text in texts]
        data = gzip.compress("\n".join(lines).encode())
    random_ = random.Random(1)
    for number in range(60):
        spoilt = bytearray(data[: random_.choice([len(data), len(data), random_.randrange(len(data))])])
        for _ in range(random_.randrange(3)):
            if spoilt:
                spoilt[random_.randrange(len(spoilt))] ^= 1 << random_.randrange(8)
        key = "words" if number % 2 and kind in KINDS else "text"
        reads = reader(kind) if kind in KINDS else kind
        found, refused = read(put(tmp_path / "bad", bytes(spoilt)), reads, text_key=key)
        assert found or refused


def test_a_text_that_a_dictionary_repeats_without_end_is_a_bomb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "SHARED", 1 << 20)
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), pa.array(["a text " * 2000]))
    path = write(tmp_path / "a.parquet", pa.table({"text": texts}), "parquet", compression="zstd")
    kept, rejects = read(path, "parquet")
    assert 0 < len(kept) < 2000 and [one.reason for one in rejects] == ["archive_bomb"]


def test_damaged_statistics_of_a_column_do_not_abort_the_process(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"text": [f"text {n}" for n in range(50)]}), tmp_path / "a.parquet", write_page_checksum=True
    )
    whole = (tmp_path / "a.parquet").read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    path, rng = tmp_path / "b.parquet", random.Random(0)
    for _ in range(300):  # in this very process
        data = bytearray(whole)
        data[rng.randrange(footer, len(data) - 8)] ^= 1 << rng.randrange(8)
        kept, rejects = read(put(path, bytes(data)), "parquet")
        assert kept or rejects


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_machine_without_memory_is_no_damaged_file(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a run that is short of memory would leave texts out, and go on."""
    path = write(tmp_path / "a", pa.table({"text": ["a text"] * 9}), kind)
    for said, error in (
        ("malloc of size 4194304 failed", MemoryError),
        ("Memory mapping file failed: Cannot allocate memory", MemoryError),
        ("malloc of size 1152921504606846976 failed", None),
    ):

        def fail(*_: object, said: str = said) -> None:
            raise (OSError if "mapping" in said else pa.ArrowMemoryError)(said)

        monkeypatch.setattr(columns, "_picked", fail)
        if error:
            with pytest.raises(error, match=re.escape(said)):
                read(path, kind)
        else:
            assert read(path, kind)[1][0].reason == f"broken_{kind}"
