"""Pretraining: resume is exact, signals are heard, failures have names. pytest tests/tasks/test_pretrain.py"""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from tasks import pretrain as stage
from tasks.artifacts import Store, digest_of, load, verify
from tasks.errors import DataError, InterruptedRun, MemoryExhausted, NumericError, UsageError
from tasks.journal import SPOOL
from tasks.masking import count
from tasks.pretrain import PretrainConfig, identity, pretrain
from tasks.rates import MaskRates
from tests.tasks import handmade

TINY = PretrainConfig(
    layers=2,
    width=32,
    heads=2,
    intermediate=48,
    window=16,
    rows_per_step=16,
    micro_rows=8,
    steps=40,
    checkpoint_every=6,
    validation_every=20,
    validation_rows=20,
    log_every=3,
    device="cpu",
    dtype="float32",
    threads=1,
)


@pytest.fixture(autouse=True)
def _watch_closely(monkeypatch):
    monkeypatch.setattr(stage, "POLL", 0.005)


def trained(folder, config=TINY, on_metrics=None, **shards):
    """The stage, on handmade inputs, in a store of its own."""
    store = Store(folder, wait=60)
    return pretrain(config, handmade.vocabulary(store), handmade.shards(store, **shards), store, on_metrics)[0]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The run that all others must equal, and the records it handed on."""
    records = []
    return trained(tmp_path_factory.mktemp("store"), on_metrics=records.extend), records


def at_step(step, act):
    """A callback that acts, once, on the training process when its spool shows a step at or beyond `step`."""

    def on_metrics(records):
        if records[-1]["step"] >= step and not done:
            done.append(True)
            for child in psutil.Process().children():
                if "tasks.trainer" in child.cmdline():
                    act(child)

    done = []
    return on_metrics


def partial(folder):
    """The folder of the unfinished model."""
    return next(Path(folder, "pretrain").glob(".*.partial"))


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


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 6, 12, 13, 36, 39, 40])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_kill_at_any_step_ends_in_the_bytes_of_the_undisturbed_run(undisturbed, tmp_path, step, number):
    config = replace(TINY, checkpoint_every=4)
    try:
        trained(tmp_path, config, at_step(step, lambda child: child.send_signal(number)))
    except InterruptedRun:
        assert partial(tmp_path).exists()
    assert trained(tmp_path, config).digest == undisturbed[0].digest


def test_the_trainer_dies_with_its_parent_and_the_lock_with_both(undisturbed, tmp_path):
    store = Store(tmp_path)
    folders = [str(one.folder) for one in (handmade.vocabulary(store), handmade.shards(store))]
    fields = {name: value for name, value in asdict(TINY).items() if name != "mask_rates"}
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
    assert isinstance(stage._error(75, "said"), InterruptedRun) and str(stage._error(75, "said")) == "said"
    assert isinstance(stage._error(71, None), MemoryExhausted)
    assert isinstance(stage._error(-signal.SIGKILL, None), InterruptedRun)
    assert "signal 11" in str(stage._error(-signal.SIGSEGV, None)) and stage._error(-11, None).exit_code == 1
    assert stage._error(3, None).exit_code == 1


# In this process: the mathematics of a step.


def training(folder, config=TINY, **shards):
    import torch

    from tasks.training import Training

    torch.set_num_threads(1)
    store = Store(folder)
    vocabulary, data = handmade.vocabulary(store), handmade.shards(store, **shards)
    this = identity(config, vocabulary.digest, data.digest)
    folder = Path(folder, "work")
    run = digest_of([dict(this.config), {"vocabulary": vocabulary.digest}])
    (folder / ".scratch").mkdir(parents=True, exist_ok=True)
    job = {
        "folder": str(folder),
        "scratch": str(folder / ".scratch"),
        "shards": str(data.folder),
        "inputs": dict(this.inputs),
        "config": {**this.config, "checkpoint_every": config.checkpoint_every},
        "run": run,
    }
    return Training(job)


def test_micro_batches_of_uneven_counts_have_the_gradient_of_the_whole_step(tmp_path):
    import torch

    gradients = []
    for micro_rows in (0, 5, 1):
        run = training(tmp_path, replace(TINY, micro_rows=micro_rows, clip=1e9))
        run.optimizers.step = lambda: None
        run.take_step()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in run.model.parameters()]))
    assert gradients[0].abs().max() > 1e-3
    for other in gradients[1:]:
        assert (other - gradients[0]).abs().max() < 1e-6


def test_the_first_loss_is_the_unigram_entropy_and_a_model_that_stays_there_is_called_out(tmp_path, capsys):
    from tasks.training import finish, train

    run = training(tmp_path, replace(TINY, steps=3, learning_rate=1e-9, matrix_learning_rate=1e-9))
    run.resume()
    train(run, stopped=lambda: None)
    said = finish(run, handmade.vocabulary(Store(tmp_path)))
    point = json.loads((run.folder / "curve.jsonl").read_text().splitlines()[-1])
    assert math.isclose(point["train/loss"], run.unigram_entropy, abs_tol=0.15)
    assert said["facts"]["at_unigram_level"]
    assert "still at the unigram level" in capsys.readouterr().err


def test_a_checkpoint_is_only_used_while_curve_and_settings_are_those_of_its_time(tmp_path):
    def begun():
        run = training(tmp_path)
        run.resume()
        return run

    run = begun()
    for _ in range(2):
        run.record(run.take_step())
        run.checkpoint()
    assert begun().step == 2
    curve = run.journal.curve.read_bytes()
    run.journal.curve.write_bytes(curve.replace(b'"step":2,', b'"step":5,'))
    other = begun()
    assert other.step == 1 and other.journal.curve.read_bytes() == curve[: curve.index(b"\n") + 1]
    other.job["run"] = "another"
    other.resume()
    assert not other.journal.curve.read_bytes() and not other.journal.spool.read_bytes()


def parameters(run):
    return {name: value.detach().clone() for name, value in run.model.named_parameters()}


def test_a_resume_in_the_middle_of_a_schedule_ends_in_the_same_bytes(tmp_path):
    import torch

    config = replace(TINY, steps=9, log_every=1, mask_rates=MaskRates("linear", ("0.3", "0.15")))

    def go_on(folder, steps):
        run = training(folder, config)
        run.resume()
        for _ in range(steps):
            run.record(run.take_step())
            run.checkpoint()
        return run

    whole = go_on(tmp_path / "whole", 9)
    for steps, lost in ((2, 1), (4, 2), (3, 0)):  # `lost`: taken after the checkpoint that is gone on from
        run = go_on(tmp_path / "parts", steps)
        for _ in range(lost):
            run.take_step()
    assert run.step == whole.step == 9
    assert all(torch.equal(value, parameters(run)[name]) for name, value in parameters(whole).items())
    assert run.journal.curve.read_bytes() == whole.journal.curve.read_bytes()
    points = [json.loads(line) for line in whole.journal.curve.read_text().splitlines()]
    rates = [point["train/mask_rate"] for point in points]
    assert rates[0] == 0.3 and rates[-1] == 0.15 and rates == sorted(rates, reverse=True) and len(set(rates)) == 9


def test_a_schedule_changes_what_is_hidden_and_neither_the_slots_nor_the_validation(tmp_path):
    plain = training(tmp_path / "plain")
    run = training(tmp_path / "steps", replace(TINY, mask_rates=MaskRates("steps", ("0.15", "0.5"), ("1/40",))))
    seen = []
    run._loss = lambda batch: seen.append(batch) or type(run)._loss(run, batch)
    for _ in range(2):
        run.take_step()
    assert {len(batch.masked_M) for batch in seen} == {int(count(TINY.micro_rows * run.reader.length, "0.5"))}
    assert [batch.rate for batch in seen] == ["0.15", "0.15", "0.5", "0.5"]
    assert [batch.rate for batch in run.validation] == [batch.rate for batch in plain.validation] == ["0.3"] * 3


def test_the_curve_of_a_constant_rate_does_not_name_it(undisturbed):
    assert b"mask_rate" not in undisturbed[0].path("curve.jsonl").read_bytes()


def test_a_checkpoint_on_other_shards_is_refused_and_stays_where_it_is(tmp_path):
    run = training(tmp_path)
    run.record(run.take_step())
    run.checkpoint()
    other = training(tmp_path, seed=8)
    assert other.reader.digest != run.reader.digest
    with pytest.raises(DataError, match=f"{run.reader.digest[:12]}, and these are {other.reader.digest[:12]};"):
        other.resume()
    assert other.journal.curve.read_bytes() == run.journal.curve.read_bytes()
    again = training(tmp_path)
    again.resume()
    assert again.step == 1 and again.position.sample == TINY.rows_per_step


def test_the_state_of_a_checkpoint_is_one_integer_and_the_digest_of_the_shards(tmp_path):
    from tasks import checkpoint

    run = training(tmp_path)
    for _ in range(2):
        run.take_step()
    run.record(0.0)
    run.checkpoint()
    state = checkpoint.newest(run.checkpoints, lambda _: None)[0].state
    assert state["position"] == {"sample": 2 * TINY.rows_per_step, "shards": run.reader.digest}
    assert state.keys() == {"run", "position", "tokens", "sums", "seconds", "resumed", "journal"}


def test_the_budget_in_tokens_is_whole_steps_rounded_up(tmp_path):
    from tasks.training import total_steps

    facts = load(handmade.shards(Store(tmp_path)).folder).facts
    a_step = 16 * facts["splits"]["train"]["tokens"] / 96
    for tokens, steps in ((1, 1), (math.floor(a_step), 1), (math.ceil(a_step) + 1, 2), (math.floor(10 * a_step), 10)):
        assert total_steps({"steps": 0, "tokens": tokens, "rows_per_step": 16}, facts) == steps
    assert total_steps({"steps": 3, "tokens": 10**9, "rows_per_step": 16}, facts) == 3


def test_rows_that_hide_nothing_cost_a_step_without_a_loss_and_not_a_nan(tmp_path):
    run = training(tmp_path, rate="0.01")
    assert run.take_step() == 0.0 and run.sums.masked == 0


# The stage's own promises.


def test_a_vocabulary_other_than_the_shards_is_refused_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    store = Store(tmp_path)
    shards, vocabulary = handmade.shards(store), handmade.vocabulary(store)
    made_with = replace(shards.identity, inputs={"vocabulary": "f" * 64})
    with pytest.raises(UsageError, match=f"the vocabulary {'f' * 12}, and this is {vocabulary.digest[:12]}"):
        pretrain(TINY, vocabulary, replace(shards, identity=made_with), store)
    assert not (tmp_path / "pretrain").exists()


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 20, 33])
def test_a_kill_in_the_middle_of_a_schedule_ends_in_the_bytes_of_the_undisturbed_run(tmp_path, step):
    config = replace(TINY, mask_rates=MaskRates("linear", ("0.3", "0.15")))
    whole = trained(tmp_path / "whole", config)
    with pytest.raises(InterruptedRun, match="SIGKILL"):
        trained(tmp_path / "killed", config, at_step(step, lambda child: child.kill()))
    assert trained(tmp_path / "killed", config).digest == whole.digest


RATES = {"mask_rates": MaskRates("linear", ("0.3", "0.15"))}


def test_the_identity_holds_the_hardware_and_the_seed_but_not_when_checkpoints_are_taken():
    base = identity(TINY, "v", "s")
    assert {"device", "dtype", "threads", "reduction"} <= set(base.config)
    assert identity(replace(TINY, checkpoint_every=1), "v", "s").key == base.key
    assert identity(replace(TINY, device="auto"), "v", "s").key == base.key or stage.device_kind() == "cuda"
    for change in ({"seed": 1}, {"threads": 2}, {"dtype": "bfloat16"}, {"micro_rows": 4}, {"log_every": 9}, RATES):
        assert identity(replace(TINY, **change), "v", "s").key != base.key
    assert identity(TINY, "w", "s").key != base.key != identity(TINY, "v", "t").key


@pytest.mark.parametrize(
    "change",
    [
        {"heads": 3},
        {"steps": 0, "tokens": 0},
        {"optimizer": "sgd"},
        {"warmup": 0.8, "decay": 0.3},
        {"layers": 0},
        {"clip": 0},
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(change):
    with pytest.raises(UsageError, match=r"pretrain"):
        replace(TINY, **change)


def test_the_stage_imports_no_torch():
    code = "import sys, tasks.pretrain, tasks.trainer; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


def test_the_spool_is_read_again_from_the_start_when_the_trainer_replaced_it(tmp_path):
    path, got = tmp_path / "spool", []
    spool = stage.Spool(path, got.extend)
    spool.ship()
    line = '{{"step": {}, "timestamp_ms": 1, "metrics": {{}}}}\n'.format
    path.write_text(line(1) + line(2) + line(3)[:9])
    spool.ship()
    replacement = tmp_path / "new"
    replacement.write_text(line(1) + line(2) + line(3) + line(4))
    os.replace(replacement, path)
    spool.ship()
    assert [record["step"] for record in got] == [1, 2, 3, 4]


def test_unigram_entropy_of_equal_counts_is_the_log_of_the_vocabulary():
    from tasks.training import entropy

    assert math.isclose(entropy(np.full(50, 9)), math.log(50))
