"""What an encoder learns when all of it is trained on examples: fine-tuning with a linear head.

AdamW, the learning rate up over the first tenth of the steps and down to zero in a straight line, gradients clipped to
a norm of 1, the loss of a step divided once by its number of labels. The head is a linear layer on the features of the
probe, with dropout before it. After each epoch the model is tried on a tenth of the training examples; kept is the
epoch that does best there, the earlier one of two. The seed changes that tenth, the order, the head's first values and
what is dropped. On a CPU with a fixed number of threads the result is a function of the seed.

Suffixes: F features, E labelled things (texts, pairs, words), K classes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from .battery import Advance
from .examples import FineTuning
from .probes import Metric, Pooled, parted, pool, side_by_side
from .subjects import Ids, Subject, groups

DROPOUT = 0.1
WARMUP = 0.1
WEIGHT_DECAY = 0.01
MOST = 1e-3
PER_WIDTH = 20.0
"""The highest learning rate times the square of the width: what is common for BERT's sizes, from 1e-3 for a width of
128 to 2e-5 for one of 1024."""
HELD_OUT = 10
TRAINED = 3
"""A sequence that is trained on counts as so many that are looked at."""
MEGA = 16
"""Batches whose sequences are sorted by length together: so little is padded, and the order stays by chance."""


@dataclass(frozen=True)
class Labelled:
    """Sequences with the classes of what is pooled in each, in order."""

    sequences: Sequence[Pooled]
    labels: Sequence[NDArray[np.int64]]
    """Of each sequence, the class of each of its labelled things: one of a text or a pair, one of each word."""
    texts: int = 1
    """Groups that a labelled thing has: 2 for pairs of texts."""

    def __len__(self) -> int:
        return len(self.sequences)

    def take(self, numbers: Sequence[int] | Ids) -> Labelled:
        """Some of them."""
        return Labelled([self.sequences[one] for one in numbers], [self.labels[one] for one in numbers], self.texts)

    def all_labels(self) -> NDArray[np.int64]:
        """End to end (E,)."""
        return np.concatenate([np.zeros(0, np.int64), *self.labels])


class Classifier(nn.Module):
    """An encoder and a linear head."""

    def __init__(self, encoder: nn.Module, features: int, classes: int, seed: int, device: torch.device) -> None:
        super().__init__()
        self.encoder = encoder
        generator = torch.Generator().manual_seed(seed)
        self.head = nn.Linear(features, classes)
        with torch.no_grad():
            self.head.weight.copy_(0.02 * torch.randn(self.head.weight.shape, generator=generator))
            self.head.bias.zero_()
        self.head.to(device)

    def forward(self, sequences: Sequence[Pooled], texts: int) -> Tensor:
        """Logits (E, K)."""
        states_ND = self.encoder([one.ids for one in sequences])
        features_EF = side_by_side(pool(states_ND, sequences), texts)
        logits_EK: Tensor = self.head(F.dropout(features_EF, DROPOUT, self.training))
        return logits_EK


def steps_of(train: int, test: int, settings: FineTuning) -> int:
    """How much `fine_tune` advances, about."""
    held = train // HELD_OUT
    return settings.epochs * (TRAINED * (train - held) + held) + test


def fine_tune(
    subject: Subject,
    train: Labelled,
    test: Sequence[Pooled],
    classes: int,
    seed: int,
    settings: FineTuning,
    metric: Metric,
    advance: Advance,
) -> NDArray[np.int64]:
    """The classes (of all that is pooled in test, in order) that the trained model predicts."""
    fit, held = _parted(train, seed)
    encoder = subject.trainable()
    device = next(encoder.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        width = subject.width * (4 if train.texts == 2 else 1)
        model = Classifier(encoder, width, classes, seed, device)
        _learn(model, train.take(fit), train.take(held), subject.width, seed, settings, metric, advance)
        return predicted(model, test, train.texts, advance)


def _parted(train: Labelled, seed: int) -> tuple[Ids, Ids]:
    """Sequences to fit on and to choose the epoch by."""
    single = all(len(some) == 1 for some in train.labels)
    return parted(train.all_labels() if single else np.zeros(len(train), np.int64), seed, HELD_OUT)


def _learn(
    model: Classifier,
    fit: Labelled,
    held: Labelled,
    width: int,
    seed: int,
    settings: FineTuning,
    metric: Metric,
    advance: Advance,
) -> None:
    """Trains the model; leaves it as it was after its best epoch."""
    optimizer = _optimizer(model, settings.learning_rate or min(MOST, PER_WIDTH / width**2))
    batches = [list(_batches(fit, seed, epoch, settings.batch)) for epoch in range(settings.epochs)]
    total = sum(map(len, batches))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _multiplier(step, total))
    best, kept = -math.inf, None
    for of_epoch in batches:
        model.train()
        for batch in of_epoch:
            _step(model, fit.take(batch), optimizer)
            schedule.step()
            advance(TRAINED * len(batch))
        if not len(held):
            continue
        value = metric(held.all_labels(), predicted(model, held.sequences, held.texts, advance))
        if value > best:
            best, kept = value, copy.deepcopy(model.state_dict())
    if kept is not None:
        model.load_state_dict(kept)


def _optimizer(model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    by_kind = [
        {"params": [one for one in parameters if one.ndim >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [one for one in parameters if one.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(by_kind, lr=learning_rate, fused=True)


def _multiplier(step: int, total: int) -> float:
    """Of the learning rate, at a step from 0."""
    warm = max(1, round(WARMUP * total))
    return (step + 1) / warm if step < warm else (total - step) / max(1, total - warm)


def _step(model: Classifier, batch: Labelled, optimizer: torch.optim.Optimizer) -> None:
    """One step of the optimizer; a batch that is too large for one pass goes through in several."""
    number = sum(map(len, batch.labels))
    optimizer.zero_grad()
    for some in groups([len(one.ids) for one in batch.sequences]):
        part = batch.take(some)
        logits_EK = model(part.sequences, part.texts)
        labels_E = torch.from_numpy(part.all_labels()).to(logits_EK.device)
        (F.cross_entropy(logits_EK, labels_E, reduction="sum") / number).backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def _batches(fit: Labelled, seed: int, epoch: int, size: int) -> Iterator[list[int]]:
    """Numbers of the sequences of each step of an epoch: every one once, those of like length together."""
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    order = generator.permutation(len(fit))
    lengths = np.array([len(one.ids) for one in fit.sequences], np.int64)
    found = []
    for start in range(0, len(order), size * MEGA):
        some = order[start : start + size * MEGA]
        some = some[np.argsort(lengths[some], kind="stable")]
        found += [some[at : at + size].tolist() for at in range(0, len(some), size)]
    return (found[number] for number in generator.permutation(len(found)))


def predicted(model: Classifier, sequences: Sequence[Pooled], texts: int, advance: Advance) -> NDArray[np.int64]:
    """The likeliest class of all that is pooled (E,), in evaluation mode. Advances by sequences."""
    model.eval()
    found: list[NDArray[np.int64]] = [np.zeros(0, np.int64)] * len(sequences)
    with torch.inference_mode():
        for some in groups([len(one.ids) for one in sequences]):
            chosen = [sequences[number] for number in some]
            classes = model(chosen, texts).argmax(dim=1).cpu().numpy()
            ends = np.cumsum([one.groups // texts for one in chosen])[:-1]
            for number, part in zip(some, np.split(classes, ends), strict=True):
                found[number] = part
            advance(len(some))
    return np.concatenate(found)
