"""What happens when a step of training goes wrong. Plain numbers in, an action out; the state is JSON.

    loss or gradient norm not finite      skip: no optimizer step, the batch is passed over
    more than `patience` such in a row    rollback: weights and optimizer state of the last regular checkpoint, at the
                                          present place in the data; where `rollbacks` are used up, stop
    loss > mean + deviations * std        a spike: counted; with on_spike: rollback undone, too, while rollbacks last
      of the last `window` losses
    mean of the window > entropy - 0.1    a plateau: said once, after `plateau_after` of the budget

The spike's rule is that of OLMo-core (SkipStepOptimizer, Ai2 2024: 128 steps, 6 deviations, the newest loss against
those before it), for rises only. A skipped step's loss is in no window. Everything is a function of the losses alone,
in exact sums: a resumed run decides what the undisturbed one decides, and every rank the same.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import Any

from .errors import UsageError

KEY = "pretrain.guards"
UNIGRAM_MARGIN = 0.1
"""Nats below the unigram entropy that a model must reach to have learned more than token frequencies."""
LONGEST = 32
"""Characters of a number in a recipe."""


class Action(StrEnum):
    """What the trainer is to do with a step."""

    GO = "go"
    SKIP = "skip"
    ROLLBACK = "rollback"
    STOP = "stop"


@dataclass(frozen=True)
class GuardsConfig:
    """What counts as wrong, and what is done then."""

    deviations: str = "6"
    """A loss this many standard deviations above the mean of the window is a spike."""
    window: int = 128
    """Finite losses that mean and deviation are taken over; nothing is a spike before it is half full."""
    on_spike: str = "report"
    """report, or rollback: go on from the last checkpoint and pass the batch over."""
    patience: int = 3
    """Steps in a row whose loss or gradient is not finite that are only skipped; one more is a rollback."""
    rollbacks: int = 3
    """Rollbacks of a run; the next failure in a row stops it, a spike is only reported then."""
    rollback_every: int = 100
    """Steps between the checkpoints that a rollback goes back to. pretrain.checkpoint_every may change from start to
    start, and changes no bit; this may not."""
    plateau_after: str = "0.25"
    """Share of the budget after which a model that knows token frequencies only is called one."""

    def __post_init__(self) -> None:
        for name in ("deviations", "plateau_after"):  # one spelling: they are part of the weights' identity
            object.__setattr__(self, name, _spelt(name, getattr(self, name)))
        if Fraction(self.deviations) <= 0:
            raise UsageError(f"{KEY}.deviations is {self.deviations}; use a positive number, 6 is usual.")
        if not 0 <= Fraction(self.plateau_after) <= 1:
            raise UsageError(f"{KEY}.plateau_after is {self.plateau_after}; use a share of the run, from 0 to 1.")
        if self.window < 4:
            raise UsageError(f"{KEY}.window is {self.window}; use at least 4 steps, 128 is usual.")
        if self.on_spike not in ("report", "rollback"):
            raise UsageError(f"{KEY}.on_spike is {self.on_spike!r}; use report or rollback.")
        if self.rollback_every < 1:
            raise UsageError(f"{KEY}.rollback_every is {self.rollback_every}; use at least 1 step, 100 is usual.")
        for name in ("patience", "rollbacks"):
            if getattr(self, name) < 0:
                raise UsageError(f"{KEY}.{name} is {getattr(self, name)}; use 0 or more.")


def _spelt(name: str, value: Any) -> str:
    """A number in its one spelling: "6.0" is "6", "25%" is "0.25". Raises UsageError naming the key."""
    text = str(value).strip()
    try:
        if len(text) > LONGEST or "e" in text.lower():
            raise ValueError("1e-300000000 would take all memory")
        number = Fraction(text[:-1]) / 100 if text.endswith("%") else Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"{KEY}.{name} is {value!r}, which is not a number; write it like 6, 0.25 or 1/4.") from None
    return repr(float(number)).removesuffix(".0") if Fraction(repr(float(number))) == number else str(number)


class Guards:
    """The guards of one run. Usage, for every step:

    action = guards.see(step, loss, norm, total)
    if guards.sentence: say(guards.sentence)
    if action is Action.ROLLBACK: guards.rolled_back(step_of_the_checkpoint)
    """

    def __init__(self, config: GuardsConfig, unigram_entropy: float, state: Mapping[str, Any] | None = None) -> None:
        """state: what `state()` gave at a checkpoint; None for a new run. unigram_entropy: nats."""
        self.config, self.unigram_entropy = config, unigram_entropy
        self.sentence = ""
        """What the last `see` found, for people; "" where it found nothing."""
        self._losses: list[float] = []
        self._in_row = 0
        self._skipped: dict[str, int] | None = None
        self._spikes: dict[str, int] | None = None
        self._rollbacks: list[dict[str, Any]] = []
        self._plateau: dict[str, Any] | None = None
        if state:
            self._losses, self._in_row = list(state["losses"]), state["in_row"]
            facts = state["facts"]
            self._skipped, self._spikes = _copy(facts["skipped"]), _copy(facts["spikes"])
            self._rollbacks = [dict(one) for one in facts["rollbacks"]]
            self._plateau = _copy(facts["plateau"])

    def state(self) -> dict[str, Any]:
        """JSON from which a resume goes on; belongs into every checkpoint."""
        return {"losses": list(self._losses), "in_row": self._in_row, "facts": self.facts()}

    def facts(self) -> dict[str, Any]:
        """For the manifest: None or empty where nothing fired.

        skipped    {"count", "first_step", "last_step"}: steps without an optimizer step
        spikes     the same
        rollbacks  [{"from_step", "to_step", "reason": "not finite" | "spike"}]
        plateau    {"step", "loss", "unigram_entropy", "left_at": step or None}
        """
        return {
            "skipped": _copy(self._skipped),
            "spikes": _copy(self._spikes),
            "rollbacks": [dict(one) for one in self._rollbacks],
            "plateau": _copy(self._plateau),
        }

    def see(self, step: int, loss: float, norm: float, total: int = 0) -> Action:
        """Judge a step after its backward pass, before the optimizer's step.

        Args:
            step: its number, from 1.
            loss: nats per masked token of the whole step, over all micro-batches and ranks.
            norm: gradient norm before clipping.
            total: steps of the run; 0 where the budget is not known in steps yet (no plateau is looked for).
        Returns:
            GO; SKIP: pass the batch over; ROLLBACK: pass it over and take the last regular checkpoint (where there is
            none, it is a STOP), then tell `rolled_back`; STOP: raise NumericError.
        """
        self.sentence = ""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return self._not_finite(step, loss, norm)
        self._in_row = 0
        if self._is_spike(loss):
            self._spikes = _counted(self._spikes, step)
            self.sentence = (
                f"pretrain: step {step} has loss {loss:.3f}, a spike above the last {len(self._losses)} steps"
            )
            if self.config.on_spike == "rollback" and len(self._rollbacks) < self.config.rollbacks:
                self._skipped = _counted(self._skipped, step)
                return self._roll_back(step, "spike")
        self._losses = [*self._losses, loss][-self.config.window :]
        self._look_for_plateau(step, total)
        return Action.GO

    def rolled_back(self, step: int) -> None:
        """The weights are now those of the checkpoint of `step`."""
        self._rollbacks[-1]["to_step"] = step

    def _not_finite(self, step: int, loss: float, norm: float) -> Action:
        self._skipped = _counted(self._skipped, step)
        self._in_row += 1
        self.sentence = f"pretrain: step {step} has loss {loss} and gradient norm {norm}; it was skipped"
        if self._in_row <= self.config.patience:
            return Action.SKIP
        self.sentence += f", number {self._in_row} in a row"
        if len(self._rollbacks) < self.config.rollbacks:
            return self._roll_back(step, "not finite")
        self.sentence += f"; all {self.config.rollbacks} rollbacks ({KEY}.rollbacks) are used up"
        return Action.STOP

    def _roll_back(self, step: int, reason: str) -> Action:
        self._rollbacks.append({"from_step": step, "to_step": None, "reason": reason})
        self._in_row = 0
        self.sentence += f"; rollback {len(self._rollbacks)} of at most {self.config.rollbacks}"
        return Action.ROLLBACK

    def _is_spike(self, loss: float) -> bool:
        if not self._half_full:
            return False
        mean, deviation = mean_and_deviation(self._losses)
        return loss > mean + float(Fraction(self.config.deviations)) * deviation

    def _look_for_plateau(self, step: int, total: int) -> None:
        if not total or not self._half_full or step < Fraction(self.config.plateau_after) * total:
            return
        if self._plateau and self._plateau["left_at"]:
            return
        mean = mean_and_deviation(self._losses)[0]
        above = mean > self.unigram_entropy - UNIGRAM_MARGIN
        if above and not self._plateau:
            entropy = round(self.unigram_entropy, 6)
            self._plateau = {"step": step, "loss": round(mean, 6), "unigram_entropy": entropy, "left_at": None}
            self.sentence = _plateau_sentence(step, total, mean, self.unigram_entropy)
        elif self._plateau and not above:
            self._plateau["left_at"] = step

    @property
    def _half_full(self) -> bool:
        return len(self._losses) >= max(2, self.config.window // 2)


def mean_and_deviation(losses: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation of two or more numbers, each from an exact sum: no order of adding matters."""
    mean = math.fsum(losses) / len(losses)
    return mean, math.sqrt(math.fsum((loss - mean) ** 2 for loss in losses) / (len(losses) - 1))


