"""python -m pytest tests/tasks/test_records.py"""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.reading import documents
from tasks.records import lookup
from tasks.streams import Document, Item, Limits, Reject
from tests.tasks.made_files import GOOD, development, put, read

BAD_LINES = {
    b'{"text": "bad \xff byte"}': "invalid_utf8",
    b'{"text": "cut off': "broken_json",
    b'{"other": "no text"}': "missing_key",
    b'{"text": 5}': "not_text",
    b'{"text": null}': "null",
    b'{"text": "a", "text": "b"}': "duplicate_key",
    b'{"text": "a", "more": [{"b": 1, "b": 2}]}': "duplicate_key",
    b'{"text": "\\ud800"}': "lone_surrogate",
    b"[1, 2]": "not_an_object",
    b"[" * 100_000: "broken_json",
    b'{"text": "a", "n": ' + b"1" * 5000 + b"}": "broken_json",
    b'{"text": "' + b"x" * 200_000 + b'"}': "line_too_long",
}


@pytest.mark.parametrize(
    ("line", "reason"), BAD_LINES.items(), ids=[f"{n}-{r}" for n, r in enumerate(BAD_LINES.values())]
)
def test_a_bad_line_is_lost_alone(tmp_path: Path, line: bytes, reason: str) -> None:
    path = put(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + GOOD + b"\n\n" + line + b"\r\n" + GOOD)
    good, bad = read(path, "records", Limits(line_bytes=150_000))
    assert [one.text for one in good] == ["good", "good"]
    assert [(one.reason, one.line, one.offset, one.bytes) for one in bad] == [(reason, 3, 21, len(line) + 2)]
    assert path.read_bytes()[bad[0].offset :].startswith(line)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=12), st.data())
def test_a_spoilt_byte_loses_its_line_at_most(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], data: st.DataObject
) -> None:
    texts = [text.encode(errors="replace").decode() for text in texts]
    lines = [json.dumps({"text": text}).encode() for text in texts]
    whole = b"\n".join(lines)
    at = data.draw(st.integers(0, len(whole) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda one: one != 10))
    spoilt = whole[:at] + bytes([byte]) + whole[at + (whole[at : at + 1] != b"\n") :]
    hit = whole[:at].count(b"\n")
    good, bad = read(put(tmp_path_factory.mktemp("spoilt") / "a.jsonl", spoilt), "records")
    kept = [one.text for one in good]
    others = texts[:hit] + texts[hit + 1 :]
    assert len(good) + len(bad) == len(texts)
    assert kept == others or [text for n, text in enumerate(kept) if n != hit] == others


def test_every_form_of_the_json_test_suite_is_taken_or_refused(tmp_path: Path) -> None:
    files = sorted(development("dirty", "json").glob("*.json"))
    cases = [path.read_bytes().replace(b"\n", b" ") for path in files]
    good, bad = read(put(tmp_path / "all.jsonl", b"\n".join([*cases, GOOD])), "records")
    assert good[-1].text == "good" and len(good) + len(bad) == 1 + sum(bool(case.strip()) for case in cases)


def test_the_text_is_found_by_a_dotted_path_and_a_key_with_dots_in_it_wins() -> None:
    row = {"a": {"b": "deep", "b.c": "dotted", "list": [{"x": 1}, {"x": "item"}]}, "a.b": "flat"}
    assert lookup(row, "a.b") == "flat" and lookup({"a": row["a"]}, "a.b") == "deep"
    assert (lookup(row, "a.b.c"), lookup(row, "a.list.1.x"), lookup(row, "a.list.0")) == ("dotted", "item", {"x": 1})
    absent = lookup(row, "b")
    wrong = ("a.list.2.x", "a.list.x", "a.list.-1", "a.b.d.e", "", ".", "a.list." + "1" * 5000)
    assert all(lookup(row, key) is absent for key in wrong)


def test_a_missing_key_names_those_that_are_there(tmp_path: Path) -> None:
    rows = [{"id": 1, "body": "x"}, {str(n): n for n in range(20)}, {}]
    path = put(tmp_path / "a.jsonl", b"\n".join(json.dumps(row).encode() for row in rows))
    details = [one.detail for one in read(path, "records", text_key="meta.text")[1]]
    assert details[0] == "no key 'meta.text'; it has id, body"
    assert details[1].endswith("0, 1, 2, 3, 4, 5, 6, 7, …") and details[2].endswith("it has none at all")


@pytest.mark.parametrize("indent", [None, 1])
def test_a_json_array_is_called_by_its_name(tmp_path: Path, indent: int | None) -> None:
    path = put(tmp_path / "a.jsonl", json.dumps([{"text": "one"}, {"text": "two"}], indent=indent))
    good, bad = read(path, "records")
    assert not good and bad and all("a JSON array, not as JSON lines" in one.detail for one in bad)


def test_offsets_are_those_of_the_line_and_huge_texts_are_cut(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"text {n} é " + "word " * (300 if n == 1 else 1)}).encode() + b"\n" for n in range(3)]
    path = put(tmp_path / "a.jsonl.gz", gzip.compress(b"".join(lines)))
    good, _ = read(path, "records", Limits(record_characters=1000))
    starts = [0, len(lines[0]), len(lines[0] + lines[1])]
    assert [one.offset for one in good] == [starts[0], starts[1], starts[1], starts[2]]
    assert max(len(one.text) for one in good) <= 1000


def test_a_text_is_handed_out_as_it_stands(tmp_path: Path) -> None:
    text = " \r\n e\u0301 \x00\u200b\ufeff\n\n\n x \t"
    assert [one.text for one in read(put(tmp_path / "a.jsonl", json.dumps({"text": text})), "records")[0]] == [text]


def test_rows_of_a_hub_dataset_become_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    table = {"train": [{"text": "one"}, {"text": 5}, {"text": None}], "test": [{"other": "x"}]}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: table)
    events = list(documents(Item("hub", "name", "name", "revision", 0), Limits()))
    assert [(e.text, e.offset) for e in events if isinstance(e, Document)] == [("one", 1)]
    assert [e.reason for e in events if isinstance(e, Reject)] == ["missing_key", "not_text", "null"]
