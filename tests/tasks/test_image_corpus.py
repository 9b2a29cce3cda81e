"""python -m pytest tests/tasks/test_image_corpus.py"""

import gzip
import json
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tasks import image_card, image_corpus, image_merging, image_units
from tasks.artifacts import Manifest, Store, verify
from tasks.cleaning import split_of
from tasks.errors import DataError, UsageError
from tasks.image_corpus import ImageCorpusConfig, corpus, identity
from tasks.image_decoding import ImageLimits
from tasks.image_sources import ImageSource, kind_of, label_names, survey
from tasks.parallel import processes, threads
from tests.tasks.made_images import encoded, idx, idx_labels, noise, parquet, tar

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data" / "images"
PIXELS = noise(120)


def config(*uris: object, **settings: Any) -> ImageCorpusConfig:
    settings = {"validation": "0.1", "test": "0.1"} | settings
    return replace(ImageCorpusConfig(tuple(ImageSource(str(uri)) for uri in uris)), **settings)


def rows(manifest: Manifest) -> list[dict[str, Any]]:
    names = sorted(name for name in manifest.files if name.endswith(".parquet"))
    return [row for name in names for row in pq.read_table(manifest.path(name)).to_pylist()]


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder of all kinds of files: 120 images, 20 of them twice, some damaged."""
    folder = tmp_path / "mixed"
    put(folder / "a-images-idx3-ubyte", idx(PIXELS[:50]))
    put(folder / "a-labels-idx1-ubyte.gz", gzip.compress(idx_labels([number % 3 for number in range(50)])))
    for number in range(50, 80):
        put(folder / f"dog/{number}.png", encoded(PIXELS[number]))
    put(folder / "cats.tar", tar({f"cat/{number}.png": encoded(PIXELS[number]) for number in range(60, 100)}))
    put(folder / "rest.parquet", parquet([encoded(one) for one in PIXELS[100:]], ["dog"] * 20))
    put(folder / "dog/bad.png", encoded(PIXELS[0])[:-20])
    put(folder / "dog/no.jpg", b"GIF89a")
    put(folder / "notes.txt", b"text")
    put(folder / "b-labels-idx1-ubyte", idx_labels([1]))
    return folder


def test_the_books_balance_and_nothing_passes_silently(
    mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, reused = corpus(config(mixed), Store(tmp_path / "store"))
    assert not reused and not verify(manifest)
    counts, (page,) = manifest.counts, manifest.facts["books"]
    assert (counts["documents_in"], counts["documents_kept"], counts["rejected_duplicate"]) == (142, 120, 20)
    for unit in ("documents", "bytes"):
        lost = sum(numbers[unit] for numbers in page["rejected"].values())
        assert page[f"{unit}_in"] == page[f"{unit}_kept"] + lost
    assert counts["bytes_kept"] == 120 * 64 and counts["copies"] == 0
    assert sum(counts[f"documents_{split}"] for split in ("train", "validation", "test")) == 120
    faults = [json.loads(line) for line in manifest.path("quarantine.jsonl").read_bytes().splitlines()]
    assert {(one["source"], one["reason"]) for one in faults} == {
        ("mixed/dog/bad.png", "truncated_image"),
        ("mixed/dog/no.jpg", "not_an_image"),
    }
    said = capsys.readouterr().err
    for line in (
        "images of 8×8, grey, as the first one (mixed/a-images-idx3-ubyte#0)",
        "labels: from the column label_key (20), from the file of labels beside the images (50), from the name of",
        "dropped 20 duplicate",
        "quarantined 1 not_an_image, 1 truncated_image",
        "left unread: 1 (labels without images), 1 .txt",
    ):
        assert line in said, said
    assert corpus(config(mixed), Store(tmp_path / "store"))[1]
    assert "quarantined 1 not_an_image" in capsys.readouterr().err


def test_a_document_is_an_image_with_its_label_and_place(mixed: Path, tmp_path: Path) -> None:
    manifest, _ = corpus(config(mixed), Store(tmp_path / "store"))
    found = {row["source"]: row for row in rows(manifest)}
    for place, number, label, offset in (
        ("mixed/a-images-idx3-ubyte#7", 7, "1", 16 + 7 * 64),
        ("mixed/dog/55.png", 55, "dog", 0),
        ("mixed/rest.parquet#3", 103, "dog", 3),
    ):
        row = found[place]
        assert row["pixels"] == PIXELS[number].tobytes() and (row["label"], row["offset"]) == (label, offset)
        assert len(row["id"]) == 32 and row["split"] == split_of(row["id"], Fraction("0.1"), Fraction("0.1"))
    assert len({row["id"] for row in found.values()}) == 120 == len({row["pixels"] for row in found.values()})
    assert found["mixed/cats.tar#cat/60.png"]["label"] == "cat"  # of equal images the first stays, files come first
    assert manifest.facts["modality"] == "images" and manifest.facts["labels"] == ["0", "1", "2", "cat", "dog"]
    assert manifest.facts["image"] == {"height": 8, "width": 8, "channels": 1}


def bytes_of(manifest: Manifest) -> dict[str, bytes]:
    return {name: manifest.path(name).read_bytes() for name in manifest.files}


@pytest.mark.parametrize("pool", [threads, pytest.param(processes, marks=pytest.mark.slow)])
def test_the_bytes_follow_from_the_files_alone(
    pool: Any, mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = corpus(config(mixed), Store(tmp_path / "one"))
    elsewhere = tmp_path / "elsewhere" / "mixed"
    shutil.copytree(mixed, elsewhere)
    monkeypatch.setattr(image_corpus, "SMALL_BYTES", 0)
    with pool(2) as workers:
        second, _ = corpus(config(elsewhere, workers=2), Store(tmp_path / "two"), workers)
    assert first.digest == second.digest and bytes_of(first) == bytes_of(second)
    (elsewhere / "dog/55.png").write_bytes(encoded(PIXELS[0]))
    assert identity(config(elsewhere), tmp_path / "two").key != second.identity.key
    assert identity(config(mixed, validation="0.2"), tmp_path / "two").key != second.identity.key


def test_units_parts_and_row_groups_change_no_document(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = corpus(config(mixed), Store(tmp_path / "one"))
    monkeypatch.setattr(image_units, "UNIT_FILES", 7)
    monkeypatch.setattr(image_units, "SLICE_BYTES", 64 * 11)
    monkeypatch.setattr(image_merging, "PART_BYTES", (64 * 25, 64 * 25))
    monkeypatch.setattr(image_merging, "GROUP_BYTES", 64 * 10)
    cut, _ = corpus(config(mixed), Store(tmp_path / "two"))
    assert rows(whole) == rows(cut) and cut.counts == whole.counts
    files = [pq.ParquetFile(cut.path(name)).metadata for name in cut.files if name.endswith("parquet")]
    assert len(files) == 5 and {file.row_group(0).num_rows for file in files} == {10}
    assert cut.path("card.json").read_bytes() == whole.path("card.json").read_bytes()


def test_equal_images_lie_in_one_split_and_more_data_moves_none(tmp_path: Path) -> None:
    few = put(tmp_path / "few-idx3-ubyte", idx(PIXELS[:90]))
    more = put(tmp_path / "more-idx3-ubyte", idx(PIXELS))
    one = {row["pixels"]: row["split"] for row in rows(corpus(config(few), Store(tmp_path / "store"))[0])}
    both = {row["pixels"]: row["split"] for row in rows(corpus(config(more, few), Store(tmp_path / "store"))[0])}
    assert len(both) == 120 and one.items() <= both.items()


def test_images_of_other_sizes_and_colours_are_fitted_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    for number in range(40):
        put(folder / f"{number:02d}.png", encoded(noise(1, 12, 10 + number % 3, 3, number)[0]))
    put(folder / "grey.png", encoded(noise(1, 5, 5)[0]))
    manifest, _ = corpus(config(folder), Store(tmp_path / "store"))
    changed = manifest.facts["books"][0]["changed"]
    assert manifest.facts["image"] == {"height": 12, "width": 10, "channels": 3}
    assert changed == {"cropped": 27, "recoloured": 1, "resized": 27} and manifest.counts["documents_kept"] == 41
    assert {row["label"] for row in rows(manifest)} == {None} and manifest.facts["labels"] == []
    said = "photos: changed to fit: 27 cropped, 27 resized, 1 recoloured; set corpus.size and corpus.colour"
    assert said in capsys.readouterr().err
    square, _ = corpus(config(folder, size=6, colour="grey"), Store(tmp_path / "store"))
    assert square.facts["image"] == {"height": 6, "width": 6, "channels": 1}
    assert {len(row["pixels"]) for row in rows(square)} == {36}
    wide, _ = corpus(config(folder, height=4, width=9), Store(tmp_path / "store"))
    assert wide.facts["image"] == {"height": 4, "width": 9, "channels": 3}


def test_a_source_that_is_mostly_damaged_stops_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for number in range(10):
        put(folder / f"{number}.png", encoded(PIXELS[number])[: 30 if number > 3 else None])
    with pytest.raises(DataError, match=r"6 of 10 images of source photos.*truncated_image: photos/4\.png"):
        corpus(config(folder), Store(tmp_path / "store"))
    manifest, _ = corpus(config(folder, max_bad_fraction="1", validation="0", test="0"), Store(tmp_path / "store"))
    assert manifest.counts["documents_kept"] == 4


def test_nothing_at_all_is_an_error_that_says_so(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    put(tmp_path / "texts/a.txt", b"text")
    with pytest.raises(UsageError, match=r"holds no PNG.*1 × \.txt"):
        corpus(config(tmp_path / "texts"), store)
    with pytest.raises(UsageError, match="does not exist"):
        corpus(config(tmp_path / "nowhere"), store)
    put(tmp_path / "a.tar", tar({"a.txt": b"text"}))
    with pytest.raises(UsageError, match="Nothing is left"):
        corpus(config(tmp_path / "a.tar"), store)
    put(tmp_path / "bad/a.png", b"\x89PNG")
    with pytest.raises(DataError, match="1 of 1 images"):
        corpus(config(tmp_path / "bad"), store)
    for settings in ({"colour": "blue"}, {"size": -1}, {"height": 5}, {"size": 4, "height": 4, "width": 4}):
        with pytest.raises(UsageError):
            config("a", **settings)
    with pytest.raises(UsageError):
        ImageLimits(pixels=0)
    with pytest.raises(UsageError, match="labels"):
        ImageSource("a", labels="guess")


def test_labels_of_an_idx_file_that_do_not_fit_stop_the_run(tmp_path: Path) -> None:
    path = put(tmp_path / "a-images-idx3-ubyte", idx(PIXELS))
    put(tmp_path / "a-labels-idx1-ubyte", idx_labels([1] * 7))
    with pytest.raises(DataError, match=r"7 labels, but .* has 120 images"):
        corpus(config(path), Store(tmp_path / "store"))
    source = ImageSource(str(path), labels="none")
    manifest, _ = corpus(ImageCorpusConfig((source,), validation="0.1", test="0.1"), Store(tmp_path / "store"))
    assert {row["label"] for row in rows(manifest)} == {None}


def test_where_labels_come_from(tmp_path: Path) -> None:
    put(tmp_path / "pets/cat/a.png", encoded(PIXELS[0]))
    put(tmp_path / "pets/b.png", encoded(PIXELS[1]))

    def labels(uri: object, how: str) -> list[str | None]:
        (one,) = survey([ImageSource(str(uri), labels=how)], tmp_path / "store")
        return [file.folder for file in one.files]

    assert labels(tmp_path / "pets", "auto") == [None, "cat"]
    assert labels(tmp_path / "pets", "folder") == ["pets", "cat"]
    assert labels(tmp_path / "pets", "none") == [None, None]
    assert labels(tmp_path / "*/cat", "auto") == ["cat"]
    assert labels(tmp_path / "pets/b.png", "auto") == [None]


def test_names_tell_kinds() -> None:
    for name, kind in {
        "t10k-images-idx3-ubyte.gz": "idx",
        "train-images.idx3-ubyte": "idx",
        "a.idx": "idx",
        "t10k-labels-idx1-ubyte": "labels",
        "a/B.JPEG": "image",
        "x.tar.gz": "tar",
        "x.TGZ": "tar",
        "data-00000-of-00001.parquet": "parquet",
        "readme.md": "",
        "png": "",
        "x.png.gz": "",
    }.items():
        assert kind_of(name) == kind, name
    assert "d/t10k-labels-idx1-ubyte.gz" in label_names("d/t10k-images-idx3-ubyte.gz")
    assert label_names("digits-idx3-ubyte") == []


def test_a_file_behind_a_url_is_the_same_corpus_of_documents(tmp_path: Path) -> None:
    import fsspec

    with fsspec.open("memory://pictures/a-images-idx3-ubyte", "wb") as file:
        file.write(idx(PIXELS))
    with fsspec.open("memory://pictures/a-labels-idx1-ubyte", "wb") as file:
        file.write(idx_labels([1] * 120))
    put(tmp_path / "pictures/a-images-idx3-ubyte", idx(PIXELS))
    put(tmp_path / "pictures/a-labels-idx1-ubyte", idx_labels([1] * 120))
    with threads(1) as pool:
        away, _ = corpus(config("memory://pictures"), Store(tmp_path / "store"), pool)
    here, _ = corpus(config(tmp_path / "pictures"), Store(tmp_path / "store"))
    assert rows(away) == rows(here)


def test_the_card_shows_images_and_lets_no_name_through(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    put(tmp_path / "pets.parquet", parquet([encoded(one) for one in PIXELS], [evil] * 60 + ["cat"] * 60))
    manifest, _ = corpus(config(tmp_path / "pets.parquet"), Store(tmp_path / "store"))
    card, page = json.loads(manifest.path("card.json").read_bytes()), manifest.path("card.html").read_text()
    assert sum(sum(one[split] for split in ("train", "validation", "test")) for one in card["labels"]) == 120
    assert page.count("data:image/png;base64,") == 2 and "img-src data:" in page
    assert "<script" not in page and "<script" not in image_card.markdown(card)
    assert "**120 images** (100 % of 120)" in image_card.markdown(card).replace("\u00a0", " ")


CHILD = """
import os, sys
from pathlib import Path
from tasks import image_units
from tasks.artifacts import Store
from tasks.image_corpus import *
made = 0
real = image_units.finish_unit
def finish(*args):
    global made
    found = real(*args)
    made += 1
    if made == int(sys.argv[3]):
        os.kill(os.getpid(), 9)
    return found