def sentences(facts: Mapping[str, Any] | None) -> list[str]:
    """What a model card says of `Guards.facts`: a sentence for each guard that fired; none for none."""
    said = []
    facts = facts or {}
    if skipped := facts.get("skipped"):
        said.append(
            f"{_steps(skipped)} without an update: the loss or the gradient was not finite, or a spike was undone."
        )
    if spikes := facts.get("spikes"):
        said.append(f"The loss spiked in {_steps(spikes)}.")
    for one in facts.get("rollbacks", ()):
        where = f"step {one['to_step']:,}" if one["to_step"] is not None else "a checkpoint"
        why = "the loss spiked" if one["reason"] == "spike" else "losses or gradients in a row were not finite"
        said.append(f"At step {one['from_step']:,} the weights went back to those of {where}, because {why}.")
    if plateau := facts.get("plateau"):
        left = f"; it got beyond that at step {plateau['left_at']:,}" if plateau["left_at"] else ""
        said.append(
            f"At step {plateau['step']:,} the loss ({plateau['loss']:.2f}) was at the unigram level "
            f"({plateau['unigram_entropy']:.2f} nats): the model was only learning token frequencies{left}."
        )
    return said


def _plateau_sentence(step: int, total: int, mean: float, entropy: float) -> str:
    return (
        f"pretrain: after {step} of {total} steps the loss ({mean:.2f}) is at the unigram level ({entropy:.2f} nats): "
        "the model is only learning token frequencies. Likely causes: a learning rate much too high or too low, "
        "too few steps or too small a batch, a corpus of many equal lines, a very high mask rate, or a vocabulary too "
        "large for the corpus; try half and twice pretrain.learning_rate and pretrain.matrix_learning_rate first."
    )


def _steps(counted: Mapping[str, int]) -> str:
    if counted["count"] == 1:
        return f"1 step ({counted['first_step']:,})"
    return f"{counted['count']:,} steps (between {counted['first_step']:,} and {counted['last_step']:,})"


def _counted(before: dict[str, int] | None, step: int) -> dict[str, int]:
    count, first = (before["count"] + 1, before["first_step"]) if before else (1, step)
    return {"count": count, "first_step": first, "last_step": step}


def _copy(value: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return dict(value) if value is not None else None
