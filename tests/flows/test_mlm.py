"""The whole flow on a few texts, against a real Prefect server and the embedded registry."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
STAGES = ["corpus", "vocabulary", "shards", "pretrain", "evaluate", "register"]
Run = subprocess.CompletedProcess[str]


class Mill:
    def __init__(self, folder: Path, api: str) -> None:
        self.folder, self.home, self.api = folder, folder / "home", api
        (folder / "texts").mkdir()
        for number in range(200):
            words = [f"word{(number * 7 + at * at) % 31} of the {at % 5} files" for at in range(12)]
            (folder / "texts" / f"{number}.txt").write_text(" ".join(words) + f" and text {number}.")

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
        return kept | {"MASKMILL_HOME": str(self.home), "PREFECT_API_URL": self.api}

    def __call__(self, *arguments: str) -> Run:
        words = [sys.executable, "-m", "flows.cli", *arguments]
        return subprocess.run(words, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False)

    def dies_in_training(self) -> None:
        """kill -9 of a run and all its processes, once there is a checkpoint."""
        words = [sys.executable, "-m", "flows.cli", "run", "tiny", "--source", str(self.folder / "texts")]
        run = subprocess.Popen(words, cwd=ROOT, env=self.environment, start_new_session=True, stderr=subprocess.DEVNULL)
        while not list((self.home / "store").glob("pretrain/.*.partial/.scratch/checkpoints/*")):
            assert run.poll() is None, "the run ended before its training"
            time.sleep(0.001)
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()

    def run(self, *arguments: str, code: int = 0) -> Run:
        done = self("run", "tiny", "--source", str(self.folder / "texts"), *arguments)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def last(self) -> dict[str, Any]:
        entry: dict[str, Any] = json.loads(self("runs", "--json").stdout)[0]
        return entry

    def in_mlflow(self, what: str) -> set[str]:
        """Names of the metrics or the datasets of the run above the stages' runs; stages and tags of all of them."""
        parent = "NOT IN (SELECT run_uuid FROM tags WHERE key = 'mlflow.parentRunId')"
        queries = {
            "metrics": f"SELECT key FROM latest_metrics WHERE run_uuid {parent}",
            "stages": "SELECT value FROM tags WHERE key = 'stage'",
            "lineage": "SELECT key || ' ' || value FROM model_version_tags",
            "inputs": "SELECT name FROM datasets JOIN inputs ON source_id = dataset_uuid "
            f"WHERE destination_type = 'RUN' AND destination_id {parent}",
        }
        with sqlite3.connect(f"file:{self.home / 'mlflow.db'}?mode=ro", uri=True) as database:
            return {name for (name,) in database.execute(queries[what])}

    def tasks_of(self, flow_run: str) -> dict[str, str]:
        """Name of each task run -> name of its state, as the Prefect server has them."""
        body = json.dumps({"flow_runs": {"id": {"any_": [flow_run]}}}).encode()
        request = urllib.request.Request(f"{self.api}/task_runs/filter", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as reply:
            return {task["name"]: task["state_name"] for task in json.load(reply)}

    def progress_of(self, flow_run: str) -> list[float]:
        """Per cent in the progress artifacts of a flow run."""
        body = json.dumps({"artifacts": {"flow_run_id": {"any_": [flow_run]}, "type": {"any_": ["progress"]}}}).encode()
        request = urllib.request.Request(f"{self.api}/artifacts/filter", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as reply:
            return [artifact["data"] for artifact in json.load(reply)]


@pytest.fixture(scope="module")
def mill(tmp_path_factory: pytest.TempPathFactory, prefect_server: str) -> Mill:
    return Mill(tmp_path_factory.mktemp("mill"), prefect_server)


def test_from_text_over_a_killed_training_to_a_registered_model_and_again(mill: Mill) -> None:
    mill.dies_in_training()
    first = mill.run()
    for words in ("unigram", "untrained", "Registered    tiny version 1", "The [MASK] of the file."):
        assert words in first.stdout
    assert max(map(len, first.stdout.splitlines()[:16])) <= 80
    assert "Traceback" not in first.stderr and "CancelledError" not in first.stderr
    assert [it["state"] for it in mill.last()["stages"].values()] == ["reused"] * 3 + ["made"] * 3
    assert list(mill.last()["stages"]) == STAGES
    assert mill.last()["stages"]["pretrain"]["why"] == "an interrupted run left finished work"
    tasks = mill.tasks_of(mill.last()["flow_run_id"])
    assert tasks == dict.fromkeys(STAGES[:3], "Reused") | dict.fromkeys(STAGES[3:], "Completed")
    assert mill.progress_of(mill.last()["flow_run_id"]) == [100.0]
    assert not list((mill.home / "outbox").iterdir())

    scores, inputs = mill.in_mlflow("metrics"), mill.in_mlflow("inputs")
    assert {"test/rate_0.3/masked_cross_entropy", "baseline_unigram/rate_0.15/top5_accuracy"} <= scores
    assert inputs == {"corpus", "vocabulary", "shards"}

    again = mill.run()
    assert "Registered    tiny version 1" in again.stdout
    assert [it["state"] for it in mill.last()["stages"].values()] == ["reused"] * 6
    assert mill.tasks_of(mill.last()["flow_run_id"]) == dict.fromkeys(STAGES, "Reused")

    plan = json.loads(mill("plan", "tiny", "--source", str(mill.folder / "texts"), "--json").stdout)
    assert [it["action"] for it in plan] == ["reuse"] * 6
    assert mill("verify").returncode == 0


@pytest.mark.slow
def test_shorter_rows_are_shards_of_their_own_in_all_that_is_told(mill: Mill) -> None:
    mill.run()
    lengths = ["--set", "pretrain.lengths={lengths: [16], at: [0.5]}"]
    parts = [*STAGES[:3], "shards 16", *STAGES[3:]]
    first = mill.run(*lengths)
    assert "shards 16   made in" in first.stderr and "Traceback" not in first.stderr
    stages = mill.last()["stages"]
    assert [(name, it["state"]) for name, it in stages.items()] == list(
        zip(parts, ["reused"] * 3 + ["made"] * 4, strict=True)
    )
    assert stages["shards 16"]["why"] == "not made yet"
    tasks = mill.tasks_of(mill.last()["flow_run_id"])
    assert tasks == dict.fromkeys(parts[:3], "Reused") | dict.fromkeys(parts[3:], "Completed")
    assert set(parts) <= mill.in_mlflow("stages")
    assert f"shards_16 {stages['shards 16']['digest']}" in mill.in_mlflow("lineage")

    plan = json.loads(mill("plan", "tiny", "--source", str(mill.folder / "texts"), *lengths, "--json").stdout)
    assert [(it["stage"], it["action"]) for it in plan] == [(name, "reuse") for name in parts]
    mill.run(*lengths)
    assert [it["state"] for it in mill.last()["stages"].values()] == ["reused"] * 7
    again = mill.run(*lengths, "--from", "shards")
    assert [it["state"] for it in mill.last()["stages"].values()] == ["reused"] * 2 + ["made"] * 5
    assert [it["digest"] for it in mill.last()["stages"].values()][:5] == [it["digest"] for it in stages.values()][:5]
    assert "shards 16   run: forced by --from" in again.stderr
    assert mill("verify").returncode == 0


@pytest.mark.slow
def test_a_changed_setting_remakes_what_depends_on_it_and_only_that(mill: Mill) -> None:
    mill.run()
    mill.run("--set", "pretrain.steps=21")
    assert [it["state"] for it in mill.last()["stages"].values()] == ["reused"] * 3 + ["made"] * 3
    assert mill.last()["stages"]["pretrain"]["why"] == "pretrain.steps changed: 20 → 21"
    mill.run("--from", "evaluate")
    assert [it["state"] for it in mill.last()["stages"].values()] == ["reused"] * 4 + ["made"] * 2

    traced = json.loads(mill("lineage", "tiny", "--verify", "--json").stdout)
    assert traced["verdict"] == "whole" and len(traced["artifacts"]) >= 6
    files = traced["artifacts"][-1]["origins"][0]["files"]
    assert len(files) == 200 and {file["state"] for file in files} == {"there"}
    spare = json.loads(mill("gc", "--keep-days", "0", "--json").stdout)["spare"]
    assert {one["stage"] for one in spare} <= {"packs", "evaluate", "register"}  # both trainings are registered


@pytest.mark.slow
def test_an_error_keeps_its_exit_status_through_prefect(mill: Mill) -> None:
    done = mill.run("--set", "evaluate.sentences=['" + "a " * 200 + "[MASK]']", code=2)
    assert done.stderr.splitlines()[-1].startswith("Error: evaluate.sentences: ")
    assert "Traceback" not in done.stderr
    entry = mill.last()
    assert (entry["state"], entry["stage"], entry["exit_code"]) == ("failed", "evaluate", 2)


@pytest.mark.slow
def test_the_flow_loads_by_file_as_a_prefect_deployment_does(mill: Mill) -> None:
    program = """
from prefect.flows import load_flow_from_entrypoint
flow = load_flow_from_entrypoint("flows/mlm.py:maskmill")
schema = flow.to_deployment  # noqa
from prefect.utilities.callables import parameter_schema
fields = parameter_schema(flow.fn).properties
assert all(field.get("description") for field in fields.values()), fields
assert "pretrain" in str(fields["force_from"])
"""
    environment = os.environ | {"MASKMILL_HOME": str(mill.home)}
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, check=True)
