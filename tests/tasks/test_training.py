"""A training run in this process: the mathematics of a step, what it keeps. pytest tests/tasks/test_training.py"""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tasks import checkpoint, looping
from tasks.artifacts import Store
from tasks.errors import DataError, InterruptedRun
from tasks.masking import count
from tasks.pace import BatchWarmup, Lengths
from tasks.rates import MaskRates
from tasks.strand import entropy
from tests.tasks import handmade
from tests.tasks.here_training import L, begun, fresh, kept, parameters, same
from tests.tasks.here_training import _one_thread as _one_thread
from tests.tasks.tiny_runs import TINY


def test_micro_batches_of_uneven_counts_have_the_gradient_of_the_whole_step(tmp_path):
    gradients = []
    for micro_tokens in (0, 5 * L, L):
        run = begun(tmp_path / str(micro_tokens), replace(TINY, micro_tokens=micro_tokens, clip=1e9))
        run.optimizers.step = lambda: None
        run.take_step()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in run.model.parameters()]))
    assert gradients[0].abs().max() > 1e-3
    for other in gradients[1:]:
        assert (other - gradients[0]).abs().max() < 1e-6


def test_a_tiny_batch_is_learned_by_heart(tmp_path):
    config = replace(TINY, micro_tokens=0, batch_tokens=4 * L, steps=300, learning_rate=0.02, width=64, log_every=50)
    run = begun(tmp_path, config, rows=4, files=1)
    run.timeline.at, first = (lambda step, at=run.timeline.at: at(0)), run.timeline.at(0)  # the same rows every time
    assert first.rows == 4
    for _ in range(300):
        run.take_step()
        loss = run.points.sums.nll[0] / run.points.sums.masked[0]
        run.points.sums = type(run.points.sums).none(1)
    assert loss < 0.05


def test_the_first_loss_is_the_unigram_entropy_and_a_model_that_stays_there_is_called_out(tmp_path, capsys):
    run = fresh(tmp_path, replace(TINY, steps=3, learning_rate=1e-9, matrix_learning_rate=1e-9))
    said = looping.train(run)
    point = json.loads((run.folder / "curve.jsonl").read_text().splitlines()[-1])
    assert math.isclose(point["train/loss"], run.points.unigram_entropy, abs_tol=0.15)
    assert said["facts"]["at_unigram_level"] and said["facts"]["guards"]["plateau"] is None
    assert "still at the unigram level" in capsys.readouterr().err


def test_a_checkpoint_is_only_used_while_curve_and_settings_are_those_of_its_time(tmp_path):
    run = begun(tmp_path)
    for _ in range(2):
        run.take_step()
        kept(run)
    assert begun(tmp_path).step == 2
    curve = run.journal.curve.read_bytes()
    run.journal.curve.write_bytes(curve.replace(b'"step":2,', b'"step":5,'))
    other = begun(tmp_path)
    assert other.step == 1 and other.journal.curve.read_bytes() == curve[: curve.index(b"\n") + 1]
    another = fresh(tmp_path)
    another.job["run"] = "another"
    another.begin()
    assert another.step == 0 and not another.journal.curve.read_bytes()


