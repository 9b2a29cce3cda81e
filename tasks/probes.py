"""What a frozen encoder knows: its states of texts and words, and a linear probe on them.

A text is the mean of the states of its ordinary tokens (not of [CLS] and [SEP], which no training of ours ever asks
anything), a word the mean of those of its tokens. Two texts u, v are read in one sequence, [CLS] u [SEP] v [SEP], and
stand side by side as [u, v, |u − v|, u·v] (Conneau et al., 2017, arXiv 1705.02364), since no linear probe compares.

The probe is logistic regression with an L2 penalty on standardised features. How strong the penalty is, is chosen by
what is held out of the training examples, a fifth, drawn class by class; then the probe learns from all of them. What
is held out is what a seed changes: the fit itself is convex and has no chance in it, so that two seeds that choose the
same penalty give the same probe. The test set has no part in any of it.

Suffixes: N tokens of the sequences end to end, G groups of tokens that are pooled, D width, F features, E examples.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .battery import Advance
from .errors import NumericError
from .subjects import Encoded, Ids, Subject, groups

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Inverse strengths, strongest first: of two that do equally well the stronger is taken."""
HELD_OUT = 5
"""One in so many examples of train chooses the penalty."""
MOST = 4096
"""Examples that a penalty is tried on at most: it is a matter of powers of ten, and the probe has all of them."""
ITERATIONS = 200
Metric = Callable[[NDArray[np.int64], NDArray[np.int64]], float]
"""(truth, predicted) -> the figure that counts."""


@dataclass(frozen=True)
class Pooled:
    """A sequence, and the groups of its tokens whose states are averaged: a text, two texts, each word."""

    ids: Ids
    places: Ids
    """Places of tokens in the sequence (T,)."""
    group: Ids
    """The group of each of them, from 0 on (T,)."""
    groups: int
    cut: bool = False
    """Whether tokens were cut off, as beyond the context."""


def one_text(encoded: Encoded, length: int) -> Pooled:
    """A text of at most `length` tokens, specials included; what is longer is cut at the end."""
    return _joined([encoded], length)


def two_texts(first: Encoded, second: Encoded, length: int) -> Pooled:
    """Two texts in one sequence; the one that is longer is cut first."""
    return _joined([first, second], length)


def _joined(texts: Sequence[Encoded], length: int) -> Pooled:
    head, tail = _around(texts[0])
    inner = [one.ids[one.ordinary] for one in texts]
    room = max(0, length - len(head) - len(tail) * len(texts))
    kept = _shares([len(ids) for ids in inner], room)
    ids, places, group = [head], [], []
    at = len(head)
    for number, (some, size) in enumerate(zip(inner, kept, strict=True)):
        ids += [some[:size], tail]
        # A text without any token, of characters that the vocabulary drops, is what its end is.
        used = np.arange(at, at + max(size, 1))
        places.append(used)
        group.append(np.full(len(used), number))
        at += size + len(tail)
    whole = np.concatenate(ids)
    return Pooled(
        whole,
        np.minimum(np.concatenate(places), len(whole) - 1),
        np.concatenate(group),
        len(texts),
        sum(kept) < sum(map(len, inner)),
    )


def _around(encoded: Encoded) -> tuple[Ids, Ids]:
    """The special tokens before and behind a text."""
    ordinary = encoded.ordinary
    if not len(ordinary):
        return encoded.ids[:1], encoded.ids[1:]
    return encoded.ids[: ordinary[0]], encoded.ids[ordinary[-1] + 1 :]


def _shares(sizes: Sequence[int], room: int) -> list[int]:
    """Tokens kept of each text: the longest gives way until all fit."""
    kept = list(sizes)
    while sum(kept) > room:
        longest = max(range(len(kept)), key=lambda number: (kept[number], number))
        others = max((size for number, size in enumerate(kept) if number != longest), default=0)
        kept[longest] -= max(1, min(sum(kept) - room, kept[longest] - others))
    return kept


def pool(states_ND: Tensor, sequences: Sequence[Pooled]) -> Tensor:
    """Mean states (G, D) of all groups of the sequences, end to end."""
    firsts = np.cumsum([0, *(len(one.ids) for one in sequences)])
    before = np.cumsum([0, *(one.groups for one in sequences)])
    places = np.concatenate([one.places + first for one, first in zip(sequences, firsts)])
    group = torch.from_numpy(np.concatenate([one.group + first for one, first in zip(sequences, before)]))
    group = group.to(states_ND.device)
    number = int(before[-1])
    total = states_ND.new_zeros(number, states_ND.shape[1])
    total = total.index_add(0, group, states_ND[torch.from_numpy(places).to(states_ND.device)])
    return total / torch.bincount(group, minlength=number).clamp(min=1)[:, None]


def side_by_side(pooled_GD: Tensor, texts: int) -> Tensor:
    """Features (E, F) of examples of one or two texts each: F = D, or 4·D."""
    if texts == 1:
        return pooled_GD
    u, v = pooled_GD[0::2], pooled_GD[1::2]
    return torch.cat((u, v, (u - v).abs(), u * v), dim=1)


