"""python -m pytest tests/tasks/test_digests.py"""

import os
import time
from hashlib import sha256
from pathlib import Path

import pytest

from tasks import digests
from tasks.artifacts import file_digest
from tasks.digests import Digest, Memory
from tests.tasks.made_files import put


def old(path: Path) -> Path:
    os.utime(path, (time.time() - 100, time.time() - 100))
    return path


def stamp(path: Path) -> tuple[int, ...]:
    state = path.stat()
    return state.st_size, state.st_mtime_ns, state.st_ino, state.st_ctime_ns


def test_digests_are_remembered_but_not_those_of_fresh_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settled, fresh = old(put(tmp_path / "old.txt", "old")), put(tmp_path / "fresh.txt", "fresh")
    hashed: list[str] = []
    monkeypatch.setattr(digests, "file_digest", lambda path: (hashed.append(path.name), file_digest(path))[1])
    expected = [
        Digest(sha256(b"old").hexdigest(), 3, stamp(settled)),
        Digest(sha256(b"fresh").hexdigest(), 5, ()),
    ]
    for _ in range(2):
        memory = Memory(tmp_path)
        assert memory.digests([settled, fresh]) == expected
        memory.save()
    assert sorted(hashed) == ["fresh.txt", "fresh.txt", "old.txt"]
    settled.write_text("new")
    assert Memory(tmp_path).digests([settled])[0].digest == sha256(b"new").hexdigest()


@pytest.mark.parametrize("memory", [b"{damaged", b"[]", b"\xff"])
def test_a_damaged_memory_costs_time_only(tmp_path: Path, memory: bytes) -> None:
    put(tmp_path / "digests.json", memory)
    assert Memory(tmp_path).digests([put(tmp_path / "a", "a")])[0].digest == sha256(b"a").hexdigest()


def test_a_file_that_changes_while_it_is_hashed_gets_no_stamp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = old(put(tmp_path / "a", "before"))

    def changing(path: Path) -> str:
        digest = file_digest(path)
        path.write_text("behind")
        old(path)  # the modification time may lie, the change time does not
        return digest

    monkeypatch.setattr(digests, "file_digest", changing)
    memory = Memory(tmp_path)
    assert memory.digests([path]) == [Digest(sha256(b"before").hexdigest(), 6, ())] and not memory.known


def test_what_cannot_be_read_has_its_reason_in_place_of_a_digest(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    os.symlink("loop", tmp_path / "loop")
    found = Memory(tmp_path).digests([tmp_path / "pipe", tmp_path / "missing", tmp_path / "loop", Path("/dev/zero")])
    assert [one.digest for one in found] == ["not a regular file", "unreadable", "unreadable", "not a regular file"]


def test_a_digest_that_was_changed_in_the_memory_is_not_believed(tmp_path: Path) -> None:
    path = old(put(tmp_path / "a.txt", "text"))
    memory = Memory(tmp_path)
    right = memory.digests([path])[0].digest
    memory.save()
    for wrong in (right.replace(right[0], "f" if right[0] != "f" else "0", 1), "", "NaN"):
        page = (tmp_path / "digests.json").read_text()
        (tmp_path / "digests.json").write_text(page.replace(right, wrong))
        assert Memory(tmp_path).digests([path])[0].digest == right
        (tmp_path / "digests.json").write_text(page)
