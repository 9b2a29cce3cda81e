"""The visual vocabulary: a codebook of patches, learnt from the train split only (codebook.py), and its card.

A patch of an image is a token, and its id is 5 + the code nearest to it; 0 to 4 are the special tokens, as in text.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import codebook as codes
from .artifacts import Built, Identity, Manifest, Store, Workspace, save_array, write_atomic
from .codebook_card import PAIRS, card, quality, render
from .errors import DataError, UsageError
from .progress import progress, say
from .special_tokens import MULTIPLE, SPECIAL_IDS, special_token

__all__ = ["ImageVocabularyConfig", "identity", "vocabulary"]

STAGE = "vocabulary"
VERSION = 1
FIRST = len(SPECIAL_IDS)
"""The id of code 0."""
NO_SPLIT = "The corpus has no image in its train split; add images to its sources."


@dataclass(frozen=True)
class ImageVocabularyConfig:
    size: int = 512
    """Tokens in all: 5 special ones and the codes. V is the next multiple of 64: reserved ids at the end fill it up.
    Of 2,048, with some thousand small images, most codes occur less than 100 times in training."""
    patch: int = 4
    """Side of a patch in pixels; it divides the images' height and width."""
    seed: int = 0
    sample: int = 1_000_000
    """Patches to learn from, at most: those of whole images, chosen by the hash of their pixels. They are in memory."""
    epochs: int = 3
    """How often each of them is seen."""
    batch: int = 4096
    """Patches between two updates of the codes."""

    def __post_init__(self) -> None:
        if not FIRST < self.size <= 1 << 22:
            raise UsageError(
                f"vocabulary.size is {self.size:,}; use {FIRST + 1} (5 special tokens and a code) to 2^22."
            )
        for name in ("patch", "sample", "epochs", "batch"):
            if getattr(self, name) < 1:
                raise UsageError(f"vocabulary.{name} is {getattr(self, name)}; use 1 or more.")


def identity(config: ImageVocabularyConfig, corpus_digest: str) -> Identity:
    """What the vocabulary is a function of."""
    return Identity(STAGE, VERSION, asdict(config), {"corpus": corpus_digest})


def vocabulary(config: ImageVocabularyConfig, corpus: Manifest, store: Store) -> tuple[Manifest, bool]:
    """The stage. Second value: found, not made.

    Files: codebook.npy (uint8 (K, P), see codebook.py), card.json and card.html. A corpus with fewer different patches
    than `config.size` asks for gives a smaller codebook; facts["size"] is V. The test split is not looked at.

    Raises UsageError when the train split is empty or a setting does not fit, DataError for damaged files.
    """

    def build(workspace: Workspace) -> Built:
        if not corpus.counts["documents_train"]:
            raise UsageError(NO_SPLIT)
        survey = _survey(config, corpus)
        sampled = _sample(config, corpus, survey)
        asked = config.size - FIRST
        codebook_KP = codes.learn(sampled.patches_XP, asked, config.seed, config.epochs, config.batch)
        if len(codebook_KP) < asked:
            say(f"vocabulary: {len(codebook_KP):,} codes instead of {asked:,}; the patches have no more different ones")
        measured = {name: _measure(config, corpus, codebook_KP, name) for name in ("train", "validation")}
        facts = _facts(config, survey, sampled, codebook_KP, measured)
        counts = survey.counts | {"documents_sampled": sampled.images, "patches_sampled": len(sampled.patches_XP)}
        _write(workspace.folder, config, corpus, codebook_KP, facts, measured)
        return Built(counts, facts)

    return store.make(identity(config, corpus.digest), build, libraries=("numpy", "pillow"))


@dataclass
class _Survey:
    """What the first look at the corpus finds."""

    counts: dict[str, int]
    keys: NDArray[np.uint64]
    """A hash of each train image."""
    grid: tuple[int, int]
    mean: list[float]
    deviation: list[float]
    """Of the train split's pixels, for each channel."""


def _survey(config: ImageVocabularyConfig, corpus: Manifest) -> _Survey:
    height, width, channels = codes.shape_of(corpus)
    # raises, before anything is read, where p does not divide them
    per_image = codes.patches_of(np.zeros((1, height, width, channels), np.uint8), config.patch).shape[1]
    if config.sample < per_image:
        raise UsageError(
            f"vocabulary.sample is {config.sample}, but one image has {per_image} patches; use {per_image} or more."
        )
    documents = dict.fromkeys(codes.SPLITS, 0)
    keys, sums, squares = [], np.zeros(channels, np.int64), np.zeros(channels, np.int64)
    with progress("vocabulary survey", sum(_expected(corpus).values()), "images") as bar:
        for split, pixels in codes.read_images(corpus):
            documents[split] += len(pixels)
            bar.advance(len(pixels))
            if split == "train":
                keys.append(_keys(pixels))
                whole = pixels.astype(np.int64)
                sums += whole.sum((0, 1, 2))
                squares += np.square(whole).sum((0, 1, 2))
    if documents != _expected(corpus):
        raise DataError(
            f"{corpus.folder} holds {documents} images, but its manifest says {_expected(corpus)}; "
            "run `maskmill verify corpus`."
        )
    moments = [_moments(*pair, documents["train"] * height * width) for pair in zip(sums.tolist(), squares.tolist())]
    counts = {
        "documents_in": sum(documents.values()),
        "documents_train": documents["train"],
        "documents_held_out": documents["validation"] + documents["test"],
        "patches_train": documents["train"] * per_image,
    }
    grid = height // config.patch, width // config.patch
    return _Survey(counts, np.concatenate(keys), grid, [mean for mean, _ in moments], [off for _, off in moments])


