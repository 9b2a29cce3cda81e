"""A preempted training goes on in a worker, in the same flow run; what is no interruption is not tried again."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from prefect.exceptions import Abort
from prefect.states import Cancelling, Running

from flows import faults, preempted
from tasks.errors import DataError, InterruptedRun, UnreachableError
from tests.flows.house import until

ROOT = Path(__file__).parents[2]
WORDS = " ".join(f"the {one} sat on the {other}" for one in ("cat", "dog") for other in ("mat", "log", "box", "rug"))


class Client:
    """A Prefect server that knows one run."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def set_flow_run_state(self, run: object, state: Any, force: bool) -> None:
        self.state = state

    def read_flow_run(self, run: object) -> SimpleNamespace:
        return SimpleNamespace(state=self.state)


@pytest.fixture
def proposed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What states are proposed for a running run of a deployment, its first attempt."""
    found: list[Any] = []

    def propose(client: Client, state: Any, flow_run_id: object) -> Any:
        found.append(state)
        return state

    as_attempt(monkeypatch, 1, str(uuid4()))
    monkeypatch.setattr(preempted, "get_client", lambda sync_client: Client(Running()))
    monkeypatch.setattr(preempted, "propose_state_sync", propose)
    return found


def as_attempt(monkeypatch: pytest.MonkeyPatch, count: int, deployment: str | None) -> None:
    run = SimpleNamespace(id=str(uuid4()), run_count=count)
    monkeypatch.setattr(preempted, "runtime", SimpleNamespace(flow_run=run, deployment=SimpleNamespace(id=deployment)))


def test_an_interruption_sends_the_run_back_to_the_queue(proposed: list[Any]) -> None:
    with pytest.raises(Abort), preempted.goes_on():
        raise InterruptedRun("pretrain: stopped by a signal")
    (state,) = proposed
    assert state.name == "AwaitingRetry" and "stopped by a signal" in state.message
    assert state.state_details.scheduled_time is not None


def test_a_network_that_is_away_is_waited_for_longer_and_longer_and_not_for_ever(
    proposed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = []
    for count in range(1, faults.TIMES + 1):
        as_attempt(monkeypatch, count, "a deployment")
        with pytest.raises(Abort if count < faults.TIMES else UnreachableError), preempted.goes_on():
            raise UnreachableError("s3://bucket does not answer.")
    for state in proposed:
        pauses.append((state.state_details.scheduled_time - state.timestamp).total_seconds())
    assert [round(pause) for pause in pauses] == [120, 240, 480]


def test_what_is_wrong_is_not_tried_again(proposed: list[Any]) -> None:
    for error in (DataError("shard 3 is damaged."), SystemExit(1)):
        with pytest.raises(type(error)), preempted.goes_on():
            raise error
    assert not proposed


@pytest.mark.parametrize("error", [InterruptedRun("stopped"), SystemExit(1)])
def test_a_cancelled_run_stays_cancelled(
    error: BaseException, proposed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client(Cancelling())
    monkeypatch.setattr(preempted, "get_client", lambda sync_client: client)
    with pytest.raises(Abort), preempted.goes_on():
        raise error
    assert not proposed and client.state.is_cancelled()


@pytest.mark.parametrize(("count", "deployment"), [(preempted.MOST, "a deployment"), (1, None)])
def test_the_last_attempt_and_a_run_without_a_worker_end(
    count: int, deployment: str | None, proposed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    as_attempt(monkeypatch, count, deployment)
    with pytest.raises(InterruptedRun), preempted.goes_on():
        raise InterruptedRun("stopped")
    assert not proposed


@pytest.fixture
def served(tmp_path: Path, prefect_server: str) -> Iterator[str]:
    """A deployment of the flow, and a process that takes up its runs. Its id."""
    name = f"served-{uuid4().hex[:8]}"
    program = f"from flows.mlm import maskmill; maskmill.serve(name={name!r})"
    environment = os.environ | {"MASKMILL_HOME": str(tmp_path / "home"), "PREFECT_API_URL": prefect_server}
    environment |= {"PREFECT_RUNNER_POLL_FREQUENCY": "2"}
    with open(tmp_path / "served.log", "wb") as log:
        words = [sys.executable, "-c", program]
        process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:

        def deployed() -> str | None:
            known = ask(f"{prefect_server}/deployments/filter", {"deployments": {"name": {"any_": [name]}}})
            return known[0]["id"] if known else None

        yield until(deployed, 90)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ask(url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as reply:
        return json.load(reply)


def trainer(home: Path) -> int | None:
    """The process that trains below this home, once it has a checkpoint."""
    if not list((home / "store").glob("pretrain/.*.partial/.scratch/checkpoints/*")):
        return None
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
        except (OSError, UnicodeDecodeError):
            continue
        if "tasks.trainer" in words and any(word.startswith(str(home)) for word in words):
            return int(folder.name)
    return None


@pytest.mark.slow
def test_a_training_that_is_preempted_goes_on_in_the_same_run(tmp_path: Path, served: str, prefect_server: str) -> None:
    (tmp_path / "texts").mkdir()
    for number in range(60):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"{WORDS} number {number}. " * 8)
    parameters = {
        "recipe": "tiny",
        "source": [str(tmp_path / "texts")],
        "set": ["pretrain.steps=400", "pretrain.checkpoint_every=20"],
    }
    run = ask(f"{prefect_server}/deployments/{served}/create_flow_run", {"parameters": parameters})["id"]

    def state() -> dict[str, Any]:
        return ask(f"{prefect_server}/flow_runs/{run}")

    os.kill(until(lambda: trainer(tmp_path / "home"), 180), signal.SIGTERM)
    until(lambda: state()["state_name"] == "AwaitingRetry", 60)
    until(lambda: state()["state_type"] in ("COMPLETED", "FAILED", "CRASHED"), 240)
    assert (state()["state_type"], state()["run_count"]) == ("COMPLETED", 2), (tmp_path / "served.log").read_text()
    with closing(sqlite3.connect(tmp_path / "home" / "mlflow.db")) as database:
        rows = database.execute("select value from tags where key = 'maskmill.run'").fetchall()
    assert rows == [(run,)]
