"""Checkpoints: whole or not there, checked before use. pytest tests/tasks/test_checkpoint.py"""

import errno
import json
import os

import pytest
import torch

from tasks import checkpoint
from tasks.artifacts import canonical
from tasks.errors import DiskFullError
from tests.tasks.checkpoint_child import save, tensors


def accept(state):
    return None


def saved(folder, *steps):
    for step in steps:
        save(folder, step, tensors(step), {"tokens": step * 10})
    return folder


def test_what_is_saved_comes_back_bit_for_bit_and_two_are_kept(tmp_path):
    found, findings = checkpoint.newest(saved(tmp_path, 5, 10, 15), accept)
    assert findings == [] and found.step == 15 and found.state == {"tokens": 150}
    assert found.tensors.keys() == tensors(15).keys()
    assert all(torch.equal(found.tensors[name], value) for name, value in tensors(15).items())
    assert checkpoint.steps(tmp_path) == [10, 15]
    assert len(list(tmp_path.iterdir())) == 4


def test_no_folder_and_no_checkpoint_is_a_run_from_the_start(tmp_path):
    assert checkpoint.newest(tmp_path / "none", accept) == (None, [])


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "delete"])
def test_a_damaged_newest_one_goes_to_quarantine_and_the_one_before_is_used(tmp_path, suffix, damage):
    saved(tmp_path, 5, 10)
    path = tmp_path / f"step-000000010{suffix}"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    {
        "flip": lambda: path.write_bytes(data),
        "cut": lambda: path.write_bytes(data[:-9]),
        "empty": lambda: path.write_bytes(b""),
        "delete": path.unlink,
    }[damage]()
    found, findings = checkpoint.newest(tmp_path, accept)
    assert found.step == 5 and torch.equal(found.tensors["model/a"], tensors(5)["model/a"])
    if (suffix, damage) != (".json", "delete"):  # without its receipt a checkpoint was never finished
        assert len(findings) == 1 and "step-000000010" in findings[0]
        assert "step-000000010" in (tmp_path / "quarantine" / "step-000000010.reason.txt").read_text()
    assert checkpoint.steps(tmp_path) == [5]


def test_every_flipped_bit_of_a_small_checkpoint_is_found(tmp_path):
    saved(tmp_path, 1)
    for path in (tmp_path / "step-000000001.safetensors", tmp_path / "step-000000001.json"):
        good = path.read_bytes()
        receipt = json.loads((tmp_path / "step-000000001.json").read_bytes())
        for at in range(len(good)):
            bad = bytearray(good)
            bad[at] ^= 1 << at % 8
            path.write_bytes(bad)
            with pytest.raises(checkpoint.DataError):
                checkpoint.load(tmp_path, 1)
        path.write_bytes(good)
        assert receipt["step"] == checkpoint.load(tmp_path, 1).step


def test_all_damaged_means_a_run_from_the_start_with_a_finding_for_each(tmp_path):
    saved(tmp_path, 5, 10)
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(b"x")
    found, findings = checkpoint.newest(tmp_path, accept)
    assert found is None and len(findings) == 2


def test_one_of_another_run_is_set_aside_with_the_reason(tmp_path):
    found, findings = checkpoint.newest(
        saved(tmp_path, 5, 10), lambda state: "other" if state["tokens"] == 100 else None
    )
    assert found.step == 5 and findings == ["other"]


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_full_disk_at_any_call_leaves_the_checkpoint_before_in_place(tmp_path, monkeypatch, call, number):
    saved(tmp_path, 5)
    real, calls = getattr(os, call), []

    def failing(*args, **keywords):
        calls.append(args)
        if len(calls) == number:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        try:
            saved(tmp_path, 10)
        except DiskFullError as error:
            assert error.__cause__.errno == errno.ENOSPC
    found, findings = checkpoint.newest(tmp_path, accept)
    assert findings == [] and found.step in (5, 10)
    assert all(torch.equal(found.tensors[name], value) for name, value in tensors(found.step).items())


def test_equal_state_gives_equal_bytes(tmp_path):
    one, two = (saved(tmp_path / name, 3) / "step-000000003.safetensors" for name in "ab")
    assert one.read_bytes() == two.read_bytes()


def test_the_receipt_is_canonical_json_and_names_its_seal(tmp_path):
    data = (saved(tmp_path, 3) / "step-000000003.json").read_bytes()
    assert canonical(json.loads(data)) == data
    assert set(json.loads(data)) == {"step", "regular", "state", "bytes", "sha256", "seal"}
