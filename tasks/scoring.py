"""Masked scores of any model over a split's frozen draws: what evaluate is made of, on the torch side.

    masked cross-entropy = Σ_{j∈𝓜} −log p(i | ĥ_j) / Σ|𝓜|      nats per masked token, over the whole split
    perplexity           = exp(masked cross-entropy)
    top-k accuracy       = share of 𝓜 whose target is among the k largest logits, ties in favour of the lower id

Sums are taken in float64 and divided once, so the size of a batch does not matter (to 1e-5). A scorer is any function
from rows with 𝓜 hidden to logits at 𝓜: a trained model, an untrained one, or a baseline that looks at nothing.

Suffixes: B rows, L positions, M masked positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import masking
from .batches import Batch, ShardReader, frozen_batch
from .encoder import EncoderConfig, MaskedLanguageModel, Segments, initialise
from .stock import load_stock

Scorer = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(tokens_BL with 𝓜 hidden, segment_ids_BL, flat indices masked_M) -> logits_MV."""


@dataclass
class Tally:
    """Sums over 𝓜."""

    masked: int = 0
    nll: float = 0.0
    top1: int = 0
    top5: int = 0

    def add(self, logits_MV: Tensor, targets_M: Tensor) -> None:
        """Adds the masked positions of a batch."""
        logits_MV = logits_MV.float()
        rank_M = target_ranks(logits_MV, targets_M)
        self.masked += len(targets_M)
        self.nll += float(F.cross_entropy(logits_MV, targets_M, reduction="none").double().sum())
        self.top1 += int((rank_M < 1).sum())
        self.top5 += int((rank_M < 5).sum())

    def metrics(self) -> dict[str, float]:
        """The scores; NaN where nothing was hidden. A perplexity beyond the floats is infinite."""
        masked = self.masked or math.nan
        loss = self.nll / masked
        return {
            "masked_cross_entropy": loss,
            "perplexity": math.exp(loss) if not loss > 700 else math.inf,
            "top1_accuracy": self.top1 / masked,
            "top5_accuracy": self.top5 / masked,
        }


def target_ranks(logits_MV: Tensor, targets_M: Tensor) -> Tensor:
    """How many tokens come before the target: int64 (M,). A tie goes to the lower id; `topk` promises nothing there."""
    target_M1 = logits_MV.gather(1, targets_M[:, None])
    larger_M = (logits_MV > target_M1).sum(dim=1)
    below_MV = torch.arange(logits_MV.shape[1], device=logits_MV.device) < targets_M[:, None]
    return larger_M + ((logits_MV == target_M1) & below_MV).sum(dim=1)


def model_scorer(model: MaskedLanguageModel) -> Scorer:
    """Equations (2) to (4), in float32, on the device that the model is on."""
    device = model.encoder.embedding.weight.device

    def logits(tokens_BL: Tensor, segment_ids_BL: Tensor, masked_M: Tensor) -> Tensor:
        segments = Segments.from_ids(segment_ids_BL, model.config.window).to(device)
        logits_MV: Tensor = model(tokens_BL.to(device), segments, masked_M.to(device))
        return logits_MV.cpu()

    return logits


def unigram_scorer(counts_V: np.ndarray, ordinary: Sequence[Sequence[int]]) -> Scorer:
    """The same answer everywhere: log((count + 1) / Σ(count + 1)) over ordinary tokens (add-one smoothing).

    ordinary    half-open ranges of ids, as the shards' facts name them; every other id has probability 0
    """
    ids = masking.ids_in(ordinary)
    smoothed = torch.from_numpy(counts_V[ids].astype(np.float64)) + 1.0
    log_p_V = torch.full((len(counts_V),), -torch.inf)
    log_p_V[torch.from_numpy(ids)] = (smoothed / smoothed.sum()).log().float()
    return lambda tokens_BL, segment_ids_BL, masked_M: log_p_V.expand(len(masked_M), -1)


def load_model(folder: Path, device: str) -> MaskedLanguageModel:
    """A model in stock form, ready to score."""
    return load_stock(folder).to(device).eval()


def untrained_model(config: Mapping[str, Any], seed: int, counts_V: np.ndarray, device: str) -> MaskedLanguageModel:
    """The model as training found it: same sizes, same seed, decoder bias at the unigram frequencies."""
    model = MaskedLanguageModel(EncoderConfig(**config))
    initialise(model, seed, counts_V)
    return model.to(device).eval()


def score(scorers: Mapping[str, Scorer], batches: Iterator[Batch], advance: Callable[[int], None]) -> dict[str, Tally]:
    """Every scorer on the same batches. `advance` hears of the rows that are done."""
    tallies = {name: Tally() for name in scorers}
    with torch.inference_mode():
        for batch in batches:
            masked_M, targets_M = batch.masked_M[: batch.count], batch.targets_M[: batch.count]  # no spare slots
            for name, logits in scorers.items():
                tallies[name].add(logits(batch.tokens_BL, batch.segment_ids_BL, masked_M), targets_M)
            advance(len(batch.tokens_BL))
    return tallies


def frozen_batches(reader: ShardReader, rows: np.ndarray, rate: str, rows_per_batch: int) -> Iterator[Batch]:
    """The chosen rows (global sequence ids) of a held-out split with their frozen draw at a rate."""
    for start in range(0, len(rows), rows_per_batch):
        yield frozen_batch(reader, rows[start : start + rows_per_batch], rate)


@contextmanager
def threads(number: int) -> Iterator[None]:
    """CPU threads for the time of the block: sums are split by thread, so the digits depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fill(
    model: MaskedLanguageModel, ids: Sequence[int], top: int, decode: Callable[[int], str]
) -> list[list[dict[str, Any]]]:
    """For each [MASK] among the ids of one text, the `top` most probable tokens with their probabilities."""
    tokens_BL = torch.tensor([ids])
    masked_M = (tokens_BL[0] == model.config.mask_id).nonzero()[:, 0]
    with torch.inference_mode():
        logits_MV = model_scorer(model)(tokens_BL, torch.zeros_like(tokens_BL), masked_M)
        probability_MV = logits_MV.float().softmax(dim=-1)
    order_MK = probability_MV.argsort(dim=1, descending=True, stable=True)[:, :top]
    return [
        [{"token": decode(int(token)), "probability": round(float(probability_V[token]), 6)} for token in order_K]
        for order_K, probability_V in zip(order_MK, probability_MV, strict=True)
    ]
