"""Checkpoints in the background: whatever happens at whichever change, none is lost. pytest -k keeper"""

import errno
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import torch

from tasks import checkpoint, tensor_file
from tasks.errors import DataError, DiskFullError
from tasks.journal import Journal
from tasks.keeper import Keeper, Stable
from tests.tasks.checkpoint_child import DIED, STEPS, save, sequence, tensors, watched

ROOT = Path(__file__).parents[2]


def accept(state):
    return None


def is_of(found):
    return all(torch.equal(found.tensors[name], value) for name, value in tensors(found.step).items())


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_file())


# What it promises while all is well.


def test_what_is_kept_is_of_the_moment_of_begin_and_the_bytes_are_those_of_a_plain_save(tmp_path):
    mine, state = tensors(5), {"tokens": 50, "resumed": []}
    with Keeper(tmp_path / "a") as keeper:
        keeper.begin(5, mine, state)
        for tensor in mine.values():
            tensor.zero_()
        state["resumed"].append(3)
    found, findings = checkpoint.newest(tmp_path / "a", accept)
    assert findings == [] and is_of(found) and found.state == {"tokens": 50, "resumed": []}
    save(tmp_path / "b", 5, tensors(5), {"tokens": 50, "resumed": []})
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert all(
        (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files(tmp_path / "a")
    )


def test_begin_returns_before_the_file_is_there_and_a_second_one_waits_for_the_first(tmp_path, monkeypatch):
    gate, real = threading.Event(), tensor_file.write
    monkeypatch.setattr(checkpoint, "write", lambda *one: (gate.wait(20), real(*one)))
    keeper = Keeper(tmp_path)
    keeper.begin(5, tensors(5), {})
    assert not keeper.poll() and checkpoint.steps(tmp_path) == []
    second = threading.Thread(target=keeper.begin, args=(10, tensors(10), {}))
    second.start()
    second.join(0.2)
    assert second.is_alive() and checkpoint.steps(tmp_path) == []
    gate.set()
    second.join()
    assert 5 in checkpoint.steps(tmp_path)
    keeper.close()
    assert keeper.poll() and checkpoint.steps(tmp_path) == [5, 10] and keeper.spent.checkpoints == 2


def test_one_in_flight_is_waited_for_where_training_has_failed_but_not_for_ever(tmp_path, monkeypatch):
    gate, real = threading.Event(), tensor_file.write
    monkeypatch.setattr(checkpoint, "write", lambda *one: (gate.wait(20), real(*one)))
    keeper = Keeper(tmp_path)
    keeper.settle(0.0)
    keeper.begin(5, tensors(5), {})
    keeper.settle(0.05)
    assert checkpoint.steps(tmp_path) == []
    gate.set()
    keeper.settle(20)
    assert checkpoint.steps(tmp_path) == [5]
    monkeypatch.setattr(checkpoint, "write", lambda *one: 1 / 0)
    keeper.begin(10, tensors(10), {})
    keeper.settle(20)
    with pytest.raises(ZeroDivisionError):
        keeper.close()


def test_what_the_state_speaks_of_is_on_the_disk_before_the_receipt(tmp_path):
    seen = []
    with Keeper(tmp_path, before_receipt=lambda: seen.append(files(tmp_path))) as keeper:
        keeper.begin(5, tensors(5), {})
    assert seen == [["step-000000005.safetensors.tmp"]]


def test_every_rename_follows_an_fsync_of_the_file_and_is_followed_by_one_of_its_folder(tmp_path):
    calls = []
    with watched(tmp_path, lambda call, path, _: calls.append((call, path))):
        sequence(tmp_path)
    renames = [number for number, (call, _) in enumerate(calls) if call == "replace"]
    assert len(renames) == 2 * (len(STEPS) + 1)
    for number in renames:
        path = calls[number][1]
        before = [call for call, other in calls[:number] if other == path and call in ("write", "fsync")]
        assert before[-1] == "fsync"
        assert ("fsync", str(Path(path).parent)) in calls[number : number + 2]
    for receipt in (number for number in renames if ".json" in calls[number][1] and "model" not in calls[number][1]):
        tensors_path = calls[receipt][1].replace(".json.tmp", ".safetensors.tmp")
        synced = [path for call, path in calls[:receipt] if call == "fsync"]
        assert calls.index(("replace", tensors_path)) < receipt
        assert str(tmp_path / "curve.jsonl") in synced and str(tmp_path / "measured.metrics.jsonl") in synced


def test_the_newest_two_and_the_newest_regular_one_stay(tmp_path):
    rng = random.Random(1)
    with Keeper(tmp_path) as keeper:
        regular = {}
        for step in range(1, 30):
            regular[step] = rng.random() < 0.3
            keeper.begin(step, tensors(step), {}, regular=regular[step])
            keeper.wait()
            past = [one for one in regular if regular[one]]
            assert checkpoint.steps(tmp_path) == sorted({step, max(step - 1, 1)} | set(past[-1:]))
            found = keeper.newest(accept, regular_only=True)[0]
            assert (found and found.step) == (past[-1] if past else None)


def test_what_is_written_last_is_the_newest_and_what_was_of_later_steps_goes(tmp_path):
    with Keeper(tmp_path) as keeper:
        for step, regular in ((5, True), (10, True), (12, False)):
            keeper.begin(step, tensors(step), {}, regular)
        found, _ = keeper.newest(accept, regular_only=True)
        assert found.step == 10
        assert checkpoint.steps(tmp_path) == [10, 12]
        keeper.begin(11, tensors(11), {}, regular=False)
    assert checkpoint.steps(tmp_path) == [10, 11]
    save(tmp_path, 7, tensors(7), {})  # and without it, what was written last is still there
    assert checkpoint.steps(tmp_path) == [7]


def test_what_a_killed_process_left_is_swept_and_nothing_else(tmp_path):
    save(tmp_path, 5, tensors(5), {})
    for name in (
        "step-000000010.safetensors",
        "step-000000011.safetensors.tmp",
        "step-000000010.json.tmp",
        "notes.txt",
    ):
        (tmp_path / name).write_bytes(b"x")
    Keeper(tmp_path).close()
    assert files(tmp_path) == ["notes.txt", "step-000000005.json", "step-000000005.safetensors"]
    Keeper(tmp_path / "none").close()
    assert not (tmp_path / "none").exists()


# Stable checkpoints.


def test_a_stable_checkpoint_is_a_function_of_tensors_and_state(tmp_path):
    with Keeper(tmp_path / "run") as keeper:
        keeper.begin(5, tensors(5), {"seconds": 1.5}, stable=Stable(tmp_path / "one", {"tokens": 50}))
    path = save(tmp_path / "two" / checkpoint.STABLE, 5, tensors(5), {"tokens": 50})
    assert files(path.parent) == ["step-000000005.json", "step-000000005.safetensors"]
    for name in files(path.parent):
        assert (tmp_path / "one" / "stable" / name).read_bytes() == (path.parent / name).read_bytes()
    for one in (path, path.with_suffix(".json")):
        found = checkpoint.load_stable(one)
        assert is_of(found) and found.step == 5 and found.state == {"tokens": 50}
    save(tmp_path / "two" / checkpoint.STABLE, 5, tensors(5), {"tokens": 50})  # again, after a resume
    assert is_of(checkpoint.load_stable(path)) and len(files(path.parent)) == 2


@pytest.mark.parametrize("name", ["step-000000005.safetensors", "step-000000005.json"])
def test_a_damaged_or_missing_stable_checkpoint_is_refused_and_stays_where_it_is(tmp_path, name):
    path = save(tmp_path / checkpoint.STABLE, 5, tensors(5), {})
    data = bytearray((path.parent / name).read_bytes())
    data[len(data) // 2] ^= 1
    (path.parent / name).write_bytes(data)
    with pytest.raises(DataError, match=r"step-000000005.*verify the model"):
        checkpoint.load_stable(path)
    assert len(files(path.parent)) == 2
    (path.parent / name).unlink()
    with pytest.raises(DataError, match="step-000000005"):
        checkpoint.load_stable(path)
    with pytest.raises(DataError, match="not a stable checkpoint"):
        checkpoint.load_stable(tmp_path / "model.safetensors")


# What goes wrong in the thread.


@pytest.mark.parametrize("how", ["begin", "poll", "wait", "newest", "close"])
def test_an_error_of_the_thread_is_raised_by_the_next_call_once(tmp_path, monkeypatch, how):
    keeper = Keeper(tmp_path)
    keeper.begin(5, tensors(5), {})
    keeper.wait()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EDQUOT, "Disk quota exceeded")))
        keeper.begin(10, tensors(10), {})
        keeper._flight.exception()
        with pytest.raises(DiskFullError, match=r"step-000000010.*takes \d+ bytes.*quota.*; free some") as caught:
            match how:
                case "begin":
                    keeper.begin(15, tensors(15), {})
                case "newest":
                    keeper.newest(accept)
                case _:
                    getattr(keeper, how)()
    cause = caught.value.__cause__
    assert cause.errno == errno.EDQUOT and "step-000000010" in cause.filename
    assert files(tmp_path) == ["step-000000005.json", "step-000000005.safetensors"]
    if how != "close":
        assert keeper.poll()
        keeper.begin(10, tensors(10), {})
        keeper.close()
        assert is_of(checkpoint.newest(tmp_path, accept)[0]) and checkpoint.steps(tmp_path) == [5, 10]


