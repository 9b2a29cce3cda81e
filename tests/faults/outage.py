"""A home with a small corpus, the command that is disturbed, and what has to be true when it is run again.

The servers are real: Prefect's own and, where a trial asks for it, MLflow's with a database of its own. They and the
run are processes; none of them outlives this one.
"""

import atexit
import ctypes
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

from flows import environment, ui
from flows.ledger import STAGES
from tasks.artifacts import load, verify
from tests.faults.trial import Failed

ROOT = Path(__file__).parents[2]
STEPS = 60
SETTINGS = (f"pretrain.steps={STEPS}", "pretrain.log_every=1", "pretrain.checkpoint_every=20")
DOCUMENTED = {0, 69, 75}
"""How a run may end whose server went away; 2 where it was away before it began."""
QUICK = """
import sys
from flows import environment
environment.settle(environment.home())  # before Prefect is imported, which reads it
from flows import faults
faults.RETRIES["retry_delay_seconds"] = [1.0, 1.0, 1.0, 1.0]
from flows.cli import main
sys.argv[0] = "maskmill"
main()
"""
"""The command line with short pauses before a stage is tried again: it is looked at that it is, and how it ends."""
LONG = ("-m", "flows.cli")
BOUND = 600.0
"""Seconds that a disturbed run may take: half a minute of its own, the rest for servers that do not answer, and for a
machine that does something else."""
HANGING = 1500.0
"""The same where a server takes connections and never answers: each question costs a client some minutes."""


