"""Artifacts that machines share: what one has made, the others fetch, whoever else is pushing it."""

import itertools
import threading
from pathlib import Path

import pytest

from tasks.artifacts import Built, Identity, Manifest, Store, Workspace, file_digest
from tasks.errors import UnreachableError, UsageError
from tasks.remote_store import at
from tests.tasks.flaky_store import URL, WHAT, Flaky, build, hang_up, never, other, sound, store, unlittered
from tests.tasks.flaky_store import bucket as bucket
from tests.tasks.flaky_store import whole as whole

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


# Several machines.


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
