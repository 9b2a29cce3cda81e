"""Curve and spool: a mark costs nothing and says exactly how far they are. pytest tests/tasks/test_journal.py"""

import builtins
import errno
import hashlib
import os
import random

import pytest

from tasks.journal import Journal


def written(journal, *steps):
    for step in steps:
        journal.write({"step": step, "loss": step / 3}, {"step": step, "timestamp_ms": step * 7})


def honest(journal):
    """The mark, by reading everything."""
    curve = journal.curve.read_bytes()
    return {
        "curve_bytes": len(curve),
        "curve_sha256": hashlib.sha256(curve).hexdigest(),
        "spool_bytes": journal.spool.stat().st_size,
    }


def test_a_mark_is_what_a_full_reading_says_whatever_happened_before(tmp_path):
    rng = random.Random(0)
    journal, marks, step = Journal(tmp_path), [None], 0
    journal.cut_back(None)
    for _ in range(200):
        match rng.choice(["write", "write", "write", "mark", "cut", "again"]):
            case "write":
                step += 1
                written(journal, step)
            case "mark":
                marks.append(journal.mark())
            case "cut":
                marks = marks[: rng.randrange(len(marks)) + 1]
                journal.cut_back(marks[-1])
            case "again":
                journal = Journal(tmp_path)
        assert journal.mark() == honest(journal)
        assert all(journal.holds(mark) for mark in marks if mark)


def test_a_mark_reads_nothing_of_what_this_process_wrote(tmp_path, monkeypatch):
    journal = Journal(tmp_path)
    journal.cut_back(None)
    written(journal, 1, 2, 3)
    expected = honest(journal)
    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", lambda *_, **__: pytest.fail("a file was opened"))
        assert journal.mark() == expected


def test_cut_back_makes_new_files_that_end_at_the_mark(tmp_path):
    journal = Journal(tmp_path)
    journal.cut_back(None)
    written(journal, 1, 2)
    mark, curve, spool = journal.mark(), journal.curve.read_bytes(), journal.spool.read_bytes()
    written(journal, 3)
    inode = journal.spool.stat().st_ino
    journal.cut_back(mark)
    assert (journal.curve.read_bytes(), journal.spool.read_bytes()) == (curve, spool)
    assert journal.spool.stat().st_ino != inode and journal.mark() == mark


def test_a_curve_that_changed_or_was_lost_does_not_hold_and_a_lost_spool_does(tmp_path):
    journal = Journal(tmp_path)
    written(journal, 1, 2)
    mark = journal.mark()
    journal.spool.unlink()
    assert journal.holds(mark)
    journal.curve.write_bytes(journal.curve.read_bytes().replace(b"1", b"2", 1))
    assert not journal.holds(mark)
    journal.curve.unlink()
    assert not journal.holds(mark)


def test_other_ranks_write_nothing(tmp_path):
    written(Journal(tmp_path), 1)
    other = Journal(tmp_path, writer=False)
    before = other.mark()
    written(other, 2)
    other.cut_back(None)
    other.sync()
    assert Journal(tmp_path).mark() == other.mark() == before == honest(other)
    assert other.holds(before)


def test_sync_forces_both_files_and_is_no_error_before_there_are_any(tmp_path, monkeypatch):
    journal, synced = Journal(tmp_path), []
    journal.sync()
    written(journal, 1)
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), real(fd)))
    journal.sync()
    assert synced == [str(journal.curve), str(journal.spool)]


def test_a_full_disk_is_named_with_the_file(tmp_path, monkeypatch):
    class Full:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    journal = Journal(tmp_path)
    journal.cut_back(None)
    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", lambda *_, **__: Full())
        with pytest.raises(OSError) as caught:
            journal._counted = True
            written(journal, 1)
    assert caught.value.filename == str(journal.curve) and caught.value.errno == errno.ENOSPC
