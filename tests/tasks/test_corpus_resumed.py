"""What was read is not read again, and kills change no byte. python -m pytest tests/tasks/test_corpus_resumed.py"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tasks import corpus as stage
from tasks import merging, packs, units
from tasks.artifacts import Store
from tasks.cleaning import Cleaning
from tasks.corpus import corpus
from tasks.errors import DataError
from tasks.minhash import NearDuplicates
from tasks.sources import Source
from tasks.streams import Limits
from tests.tasks.made_texts import config, sentences
from tests.tasks.made_texts import text as text

ROOT = Path(__file__).parents[2]


def test_the_same_bytes_for_any_number_of_workers_and_any_size_of_units(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "SMALL_BYTES", 0)
    monkeypatch.setattr(merging, "PART_BYTES", (12_000, 12_000))
    monkeypatch.setattr(merging, "GROUP_BYTES", 5_000)
    budget = (Source(str(text), budget_bytes=30_000),)
    made = []
    for workers, files in ((1, 1), (3, 1), (2, 256), (2, 3)):
        monkeypatch.setattr(units, "UNIT_FILES", files)
        made.append(corpus(config(workers=workers, sources=budget), Store(tmp_path / f"{workers}-{files}"))[0])
    assert len({one.digest for one in made}) == 1 and len([n for n in made[0].files if n.endswith(".parquet")]) == 3
    assert 30_000 <= made[0].counts["bytes_kept"] < 30_400 and made[0].counts["rejected_over_budget"] > 0


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tasks import corpus as stage, merging, selection, units
from tasks.artifacts import Store
from tasks.sources import Source
from tasks.streams import Limits
units.UNIT_FILES = 1
merging.PART_BYTES = (5_000, 5_000)
where, left = {"take": selection.Selection, "_read_file": stage.packs, "finish_unit": merging}[sys.argv[4]], [4]
whole = getattr(where, sys.argv[4])
def die(*arguments):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*arguments)
setattr(where, sys.argv[4], die)
config = stage.CorpusConfig((Source(sys.argv[2]),), limits=Limits(document_characters=400))
stage.corpus(config, Store(Path(sys.argv[3])))
"""


@pytest.mark.parametrize("where", ["take", "_read_file", "finish_unit"])
def test_a_killed_run_goes_on_from_its_finished_units(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    store = Store(tmp_path / "store")
    command = [sys.executable, "-c", KILLED, str(ROOT), str(text), str(store.root), where]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    monkeypatch.setattr(units, "UNIT_FILES", 1)
    monkeypatch.setattr(merging, "PART_BYTES", (5_000, 5_000))
    read = spy(monkeypatch)
    resumed, _ = corpus(config(text), store)
    assert read == {"take": ["4.txt", "5.txt", "records.jsonl"], "finish_unit": []}.get(
        where, ["3.txt", "4.txt", "5.txt", "records.jsonl"]
    )
    undisturbed, _ = corpus(config(text), Store(tmp_path / "other"))
    assert resumed.digest == undisturbed.digest
    assert [name for name in os.listdir(store.root / "corpus") if name != ".packs"] == [resumed.key]


def test_parts_that_were_moved_before_a_kill_are_not_written_again(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "PART_BYTES", (5_000, 5_000))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stage._Making, "_account", killed)
        corpus(config(text), Store(tmp_path / "store"))
    undisturbed, _ = corpus(config(text), Store(tmp_path / "other"))
    monkeypatch.setattr(merging, "finish_unit", killed)
    resumed, _ = corpus(config(text), Store(tmp_path / "store"))
    assert resumed.digest == undisturbed.digest and len(resumed.files) > 3


