"""Artifacts that machines share: never half of one, wherever somebody is killed."""

import itertools
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tasks.artifacts import Built, Identity, Manifest, Store, Workspace, file_digest, load, verify
from tasks.errors import DiskFullError, UnreachableError, UsageError
from tasks.remote_store import Remote, at
from tests import servers

WHAT = Identity("shards", 1, {"rate": "0.3"}, {"corpus": "ab" * 32})
URL = "flaky://bucket/mill"


class Killed(BaseException):
    """As kill -9: nothing after it is done."""


class Flaky(MemoryFileSystem):
    """Files in memory, where the k-th operation goes wrong: before it (so after the one before), or in its middle."""

    protocol = "flaky"
    store: dict[str, Any] = {}
    pseudo_dirs = [""]
    done = 0
    wrong: Callable[[], None] | None = None
    at, where = 0, "before"

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return str(super()._strip_protocol(str(path).removeprefix("flaky://")))

    @classmethod
    def fresh(cls) -> None:
        cls.store.clear()
        cls.pseudo_dirs[:] = [""]
        cls.calm()

    @classmethod
    def calm(cls) -> int:
        """Nothing goes wrong from now on. How many operations there were."""
        done, cls.done, cls.wrong, cls.at = cls.done, 0, None, 0
        return done

    @classmethod
    def breaks(cls, wrong: Callable[[], None], at: int, where: str = "before") -> None:
        cls.done, cls.wrong, cls.at, cls.where = 0, wrong, at, where

    def _step(self, operation: Callable[[], Any], half: Callable[[], Any] | None = None) -> Any:
        cls = type(self)
        cls.done += 1
        if cls.wrong is None or (cls.done != cls.at and cls.at > 0):
            return operation()
        if cls.where == "middle" and half:
            half()
        cls.wrong()
        return operation()

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        return self._step(lambda: super(Flaky, self).ls(path, detail, **options))

    def cat_file(self, path: str, *where: Any, **options: Any) -> Any:
        return self._step(lambda: super(Flaky, self).cat_file(path, *where, **options))

    def pipe_file(self, path: str, value: bytes, **options: Any) -> None:
        whole = super().pipe_file
        self._step(lambda: whole(path, value), lambda: whole(path, value[: len(value) // 2]))

    def put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        data = Path(lpath).read_bytes()
        whole = super().pipe_file
        self._step(lambda: whole(rpath, data), lambda: whole(rpath, data[: len(data) // 2]))

    def get_file(self, rpath: str, lpath: str, **options: Any) -> None:
        def write(share: int) -> None:
            data = MemoryFileSystem.cat_file(self, rpath)
            Path(lpath).write_bytes(data[: len(data) // share])

        self._step(lambda: write(1), lambda: write(2))


fsspec.register_implementation("flaky", Flaky, clobber=True)


@pytest.fixture(autouse=True)
def bucket() -> Iterator[None]:
    Flaky.fresh()
    yield
    Flaky.fresh()


def kill() -> None:
    raise Killed


def hang_up() -> None:
    raise ConnectionResetError(104, "Connection reset by peer")


def build(work: Workspace, text: str = "tokens") -> Built:
    (work.folder / "deep").mkdir(exist_ok=True)
    (work.folder / "deep" / "a.bin").write_bytes(bytes(range(256)) * 8)
    (work.folder / "b.txt").write_text(f"{text}\n")
    (work.folder / "empty").write_bytes(b"")
    (work.folder / "measured.metrics.jsonl").write_text('{"step": 1}\n')
    (work.folder / "measured.sources.jsonl").write_text('{"path": "where it lay here"}\n')
    return Built({"documents_in": 3}, {"length": 64}, {"peak": 7})


def never(work: Workspace) -> Built:
    pytest.fail("made, although the remote has it")


def store(home: Path, url: str = URL, forced: bool = False, wait: float = 5) -> Store:
    return Store(home, wait, frozenset({"shards"}) if forced else frozenset(), at(url))


@pytest.fixture
def whole(tmp_path: Path) -> Manifest:
    """The artifact as nobody disturbed it."""
    return Store(tmp_path / "undisturbed").make(WHAT, build)[0]


def sound(manifest: Manifest, digest: str) -> bool:
    return manifest.digest == digest and verify(load(manifest.folder)) == []


def unlittered(home: Path) -> bool:
    return not list((home / "shards").glob(".*"))


# What one has made, the others fetch.


def test_what_one_made_the_other_fetches(tmp_path: Path, whole: Manifest, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = store(tmp_path / "a"), store(tmp_path / "b")
    made, reused = first.make(WHAT, build)
    assert not reused and not first.fetched
    fetched, reused = second.make(WHAT, never)
    assert reused and second.fetched == {WHAT.key} and sound(fetched, whole.digest) and unlittered(tmp_path / "b")
    for name in ("manifest.json", "measured.json", "measured.metrics.jsonl"):
        assert (fetched.folder / name).read_bytes() == (made.folder / name).read_bytes()
    assert not (fetched.folder / "measured.sources.jsonl").exists(), "where a source lay is nobody else's business"
    assert second.make(WHAT, never)[1]
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in said] == ["push shards", "fetch shards"]


def test_files_come_first_and_the_manifest_last(tmp_path: Path) -> None:
    seen: list[str] = []
    real = Flaky.put_file, Flaky.pipe_file
    try:
        Flaky.put_file = lambda self, lpath, rpath, **o: (seen.append(rpath), real[0](self, lpath, rpath))[1]  # type: ignore[method-assign,assignment]
        Flaky.pipe_file = lambda self, path, value, **o: (seen.append(path), real[1](self, path, value))[1]  # type: ignore[method-assign,assignment]
        made, _ = store(tmp_path / "a").make(WHAT, build)
    finally:
        Flaky.put_file, Flaky.pipe_file = real  # type: ignore[method-assign]
    below = f"/bucket/mill/shards/{WHAT.key}"
    files = {f"{below}/{made.digest}/{name}" for name in made.files}
    assert set(seen[:-2]) == files and seen[-2:] == [f"{below}/{made.digest}/measured.json", f"{below}/manifest.json"]


def test_what_was_made_without_the_remote_is_pushed_when_it_is_reused(tmp_path: Path, whole: Manifest) -> None:
    Store(tmp_path / "a").make(WHAT, build)
    assert store(tmp_path / "a").make(WHAT, never)[1]
    assert sound(store(tmp_path / "b").make(WHAT, never)[0], whole.digest)
    Flaky.calm()
    assert store(tmp_path / "a").make(WHAT, never)[1] and Flaky.calm() == 2, "asked for, and no more"


def test_an_artifact_damaged_here_is_fetched(tmp_path: Path, whole: Manifest) -> None:
    made, _ = store(tmp_path / "a").make(WHAT, build)
    (made.folder / "b.txt").unlink()
    again, reused = store(tmp_path / "a").make(WHAT, never)
    assert reused and sound(again, whole.digest) and unlittered(tmp_path / "a")


def test_damage_does_not_spread(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, _ = Store(tmp_path / "a").make(WHAT, build)
    (made.folder / "b.txt").write_bytes(b"TOKENS\n")
    store(tmp_path / "a").make(WHAT, never)
    assert "not pushed" in (said := capsys.readouterr().err) and "b.txt is damaged" in said
    assert store(tmp_path / "b").offer(WHAT) is None


def test_unfinished_work_goes_once_the_artifact_is_here_and_not_before(tmp_path: Path, whole: Manifest) -> None:
    def interrupted(work: Workspace) -> Built:
        (work.scratch / "unit").write_text("finished")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store(tmp_path / "b").make(WHAT, interrupted)
    store(tmp_path / "a").make(WHAT, build)
    here = store(tmp_path / "b")
    Flaky.breaks(hang_up, at=2)
    with pytest.raises(UnreachableError):
        here.make(WHAT, never)
    assert (here.partial(WHAT) / ".scratch" / "unit").exists()
    Flaky.calm()
    assert sound(here.make(WHAT, never)[0], whole.digest) and unlittered(tmp_path / "b")


def test_an_artifact_is_found_by_its_digest(tmp_path: Path, whole: Manifest) -> None:
    store(tmp_path / "a").make(WHAT, build)
    here = store(tmp_path / "b")
    found = here.with_digest("shards", whole.digest)
    assert found and sound(found, whole.digest) and found.folder == here.folder(WHAT)
    assert here.with_digest("shards", "cd" * 32) is None and here.with_digest("pretrain", whole.digest) is None


def test_the_registered_folder_stays_where_it_is(tmp_path: Path) -> None:
    folder = Identity("register", 1, {}, {})
    store(tmp_path / "a").make(folder, build)
    assert not Flaky.store and store(tmp_path / "b").make(folder, build)[1] is False


# Kills, faults, damage.


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


# Several machines.


def other(work: Workspace) -> Built:
    return build(work, "other tokens")


def test_who_comes_second_takes_the_first_ones(
    tmp_path: Path, whole: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    def meanwhile(work: Workspace) -> Built:
        store(tmp_path / "a").make(WHAT, build)
        return other(work)

    here = store(tmp_path / "b")
    made, reused = here.make(WHAT, meanwhile)
    assert not reused and sound(made, whole.digest) and made.folder == here.folder(WHAT) and unlittered(tmp_path / "b")
    assert f"the {whole.digest[:12]} that another machine pushed takes the place" in capsys.readouterr().err
    assert sound(store(tmp_path / "c").make(WHAT, never)[0], whole.digest)


def test_what_others_depend_on_stays_as_it_is(
    tmp_path: Path, whole: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, _ = Store(tmp_path / "b").make(WHAT, other)
    store(tmp_path / "a").make(WHAT, build)
    again, reused = store(tmp_path / "b").make(WHAT, never)
    assert reused and sound(again, mine.digest) and mine.digest != whole.digest
    assert f"{mine.digest[:12]} is what is used here" in capsys.readouterr().err
    assert sound(store(tmp_path / "c").make(WHAT, never)[0], whole.digest)


def test_from_replaces_what_the_remote_has_whoever_is_fetching_it(tmp_path: Path, whole: Manifest) -> None:
    """At every operation of a fetch another machine pushes other bytes under the same key."""
    new = Store(tmp_path / "new").make(WHAT, other)[0].digest
    for number in itertools.count(1):
        Flaky.fresh()
        store(tmp_path / f"a{number}").make(WHAT, build)
        here, forced = store(tmp_path / f"b{number}"), store(tmp_path / f"a{number}", forced=True)

        def replace(forced: Store = forced) -> None:
            Flaky.calm()
            forced.make(WHAT, other)

        Flaky.breaks(replace, number)
        made, _ = here.make(WHAT, never)
        replaced = Flaky.wrong is None
        Flaky.calm()
        assert sound(made, made.digest) and made.digest in (whole.digest, new)
        assert sound(store(tmp_path / f"c{number}").make(WHAT, never)[0], new if replaced else whole.digest)
        if not replaced:
            break
    assert number > 4


def test_homes_at_once_never_corrupt_each_other(tmp_path: Path) -> None:
    """On a folder, where a file that is being written can be read half."""
    (tmp_path / "shared").mkdir()
    for attempt in range(5):
        found: list[Manifest] = []

        def run(number: int, attempt: int = attempt, found: list[Manifest] = found) -> None:
            here = store(tmp_path / f"{attempt}-{number}", f"file://{tmp_path}/shared")
            what = Identity("shards", attempt, {}, {})
            found.append(here.make(what, lambda work: build(work, str(number)))[0])

        threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 4 and all(sound(one, one.digest) for one in found)
        last = store(tmp_path / f"{attempt}-last", f"file://{tmp_path}/shared")
        what = Identity("shards", attempt, {}, {})
        assert last.make(what, never)[0].digest in {one.digest for one in found}


# Addresses.


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("bucket/folder", r"'bucket/folder' is no URL; give one as s3://bucket/folder"),
        ("s3://", "is no URL"),
        ("what://bucket/x", "The remote what://bucket/x .*rotocol"),
        ("sftp://me:canary@host/x", "The remote sftp://host/x has a password or a query"),
        ("s3://bucket/x?X-Amz-Signature=canary", "The remote s3://bucket/x has a password or a query"),
        ("file:///nowhere/at/all", r"file:///nowhere/at/all cannot be used \(it is not there\)"),
    ],
)
def test_an_address_that_is_none_is_refused_at_once(url: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as error:
        at(url)
    assert "canary" not in str(error.value) and "\n" not in str(error.value)


def test_a_remote_that_does_not_answer_is_said_at_once() -> None:
    Flaky.breaks(hang_up, at=0)
    with pytest.raises(UnreachableError, match=r"flaky://bucket/mill does not answer \(.*Connection reset") as error:
        at(URL)
    assert error.value.exit_code == 69
    assert at("") is None


def test_files_that_arrived_are_those_that_left(tmp_path: Path) -> None:
    made, _ = store(tmp_path / "a").make(WHAT, build)
    fetched, _ = store(tmp_path / "b").make(WHAT, never)
    assert {name: file_digest(made.path(name)) for name in made.files} == {
        name: file_digest(fetched.path(name)) for name in fetched.files
    }


# A real server.


@pytest.fixture(scope="module")
def server() -> Iterator[servers.S3]:
    pytest.importorskip("s3fs")
    with servers.s3(SECRET) as found:
        yield found


@pytest.fixture
def signed(server: servers.S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[servers.S3]:
    """This process has the server's credentials in its environment."""
    from s3fs import S3FileSystem

    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()
    yield server
    S3FileSystem.clear_instance_cache()


SECRET = "canary77xq0b5e11"


def large(work: Workspace) -> Built:
    block = bytes(range(256)) * 4096
    with open(work.folder / "large.bin", "wb") as file:
        for number in range(120):
            file.write(bytes([number]) + block)
    for number in range(20):
        (work.folder / f"{number}.txt").write_text(f"{number}" * number)
    return Built({}, {})


@pytest.mark.slow
def test_a_file_of_several_parts_and_many_small_ones_travel(
    tmp_path: Path, signed: servers.S3, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"{signed.bucket}/several"
    made, _ = store(tmp_path / "a", url).make(WHAT, large)
    fetched, _ = store(tmp_path / "b", url).make(WHAT, never)
    assert sound(fetched, made.digest) and unlittered(tmp_path / "b")
    said = capsys.readouterr().err
    assert "push shards: 126 MB in" in said and "fetch shards: 126 MB in" in said
    forced, _ = store(tmp_path / "a", url, forced=True).make(WHAT, other)
    assert sound(store(tmp_path / "c", url).make(WHAT, never)[0], forced.digest)


@pytest.mark.slow
def test_a_bucket_that_is_not_there_and_wrong_credentials_are_one_sentence(
    tmp_path: Path, signed: servers.S3, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from s3fs import S3FileSystem

    with pytest.raises(UsageError, match=r"The remote s3://nothing/x cannot be used \(it is not there\)"):
        at("s3://nothing/x")
    assert at(f"{signed.bucket}/not/made/yet")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f"x{SECRET}")
    S3FileSystem.clear_instance_cache()
    with pytest.raises(UsageError, match=r"cannot be used \(permission denied\); see to its address") as error:
        at(signed.bucket)
    assert SECRET not in str(error.value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "reader")  # may not write
    S3FileSystem.clear_instance_cache()
    made, _ = store(tmp_path / "a", f"{signed.bucket}/reader").make(WHAT, build)
    said = capsys.readouterr().err
    assert sound(made, made.digest) and "not pushed: The remote s3://models/reader cannot be used (permission" in said


@pytest.mark.slow
def test_nobody_at_the_address_is_said_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    s3fs = pytest.importorskip("s3fs")
    for name, value in servers.S3("http://127.0.0.1:9", "me", SECRET).environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    started = time.monotonic()
    with pytest.raises(UnreachableError, match=r"The remote s3://models does not answer \(.*127\.0\.0\.1:9") as error:
        at("s3://models")
    s3fs.S3FileSystem.clear_instance_cache()
    assert error.value.exit_code == 69 and SECRET not in str(error.value) and time.monotonic() - started < 60


def maskmill(home: Path, *words: str, **more: str) -> "subprocess.CompletedProcess[str]":
    environment = servers.calm({"MASKMILL_HOME": str(home), "OMP_NUM_THREADS": "1", **more})
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", *words],
        cwd=servers.ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def last(home: Path) -> dict[str, dict[str, Any]]:
    stages: dict[str, dict[str, Any]] = json.loads(maskmill(home, "runs", "--json").stdout)[0]["stages"]
    return stages


@pytest.mark.slow
def test_of_two_machines_the_second_makes_nothing(tmp_path: Path, server: servers.S3, prefect_server: str) -> None:
    (tmp_path / "texts").mkdir()
    for number in range(200):
        words = " ".join(f"word{(number * 7 + at * at) % 31} of the {at % 5} files" for at in range(12))
        (tmp_path / "texts" / f"{number}.txt").write_text(f"{words} and text {number}.")
    a, b, c = (tmp_path / name for name in "abc")
    recipe = ["tiny", "--source", str(tmp_path / "texts")]
    bare = server.environment | {"PREFECT_API_URL": prefect_server}
    shared = bare | {"MASKMILL_REMOTE": f"{server.bucket}/mill"}
    given = ["--set", f"remote={server.bucket}/mill"]

    first = maskmill(a, "run", *recipe, **shared)
    assert first.returncode == 0, first.stderr
    assert [stage["state"] for stage in last(a).values()] == ["made"] * 6

    planned = json.loads(maskmill(b, "plan", *recipe, *given, "--json", **bare).stdout)
    assert [one["action"] for one in planned] == ["fetch"] * 5 + ["run"]
    assert planned[0]["why"].startswith("in the remote s3://models/mill, ")
    second = maskmill(b, "run", *recipe, *given, **bare)
    assert second.returncode == 0, second.stderr
    assert [stage["state"] for stage in last(b).values()] == ["fetched"] * 5 + ["made"]
    assert [stage["digest"] for stage in last(b).values()] == [stage["digest"] for stage in last(a).values()]
    assert "fetched in" in second.stderr and maskmill(b, "verify").returncode == 0
    again = maskmill(b, "run", *recipe, **shared)
    assert again.returncode == 0 and [stage["state"] for stage in last(b).values()] == ["reused"] * 6

    wrong = maskmill(c, "run", *recipe, **shared | {"AWS_SECRET_ACCESS_KEY": f"x{SECRET}"})
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and "permission denied" in wrong.stderr
    refused = maskmill(c, "run", *recipe, "--set", f"remote=sftp://me:{SECRET}@host/mill")
    assert refused.returncode == 2 and "has a password or a query in its address" in refused.stderr
    for done in (first, second, again, wrong, refused):
        assert SECRET not in done.stdout + done.stderr
    for home in (a, b, c):
        files = [path for path in home.rglob("*") if path.is_file()]
        assert not [path for path in files if SECRET.encode() in path.read_bytes()]
        assert (home == c) == (len(files) < 20)
    away = maskmill(c, "plan", *recipe, **shared | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"})
    assert away.returncode == 69 and "does not answer" in away.stderr and away.stderr.count("\n") == 1
