"""Masked scores of any model over a split's frozen draws: what evaluate is made of, on the torch side.

    masked cross-entropy = Σ_{j∈𝓜} −log p(i | ĥ_j) / Σ|𝓜|      nats per masked token, over the whole split
    perplexity           = exp(masked cross-entropy)
    top-k accuracy       = share of 𝓜 whose target is among the k largest logits, ties in favour of the lower id

Sums are taken in float64 and divided once, so the size of a batch does not matter (to 1e-5). A scorer is any function
from rows with 𝓜 hidden to logits at 𝓜: a trained model, an untrained one, or a baseline that looks at nothing.

Logits are read some rows at a time that fit into the cache: at V 4096 a position takes 7 µs, with whole batches 55.

Suffixes: B rows, L positions, M masked positions, V vocabulary; of a part of M: C positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import masking
from .batches import Batch, ShardReader, frozen_batch
from .encoder import MaskedLanguageModel, Segments, initialise
from .encoder_config import config_of
from .stock import load_stock

TOP = 5
"""The largest k of a top-k accuracy."""
AT_ONCE = 1 << 18
"""Logits that are read at a time on a CPU: a megabyte."""


@dataclass(frozen=True)
class Answers:
    """What a scorer said of M masked positions; on the host."""

    nll_M: NDArray[np.float64]
    """−log p(target), nats."""
    rank_M: NDArray[np.int64]
    """Tokens that come before the target. Exact below TOP; a higher one may be too low where logits are equal."""
    sure_M: NDArray[np.float64]
    """Probability of the token that comes first."""


Short = Callable[[Tensor], Answers]
"""The answers for targets_M, of who finds them without logits."""
Scorer = Callable[..., Tensor | Short]
"""(tokens_BL with 𝓜 hidden, segment_ids_BL, flat indices masked_M) -> logits_MV, or a shorter way to the answers.

Where the shards carry bytes with each token, these follow, payload_BLP with zeros at 𝓜."""


def answers(said: Tensor | Short, targets_M: Tensor) -> Answers:
    """Of what a scorer says and the targets. Where all logits are one row (`constant_scorer`), that is read once."""
    if not isinstance(said, Tensor):
        return said(targets_M)
    logits_MV, targets_M = said, targets_M.to(said.device)
    if len(targets_M) > 1 and not logits_MV.stride(0):
        return _of_one(logits_MV[0], targets_M)
    step = max(1, AT_ONCE // logits_MV.shape[1]) if logits_MV.device.type == "cpu" else max(1, len(targets_M))
    parts = [
        _answers(logits_MV[at : at + step].float(), targets_M[at : at + step]) for at in range(0, len(targets_M), step)
    ]
    if not parts:
        return Answers(np.zeros(0), np.zeros(0, np.int64), np.zeros(0))
    return Answers(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _answers(logits_CV: Tensor, targets_C: Tensor) -> tuple[NDArray[Any], ...]:
    target_C1 = logits_CV.gather(1, targets_C[:, None])
    largest_C1 = logits_CV.amax(dim=1, keepdim=True)
    sum_C = (logits_CV - largest_C1).exp_().sum(dim=1).double()
    nll_C = sum_C.log() + (largest_C1 - target_C1)[:, 0].double()
    return nll_C.cpu().numpy(), target_ranks(logits_CV, targets_C, TOP), (1 / sum_C).cpu().numpy()


def _of_one(logits_V: Tensor, targets_M: Tensor) -> Answers:
    log_p_V = logits_V.double().log_softmax(dim=0)
    order_V = logits_V.argsort(descending=True, stable=True)
    rank_V = torch.empty_like(order_V).scatter_(0, order_V, torch.arange(len(order_V), device=order_V.device))
    sure_M = np.full(len(targets_M), float(log_p_V.amax().exp()))
    return Answers((-log_p_V[targets_M]).cpu().numpy(), rank_V[targets_M].cpu().numpy(), sure_M)


def target_ranks(logits_MV: Tensor, targets_M: Tensor, below: int | None = None) -> NDArray[np.int64]:
    """How many tokens come before the target (M,). A tie goes to the lower id; `topk` promises nothing there.

    below   ranks from here on need not be exact: they may be too low where logits are equal
    """
    target_M1 = logits_MV.gather(1, targets_M[:, None])
    rank_M = _larger(logits_MV, target_M1)
    near = np.flatnonzero(rank_M < (below or logits_MV.shape[1]))
    rows = torch.from_numpy(near).to(logits_MV.device)
    equal = logits_MV[rows] == target_M1[rows]
    tied = np.flatnonzero(_true(equal) > 1)
    if len(tied):
        before = torch.arange(logits_MV.shape[1], device=logits_MV.device) < targets_M[rows[tied], None]
        rank_M[near[tied]] += _true(equal[tied] & before)
    return rank_M


def _larger(logits_MV: Tensor, target_M1: Tensor) -> NDArray[np.int64]:
    if logits_MV.device.type != "cpu":
        return _true(logits_MV > target_M1)
    return _bits(logits_MV.numpy() > target_M1.numpy())  # numpy compares twice as fast as torch


def _true(those_MV: Tensor) -> NDArray[np.int64]:
    """How many are true in each row."""
    return _bits(those_MV.numpy()) if those_MV.device.type == "cpu" else those_MV.sum(dim=1).cpu().numpy()


def _bits(those_MV: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Counting bits takes a fraction of the time that adding bytes does."""
    return np.bitwise_count(np.packbits(those_MV, axis=1)).sum(axis=1, dtype=np.int64)


