"""What an evaluation asks of a model of text: a recipe's tasks, what of them the train split holds, sentences.

The stage asks them of its model and the champion, `maskmill compare` of any models. Another modality has a module with
the same functions: subject, scorer, untrained, remarks, baselines, strata, tasks_of, seen, predictions, pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from . import bigram, classification, cloze, minimal_pairs, modalities, pseudo_likelihood, tagging
from .artifacts import Manifest, finish_unit, finished_unit
from .batches import ShardReader
from .battery import Seen, Task
from .errors import NumericError, UsageError
from .exposure import exposure
from .results import BIGRAM, UNIGRAM, Exposure, name_of
from .scoring import Scorer, model_scorer, unigram, unigram_scorer, untrained_scorer
from .strata import Stratum, by_frequency, by_part_of_word, by_place
from .subjects import Ours, Subject, ours

READERS: dict[str, Callable[[Any], Task]] = {
    "minimal_pairs": minimal_pairs.read,
    "cloze": cloze.read,
    "classification": classification.read,
    "tagging": tagging.read,
}
"""Key of the settings that lists evaluation sets -> what reads one."""
DOWNSTREAM = ("classification", "tagging")
"""Those on which models are trained: there the untrained model is a baseline that says something."""
DOCUMENTS = "texts"
"""What the documents of the test split are called."""
BASELINES: dict[str, str] = {}
"""What a report says of baselines that report_words does not know."""
TOP = 5
"""Tokens that are shown for a [MASK]."""


def subject(weights: Manifest, vocabulary: Manifest, label: str, device: str, counts_V: NDArray[np.int64]) -> Ours:
    """The model of a pretrain manifest."""
    folder = weights.whole_folder(modalities.face(weights, vocabulary.digest))
    return ours(folder, vocabulary.whole("tokenizer.json"), label, device, counts_V)


def scorer(model: Ours) -> Scorer:
    """What a model says of masked positions."""
    return model_scorer(model.model)


def untrained(model: Ours, sizes: Mapping[str, Any], seed: int, counts_V: NDArray[np.int64], device: str) -> Scorer:
    """What it said before its first step."""
    return untrained_scorer(sizes, seed, counts_V, device)


def remarks(model: Ours) -> list[str]:
    """What a reader of its masked scores has to know of the model."""
    return []


def strata(reader: ShardReader, counts_V: NDArray[np.int64]) -> list[Stratum]:
    """Classes of tokens, for tables."""
    return [by_frequency(counts_V), by_part_of_word(reader.masks.table_V), by_place(reader.length)]


def baselines(shards: Manifest, ordinary: Sequence[Sequence[int]]) -> tuple[dict[str, Scorer], str]:
    """Unigram and bigram by label, of the train split; and what a reader has to know of them.

    ordinary    half-open ranges of the ids that a text can have
    """
    train, counts_V = ShardReader(shards, "train"), np.load(shards.whole("unigrams.npy"), allow_pickle=False)
    pairs, unigram_V = bigram.count(train, len(counts_V)), unigram(counts_V, ordinary)
    remark = (
        "Unigram: add-one smoothing. Bigram: of the left neighbour, interpolated with the unigram (Witten-Bell), which "
        f"alone answers where that neighbour is hidden; from {pairs.tokens:,} tokens of the train split"
    )
    part = "" if pairs.every == 1 else f", every {pairs.every}th row of it"
    scorers = {UNIGRAM: unigram_scorer(counts_V, ordinary), BIGRAM: bigram.bigram_scorer(pairs, unigram_V)}
    return scorers, f"{remark}{part}."


def tasks_of(
    config: Any,
    corpus: Manifest | None,
    shards: Manifest | None = None,
    ordinary: Sequence[Sequence[int]] | None = None,
) -> list[Task]:
    """The tasks of the settings of evaluate, read and checked, in the order of the report.

    corpus      whose test split pseudo-likelihood is measured on; None leaves that out
    shards      in the vocabulary of the model that is scored first: their counts are its unigram baseline
    ordinary    half-open ranges of the ids that a text can have; with shards

    Raises what the tasks' `read` raise: UsageError for evaluation sets, DataError for a corpus that cannot be read.
    """
    tasks: list[Task] = []
    if corpus is not None:
        counts_V = np.load(shards.whole("unigrams.npy"), allow_pickle=False) if shards else None
        tasks.append(pseudo_likelihood.read(config.pseudo_likelihood, corpus, counts_V, ordinary))
    return tasks + [read(one) for key, read in READERS.items() for one in getattr(config, key)]


def seen(tasks: Iterable[Task], corpus: Manifest | None, scratch: Path) -> dict[str, Seen]:
    """What the train split holds of the tasks' examples, by the task's name; a unit of work in `scratch`.

    Empty without a corpus. Raises DataError where the corpus cannot be read.
    """
    if corpus is None:
        return {}
    found = finished_unit(scratch, "exposure")
    if found is None:
        texts = {task.name: some for task in tasks if (some := list(task.texts()))}
        words = {task.name: some for task in tasks if (some := list(task.words()))}
        result = exposure(corpus, texts, words)
        pages = {
            name: {"exposure": asdict(one) if name in texts else None, "words": often}
            for name, (one, often) in result.items()
        }
        found = finish_unit(scratch, "exposure", [], pages)
    return {
        name: Seen(Exposure(**page["exposure"]) if page["exposure"] else None, page["words"])
        for name, page in found.items()
    }


def predictions(config: Any, model: Subject) -> list[dict[str, Any]]:
    """Of the sentences of the settings. Raises UsageError for one that is longer than the context."""
    found = filled(model, config.sentences)
    for one in found:
        if not one["masks"]:
            raise UsageError(
                f"evaluate.sentences: {one['text']!r} is longer than the context, {model.length} tokens; cut it."
            )
    return found


def pictures(config: Any, model: Subject, shards: Manifest, folder: Path) -> dict[str, bytes]:
    """PNGs for the report, by what they show; each is written to the folder, too. Text has none."""
    return {}


def filled(subject: Subject, sentences: Iterable[str]) -> list[dict[str, Any]]:
    """For each sentence {"text", "masks"}: of each [MASK] the TOP most probable tokens with their probabilities. No
    masks where the model cannot read the sentence: it is longer than the context."""
    return [{"text": text, "masks": list(_masks(subject, text))} for text in sentences]


def _masks(subject: Subject, text: str) -> Iterator[list[dict[str, Any]]]:
    encoded = subject.encode([text], prompts=True)[0]
    places = np.flatnonzero(encoded.ids == subject.mask_id)
    if len(encoded) > subject.length or not len(places):
        return
    for log_p_V in torch.log_softmax(subject.logits([encoded.ids], [places]), dim=1):
        if torch.isnan(log_p_V).any():
            raise NumericError(
                f"{name_of(subject.label)} gives probabilities that are not finite: its weights are of no use."
            )
        order = log_p_V.argsort(descending=True, stable=True)[:TOP]
        yield [
            {
                "token": subject.decode(np.array([int(token)])) or f"id {int(token)}",
                "probability": round(float(log_p_V[token].exp()), 6),
            }
            for token in order
        ]
