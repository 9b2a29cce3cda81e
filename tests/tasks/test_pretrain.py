"""Pretraining: resume is exact, signals are heard, failures have names. pytest tests/tasks/test_pretrain.py"""

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from tasks import launch
from tasks.artifacts import Store, verify
from tasks.errors import DataError, InterruptedRun, MemoryExhausted, NumericError, UsageError
from tasks.hardware import device_kind
from tasks.journal import SPOOL
from tasks.pace import BatchWarmup, Lengths
from tasks.pretrain import PretrainConfig, check, fork_parts, identity, job_of, pretrain, profile
from tasks.rates import MaskRates
from tests.tasks import handmade

TINY = PretrainConfig(
    layers=2,
    width=32,
    heads=2,
    intermediate=48,
    window=16,
    batch_tokens=16 * 32,
    micro_tokens=8 * 32,
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
    monkeypatch.setattr(launch, "POLL", 0.005)


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
    assert identity(replace(TINY, device="auto"), "v", "s").key == base.key or device_kind() == "cuda"
    for change in ({"seed": 1}, {"threads": 2}, {"dtype": "bfloat16"}, {"micro_tokens": 128}, {"log_every": 9}, RATES):
        assert identity(replace(TINY, **change), "v", "s").key != base.key
    assert identity(TINY, "w", "s").key != base.key != identity(TINY, "v", "t").key


def test_a_run_without_a_number_of_threads_goes_on_where_the_number_of_devices_changes(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    store = Store(tmp_path)
    inputs = handmade.vocabulary(store), [handmade.shards(store)], tmp_path, tmp_path, None
    jobs = [job_of(replace(TINY, threads=0, devices=devices), *inputs) for devices in ("1", "2", "3", "16")]
    assert [job["config"]["threads"] for job in jobs] == [8, 4, 2, 1]
    assert len({job["run"] for job in jobs}) == 1
    keys = {identity(replace(TINY, threads=0, devices=devices), "v", "s").key for devices in ("1", "2", "16")}
    assert keys == {identity(replace(TINY, threads=8), "v", "s").key}
    exact = replace(TINY, threads=0, reduction="exact", micro_tokens=0)
    assert job_of(exact, *inputs)["config"]["threads"] == identity(exact, "v", "s").config["threads"] == 1


@pytest.mark.parametrize(
    "change",
    [
        {"heads": 3},
        {"steps": 0, "tokens": 0},
        {"optimizer": "sgd"},
        {"warmup": 0.8, "decay": 0.3},
        {"layers": -1},
        {"size": "huge"},
        {"reduction": "exact", "threads": 2},
        {"nodes": "2"},
        {"devices": "0"},
        {"schedule": "step"},
        {"clip": 0},
        {"minutes": float("nan")},
        {"norm_eps": 0.0},
        {"threads": -1},
        {"seed": -1},
        {"nodes": "4:2", "rendezvous": "host:29500"},
        {"stable_checkpoints": 1, "schedule": "cosine"},
        {"reduction": "exact", "logical_shards": 8, "devices": "3"},
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(change):
    with pytest.raises(UsageError, match=r"pretrain"):
        replace(TINY, **change)


def test_the_stage_imports_no_torch():
    code = "import sys, tasks.pretrain, tasks.trainer; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


# Shorter rows, and a run that is forked from another.


FORK = SimpleNamespace(digest="f", facts={"stable": [{"step": 7}, {"step": 8}]})
"""Of an artifact what its digest and its stable checkpoints are."""


def test_shorter_shards_and_the_fork_are_inputs_by_name_and_digest():
    config = replace(TINY, lengths=Lengths((8, 16), ("0.2", "0.5")))
    inputs = {"vocabulary": "v", "shards": "s"}
    assert identity(config, "v", "s", ["a", "b"]).inputs == inputs | {"shards_8": "a", "shards_16": "b"}
    assert identity(TINY, "v", "s").inputs == inputs
    assert identity(replace(TINY, fork="1f2e"), "v", "s", fork=FORK).inputs == inputs | {"fork": "f"}


def test_the_key_of_a_fork_knows_the_run_by_its_digest_and_the_step():
    def key(fork, **changes):
        return identity(replace(TINY, fork=fork, **changes), "v", "s", fork=FORK).key

    assert key("1f2e") == key("1f2e00") == key("/store/pretrain/1f2e") == key("1f2e", warmup=0.2)
    assert key("1f2e@7") == key("/a@b/1f2e@7") != key("1f2e") == key("1f2e@8")
    assert fork_parts("/a@b/1f2e@7") == ("/a@b/1f2e", 7) and fork_parts("/a@b") == ("/a@b", 0)


def test_a_size_and_its_dimensions_written_out_have_one_key():
    named = replace(TINY, layers=0, width=0, heads=0, intermediate=0, size="small")
    written = replace(TINY, layers=6, width=256, heads=4, intermediate=384, size="large")
    assert identity(named, "v", "s").key == identity(written, "v", "s").key


def test_shorter_shards_must_be_those_of_the_settings(tmp_path):
    store = Store(tmp_path)
    vocabulary, shards = handmade.vocabulary(store), handmade.shards(store)
    config = replace(TINY, lengths=Lengths((16,), ("0.5",)))
    for shorter in ([], [handmade.shards(store, length=24)], [handmade.shards(store, length=16)] * 2):
        with pytest.raises(UsageError, match=r"pretrain.lengths.lengths is \[16\], and the shorter shards"):
            pretrain(config, vocabulary, shards, store, shorter=shorter)
    with pytest.raises(UsageError, match=r"is \[16\], and shards.length is 16; .* give shorter ones"):
        pretrain(config, vocabulary, handmade.shards(store, length=16), store)


@pytest.mark.slow
def test_a_fork_goes_on_from_the_stable_phase_and_one_of_the_same_budget_ends_where_its_run_did(tmp_path):
    store = Store(tmp_path)
    vocabulary, shards = handmade.vocabulary(store), handmade.shards(store)
    config = replace(TINY, steps=20, warmup=0.1, decay=0.3, stable_checkpoints=2)
    whole, _ = pretrain(config, vocabulary, shards, store)
    assert [entry["step"] for entry in whole.facts["stable"]] == [8, 14]
    assert "stable/step-000000014.safetensors" in whole.files
    again = replace(config, stable_checkpoints=0, fork=whole.key)
    same, _ = pretrain(again, vocabulary, shards, store, fork=whole)
    assert same.files["model/model.safetensors"] == whole.files["model/model.safetensors"]
    longer, _ = pretrain(replace(again, steps=30, fork=f"{whole.key}@8"), vocabulary, shards, store, fork=whole)
    assert (
        longer.facts["steps"] == 30 and json.loads(longer.path("curve.jsonl").read_text().splitlines()[0])["step"] > 8
    )
    with pytest.raises(UsageError, match="no stable checkpoint after step 9; it has 8, 14"):
        pretrain(replace(again, fork=f"{whole.key}@9"), vocabulary, shards, store, fork=whole)
    with pytest.raises(UsageError, match=r"pretrain.width is 64, and that of the run in pretrain.fork is 32"):
        pretrain(replace(again, width=64), vocabulary, shards, store, fork=whole)


def test_rows_of_two_lengths_are_trained_on_in_turn(tmp_path):
    store = Store(tmp_path)
    vocabulary, shards, short = handmade.vocabulary(store), handmade.shards(store), handmade.shards(store, length=16)
    config = replace(TINY, lengths=Lengths((16,), ("0.5",)), log_every=1)
    manifest, _ = pretrain(config, vocabulary, shards, store, shorter=[short])
    assert manifest.identity.inputs["shards_16"] == short.digest
    lengths = [json.loads(line)["train/length"] for line in manifest.path("curve.jsonl").read_text().splitlines()]
    assert lengths == [16] * 20 + [32] * 20


def test_a_profile_takes_steps_and_leaves_nothing(tmp_path):
    store = Store(tmp_path)
    vocabulary, shards = handmade.vocabulary(store), handmade.shards(store)
    found = profile(replace(TINY, steps=3), vocabulary, shards, store, steps=2)
    assert found["steps"] == 2 and found["bound_by"] and abs(sum(found["shares"].values()) - 1) < 1e-6
    assert {path.name for path in tmp_path.iterdir()} == {"vocabulary", "shards", ".locks"}


# Settings that cannot work, and settings that mean nothing.


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"minutes": math.nan}, "minutes is nan"),
        ({"weight_decay": math.inf}, "weight_decay is inf"),
        ({"warmup": math.nan}, "shares of the budget, not nan"),
        ({"norm_eps": -1.0}, "norm_eps is -1.0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, "seed is"),
        ({"threads": -1}, "threads is -1"),
        ({"rank_timeout": 0.001}, "rank_timeout is 0.001"),
        ({"nodes": "4:2", "rendezvous": "a:1"}, "the smaller number comes first"),
        ({"nodes": "2", "rendezvous": "a:9999999"}, "rendezvous is"),
        ({"micro_tokens": 5}, "micro_tokens is 5, and a row has 32"),
        ({"minutes": 1.0, "stable_checkpoints": 2, "schedule": "cosine"}, "has no stable phase"),
        (
            {"reduction": "exact", "micro_tokens": 0, "batch_warmup": BatchWarmup(64, "0.5")},
            "each of the 8 logical shards takes a row of 32; use 256",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_made(change, words):
    with pytest.raises(UsageError, match=words):
        replace(TINY, **change).check(32)


def test_rows_that_get_too_few_for_the_ranks_are_refused_before_they_get_there(tmp_path):
    store = Store(tmp_path)
    inputs = handmade.vocabulary(store), handmade.shards(store), [handmade.shards(store, length=16)]
    config = replace(TINY, devices="3", batch_tokens=64, micro_tokens=0, lengths=Lengths((16,), ("0.5",)))
    with pytest.raises(UsageError, match=r"2 rows of 32, .* there are 3 ranks; raise it to 96"):
        check(config, *inputs, None)


@pytest.mark.parametrize(
    ("base", "change"),
    [
        ({"schedule": "cosine"}, {"decay": 0.1}),
        ({"reduction": "fast"}, {"logical_shards": 4}),
        ({"micro_tokens": 0}, {"micro_tokens": 512}),
        ({"optimizer": "adamw"}, {"momentum": 0.5}),
        ({}, {"batch_warmup": BatchWarmup(0, "0.3")}),
    ],
)
def test_a_setting_that_means_nothing_beside_the_others_changes_no_key(base, change):
    one, other = replace(TINY, **base), replace(TINY, **(base | change))
    assert identity(one, "v", "s").key == identity(other, "v", "s").key


def test_the_warm_up_that_a_fork_does_not_have_may_change_between_two_starts(tmp_path):
    store = Store(tmp_path)
    vocabulary, shards = handmade.vocabulary(store), handmade.shards(store)
    whole, _ = pretrain(replace(TINY, steps=20, stable_checkpoints=1), vocabulary, shards, store)
    (last,) = (entry["step"] for entry in whole.facts["stable"])
    jobs = [
        job_of(replace(TINY, fork=fork, warmup=share), vocabulary, [shards], tmp_path, tmp_path, whole)
        for share in (0.05, 0.1)
        for fork in (whole.key, f"{whole.key}@{last}")  # nor how its last checkpoint is called
    ]
    assert len({job["run"] for job in jobs}) == len({job["fork"] for job in jobs}) == 1


def test_the_key_of_a_run_without_a_fork_is_what_it_has_always_been():
    """Keys as they were made: whoever changes one of these makes every finished run anew."""
    config = replace(TINY, device="cpu", dtype="float32", threads=1)
    assert identity(config, "v", "s").key == "f0c38ebb172716d6c9ebaba329624aad"
    growing = replace(config, lengths=Lengths((8, 16), ("0.2", "0.5")), mask_rates=MaskRates("linear", ("0.3", "0.15")))
    assert identity(growing, "v", "s", ["a", "b"]).key == "feb802fb598c6d3b299f5339f837fd9d"
    exact = replace(config, reduction="exact", micro_tokens=0, devices="2", restarts=7)
    assert identity(exact, "v", "s").key == "aafa14055be959b2af7af70121daed7b"


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_a_compiled_run_looks_at_the_validation_split_and_comes_to_its_end(tmp_path):
    losses = []
    for compiled in ("off", "on"):
        store = Store(tmp_path / compiled)
        config = replace(TINY, compile=compiled, dtype="float32", validation_every=2)
        made, _ = pretrain(config, handmade.vocabulary(store), handmade.shards(store), store)
        assert made.facts["chosen"]["compiled"] == (compiled == "on")
        points = [json.loads(line) for line in made.path("curve.jsonl").read_text().splitlines()]
        losses.append(
            [one["validation/masked_cross_entropy"] for one in points if "validation/masked_cross_entropy" in one]
        )
    assert len(losses[0]) > 1 and losses[0] == pytest.approx(losses[1], abs=0.02)
