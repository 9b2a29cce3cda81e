"""The outbox: what was appended is there for the next process, whatever happened to the one that wrote it."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.outbox import Outbox, batches, heads

HEAD = {"do": "open", "stage": "", "run": "r", "address": ""}


def tags(number):
    return {"do": "tags", "stage": "", "values": {"n": str(number)}}


def numbers(outbox):
    return [int(line.entry["values"]["n"]) for line in outbox.entries if line.entry["do"] == "tags"]


@pytest.fixture
def outbox(tmp_path):
    return Outbox.create(tmp_path / "outbox", HEAD)


def again(outbox):
    outbox.close()
    return Outbox.take(outbox.path)


def test_a_living_process_keeps_its_own(outbox):
    assert Outbox.take(outbox.path) is None
    outbox.append(tags(1))
    other = again(outbox)
    assert other.head == HEAD and numbers(other) == [1]
    assert (other.size, other.sent, other.end, other.waiting) == (outbox.size, 0, outbox.end, 2)
    other.close()
    os.rename(outbox.path, outbox.path.with_name("gone"))
    assert Outbox.take(outbox.path) is None


def test_it_is_let_go_of_when_its_process_is_killed(tmp_path):
    program = """
import os, signal, sys
from pathlib import Path
from tasks.outbox import Outbox
outbox = Outbox.create(Path(sys.argv[1]), {"do": "open", "stage": "", "run": "r"})
outbox.append({"do": "open", "stage": "pretrain"})
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=Path(__file__).parents[2], check=False)
    ((path, head),) = heads(tmp_path)
    assert head["run"] == "r" and Outbox.take(path).running == ["", "pretrain"]


@pytest.mark.parametrize("delivered", [0, 1, 3, 6])
def test_the_next_process_goes_on_where_this_one_was(outbox, delivered):
    outbox.append(*map(tags, range(3)))
    outbox.append(*map(tags, range(3, 5)))
    for batch in batches(outbox.entries[:delivered], 1):
        outbox.acknowledge(batch)
    other = again(outbox)
    assert other.waiting == outbox.waiting == 6 - delivered
    assert numbers(other) == [0, 1, 2, 3, 4][max(0, delivered - 1) :]
    assert (other.sent >= other.end) == (delivered == 6)
    other.append(tags(5))
    assert numbers(other)[-1] == 5


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_line_that_was_being_written_is_not_there(outbox, cut):
    outbox.append(tags(1))
    whole = outbox.size
    outbox.append(tags(2))
    os.truncate(outbox.path, min(whole + cut, outbox.size - 1))
    other = again(outbox)
    assert numbers(other) == [1] and other.size == whole == other.path.stat().st_size
    other.append(tags(3))
    assert numbers(again(other)) == [1, 3]


def test_a_damaged_line_takes_no_other_with_it(outbox):
    outbox.append(tags(1))
    start = outbox.size
    outbox.append(tags(2), tags(3))
    with open(outbox.path, "r+b") as file:
        file.seek(start)
        file.write(b"\0\0\0")
    assert numbers(again(outbox)) == [1, 3]


def test_a_full_disk_leaves_no_half_line(outbox, monkeypatch):
    outbox.append(tags(1))
    pwrite = os.pwrite

    def full(descriptor, data, at):
        if len(data) > 5:
            return pwrite(descriptor, data[:5], at)
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="full"):
        outbox.append(tags(2), tags(3), tags(5))
    monkeypatch.undo()
    outbox.append(tags(4))
    assert numbers(outbox) == [1, 4] == numbers(again(outbox))


def test_what_is_still_being_written_is_not_delivered(outbox):
    outbox.append(tags(1))
    with open(outbox.path, "ab") as file:
        file.write(b'{"do": "tags", "stage": "", "values": {"n": "2"}}\n{"do"')
    assert numbers(outbox) == [1]
    outbox.append(tags(3))
    assert numbers(outbox) == [1, 3]


def test_a_closed_one_writes_into_no_other_file(outbox, tmp_path):
    outbox.close()
    with open(tmp_path / "other", "w+b") as other, pytest.raises(OSError):  # it may get the number of the closed one
        outbox.append(tags(1))
    assert other.closed and not (tmp_path / "other").read_bytes()


def test_a_line_longer_than_a_chunk_is_read(outbox, monkeypatch):
    monkeypatch.setattr("tasks.outbox.CHUNK", 16)
    outbox.append(tags(1), tags(2))
    seen = []
    while lines := outbox.entries:
        seen += lines
        outbox.acknowledge(lines)
    assert [line.entry for line in seen] == [HEAD, tags(1), tags(2)]
    assert again(outbox).waiting == 0


def test_it_goes_when_it_is_delivered_or_is_kept_for_a_person(outbox, tmp_path):
    outbox.remove()
    assert not list(heads(tmp_path / "outbox"))
    other = Outbox.create(tmp_path / "outbox", HEAD)
    other.remove(kept=True)
    assert not list(heads(tmp_path / "outbox")) and len(list((tmp_path / "outbox").glob("*.refused"))) == 1


def test_neighbouring_metrics_of_a_stage_go_together_and_nothing_else(outbox):
    def points(stage, many):
        return {
            "do": "metrics",
            "stage": stage,
            "step": 1,
            "timestamp_ms": 1,
            "metrics": dict.fromkeys("abcdefg"[:many]),
        }

    said = [points("a", 2), points("a", 2), points("a", 1), points("b", 7), tags(1), tags(2), points("b", 1)]
    outbox.append(*said)
    groups = [[line.entry for line in batch] for batch in batches(outbox.entries, 4)]
    assert groups == [[HEAD], said[:2], said[2:3], *([one] for one in said[3:])]


@pytest.mark.parametrize(
    "bad",
    [
        b'{"do": 1, "stage": ""}',
        b'{"do": "metrics", "stage": ""}',
        b'{"sent": -1}',
        b'{"sent": "x"}',
        b"[1]",
        b"[" * 5000,
    ],
)
def test_an_entry_of_odd_fields_is_passed_over(tmp_path, bad):
    good = b'{"do": "open", "stage": "", "run": "r"}\n'
    (tmp_path / "1.jsonl").write_bytes(good + bad + b"\n" + b'{"do": "tags", "stage": "", "values": {}}\n')
    (tmp_path / "2.jsonl").write_bytes(bad + b"\n")
    assert [path.name for path, _ in heads(tmp_path)] == ["1.jsonl"]
    box = Outbox.take(tmp_path / "1.jsonl")
    assert [one.entry["do"] for one in box.entries] == ["open", "tags"] and box.waiting == 2
    box.close()
