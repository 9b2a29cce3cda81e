"""Artifacts that machines share, under kills, faults and damage: wherever it happens, no half of one is read."""

import itertools
import random
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from tasks.artifacts import Identity, Manifest, Store
from tasks.errors import DiskFullError, UnreachableError
from tasks.remote_store import Remote
from tests.tasks.flaky_store import URL, WHAT, Flaky, Killed, build, hang_up, kill, never, sound, store, unlittered
from tests.tasks.flaky_store import bucket as bucket
from tests.tasks.flaky_store import whole as whole


def everywhere(disturbed: Callable[[int, str], bool]) -> int:
    """Does it with a fault before the first operation, the second …, and in each. How many there were."""
    faults = 0
    for where in ("before", "middle"):
        number = 1
        while disturbed(number, where):
            number, faults = number + 1, faults + 1
    return faults


def test_a_kill_anywhere_in_a_push_leaves_nothing_that_is_half(tmp_path: Path, whole: Manifest) -> None:
    def killed_at(number: int, where: str) -> bool:
        home = tmp_path / f"{number}-{where}"
        Flaky.fresh()
        Store(home / "a").make(WHAT, build)
        first, killed = store(home / "a"), False
        Flaky.breaks(kill, number, where)
        try:
            first.make(WHAT, never)
        except Killed:
            killed = True
        Flaky.calm()
        there = Remote(URL).offer(WHAT, home)
        names = {path.rpartition("/")[2] for path in Flaky.store}
        assert not there or names >= {"a.bin", "b.txt", "empty"}, "a manifest that names what is not there"
        second = store(home / "b")
        assert sound(second.make(WHAT, build)[0], whole.digest) and bool(there) == bool(second.fetched)
        assert sound(store(home / "a").make(WHAT, never)[0], whole.digest)
        assert sound(store(home / "c").make(WHAT, never)[0], whole.digest), "the second try pushed it"
        return killed

    assert everywhere(killed_at) == 14


def test_a_kill_anywhere_in_a_pull_leaves_nothing_that_can_be_read(tmp_path: Path, whole: Manifest) -> None:
    store(tmp_path / "a").make(WHAT, build)

    def killed_at(number: int, where: str) -> bool:
        here, killed = store(tmp_path / f"{number}-{where}"), False
        Flaky.breaks(kill, number, where)
        try:
            here.make(WHAT, never)
        except Killed:
            killed = True
            assert not here.folder(WHAT).exists() and here.folders("shards") == []
        Flaky.calm()
        again, _ = store(here.root).make(WHAT, never)
        assert sound(again, whole.digest) and unlittered(here.root)
        return killed

    assert everywhere(killed_at) == 10


def test_what_has_arrived_is_not_fetched_again(tmp_path: Path) -> None:
    store(tmp_path / "a").make(WHAT, build)
    here = store(tmp_path / "b")
    Flaky.breaks(kill, at=4)
    with pytest.raises(Killed):
        here.make(WHAT, never)
    Flaky.calm()
    here.make(WHAT, never)
    assert Flaky.calm() == 2, "the third file, and the figures"


def test_a_connection_lost_anywhere_in_a_push_costs_no_run(
    tmp_path: Path, whole: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in itertools.count(1):
        home = tmp_path / str(number)
        Flaky.fresh()
        first = store(home / "a")
        Flaky.breaks(hang_up, number)
        assert sound(first.make(WHAT, build)[0], whole.digest)
        reached, said = Flaky.calm(), capsys.readouterr().err
        if reached < number:
            break
        assert "Connection reset by peer" in said and "The next run pushes it." in said
        assert store(home / "a").make(WHAT, never)[1]
        assert sound(store(home / "b").make(WHAT, never)[0], whole.digest)
    assert number > 6


def test_a_connection_lost_anywhere_in_a_pull_is_worth_another_try(tmp_path: Path, whole: Manifest) -> None:
    store(tmp_path / "a").make(WHAT, build)
    lost = 0
    for number in itertools.count(1):
        here = store(tmp_path / str(number))
        here.offer(WHAT)  # as `plan` does, just before
        Flaky.breaks(hang_up, number)
        try:
            here.make(WHAT, never)
        except UnreachableError as error:
            lost += 1
            assert error.exit_code == 69 and "does not answer (" in str(error) and "run again" in str(error)
            assert not here.folder(WHAT).exists()
        if Flaky.calm() < number:
            break
        assert sound(here.make(WHAT, never)[0], whole.digest)
    assert lost >= 4


def test_a_remote_that_cannot_be_asked_costs_no_run_and_is_asked_seldom(
    tmp_path: Path, whole: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    here = store(tmp_path)
    Flaky.breaks(hang_up, at=0)
    for rate in ("0.1", "0.2", "0.3"):
        here.make(Identity("shards", 1, {"rate": rate}, dict(WHAT.inputs)), build)
    assert Flaky.calm() == 1
    said = capsys.readouterr().err
    assert said.count("does not answer") == 1 and "What is not here is made here" in said
    assert "not pushed: The remote flaky://bucket/mill did not answer. The next run pushes it." in said


def test_every_bit_flip_truncation_and_loss_is_found_before_first_use_and_mended(
    tmp_path: Path, whole: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    store(tmp_path / "a").make(WHAT, build)
    good = {path: file.getvalue() for path, file in Flaky.store.items()}
    generator = random.Random(0)
    damages: list[Callable[[bytes], bytes | None]] = [
        lambda data: flipped(data, generator),
        lambda data: data[:-1],
        lambda data: b"",
        lambda data: data + b"\0",
        lambda data: None,
    ]
    fs = fsspec.filesystem("flaky")
    for number, (path, damage) in enumerate(itertools.product(good, damages)):
        bad = damage(good[path])
        if bad == good[path]:  # of an empty file
            continue
        for name, data in good.items():
            fs.pipe_file(name, data)
        fs.rm(path) if bad is None else fs.pipe_file(path, bad)
        here = store(tmp_path / f"b{number}")
        made, _ = here.make(WHAT, build)
        said = capsys.readouterr().err
        assert sound(made, whole.digest) and unlittered(tmp_path / f"b{number}")
        name = path.rpartition("/")[2]
        assert name in said or (name == "manifest.json" and bad is None), "nothing is passed over silently"
        assert bool(here.fetched) == (name == "measured.json"), "figures alone are no reason to train again"
        next_one = store(tmp_path / f"c{number}")
        assert sound(next_one.make(WHAT, build)[0], whole.digest) and next_one.fetched, "the damage was mended"
    assert number == 24


def flipped(data: bytes, generator: random.Random) -> bytes:
    if not data:
        return data
    bad = bytearray(data)
    bad[generator.randrange(len(bad))] ^= 1 << generator.randrange(8)
    return bytes(bad)


def test_a_disk_that_is_full_here_is_no_fault_of_the_remote(tmp_path: Path) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    store(tmp_path / "a").make(WHAT, build)
    here = store(tmp_path / "b")
    Flaky.breaks(full, at=3)
    with pytest.raises(DiskFullError):
        here.make(WHAT, never)
