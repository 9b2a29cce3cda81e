"""Pretraining: resume is exact, signals are heard, failures have names. pytest tests/tasks/test_pretrain.py"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from tasks import launch
from tasks.artifacts import Store, verify
from tasks.errors import DataError, InterruptedRun, MemoryExhausted, NumericError
from tasks.journal import SPOOL
from tasks.pretrain import pretrain
from tasks.rates import MaskRates
from tests.tasks import handmade
from tests.tasks.tiny_runs import TINY, at_step, partial, trained
from tests.tasks.tiny_runs import _watch_closely as _watch_closely


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The run that all others must equal, and the records it handed on."""
    records = []
    return trained(tmp_path_factory.mktemp("store"), on_metrics=records.extend), records


def test_the_model_the_curve_and_the_facts_are_there(undisturbed):
    manifest, _ = undisturbed
    assert verify(manifest) == []
    names = {"model/config.json", "model/model.safetensors", "model/tokenizer.json", "model/tokenizer_config.json"}
    assert set(manifest.files) == {*names, "curve.jsonl"}
    assert manifest.facts["steps"] == 40 and manifest.facts["initial_seed"] == 0
    curve = [json.loads(line) for line in manifest.path("curve.jsonl").read_text().splitlines()]
    assert [point["step"] for point in curve] == sorted({*range(3, 40, 3), 20, 40})
    assert curve[-1]["tokens"] == manifest.facts["tokens"]
    assert {point["step"] for point in curve if "validation/masked_cross_entropy" in point} == {20, 40}
    assert curve[-1]["train/loss"] < curve[0]["train/loss"]
    assert {"tokens_per_second", "peak_memory_bytes", "training_seconds"} <= set(manifest.measured())


def test_every_line_of_the_spool_is_handed_on_once_and_in_order(undisturbed):
    manifest, records = undisturbed
    spool = [json.loads(line) for line in (manifest.folder / SPOOL).read_text().splitlines()]
    assert records == spool and len(records) == 15
    assert all(set(record) == {"step", "timestamp_ms", "metrics"} for record in records)


@pytest.mark.slow
def test_a_chain_of_kills_and_damage_ends_in_the_bytes_of_the_undisturbed_run(undisturbed, tmp_path):
    manifest, records = undisturbed
    with pytest.raises(InterruptedRun, match="SIGKILL"):
        trained(tmp_path, on_metrics=at_step(18, lambda child: child.kill()))
    receipts = (partial(tmp_path) / ".scratch" / "checkpoints").glob("*.json")  # without one, a file was being written
    newest = max(receipts).with_suffix(".safetensors")
    data = bytearray(newest.read_bytes())
    data[-20] ^= 1
    newest.write_bytes(data)
    with pytest.raises(InterruptedRun, match="stopped by SIGTERM after step"):
        trained(tmp_path, on_metrics=at_step(27, lambda child: child.terminate()))
    assert (partial(tmp_path) / ".scratch" / "checkpoints" / "quarantine" / newest.name).exists()
    handed = []
    again = trained(tmp_path, on_metrics=handed.extend)
    assert again.digest == manifest.digest
    assert again.files["model/model.safetensors"] == manifest.files["model/model.safetensors"]
    assert [record["step"] for record in handed] == [record["step"] for record in records]
    first, second = again.measured()["resumed_at_steps"]
    assert first % 6 == 0 and first < int(newest.stem[-9:]) and second >= 27


SEED = 20
"""Of the steps at which runs are killed; it stands in the tests' names."""
KILLS = random.Random(SEED).sample(range(1, TINY.steps + 1), 20)
CLOSE = replace(TINY, checkpoint_every=4, log_every=1)
"""Its spool shows every step."""


@pytest.fixture(scope="module")
def close(tmp_path_factory):
    """The undisturbed run with a line for every step."""
    return trained(tmp_path_factory.mktemp("close"), CLOSE)


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(step, marks=[] if number == 0 else [pytest.mark.slow], id=f"seed{SEED}-step{step}")
        for number, step in enumerate(KILLS)
    ],
)
def test_kill_9_at_a_random_step_ends_in_the_bytes_of_the_undisturbed_run(close, tmp_path, step):
    within = random.Random(f"{SEED} {step}").uniform(0, 0.01)  # of the step, or of a checkpoint's writing
    killed = True
    try:
        trained(tmp_path, CLOSE, at_step(step, lambda child: time.sleep(within) or child.kill()))
        killed = False
    except InterruptedRun as error:
        assert "SIGKILL" in str(error) and partial(tmp_path).exists()
    again = trained(tmp_path, CLOSE)
    assert again.digest == close.digest
    assert killed or step > CLOSE.steps - 12  # it was done before the kill came
    if killed:  # the checkpoint of the last 4 steps may have been in writing
        (resumed,) = again.measured()["resumed_at_steps"] or [0]
        assert resumed >= step - 2 * CLOSE.checkpoint_every


