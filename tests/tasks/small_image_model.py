"""A small model of images and the manifests around it, made in a second: as small_model.py, for the other modality."""

import io
import json
from dataclasses import asdict

import numpy as np

from tasks import evidence
from tasks.artifacts import Built, Identity, Manifest, Store, Workspace
from tasks.results import MODEL
from tests.tasks import drawn_images, handmade, small_model

SHAPE = (8, 12, 3)
SIDE = 4
GRID = (2, 3)
CODES = 11
SIZE = 64
LENGTH = 16
PAYLOAD = {
    "bytes": SIDE * SIDE * 3,
    "grid": list(GRID),
    "patch": SIDE,
    "channels": 3,
    "mean": [100.5, 90.25, 110.0],
    "deviation": [60.0, 0.5, 75.125],
}
FORMS = [(input_, target) for input_ in ("tokens", "payload") for target in ("tokens", "payload")]


def vocabulary(store: Store, corpus: Manifest) -> Manifest:
    """A codebook of random patches, of which one is there twice."""

    def build(workspace: Workspace) -> Built:
        codes = np.random.default_rng(5).integers(0, 256, (CODES, PAYLOAD["bytes"]), np.uint8)
        codes[7] = codes[3]
        np.save(workspace.folder / "codebook.npy", codes, allow_pickle=False)
        facts = {"modality": "images", "kind": "patch codebook", "size": SIZE, "tokens": 5 + CODES}
        facts |= {"reserved": SIZE - 5 - CODES, "special_ids": handmade.SPECIAL_IDS, "ordinary": [[5, 5 + CODES]]}
        quality = {"train": {"used": 10}, "validation": {"psnr": 21.25}}
        return Built({}, facts | {"payload": PAYLOAD, "quality": quality})

    return store.make(Identity("vocabulary", 1, {"of": "images"}, {"corpus": corpus.digest}), build)[0]


def network(form: tuple[str, str], seed: int = 0):
    """A model whose every parameter is random, of layers of both kinds, with a window that is shorter than an image."""
    import torch

    from tasks.encoder import EncoderConfig, MaskedLanguageModel, PayloadConfig

    sizes = {"vocabulary_size": SIZE, "length": LENGTH, "layers": 3, "width": 32, "heads": 2, "intermediate": 48}
    sizes |= {"global_every": 2, "window": 4}
    if form == ("tokens", "tokens"):
        model = MaskedLanguageModel(EncoderConfig(**sizes))
    else:
        more = {"input": form[0], "target": form[1], "modality": "images", "payload": PAYLOAD}
        model = MaskedLanguageModel(PayloadConfig(**sizes, **more))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + (parameter.ndim == 1))
    return model.eval()


def pretrain(store: Store, vocabulary: Manifest, shards: Manifest, form: tuple[str, str], seed: int = 0) -> Manifest:
    from tasks.stock import save_stock

    model = network(form, seed)

    def build(workspace: Workspace) -> Built:
        save_stock(model, workspace.folder / "model")
        (workspace.folder / "model" / "codebook.npy").write_bytes(vocabulary.path("codebook.npy").read_bytes())
        facts = {"parameters": sum(one.numel() for one in model.parameters()), "steps": 4, "tokens": 4000}
        return Built({"steps": 4}, facts | {"model": asdict(model.config), "initial_seed": seed})

    inputs = {"vocabulary": vocabulary.digest, "shards": shards.digest}
    return store.make(Identity("pretrain", 1, {"seed": seed, "form": list(form)}, inputs), build)[0]


def evaluate(store: Store, pretrain: Manifest, nats: float) -> Manifest:
    """A report written by hand, with pictures."""

    def build(workspace: Workspace) -> Built:
        names = ("test", "baseline_unigram", "baseline_untrained")
        scores = {"masked_cross_entropy": nats, "perplexity": 2.0, "top1_accuracy": 0.1, "top5_accuracy": 0.2}
        metrics = {f"{one}/rate_0.4/{name}": value for one in names for name, value in scores.items()}
        facts = {"metrics": metrics, "rates": ["0.4"], "shards_rate": "0.4", "masked": {"0.4": 20}}
        facts |= {"test": {"digest": "a" * 64, "rows": 16}, "champion": None, "predictions": []}
        (workspace.folder / "report.json").write_text(json.dumps(facts))
        (workspace.folder / "pictures.png").write_bytes(png(drawn_images.drawn(1, *SHAPE)[0]))
        small_model.scored(workspace.folder / evidence.FILE, {MODEL: nats}, {MODEL: pretrain.digest})
        return Built({"rows": 16}, facts)

    return store.make(Identity("evaluate", 1, {"nats": nats}, {"pretrain": pretrain.digest}), build)[0]


def parents(store: Store, form: tuple[str, str] = ("payload", "tokens")) -> list[Manifest]:
    """Manifests of corpus, vocabulary, shards, pretrain and evaluate."""
    labels = [("disc", "ring")[number % 2] for number in range(20)]
    corpus = drawn_images.corpus(store, drawn_images.drawn(20, *SHAPE), labels=labels)
    words = vocabulary(store, corpus)
    rows = handmade.shards(store, rows=16, length=LENGTH, size=SIZE)
    weights = pretrain(store, words, rows, form)
    return [corpus, words, rows, weights, evaluate(store, weights, 2.0)]


def png(pixels_HWC: np.ndarray, kind: str = "PNG", **options) -> bytes:
    """A file of these pixels; of one channel grey."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels_HWC.squeeze()).save(file, kind, **options)
    return file.getvalue()
