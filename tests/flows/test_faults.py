"""What Prefect tries again and what it stops: the task of a stage, as the flow makes it, against a real server."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.states import Failed

from flows import cli, faults, recipes
from tasks.errors import DataError, DiskFullError, NumericError, StageTimeout, UnreachableError, UsageError

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys, time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

from flows import chain, faults, mlm, recipes
from tasks import errors

faults.RETRIES["retry_delay_seconds"] = [0.01]
kind, seen, minutes = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])

def corpus_stage(config, store):
    with seen.open("a") as file:
        file.write(".")
    if kind == "slow":
        time.sleep(60)
    if seen.stat().st_size < 3:
        raise getattr(errors, kind)("it does not work.")
    return SimpleNamespace(key="k"), False

class Mill:
    recipe = recipes.load("tiny", overrides=[f"timeouts.corpus={minutes}"])
    store = None

    @contextmanager
    def stage(self, name, config):
        yield chain.Page(name)

from prefect import flow

@flow
def one():
    mlm.stage("corpus", corpus_stage)(Mill(), None)
    return "made"

try:
    print(one())
except errors.MaskmillError as error:
    print(type(error).__name__, error)
"""


def outcome(api: str, folder: Path, kind: str, minutes: float = 0) -> tuple[str, int, float]:
    """What the stage said, how often it was tried, seconds."""
    began = time.monotonic()
    words = [sys.executable, "-c", PROGRAM, kind, str(folder / "seen"), str(minutes)]
    variables = os.environ | {"MASKMILL_HOME": str(folder / "home"), "PREFECT_API_URL": api}
    done = subprocess.run(words, cwd=ROOT, env=variables, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), len((folder / "seen").read_text()), time.monotonic() - began


@pytest.mark.slow
def test_a_server_that_is_away_is_asked_again(tmp_path: Path, prefect_server: str) -> None:
    assert outcome(prefect_server, tmp_path, "UnreachableError")[:2] == ("made", 3)


@pytest.mark.slow
def test_what_is_wrong_stays_wrong(tmp_path: Path, prefect_server: str) -> None:
    assert outcome(prefect_server, tmp_path, "DataError")[:2] == ("DataError it does not work.", 1)


@pytest.mark.slow
def test_a_stage_that_takes_too_long_is_stopped(tmp_path: Path, prefect_server: str) -> None:
    said, tries, seconds = outcome(prefect_server, tmp_path, "slow", minutes=0.02)
    assert said.startswith("StageTimeout corpus: stopped after 0.02 minutes (timeouts.corpus)")
    assert (tries, seconds < 50) == (1, True)


@pytest.mark.parametrize("error", [UsageError("x"), DataError("x"), DiskFullError("x"), NumericError("x"), OSError()])
def test_only_what_passes_by_itself_is_worth_another_try(error: Exception) -> None:
    run = SimpleNamespace(name="corpus", run_count=1)
    assert not faults.is_worth_it(None, run, Failed(data=error))
    assert faults.is_worth_it(None, run, Failed(data=UnreachableError("s3://x does not answer.")))


def test_each_pause_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    for count, seconds in ((1, 15), (2, 30), (3, 60), (4, 120)):
        faults.is_worth_it(None, SimpleNamespace(name="corpus", run_count=count), Failed(data=UnreachableError("No.")))
        assert f"corpus: No. It is tried again in about {seconds} s." in capsys.readouterr().err


def test_a_limit_is_minutes_and_none_is_for_ever() -> None:
    assert faults.limit(0) == {} and faults.limit(1.5) == {"timeout_seconds": 90}
    assert recipes.load("tiny", overrides=["timeouts.pretrain=90"]).timeouts.pretrain == 90
    with pytest.raises(UsageError, match=r"timeouts.corpus is -1; give minutes, 0 for no limit"):
        recipes.load("tiny", overrides=["timeouts.corpus=-1"])


def test_a_limit_and_a_runner_change_nothing_of_what_is_made() -> None:
    changed = recipes.load("tiny", overrides=["timeouts.pretrain=90", "runner=dask"])
    assert json.dumps(changed.settings, default=str) == json.dumps(recipes.load("tiny").settings, default=str)


def test_the_status_is_that_of_timeout() -> None:
    assert StageTimeout.exit_code == 124


@pytest.mark.parametrize(("module", "away"), [("tasks.corpus", False), ("prefect.client.orchestration", True)])
def test_an_error_is_of_who_was_called_last(module: str, away: bool) -> None:
    """What a stage raises comes through State.result, which is in Prefect's client as what the client raises is."""
    names: dict[str, Any] = {"__name__": module}
    exec("def fail(): raise ValueError('odd')", names)
    with pytest.raises(ValueError) as first:
        names["fail"]()
    with pytest.raises(ValueError) as again:
        Failed(data=first.value).result()
    assert cli._is_prefects(again.value) is away


@pytest.mark.slow
def test_what_a_stage_raises_is_not_told_as_a_server_that_is_away(tmp_path: Path, prefect_server: str) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("the cat sat on the mat")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "store").touch()
    environment = os.environ | {"MASKMILL_HOME": str(tmp_path / "home"), "PREFECT_API_URL": prefect_server}
    command = [sys.executable, "-m", "flows.cli", "run", "tiny", "--source", str(tmp_path / "texts")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert f"Error: {tmp_path / 'home' / 'store' / '.locks'}: Not a directory; set MASKMILL_HOME" in done.stderr
