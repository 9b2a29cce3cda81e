"""What one modality brings to a training: rows, sizes of a model of it, what is asked of that and how its loss is made.

A training has one; a mixed one a second, whose rows go through the same blocks (Wang et al. 2022, BEiT-3, arXiv
2208.10442: one objective, mask-then-predict, for text and images). Then each step takes rows of both, every strand has
an embedding and a head of its own, and the loss of the step is the sum over both 𝓜, divided once by Σ|𝓜| of both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, device

from . import flops, modalities
from .artifacts import Manifest
from .batches import Batch, ShardReader, frozen_batch, hidden_in, segments_of_step, training_batch
from .encoder import EncoderConfig, Segments
from .encoder_config import PayloadConfig, carried
from .stretches import Supply


class Strand:
    """One modality of a run."""

    def __init__(self, config: dict[str, Any], shards: Sequence[Manifest], number: int = 0) -> None:
        """
        config  settings of pretrain
        shards  the shorter ones, then the main ones
        number  0 of the first strand, 1 of the second
        """
        self.config, self.number, self.main = config, number, shards[-1]
        self.modality = modalities.name_of(self.main.facts)
        self.sizes = encoder_config(config, self.main.facts)
        along = carried(self.sizes) is not None
        self.readers = [ShardReader(one, "train", along) for one in shards]
        self.supplies = [Supply.of(one.facts, one.digest) for one in shards]
        self.counts: NDArray[np.int64] = np.load(self.main.whole("unigrams.npy"), allow_pickle=False)
        self.validation = self._validation(ShardReader(self.main, "validation", along))

    @property
    def reader(self) -> ShardReader:
        """Of the main shards."""
        return self.readers[-1]

    @property
    def asks_for_tokens(self) -> bool:
        """Whether a prediction can be right: bytes are predicted more or less well."""
        mine = carried(self.sizes)
        return not (mine and mine.target == "payload")

    @property
    def rows(self) -> int:
        """Of a step, where it is the second strand: as many in every step."""
        return max(1, int(self.config["batch_tokens"]) // self.reader.length)

    def _validation(self, reader: ShardReader) -> list[Batch]:
        """The first rows of the validation split with their frozen draw: the same at every look, and a bounded cost."""
        rows = min(reader.rows, self.config["validation_rows"])
        size = max(1, (self.config["micro_tokens"] or self.config["batch_tokens"]) // reader.length)
        ids = [np.arange(at, min(at + size, rows)) for at in range(0, rows, size)]
        return [replace(frozen_batch(reader, piece, reader.rate), strand=self.number) for piece in ids]

    def lengths_of(self, step: int, seed: int) -> NDArray[np.int64]:
        """Lengths (S,) of all segments that a step takes of a second strand, specials included."""
        return segments_of_step(self.reader, step * self.rows, self.rows, seed)

    def batch(self, step: int, seed: int, part: int, parts: int) -> Batch:
        """What a part takes of a step of a second strand."""
        found = training_batch(self.reader, step * self.rows, self.rows, seed, part=part, parts=parts)
        return replace(found, strand=self.number)

    def flops(self, lengths_S: NDArray[np.int64]) -> int:
        """Operations of a step of a second strand that has these segments."""
        return flops.step_flops(self.sizes, lengths_S, hidden_in(lengths_S, self.reader.rate)).total

    def given(self, batch: Batch, where: device) -> tuple[Any, ...]:
        """What the objective is given of a micro-batch, on the device."""
        segment_ids_BL = batch.segment_ids_BL
        if not self.config["isolate"]:
            segment_ids_BL = segment_ids_BL.clamp(max=0)
        segments = Segments.from_ids(segment_ids_BL, self.sizes.window).to(where)
        mine, targets, shown = carried(self.sizes), batch.targets_M, None
        if mine and mine.target == "payload":
            assert batch.payload_MP is not None
            targets = batch.payload_MP
        if mine and mine.input == "payload":
            shown = batch.payload_BLP

        def moved(one: Tensor) -> Tensor:
            return one.to(where, non_blocking=True)

        asked = moved(batch.tokens_BL), segments, moved(batch.masked_M), moved(targets), moved(batch.weights_M)
        if shown is None and not self.number:
            return asked
        return *asked, None if shown is None else moved(shown), *([True] if self.number else [])

    @property
    def level(self) -> float:
        """The loss in nats of one that knows frequencies only: the entropy of the add-one-smoothed unigram
        distribution. Of bytes that go along with a token: of one that says their mean, 0, where their variance is 1."""
        mine = carried(self.sizes)
        if mine and mine.target == "payload":
            return 0.5 * float(mine.payload["bytes"]) * (1 + math.log(2 * math.pi))
        return entropy(self.counts)


def entropy(counts: NDArray[np.int64]) -> float:
    """Of the add-one-smoothed unigram distribution, in nats."""
    share = (counts + 1.0) / (counts + 1.0).sum()
    return float(-(share * np.log(share)).sum())


def encoder_config(config: dict[str, Any], facts: Any) -> EncoderConfig:
    """Sizes of the model from the settings; V, L, the special ids and what goes along with tokens from the shards.

    Raises UsageError where the settings ask for bytes that the shards do not carry.
    """
    names = "layers width heads intermediate global_every window rope_global rope_local norm_eps dropout"
    special = {f"{name}_id": number for name, number in facts["vocabulary"]["special_ids"].items()}
    given = {name: config[name] for name in names.split()}
    sizes = {"vocabulary_size": facts["vocabulary"]["size"], "length": facts["length"], **given, **special}
    asks = {name: config.get(name, "tokens") for name in ("input", "target")}
    if set(asks.values()) == {"tokens"}:
        return EncoderConfig(**sizes)
    return PayloadConfig(**sizes, **asks, modality=modalities.name_of(facts), payload=facts.get("payload", {}))