@dataclass
class Tally:
    """Sums over 𝓜."""

    masked: int = 0
    nll: float = 0.0
    top1: int = 0
    top5: int = 0

    def add(self, found: Answers) -> None:
        """Adds the masked positions of a batch."""
        self.masked += len(found.nll_M)
        self.nll += float(found.nll_M.sum())
        self.top1 += int((found.rank_M < 1).sum())
        self.top5 += int((found.rank_M < 5).sum())

    def metrics(self) -> dict[str, float]:
        """The scores; NaN where nothing was hidden."""
        masked = self.masked or math.nan
        loss = self.nll / masked
        return {
            "masked_cross_entropy": loss,
            "perplexity": perplexity(loss),
            "top1_accuracy": self.top1 / masked,
            "top5_accuracy": self.top5 / masked,
        }


def perplexity(loss: float) -> float:
    """exp(loss); infinite beyond the floats."""
    return math.exp(loss) if not loss > 700 else math.inf


def model_scorer(model: MaskedLanguageModel) -> Callable[..., Tensor]:
    """Equations (2) to (4), in float32, on the device that the model is on; the logits stay there."""
    device = model.encoder.embedding.weight.device

    def logits(
        tokens_BL: Tensor, segment_ids_BL: Tensor, masked_M: Tensor, payload_BLP: Tensor | None = None
    ) -> Tensor:
        segments = Segments.from_ids(segment_ids_BL, model.config.window).to(device)
        shown = payload_BLP.to(device) if payload_BLP is not None and model.encoder.payload is not None else None
        logits_MV: Tensor = model(tokens_BL.to(device), segments, masked_M.to(device), shown)
        return logits_MV

    return logits


def constant_scorer(logits_V: Tensor) -> Scorer:
    """The same answer everywhere."""
    return lambda tokens_BL, segment_ids_BL, masked_M, *_: logits_V.expand(len(masked_M), -1)


def unigram(counts_V: NDArray[Any], ordinary: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """(count + 1) / Σ(count + 1) over ordinary tokens (add-one smoothing), 0 for every other id: (V,).

    ordinary    half-open ranges of ids, as the shards' facts name them
    """
    ids = masking.ids_in(ordinary)
    p_V = np.zeros(len(counts_V))
    p_V[ids] = counts_V[ids].astype(np.float64) + 1
    return p_V / p_V.sum()


def unigram_scorer(counts_V: NDArray[Any], ordinary: Sequence[Sequence[int]]) -> Scorer:
    """The same answer everywhere: log of `unigram`."""
    return constant_scorer(torch.from_numpy(unigram(counts_V, ordinary)).log().float())


def untrained_scorer(config: Mapping[str, Any], seed: int, counts_V: NDArray[Any], device: str) -> Scorer:
    """What `untrained_model` says. Its blocks are the identity (see `initialise`), so that [MASK] has the same logits
    wherever it stands, and they are computed once."""
    model = untrained_model(config, seed, counts_V, device)
    tokens_BL = torch.tensor([[model.config.cls_id, model.config.mask_id, model.config.sep_id]])
    with torch.inference_mode():
        return constant_scorer(model_scorer(model)(tokens_BL, torch.zeros_like(tokens_BL), torch.tensor([1]))[0])


def load_model(folder: Path, device: str) -> MaskedLanguageModel:
    """A model in stock form, ready to score."""
    return load_stock(folder).to(device).eval()


def untrained_model(config: Mapping[str, Any], seed: int, counts_V: NDArray[Any], device: str) -> MaskedLanguageModel:
    """The model as training found it: same sizes, same seed, decoder bias at the unigram frequencies."""
    model = MaskedLanguageModel(config_of(config))
    initialise(model, seed, counts_V)
    return model.to(device).eval()


def answered(scorers: Mapping[str, Scorer], batches: Iterable[Batch]) -> Iterator[tuple[Batch, dict[str, Answers]]]:
    """Every batch, and what each scorer says of its 𝓜."""
    for batch in batches:
        masked_M, targets_M = batch.masked_M[: batch.count], batch.targets_M[: batch.count]  # no spare slots
        along = () if batch.payload_BLP is None else (batch.payload_BLP,)
        with torch.inference_mode():
            found = {
                name: answers(logits(batch.tokens_BL, batch.segment_ids_BL, masked_M, *along), targets_M)
                for name, logits in scorers.items()
            }
        yield batch, found


def score(scorers: Mapping[str, Scorer], batches: Iterable[Batch], advance: Callable[[int], None]) -> dict[str, Tally]:
    """Every scorer on the same batches. `advance` hears of the rows that are done."""
    tallies = {name: Tally() for name in scorers}
    for batch, found in answered(scorers, batches):
        for name, tally in tallies.items():
            tally.add(found[name])
        advance(len(batch.tokens_BL))
    return tallies


def frozen_batches(reader: ShardReader, rows: NDArray[np.int64], rate: str, rows_per_batch: int) -> Iterator[Batch]:
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