def test_the_error_under_way_is_not_replaced_by_one_of_the_thread(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(ZeroDivisionError), Keeper(tmp_path) as keeper:
        keeper.begin(5, tensors(5), {})
        raise ZeroDivisionError
    assert "the last checkpoint failed, too" in capsys.readouterr().err


def test_bytes_that_do_not_read_back_are_no_checkpoint_and_cost_none(tmp_path, monkeypatch):
    real = tensor_file.write

    def rotten(path, image):
        real(path, image)
        with open(path, "r+b") as file:
            file.seek(image.numel() - 3)
            file.write(b"!!")

    with pytest.raises(DataError, match="reads back otherwise"), Keeper(tmp_path) as keeper:
        for step in (5, 10):
            keeper.begin(step, tensors(step), {})
        keeper.wait()
        monkeypatch.setattr(checkpoint, "write", rotten)
        keeper.begin(15, tensors(15), {})
    assert checkpoint.steps(tmp_path) == [5, 10] and len(files(tmp_path)) == 4
    assert is_of(checkpoint.newest(tmp_path, accept)[0])


def test_state_that_is_no_json_is_an_error_of_begin(tmp_path):
    with Keeper(tmp_path) as keeper, pytest.raises(ValueError):
        keeper.begin(5, tensors(5), {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


# Every change of the folder: kill -9, a torn write, a full disk.


@pytest.fixture
def memory(tmp_path):
    """A folder in memory where there is one: forcing to a disk takes most of the time, and a kill does not show it."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Name of each change of the sequence, in order."""
    folder, calls = tmp_path_factory.mktemp("undisturbed"), []
    with watched(folder, lambda call, path, _: calls.append(call)):
        sequence(folder)
    return calls


def good(folder):
    """What the folder holds is whole: nothing is set aside, the newest is right, the journal goes back to it."""
    before = checkpoint.steps(folder / "checkpoints")
    with Keeper(folder / "checkpoints") as keeper:
        found, findings = keeper.newest(accept)
    assert findings == [] and not (folder / "checkpoints" / "quarantine").exists()
    assert (found.step if found else None) == (before[-1] if before else None)
    names = files(folder / "checkpoints") if before else []
    assert len(names) == 2 * len(before) and not [name for name in names if name.endswith(".tmp")]
    if found:
        assert found.step < 10 or (folder / "model" / "stable" / "step-000000010.json").exists()
        journal = Journal(folder)
        assert is_of(found) and journal.holds(found.state["journal"])
    if (stable := folder / "model" / "stable" / "step-000000010.json").exists():
        assert is_of(checkpoint.load_stable(stable))
    return before


def least(calls, at):
    """Checkpoints that had their receipt before the change number `at`, counted in renames."""
    done = calls[: at - 1].count("replace") // 2
    return done - (done > 1)  # the second pair is the stable checkpoint's


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "torn"])
def test_a_kill_at_every_change_leaves_the_newest_whole(memory, undisturbed, how):
    killed(memory, undisturbed, range(1, len(undisturbed) + 2), how)


def test_a_kill_at_some_changes_leaves_the_newest_whole(memory, undisturbed):
    writes = [number for number, call in enumerate(undisturbed, 1) if call == "write"]
    killed(memory, undisturbed, random.Random(5).sample(range(1, len(undisturbed) + 1), 10), "kill")
    killed(memory, undisturbed, random.Random(6).sample(writes, 2), "torn")


def killed(root, undisturbed, places, how):
    child = Path(__file__).with_name("checkpoint_child.py")
    jobs = [{"folder": str(root / f"{how}-{at}"), "at": at, "how": how} for at in places]
    for job in jobs:
        Path(job["folder"]).mkdir()
    run = subprocess.run(
        [sys.executable, str(child)],
        input="".join(json.dumps(job) + "\n" for job in jobs),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    statuses = [int(line) for line in run.stdout.split()]
    assert statuses == [DIED if job["at"] <= len(undisturbed) else 0 for job in jobs], run.stderr
    for job in jobs:
        folder, there = Path(job["folder"]), least(undisturbed, job["at"])
        kept = good(folder)
        assert len(kept) >= min(there, 2) and (not there or kept[-1] >= STEPS[there - 1])
        sequence(folder)  # and the same again goes through
        assert good(folder)[-1] == STEPS[-1]


@pytest.mark.parametrize("lasting", [False, True])
def test_a_full_disk_at_every_change_is_raised_and_costs_no_checkpoint(memory, undisturbed, lasting):
    for at in range(1, len(undisturbed) + 1):
        folder, calls = memory / str(at), []
        folder.mkdir()

        def fail(call, path, data, at=at, calls=calls):
            calls.append(call)
            if len(calls) == at or (lasting and len(calls) > at and call in ("open", "write", "fsync", "mkdir")):
                raise OSError(errno.ENOSPC, "No space left on device", path)

        with watched(folder, fail), pytest.raises((DiskFullError, OSError)) as caught:
            sequence(folder)
        cause = caught.value.__cause__ or caught.value
        assert cause.errno == errno.ENOSPC and str(folder) in cause.filename
        there = least(undisturbed, at)
        assert not list(folder.rglob("*.tmp"))
        if undisturbed[at - 1] != "unlink":
            orphans = [path for path in folder.rglob("*.safetensors") if not path.with_suffix(".json").exists()]
            assert not orphans
        kept = good(folder)
        assert len(kept) >= min(there, 2) and (not there or kept[-1] >= STEPS[there - 1])
        sequence(folder)
        assert good(folder)[-1] == STEPS[-1]


def test_a_full_disk_at_a_second_writing_of_a_step_leaves_the_first(tmp_path):
    calls = []
    save(tmp_path, 5, tensors(5), {"seconds": 1.0})
    with watched(tmp_path, lambda call, path, _: calls.append(call)):
        save(tmp_path, 5, tensors(5), {"seconds": 2.0})
    for at in range(1, len(calls) + 1):
        left = iter(range(at - 1, -1, -1))

        def fail(call, path, data, left=left):
            if next(left, 1) == 0:
                raise OSError(errno.ENOSPC, "No space left on device", path)

        with watched(tmp_path, fail), pytest.raises(DiskFullError):
            save(tmp_path, 5, tensors(5), {"seconds": 3.0})
        found, findings = checkpoint.newest(tmp_path, accept)
        assert findings == [] and found.step == 5 and is_of(found) and len(files(tmp_path)) == 2


# A disk that is really full, and a file that may not grow.

LIMITED = """
import resource, sys
from pathlib import Path
import torch
from tasks import checkpoint
from tasks.errors import DiskFullError
from tasks.keeper import Keeper
folder = Path(sys.argv[1])
def tensors(step, size):
    return {"a": torch.full((size,), float(step))}
with Keeper(folder) as keeper:
    keeper.begin(5, tensors(5, 100), {})
    keeper.wait()
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))  # SIGXFSZ is ignored by the interpreter
    keeper.begin(10, tensors(10, 100_000), {})
    try:
        keeper.wait()
    except DiskFullError as error:
        print(error.exit_code, error.__cause__.errno, error)
    print(sorted(path.name for path in folder.iterdir()))
    try:
        checkpoint.room(folder, 400_000)
    except DiskFullError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    checkpoint.room(folder, 400_000)
    keeper.begin(10, tensors(10, 100_000), {})
found, findings = checkpoint.newest(folder, lambda _: None)
print(found.step, findings, checkpoint.steps(folder), torch.equal(found.tensors["a"], tensors(10, 100_000)["a"]))
"""


def test_a_limit_of_the_size_of_files_is_a_full_disk(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    failed, left, preflight, last = run.stdout.splitlines()
    assert failed.startswith(f"74 {errno.EFBIG} ") and "step-000000010.safetensors, which takes 400,0" in failed
    assert left == "['step-000000005.json', 'step-000000005.safetensors']"
    assert "40,000" in preflight and "400,000" in preflight and "ulimit" in preflight
    assert last == "10 [] [5, 10] True"


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"mounting a file system is not allowed here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_file_system_costs_no_checkpoint_and_the_next_attempt_succeeds_once_there_is_room(small_disk):
    big = {step: {"a": torch.full((60_000,), float(step))} for step in (5, 10, 15, 20)}  # 240 kB each
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(400_000))
    folder = small_disk / "checkpoints"
    with Keeper(folder) as keeper:
        for step in (5, 10):
            keeper.begin(step, big[step], {})
        keeper.wait()
        for _ in range(2):
            keeper.begin(15, big[15], {})
            with pytest.raises(DiskFullError, match=r"step-000000015.safetensors, which takes 240,\d+ bytes"):
                keeper.wait()
            assert checkpoint.steps(folder) == [5, 10] and len(files(folder)) == 4
        found, findings = keeper.newest(accept)
        assert findings == [] and found.step == 10 and torch.equal(found.tensors["a"], big[10]["a"])
        with pytest.raises(DiskFullError, match=r"bytes are free for .*checkpoints.* need 760,000"):
            checkpoint.room(small_disk / "new" / "folder", 240_000, more=40_000)
        ballast.unlink()
        checkpoint.room(folder, 240_000)  # two of the three are there
        keeper.begin(15, big[15], {})
        keeper.begin(20, big[20], {})
    assert checkpoint.steps(folder) == [15, 20]
    assert torch.equal(checkpoint.load(folder, 20).tensors["a"], big[20]["a"])
