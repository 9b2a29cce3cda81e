"""What a training step is bound by, from measured figures, and which setting to change first.

    data            waiting for batches takes 10 % of the step or more
    communication   waiting for other ranks takes 20 % or more (of two such waits, the longer)
    launch          40 % or more of the step do not grow with its rows: the optimizer, and what starting each operation
                    costs whatever its size
    compute         the step's matrix products alone would take half of its time or more: the arithmetic is the limit
    memory          none of these: the time goes into moving numbers, in norms, activations, softmax and copies

The rules are asked in this order. Where the products were not timed alone, as in a run, MFU stands in for them, which
is lower; and of what does not grow with the rows only the optimizer is known.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DATA, COMMUNICATION, FIXED, PRODUCTS = 0.1, 0.2, 0.4, 0.5
"""Shares of a step, see above."""
CACHE = 0.85
"""Part of the rows takes less than this of its share of the time: the whole does not fit into a cache."""


@dataclass(frozen=True)
class Figures:
    """Shares of a step's seconds. None where it was not measured."""

    data: float
    communication: float
    optimizer: float
    products: float
    """What its matrix products would take alone; or MFU."""
    start: float | None = None
    """Of forward and backward, what does not grow with the rows (`fixed_part`)."""
    relative: float | None = None
    """Seconds for each row in a part of the rows, over those in all of them."""

    @property
    def fixed(self) -> float:
        """What does not grow with the rows."""
        return self.optimizer + (self.start or 0.0)


@dataclass(frozen=True)
class Verdict:
    """The answer, in words."""

    bound_by: str
    """data, launch, compute, memory or communication."""
    why: str
    advice: tuple[str, ...]
    """What to change, the first thing first; each begins with its setting."""


def fixed_part(part: float, whole: float, fraction: float) -> float:
    """Seconds that do not grow with the rows: the a of a + b · rows, through two timings.

    part, whole: seconds on `fraction` of the rows, and on all of them.
    """
    return min(whole, max(0.0, (part - fraction * whole) / (1 - fraction)))


def verdict(figures: Figures, config: Mapping[str, Any], length: int) -> Verdict:
    """The rule of this module.

    Args:
        config: pretrain's settings, with the hardware's choices filled in.
        length: positions of a row, L: less than that cannot be taken at a time.
    """
    waits = {"data": figures.data / DATA, "communication": figures.communication / COMMUNICATION}
    longest = max(waits, key=lambda name: waits[name])
    if waits[longest] >= 1:
        share = figures.data if longest == "data" else figures.communication
        whom = "batches" if longest == "data" else "other ranks"
        why = f"{share:.0%} of a step is waiting for {whom}"
        return Verdict(longest, why, (_data() if longest == "data" else _communication(config)))
    if figures.fixed >= FIXED:
        why = f"{figures.fixed:.0%} of a step does not grow with its rows, {figures.optimizer:.0%} in the optimizer"
        return Verdict("launch", why, _launch(figures, config))
    products = f"the matrix products alone would take {figures.products:.0%} of a step"
    if figures.start is None:
        products = f"{figures.products:.1%} of the device's peak is used (MFU)"
    if figures.products >= PRODUCTS:
        why = products
        return Verdict("compute", why, _compute(config))
    rest = "the rest moves numbers"
    if figures.start is None:
        rest = "the rest moves numbers, or starts operations: maskmill profile tells these apart"
    return Verdict("memory", f"{products}; {rest}", _memory(figures, config, length))


def _data() -> tuple[str, ...]:
    return (
        "shards.draws: as many as the run has epochs, so that masks are read and not drawn again",
        "pretrain.mask_rates: constant at shards.rate, for the same reason",
        "MASKMILL_HOME: a folder on a local disk",
    )


def _communication(config: Mapping[str, Any]) -> tuple[str, ...]:
    advice = []
    if config.get("reduction") == "exact":
        advice.append("pretrain.reduction: fast, where the result may depend on the number of devices")
    if config.get("parallel") == "fsdp":
        advice.append("pretrain.parallel: ddp, where the model fits on one device")
    advice.append(f"pretrain.batch_tokens: {_twice(config)}, more work for each exchange of gradients")
    return tuple(advice)


def _launch(figures: Figures, config: Mapping[str, Any]) -> tuple[str, ...]:
    larger = f"pretrain.batch_tokens: {_twice(config)}, more rows for the same cost (fewer steps: look at the loss)"
    advice = []
    if config.get("micro_tokens"):
        advice.append("pretrain.micro_tokens: 0, or the largest that the memory takes")
    if figures.optimizer > (figures.start or 0.0):
        advice.append(larger)
    if not _compiled(config):
        advice.append("pretrain.compile: on, which joins small operations")
    return tuple(advice if larger in advice else [*advice, larger])


def _compute(config: Mapping[str, Any]) -> tuple[str, ...]:
    advice = []
    if config.get("dtype") == "float32":
        advice.append("pretrain.dtype: bfloat16, where the hardware multiplies it (auto knows)")
    advice.append("pretrain.devices: more of them; this one does what it can")
    advice.append("pretrain.size: a smaller model, for more tokens in the same time")
    return tuple(advice)


def _memory(figures: Figures, config: Mapping[str, Any], length: int) -> tuple[str, ...]:
    advice = []
    if figures.relative is not None and figures.relative < CACHE and (smaller := _smaller(config, length)):
        advice.append(f"{smaller}, rows in smaller pieces take {1 - figures.relative:.0%} less each")
    if not _compiled(config):
        advice.append("pretrain.compile: on, which joins operations that read and write the same numbers")
    if config.get("dtype") == "float32":
        advice.append("pretrain.dtype: bfloat16, half the bytes, where the hardware multiplies it (auto knows)")
    if config.get("recompute") not in (None, False, "off"):
        advice.append("pretrain.recompute: off, where the memory suffices")
    return tuple(advice) or ("pretrain.threads: as many as there are cores, or a machine with faster memory",)


def _compiled(config: Mapping[str, Any]) -> bool:
    """Is it compiled, or would pretrain.reduction exact refuse it?"""
    return config.get("compile") in (True, "on") or config.get("reduction") == "exact"


def _twice(config: Mapping[str, Any]) -> str:
    return f"{2 * config['batch_tokens']}" if config.get("batch_tokens") else "twice as many"


def _smaller(config: Mapping[str, Any], length: int) -> str:
    """The setting with which a rank takes a part of its rows at a time, whole rows; "" where there is none."""
    ranks = int(config.get("devices") or 1)
    rows = (config.get("micro_tokens") or config.get("batch_tokens", 0) // ranks) // length
    if config.get("reduction") == "exact":  # each logical shard is a micro-batch
        shards = 2 * config["logical_shards"]
        return "" if config["batch_tokens"] // length % shards else f"pretrain.logical_shards: {shards}"
    return f"pretrain.micro_tokens: {max(1, rows // 4) * length}" if rows > 1 else ""
