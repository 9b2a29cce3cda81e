"""Checkpoints in the background: what is kept, what is stable, what its thread raises. pytest -k keeper"""

import errno
import os
import random
import threading
from pathlib import Path

import pytest

from tasks import checkpoint, tensor_file
from tasks.errors import DataError, DiskFullError
from tasks.keeper import Keeper, Stable
from tests.tasks.checkpoint_child import STEPS, accept, files, is_of, save, sequence, tensors, watched

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
