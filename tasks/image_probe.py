"""What a frozen encoder tells of an image's label: a linear probe and nearest neighbours on the means of its states.

Every model is asked with the same images, seeds and ways. Beside it stand the encoder before its first step, treated
alike; the pixels themselves, and how often each code stands in an image, treated as states are; and the commonest label
of train. "Learnt" is what beats the untrained encoder, "useful" what beats codes and pixels. Which code stands at which
place, with a probe, was tried and left out: on digits it knows what pixels know, and takes ten times as long.

Suffixes: E images, H, W, C of an image, N patches of an image, F features, K codes, S seeds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from . import keys
from .agreement import apart, judged
from .artifacts import Manifest
from .batches import ShardReader
from .battery import Advance, Seen, Task
from .classification import MAJORITY, tabled
from .codebook import read_images
from .errors import DataError, UsageError
from .image_baselines import images_of
from .image_settings import ProbeConfig
from .masking import EVALUATION_SEED
from .probes import probe
from .progress import progress
from .results import BASELINE, MODEL, UNTRAINED, Figure, Outcome, name_of
from .strata import documents

BAG_OF_CODES, PIXELS = BASELINE + "bag_of_codes", BASELINE + "pixels"
MOST_PIXELS = 1024
"""Features of the pixels; larger images are averaged over squares until they have no more."""
UNREAD = "Nothing is said of the {}: it reads images of another shape."
LEAST = 10
"""Labelled images of train and of test that a probe needs."""


class Labelled(NamedTuple):
    """Images with labels, of one split."""

    index_E: NDArray[np.int64]
    """Numbers of the images among the split's."""
    label_E: NDArray[np.int64]
    pixels_EHWC: NDArray[np.uint8]


