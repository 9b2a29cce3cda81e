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
from types import SimpleNamespace

import pytest

from tasks import elastic, launch, trainer
from tasks.errors import DataError, InterruptedRun, MaskmillError
from tests.tasks.tiny_runs import TINY, at_step, trained

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


def test_what_a_failed_training_goes_on_from_is_said_when_all_ranks_have_ended(tmp_path, monkeypatch):
    """A rank that fails may be another one than the one whose checkpoint is still being written."""

    def fails(job, several):
        raise TypeError("a bug of ours")

    monkeypatch.setattr(trainer, "run", fails)
    monkeypatch.setattr(trainer.signal, "signal", lambda *_: None)
    (job := tmp_path / launch.JOB).write_text("{}")
    assert trainer.main(job) == 1
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-000000004.json").touch()
    with pytest.raises(MaskmillError, match=r"a bug of ours .*goes on from the checkpoint after step 4\.$") as raised:
        launch.outcome(tmp_path, 1)
    assert raised.value.exit_code == 1


@pytest.mark.parametrize("lost", [True, False])
def test_the_trace_of_a_failure_is_shown_where_it_is_not_that_of_another_rank(tmp_path, monkeypatch, capfd, lost):
    """A rank that is killed leaves the others in a backward pass, whose error is a plain RuntimeError."""

    def fails(job, several):
        raise RuntimeError("Connection closed by peer [127.0.0.1]:1")

    monkeypatch.setattr(trainer, "run", fails)
    monkeypatch.setattr(trainer, "_lost_peer", lambda error: lost)
    monkeypatch.setattr(trainer, "_leave_at_once", lambda status: status)
    monkeypatch.setattr(trainer.signal, "signal", lambda *_: None)
    monkeypatch.setenv(trainer.RANKS, "2")
    (job := tmp_path / launch.JOB).write_text("{}")
    assert trainer.main(job) == (InterruptedRun if lost else MaskmillError).exit_code
    assert ("Traceback" in capfd.readouterr().err) is not lost


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


def test_a_signal_that_torchrun_loses_is_heard_all_the_same(tmp_path, monkeypatch):
    clock = iter([0.0, 0.0, 0.5, 1.0, 1.0])
    monkeypatch.setattr(trainer.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(trainer, "_signals", [])
    stop = trainer.Stop(tmp_path / launch.STOP)
    assert stop() == 0
    (tmp_path / launch.STOP).write_text("10")
    assert (stop(), stop()) == (0, signal.SIGUSR1)
    monkeypatch.setattr(trainer, "_signals", [15])
    assert stop() == 15


def failures(*given):
    """(exit code, seconds, message) of each rank."""
    return [SimpleNamespace(exitcode=code, timestamp=at, message=message) for code, at, message in given]


FILE = {"message": "RuntimeError: NaN in the device\nand more"}


@pytest.mark.parametrize(
    ("given", "restarts", "status", "words"),
    [
        ([(-signal.SIGTERM, 5, ""), (-signal.SIGTERM, 5, "")], 3, 75, "stopped or lost each other"),
        ([(75, 5, ""), (-signal.SIGUSR1, 5, "")], 3, 75, "stopped or lost each other"),
        ([(75, 5, ""), (-signal.SIGKILL, 36, "")], 3, 75, "lost each other"),  # torchrun killed the one that waited
        ([(-signal.SIGKILL, 5, ""), (75, 5, "")], 3, 71, "most likely by the kernel for want of memory"),
        ([(-signal.SIGKILL, 5, ""), (75, 5, "")], 0, 75, "by hand, or by the kernel"),
        ([(75, 5, ""), (-signal.SIGSEGV, 5, "Signal 11")], 3, 1, "died of signal 11"),
        ([(1, 7, ""), (1, 5, FILE), (75, 4, "")], 3, 1, r"failed \(RuntimeError: NaN in the device\)"),
        ([(3, 7, "")], 3, 1, "ended with status 3"),
    ],
)
def test_restarts_that_are_used_up_are_what_the_last_attempt_failed_of(given, restarts, status, words):
    error = elastic.used_up(failures(*given), restarts, "the checkpoint after step 12")
    assert error.exit_code == status
    with pytest.raises(type(error), match=words):
        raise error
    assert str(error).endswith(
        f"and pretrain.restarts ({restarts}) are used up; run again to go on from the checkpoint after step 12."
    )


def test_what_a_rank_said_goes_before_what_torchrun_says(tmp_path):
    job = tmp_path / launch.JOB
    elastic._leave(job, MaskmillError("of torchrun"))
    with pytest.raises(MaskmillError, match="of torchrun"):
        launch.outcome(tmp_path, 1)
    (tmp_path / launch.OUTCOME).write_text(json.dumps({"status": 65, "message": "of a rank"}))
    elastic._leave(job, MaskmillError("of torchrun"))
    with pytest.raises(DataError, match="of a rank"):
        launch.outcome(tmp_path, 1)


def test_an_interruption_of_before_is_forgotten_where_ranks_go_on_after_all(tmp_path):
    outcome = tmp_path / launch.OUTCOME
    assert not trainer._over(outcome)
    outcome.write_text(json.dumps({"status": 75}))
    (tmp_path / launch.STOP).touch()
    assert trainer._over(outcome) and outcome.exists()
    (tmp_path / launch.STOP).unlink()
    assert not trainer._over(outcome) and not outcome.exists()


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
