"""What is chosen by measurement, once, before the first step: it goes into the first checkpoint, and a resume keeps it.

    compiled   does torch.compile pay? asked where a run is long enough to earn back the minutes that compiling takes
    steps      a budget in minutes as steps, from the seconds of a few whole steps
    micro      where a CUDA device has too little memory for a rank's rows at once: half as many, until they fit

Everything is measured on real steps, and all that they changed is put back. Two fresh runs may choose otherwise on a
machine that is busy otherwise: where a run shall be repeated bit for bit, write pretrain.compile, and no minutes.
"""

from __future__ import annotations

import shutil
import signal
import statistics
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from . import meter
from .errors import InterruptedRun
from .progress import say
from .ranks import lost_peer

if TYPE_CHECKING:
    from .training import Training

WORTH = {"cpu": 4e14, "cuda": 1e17}
"""Operations of a run from which on trying torch.compile pays: it takes a minute or two, of half an hour."""
GAIN = 0.97
"""A compiled step must take less than this share of a plain one."""
TRIALS = 6
WARM = 3
REHEARSED = 100
"""Steps of the run whose last ones are measured: by then batch and rows have grown to what most steps take."""


@dataclass(frozen=True)
class Chosen:
    """The choices of a run."""

    compiled: bool = False
    steps: int = 0
    """The budget, where it was in minutes."""
    micro_tokens: int = 0
    """Positions at a time."""


def choose(training: Training) -> Chosen:
    """Measure what the settings leave open. Collective: every rank calls it, and all get the first one's choice."""
    config = training.config
    chosen = Chosen(config["compile"] == "on", 0, config["micro_tokens"])
    if training.device.type == "cuda":
        chosen = _that_fits(training, chosen)
    if config["compile"] == "auto" and _worth(training):
        chosen = replace(chosen, compiled=_compile_pays(training, chosen))
    if config["minutes"]:
        chosen = replace(chosen, steps=_steps_in(training, chosen))
    return Chosen(**training.ranks.from_first(vars(chosen)))


def _worth(training: Training) -> bool:
    config = training.config
    if config["reduction"] == "exact" or (training.device.type == "cpu" and not shutil.which("g++")):
        return False
    if config["minutes"]:
        return bool(config["minutes"] >= 20)
    return training.needed_flops() > WORTH[training.device.type]


def _compile_pays(training: Training, chosen: Chosen) -> bool:
    say("pretrain: trying torch.compile; this takes a minute or two, once")
    plain = _seconds(training, replace(chosen, compiled=False))
    try:
        compiled = _seconds(training, replace(chosen, compiled=True))
    except Exception as error:  # a missing compiler, an operation that it does not know: then not
        if isinstance(error, InterruptedRun) or lost_peer(error) or not training.ranks.together():
            raise
        say(f"pretrain: torch.compile does not work here ({type(error).__name__}: {str(error).splitlines()[0][:160]})")
        compiled = float("inf")
    pays = bool(training.ranks.from_first(compiled < GAIN * plain))
    say(f"pretrain: a step takes {plain:.3f} s plain and {compiled:.3f} s compiled: {'compiled' if pays else 'plain'}")
    return pays


def _steps_in(training: Training, chosen: Chosen) -> int:
    """The budget of minutes as steps, with the looks at the validation split taken off."""
    config = training.config
    step = _seconds(training, chosen)
    began = time.monotonic()
    training.validate()
    look = time.monotonic() - began
    steps = int(60 * config["minutes"] / (step + look / config["validation_every"]))
    say(f"pretrain: {config['minutes']:g} minutes are {steps:,} steps of {step:.3f} s")
    return _first(training) + max(1, steps)


def _first(training: Training) -> int:
    """The run's first step: that at which it was forked from another."""
    return training.begun.step if training.begun else 0


def _that_fits(training: Training, chosen: Chosen) -> Chosen:
    """Half as many positions at a time, until the device has the memory. The step and its gradient are the same."""
    while True:
        try:
            _seconds(training, chosen, trials=1)
            return chosen
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            now = chosen.micro_tokens or training.config["batch_tokens"] // training.ranks.count
            if now <= training.sizes.length or not training.ranks.together():
                raise
            chosen = replace(chosen, micro_tokens=max(training.sizes.length, now // 2))
            say(f"pretrain: too little memory; {chosen.micro_tokens:,} positions at a time")


def _seconds(training: Training, chosen: Chosen, trials: int = TRIALS) -> float:
    """Of a step: the median of some, after some to warm up. The run is then again at its beginning."""
    training.settle(replace(chosen, steps=_first(training) + REHEARSED), trial=True)
    training.step = training.total - WARM - trials
    seconds: list[Any] = []
    try:
        for _ in range(WARM + trials):
            seconds.append(meter.timed(training.take_step, training.device))
            if training.stopping:
                name = signal.Signals(training.stopping).name
                raise InterruptedRun(
                    f"pretrain: stopped by {name} while it measured, before its first step; run the same command again."
                )
    finally:
        training.watch.read()
        training.start_again()
    return statistics.median(seconds[WARM:])
