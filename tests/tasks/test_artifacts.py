"""Manifests: complete or not there, every byte covered, one writer. pytest tests/tasks/test_artifacts.py"""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tasks import artifacts, manifests
from tasks.artifacts import Built, Identity, Store, Workspace, finish_unit, finished_unit, load, save_array, verify
from tasks.errors import DataError, DiskError, DiskFullError, HeldError
from tasks.manifests import page, read_sealed, sealed

WHAT = Identity("shards", 1, {"rate": "0.3"}, {"corpus": "ab" * 32})


def build(work: Workspace) -> Built:
    (work.folder / "deep").mkdir(exist_ok=True)
    (work.folder / "deep" / "a.bin").write_bytes(bytes(range(256)) * 8)
    (work.folder / "b.txt").write_text("tokens\n")
    (work.folder / "measured.metrics.jsonl").write_text(f"{time.time()}\n")
    return Built({"documents_in": 3}, {"length": 64}, {"peak": time.time()})


def test_an_artifact_is_made_once_and_then_reused(tmp_path):
    store = Store(tmp_path)
    made, reused = store.make(WHAT, build, libraries=["numpy"])
    assert not reused and set(made.files) == {"deep/a.bin", "b.txt"} and made.counts == {"documents_in": 3}
    assert made.libraries["numpy"] and made.measured()["seconds"] >= 0
    again, reused = store.make(WHAT, lambda work: pytest.fail("built twice"))
    assert reused and again == made and verify(again) == []
    assert not list(tmp_path.glob("shards/.*")), "litter"


def test_the_digest_does_not_know_clock_host_or_path(tmp_path):
    first, _ = Store(tmp_path / "a").make(WHAT, build, libraries=["numpy"])
    second, _ = Store(tmp_path / "b").make(WHAT, build)
    assert first.digest == second.digest and first.key == second.key and first.measured() != second.measured()


@pytest.mark.parametrize("field", ["stage", "version", "config", "inputs"])
def test_the_key_follows_from_everything_the_artifact_depends_on(field):
    values = {"stage": "shards", "version": 1, "config": {"rate": "0.3"}, "inputs": {"corpus": "ab" * 32}}
    other = values | {field: {"stage": "corpus", "version": 2, "config": {"rate": "0.15"}, "inputs": {}}[field]}
    assert Identity(**values).key != Identity(**other).key


def test_each_of_300_single_bit_flips_is_found_and_named(tmp_path):
    manifest, _ = Store(tmp_path).make(WHAT, build, libraries=["numpy"])
    paths = [manifest.folder / name for name in [*manifest.files, "manifest.json", "measured.json"]]
    generator = random.Random(0)
    for _ in range(300):
        path = generator.choice(paths)
        good = path.read_bytes()
        bad = bytearray(good)
        bad[generator.randrange(len(bad))] ^= 1 << generator.randrange(8)
        path.write_bytes(bad)
        try:
            findings = verify(load(manifest.folder))
        except DataError as error:
            findings = [str(error)]
        assert any(path.name in finding for finding in findings), (path, findings)
        path.write_bytes(good)
    assert verify(load(manifest.folder)) == []


@pytest.mark.parametrize("damage", ["delete", "truncate", "manifest", "folder"])
def test_a_damaged_artifact_is_made_again_and_the_reason_is_said(tmp_path, damage, capsys):
    store = Store(tmp_path)
    made, _ = store.make(WHAT, build)
    match damage:
        case "delete":
            (made.folder / "b.txt").unlink()
        case "truncate":
            os.truncate(made.folder / "deep" / "a.bin", 5)
        case "manifest":
            (made.folder / "manifest.json").write_text("{}")
        case "folder":
            os.rename(made.folder, made.folder.with_name("0" * 32))
    manifest, why = store.inspect(WHAT)
    assert manifest is None and why
    again, reused = store.make(WHAT, build)
    assert not reused and again.digest == made.digest and verify(again) == []
    assert damage == "folder" or "is made again" in capsys.readouterr().err


