"""What a server believes of runs, against what the ledger knows of their processes."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from prefect import flow, get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling, Completed, Crashed, Running, State

from flows import doctor, ledger


@flow
def nothing() -> None:
    """A flow whose runs are made by hand."""


@pytest.fixture
def begin(prefect_server: str) -> Iterator[Callable[[State[Any]], str]]:
    """Makes a run that the server has in a state; its id."""
    with temporary_settings({PREFECT_API_URL: prefect_server}), get_client(sync_client=True) as client:

        def run(state: State[Any]) -> str:
            return str(client.create_flow_run(nothing, state=state).id)

        yield run


def state_of(run: str) -> str:
    with get_client(sync_client=True) as client:
        found = client.read_flow_run(run).state  # type: ignore[arg-type]
    assert found
    return found.type.value


def written(home: Path, run: str, state: str, error: str = "") -> None:
    """The entry of a process that is gone; "running" is one that was killed."""
    entry = ledger.Entry(f"20260101-000000-{os.getpid()}", "tiny", "maskmill run tiny", state, error=error)
    entry.flow_run_id, entry.started = run, 4e9
    entry.stages["shards"] = {"state": "made" if state == "completed" else "running"}
    (home / "runs").mkdir(exist_ok=True)
    (home / "runs" / f"{entry.id}.json").write_text(json.dumps(asdict(entry)))


@pytest.mark.parametrize(
    ("before", "entry", "after", "says"),
    [
        (Running(), "running", "CRASHED", "its process died in shards: crashed"),
        (Running(), "completed", "COMPLETED", "has completed: completed"),
        (Running(), "failed", "FAILED", "has failed: failed"),
        (Cancelling(), "running", "CANCELLED", "was being cancelled, and its process is gone: cancelled"),
    ],
)
def test_what_the_ledger_knows_of_a_process_that_is_gone_counts(
    before: State[Any], entry: str, after: str, says: str, begin: Any, tmp_path: Path
) -> None:
    written(tmp_path, run := begin(before), entry)
    (found,) = doctor.examine(tmp_path)
    assert found.run == run and found.mended and says in found.what
    assert state_of(run) == after
    assert doctor.examine(tmp_path) == []


def test_a_run_that_crashed_while_it_was_cancelled_is_cancelled_and_not_sent_back(begin: Any, tmp_path: Path) -> None:
    written(tmp_path, run := begin(Cancelling()), "interrupted")
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run, Crashed(), force=True)  # type: ignore[arg-type]
    (found,) = doctor.examine(tmp_path, again=True)
    assert found.what == "was being cancelled, and its process is gone: cancelled" and state_of(run) == "CANCELLED"


def test_runs_that_are_over_and_runs_of_another_home_are_no_business_of_it(begin: Any, tmp_path: Path) -> None:
    written(tmp_path, begin(Completed()), "completed")
    other = begin(Running())
    assert doctor.examine(tmp_path) == [] and state_of(other) == "RUNNING"


def test_a_process_that_lives_is_never_declared_dead_and_an_orphan_is_said(begin: Any, tmp_path: Path) -> None:
    run = begin(Running())
    with ledger.record(tmp_path, "tiny", "maskmill run tiny", run, "a run"):
        assert doctor.examine(tmp_path) == []
        assert state_of(run) == "RUNNING"
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(run, Completed(), force=True)  # type: ignore[arg-type]
        (found,) = doctor.examine(tmp_path)
    assert (
        not found.mended and f"its process {os.getpid()} still works, but the server has it as COMPLETED" in found.what
    )


def test_an_orphan_that_is_being_cancelled_is_told_to_stop_once_its_worker_had_the_time(
    begin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(doctor.os, "kill", lambda *words: told.append(words))
    with ledger.record(tmp_path, "tiny", "maskmill run tiny", begin(Cancelling()), "a run") as recorder:
        assert doctor.examine(tmp_path) == [] and not told
        monkeypatch.setattr(doctor, "GRACE", 0.0)
        (found,) = doctor.examine(tmp_path)
        assert found.mended and told == [(os.getpid(), 15)]
        recorder.entry.host = "another"
        recorder.save()
        assert doctor.examine(tmp_path) == [] and len(told) == 1