image_units.finish_unit = finish
image_units.UNIT_FILES = 7
corpus(ImageCorpusConfig((ImageSource(sys.argv[1]),), validation="0.1", test="0.1"), Store(Path(sys.argv[2])))
"""


def test_a_killed_run_goes_on_where_it_stopped(mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", CHILD, str(mixed), str(tmp_path / "store"), "5"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == -signal.SIGKILL, run.stderr
    made = Counter[str]()
    real = image_units.finish_unit
    monkeypatch.setattr(image_units, "UNIT_FILES", 7)
    monkeypatch.setattr(image_units, "finish_unit", lambda *args: made.update([args[1]]) or real(*args))
    after, _ = corpus(config(mixed), Store(tmp_path / "store"))
    undisturbed, _ = corpus(config(mixed), Store(tmp_path / "other"))
    assert after.digest == undisturbed.digest and bytes_of(after) == bytes_of(undisturbed)
    assert sorted(made.values()) == [1] * 5 + [2] * (len(made) - 5)


@pytest.mark.skipif(not DATA.is_dir(), reason="needs shared/data/images")
def test_mnist_as_it_is_distributed(tmp_path: Path) -> None:
    manifest, _ = corpus(ImageCorpusConfig((ImageSource(str(DATA / "mnist")),)), Store(tmp_path / "store"))
    assert manifest.counts["documents_kept"] == 10_000 and manifest.facts["labels"] == list("0123456789")
    table = pq.read_table(manifest.path("documents-00000.parquet"))
    assert Counter(table["label"].to_pylist())["1"] == 1135
    images = np.frombuffer(table["pixels"].combine_chunks().buffers()[2], np.uint8).reshape(-1, 28, 28)
    with gzip.open(DATA / "mnist/t10k-images-idx3-ubyte.gz") as file:
        assert images.tobytes() == file.read()[16:]


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="needs shared/data/images")
def test_cifar_as_tars_of_jpegs(tmp_path: Path) -> None:
    manifest, _ = corpus(ImageCorpusConfig((ImageSource(str(DATA / "cifar10_jpg")),)), Store(tmp_path / "store"))
    assert manifest.counts["documents_kept"] == 5000 and len(manifest.facts["labels"]) == 10
    assert manifest.facts["image"] == {"height": 32, "width": 32, "channels": 3}
    assert Counter(row["label"] for row in rows(manifest))["frog"] == 500
