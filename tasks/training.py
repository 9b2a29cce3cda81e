"""A training run: its state, one step of it, what it says and what it keeps.

One step: batch(step) -> losses summed over the micro-batches, divided once by the step's Σ|𝓜| -> clip -> optimizers.
All of it is a function of (weights, optimizer state, step): batch, masks, mask rate and learning rate come from the
step's number. So a checkpoint's place in the data is one integer and the digest of the shards (`Position`), with no
generator and nothing to replay, and a resumed run ends in the same bytes as an undisturbed one.
"""

from __future__ import annotations

import json
import math
import resource
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import checkpoint
from .artifacts import Manifest, load
from .batches import Batch, Position, ShardReader, frozen_batch, training_batch
from .encoder import EncoderConfig, MaskedLanguageModel, Segments, initialise
from .errors import DataError, InterruptedRun, NumericError
from .journal import Journal
from .masking import fraction
from .objective import Loss, masked_loss
from .optimizer import OptimizerConfig, build, schedule
from .progress import Bar, progress, say
from .rates import MaskRates
from .stock import save_stock

UNIGRAM_MARGIN = 0.1
"""Nats below the unigram entropy that a model must reach to have learned more than word frequencies."""


@dataclass
class Sums:
    """What the steps since the last point of the curve add up to; part of a checkpoint."""

    nll: float = 0.0
    correct: int = 0
    masked: int = 0


@dataclass
class Clock:
    """What depends on the clock: never part of the weights or the curve."""

    seconds: float = 0.0
    """Of training, over all resumes."""
    since: float = 0.0
    """time.monotonic() of the last point of the curve."""
    tokens: int = 0
    """Tokens at the last point."""
    waited: float = 0.0
    """Seconds spent on making batches since the last point."""


