"""Pretraining: what its key knows, settings that cannot be, shorter rows and forks."""

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tasks.artifacts import Store
from tasks.errors import UsageError
from tasks.hardware import device_kind
from tasks.pace import BatchWarmup, Lengths
from tasks.pretrain import check, fork_parts, identity, job_of, pretrain, profile
from tasks.rates import MaskRates
from tests.tasks import handmade
from tests.tasks.tiny_runs import TINY
from tests.tasks.tiny_runs import _watch_closely as _watch_closely

# The stage's own promises.


def test_a_vocabulary_other_than_the_shards_is_refused_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    store = Store(tmp_path)
    shards, vocabulary = handmade.shards(store), handmade.vocabulary(store)
    made_with = replace(shards.identity, inputs={"vocabulary": "f" * 64})
    with pytest.raises(UsageError, match=f"the vocabulary {'f' * 12}, and this is {vocabulary.digest[:12]}"):
        pretrain(TINY, vocabulary, replace(shards, identity=made_with), store)
    assert not (tmp_path / "pretrain").exists()


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
