"""python -m pytest tests/tasks/test_corpus.py"""

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tasks import corpus as stage
from tasks.artifacts import Manifest, Store, verify
from tasks.corpus import CorpusConfig, corpus, identity
from tasks.errors import DataError, UsageError
from tasks.merging import Books
from tasks.sources import Source
from tasks.streams import Limits

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
WORDS = ["the", "of", "and", "to", "in", "that", "was", "his", "he", "it", "with", "is", "for", "as", "had", "you"]


def sentences(seed: int, number: int) -> list[str]:
    random_ = random.Random(seed)
    return [" ".join(random_.choices(WORDS, k=20)) + "." for _ in range(number)]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.txt").write_text("\n\n".join(sentences(number, 60)))
    lines = [json.dumps({"text": one}) for one in sentences(99, 150)]
    lines += ["{broken", lines[0], '{"text": " "}', '{"text": "short"}']
    (folder / "records.jsonl").write_text("\n".join(lines))
    return folder


def config(*uris: object, **settings: object) -> CorpusConfig:
    limits = Limits(document_characters=400)
    return replace(CorpusConfig(tuple(Source(str(uri)) for uri in uris), limits=limits), **settings)  # type: ignore[arg-type]


def rows(manifest: Manifest) -> list[dict]:
    return pq.read_table(manifest.path("documents-00000.parquet")).to_pylist()


def test_the_books_balance_and_nothing_passes_silently(text: Path, tmp_path: Path) -> None:
    manifest, reused = corpus(config(text), Store(tmp_path / "store"))
    counts = manifest.counts
    refused = {name: number for name, number in counts.items() if name.startswith("rejected_")}
    assert not reused and verify(manifest) == []
    assert refused == {
        "rejected_broken_json": 1,
        "rejected_duplicate": 1,
        "rejected_empty": 1,
        "rejected_too_short": 1,
    }
    assert counts["documents_in"] == counts["documents_kept"] + sum(refused.values())
    documents = rows(manifest)
    assert counts["documents_kept"] == len(documents) == len({one["id"] for one in documents})
    assert counts["bytes_kept"] == sum(len(one["text"].encode()) for one in documents)
    assert all(counts[f"documents_{split}"] > 0 for split in stage.SPLITS)
    order = [(one["source"], one["offset"]) for one in documents]
    assert order == sorted(order)
    (line,) = manifest.path("quarantine.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "source": "text/records.jsonl",
        "line": 151,
        "offset": (text / "records.jsonl").read_bytes().index(b"{broken"),
        "reason": "broken_json",
        "detail": "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        "bytes": 8,
    }


def test_books_that_do_not_balance_are_an_error() -> None:
    books = Books()
    books.take(10)
    with pytest.raises(DataError, match="do not balance"):
        books.page("s", [1, 9])


def test_the_same_bytes_for_any_number_of_workers(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "SMALL_BYTES", 0)
    monkeypatch.setattr(stage, "UNIT_FILES", 1)
    budget = (Source(str(text), budget_bytes=30_000),)
    made = [corpus(config(workers=n, sources=budget), Store(tmp_path / f"store{n}"))[0] for n in (1, 3)]
    assert made[0].digest == made[1].digest and made[0].files == made[1].files
    assert 30_000 <= made[0].counts["bytes_kept"] < 30_400 and made[0].counts["rejected_over_budget"] > 0


