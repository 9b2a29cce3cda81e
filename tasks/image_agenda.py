"""What an evaluation asks of a model of images: the functions of agenda.py, for patches and their codes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import image_baselines, image_pictures, image_probe
from .artifacts import Manifest
from .batches import ShardReader
from .battery import Seen, Task
from .image_subject import ImageSubject
from .image_subject import subject as subject
from .scoring import Scorer
from .strata import Places, Stratum, equal_masses

DOCUMENTS = "images"
"""What the documents of the test split are called."""
BASELINES = {
    "unigram": "guesses by how frequent tokens are in the train split, and looks at nothing else.",
    "place": "guesses by how frequent tokens are at this place of the image in the train split.",
    "neighbour": "guesses that a token is the same as the one beside it that is not hidden.",
    "majority": "always gives the commonest label of the training images.",
    "pixels": "the pixels of an image, treated as the states of the encoder are.",
    "bag_of_codes": "how often each token stands in an image, treated as the states of the encoder are.",
}
"""Label without its prefix -> what it is, for a report."""
TENTHS = 10
RINGS = 8
"""Distances from the border that are told apart."""
OF_PAYLOAD = (
    "The model is asked for pixels: of a hidden patch it gives their mean, in standardised pixels with a deviation of "
    "1. Its probability of a code is that of the code's pixels under this, among all codes."
)


def scorer(model: ImageSubject) -> Scorer:
    """What a model says of masked positions: a distribution over the codes, whatever it is asked for in training."""
    return model.scorer()


def untrained(
    model: ImageSubject, sizes: Mapping[str, Any], seed: int, counts_V: NDArray[np.int64], device: str
) -> Scorer:
    """What it said before its first step. It sees where a patch lies, so its answer is not one for all."""
    return model.untrained(seed).scorer()


def remarks(model: ImageSubject) -> list[str]:
    """What a reader of its masked scores has to know of the model and of the tables."""
    known = [
        "The commonest code is the background, where images have one, and easily guessed: the row of all other codes "
        "tells what is known besides."
    ]
    return [OF_PAYLOAD, *known] if model.asked_for_payload else known


def baselines(shards: Manifest, ordinary: Sequence[Sequence[int]]) -> tuple[dict[str, Scorer], str]:
    """Those of image_baselines.py by label; and what a reader has to know of them."""
    counts_V = np.load(shards.whole("unigrams.npy"), allow_pickle=False)
    grid = shards.facts["payload"]["grid"]
    return image_baselines.scorers(ShardReader(shards, "train"), grid, counts_V, ordinary)


def strata(reader: ShardReader, counts_V: NDArray[np.int64]) -> list[Stratum]:
    """Classes of patches, for tables. The first tells what is known beside the background."""
    return [by_commonest(counts_V), by_frequency(counts_V), by_ring(reader.along["grid"])]


def by_commonest(counts_V: NDArray[np.int64]) -> Stratum:
    """The commonest code of the train split, which is the background of images that have one, and all others."""
    commonest, total = int(counts_V.argmax()), max(1, int(counts_V.sum()))
    share = 100 * int(counts_V[commonest]) / total
    rows = (
        f"commonest code, {share:.0f}\u00a0% of all",
        f"all other codes, {100 - share:.0f}\u00a0%",
    )
    return Stratum(
        "on the commonest code and on the others", "code", rows, lambda places: (_ids(places) != commonest).astype(int)
    )


def by_frequency(counts_V: NDArray[np.int64]) -> Stratum:
    """Tenths of the train split's tokens, ids in order of their counts, without those that no id has its middle in; the
    last one has the ids that do not occur there as well."""
    order = np.argsort(-counts_V, kind="stable")
    tenth_V = np.empty(len(counts_V), np.int64)
    tenth_V[order] = equal_masses(counts_V[order], TENTHS)
    there, class_V = np.unique(tenth_V, return_inverse=True)
    ids = np.bincount(class_V[counts_V > 0], minlength=len(there))
    mass = np.bincount(class_V, weights=counts_V, minlength=len(there)) / max(1, int(counts_V.sum()))
    ends = {len(there) - 1: ", the rarest", 0: ", the most frequent"}
    rows = [
        f"{number + 1}{ends.get(number, '')}: {ids[number]:,} {'code' if ids[number] == 1 else 'codes'}, "
        f"{100 * mass[number]:.0f}\u00a0% of the tokens"
        for number in range(len(there))
    ]
    return Stratum("by frequency", "codes by frequency", tuple(rows), lambda places: class_V[_ids(places)])


def by_ring(grid: Sequence[int]) -> Stratum:
    """Distance from the border of the grid; from 7 patches on all together."""
    height, width = grid
    row_N, column_N = np.divmod(np.arange(height * width), width)
    ring_N = np.minimum.reduce([row_N, column_N, height - 1 - row_N, width - 1 - column_N]).clip(max=RINGS - 1)
    names = ["at the border", "1 patch inside", *(f"{ring} patches inside" for ring in range(2, RINGS))]
    names[-1] += " or more"
    rows = tuple(names[: int(ring_N.max()) + 1])
    return Stratum("by place", "place in the image", rows, lambda places: ring_N[places.place_M - 1])


def _ids(places: Places) -> NDArray[Any]:
    ids: NDArray[Any] = places.tokens_RL.reshape(-1)[places.at_M]
    return ids


def tasks_of(
    config: Any,
    corpus: Manifest | None,
    shards: Manifest | None = None,
    ordinary: Sequence[Sequence[int]] | None = None,
) -> list[Task]:
    """What the states tell of the images' labels; it leaves itself out where there are none."""
    return [image_probe.Probe(config.probe, corpus, shards)] if corpus is not None else []


def seen(tasks: Iterable[Task], corpus: Manifest | None, scratch: Path) -> dict[str, Seen]:
    """Nothing: equal images are in one split, so no train image is a test image."""
    return {}


def predictions(config: Any, model: ImageSubject) -> list[dict[str, Any]]:
    """None that could be written down; see `pictures`."""
    return []


def pictures(config: Any, model: ImageSubject, shards: Manifest, folder: Path) -> dict[str, bytes]:
    """Held-out images as they are, hidden and filled in, by what the PNG shows; pictures.png in the folder."""
    return image_pictures.pictures(config.pictures, model, shards, folder)
