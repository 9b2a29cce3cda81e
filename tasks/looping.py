"""From the first step to the last, and what is left of it: the model folder and the figures of the artifact."""

from __future__ import annotations

import json
import math
import shutil
import signal
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import checkpoint, flops, meter, modalities, profiling, verdict
from .artifacts import load
from .encoder import MaskedLanguageModel
from .errors import InterruptedRun
from .guards import UNIGRAM_MARGIN
from .masking import fraction
from .progress import Bar, progress, say
from .sharding import load_parameters
from .stock import save_stock
from .training import Training


def train(training: Training) -> dict[str, Any]:
    """Begin or go on, take all steps, write the model. Returns the counts, facts and measurements of the artifact.

    Raises:
        InterruptedRun: a signal came, and the last finished step is kept in a checkpoint. NumericError, DiskFullError.
    """
    size = 4 * flops.parameters(training.sizes)
    if training.ranks.first:  # weights and at most two moments
        checkpoint.room(training.checkpoints, 3 * size, size * (1 + 3 * training.config["stable_checkpoints"]))
    _heed(training, max(int(one[0]) for one in training.ranks.numbers(training.signal())), kept=False)
    training.begin()
    if training.gradients.exact:
        each, ranks = size / 1e6, training.ranks.count
        say(f"pretrain: exact reduction takes {ranks + 2} gradients of {each:,.1f} MB on each of {ranks} ranks")
    training.points.peak = _peak(training)
    training.points.go_on(training.tokens)
    with progress("pretrain", total=training.total - training.step, unit="steps") as bar:
        while training.step < training.total:
            norm = training.take_step()
            if _due(training, "log_every", "validation_every"):
                _record(training, norm, bar)
            regular = training.step in training.stable or training.step % training.guards.config.rollback_every == 0
            due = regular or _due(training, "checkpoint_every")
            if due or (training.stopping and training.step < training.total):
                training.checkpoint(regular)
            if training.keeper:
                training.keeper.poll()
            bar.advance()
            if training.step < training.total:
                _heed(training, training.stopping)
    if training.keeper:
        training.keeper.close()
    weights = training.weights()
    return finish(training, weights) if training.ranks.first else {}


def profile(training: Training, steps: int) -> dict[str, Any]:
    """`maskmill profile`: some real steps, measured; nothing is written but the job's folder."""
    training.begin()
    return {"profile": profiling.profile(training, steps)}


def _due(training: Training, *every: str) -> bool:
    return training.step == training.total or any(training.step % training.config[name] == 0 for name in every)


def _heed(training: Training, number: int, kept: bool = True) -> None:
    """Raises InterruptedRun where some rank was asked to stop; the checkpoint is safe by then."""
    if not number:
        return
    if training.keeper:
        training.keeper.close()
    where = f"after step {training.step} of {training.total}, which is kept" if kept else "before its first step"
    raise InterruptedRun(
        f"pretrain: stopped by {signal.Signals(number).name} {where}; the same command goes on from there."
    )


def _record(training: Training, norm: float, bar: Bar) -> None:
    """A point of the curve; with a look at the validation split where one is due."""
    step, timeline = training.step, training.timeline
    given = {
        "train/learning_rate": training.config["learning_rate"] * timeline.multiplier(step - 1),
        "train/gradient_norm": norm,
    }
    if timeline.pace.mask_rates.varies:
        given["train/mask_rate"] = float(fraction(timeline.mask_rate(step - 1)))
    if len(timeline.shapes()) > 1:
        take = timeline.at(step - 1)
        given |= {"train/batch_tokens": take.rows * take.length, "train/length": take.length}
    if _due(training, "validation_every"):
        given |= _look(training)
    points = training.points
    points.write(step, training.tokens, given, training.total - step, training.watch)
    loss = points.last.get("train/loss", math.nan)
    text = f"loss {loss:.3f} · {points.last['train/tokens_per_second']:,.0f} tok/s"
    if math.isfinite(points.validation):
        text += f" · validation {points.validation:.3f}"
    bar.note(text)


def _look(training: Training) -> dict[str, float]:
    """Validation: of the first strand, and of another by the name of its modality."""
    first, *others = training.validate()
    if math.isfinite(first):
        training.points.validation = first
    found = {f"validation/masked_cross_entropy_{one.modality}": loss for one, loss in zip(training.strands[1:], others)}
    return {"validation/masked_cross_entropy": first, **found}


