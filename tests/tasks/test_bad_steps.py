"""A step whose loss or gradient is not finite: what the guards do, and that no kill changes it."""

import math
from dataclasses import replace

import pytest

from tasks import looping
from tasks.errors import InterruptedRun, NumericError
from tasks.guards import GuardsConfig
from tests.tasks.here_training import _one_thread as _one_thread
from tests.tasks.here_training import begun, fresh, kept, parameters, same
from tests.tasks.tiny_runs import TINY


def poison(run, steps):
    """The loss of these steps (from 1) is not finite."""
    loss = run.gradients.loss

    def poisoned(objective, batch):
        found = loss(objective, batch)
        return found._replace(sum_nll=found.sum_nll * math.nan) if run.step + 1 in steps else found

    run.gradients.loss = poisoned


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(tmp_path, capsys):
    run = begun(tmp_path)
    run.take_step()
    before, moments = parameters(run), {n: t.clone() for n, t in run.optimizers.state_tensors().items()}
    poison(run, {2})
    run.take_step()
    assert same(before, parameters(run)) and same(moments, run.optimizers.state_tensors())
    assert run.guards.facts()["skipped"] == {"count": 1, "first_step": 2, "last_step": 2}
    assert "step 2 has loss nan" in capsys.readouterr().err
    masked = run.points.sums.masked[0]
    run.take_step()
    assert not same(before, parameters(run)) and run.points.sums.masked[0] > masked
    assert math.isfinite(run.points.sums.nll[0])


def test_many_in_a_row_go_back_to_the_last_regular_checkpoint_and_pass_the_batches_over(tmp_path):
    config = replace(TINY, guards=GuardsConfig(patience=1, rollbacks=1))
    run = begun(tmp_path, config)
    poison(run, {4, 5, 7, 8})
    run.take_step()
    kept(run)
    good = parameters(run)
    run.take_step()
    kept(run, regular=False)  # of an interruption: not to be gone back to
    for _ in range(3):
        run.take_step()
    assert run.step == 5 and same(good, parameters(run))
    assert run.guards.facts()["rollbacks"] == [{"from_step": 5, "to_step": 1, "reason": "not finite"}]
    run.take_step()
    run.take_step()
    with pytest.raises(NumericError, match="again and again; the last good checkpoint is step"):
        run.take_step()


def test_a_kill_among_bad_steps_changes_no_bit(tmp_path):
    config = replace(TINY, guards=GuardsConfig(patience=1, rollbacks=3))

    def go(folder, steps, every=3):
        run = begun(folder, config)
        poison(run, {5, 6, 9})
        for _ in range(steps):
            run.take_step()
            if run.step % every == 0:
                kept(run)
        return run

    whole = go(tmp_path / "whole", 11)
    parts = go(tmp_path / "parts", 4)
    kept(parts, regular=False)  # interrupted after step 4
    parts = go(tmp_path / "parts", 7)
    assert parts.step == whole.step and same(parameters(whole), parameters(parts))
    assert parts.guards.facts() == whole.guards.facts()


@pytest.mark.parametrize("every", [(3, 3), (4, 4), (3, 4), (4, 1)])
def test_when_checkpoints_are_taken_changes_no_bit_of_a_run_that_goes_back(tmp_path, every):
    """checkpoint_every is no part of the identity: not even where a guard fires, or where it changes on the way."""
    ends = []
    for name, (one, other), stop in (("plain", (100, 100), 0), ("other", every, 7)):
        guards = GuardsConfig(patience=1, rollbacks=3, rollback_every=5)
        for checkpoint_every, stopping in ((one, stop), (other, 0)):
            config = replace(TINY, steps=12, checkpoint_every=checkpoint_every, guards=guards)
            run = fresh(tmp_path / name, config)
            poison_all(run, {9, 10})
            run.signal = lambda run=run, stopping=stopping: 15 if stopping and run.step + 1 == stopping else 0
            if stopping:
                with pytest.raises(InterruptedRun):
                    looping.train(run)
            else:
                looping.train(run)
        ends.append(run)
    assert ends[0].guards.facts()["rollbacks"] == [{"from_step": 10, "to_step": 5, "reason": "not finite"}]
    assert ends[0].guards.facts() == ends[1].guards.facts() and same(*map(parameters, ends))


def poison_all(run, steps):
    """As `poison`, for a run that has not begun."""
    settle = run.settle

    def poisoned(*arguments, **keywords):
        settle(*arguments, **keywords)
        poison(run, steps)

    run.settle = poisoned
