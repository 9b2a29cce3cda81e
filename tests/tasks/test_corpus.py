"""python -m pytest tests/tasks/test_corpus.py"""

import json
from pathlib import Path

import pytest

from tasks import corpus as stage
from tasks.artifacts import Store, verify
from tasks.cleaning import Cleaning
from tasks.corpus import corpus, identity
from tasks.errors import DataError, UsageError
from tasks.minhash import NearDuplicates
from tasks.sources import Source
from tasks.streams import Limits
from tests.tasks.made_texts import config, rows, sentences
from tests.tasks.made_texts import text as text

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"

NEAR = ("near_duplicate", "near_heldout")


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


def test_a_corpus_is_found_again_and_one_setting_makes_another(text: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    first, _ = corpus(config(text), store)
    again, reused = corpus(config(text, workers=2), store)
    assert reused and again.digest == first.digest
    assert first.identity == identity(config(text), tmp_path / "store")
    assert identity(config(text, cleaning=Cleaning(min_characters=65)), store.root).key != first.key
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


def test_what_a_budgeted_source_gives_depends_on_itself_alone(text: Path, tmp_path: Path) -> None:
    limited = Source(str(text), "limited", budget_bytes=30_000)
    alone, _ = corpus(config(sources=(limited,)), Store(tmp_path / "store"))
    before = Source(str(text / "0.txt"))
    after, _ = corpus(config(sources=(before, limited)), Store(tmp_path / "store"))
    pages = alone.facts["books"][0], after.facts["books"][1]
    assert pages[0]["documents_in"] == pages[1]["documents_in"]
    again = [page["rejected"].get("duplicate", {"documents": 0})["documents"] for page in pages]
    assert again[1] - again[0] == after.facts["books"][0]["documents_kept"] > 10


def test_limits_without_sense_are_refused() -> None:
    with pytest.raises(UsageError, match="document_characters is 0"):
        Limits(document_characters=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cleaning": Cleaning(min_characters=10_000)}, "Nothing is left of .* too_short"),
        ({"max_bad_fraction": "2"}, "corpus.max_bad_fraction is 2"),
        ({"memory_bytes": 1}, "corpus.memory_bytes is 1; use 16777216 or more"),
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


def test_weights_are_copies_and_drops(text: Path, tmp_path: Path) -> None:
    weighted = (Source(str(text / "0.txt"), weight="5/2"), Source(str(text / "1.txt"), weight="0.5"))
    manifest, _ = corpus(config(sources=weighted), Store(tmp_path / "store"))
    plain, _ = corpus(config(text / "0.txt", text / "1.txt"), Store(tmp_path / "store"))
    taken = {name: [one for one in rows(manifest) if one["source"] == name] for name in ("0.txt", "1.txt")}
    copies = [one["copies"] for one in taken["0.txt"] if one["split"] == "train"]
    assert set(copies) == {2, 3} and abs(sum(copies) / len(copies) - 2.5) < 0.3
    assert {one["copies"] for name in taken for one in taken[name] if one["split"] != "train"} == {1}
    assert {one["copies"] for one in taken["1.txt"]} == {1}
    page = manifest.facts["books"][1]
    assert 0.3 < page["rejected"]["downsampled"]["documents"] / page["documents_in"] < 0.7
    assert manifest.counts["copies"] == sum(copies) - len(copies)
    splits = {one["id"]: one["split"] for one in rows(plain)}
    assert all(splits[one["id"]] == one["split"] for one in rows(manifest))


def test_documents_of_evaluation_files_leave_the_train_split(text: Path, tmp_path: Path) -> None:
    (tmp_path / "evaluation.jsonl").write_text(
        "\n".join(json.dumps({"question": {"text": one[5:]}}) for one in sentences(1, 30))
    )
    files = (Source(str(tmp_path / "evaluation.jsonl"), text_key="question.text"),)
    before, _ = corpus(config(text), Store(tmp_path / "store"))
    after, _ = corpus(config(text, evaluation_files=files), Store(tmp_path / "store"))
    gone = {one["id"] for one in rows(before)} - {one["id"] for one in rows(after)}
    assert len(gone) == after.counts["rejected_evaluation_leak"] > 3
    assert {one["split"] for one in rows(before) if one["id"] in gone} == {"train"}
    assert all(one["source"] == "text/1.txt" for one in rows(before) if one["id"] in gone)
    assert before.key != after.key and json.loads(after.path("card.json").read_bytes())["leakage"]["probes"] > 100


def test_a_source_that_is_mostly_damaged_stops_the_run(text: Path, tmp_path: Path) -> None:
    good = ['{"text": "' + "a b " * 40 + '"}']
    (tmp_path / "bad.jsonl").write_text("\n".join(['{"body": "x"}'] * 20 + ["{"] * 5 + good))
    told = (
        r"25 of 26 documents of source bad.jsonl, \d\d % of its bytes, are damaged: 20 missing_key, 5 broken_json, "
        r"such as missing_key: no key 'text'; it has body; see .*text_key"
    )
    with pytest.raises(DataError, match=told) as error:
        corpus(config(text, tmp_path / "bad.jsonl"), Store(tmp_path / "store"))
    assert error.value.exit_code == 65 and "\n" not in str(error.value)
    corpus(config(text, tmp_path / "bad.jsonl", max_bad_fraction="1"), Store(tmp_path / "store"))


def test_whole_files_that_are_lost_count_by_their_bytes(text: Path, tmp_path: Path) -> None:
    (text / "lost.parquet").write_bytes(b"PAR1" + b"x" * 400_000)
    with pytest.raises(DataError, match=r"2 of .* documents of source text, 9\d % of its bytes, are damaged"):
        corpus(config(text), Store(tmp_path / "store"))


def test_a_budget_within_one_file_leaves_its_own_duplicates_out(tmp_path: Path) -> None:
    lines = ["the very same line again and again, so often that it fills a budget by itself"] * 3000
    (tmp_path / "one.txt").write_text("\n".join(lines + sentences(3, 2000)))
    manifest, _ = corpus(
        config(sources=(Source(str(tmp_path / "one.txt"), cut="line", budget_bytes=50_000),)), Store(tmp_path / "store")
    )
    assert 50_000 <= manifest.counts["bytes_kept"] < 51_000


@pytest.mark.parametrize("wrong", ["question", "empty"])
def test_an_evaluation_file_without_text_protects_nothing_and_is_refused(
    text: Path, tmp_path: Path, wrong: str
) -> None:
    path = tmp_path / "evaluation.jsonl"
    path.write_text("" if wrong == "empty" else json.dumps({"question": sentences(1, 1)[0]}))
    with pytest.raises(UsageError, match=r"corpus.evaluation_files: evaluation.jsonl has no text \(1 .*text_key"):
        corpus(config(text, evaluation_files=(Source(str(path)),)), Store(tmp_path / "store"))


def test_a_light_source_does_not_eat_a_heavy_one(tmp_path: Path) -> None:
    texts = [" ".join(sentences(number, 8)) for number in range(300)]
    (tmp_path / "heavy.jsonl").write_text("\n".join(json.dumps({"text": one}) for one in texts))
    (tmp_path / "light.jsonl").write_text("\n".join(json.dumps({"text": one + " End."}) for one in texts))
    light = Source(str(tmp_path / "light.jsonl"), weight="0.01")
    manifest, _ = corpus(config(sources=(light, Source(str(tmp_path / "heavy.jsonl")))), Store(tmp_path / "store"))
    lost = manifest.facts["books"][1]["rejected"]
    assert sum(lost.get(name, {"documents": 0})["documents"] for name in NEAR) < 60  # those of held-out ones


def test_near_copies_are_dropped_and_reported(text: Path, tmp_path: Path) -> None:
    parts = [" ".join(some) for some in zip(*[iter(sentences(77, 600))] * 6)]
    (text / "near.jsonl").write_text(
        "\n".join(json.dumps({"text": one}) for part in parts for one in (part, part.replace("his", "her", 1)))
    )
    manifest, _ = corpus(config(text), Store(tmp_path / "store"))
    off, _ = corpus(config(text, near_duplicates=NearDuplicates(enabled=False)), Store(tmp_path / "store"))
    found = json.loads(manifest.path("card.json").read_bytes())["duplicates"]
    assert off.counts["documents_kept"] - manifest.counts["documents_kept"] == found["near"] + found["near_heldout"]
    assert 95 <= found["clusters"] <= 100 and found["near_heldout"] > 0
    assert found["largest"][0]["kept"]["source"] == "text/near.jsonl" and found["cluster_sizes"][0][0] == 2
    assert "near.jsonl" in manifest.path("card.html").read_text()


def test_installed_documentation_fills_a_budget_with_prose(tmp_path: Path) -> None:
    source = Source("installed-docs:rich,numpy", budget_bytes=300_000)
    settings = config(sources=(source,), limits=Limits())
    manifest, _ = corpus(settings, Store(tmp_path / "store"))
    counts = manifest.counts
    near = sum(page["rejected"].get(name, {"bytes": 0})["bytes"] for page in manifest.facts["books"] for name in NEAR)
    assert 300_000 <= counts["bytes_kept"] + near < 310_000
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
        ("truncated.txt.gz", "truncated_archive"),
        ("truncated.txt.zst", "truncated_archive"),
        ("not_gzip.txt.gz", "not_an_archive"),
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


def test_the_extractor_of_pages_is_part_of_the_key_where_there_are_pages(text: Path, tmp_path: Path) -> None:
    before = identity(config(text), tmp_path)
    (text / "page.html").write_text("<html><body><p>" + " ".join(sentences(8, 9)) + "</p></body></html>")
    after = identity(config(text), tmp_path)
    assert "trafilatura" not in before.config["engines"] and after.config["engines"]["trafilatura"]
