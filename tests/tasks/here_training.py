"""A run of pretraining in the process of the test. Shared by several test modules."""

from pathlib import Path

import pytest
import torch

from tasks import looping
from tasks.artifacts import Store
from tasks.pretrain import job_of
from tasks.ranks import Ranks
from tasks.training import Training
from tests.tasks import handmade
from tests.tasks.tiny_runs import TINY

L = 32


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def fresh(folder, config=TINY, lengths=(), ranks=None, fork=None, **shards):
    """A run before its first step."""
    store = Store(folder)
    vocabulary = handmade.vocabulary(store)
    made = [handmade.shards(store, **{**shards, "length": length}) for length in (*lengths, L)]
    work = Path(folder, "work")
    (work / ".scratch").mkdir(parents=True, exist_ok=True)
    job = job_of(config, vocabulary, made, work, work / ".scratch", fork)
    run = Training(job, ranks or Ranks(torch.device("cpu")))
    run.loss_seen = []
    return run


def begun(folder, config=TINY, **more):
    run = fresh(folder, config, **more)
    run.begin()
    return run


def kept(run, regular=True):
    """A point and a checkpoint, on the disk."""
    looping._record(run, 0.0, _Bar())
    run.checkpoint(regular)
    run.keeper.wait()


class _Bar:
    def note(self, text):
        pass


def parameters(run):
    return {name: value.detach().clone() for name, value in run.model.named_parameters()}


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())