def test_what_verify_found_damaged_is_made_again_although_its_sizes_are_right(tmp_path):
    store = Store(tmp_path)
    made, _ = store.make(WHAT, build)
    good = (made.folder / "b.txt").read_bytes()
    (made.folder / "b.txt").write_bytes(b"x" * len(good))
    assert store.make(WHAT, build)[1], "sizes are all that a run checks"
    manifests.mark(made.folder, verify(load(made.folder)))
    assert "b.txt" in store.inspect(WHAT)[1]
    again, reused = store.make(WHAT, build)
    assert not reused and verify(again) == [] and again.digest == made.digest
    manifests.mark(again.folder, [])
    assert store.make(WHAT, build)[1]


def test_a_file_that_the_manifest_does_not_name_is_found(tmp_path):
    made, _ = Store(tmp_path).make(WHAT, build)
    (made.folder / "extra").write_text("")
    assert ["extra" in finding for finding in verify(made)] == [True]


def test_a_name_that_leads_outside_the_folder_is_refused(tmp_path):
    made, _ = Store(tmp_path).make(WHAT, build)
    value = json.loads((made.folder / "manifest.json").read_bytes())
    value["files"]["../../escape"] = value["files"]["b.txt"]
    body = {name: value[name] for name in ("stage", "version", "config", "inputs", "files", "counts", "facts")}
    value["digest"] = artifacts.digest_of(body)
    del value["seal"]
    (made.folder / "manifest.json").write_bytes(manifests.page(manifests.sealed(value)))
    with pytest.raises(DataError, match="outside its folder"):
        load(made.folder)


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tasks import artifacts
from tests_build import WHAT, build_in_units
calls = 0
def count(name):
    real = getattr(os, name)
    def counted(*arguments, **options):
        global calls
        if Path(str(arguments[0])).is_relative_to({store!r}) or name == "fsync":
            calls += 1
            if calls == {at}:
                os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)
    setattr(os, name, counted)
for name in ("fsync", "rename", "replace"):
    count(name)
artifacts.Store(Path({store!r})).make(WHAT, build_in_units)
print(calls)
"""

UNITS = """
from tasks.artifacts import Built, Identity, finish_unit, finished_unit
WHAT = Identity("corpus", 1, {}, {})
made = []
def build_in_units(work):
    for number in range(3):
        if finished_unit(work.scratch, f"unit-{number}") is None:
            made.append(number)
            path = work.scratch / f"unit-{number}.bin"
            path.write_bytes(bytes([number]) * 100)
            finish_unit(work.scratch, f"unit-{number}", [path], {"rows": number})
    everything = b"".join((work.scratch / f"unit-{number}.bin").read_bytes() for number in range(3))
    (work.folder / "all.bin").write_bytes(everything)
    return Built({"units": 3}, {})