def _peak(training: Training) -> float:
    """Operations a second of all ranks together, measured by all at once."""
    dtype = getattr(torch, training.config["dtype"])
    own = meter.matmul_peak(str(training.device), dtype, torch.get_num_threads())
    return sum(one[0] for one in training.ranks.numbers(own))


def finish(training: Training, weights: dict[str, Tensor]) -> dict[str, Any]:
    """Write the model folder, say what came of it, and return what the manifest says."""
    whole = MaskedLanguageModel(*(strand.sizes for strand in training.strands))
    load_parameters(whole.named_parameters(), weights)
    _save(whole, training.folder / modalities.MODEL, Path(training.job["vocabulary"]))
    if whole.beside:
        _save(whole.beside, training.folder / modalities.BESIDE, Path(training.job["beside"][0][0]))
    loss, at_unigram = _last_loss(training)
    clock = training.points.clock
    speed = training.tokens / max(clock.seconds, 1e-9)
    bound = _bound_by(training)
    resumed = f"; resumed at step {clock.resumed[-1]}" if clock.resumed else ""
    say(f"pretrain: {training.tokens:,} tokens, loss {loss:.3f}, {speed:,.0f} tokens/s{resumed}")
    say(f"pretrain: bound by {bound.bound_by}: {bound.why}")
    return {
        "counts": {"steps": training.step, "tokens": training.tokens},
        "facts": {
            "parameters": sum(one.numel() for one in whole.parameters()),
            "steps": training.step,
            "tokens": training.tokens,
            "positions": training.timeline.positions,
            **{
                name: vars(strand.sizes)
                for name, strand in zip((modalities.MODEL, modalities.BESIDE), training.strands)
            },
            "initial_seed": training.config["seed"],
            "chosen": vars(training.chosen),
            "stable": _stable(training.folder),
            "guards": training.guards.facts(),
            "unigram_entropy": round(training.points.unigram_entropy, 6),
            "at_unigram_level": at_unigram,
        },
        "measured": _measured(training, speed, bound),
    }


def _save(model: MaskedLanguageModel, folder: Path, vocabulary: Path) -> None:
    """A model folder, with what the vocabulary adds to it."""
    words = load(vocabulary)
    save_stock(model, folder)
    for name in modalities.of(words.facts).files:
        shutil.copyfile(words.whole(name), folder / name)


def _stable(folder: Path) -> list[dict[str, Any]]:
    """Where the run stood at each of its stable checkpoints."""
    receipts = sorted((folder / checkpoint.STABLE).glob("step-*.json"))
    return [json.loads(path.read_bytes())["state"]["begun"] for path in receipts]


def _last_loss(training: Training) -> tuple[float, bool]:
    """The curve's last loss; and whether the model has learned token frequencies and no more, which is said."""
    points = [json.loads(line) for line in training.journal.curve.read_bytes().splitlines()]
    names = ("validation/masked_cross_entropy", "train/loss")
    loss = next((point[name] for point in reversed(points) for name in names if name in point), math.nan)
    entropy = training.points.unigram_entropy
    at_unigram = loss > entropy - UNIGRAM_MARGIN
    if at_unigram:
        say(
            f"pretrain: the loss ({loss:.2f}) is still at the unigram level ({entropy:.2f} nats): the model knows "
            "token frequencies and no more; train longer, or look at the learning rates and at the corpus."
        )
    return loss, at_unigram


def _bound_by(training: Training) -> verdict.Verdict:
    """Of the whole run, from what it measured as it went."""
    clock = training.points.clock
    shares = meter.shares(clock.parts, clock.seconds)
    products = meter.mfu(clock.flops, clock.seconds, training.points.peak)
    figures = verdict.Figures(shares["data"], shares["communication"], shares["optimizer"], products)
    return verdict.verdict(figures, training.config, training.sizes.length)


def _measured(training: Training, speed: float, bound: verdict.Verdict) -> dict[str, Any]:
    clock, kept = training.points.clock, training.keeper.spent if training.keeper else None
    return {
        "training_seconds": round(clock.seconds, 3),
        "tokens_per_second": round(speed, 1),
        "mfu": round(meter.mfu(clock.flops, clock.seconds, training.points.peak), 4),
        "matmul_peak_flops": training.points.peak,
        "shares": {name: round(one, 4) for name, one in meter.shares(clock.parts, clock.seconds).items()},
        "bound_by": bound.bound_by,
        "checkpoint_seconds": {name: round(one, 3) for name, one in vars(kept).items()} if kept else {},
        "peak_memory_bytes": meter.peak_memory(training.device),
        "resumed_at_steps": clock.resumed,
        "ranks": clock.worlds,
    }
