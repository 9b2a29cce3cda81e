"""python -m pytest tests/tasks/test_sources.py"""

import json
import os
from pathlib import Path

import pytest

from tasks import installed_docs, sources
from tasks.errors import UsageError
from tasks.reading import documents
from tasks.sources import Source, survey
from tasks.streams import Document, Limits, Reject
from tests.tasks.made_files import GOOD, development, put


def test_every_suffix_has_its_kind_and_the_rest_is_counted(tmp_path: Path) -> None:
    kinds = {"a.TXT": "text", "a.md": "text", "a.rst.xz": "text", "a.htm": "html", "a.html.GZ": "html"}
    kinds |= {"a.jsonl": "records", "a.ndjson.zstd": "records", "a.csv.bz2": "csv", "a.tsv.gzip": "csv"}
    kinds |= {"a.parquet": "parquet", "a.arrow": "arrow", "v1.2.txt.zst": "text"}
    for name in (*kinds, "a.parquet.gz", "a.tar.gz", "a.gz", "README", "a.json"):
        put(tmp_path / "all" / name, name)
    (found,) = survey([Source(str(tmp_path / "all"), text_key="a.b", encoding="cp1252", cut="line")], tmp_path)
    assert {one.label.removeprefix("all/"): one.kind for one in found.items} == kinds
    assert {(one.text_key, one.encoding, one.cut, one.remote) for one in found.items} == {
        ("a.b", "cp1252", "line", False)
    }
    assert found.skipped == {".gz": 1, ".json": 1, ".parquet.gz": 1, ".tar.gz": 1, "(no suffix)": 1}


def test_a_format_is_that_of_all_files(tmp_path: Path) -> None:
    for name in ("part-0", "part-1.log", ".hidden"):
        put(tmp_path / "parts" / name, GOOD)
    (found,) = survey([Source(str(tmp_path / "parts"), format="jsonl")], tmp_path)
    assert [one.kind for one in found.items] == ["records", "records"] and found.skipped == {"(hidden)": 1}


def test_a_single_file_of_another_suffix_is_read_as_text_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = put(tmp_path / "notes.log", "a note")
    for _ in range(2):
        (found,) = survey([Source(str(path))], tmp_path)
        assert [(one.kind, one.label) for one in found.items] == [("text", "notes.log")]
    said = capsys.readouterr().err
    assert said.count("notes.log is read as text") == 1 and "jsonl" in said
    survey([Source(str(path), format="csv"), Source(f"file://{path}", format="csv")], tmp_path)
    assert capsys.readouterr().err == ""
    with pytest.raises(UsageError, match=r"\.parquet\.gz.*unpack"):
        survey([Source(str(put(tmp_path / "a.parquet.gz", "x")))], tmp_path)


@pytest.mark.parametrize("uri", ["missing", "missing/*.txt", "hf:.", "empty", "installed-docs:no-such-distribution"])
def test_a_source_that_is_not_there_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError) as error:
        survey([Source(uri)], tmp_path)
    assert error.value.exit_code == 2 and "\n" not in str(error.value)
    assert uri.removeprefix("installed-docs:") in str(error.value)


@pytest.mark.parametrize(
    "wrong",
    [{"weight": value} for value in ("0", "-1", "much", "1/0", "nan")]
    + [{"format": "txt"}, {"cut": "word"}, {"encoding": "utf-88"}, {"encoding": "base64"}, {"encoding": "a\0"}]
    + [{"text_key": ""}, {"budget_bytes": -1}],
    ids=str,
)
def test_a_setting_that_will_not_do_is_named(wrong: dict[str, str]) -> None:
    with pytest.raises(UsageError) as error:
        Source("x", **wrong)  # type: ignore[arg-type]
    assert f"corpus.sources.{next(iter(wrong))} is" in str(error.value) and "\n" not in str(error.value)


def test_weights_are_exact_and_kept_as_written() -> None:
    assert [Source("x", weight=weight).weight for weight in ("0.5", "2", "3/2")] == ["0.5", "2", "3/2"]