@pytest.mark.slow
def test_signals_at_random_steps_of_one_run_end_in_the_bytes_of_the_undisturbed_run(close, tmp_path):
    """One run, stopped again and again: each signal costs one start. The first and the last step are among them."""
    stops, at = sorted({1, *random.Random(f"{SEED} SIGTERM").sample(range(2, CLOSE.steps), 6), CLOSE.steps}), 0
    for step in stops:
        if step <= at:  # the last signal was heard as late as that
            continue
        try:
            made = trained(tmp_path, CLOSE, at_step(step, lambda child: child.terminate()))
        except InterruptedRun as error:
            at = int(re.search(r"after step (\d+) of 40, which is kept", str(error))[1])
            assert at >= step and (partial(tmp_path) / ".scratch" / "checkpoints" / f"step-{at:09d}.json").exists()
        else:
            assert step >= CLOSE.steps - 1
    assert trained(tmp_path, CLOSE).digest == close.digest == made.digest, (SEED, stops)


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 20, 33])
def test_a_kill_in_the_middle_of_a_schedule_ends_in_the_bytes_of_the_undisturbed_run(tmp_path, step):
    config = replace(TINY, mask_rates=MaskRates("linear", ("0.3", "0.15")))
    whole = trained(tmp_path / "whole", config)
    with pytest.raises(InterruptedRun, match="SIGKILL"):
        trained(tmp_path / "killed", config, at_step(step, lambda child: child.kill()))
    assert trained(tmp_path / "killed", config).digest == whole.digest


def test_the_trainer_dies_with_its_parent_and_the_lock_with_both(undisturbed, tmp_path):
    store = Store(tmp_path)
    folders = [str(one.folder) for one in (handmade.vocabulary(store), handmade.shards(store))]
    fields = {name: value for name, value in asdict(TINY).items() if not isinstance(value, dict)}
    script = (
        "import sys; from pathlib import Path; from tasks.artifacts import Store, load; from tasks.pretrain import *\n"
        f"inputs = map(load, map(Path, {folders!r}))\n"
        f"pretrain(PretrainConfig(**{fields!r}), *inputs, Store(Path({str(tmp_path)!r})))"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[2])
    deadline = time.monotonic() + 60
    while not (children := psutil.Process(parent.pid).children()) or "tasks.trainer" not in children[0].cmdline():
        assert time.monotonic() < deadline and parent.poll() is None
        time.sleep(0.01)
    while not list(Path(tmp_path, "pretrain").glob(".*.partial/curve.jsonl")):
        assert time.monotonic() < deadline and parent.poll() is None
        time.sleep(0.005)
    parent.kill()
    parent.wait()
    psutil.wait_procs(children, timeout=10)
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
    assert trained(tmp_path).digest == undisturbed[0].digest


def test_ctrl_c_in_the_parent_stops_the_trainer_after_its_step_with_a_checkpoint(tmp_path):
    long = replace(TINY, steps=100_000)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(InterruptedRun, match="stopped by SIGINT after step") as raised:
        trained(tmp_path, long, at_step(9, lambda _: os.kill(os.getpid(), signal.SIGINT)))
    step = int(str(raised.value).split("after step ")[1].split()[0])
    kept = {path.stem for path in (partial(tmp_path) / ".scratch" / "checkpoints").glob("*.json")}
    assert f"step-{step:09d}" in kept
    assert signal.getsignal(signal.SIGINT) == before


def test_a_callback_that_fails_disturbs_nothing_and_gets_its_records_again(undisturbed, tmp_path):
    calls, got = [], []

    def flaky(records):
        calls.append(len(records))
        if len(calls) < 3:
            raise ConnectionError("the server is away")
        got.extend(records)

    assert trained(tmp_path, on_metrics=flaky).digest == undisturbed[0].digest
    assert [record["step"] for record in got] == [record["step"] for record in undisturbed[1]]


def test_a_finished_model_is_found_without_starting_anything(undisturbed, monkeypatch):
    manifest, _ = undisturbed
    monkeypatch.setattr(subprocess, "Popen", None)
    store = Store(manifest.folder.parents[1])
    again, reused = pretrain(TINY, handmade.vocabulary(store), handmade.shards(store), store)
    assert reused and again.digest == manifest.digest
    assert pretrain(replace(TINY, checkpoint_every=9), handmade.vocabulary(store), handmade.shards(store), store)[1]


# Errors of the trainer, in words and in exit status.


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (
            {"learning_rate": 1e30, "matrix_learning_rate": 1e30, "log_every": 1, "warmup": 0.0},
            NumericError,
            "not finite|step",
        ),
    ],
)
def test_a_failure_of_the_training_process_arrives_as_its_error(tmp_path, change, error, words):
    with pytest.raises(error, match=words):
        trained(tmp_path, replace(TINY, **change))


def test_damaged_shards_are_refused_by_name(tmp_path):
    store = Store(tmp_path)
    shards = handmade.shards(store)
    path = shards.path("train-00000.arrow")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"train-00000\.arrow is damaged"):
        pretrain(TINY, handmade.vocabulary(store), shards, store)


def test_exit_statuses_and_signals_become_errors_that_say_what_to_do():
    assert isinstance(launch.error_of(75, "said"), InterruptedRun) and str(launch.error_of(75, "said")) == "said"
    assert isinstance(launch.error_of(71, None), MemoryExhausted)
    assert isinstance(launch.error_of(-signal.SIGKILL, None), InterruptedRun)
    assert "signal 11" in str(launch.error_of(-signal.SIGSEGV, None)) and launch.error_of(-11, None).exit_code == 1
    assert launch.error_of(3, None).exit_code == 1