"""


def test_a_kill_at_any_fsync_or_rename_leaves_the_same_artifact_after_a_rerun(tmp_path, monkeypatch):
    root = str(artifacts.Path(artifacts.__file__).parents[1])
    (tmp_path / "tests_build.py").write_text(UNITS)
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{tmp_path}"}

    def run(store, at):
        script = KILLED.format(root=root, store=str(store), at=at)
        return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)

    whole = run(tmp_path / "undisturbed", at=-1)
    assert whole.returncode == 0, whole.stderr
    monkeypatch.syspath_prepend(str(tmp_path))
    import tests_build

    undisturbed = Store(tmp_path / "undisturbed").find(tests_build.WHAT)
    assert undisturbed is not None
    for at in range(1, int(whole.stdout) + 1):
        store = tmp_path / f"killed-{at}"
        assert run(store, at).returncode == -signal.SIGKILL
        tests_build.made.clear()
        again, _ = Store(store).make(tests_build.WHAT, tests_build.build_in_units)
        assert again.digest == undisturbed.digest and verify(again) == []
        assert not list(store.rglob("*.tmp")) and not list(store.glob("corpus/.*")), f"litter after a kill at {at}"
        assert len(tests_build.made) <= max(0, 3 - (at - 1) // 4), "a finished unit was made again"


def test_a_unit_whose_bytes_changed_is_made_again(tmp_path):
    path = tmp_path / "unit.bin"
    path.write_bytes(b"good")
    assert finish_unit(tmp_path, "unit", [path], {"rows": 1}) == {"rows": 1} == finished_unit(tmp_path, "unit")
    path.write_bytes(b"evil")
    assert finished_unit(tmp_path, "unit") is None and finished_unit(tmp_path, "unit") is None


def test_two_makers_build_once_and_the_second_waits_naming_the_holder(tmp_path, capsys):
    started, finish, built = threading.Event(), threading.Event(), []

    def slow(work):
        built.append(1)
        started.set()
        finish.wait(20)
        return build(work)

    first = threading.Thread(target=lambda: Store(tmp_path).make(WHAT, slow))
    first.start()
    started.wait(20)
    with pytest.raises(HeldError, match=f"process {os.getpid()}"):
        Store(tmp_path, wait=0.3).make(WHAT, slow)
    threading.Timer(0.5, finish.set).start()
    _, reused = Store(tmp_path, wait=20).make(WHAT, slow)
    first.join()
    assert reused and built == [1] and "waiting" in capsys.readouterr().err


def test_the_lock_lives_as_long_as_a_child_that_was_given_it(tmp_path):
    script = textwrap.dedent(
        f"""
        import subprocess, sys, os
        from pathlib import Path
        from tasks.artifacts import Store, Identity
        def build(work):
            subprocess.Popen(["sleep", "3"], pass_fds=[work.lock_fd])
            os.kill(os.getpid(), 9)
        what = Identity("shards", 1, {{"rate": "0.3"}}, {{"corpus": "{"ab" * 32}"}})
        Store(Path({str(tmp_path)!r})).make(what, build)
        """
    )
    root = artifacts.Path(artifacts.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", script], cwd=root).returncode == -signal.SIGKILL
    with pytest.raises(HeldError):
        Store(tmp_path, wait=0.1).make(WHAT, build)
    assert Store(tmp_path, wait=20).make(WHAT, build)[1] is False


def test_a_full_disk_is_status_74_and_keeps_the_partial_work(tmp_path):
    def full(work):
        (work.scratch / "unit").write_text("finished")
        raise OSError(28, "No space left on device", "documents-00000.parquet")

    store = Store(tmp_path)
    with pytest.raises(DiskFullError, match="documents-00000") as error:
        store.make(WHAT, full)
    assert error.value.exit_code == 74 and (store.partial(WHAT) / ".scratch" / "unit").exists()


def test_a_disk_that_fails_is_status_74_and_named(tmp_path):
    def failing(work):
        raise OSError(errno.EIO, "Error writing bytes to file")  # as pyarrow says it: without a name

    with pytest.raises(DiskError, match=f"The disk fails at {tmp_path}") as error:
        Store(tmp_path).make(WHAT, failing)
    assert error.value.exit_code == 74 and not isinstance(error.value, DiskFullError)


@pytest.mark.parametrize("at", [1, 2])
def test_a_publication_that_fails_puts_nothing_aside_for_good(tmp_path, monkeypatch, at):
    real, calls = os.rename, []

    def failing(*names):
        calls.append(names)
        if len(calls) == at:
            raise OSError(errno.ENOSPC, "No space left on device", str(names[1]))
        return real(*names)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(DiskFullError):
        Store(tmp_path).make(WHAT, build)
    assert not list(tmp_path.rglob("*.old*")) and Store(tmp_path).find(WHAT) is None
    assert verify(Store(tmp_path).make(WHAT, build)[0]) == []


def test_forced_stages_are_made_again_from_nothing(tmp_path):
    Store(tmp_path).make(WHAT, build)
    made, reused = Store(tmp_path, forced=frozenset({"shards"})).make(WHAT, build)
    assert not reused and verify(made) == [] and Store(tmp_path).make(WHAT, build)[1]


def test_a_forced_run_that_was_killed_goes_on_from_its_finished_units(tmp_path):
    store = Store(tmp_path, forced=frozenset({"shards"}))
    made = []

    def killed(work):
        if finished_unit(work.scratch, "unit") is None:
            made.append(1)
            (work.scratch / "unit.bin").write_bytes(b"unit")
            finish_unit(work.scratch, "unit", [work.scratch / "unit.bin"], {})
        if len(made) == 1 and not stopped:
            stopped.append(True)
            raise KeyboardInterrupt
        return build(work)

    stopped = []
    Store(tmp_path).make(WHAT, build)
    with pytest.raises(KeyboardInterrupt):
        store.make(WHAT, killed)
    assert store.make(WHAT, killed)[1] is False and made == [1]
    store.make(WHAT, killed)
    assert made == [1, 1], "the next forced run begins anew"


def test_bytes_are_hashed_before_something_is_computed_from_them(tmp_path):
    made, _ = Store(tmp_path).make(WHAT, build)
    assert made.whole("b.txt") == made.path("b.txt")
    made.path("b.txt").write_bytes(b"TOKENS\n")
    with pytest.raises(DataError, match=r"b\.txt is damaged.*run again"):
        made.whole("b.txt")
    again, reused = Store(tmp_path).make(WHAT, build)
    assert not reused and again.digest == made.digest and verify(again) == [], "running again does make it anew"
    assert again.whole_folder("deep") == again.folder / "deep"
    again.path("deep/a.bin").write_bytes(bytes(2048))
    for name, said in (("deep", r"deep/a\.bin is damaged"), ("dee", "names no file 'dee/'")):
        with pytest.raises(DataError, match=said):
            again.whole_folder(name)


def test_canonical_json_is_sorted_ascii_and_refuses_nan():
    assert artifacts.canonical({"b": 1, "a": "é"}) == b'{"a":"\\u00e9","b":1}'
    with pytest.raises(ValueError):
        artifacts.canonical(float("nan"))


@pytest.mark.parametrize("what", ["write_atomic", "fsync"])
def test_a_write_that_fails_says_which_file(what, tmp_path, monkeypatch):
    """The system does not: a write has a descriptor."""

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    (path := tmp_path / "receipt.json").write_text("old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"receipt\.json") as raised:
        manifests.write_atomic(path, b"new") if what == "write_atomic" else manifests.fsync(path)
    assert raised.value.errno == errno.EIO
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["receipt.json"]


def test_an_array_on_a_full_disk_is_an_error_with_its_number(tmp_path: Path) -> None:
    save_array(tmp_path / "a.npy", np.arange(6).reshape(2, 3).T)
    assert (np.load(tmp_path / "a.npy") == np.arange(6).reshape(2, 3).T).all()
    with pytest.raises(OSError) as caught:
        save_array(Path("/dev/full"), np.zeros(1 << 20))
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize("odd", [{"files": []}, {"files": {"a": 3}}, {"files": {"a\0": {}}}, {"facts": 3}, {}])
def test_a_sealed_receipt_of_odd_fields_is_a_unit_to_make_again(tmp_path, odd):
    receipt = tmp_path / "a.receipt.json"
    receipt.write_bytes(page(sealed({"facts": {}} | odd)))
    assert finished_unit(tmp_path, "a") is None and not receipt.exists()


@pytest.mark.parametrize(
    "data", [b'{"seal": "x", "a": NaN}', b"[" * 5000, b'{"seal": 1, "a": ' + b"[" * 900 + b"]" * 900 + b"}"]
)
def test_a_page_that_cannot_be_sealed_is_damaged(tmp_path, data):
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(DataError, match="is damaged"):
        read_sealed(tmp_path / "a.json")