class Training:
    """A training run between two steps."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job, self.config = job, job["config"]
        self.folder = Path(job["folder"])
        self.journal = Journal(self.folder)
        self.checkpoints = Path(job["scratch"]) / "checkpoints"
        self.device = torch.device(self.config["device"])
        shards = load(Path(job["shards"]))
        if shards.digest != job["inputs"]["shards"]:
            raise DataError(f"{shards.folder} is not the artifact that this run was started for; run it again.")
        self.reader = ShardReader(shards, "train")
        self.total = total_steps(self.config, shards.facts)
        counts = np.load(shards.whole("unigrams.npy"), allow_pickle=False)
        self.unigram_entropy = entropy(counts)
        self.model = MaskedLanguageModel(encoder_config(self.config, shards.facts))
        initialise(self.model, self.config["seed"], counts)
        self.model.to(self.device).train()
        self.optimizers = build(self.model, optimizer_config(self.config))
        self.validation = self._validation_batches(shards)
        self.mask_rates = MaskRates(**self.config["mask_rates"])
        self.position = Position(0, shards.digest)
        self.tokens = 0
        self.sums, self.clock = Sums(), Clock()
        self.resumed: list[int] = []
        self.validation_loss = math.nan
        self.metrics: dict[str, float] = {}

    def _validation_batches(self, shards: Manifest) -> list[Batch]:
        """The first rows of the validation split with their frozen draw: the same at every look, and a bounded cost."""
        reader = ShardReader(shards, "validation")
        rows = min(reader.rows, self.config["validation_rows"])
        size = self.config["micro_rows"] or self.config["rows_per_step"]
        ids = [np.arange(at, min(at + size, rows)) for at in range(0, rows, size)]
        return [frozen_batch(reader, piece, reader.rate) for piece in ids]

    @property
    def step(self) -> int:
        """Steps taken so far."""
        return self.position.step(self.config["rows_per_step"])

    # One step.

    def take_step(self) -> float:
        """Advance by one step; returns the gradient norm before clipping. Raises NumericError."""
        began = time.monotonic()
        rows = self.config["rows_per_step"]
        rate, slots = self.mask_rate(self.step), self.mask_rates.highest(self.reader.rate)
        batch = training_batch(self.reader, self.step, rows, self.config["seed"], rate=rate, slots=slots)
        self.clock.waited += time.monotonic() - began
        self.optimizers.set_lr(self.multiplier(self.step))
        self.optimizers.zero_grad()
        losses = []
        for micro in batch.split(self.config["micro_rows"]):
            loss = self._loss(micro)
            torch.autograd.backward(loss.sum_nll / max(batch.count, 1))  # one division, by the count of the whole step
            losses.append(torch.stack((loss.sum_nll.detach(), loss.correct)))
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config["clip"]))
        nll, correct = torch.stack(losses).sum(dim=0).tolist()
        if not (math.isfinite(nll) and math.isfinite(norm)):
            raise NumericError(self._not_finite(nll, norm))
        self.optimizers.step()
        self.position = self.position.after(rows)
        self.tokens += batch.tokens
        self.sums.nll += nll
        self.sums.correct += int(correct)
        self.sums.masked += batch.count
        return norm

    def _loss(self, batch: Batch) -> Loss:
        segments = Segments.from_ids(batch.segment_ids_BL, self.config["window"]).to(self.device)
        on_host = (batch.tokens_BL, batch.masked_M, batch.targets_M, batch.weights_M)
        tokens_BL, masked_M, targets_M, weights_M = (one.to(self.device, non_blocking=True) for one in on_host)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config["dtype"] == "bfloat16"):
            return masked_loss(self.model, tokens_BL, segments, masked_M, targets_M, weights_M)

    def multiplier(self, step: int) -> float:
        warmup, decay = (round(self.config[name] * self.total) for name in ("warmup", "decay"))
        return schedule(step, self.total, warmup, decay)

    def mask_rate(self, step: int) -> str:
        """p of a step; validation stays at the shards' rate, so that two looks compare."""
        return self.mask_rates.rate_at(step, self.total) or self.reader.rate

    def _not_finite(self, nll: float, norm: float) -> str:
        good = checkpoint.steps(self.checkpoints)
        kept = f"the last good checkpoint is step {good[-1]} in {self.checkpoints}" if good else "no checkpoint yet"
        return (
            f"pretrain: step {self.step + 1} has loss {nll} and gradient norm {norm}; {kept}; lower "
            "pretrain.learning_rate or pretrain.matrix_learning_rate, or set pretrain.dtype to float32."
        )

    @torch.no_grad()
    def validate(self) -> float:
        """Masked cross-entropy, nats per masked token, on the frozen draws; NaN where the split hides nothing."""
        self.model.eval()
        nll = sum(float(self._loss(batch)[0]) for batch in self.validation)
        self.model.train()
        masked = sum(batch.count for batch in self.validation)
        self.validation_loss = nll / masked if masked else math.nan
        return self.validation_loss

    # What it says.

    def record(self, norm: float) -> None:
        """A point of the curve (a function of the weights) and a line of the spool (with the clock's figures)."""
        masked = max(self.sums.masked, 1)
        metrics = {
            "train/loss": self.sums.nll / masked,
            "train/accuracy": self.sums.correct / masked,
            "train/learning_rate": self.config["learning_rate"] * self.multiplier(self.step - 1),
            "train/gradient_norm": norm,
        }
        if self.mask_rates.varies:
            metrics["train/mask_rate"] = float(fraction(self.mask_rate(self.step - 1)))
        due = self.step % self.config["validation_every"] == 0 or self.step == self.total
        if due and math.isfinite(loss := self.validate()):
            metrics["validation/masked_cross_entropy"] = loss
        point = {"step": self.step, "tokens": self.tokens, **metrics}
        now = time.monotonic()
        seconds = max(now - self.clock.since, 1e-9)
        metrics["train/tokens_per_second"] = (self.tokens - self.clock.tokens) / seconds
        metrics["train/data_wait_share"] = self.clock.waited / seconds
        metrics["train/tokens"] = self.tokens
        line = {"step": self.step, "timestamp_ms": time.time_ns() // 1_000_000, "metrics": metrics}
        self.journal.write(point, line)
        self.clock = Clock(self.clock.seconds + seconds, now, self.tokens)
        self.sums = Sums()
        self.metrics = metrics

    # What it keeps.

    def checkpoint(self) -> None:
        """The whole state, and how far the curve and the spool had come."""
        state = {
            "run": self.job["run"],
            "position": vars(self.position),
            "tokens": self.tokens,
            "sums": vars(self.sums),
            "seconds": self.clock.seconds,
            "resumed": self.resumed,
            "journal": self.journal.mark(),
        }
        tensors: dict[str, Tensor] = {f"model/{name}": value for name, value in self.model.named_parameters()}
        tensors |= {f"optimizer/{name}": value for name, value in self.optimizers.state_tensors().items()}
        checkpoint.save(self.checkpoints, self.step, tensors, state)

    def resume(self) -> None:
        """Go on from the newest whole checkpoint, if there is one; cut curve and spool back to it.

        Raises DataError where the checkpoint was taken on other shards.
        """
        found, findings = checkpoint.newest(self.checkpoints, self._refuse)
        for finding in findings:
            say(f"pretrain: {finding}; it was moved to quarantine and the checkpoint before it is used")
        if found:
            self.position = Position(**found.state["position"])
            self.position.check(self.reader.digest)
        self.journal.cut_back(found.state["journal"] if found else None)
        if not found:
            return
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(found.tensors[f"model/{name}"])
        moments = {n.removeprefix("optimizer/"): t for n, t in found.tensors.items() if n.startswith("optimizer/")}
        self.optimizers.load_state_tensors(moments)
        state = found.state
        self.tokens, self.sums = state["tokens"], Sums(**state["sums"])
        self.clock = Clock(state["seconds"], tokens=self.tokens)
        self.resumed = [*state["resumed"], self.step]
        say(f"pretrain: resumed at step {self.step} of {self.total}")

    def _refuse(self, state: dict[str, Any]) -> str | None:
        if state["run"] != self.job["run"]:
            return "its settings or its vocabulary are not those of this run"
        if not self.journal.holds(state["journal"]):
            return "the curve does not begin with what it was when the checkpoint was taken"
        return None


def train(training: Training, stopped: Callable[[], str | None]) -> None:
    """From the state it is in to the last step.

    Args:
        stopped: asked before each step; the reason to stop, or None.
    Raises:
        InterruptedRun: it was to stop, and the last finished step is kept in a checkpoint. NumericError.
    """
    config = training.config
    training.clock.since, training.clock.tokens = time.monotonic(), training.tokens
    with progress("pretrain", total=training.total - training.step, unit="steps") as bar:
        while training.step < training.total:
            if reason := stopped():
                raise _interrupted(training, reason)
            norm = training.take_step()
            last = training.step == training.total
            if training.step % config["log_every"] == 0 or training.step % config["validation_every"] == 0 or last:
                training.record(norm)
                _note(bar, training)
            if training.step % config["checkpoint_every"] == 0 or last:
                training.checkpoint()
            bar.advance()


def _note(bar: Bar, training: Training) -> None:
    text = f"loss {training.metrics['train/loss']:.3f} · {training.metrics['train/tokens_per_second']:,.0f} tok/s"
    if math.isfinite(training.validation_loss):
        text += f" · validation {training.validation_loss:.3f}"
    bar.note(text)


def _interrupted(training: Training, reason: str) -> InterruptedRun:
    if training.step:
        training.checkpoint()
    return InterruptedRun(
        f"pretrain: stopped by {reason} after step {training.step} of {training.total}, which is kept; "
        "the same command goes on from there."
    )


def finish(training: Training, vocabulary: Manifest) -> dict[str, Any]:
    """Write the model folder. Returns the counts, facts and measurements of the artifact."""
    model = training.folder / "model"
    save_stock(training.model, model)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(vocabulary.whole(name), model / name)
    points = [json.loads(line) for line in training.journal.curve.read_bytes().splitlines()]
    loss = points[-1].get("validation/masked_cross_entropy", points[-1]["train/loss"])
    at_unigram = loss > training.unigram_entropy - UNIGRAM_MARGIN
    if at_unigram:
        say(
            f"pretrain: the loss ({loss:.2f}) is still at the unigram level ({training.unigram_entropy:.2f} nats): the "
            "model knows token frequencies and no more; train longer, or look at the learning rates and at the corpus."
        )
    speed = training.tokens / max(training.clock.seconds, 1e-9)
    resumed = f"; resumed at step {training.resumed[-1]}" if training.resumed else ""
    say(f"pretrain: {training.tokens:,} tokens, loss {loss:.3f}, {speed:,.0f} tokens/s{resumed}")
    return {
        "counts": {"steps": training.step, "tokens": training.tokens},
        "facts": {
            "parameters": sum(parameter.numel() for parameter in training.model.parameters()),
            "steps": training.step,
            "tokens": training.tokens,
            "model": vars(training.model.config),
            "initial_seed": training.config["seed"],
            "unigram_entropy": round(training.unigram_entropy, 6),
            "at_unigram_level": at_unigram,
        },
        "measured": {
            "training_seconds": round(training.clock.seconds, 3),
            "tokens_per_second": round(speed, 1),
            "peak_memory_bytes": _peak_memory(training.device),
            "resumed_at_steps": training.resumed,
        },
    }


def total_steps(config: dict[str, Any], facts: Any) -> int:
    """The budget in steps. One in tokens is divided by the mean ordinary tokens of a step, and rounded up."""
    if config["steps"]:
        return config["steps"]
    train = facts["splits"]["train"]
    # ⌈budget / (rows_per_step * tokens / rows)⌉ in integers: the same on every machine
    return -(-config["tokens"] * train["rows"] // (config["rows_per_step"] * train["tokens"]))


def encoder_config(config: dict[str, Any], facts: Any) -> EncoderConfig:
    """Sizes of the model from the settings; V, L and the special ids from the shards."""
    sizes = {name: config[name] for name in ("layers", "width", "heads", "intermediate", "global_every", "window")}
    special = {f"{name}_id": number for name, number in facts["vocabulary"]["special_ids"].items()}
    return EncoderConfig(vocabulary_size=facts["vocabulary"]["size"], length=facts["length"], **sizes, **special)


def optimizer_config(config: dict[str, Any]) -> OptimizerConfig:
    """The optimizer's part of the settings."""
    return OptimizerConfig(
        kind=config["optimizer"],
        muon_rate=config["matrix_learning_rate"],
        muon_decay=config["weight_decay"],
        adamw_rate=config["learning_rate"],
        adamw_decay=config["weight_decay"],
    )


def entropy(counts: np.ndarray) -> float:
    """Entropy in nats of the add-one-smoothed unigram distribution: the loss of one that knows frequencies only."""
    share = (counts + 1.0) / (counts + 1.0).sum()
    return float(-(share * np.log(share)).sum())


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
