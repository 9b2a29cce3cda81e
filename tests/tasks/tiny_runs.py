"""Tiny runs of pretraining on handmade inputs, and how they are stopped. Shared by several test modules."""

from pathlib import Path

import psutil
import pytest

from tasks import launch
from tasks.artifacts import Store
from tasks.pretrain import PretrainConfig, pretrain
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
