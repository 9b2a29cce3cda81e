"""A training run: its state, and one step of it.

One step: batches -> losses and gradients, summed over micro-batches and ranks, divided once by the step's Σ|𝓜| ->
clip -> guards -> optimizers. All of it is a function of (weights, optimizer state, step): samples, masks, mask rate,
learning rate and dropout come from the step's number (timeline.py). So a checkpoint's place in the data is one integer
and the digests of the shards, with no generator and nothing to replay, and a resumed run ends in the same bytes as an
undisturbed one.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import checkpoint, flops
from .artifacts import Manifest, load
from .batches import Batch, hidden_in, segments_of_step, training_batch
from .choices import Chosen, choose
from .encoder import MaskedLanguageModel, initialise
from .errors import DataError, NumericError
from .gradients import Gradients
from .guards import Action, Guards, GuardsConfig
from .journal import Journal
from .keeper import Keeper, Stable
from .meter import Stopwatch
from .objective import Loss, Objective, compile_objective
from .optimizer import OptimizerConfig, Optimizers, build
from .packing import SPECIALS
from .points import Points
from .progress import say
from .ranks import Ranks
from .sharding import build_dealt, build_sharded, load_parameters, named_slices, shard, whole_tensors
from .strand import Strand
from .stretches import Begun
from .timeline import Pace, Timeline

FLIGHT = 20.0
"""Seconds that a checkpoint in writing gets where training has failed."""


class Training:
    """A training run between two steps. With several ranks each has one, and all methods are collective."""

    def __init__(self, job: dict[str, Any], ranks: Ranks, signal: Callable[[], int] = lambda: 0) -> None:
        """
        job     what pretrain wrote for the training process
        signal  number of the signal that asks this rank to stop; 0 for none
        """
        self.job, self.ranks, self.signal = job, ranks, signal
        self.config, self.device = dict(job["config"]), ranks.device
        self.folder, self.checkpoints = Path(job["folder"]), Path(job["scratch"]) / "checkpoints"
        self.journal = Journal(self.folder, writer=ranks.first)
        shards = [_of_this_run(load(Path(path)), digest) for path, digest in job["shards"]]
        self.strands = [Strand(self.config, shards)]
        if second := job.get("beside"):
            other = _of_this_run(load(Path(second[1][0])), second[1][1])
            self.strands.append(Strand(self.config | self.config["beside"], [other], 1))
        own = self.strands[0]
        self.sizes, self.readers, self.supplies = own.sizes, own.readers, own.supplies
        self.points = Points(self.journal, self.strands, self.device)
        self.watch = Stopwatch(self.device)
        self.keeper = Keeper(self.checkpoints, before_receipt=self.journal.sync) if ranks.first else None
        self.stopping = 0
        """The signal that some rank was asked to stop by."""
        self.start_again()

    def start_again(self) -> None:
        """The state before the first step: fresh, or that of the run it is forked from."""
        self.model = MaskedLanguageModel(*(strand.sizes for strand in self.strands))
        self.model.encoder.recompute = self.config["recompute"]
        initialise(self.model, self.config["seed"], *(strand.counts for strand in self.strands))
        self.model.to(self.device).train()
        self.objective = Objective(self.model)
        self.optimizers = self._optimizers()
        self.guards = Guards(GuardsConfig(**self.config["guards"]), self.points.highest)
        self.points.start_again()
        self.step, self.tokens = 0, 0
        self.begun: Begun | None = None
        if self.job["fork"]:
            stable = checkpoint.load_stable(Path(self.job["fork"]))
            self.begun = Begun(**stable.state["begun"])
            self.step, self.tokens = self.begun.step, self.begun.tokens
            self._take(stable.tensors)

    def _optimizers(self) -> Optimizers:
        """On several ranks the model is sliced, or every rank has all of it and Muon's work is dealt out."""
        config = optimizer_config(self.config)
        if self.ranks.count == 1:
            return build(self.model, config)
        if self.config["parallel"] == "ddp":
            return build_dealt(self.model, config)
        shard(self.objective, self.model.encoder.layers, self.device.type)
        return build_sharded(self.model, config)

    def settle(self, chosen: Chosen, trial: bool = False) -> None:
        """What follows from the choices: the timeline, and the way in which gradients are made. trial: to measure."""
        self.chosen = chosen
        pace = Pace.of(self.config | ({"steps": chosen.steps} if chosen.steps else {}))
        self.timeline = Timeline(pace, self.supplies, self.begun)
        self.stable = self.timeline.stable_steps(0 if trial else self.config["stable_checkpoints"])
        objective = compile_objective(self.objective) if chosen.compiled else self.objective
        settings = self.config | {"micro_tokens": chosen.micro_tokens}
        self.gradients = Gradients(objective, self.loss_of, self.ranks, settings)

    @property
    def total(self) -> int:
        """Steps of the run; the last one's number."""
        return self.timeline.total

    # How it begins.

    def begin(self) -> None:
        """Go on from the newest whole checkpoint; else make the choices and the first checkpoint.

        The first one, before any step, keeps the choices, and finds a disk that is too small now and not after hours.
        Raises DataError where the checkpoint was taken on other shards, DiskFullError.
        """
        found = self._newest()
        if found:
            _check_place(found.state["position"], self._places())
        if self.ranks.first:
            self._sweep()
        self.journal.cut_back(found.state["journal"] if found else None)
        if found:
            self._resume(found)
            return
        if self.ranks.first:  # of an attempt whose checkpoints were all lost
            shutil.rmtree(self.folder / checkpoint.STABLE, ignore_errors=True)
        self.settle(choose(self))
        self.points.clock.worlds.append([self.step, self.ranks.count])
        self.checkpoint()
        if self.keeper:
            self.keeper.wait()

    def _places(self) -> list[str]:
        """Digests of all shards."""
        return [one.digest for strand in self.strands for one in strand.supplies]

    def _sweep(self) -> None:
        """Remove what a rank that was killed had not finished: everything in the folder is published."""
        for path in list(self.folder.rglob("*.tmp")):
            if not path.is_relative_to(self.job["scratch"]):
                path.unlink(missing_ok=True)

    def _resume(self, found: checkpoint.Checkpoint) -> None:
        state = found.state
        self._take(found.tensors)
        self.step, self.tokens = state["position"]["step"], state["tokens"]
        self.guards = Guards(self.guards.config, self.points.highest, state["guards"])
        self.points.load(state["points"], self.step, self.ranks.count)
        self.settle(Chosen(**state["chosen"]))
        if self.step > self.timeline.first:
            say(f"pretrain: resumed at step {self.step} of {self.total}")

    def _newest(self, regular_only: bool = False) -> checkpoint.Checkpoint | None:
        """The same checkpoint on every rank; the first one looks for it."""
        found: checkpoint.Checkpoint | None = None
        findings: list[str] = []
        step = None
        if self.keeper:
            found, findings = self.keeper.newest(self._refuse, regular_only)
            step = found.step if found else None
        for finding in findings:
            say(f"pretrain: {finding}; it was moved to quarantine and the checkpoint before it is used")
        step = self.ranks.from_first(step)
        if step is not None and not self.keeper:
            found = checkpoint.load(self.checkpoints, step)
        return found

    def _refuse(self, state: dict[str, Any]) -> str | None:
        if state["run"] != self.job["run"]:
            return "its settings or its vocabulary are not those of this run"
        if not self.journal.holds(state["journal"]):
            return "the curve does not begin with what it was when the checkpoint was taken"
        return None

    def _take(self, tensors: dict[str, Tensor]) -> None:
        """Weights and optimizer state."""
        weights = {name.removeprefix("model/"): tensor for name, tensor in tensors.items()}
        load_parameters(self._named(), weights)
        moments = {n.removeprefix("optimizer/"): t for n, t in tensors.items() if n.startswith("optimizer/")}
        self.optimizers.load_state_tensors(moments)

    def _named(self) -> list[tuple[str, Tensor]]:
        return named_slices(self.model, self.objective)

    def weights(self) -> dict[str, Tensor]:
        """All parameters, whole, by name; of a sliced model on the first rank only."""
        if self.ranks.count > 1 and self.config["parallel"] == "fsdp":
            return whole_tensors(self._named())
        return {name: value.detach() for name, value in self._named()}

    # One step.

    def take_step(self) -> float:
        """Advance by one step; returns the gradient norm before clipping. Raises NumericError."""
        with self.watch("data"):
            take = self.timeline.at(self.step)
            reader, seed = self.readers[take.shards], self.config["seed"]
            rate = self.timeline.mask_rate(self.step) or reader.rate
            slots = self.timeline.pace.mask_rates.highest(reader.rate)
            lengths_S = segments_of_step(reader, take.first, take.rows, seed)
            count, tokens = hidden_in(lengths_S, rate), int((lengths_S - SPECIALS).sum())
            beside = [(one, one.lengths_of(self.step, seed)) for one in self.strands[1:]]
            counts = [count, *(hidden_in(lengths, one.reader.rate) for one, lengths in beside)]

        def batches_of(part: int, parts: int) -> list[Batch]:
            self.batch = training_batch(
                reader, take.first, take.rows, seed, rate=rate, slots=slots, part=part, parts=parts
            )
            return [self.batch, *(one.batch(self.step, seed, part, parts) for one in self.strands[1:])]

        self.optimizers.set_lr(self.timeline.multiplier(self.step))
        self.optimizers.zero_grad()
        sums = self.gradients.of(self.step, batches_of, sum(counts), lambda: (float(self.signal()),), self.watch)
        self.stopping = int(sums.flags[0])
        with self.watch("optimizer"):
            norm = float(self.optimizers.clip(self.config["clip"]))
            went = self._update(sums.nll / max(sum(counts), 1), norm)
        self.step += 1
        self.tokens += tokens
        needed = flops.step_flops(self.sizes, lengths_S, count).total
        needed += sum(one.flops(lengths) for one, lengths in beside)
        self.points.add(sums, counts if went else [0] * len(counts), needed)
        return norm

    def _update(self, loss: float, norm: float) -> bool:
        """What the guards make of it; was it an ordinary step?"""
        action = self.guards.see(self.step + 1, loss, norm, self.total)
        if self.guards.sentence:
            say(self.guards.sentence)
        if action is Action.GO:
            self.optimizers.step()
        if action is Action.ROLLBACK:
            action = self._roll_back()
        if action is Action.STOP:
            if self.keeper:
                self.keeper.settle(FLIGHT)
            self.ranks.wait()  # each rank names the last checkpoint, and the first one was writing it
            raise NumericError(self._not_finite(loss, norm))
        return action is Action.GO

    def _roll_back(self) -> Action:
        """Weights and optimizer state of the last regular checkpoint, at this place in the data: these batches go."""
        found = self._newest(regular_only=True)
        if not found:
            return Action.STOP
        self._take(found.tensors)
        self.guards.rolled_back(found.step)
        say(f"pretrain: the weights are those of step {found.step} again; the batches since then are passed over")
        return Action.ROLLBACK

    def _not_finite(self, loss: float, norm: float) -> str:
        good = checkpoint.steps(self.checkpoints)
        kept = f"the last good checkpoint is step {good[-1]} in {self.checkpoints}" if good else "no checkpoint yet"
        return (
            f"pretrain: step {self.step + 1} has loss {loss} and gradient norm {norm}, again and again; {kept}; lower "
            "pretrain.learning_rate or pretrain.matrix_learning_rate, or set pretrain.dtype to float32."
        )

    def loss_of(self, objective: nn.Module, batch: Batch) -> Loss:
        """Equations (2) to (5) on one micro-batch."""
        given = self.strands[batch.strand].given(batch, self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config["dtype"] == "bfloat16"):
            loss: Loss = objective(*given)
        return loss

    def loss(self, batch: Batch) -> Loss:
        """The same, as the step does it, and without a word to other ranks."""
        return self.loss_of(self.gradients.plain, batch)

    # Validation.

    @torch.no_grad()
    def validate(self) -> list[float]:
        """Masked cross-entropy of each strand, nats per masked token, on the frozen draws; NaN where nothing is hidden.

        The batches are dealt out to the ranks; every rank does as many, since a sharded model needs all of them.
        """
        self.model.eval()
        found = [self._look(strand.validation) for strand in self.strands]
        self.model.train()
        return found

    def _look(self, batches: list[Batch]) -> float:
        ranks = self.ranks
        rounds = -(-len(batches) // ranks.count)
        own = [batches[(turn * ranks.count + ranks.rank) % len(batches)] for turn in range(rounds)]
        # Never compiled: of a graph without gradients inductor makes an attention of the wrong shape (torch 2.13, CPU).
        nlls = [float(self.loss_of(self.objective, batch).sum_nll) for batch in own]
        by_turn = [nll for turn in zip(*ranks.numbers(*nlls), strict=True) for nll in turn][: len(batches)]
        masked = sum(batch.count for batch in batches)
        return math.fsum(by_turn) / masked if masked else math.nan

    # What it keeps.

    def checkpoint(self, regular: bool = True) -> None:
        """Begin a checkpoint of the whole state, with how far the curve and the spool had come."""
        tensors = {f"model/{name}": value for name, value in self.weights().items()}
        tensors |= {f"optimizer/{name}": value for name, value in self.optimizers.state_tensors().items()}
        if not self.keeper:
            return
        state = {
            "run": self.job["run"],
            "position": {"step": self.step, "shards": self._places()},
            "tokens": self.tokens,
            "points": self.points.state(),
            "guards": self.guards.state(),
            "chosen": vars(self.chosen),
            "journal": self.journal.mark(),
        }
        stable = Stable(self.folder, {"begun": vars(self.standing(self.step, self.tokens))})
        self.keeper.begin(self.step, tensors, state, regular, stable if self.step in self.stable else None)

    def standing(self, step: int, tokens: int) -> Begun:
        """Where the run stands, for a fork."""
        begun = self.timeline.begun_at(step, tokens)
        return replace(begun, samples=dict(begun.samples))

    def needed_flops(self) -> float:
        """Operations of the whole run, about: those of one row's worth of tokens, as often as the budget has it."""
        length = self.sizes.length
        lengths_S = np.array([length])
        one = flops.step_flops(self.sizes, lengths_S, hidden_in(lengths_S, self.readers[-1].rate)).total
        return one / length * Timeline(Pace.of(self.config), self.supplies, self.begun).positions


def _of_this_run(shards: Manifest, digest: str) -> Manifest:
    if shards.digest != digest:
        raise DataError(f"{shards.folder} is not the artifact that this run was started for; run it again.")
    return shards


def _check_place(position: dict[str, Any], shards: list[str]) -> None:
    """Raises DataError where the run would go on with other shards than it began with."""
    if position["shards"] != shards:
        was, now = (", ".join(one[:12] for one in digests) for digests in (position["shards"], shards))
        raise DataError(
            f"pretrain: the checkpoint after step {position['step']} was taken on the shards {was}, and these are "
            f"{now}; give the run its own shards, or remove its checkpoints to begin anew."
        )


def optimizer_config(config: dict[str, Any]) -> OptimizerConfig:
    """The optimizer's part of the settings."""
    return OptimizerConfig(
        kind=config["optimizer"],
        muon_rate=config["matrix_learning_rate"],
        muon_momentum=config["momentum"],
        muon_decay=config["weight_decay"],
        adjust_lr_fn=config["matrix_adjustment"] or "original",
        adamw_rate=config["learning_rate"],
        adamw_beta1=config["beta1"],
        adamw_beta2=config["beta2"],
        adamw_decay=config["weight_decay"],
    )
