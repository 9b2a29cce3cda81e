"""A worker that is stopped: its runs hear of it first, once each, and end in their own time."""

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from flows import worker

RUN = "trap 'echo told >> {told}; sleep {seconds}; exit' TERM; echo > {ready}; while :; do sleep 0.02; done"


@pytest.fixture
def started(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[int]:
    """A process with a run of its own, which takes so many seconds to end; its id."""
    run = RUN.format(told=tmp_path / "told", ready=tmp_path / "ready", seconds=request.param)
    process = subprocess.Popen(["bash", "-c", 'bash -c "$1" & wait', "worker", run], start_new_session=True)
    while not (tmp_path / "ready").exists():
        time.sleep(0.02)
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    try:
        yield process.pid
    finally:
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


@pytest.mark.parametrize("started", [0.5], indirect=True)
def test_a_run_is_told_once_and_waited_for(started: int, tmp_path: Path) -> None:
    worker._end_runs(started, [15])
    assert (tmp_path / "told").read_text() == "told\n"


@pytest.mark.parametrize("started", [30], indirect=True)
def test_a_second_signal_ends_the_wait(started: int, tmp_path: Path) -> None:
    signals = [15]
    threading.Timer(0.5, signals.append, [15]).start()
    begun = time.monotonic()
    worker._end_runs(started, signals)
    assert time.monotonic() - begun < 10