@pytest.mark.parametrize(
    "settings",
    [
        {"mask_rates": MaskRates("linear", ("0.3", "0.15"))},
        {"batch_warmup": BatchWarmup(4 * L, "0.5"), "schedule": "cosine"},
        {"dropout": 0.1, "optimizer": "adamw"},
        {"lengths": Lengths((16,), ("0.5",)), "isolate": False},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_a_resume_in_the_middle_ends_in_the_same_bytes(tmp_path, settings):
    config = replace(TINY, steps=9, log_every=1, **settings)
    lengths = config.lengths.lengths

    def go_on(folder, steps):
        run = begun(folder, config, lengths=lengths)
        for _ in range(steps):
            run.take_step()
            kept(run)
        return run

    whole = go_on(tmp_path / "whole", 9)
    for steps, lost in ((2, 1), (4, 2), (3, 0)):  # `lost`: taken after the checkpoint that is gone on from
        run = go_on(tmp_path / "parts", steps)
        for _ in range(lost):
            run.take_step()
    assert run.step == whole.step == 9
    assert same(parameters(whole), parameters(run))
    assert run.journal.curve.read_bytes() == whole.journal.curve.read_bytes()
    points = [json.loads(line) for line in whole.journal.curve.read_text().splitlines()]
    if "mask_rates" in settings:
        rates = [point["train/mask_rate"] for point in points]
        assert rates[0] == 0.3 and rates[-1] == 0.15 and len(set(rates)) == 9
    if lengths:
        assert [point["train/length"] for point in points][::8] == [16, 32]


def test_a_schedule_changes_what_is_hidden_and_neither_the_slots_nor_the_validation(tmp_path):
    plain = begun(tmp_path / "plain")
    run = begun(tmp_path / "steps", replace(TINY, mask_rates=MaskRates("steps", ("0.15", "0.5"), ("1/40",))))
    seen, loss = [], run.gradients.loss
    run.gradients.loss = lambda objective, batch: seen.append(batch) or loss(objective, batch)
    for _ in range(2):
        run.take_step()
    assert {len(batch.masked_M) for batch in seen} == {int(count(TINY.micro_tokens, "0.5"))}
    assert [batch.rate for batch in seen] == ["0.15", "0.15", "0.5", "0.5"]
    assert (
        [batch.rate for batch in run.strands[0].validation]
        == [batch.rate for batch in plain.strands[0].validation]
        == ["0.3"] * 3
    )


def test_a_checkpoint_on_other_shards_is_refused_and_stays_where_it_is(tmp_path):
    run = begun(tmp_path)
    run.take_step()
    kept(run)
    other = fresh(tmp_path, seed=8)
    was, now = run.strands[0].main.digest, other.strands[0].main.digest
    with pytest.raises(DataError, match=f"{was[:12]}, and these are {now[:12]};"):
        other.begin()
    assert other.journal.curve.read_bytes() == run.journal.curve.read_bytes()
    assert begun(tmp_path).step == 1


def test_the_place_of_a_checkpoint_is_one_integer_and_the_digests_of_the_shards(tmp_path):
    run = begun(tmp_path)
    for _ in range(2):
        run.take_step()
    kept(run)
    state = checkpoint.newest(run.checkpoints, lambda _: None)[0].state
    assert state["position"] == {"step": 2, "shards": [run.strands[0].main.digest]}
    assert state.keys() == {"run", "position", "tokens", "points", "guards", "chosen", "journal"}


def test_what_a_killed_rank_had_not_finished_is_not_published(tmp_path):
    run = fresh(tmp_path)
    litter = [run.folder / "curve.jsonl.1.tmp", run.folder / "stable" / "step-000000005.safetensors.tmp"]
    for path in litter:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    of_another = run.folder / ".scratch" / "outcome.json.1.tmp"
    of_another.touch()
    run.begin()
    assert not any(path.exists() for path in litter) and of_another.exists()


def test_rows_that_hide_nothing_cost_a_step_without_a_loss_and_not_a_nan(tmp_path):
    run = begun(tmp_path, rate="0.01")
    assert run.take_step() == 0.0 and run.points.sums.masked[0] == 0


def test_validation_does_not_depend_on_the_size_of_its_batches(tmp_path):
    looks = [begun(tmp_path / str(n), replace(TINY, micro_tokens=n * L)).validate()[0] for n in (1, 3, 8)]
    assert max(looks) - min(looks) < 1e-5


def test_unigram_entropy_of_equal_counts_is_the_log_of_the_vocabulary():
    assert math.isclose(entropy(np.full(50, 9)), math.log(50))


# The exact reduction, with one rank: shards are summed in order.


def test_logical_shards_have_the_gradient_of_the_step(tmp_path):
    plain = begun(tmp_path / "fast", replace(TINY, micro_tokens=0, clip=1e9))
    exact = begun(tmp_path / "exact", replace(TINY, micro_tokens=0, clip=1e9, reduction="exact", logical_shards=4))
    for run in (plain, exact):
        run.optimizers.step = lambda: None
        run.take_step()
    for one, other in zip(plain.model.parameters(), exact.model.parameters(), strict=True):
        assert (one.grad - other.grad).abs().max() < 1e-6
    assert math.isclose(plain.points.sums.nll[0], exact.points.sums.nll[0], rel_tol=1e-6)
    assert plain.points.sums.masked[0] == exact.points.sums.masked[0]


# Choices.


def test_a_budget_in_minutes_becomes_steps_once_and_stays(tmp_path, capsys):
    run = begun(tmp_path, replace(TINY, minutes=0.05))
    steps = run.total
    assert steps == run.chosen.steps > 5 and run.step == 0
    assert "minutes are" in capsys.readouterr().err
    again = begun(tmp_path, replace(TINY, minutes=0.05))
    assert again.total == steps
    assert same(parameters(run), parameters(fresh(tmp_path / "other")))  # measuring left no trace


def test_a_short_run_is_not_compiled_and_a_compiler_that_fails_is_said(tmp_path, capsys, monkeypatch):
    from tasks import choices, training

    assert not begun(tmp_path / "short", replace(TINY, compile="auto")).chosen.compiled

    def broken(objective):
        raise RuntimeError("no compiler\nat all")

    monkeypatch.setattr(choices, "WORTH", {"cpu": 0})
    monkeypatch.setattr(training, "compile_objective", broken)
    assert not begun(tmp_path / "broken").chosen.compiled
    assert "torch.compile does not work here (RuntimeError: no compiler)" in capsys.readouterr().err


def test_measuring_knows_the_whole_batch_of_any_run_and_leaves_nothing(tmp_path, monkeypatch):
    """A fork, stable checkpoints, a batch and rows that grow: all of it in the few steps that are measured."""
    from tasks import choices, training
    from tasks.pretrain import pretrain

    taken = []

    def timed(step, device):
        taken.append(run.timeline.at(run.step)[2::2])
        return float(len(taken))

    monkeypatch.setattr(choices, "WORTH", {"cpu": 0})
    monkeypatch.setattr(choices.meter, "timed", timed)
    monkeypatch.setattr(training, "compile_objective", lambda objective: objective)
    store = Store(tmp_path)
    config = replace(TINY, steps=60, stable_checkpoints=20, warmup=0.0)
    whole, _ = pretrain(config, handmade.vocabulary(store), handmade.shards(store), store)
    growing = {"batch_warmup": BatchWarmup(4 * L, "0.5"), "lengths": Lengths((16,), ("0.5",))}
    for name, settings, fork in (
        ("stable", {"steps": 60}, None),
        ("fork", {"steps": 70, "stable_checkpoints": 0, "fork": whole.key}, whole),
        ("minutes", {"minutes": 30.0, "stable_checkpoints": 1, "fork": whole.key}, whole),
        ("growing", {**growing, "steps": 400}, None),
    ):
        one = replace(config, **settings)
        run = fresh(tmp_path / name, one, lengths=one.lengths.lengths, fork=fork)
        run.begin()
        assert set(taken) == {(16, 32)}
        assert run.step == run.timeline.first == (42 if fork else 0)
        assert run.total > 42 if name == "minutes" else run.total == one.steps
        assert not run.watch.read()
        taken.clear()


def test_a_signal_is_heard_while_it_measures(tmp_path):
    run = fresh(tmp_path, replace(TINY, minutes=1.0))
    run.signal = lambda: 15
    with pytest.raises(InterruptedRun, match="stopped by SIGTERM while it measured"):
        run.begin()
    assert run.step == 0
