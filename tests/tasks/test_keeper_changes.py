"""Checkpoints in the background: a kill, a torn write or a full disk at any change costs none. pytest -k keeper"""

import errno
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from tasks import checkpoint
from tasks.errors import DiskFullError
from tasks.journal import Journal
from tasks.keeper import Keeper
from tests.tasks.checkpoint_child import DIED, STEPS, accept, files, is_of, save, sequence, tensors, watched

ROOT = Path(__file__).parents[2]


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