def test_a_corpus_is_found_again_and_one_setting_makes_another(text: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    first, _ = corpus(config(text), store)
    again, reused = corpus(config(text, workers=2), store)
    assert reused and again.digest == first.digest
    assert first.identity == identity(config(text), tmp_path / "store")
    assert identity(config(text, min_characters=65), store.root).key != first.key
    assert str(tmp_path) not in json.dumps([dict(first.config), dict(first.facts), dict(first.identity.inputs)])
    (text / "0.txt").write_text("changed")
    assert identity(config(text), store.root).key != first.key


def test_added_data_moves_no_document_to_another_split(text: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    before = {one["id"]: one["split"] for one in rows(corpus(config(text), store)[0])}
    (text / "9.txt").write_text("\n\n".join(sentences(9, 60)))
    after = {one["id"]: one["split"] for one in rows(corpus(config(text), store)[0])}
    assert len(after) > len(before) and all(after[name] == split for name, split in before.items())


def test_of_equal_documents_the_first_source_keeps_its_own(text: Path, tmp_path: Path) -> None:
    twice = config(text / "0.txt", text)
    manifest, _ = corpus(twice, Store(tmp_path / "store"))
    books = manifest.facts["books"]
    assert [page["source"] for page in books] == ["0.txt", "text"]
    assert books[0]["rejected"] == {} and books[1]["rejected"]["duplicate"]["documents"] > 10


def test_a_budget_is_filled_although_the_first_part_of_a_source_is_known(tmp_path: Path) -> None:
    ours = [json.dumps({"text": one}) for one in sentences(7, 1500)]
    (tmp_path / "a.jsonl").write_text("\n".join(ours[:300]))
    (tmp_path / "b.jsonl").write_text("\n".join(ours))
    budget = 30_000
    limited = Source(str(tmp_path / "b.jsonl"), budget_bytes=budget)
    manifest, _ = corpus(
        replace(config(tmp_path / "a.jsonl"), sources=(Source(str(tmp_path / "a.jsonl")), limited)), Store(tmp_path)
    )
    page = manifest.facts["books"][1]
    assert budget <= page["bytes_kept"] < budget + 4096 and page["rejected"]["duplicate"]["documents"] == 300


def test_limits_without_sense_are_refused() -> None:
    with pytest.raises(UsageError, match="document_characters is 0"):
        Limits(document_characters=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_characters": 10_000}, "Nothing is left of .* too_short"),
        ({"test": "1/1000000"}, "falls into the test split"),
        ({"validation": "half"}, "corpus.validation is 'half'"),
        ({"validation": "0.6", "test": "0.4"}, "leaves nothing to train on"),
        ({"sources": ()}, "sources is empty"),
    ],
)
def test_what_cannot_become_a_corpus_is_one_sentence(text: Path, tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        corpus(config(text, **settings), Store(tmp_path / "store"))
    assert error.value.exit_code == 2 and "\n" not in str(error.value)


def test_datasets_opens_the_corpus(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    manifest, _ = corpus(config(text), Store(tmp_path / "store"))
    files = [str(manifest.path(name)) for name in manifest.files if name.endswith(".parquet")]
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == manifest.counts["documents_kept"] and loaded[0]["text"] == rows(manifest)[0]["text"]


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tasks import corpus as stage
from tasks.artifacts import Store
from tasks.sources import Source
from tasks.streams import Limits
stage.UNIT_FILES = 1
take, left = stage.Merge.take, [4]
def die(self, *arguments):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    take(self, *arguments)
stage.Merge.take = die
config = stage.CorpusConfig((Source(sys.argv[2]),), limits=Limits(document_characters=400))
stage.corpus(config, Store(Path(sys.argv[3])))
"""


def test_a_killed_run_goes_on_from_its_finished_units(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "store")
    command = [sys.executable, "-c", KILLED, str(ROOT), str(text), str(store.root)]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    monkeypatch.setattr(stage, "UNIT_FILES", 1)
    read: list[str] = []
    finish = stage.finish_unit
    monkeypatch.setattr(stage, "finish_unit", lambda *unit: (read.append(unit[1]), finish(*unit))[1])
    resumed, _ = corpus(config(text), store)
    assert read == ["unit-000004", "unit-000005", "unit-000006"]
    undisturbed, _ = corpus(config(text), Store(tmp_path / "other"))
    assert resumed.digest == undisturbed.digest and os.listdir(store.root / "corpus") == [resumed.key]


def test_installed_documentation_fills_a_budget_with_prose(tmp_path: Path) -> None:
    source = Source("installed-docs:rich,numpy", budget_bytes=300_000)
    settings = config(sources=(source,), limits=Limits())
    manifest, _ = corpus(settings, Store(tmp_path / "store"))
    assert 300_000 <= manifest.counts["bytes_kept"] < 310_000
    texts = [one["text"] for one in rows(manifest)]
    assert not any(">>>" in text or "Parameters\n---" in text for text in texts)
    assert all(manifest.counts[f"documents_{split}"] > 0 for split in stage.SPLITS)


def test_damaged_files_are_quarantined_and_the_rest_is_kept(tmp_path: Path) -> None:
    folder = DATA / "dirty" / "made"
    if not folder.exists():
        pytest.skip("needs the development data")
    manifest, _ = corpus(config(folder, limits=Limits()), Store(tmp_path / "store"))
    lines = [json.loads(line) for line in manifest.path("quarantine.jsonl").read_text().splitlines()]
    reasons = {(line["source"].split("/")[-1], line["reason"]) for line in lines}
    assert {
        ("truncated.txt.gz", "truncated_gzip"),
        ("not_gzip.txt.gz", "not_gzip"),
        ("utf16.txt", "utf16"),
        ("empty.txt", "empty_file"),
        ("only_whitespace.txt", "empty_file"),
        ("broken.jsonl", "broken_json"),
    } <= reasons
    assert not [name for name, _ in reasons if name.startswith(("good", "ok", "multi", "nul", "one_long"))]


def test_novels_become_documents_with_healthy_splits(tmp_path: Path) -> None:
    novel = DATA / "corpus" / "novels" / "Lee_Penelope_1903.txt"
    if not novel.exists():
        pytest.skip("needs the development data")
    manifest, _ = corpus(config(novel, limits=Limits()), Store(tmp_path / "store"))
    texts = [one["text"] for one in rows(manifest)]
    assert not texts[0].startswith("\ufeff") and max(map(len, texts)) <= 4096
    single = sum(text.replace("\n\n", "").count("\n") for text in texts)
    assert single < 0.1 * novel.read_bytes().count(b"\n")  # unwrapped
