"""How training processes are started and how they end: words, statuses, signals. pytest tests/tasks/test_launch.py"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tasks import elastic, launch
from tasks.errors import InterruptedRun, MaskmillError
from tests.tasks.test_pretrain import TINY, at_step, trained

ROOT = Path(__file__).parents[2]
PLAIN = {"threads": 1, "nodes": "1", "device": "cpu"}


def test_a_signal_that_comes_before_anyone_can_hear_it_is_an_interruption(tmp_path):
    for number in launch_signals():
        assert isinstance(launch.error_of(-number, None), InterruptedRun)
    with pytest.raises(MaskmillError) as raised:
        launch.outcome(tmp_path, 1)
    assert raised.value.exit_code == 1
    (tmp_path / launch.STOP).touch()
    with pytest.raises(InterruptedRun, match="stopped by a signal while it started"):
        launch.outcome(tmp_path, 1)
    (tmp_path / launch.OUTCOME).write_text(json.dumps({"status": 65, "message": "damaged"}))
    with pytest.raises(MaskmillError, match="damaged"):
        launch.outcome(tmp_path, 1)


def launch_signals():
    return (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def test_what_a_cluster_says_of_ranks_is_not_taken_for_ours(monkeypatch):
    theirs = "WORLD_SIZE RANK LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT TORCHELASTIC_RUN_ID PET_NNODES"
    for name in theirs.split():
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    found = launch.environment(PLAIN)
    assert not set(theirs.split()) & set(found) and found["NCCL_DEBUG"] == "INFO"


def test_a_signal_to_every_process_of_a_job_is_one_signal(monkeypatch):
    now = iter([0.0, 0.1, 1.5, 3.0])
    monkeypatch.setattr(elastic, "_since", [])
    monkeypatch.setattr(elastic.time, "monotonic", lambda: next(now))
    assert [elastic.again() for _ in range(4)] == [False, True, True, False]


def test_processes_whose_parent_is_not_there_do_not_begin(tmp_path):
    code = "import sys; from tasks import elastic; sys.exit(3 if elastic.bind_to_parent() else 4)"
    for parent, status in ((os.getpid(), 3), (1 << 30, 4)):
        environment = launch.environment(PLAIN) | {launch.PARENT: str(parent)}
        assert subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT).returncode == status


def test_a_signal_to_the_whole_group_leaves_a_checkpoint(tmp_path):
    def stop(child):
        child.terminate()
        os.kill(os.getpid(), signal.SIGTERM)  # and we hand it on: the trainer gets it twice

    with pytest.raises(InterruptedRun, match="stopped by SIGTERM after step"):
        trained(tmp_path, replace(TINY, steps=100_000), at_step(6, stop))


@pytest.mark.slow
@pytest.mark.parametrize("devices", ["1", "2"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
@pytest.mark.parametrize("seconds", [0.1, 2.0, 5.0])
def test_a_signal_while_it_starts_is_an_interruption(tmp_path, devices, number, seconds):
    config = replace(TINY, steps=100_000, devices=devices)
    timer = threading.Timer(seconds, os.kill, (os.getpid(), number))
    began = time.monotonic()
    started = subprocess.Popen

    def popen(*arguments, **keywords):
        process = started(*arguments, **keywords)
        if any("tasks." in str(word) for word in arguments[0]):
            timer.start()
        return process

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", popen)
        with pytest.raises(InterruptedRun, match=r"pretrain: .*run .*again|same command"):
            trained(tmp_path, config)
    assert time.monotonic() - began < 60
