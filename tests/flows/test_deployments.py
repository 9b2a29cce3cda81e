"""Schedules from the file to finished runs: a real server, a real worker, kill -9, and the three ways to run again."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from flows import deployments, ui
from tasks.errors import UsageError

ROOT = Path(__file__).parents[2]
STAGES = ["corpus", "vocabulary", "shards", "pretrain", "evaluate", "register"]
DATA, TRAINING, NEWS = (
    "maskmill-data/nightly-data",
    "maskmill/weekly-pretraining",
    "maskmill-examine/champion-on-new-data",
)
GOOD = """
deployments:
  - name: mine
    entrypoint: flows/mlm.py:maskmill
    parameters: {recipe: tiny}
    work_pool: {name: maskmill}
"""


def test_the_file_that_comes_with_maskmill_is_right() -> None:
    listed = deployments.check(deployments.FILE)
    assert [one["name"] for one in listed] == [name.split("/")[1] for name in (DATA, TRAINING, NEWS)]
    for one in listed:
        assert one["schedules"][0]["timezone"] and one["concurrency_limit"]["collision_strategy"] and one["tags"]


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("deployments:", "deployment:", "`deployments` must be a list"),
        ("  - name: mine\n    entrypoint", "  - entrypoint", "deployment 1: `name` is missing"),
        ("flows/mlm.py", "flows/mlmm.py", "deployment mine: entrypoint flows/mlmm.py:maskmill is no FILE:FLOW"),
        ("recipe: tiny", "recipe: tinny", "deployment mine: There is no recipe 'tinny'. Did you mean tiny?"),
        ("{recipe: tiny}", "{recipe: tiny, set: [pretrain.stepz=3]}", "deployment mine: --set pretrain.stepz=3"),
        ("name: mine", "name: [", "is not YAML"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(before: str, after: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "prefect.yaml").write_text(GOOD)
    assert deployments.check(tmp_path / "prefect.yaml")
    (tmp_path / "prefect.yaml").write_text(GOOD.replace(before, after))
    with pytest.raises(UsageError) as error:
        deployments.check(tmp_path / "prefect.yaml")
    assert words in str(error.value) and str(tmp_path / "prefect.yaml") in str(error.value)


def until(what: Callable[[], Any], seconds: float) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.2)
    return found


class House:
    """A home folder, a server, and its worker."""

    def __init__(self, folder: Path, api: str) -> None:
        self.folder, self.home, self.api = folder, folder / "home", api
        (folder / "texts").mkdir()
        for number in range(60):
            text = " ".join(f"the {one} sat on the {number % 7} mats" for one in ("cat", "dog", "rat", "hen"))
            (folder / "texts" / f"{number}.txt").write_text(f"{text} number {number}. " * 6)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
        self.environment = kept | {"MASKMILL_HOME": str(self.home), "PREFECT_API_URL": api}
        self.environment |= {"PREFECT_WORKER_QUERY_SECONDS": "2", "PREFECT_WORKER_PREFETCH_SECONDS": "2"}
        self.worker: subprocess.Popen[bytes] | None = None

    def maskmill(self, *words: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "flows.cli", *words]
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def start_worker(self) -> None:
        command = [sys.executable, "-m", "flows.cli", "worker"]
        with open(self.folder / "worker.log", "ab") as log:
            self.worker = subprocess.Popen(
                command, cwd=ROOT, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def kill_worker(self) -> None:
        """The worker, and what it started, as a power cut would."""
        if self.worker:
            os.killpg(self.worker.pid, signal.SIGKILL)
            for pid in self._runs():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.worker.wait()
            self.worker = None

    def _runs(self) -> list[int]:
        entries = [json.loads(path.read_bytes()) for path in (self.home / "runs").glob("*.json")]
        return [int(entry["id"].rsplit("-", 1)[1]) for entry in entries if entry["state"] == "running"]

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """As the UI does, which brings along a token for each request that changes something."""
        headers = {"Content-Type": "application/json"}
        if body is not None:
            token = self.ask("csrf-token?client=test")["token"]
            headers |= {"Prefect-Csrf-Token": token, "Prefect-Csrf-Client": "test"}
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{self.api}/{path}", data, headers), timeout=30) as reply:
            return json.load(reply)

    def begin(self, deployment: str, *settings: str) -> str:
        flow, name = deployment.split("/")
        known = self.ask(f"deployments/name/{flow}/{name}")
        parameters = {"recipe": "tiny", "source": [str(self.folder / "texts")], "set": list(settings)}
        return self.ask(f"deployments/{known['id']}/create_flow_run", {"parameters": parameters})["id"]

    def state(self, run: str) -> str:
        return self.ask(f"flow_runs/{run}")["state_type"]

    def ends(self, run: str) -> str:
        """How the run ends."""
        until(lambda: self.state(run) in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"), 240)
        return self.state(run)

    def dies_in_training(self, run: str) -> None:
        """kill -9 of the process of the run once a checkpoint is there."""
        begun = "pretrain/.*.partial/.scratch/checkpoints/*"
        until(lambda: self._runs() and list((self.home / "store").glob(begun)), 240)
        os.kill(self._runs()[0], signal.SIGKILL)

    def stages(self, run: str) -> dict[str, str]:
        """What the last attempt of a run did."""
        entries = [json.loads(path.read_bytes()) for path in sorted((self.home / "runs").glob("*.json"))]
        entry = [one for one in entries if one["flow_run_id"] == run][-1]
        return {name: stage["state"] for name, stage in entry["stages"].items()}


@pytest.fixture(scope="module")
def whole_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with its services, as `maskmill ui` starts it: they take back the slots of processes that died."""
    folder = tmp_path_factory.mktemp("server")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("PREFECT_")]:
            patch.delenv(name)
        patch.setenv("PREFECT_HOME", str(folder / "prefect"))
        server = ui.start_prefect(folder, ui.free_port(0))
    try:
        yield server.wait().address + "/api"
    finally:
        server.stop()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, whole_server: str) -> Iterator[House]:
    house = House(tmp_path_factory.mktemp("house"), whole_server)
    shown = house.maskmill("deploy")
    assert all(f"deployed      {name.split('/')[1]}" in shown for name in (DATA, TRAINING, NEWS))
    house.start_worker()
    try:
        yield house
    finally:
        house.kill_worker()