def _expected(corpus: Manifest) -> dict[str, int]:
    return {name: int(corpus.counts[f"documents_{name}"]) for name in codes.SPLITS}


def _moments(total: int, squares: int, number: int) -> tuple[float, float]:
    """Mean and standard deviation, from exact sums; a deviation of 0 is given as 1, for it will be divided by."""
    mean = Fraction(total, number)
    deviation = round(math.sqrt(Fraction(squares, number) - mean * mean), 6)
    return round(float(mean), 6), deviation or 1.0


def _keys(pixels: codes.Bytes) -> NDArray[np.uint64]:
    """A hash of each image's pixels: uint64 (B,). Not its id, by which it came into its split."""
    hashed = (hashlib.blake2b(one, digest_size=8, person=b"vocabulary").digest() for one in pixels)
    return np.frombuffer(b"".join(hashed), "<u8").astype(np.uint64)


@dataclass
class _Sampled:
    """The patches to learn from."""

    images: int
    patches_XP: codes.Bytes
    """In the order of their images' hashes: the order and the files of the corpus do not matter."""


def _sample(config: ImageVocabularyConfig, corpus: Manifest, survey: _Survey) -> _Sampled:
    per_image, images = math.prod(survey.grid), len(survey.keys)
    most = min(config.sample // per_image, images)
    ranks = np.empty(images, np.int64)
    ranks[np.argsort(survey.keys, kind="stable")] = np.arange(images)
    patches_BNP = np.empty((most, per_image, config.patch**2 * len(survey.mean)), np.uint8)
    read = 0
    with progress("vocabulary sample", images, "images") as bar:
        for split, pixels in codes.read_images(corpus):
            if split != "train":
                continue
            rank = ranks[read : read + len(pixels)]
            patches_BNP[rank[rank < most]] = codes.patches_of(pixels[rank < most], config.patch)
            read += len(pixels)
            bar.advance(len(pixels))
    return _Sampled(most, patches_BNP.reshape(-1, patches_BNP.shape[2]))


@dataclass
class _Measured:
    """A split, with every patch replaced by its code."""

    counts_K: NDArray[np.int64]
    squares: int = 0
    """Errors, squared and summed over all pixels."""
    pairs: list[tuple[codes.Bytes, codes.Bytes]] = field(default_factory=list)
    """Some images and what their codes make of them."""


def _measure(config: ImageVocabularyConfig, corpus: Manifest, codebook_KP: codes.Bytes, name: str) -> _Measured:
    height, width, channels = codes.shape_of(corpus)
    grid = height // config.patch, width // config.patch
    found = _Measured(np.zeros(len(codebook_KP), np.int64))
    with progress(f"vocabulary {name}", _expected(corpus)[name], "images") as bar:
        for split, pixels in codes.read_images(corpus):
            if split != name:
                continue
            patches_BNP = codes.patches_of(pixels, config.patch)
            flat = patches_BNP.reshape(-1, codebook_KP.shape[1])
            ids = codes.nearest(flat, codebook_KP)
            found.counts_K += np.bincount(ids, minlength=len(codebook_KP))
            found.squares += int(codes.errors(flat, ids, codebook_KP).sum())
            shown = PAIRS - len(found.pairs)
            again = codebook_KP[ids].reshape(patches_BNP.shape)[:shown]
            found.pairs += zip(pixels, codes.pixels_of(again, grid, config.patch, channels))
            bar.advance(len(pixels))
    return found


def _facts(
    config: ImageVocabularyConfig,
    survey: _Survey,
    sampled: _Sampled,
    codebook_KP: codes.Bytes,
    measured: dict[str, _Measured],
) -> dict[str, Any]:
    number, width = codebook_KP.shape
    tokens = FIRST + number
    size = -(-tokens // MULTIPLE) * MULTIPLE
    return {
        "modality": "images",
        "model": "codebook",
        "kind": "patch codebook",
        "source": "learnt",
        "asked": config.size,
        "size": size,
        "tokens": tokens,
        "reserved": size - tokens,
        "special_ids": dict(SPECIAL_IDS),
        "special_names": {role: special_token(role)["content"] for role in SPECIAL_IDS},
        "ordinary": [[FIRST, tokens]],
        "unknown": False,
        "lossless": False,
        "payload": {
            "bytes": width,
            "grid": list(survey.grid),
            "patch": config.patch,
            "channels": len(survey.mean),
            "mean": survey.mean,
            "deviation": survey.deviation,
        },
        "sample": {
            "patches": len(sampled.patches_XP),
            "patches_asked": config.sample,
            "whole": sampled.images == len(survey.keys),
        },
        "quality": {name: quality(one.counts_K, one.squares, width) for name, one in measured.items()},
    }


def _write(
    folder: Path,
    config: ImageVocabularyConfig,
    corpus: Manifest,
    codebook_KP: codes.Bytes,
    facts: dict[str, Any],
    measured: dict[str, _Measured],
) -> None:
    """Writes the files."""
    save_array(folder / "codebook.npy", codebook_KP)
    counts = {name: one.counts_K.tolist() for name, one in measured.items()}
    found = card(facts, corpus.facts["image"], asdict(config), counts)
    pairs = measured["validation"].pairs or measured["train"].pairs
    write_atomic(folder / "card.json", json.dumps(found, indent=1, ensure_ascii=False).encode())
    write_atomic(folder / "card.html", render(found, codebook_KP, pairs).encode())