class Probe(Task):
    """The labels of a corpus's images."""

    name = "probe"

    def __init__(self, config: ProbeConfig, corpus: Manifest, shards: Manifest | None) -> None:
        """shards   in the vocabulary of the model that is scored first: their codes are a baseline; None: none is"""
        self.config, self.corpus, self.shards = config, corpus, shards

    @cached_property
    def chosen(self) -> dict[str, tuple[NDArray[np.int64], list[str]]]:
        """Of train and test: numbers of the images that are asked about, and their labels. Nothing is read beside.

        Raises UsageError where there are too few to ask.
        """
        if not self.corpus.facts.get("labels"):
            raise UsageError("The images of the corpus have no labels.")
        found = {}
        for split, labels in _labels(self.corpus).items():
            known = np.flatnonzero([label is not None for label in labels])
            if split == "train" and len(known) > self.config.train:
                order = keys.permutation(EVALUATION_SEED, 0, len(known))
                known = known[np.sort(order[: self.config.train])]
            found[split] = known, [str(labels[one]) for one in known]
        train, test = (len(found[split][0]) for split in ("train", "test"))
        if min(train, test) < LEAST or len(set(found["train"][1])) < 2:
            raise UsageError(
                f"{train} images of the train split and {test} of the test split have a label; a probe needs {LEAST} "
                "of each, and two labels."
            )
        return found

    @cached_property
    def classes(self) -> list[str]:
        """Labels of train, then those that stand in test only."""
        train, test = (self.chosen[split][1] for split in ("train", "test"))
        return sorted(set(train)) + sorted(set(test) - set(train))

    @cached_property
    def images(self) -> dict[str, Labelled]:
        number = {label: at for at, label in enumerate(self.classes)}
        pixels = _pixels(self.corpus, {split: index_E for split, (index_E, _) in self.chosen.items()})
        return {
            split: Labelled(index_E, np.array([number[one] for one in labels], np.int64), pixels[split])
            for split, (index_E, labels) in self.chosen.items()
        }

    def size(self, subject: Any) -> int:
        return sum(len(index_E) for index_E, _ in self.chosen.values())

    def score(self, subject: Any, advance: Advance) -> dict[str, Any]:
        """The label that each way and seed predicts of every test image; nothing of a model of other images.

        subject     an ImageSubject
        """
        if subject.shape != self.images["test"].pixels_EHWC.shape[1:]:
            return {}
        train, test = (subject.states(self.images[split].pixels_EHWC, advance) for split in ("train", "test"))
        return self._asked(train, test)

    def _asked(self, train_EF: Any, test_EF: Any) -> dict[str, Any]:
        labels_E = self.images["train"].label_E
        mean_F, deviation_F = np.asarray(train_EF, np.float64).mean(0), np.asarray(train_EF, np.float64).std(0)
        deviation_F[deviation_F < 1e-8] = 1.0
        train_EF, test_EF = ((some - mean_F) / deviation_F for some in (train_EF, test_EF))
        return {
            "probe": probe(train_EF, labels_E, test_EF, self.config.seeds, _accuracy, scaled=False),
            "neighbours": [neighbours(train_EF, labels_E, test_EF, self.config.neighbours)],
        }

    def baselines(self) -> dict[str, Any]:
        splits = ("train", "test")
        found = {}
        with progress("probe, baselines", 2 if self.shards else 1, "kinds of features") as bar:
            found[PIXELS] = self._asked(*(reduced(self.images[split].pixels_EHWC) for split in splits))
            bar.advance(1)
            if self.shards is not None:
                size = int(self.shards.facts["vocabulary"]["size"])
                codes = (codes_of(self.shards, split, self.images[split].index_E) for split in splits)
                found[BAG_OF_CODES] = self._asked(*(histograms(ids_EN, size) for ids_EN in codes))
                bar.advance(1)
        return found

    def outcome(self, scores: Mapping[str, Mapping[str, Any]], baselines: Mapping[str, Any], seen: Seen) -> Outcome:
        truth_E, train_E = self.images["test"].label_E, self.images["train"].label_E
        always = [[int(np.bincount(train_E).argmax())] * len(truth_E)]
        answers = {
            way: {label: of[way] for label, of in {**scores, **baselines}.items() if way in of} | {MAJORITY: always}
            for way in ("probe", "neighbours")
        }
        meanings, figures, by_seed = tabled(
            ("accuracy",), answers, lambda answer: judged(("accuracy",), truth_E, answer, len(self.classes)), "images"
        )
        ahead = self._ahead(truth_E, answers["probe"])
        return Outcome(
            task=self.name,
            kind="probe",
            title="Labels of images",
            main="probe_accuracy",
            metrics=meanings,
            figures=figures,
            counts={"train": len(train_E), "test": len(truth_E), "labels": len(self.classes)},
            remarks=(*self._remarks(ahead), *(UNREAD.format(name_of(label)) for label, of in scores.items() if not of)),
            details={
                "classes": self._per_class(),
                "by_seed": by_seed,
                "ahead": {label: vars(figure) for label, figure in ahead.items()},
            },
        )

    def _ahead(self, truth_E: NDArray[np.int64], answers: Mapping[str, Any]) -> dict[str, Figure]:
        """By how much the model is more accurate than the untrained encoder, codes and pixels, image by image."""
        if MODEL not in answers:
            return {}
        others = [label for label in (UNTRAINED, BAG_OF_CODES, PIXELS) if label in answers]
        return {label: apart(truth_E, answers[MODEL], answers[label]) for label in others}

    def _remarks(self, ahead: Mapping[str, Figure]) -> Iterator[str]:
        for label, figure in ahead.items():
            yield said(label, figure)
        yield (
            f"Mean states of {len(self.images['train'].label_E):,} labelled images of the train split; all labelled "
            "images of the test split. The probe is logistic regression, its penalty chosen on a fifth of the train "
            f"images. Means over {self.config.seeds} seeds, which change that fifth; an interval holds both what other "
            "test images and what other seeds would change."
        )
        yield (
            f"Nearest neighbours: the label that most of the {self.config.neighbours} nearest train images have, by "
            "the cosine of standardised features; it has no chance in it, so its interval is over test images alone."
        )
        pixels, used = self.images["test"].pixels_EHWC[:1], reduced(self.images["test"].pixels_EHWC[:1]).shape[1]
        if used < pixels.size:
            yield f"Pixels are averaged over squares, so that an image has {used:,} numbers instead of {pixels.size:,}."
        if only := self.classes[len(set(self.chosen["train"][1])) :]:
            yield f"No train image has the label {', '.join(only)}; its test images count as wrong for every model."
        yield (
            "Whether the train split holds these images was not measured, since it cannot: the split of an image "
            "follows from its pixels, so equal ones are in one split. Images that differ in a pixel may be in both."
        )

    def _per_class(self) -> dict[str, dict[str, int]]:
        train, test = (Counter(self.chosen[split][1]) for split in ("train", "test"))
        return {label: {"train": train[label], "test": test[label]} for label in self.classes}