def clean(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment without what other servers put there."""
    strange = ("MLFLOW_", "PREFECT_", "MASKMILL_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(strange)}
    return (
        kept | {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "OMP_NUM_THREADS": "1"} | dict(more or {})
    )


def prefect(folder: Path, port: int) -> ui.Server:
    """Prefect's server with its database in the folder."""
    with patch.dict(os.environ, clean({"PREFECT_HOME": str(folder / "prefect")}), clear=True):
        environment.settle(folder)
        return ui.start_prefect(folder, port).wait()


def mlflow(folder: Path, port: int) -> ui.Server:
    """MLflow's server with database and artifacts in the folder."""
    folder.mkdir(exist_ok=True)
    with patch.dict(os.environ, clean(), clear=True):
        return ui.start_mlflow(folder, port).wait()


@cache
def calm_prefect() -> str:
    """The API of a Prefect server that nobody disturbs, one for all trials of this process."""
    folder = Path(tempfile.mkdtemp(prefix="maskmill-prefect-"))
    server = prefect(folder, ui.free_port(0))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(server.stop)  # first
    return server.address + "/api"


def write_texts(folder: Path) -> Path:
    folder.mkdir()
    for number in range(120):
        words = [f"word{(number * 7 + at * at) % 31} of the {at % 5} files" for at in range(12)]
        (folder / f"{number}.txt").write_text(" ".join(words) + f" and text {number}.")
    return folder


@cache
def undisturbed() -> dict[str, str]:
    """Stage -> digest of its artifact, of a run that nothing happened to."""
    with tempfile.TemporaryDirectory() as folder:
        stand = Stand(Path(folder), calm_prefect())
        stand.whole()
        return stand.digests()


class Run:
    """The command, under way."""

    def __init__(self, stand: "Stand", words: tuple[str, ...], preexec: Callable[[], Any] | None) -> None:
        self.stand, self.began = stand, time.monotonic()
        self.log = stand.folder / f"run-{time.monotonic_ns()}.log"
        command = [sys.executable, *words, "run", "tiny", "--source", str(stand.texts)]
        command += [word for setting in SETTINGS for word in ("--set", setting)]

        def before() -> None:
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)
            if preexec:
                preexec()

        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=stand.variables,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=before,
            )

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def reaches(self, stage: str, moment: float) -> None:
        """Returns so many seconds after the stage began."""
        while stage not in self.stand.entry().get("stages", {}):
            if self.process.poll() is not None:
                raise AssertionError(f"it ended before {stage}: {self.said}")
            time.sleep(0.002)
        time.sleep(moment)

    def ends(self, allowed: set[int], seconds: float = BOUND) -> int:
        """The exit status: one of these, with one sentence, in time."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise Failed("hang", f"it did not end in {seconds:.0f} s: {self.said}") from None
        if status not in allowed:
            raise Failed("undocumented", f"exit status {status}: {self.said}")
        if wrong := re.search(r"Traceback|Internal error|Service '\w+' failed|Error logging to API", self.said):
            raise Failed("undocumented", f"status {status}, {wrong[0]}: {self.said}")
        if status and not re.search(r"(?m)^Error: .{20,}$|^Stopped|the same command goes on", self.said):
            raise Failed("undocumented", f"status {status} without a sentence: {self.said}")
        return status

    def stopped(self) -> None:
        """Whatever came of the trial, nothing of it stays."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Stand:
    """A home below the folder, and the addresses that a run in it is given."""

    def __init__(self, folder: Path, api: str, tracking: str = "", database: Path | None = None) -> None:
        """
        tracking    address of MLflow's server; "" for the database in the home
        database    where MLflow keeps its rows
        """
        self.folder, self.home, self.texts = folder, folder / "home", folder / "texts"
        self.database = database or self.home / "mlflow.db"
        if not self.texts.exists():
            write_texts(self.texts)
        self.variables = clean({"MASKMILL_HOME": str(self.home), "PREFECT_API_URL": api})
        if tracking:
            self.variables["MLFLOW_TRACKING_URI"] = tracking

    def run(self, words: tuple[str, ...] = ("-c", QUICK), preexec: Callable[[], Any] | None = None) -> Run:
        return Run(self, words, preexec)

    def entry(self) -> dict[str, Any]:
        """What the ledger has of the last run; {} as long as there is none."""
        paths = sorted((self.home / "runs").glob("*.json"))
        with suppress(ValueError, OSError, IndexError):
            return json.loads(paths[-1].read_bytes())
        return {}

    def whole(self) -> float:
        """The same command, undisturbed, and all that has to be true then. Seconds of work that were done again."""
        before = self.entry().get("stages", {})
        run = self.run(LONG)
        run.ends({0})
        now = self.entry()["stages"]
        again = [name for name, one in before.items() if one["state"] == "made" and now[name]["state"] == "made"]
        if again:
            raise Failed("lost", f"{again} were finished and are made again")
        if litter := [path for path in self.home.rglob("*.tmp*") if path.is_file()]:
            raise Failed("litter", f"{litter}")
        self._check_mlflow()
        return sum(before[name].get("seconds", 0.0) for name in again)

    def digests(self) -> dict[str, str]:
        """Stage -> digest of its one artifact, every byte of which is hashed."""
        found = {}
        for stage in STAGES:
            folders = [path for path in (self.home / "store" / stage).iterdir() if not path.name.startswith(".")]
            if len(folders) != 1:
                raise Failed("different", f"{stage} has {len(folders)} artifacts")
            manifest = load(folders[0])
            if wrong := verify(manifest):
                raise Failed("silent", f"{stage}: {wrong}")
            found[stage] = manifest.digest
        return found

    def recovers(self) -> float:
        """The same command again, and its artifacts are those of an undisturbed run. Seconds done again."""
        lost = self.whole()
        if (found := self.digests()) != undisturbed():
            raise Failed("different", f"{[stage for stage in STAGES if found[stage] != undisturbed()[stage]]}")
        return lost

    def _check_mlflow(self) -> None:
        """One version; the whole curve, no step twice; nothing left to be told."""
        versions, curves = self.registry()
        if versions != [("tiny", 1, "READY")]:
            raise Failed("different", f"versions {versions}")
        if sum(steps == list(range(1, STEPS + 1)) for steps in curves) < 1:
            raise Failed("different", f"no curve is whole: {curves}")
        if any(len(set(steps)) < len(steps) for steps in curves):
            raise Failed("different", f"a step is there twice: {curves}")
        if left := list((self.home / "outbox").iterdir()):
            raise Failed("lost", f"MLflow was not told {[path.read_text()[-2000:] for path in left]}")

    def registry(self) -> tuple[list[tuple[str, int, str]], list[list[int]]]:
        """Versions, and the steps of each training's loss."""
        with sqlite3.connect(f"file:{self.database}?mode=ro", uri=True) as database:
            versions = database.execute("SELECT name, version, status FROM model_versions").fetchall()
            rows = database.execute(
                "SELECT m.run_uuid, m.step FROM metrics m JOIN tags t ON t.run_uuid = m.run_uuid AND t.key = 'stage' "
                "WHERE t.value = 'pretrain' AND m.key = 'train/loss' ORDER BY m.run_uuid, m.step"
            ).fetchall()
        curves: dict[str, list[int]] = {}
        for run, step in rows:
            curves.setdefault(run, []).append(step)
        return versions, list(curves.values())
