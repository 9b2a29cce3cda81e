"""The settings of a recipe of images where they are not those of text: other defaults, and what an evaluation asks."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from .errors import UsageError
from .hardware import device_kind, thread_count
from .masking import spelling
from .pretrain_config import PretrainConfig
from .shards_config import ShardsConfig


@dataclass(frozen=True)
class ImageShardsConfig(ShardsConfig):
    """Rows of whole images."""

    length: int = 208
    """L, positions of a row, two special ones for each image included; a multiple of 8. An image is never cut."""
    rate: str = "0.4"
    """p, the share of an image's patches that is hidden: a decimal, kept exact."""
    policy: str = "uniform"
    """Which patches are hidden together: "uniform" (each by itself) or "block" (rectangles, as BEiT)."""
    packing: str = "whole"
    """How images come into rows: whole."""


@dataclass(frozen=True)
class ImagePretrainConfig(PretrainConfig):
    """A model of images."""

    input: str = "payload"
    """What the model sees of a patch: its pixels (payload, as BEiT), or its code (tokens, as text)."""
    target: str = "tokens"
    """What it is asked for where one is hidden: its code (tokens), or its pixels (payload, as SimMIM)."""
    global_every: int = 1
    """Every n-th layer attends to the whole image, the others to a window of the raster."""


@dataclass(frozen=True)
class ProbeConfig:
    """How much a frozen encoder tells of an image's label."""

    train: int = 5000
    """Labelled images of the train split that a probe learns from, at most."""
    seeds: int = 5
    """How often the probe is fitted; each holds out other images to choose its penalty."""
    neighbours: int = 20
    """k of the k nearest neighbours."""

    def __post_init__(self) -> None:
        if self.train < 10 or self.seeds < 3 or self.neighbours < 1:
            raise UsageError("evaluate.probe: train must be 10 or more, seeds 3 or more, neighbours 1 or more.")


@dataclass(frozen=True)
class ImageEvaluateConfig:
    """What is asked of a model of images."""

    rates: tuple[str, ...] = ("0.15", "0.4", "0.75")
    """Mask rates to score at; the rate of the shards always comes along."""
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    """What its states tell of the labels, where images have some."""
    pictures: int = 8
    """Held-out images that are shown as they are, masked, and filled in."""
    rows_per_batch: int = 64
    """Rows scored at a time; changes digits behind the fifth only."""
    max_rows: int = 0
    """Rows of the test split to score, drawn evenly from it; 0 takes all."""
    device: str = "cpu"
    """auto, cpu or cuda."""
    threads: int = 0
    """CPU threads; 0 takes all cores. Part of the identity: sums are split by thread."""

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "rates", tuple(spelling(rate) for rate in self.rates))
        except UsageError as error:
            raise UsageError(f"evaluate.rates: {error}") from None
        if self.rows_per_batch < 1 or self.max_rows < 0 or self.pictures < 0:
            raise UsageError(
                "evaluate.rows_per_batch must be at least 1, evaluate.max_rows (0: all rows) and evaluate.pictures at "
                "least 0."
            )


def settings(config: ImageEvaluateConfig) -> dict[str, Any]:
    """What of the settings makes a difference to the report."""
    return asdict(config) | {"device": device_kind(config.device), "threads": thread_count(config.threads)}


def check_sets(config: ImageEvaluateConfig) -> None:
    """There is no evaluation set beside the corpus's own labels."""
