import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flows import ledger
from tasks.errors import DataError, InterruptedRun

ROOT = Path(__file__).parents[2]


def only(home: Path) -> ledger.Entry:
    (entry,) = ledger.read(home)
    return entry


def test_a_finished_run_is_completed(tmp_path: Path) -> None:
    with ledger.record(tmp_path, "tiny", "maskmill run tiny") as recorder:
        assert only(tmp_path).state == "running"
        recorder.stage("corpus", "running", why="not made yet")
        recorder.stage("corpus", "made", seconds=1.5)
    entry = only(tmp_path)
    assert (entry.state, entry.exit_code, entry.stage) == ("completed", 0, "")
    assert entry.stages == {"corpus": {"state": "made", "why": "not made yet", "seconds": 1.5}}


@pytest.mark.parametrize(
    ("error", "state", "code", "said"),
    [
        (DataError("file x is damaged"), "failed", 65, "file x is damaged"),
        (InterruptedRun("stopped"), "interrupted", 75, "stopped from outside"),
        (KeyboardInterrupt(), "interrupted", 75, "stopped from outside"),
        (ValueError("odd"), "failed", 1, "ValueError: odd"),
    ],
)
def test_a_run_that_ends_badly_names_its_stage(
    tmp_path: Path, error: BaseException, state: str, code: int, said: str
) -> None:
    with pytest.raises(type(error)), ledger.record(tmp_path, "tiny", "maskmill run tiny") as recorder:
        recorder.stage("corpus", "reused")
        recorder.stage("shards", "running")
        raise error
    entry = only(tmp_path)
    assert (entry.state, entry.exit_code, entry.stage, entry.error) == (state, code, "shards", said)
    assert entry.stages["shards"]["state"] == state


def test_a_run_killed_with_kill_9_shows_as_crashed_with_its_stage_and_command(tmp_path: Path) -> None:
    program = """
import sys, time
from pathlib import Path
from flows import ledger
with ledger.record(Path(sys.argv[1]), "tiny", "maskmill run tiny --set pretrain.steps=3") as recorder:
    recorder.stage("corpus", "made"); recorder.stage("pretrain", "running")
    print("ready", flush=True); time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout and process.stdout.readline() == b"ready\n"
    assert only(tmp_path).state == "running"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    entry = only(tmp_path)
    assert (entry.state, entry.stage, entry.command) == (
        "crashed", "pretrain", "maskmill run tiny --set pretrain.steps=3",
    )  # fmt: skip


def test_a_damaged_entry_hides_only_itself(tmp_path: Path) -> None:
    with ledger.record(tmp_path, "tiny", "maskmill run tiny"):
        pass
    (tmp_path / "runs" / "20000101-000000-1.json").write_text("{")
    (tmp_path / "runs" / "20000101-000000-2.json").write_text('{"id": 1}')
    assert len(ledger.read(tmp_path)) == 1


def stopped(home: Path, settings: str = "s", error: BaseException | None = None) -> ledger.Entry:
    """A run with these settings that ended with an error, or well."""
    try:
        with ledger.record(home, "tiny", "maskmill run tiny", "flow") as recorder:
            recorder.entry.settings, recorder.entry.run = settings, recorder.entry.id
            recorder.needs("f" * 64)
            recorder.stage("pretrain", "running", key="k", inputs=["a" * 64])
            if error:
                raise error
            recorder.stage("pretrain", "made", digest="d" * 64)
    except BaseException as raised:
        if raised is not error:
            raise
    return recorder.entry


def test_a_run_that_was_stopped_is_what_the_same_settings_go_on_with(tmp_path: Path) -> None:
    assert ledger.stopped(tmp_path, "s") is None
    entry = stopped(tmp_path, error=KeyboardInterrupt())
    found = ledger.stopped(tmp_path, "s")
    assert found and found.run == entry.run and ledger.stopped(tmp_path, "other") is None
    entry.started -= 15 * 86400
    ledger.Recorder(tmp_path / "runs", entry).save()
    assert ledger.stopped(tmp_path, "s") is None, "what it left is gone by now"
    entry.started, entry.state = entry.started + 15 * 86400, "completed"
    ledger.Recorder(tmp_path / "runs", entry).save()
    assert ledger.stopped(tmp_path, "s") is None


def test_a_run_that_is_still_at_work_is_not_gone_on_with(tmp_path: Path) -> None:
    with ledger.record(tmp_path, "tiny", "maskmill run tiny") as recorder:
        recorder.entry.settings = recorder.entry.run = "s"
        recorder.save()
        assert ledger.stopped(tmp_path, "s") is None


def test_a_run_needs_what_it_made_what_it_read_and_what_it_was_forked_from(tmp_path: Path) -> None:
    stopped(tmp_path)
    assert ledger.needed(ledger.read(tmp_path)) == ({"k"}, {"a" * 64, "d" * 64, "f" * 64})


@pytest.mark.parametrize(
    "odd",
    [
        {"started": 1e300},
        {"stages": {"corpus": {}}},
        {"stages": {"corpus": 3}},
        {"needs": [[1]]},
        {"id": None},
        {"ended": "x"},
    ],
)
def test_an_entry_of_odd_fields_hides_itself_and_nothing_else(tmp_path, odd):
    (tmp_path / "runs").mkdir()
    whole = {"id": "1", "recipe": "tiny", "command": "maskmill run tiny", "state": "completed"}
    (tmp_path / "runs" / "1.json").write_text(json.dumps(whole))
    (tmp_path / "runs" / "2.json").write_text(json.dumps(whole | odd))
    entries = ledger.read(tmp_path)
    assert [entry.id for entry in entries] == ["1"]
    ledger.needed(entries), ledger.digests(entries), ledger.show(entries)
