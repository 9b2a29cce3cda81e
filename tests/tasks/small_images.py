"""A small model of images and the manifests before it, made in seconds. For several test modules."""

import json
from dataclasses import asdict

import numpy as np
import torch

from tasks import modalities
from tasks import shards as shard_stage
from tasks.artifacts import Built, Identity, Manifest, Store, Workspace
from tasks.batches import ShardReader, training_batch
from tasks.encoder import EncoderConfig, MaskedLanguageModel, PayloadConfig, Segments, initialise
from tasks.image_settings import ImageShardsConfig
from tasks.image_vocabulary import ImageVocabularyConfig, vocabulary
from tasks.objective import masked_loss
from tasks.stock import save_stock
from tests.tasks import drawn_images

SIDE, PATCH = 12, 3
GRID = (SIDE // PATCH, SIDE // PATCH)
LENGTH = 40
"""Two images and a little padding in a row."""


def bars(number: int, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """A bright bar on a dark ground, across or down, one patch wide, with noise that makes all images different; and
    which of both it is."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 9, (number, SIDE, SIDE, 1)).astype(np.uint8)
    across, at = rng.integers(2, size=number), rng.integers(GRID[0], size=number) * PATCH
    for image, flat, first in zip(images, across, at):
        image[
            slice(first, first + PATCH) if flat else slice(None), slice(None) if flat else slice(first, first + PATCH)
        ] += 200
    return images, ["across" if flat else "down" for flat in across]


def corpus(store: Store, number: int = 200, labelled: bool = True) -> Manifest:
    images, labels = bars(number)
    return drawn_images.corpus(store, images, labels=labels if labelled else None)


def codebook(store: Store, corpus: Manifest, codes: int = 2) -> Manifest:
    return vocabulary(ImageVocabularyConfig(size=5 + codes, patch=PATCH, sample=4000), corpus, store)[0]


def shards(store: Store, corpus: Manifest, words: Manifest) -> Manifest:
    return shard_stage.shards(ImageShardsConfig(length=LENGTH, workers=1), corpus, words, store)[0]


def pretrain(
    store: Store, words: Manifest, rows: Manifest, steps: int, see: str = "payload", ask: str = "tokens"
) -> Manifest:
    """A model that learnt for some steps; none leaves it as `initialise` does."""
    sizes = {"vocabulary_size": words.facts["size"], "length": LENGTH, "layers": 2, "width": 32, "heads": 2}
    sizes |= {"intermediate": 48, "global_every": 1}
    along = {"input": see, "target": ask, "modality": "images", "payload": words.facts["payload"]}
    plain = see == ask == "tokens"
    config = EncoderConfig(**sizes) if plain else PayloadConfig(**sizes, **along)

    def build(workspace: Workspace) -> Built:
        model = MaskedLanguageModel(config)
        initialise(model, 0, np.load(rows.path("unigrams.npy"), allow_pickle=False))
        points = _learn(model, rows, steps, ask)
        save_stock(model, workspace.folder / "model")
        (workspace.folder / "model" / "codebook.npy").write_bytes(words.path("codebook.npy").read_bytes())
        (workspace.folder / "curve.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
        number = sum(parameter.numel() for parameter in model.parameters())
        facts = {"parameters": number, "steps": steps, "tokens": 1000, "model": asdict(config), "initial_seed": 0}
        return Built({"steps": steps}, facts | {"modality": modalities.name_of(words.facts)})

    settings = {"steps": steps, "input": see, "target": ask}
    return store.make(Identity("pretrain", 1, settings, {"vocabulary": words.digest, "shards": rows.digest}), build)[0]


def _learn(model: MaskedLanguageModel, rows: Manifest, steps: int, ask: str) -> list[dict[str, float]]:
    reader = ShardReader(rows, "train", payload=True)
    optimizer, points = torch.optim.AdamW(model.parameters(), 3e-3), []
    for step in range(steps):
        batch = training_batch(reader, 16 * step, 16, 0)
        segments = Segments.from_ids(batch.segment_ids_BL, model.config.window)
        targets_M = batch.payload_MP if ask == "payload" else batch.targets_M
        found = masked_loss(
            model, batch.tokens_BL, segments, batch.masked_M, targets_M, batch.weights_M, batch.payload_BLP
        )
        loss = found.sum_nll / batch.count
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        points.append({"step": step, "tokens": 500 * step, "train/loss": float(loss.detach())})
    return points
