"""A home with MLflow's tables, what is told to it and what is found there. Shared by several test modules."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tasks import sender, tracking

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def prompt():
    """Nobody waits, neither for MLflow nor for the delivery."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        patch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
        patch.setattr(sender, "EVERY", 0.02)
        yield


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """A database with MLflow's tables and nothing in them: making it takes seconds."""
    home = tmp_path_factory.mktemp("tables")
    tracking.connect(home)
    return tracking.database(home)


@pytest.fixture
def home(tmp_path, tables):
    (tmp_path / "home").mkdir()
    shutil.copyfile(tables, tracking.database(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def client(home):
    """Reads the database itself, also while no server does."""
    return tracking.connect(home)


def points(first, last, at=0):
    return [
        {"step": step, "timestamp_ms": 1_700_000_000_000 + step + at, "metrics": {"train/loss": 5 - step / 100}}
        for step in range(first, last)
    ]


def stage_run(client, run, stage="pretrain"):
    """The only MLflow run of a stage of a run."""
    experiments = [one.experiment_id for one in client.search_experiments()]
    (parent,) = client.search_runs(experiments, f"tags.`maskmill.run` = '{run}'")
    query = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}' and tags.stage = '{stage}'"
    (found,) = client.search_runs(experiments, query)
    return found


def history(client, run):
    """Steps of the loss, in their order."""
    found = client.get_metric_history(stage_run(client, run).info.run_id, "train/loss")
    return sorted(point.step for point in found)


def left(home):
    """Names of what lies in the outbox."""
    return sorted(path.name for path in (home / "outbox").iterdir())


DYING = """
import os, signal, sys
from pathlib import Path
from tasks import outbox, sender, tracking
from tests.tasks.mlflow_home import points

home, last, at, acknowledgements, run = Path(sys.argv[1]), *map(int, sys.argv[2:5]), sys.argv[5]
acknowledge = outbox.Outbox.acknowledge

def dying(self, lines):
    global acknowledgements
    acknowledgements -= 1
    if acknowledgements < 0:
        os.kill(os.getpid(), signal.SIGKILL)  # MLflow has it, and nobody remembers
    acknowledge(self, lines)

outbox.Outbox.acknowledge = dying
sender.EVERY = 0.02
tracker = tracking.Tracker(home, "told", run, "tiny")
with tracker.stage("pretrain") as stage:
    for step in range(1, last):
        stage.ship(points(step, step + 1, at))
        tracker.flush(60)
os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(home, last, at, acknowledgements, run="run-7"):
    """A process that tells steps up to `last`, and dies, at the latest before it says how the run ended."""
    words = [sys.executable, "-c", DYING, str(home), *map(str, (last, at, acknowledgements)), run]
    assert subprocess.run(words, cwd=ROOT, check=False).returncode == -signal.SIGKILL