def said(label: str, ahead: Figure) -> str:
    """A sentence about a difference of two accuracies, and its interval."""
    low, high = (0.0 if end is None else end for end in (ahead.low, ahead.high))
    verb = "beats" if low > 0 else "does not beat"
    names = {UNTRAINED: "the untrained encoder", BAG_OF_CODES: "the bag of codes", PIXELS: "raw pixels"}
    name = names.get(label, name_of(label))
    points = f"{100 * ahead.value:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})".replace("-", "−")
    if low > 0:
        return f"The model's probe {verb} that of {name} by {points.replace('+', '')}, image by image."
    return f"The model's probe {verb} that of {name}: {points}, image by image."


def _accuracy(truth: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
    return float((truth == predicted).mean())


def neighbours(train_EF: Any, labels_E: NDArray[np.int64], test_EF: Any, k: int) -> list[int]:
    """The label of most of the k nearest train images by cosine, of equally many the lowest number."""
    from sklearn.neighbors import KNeighborsClassifier
    from threadpoolctl import threadpool_limits

    model = KNeighborsClassifier(min(k, len(labels_E)), metric="cosine", algorithm="brute")
    with threadpool_limits(1):  # sums are split by thread, and a tie is settled by the last digit
        found: list[int] = model.fit(train_EF, labels_E).predict(test_EF).tolist()
    return found


# Features without a model.


def reduced(pixels_EHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pixels as features (E, F); of large images means over squares, so that there are at most MOST_PIXELS."""
    images, height, width, channels = pixels_EHWC.shape
    side = 1
    while -(-height // side) * -(-width // side) * channels > MOST_PIXELS and side < min(height, width):
        side += 1
    rows, columns = (range(0, size, side) for size in (height, width))
    found = np.empty((images, len(rows), len(columns), channels), np.float32)
    for number, start in enumerate(rows):
        sums = pixels_EHWC[:, start : start + side].astype(np.float32).mean(axis=1)
        counts = np.diff([*columns, width])[None, :, None]
        found[:, number] = np.add.reduceat(sums, list(columns), axis=1) / counts
    return found.reshape(images, -1)


def codes_of(shards: Manifest, split: str, index_E: NDArray[np.int64]) -> NDArray[np.int64]:
    """Ids of the patches of some images of a split (E, N), as the shards have them. An image is one segment."""
    height, width = shards.facts["payload"]["grid"]
    ids_XN = np.concatenate(list(images_of(ShardReader(shards, split), height * width)))
    where = np.empty(len(ids_XN), np.int64)
    where[documents(shards, split)] = np.arange(len(ids_XN))
    return ids_XN[where[index_E]]


def histograms(ids_EN: NDArray[np.int64], size: int) -> NDArray[np.float32]:
    """Roots of how often each id stands in an image: (E, V), so that a common one does not drown the others."""
    keys_EN = ids_EN + np.arange(len(ids_EN))[:, None] * size
    counts = np.bincount(keys_EN.reshape(-1), minlength=len(ids_EN) * size).reshape(-1, size)
    return np.sqrt(counts).astype(np.float32)


# What the corpus holds.


def _labels(corpus: Manifest) -> dict[str, list[str | None]]:
    """Labels of the images of train and test, in the order of the corpus. Raises DataError for a damaged file."""
    found: dict[str, list[str | None]] = {"train": [], "test": []}
    for name in sorted(name for name in corpus.files if name.endswith(".parquet")):
        path = corpus.path(name)
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                for batch in file.iter_batches(columns=["label", "split"]):
                    for label, split in zip(batch["label"].to_pylist(), batch["split"].to_pylist(), strict=True):
                        if split in found:
                            found[split].append(label)
        except (pa.ArrowInvalid, OSError, KeyError) as error:
            why = (str(error).splitlines() or [""])[0]
            raise DataError(f"{path} cannot be read ({why}); run `maskmill verify corpus`.") from None
    return found


def _pixels(corpus: Manifest, wanted: Mapping[str, NDArray[np.int64]]) -> dict[str, NDArray[np.uint8]]:
    """Some images of some splits by their numbers, ascending: uint8 (E, H, W, C)."""
    parts: dict[str, list[NDArray[np.uint8]]] = {split: [] for split in wanted}
    before = dict.fromkeys(wanted, 0)
    for split, pixels_EHWC in read_images(corpus):
        if split in wanted:
            first, last = np.searchsorted(wanted[split], (before[split], before[split] + len(pixels_EHWC)))
            parts[split].append(pixels_EHWC[wanted[split][first:last] - before[split]])
            before[split] += len(pixels_EHWC)
    return {split: np.concatenate(some) for split, some in parts.items()}
