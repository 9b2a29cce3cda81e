"""Drawn images with labels, and the manifests that the real stages make of them in a second."""

import numpy as np

from tasks import image_vocabulary, shards
from tasks.artifacts import Manifest, Store
from tasks.image_settings import ImagePretrainConfig, ImageShardsConfig
from tests.tasks import drawn_images

TRAINING = ImagePretrainConfig(
    layers=2, width=32, heads=2, intermediate=64, batch_tokens=640, steps=6, checkpoint_every=2, validation_every=3,
    validation_rows=8, log_every=2, threads=1, device="cpu", dtype="float32", compile="off",
)  # fmt: skip


def bars(number: int, seed: int = 0, channels: int = 1) -> tuple[np.ndarray, list[str]]:
    """Images of 12 x 12 with a bar that lies or stands, some noise: uint8 (number, 12, 12, channels), and labels."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 60, (number, 12, 12, channels))
    labels = []
    for image in images:
        at, lies = rng.integers(0, 9), rng.integers(0, 2)
        part = image[at : at + 4] if lies else image[:, at : at + 4]
        part += rng.integers(120, 180)
        labels.append("lies" if lies else "stands")
    return images.astype(np.uint8), labels


def corpus(store: Store, number: int = 160, channels: int = 1) -> Manifest:
    images, labels = bars(number, channels=channels)
    return drawn_images.corpus(store, images, labels=labels)


def vocabulary(store: Store, documents: Manifest, size: int = 64) -> Manifest:
    return image_vocabulary.vocabulary(image_vocabulary.ImageVocabularyConfig(size=size), documents, store)[0]


def rows(store: Store, documents: Manifest, words: Manifest, **settings: object) -> Manifest:
    config = ImageShardsConfig(**{"length": 24, **settings})
    return shards.shards(config, documents, words, store)[0]