def test_the_digest_of_a_source_does_not_depend_on_where_it_lies(tmp_path: Path) -> None:
    for place in ("here/text", "there/text", "other/text"):
        put(tmp_path / place / "a.txt", "other" if "other" in place else "same")
    digests = [survey([Source(str(tmp_path / p / "text"))], tmp_path)[0].digest for p in ("here", "there", "other")]
    assert digests[0] == digests[1] != digests[2]


def test_a_save_to_disk_folder_is_read_through_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    table = datasets.Dataset.from_dict({"body": ["first text", None, "third text"], "n": [1, 2, 3]})
    datasets.DatasetDict({"train": table, "test": table.select([2])}).save_to_disk(tmp_path / "saved")
    (found,) = survey([Source(f"hf:{tmp_path / 'saved'}", text_key="body")], tmp_path)
    events = [event for item in found.items for event in documents(item, Limits())]
    assert [one.text for one in events if isinstance(one, Document)] == ["third text", "first text", "third text"]
    assert [(one.reason, one.offset) for one in events if isinstance(one, Reject)] == [("null", 1)]


def test_a_save_to_disk_folder_without_hf_says_so(tmp_path: Path) -> None:
    for name in ("dataset_info.json", "state.json", "data-00000-of-00001.arrow"):
        put(tmp_path / "saved" / name, "{}")
    with pytest.raises(UsageError, match=f"write hf:{tmp_path}/saved"):
        survey([Source(str(tmp_path / "saved"))], tmp_path)
    assert survey([Source(str(tmp_path / "saved" / "*.arrow"))], tmp_path)[0].items


@pytest.mark.parametrize("name", ["../secret.arrow", "/etc/passwd"])
def test_a_save_to_disk_folder_cannot_name_files_outside(tmp_path: Path, name: str) -> None:
    put(tmp_path / "secret.arrow", "secret")
    put(tmp_path / "saved" / "state.json", json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(UsageError, match="outside its folder"):
        survey([Source(f"hf:{tmp_path / 'saved'}")], tmp_path)


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
    assert survey([Source(str(text), "one", format="csv")], tmp_path)[0].digest != first


def test_what_somebody_else_filled_is_surveyed_without_harm(tmp_path: Path) -> None:
    for name in ("a.txt", ".git/x.txt"):
        put(tmp_path / "text" / name, name)
    os.symlink("nowhere", tmp_path / "text" / "dangling.txt")
    os.mkfifo(tmp_path / "text" / "pipe.txt")
    os.symlink("..", tmp_path / "text" / "up")
    (found,) = survey([Source(str(tmp_path / "text"))], tmp_path)
    assert [one.label for one in found.items] == ["text/a.txt", "text/dangling.txt", "text/pipe.txt"]
    assert found.skipped == {"(hidden)": 1, "(linked folder)": 1}
    refused = [event for item in found.items[1:] for event in documents(item, Limits())]
    assert [one.reason for one in refused if isinstance(one, Reject)] == ["unreadable"] * 2


def test_all_development_data_is_surveyed_in_the_same_order_twice(tmp_path: Path) -> None:
    folder = development("dirty")
    first, second = (survey([Source(str(folder))], tmp_path)[0] for _ in range(2))
    assert first == second and len(first.items) > 20
    assert len(first.items) + sum(first.skipped.values()) == sum(path.is_file() for path in folder.rglob("*"))


def test_names_that_are_no_utf8_are_written_with_backslashes(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/caf\xe9.txt", "wb") as file:
        file.write(b"text")
    (found,) = survey([Source(str(tmp_path), "n")], tmp_path / "store")
    assert [one.label for one in found.items] == ["n/caf\\xe9.txt"]
    assert sources.suffix_of("caf\udce9.TXT") == ".txt"


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


def test_a_password_in_an_address_is_refused_without_being_said() -> None:
    with pytest.raises(UsageError, match="has a password in its address") as caught:
        Source("ftp://me:secret@host/folder")
    assert "secret" not in str(caught.value)
    Source("s3://bucket/a:b@c.txt")
