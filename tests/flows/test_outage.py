"""MLflow's server dies during a training, then the run itself does; the next runs tell all of it, once."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows import ui
from tasks import tracking

ROOT = Path(__file__).parents[2]
STEPS = 1500


class Stand:
    """A home with its runs, and beside it a server with a database of its own."""

    def __init__(self, folder: Path, api: str) -> None:
        self.home, self.other = folder / "home", folder / "server"
        self.other.mkdir()
        self.port = ui.free_port(0)
        (folder / "texts").mkdir()
        for number in range(200):
            words = [f"word{(number * 7 + at * at) % 31} of the {at % 5} files" for at in range(12)]
            (folder / "texts" / f"{number}.txt").write_text(" ".join(words) + f" and text {number}.")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
        kept |= {"MASKMILL_HOME": str(self.home), "PREFECT_API_URL": api, "MLFLOW_DISABLE_TELEMETRY": "true"}
        self.environment = kept | {"MLFLOW_TRACKING_URI": f"http://{ui.HOST}:{self.port}"}
        settings = [f"pretrain.steps={STEPS}", "pretrain.log_every=1", "pretrain.checkpoint_every=100"]
        self.words = [sys.executable, "-m", "flows.cli", "run", "tiny", "--source", str(folder / "texts")]
        self.words += [word for setting in settings for word in ("--set", setting)]

    def start(self) -> None:
        self.server = ui.start_mlflow(self.other, self.port).wait()

    def kill(self) -> None:
        os.killpg(self.server.process.pid, signal.SIGKILL)
        self.server.process.wait()

    def run(self) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            self.words, cwd=ROOT, env=self.environment, start_new_session=True, stderr=subprocess.PIPE, text=True
        )

    def trained(self, run: "subprocess.Popen[str]", step: int) -> None:
        """Waits until the spool shows more than `step` lines."""
        while True:
            assert run.poll() is None, run.communicate()[1]
            for spool in self.home.glob("store/pretrain/.*.partial/measured.metrics.jsonl"):
                if spool.read_bytes().count(b"\n") > step:
                    return
            time.sleep(0.01)

    def histories(self) -> list[tuple[str, list[int]]]:
        """Status and steps of the loss of each run's pretrain, in the order of their beginning."""
        client = tracking.connect(self.other)
        experiments = [one.experiment_id for one in client.search_experiments()]
        found = client.search_runs(experiments, "tags.stage = 'pretrain'", order_by=["attributes.start_time ASC"])
        losses = [(run, client.get_metric_history(run.info.run_id, "train/loss")) for run in found]
        return [(run.info.status, sorted(point.step for point in points)) for run, points in losses]


@pytest.fixture
def stand(tmp_path: Path, prefect_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    stand = Stand(tmp_path, prefect_server)
    stand.start()
    yield stand
    stand.kill()


@pytest.mark.slow
def test_server_and_run_die_in_turn_and_all_is_told_once(stand: Stand) -> None:
    first = stand.run()
    stand.trained(first, 100)
    stand.kill()
    stand.trained(first, 350)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()

    stand.start()
    second = stand.run()  # goes on from the first one's checkpoint, and tells what is left of it
    stand.trained(second, 700)
    stand.kill()
    said = second.communicate()[1]
    assert second.returncode == 69 and "the run goes on" in said and "the next `maskmill run` delivers them" in said
    assert list((stand.home / "outbox").iterdir())

    stand.start()
    third = stand.run()
    said = third.communicate()[1]
    assert third.returncode == 0, said
    assert "pretrain    reused" in said and not list((stand.home / "outbox").iterdir())
    assert stand.histories() == [("FINISHED", list(range(1, STEPS + 1)))]  # one run, since each went on with the last