LONG = ("pretrain.steps=600", "pretrain.checkpoint_every=20")


@pytest.mark.slow
def test_deploying_again_changes_nothing(house: House) -> None:
    before = house.ask("deployments/filter", {})
    assert json.loads(house.maskmill("deploy", "--json"))["automations"] == ["maskmill-zombies"]
    after = house.ask("deployments/filter", {})
    assert {one["id"] for one in before} == {one["id"] for one in after}
    automations = house.ask("automations/filter", {})
    assert [one["name"] for one in automations].count("maskmill-zombies") == 1


@pytest.mark.slow
def test_the_form_says_what_each_parameter_means(house: House) -> None:
    schema = house.ask(f"deployments/name/{TRAINING}")["parameter_openapi_schema"]["properties"]
    assert all(schema[name].get("description") for name in ("recipe", "source", "set", "force_from", "wait"))
    assert set(STAGES) <= set(json.dumps(schema["force_from"]).split('"'))


@pytest.mark.slow
def test_data_first_then_a_training_that_dies_and_the_retry_button(house: House) -> None:
    assert house.ends(data := house.begin(DATA, *LONG)) == "COMPLETED"
    assert house.stages(data) == dict.fromkeys(STAGES[:3], "made")
    run = house.begin(TRAINING, *LONG)
    house.dies_in_training(run)
    assert house.ends(run) == "CRASHED"
    time.sleep(30)  # a worker says a second time that the run crashed, some 8 s later, more on a busy machine
    house.ask(f"flow_runs/{run}/set_state", {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}})
    until(lambda: house.state(run) != "CRASHED", 30)
    assert house.ends(run) == "COMPLETED", (house.folder / "worker.log").read_text()[-4000:]
    assert house.stages(run) == dict.fromkeys(STAGES[:3], "reused") | dict.fromkeys(STAGES[3:], "made")


@pytest.mark.slow
def test_rerun_from_a_stage_and_the_champion_on_new_data(house: House) -> None:
    run = house.begin(TRAINING)
    assert house.ends(run) == "COMPLETED"
    shown = house.maskmill("rerun", run[:13], "--from", "evaluate")
    assert "a new run from evaluate on" in shown
    newest = until(
        lambda: [
            one
            for one in house.ask("flow_runs/filter", {"sort": "EXPECTED_START_TIME_DESC"})
            if one["parameters"].get("force_from")
        ],
        30,
    )
    assert house.ends(newest[0]["id"]) == "COMPLETED"
    assert list(house.stages(newest[0]["id"]).values()) == ["reused"] * 4 + ["made"] * 2
    (house.folder / "texts" / "new.txt").write_text("the cow sat on the old mats and the pig on the new ones. " * 20)
    news = house.begin(NEWS)
    assert house.ends(news) == "COMPLETED", (house.folder / "worker.log").read_text()[-2000:]
    assert list(house.stages(news)) == ["corpus", "shards", "evaluate"]


@pytest.mark.slow
def test_after_a_power_cut_the_doctor_sends_the_run_back_and_a_new_worker_ends_it(house: House) -> None:
    run = house.begin(TRAINING, *LONG, "pretrain.seed=1")
    begun = "pretrain/.*.partial/.scratch/checkpoints/*"
    until(lambda: house._runs() and list((house.home / "store").glob(begun)), 240)
    house.kill_worker()
    assert house.state(run) == "RUNNING"
    (found,) = [one for one in json.loads(house.maskmill("doctor", "--json")) if one["run"] == run]
    assert found["mended"] and "its process died in pretrain" in found["what"]
    assert house.state(run) == "CRASHED"
    assert "goes back to the queue" in house.maskmill("rerun", run[:13])
    house.start_worker()
    until(lambda: house.state(run) == "RUNNING", 120)
    assert house.ends(run) == "COMPLETED"
    assert house.stages(run)["pretrain"] == "made"