def spy(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read from now on."""
    read: list[str] = []
    whole = packs._read_file

    def note(item, *rest):  # type: ignore[no-untyped-def]
        read.append(Path(item.path).name)
        return whole(item, *rest)

    monkeypatch.setattr(packs, "_read_file", note)
    return read


def test_a_new_file_costs_only_itself(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "store")
    corpus(config(text), store)
    read = spy(monkeypatch)
    (text / "3b.txt").write_text("\n\n".join(sentences(10, 60)))
    (text / "copy.txt").write_bytes((text / "2.txt").read_bytes())
    (text / "4.txt").rename(text / "renamed.txt")
    grown, reused = corpus(config(text), store)
    assert not reused and read == ["3b.txt"]
    read.clear()
    anew, _ = corpus(config(text), Store(tmp_path / "other"))
    assert anew.digest == grown.digest and len(read) == 8  # copy.txt is read as 2.txt


def test_a_damaged_pack_is_read_again(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "store")
    first, _ = corpus(config(text), store)
    (pack,) = (store.root / "corpus" / ".packs").rglob("texts.arrow")
    damaged = bytearray(pack.read_bytes())
    damaged[len(damaged) // 2] ^= 4
    pack.write_bytes(damaged)
    read = spy(monkeypatch)
    again, reused = corpus(config(text), Store(store.root, forced=frozenset({"corpus"})))
    assert not reused and len(read) == 7 and again.digest == first.digest


@pytest.mark.slow
def test_large_texts_are_the_same_bytes_whatever_was_read_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages of Parquet and batches of the packs are megabytes; what is smaller shows nothing."""
    for number in range(1, 5):
        (tmp_path / "text" / f"{number}.txt").parent.mkdir(exist_ok=True)
        (tmp_path / "text" / f"{number}.txt").write_text("\n\n".join(sentences(number, 30_000)))
    settings = config(tmp_path / "text", near_duplicates=NearDuplicates(enabled=False), limits=Limits())
    corpus(settings, Store(tmp_path / "store"))
    (tmp_path / "text" / "0.txt").write_text("\n\n".join(sentences(0, 10_000)))
    grown, _ = corpus(settings, Store(tmp_path / "store"))
    anew, _ = corpus(settings, Store(tmp_path / "other"))
    monkeypatch.setattr(units, "UNIT_BYTES", 1)
    apart, _ = corpus(settings, Store(tmp_path / "apart"))
    assert grown.digest == anew.digest == apart.digest


def test_a_file_that_changes_while_its_budget_is_filled_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.txt"
    path.write_text("\n\n".join(sentences(1, 3000)))
    os.utime(path, (1e9, 1e9))
    clean = packs.Cleaner.clean

    def append(self, *one):  # type: ignore[no-untyped-def]
        with open(path, "a") as file:
            file.write("more")
        return clean(self, *one)

    monkeypatch.setattr(packs.Cleaner, "clean", append)
    with pytest.raises(DataError, match=r"large.txt changed while the corpus was being made"):
        corpus(config(sources=(Source(str(path), budget_bytes=5_000),)), Store(tmp_path / "store"))
    assert not list((tmp_path / "store").rglob("texts.arrow"))


def test_a_file_that_a_full_budget_left_unread_is_read_for_the_next_source(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / "text" / f"{number}.txt").parent.mkdir(exist_ok=True)
        (tmp_path / "text" / f"{number}.txt").write_text("\n\n".join(sentences(number, 60)))
    limited = Source(str(tmp_path / "text"), "limited", budget_bytes=3_000)
    manifest, _ = corpus(config(sources=(limited, Source(str(tmp_path / "text")))), Store(tmp_path / "store"))
    alone, _ = corpus(config(tmp_path / "text"), Store(tmp_path / "store"))
    assert manifest.counts["documents_kept"] == alone.counts["documents_kept"]


def test_packs_of_other_settings_go_when_nobody_has_used_them_for_long(text: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    corpus(config(text), store)
    for receipt in (store.root / "corpus" / ".packs").rglob("*.receipt.json"):
        os.utime(receipt, (1e9, 1e9))
    corpus(config(text, cleaning=Cleaning(min_characters=65)), store)
    assert len(list((store.root / "corpus" / ".packs").rglob("texts.arrow"))) == 1


def test_sources_that_share_a_damaged_pack_read_it_again(text: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    corpus(config(text), store)
    (pack,) = (store.root / "corpus" / ".packs").rglob("texts.arrow")
    damaged = bytearray(pack.read_bytes())
    damaged[len(damaged) // 2] ^= 4
    pack.write_bytes(damaged)
    apart = config(*sorted(text.iterdir()))
    again, _ = corpus(apart, store)
    anew, _ = corpus(apart, Store(tmp_path / "other"))
    assert again.digest == anew.digest


def test_a_file_that_changes_while_it_is_read_is_noticed(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = packs.Cleaner.clean

    def append(self, *one):  # type: ignore[no-untyped-def]
        with open(text / "2.txt", "a") as file:
            file.write("more")
        return clean(self, *one)

    monkeypatch.setattr(packs.Cleaner, "clean", append)
    os.utime(text / "2.txt", (1e9, 1e9))
    with pytest.raises(DataError, match=r"2.txt changed while the corpus was being made; run again"):
        corpus(config(text / "2.txt"), Store(tmp_path / "store"))