def features(subject: Subject, sequences: Sequence[Pooled], texts: int, advance: Advance) -> NDArray[np.float32]:
    """Features of all groups in order, or of all pairs of groups: float32 (E, F). Advances by sequences."""
    found: list[NDArray[np.float32]] = [np.zeros((0, 0), np.float32)] * len(sequences)
    for some in groups([len(one.ids) for one in sequences]):
        chosen = [sequences[number] for number in some]
        rows = side_by_side(pool(subject.states([one.ids for one in chosen]), chosen), texts).numpy()
        if not np.isfinite(rows).all():
            raise NumericError(f"{subject.label} has states that are not finite; its weights are of no use.")
        ends = np.cumsum([one.groups // texts for one in chosen])[:-1]
        for number, part in zip(some, np.split(rows, ends), strict=True):
            found[number] = part
        advance(len(some))
    return np.concatenate(found)


def probe(
    train_EF: Any, labels_E: NDArray[np.int64], test_EF: Any, seeds: int, metric: Metric, scaled: bool = True
) -> list[list[int]]:
    """The classes (of test) that a linear probe predicts, for each seed from 0 on. Matrices may be sparse.

    scaled      whether features are standardised by train's mean and deviation; counts of words are not
    """
    if scaled:
        train_EF, test_EF = (np.asarray(some, np.float64) for some in (train_EF, test_EF))
        mean_F, deviation_F = train_EF.mean(0), train_EF.std(0)
        deviation_F[deviation_F < 1e-8] = 1.0
        train_EF, test_EF = ((some - mean_F) / deviation_F for some in (train_EF, test_EF))
    by_penalty: dict[float, list[int]] = {}
    found = []
    for seed in range(seeds):
        penalty = _penalty(train_EF, labels_E, seed, metric)
        if penalty not in by_penalty:
            by_penalty[penalty] = next(_answers(train_EF, labels_E, test_EF, [penalty])).tolist()
        found.append(by_penalty[penalty])
    return found


def _penalty(train_EF: Any, labels_E: NDArray[np.int64], seed: int, metric: Metric) -> float:
    """The one that does best on what is held out; looked for from the strongest on until two do worse."""
    fit, held = parted(labels_E, seed)
    generator = np.random.Generator(np.random.Philox(key=[seed, 1]))
    fit, held = (generator.permutation(some)[:most] for some, most in ((fit, MOST), (held, MOST // (HELD_OUT - 1))))
    best, chosen, worse = -np.inf, 1.0, 0
    if not len(held) or len(np.unique(labels_E[fit])) < 2:
        return chosen
    answers = _answers(train_EF[fit], labels_E[fit], train_EF[held], PENALTIES)
    for penalty, predicted_E in zip(PENALTIES, answers):
        value = metric(labels_E[held], predicted_E)
        if value > best + 1e-9:
            best, chosen, worse = value, penalty, 0
        elif value < best - 1e-9 and (worse := worse + 1) == 2:
            break
    return chosen


def parted(labels_E: NDArray[np.int64], seed: int, one_in: int = HELD_OUT) -> tuple[Ids, Ids]:
    """Numbers of the examples to fit on and of those held out, a part of each class: drawn by the seed."""
    generator = np.random.Generator(np.random.Philox(seed))
    held = []
    for label in np.unique(labels_E):
        some = np.flatnonzero(labels_E == label)
        held.append(generator.permutation(some)[: len(some) // one_in])
    out = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels_E)), out), out


def _answers(
    train_EF: Any, labels_E: NDArray[np.int64], rows_EF: Any, penalties: Sequence[float]
) -> Iterator[NDArray[np.int64]]:
    """The classes of some rows under each penalty; every fit begins where the one before ended."""
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    model = LogisticRegression(max_iter=ITERATIONS, warm_start=True)
    for penalty in penalties:
        model.set_params(C=penalty)
        # One thread: the products are small, and threads that wait for each other on a busy machine cost minutes.
        with threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a weak penalty need not have converged: it is one of several
            model.fit(train_EF, labels_E)
        yield np.asarray(model.predict(rows_EF), np.int64)


def bag_of_words(
    train: Sequence[Sequence[str]],
    labels_E: NDArray[np.int64],
    test: Sequence[Sequence[str]],
    seeds: int,
    metric: Metric,
) -> list[list[int]]:
    """What the same probe says of words and pairs of neighbouring words, for each seed.

    Frequencies are damped and weighed by rarity (tf-idf); what stands in one training text only is left out, since
    nothing can be learnt of it. Two texts stand side by side as states do.
    """
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer

    def matrix(examples: Sequence[Sequence[str]]) -> Any:
        columns = [vectorizer.transform(texts) for texts in zip(*examples, strict=True)]
        if len(columns) == 2:
            u, v = columns
            columns += [abs(u - v), u.multiply(v)]
        return hstack(columns, format="csr")

    every = [text for texts in train for text in texts]
    for least in (2, 1):
        settings = {"ngram_range": (1, 2), "sublinear_tf": True, "token_pattern": r"\w+|[^\w\s]", "min_df": least}
        vectorizer = TfidfVectorizer(**settings)
        try:
            vectorizer.fit(every)
            break
        except ValueError:  # nothing stands in two texts
            continue
    return probe(matrix(train), labels_E, matrix(test), seeds, metric, scaled=False)
