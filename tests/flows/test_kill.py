"""kill -9 of the whole process group in each stage, then the same command: the artifacts of an undisturbed run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.ledger import STAGES
from tasks.artifacts import load, verify

ROOT = Path(__file__).parents[2]
BOOKS = ROOT.parent / "shared" / "data" / "corpus" / "speeches"
SIGNS = {stage: f"{stage}/.*.partial" for stage in STAGES} | {"pretrain": "pretrain/.*.partial/.scratch/checkpoints/*"}
"""What is on the disk, below the store, once a stage is at work: for pretrain its first checkpoint."""


class Runner:
    def __init__(self, home: Path, source: Path, api: str) -> None:
        self.home = home
        self.words = [sys.executable, "-m", "flows.cli", "run", "tiny", "--source", str(source)]
        self.environment = os.environ | {"MASKMILL_HOME": str(home), "PREFECT_API_URL": api}

    def whole(self) -> dict[str, str]:
        """Runs to the end. Stage -> digest of its artifact."""
        done = subprocess.run(self.words, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        digests = {}
        for stage in STAGES:
            (folder,) = (path for path in (self.home / "store" / stage).iterdir() if not path.name.startswith("."))
            manifest = load(folder)
            assert verify(manifest) == []
            digests[stage] = manifest.digest
        return digests

    def killed_in(self, stage: str) -> None:
        """Runs until the stage has begun, and kills the process group."""
        run = subprocess.Popen(
            self.words, cwd=ROOT, env=self.environment, start_new_session=True, stderr=subprocess.DEVNULL
        )
        while not list((self.home / "store").glob(SIGNS[stage])):
            assert run.poll() is None, f"the run ended before {stage} began"
            time.sleep(0.001)
        time.sleep(0.02)
        os.killpg(run.pid, signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not BOOKS.exists():
        pytest.skip(f"the speeches are not at {BOOKS}")
    folder = tmp_path_factory.mktemp("texts")
    for path in sorted(BOOKS.rglob("*.txt"))[:12]:
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, texts: Path, prefect_server: str) -> dict[str, str]:
    return Runner(tmp_path_factory.mktemp("undisturbed"), texts, prefect_server).whole()


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_the_same_command_after_a_kill_ends_in_the_same_artifacts(
    stage: str, tmp_path: Path, texts: Path, undisturbed: dict[str, str], prefect_server: str
) -> None:
    runner = Runner(tmp_path, texts, prefect_server)
    runner.killed_in(stage)
    assert runner.whole() == undisturbed
    assert not list((tmp_path / "store").rglob("*.tmp")), "litter"
    words = [sys.executable, "-m", "flows.cli", "runs", "--json"]
    listed = subprocess.run(words, cwd=ROOT, env=runner.environment, capture_output=True, text=True, check=True)
    newest, killed = json.loads(listed.stdout)
    assert newest["state"] == "completed" and killed["state"] == "crashed" and killed["stage"] == stage, (
        newest,
        killed,
    )
