"""What is of images in a registered model: see text_front.py, whose names these are."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from . import modalities
from .artifacts import Manifest
from .card import code, without_licence
from .errors import UsageError
from .results import Outcome

BESIDE = ("patch_network.py",)
REQUIREMENTS = ("mlflow", "torch", "safetensors", "numpy", "pillow")
"""What fill_image.py and patch_network.py import."""
DESCRIPTION = "Fills in hidden patches of an image."
HELD_OUT, BYTES = "Held-out images", "pixels"
CARDS = {"corpus": "image_card", "vocabulary": "codebook_card"}
"""Stage -> module that writes its card.json as Markdown."""
WANTED = "the path of a PNG or JPEG file"


def served() -> Any:
    """The model that is asked, before it has opened a folder."""
    from .fill_image import FillImage

    return FillImage()


def example(evaluate: Manifest, vocabulary: Manifest) -> tuple[list[Any], dict[str, Any]]:
    """A black image, with two hidden patches."""
    height, width, channels = _shape(vocabulary.facts)
    image = [[[0] * channels] * width] * height
    return [{"image": image, "mask": [0, 1]}], {
        "top_k": 5,
        "rate": "",
        "seed": 0,
        "output": "fill-image",
        "picture": "array",
    }


def warmth(model: Any) -> list[Any]:
    """A black image, with a hidden patch."""
    height, width, channels = model.network.shape
    return [{"image": [[[0] * channels] * width] * height, "mask": [0]}]


def tried(model: Any) -> list[float]:
    """Probabilities that a model gives, as MLflow has loaded it, when it is asked for anything."""
    (answer,) = model.predict(model.input_example, params={"top_k": 1})
    return [one["probability"] for ranked in answer["codes"] for one in ranked]


def try_it(evaluate: Manifest) -> list[str]:
    """What comes after `maskmill predict` in an example."""
    return ["PICTURE.png", "--rate", str(evaluate.facts["shards_rate"]), "--out", "filled.png"]


# The card.


def header(vocabulary: Mapping[str, Any]) -> str:
    """What stands above the card for machines."""
    return "---\npipeline_tag: image-feature-extraction\ntags: [masked-image-modelling, maskmill]\n---"


def about(parents: Mapping[str, Manifest]) -> str:
    """What the model is."""
    facts, payload = parents["pretrain"].facts, parents["vocabulary"].facts["payload"]
    height, width, channels = _shape(parents["vocabulary"].facts)
    rows, columns = payload["grid"]
    target = "their pixels" if _of(parents)[1] == "payload" else "their codes in a codebook of patches"
    return (
        f"A masked image model of {facts['parameters']:,} parameters. It reads {_colour(channels)} images of "
        f"{width}×{height} pixels as {rows}×{columns} patches of {payload['patch']}×{payload['patch']}, and predicts "
        f"hidden ones: {target}."
    )


def measured(facts: Mapping[str, Any]) -> str:
    """What the table of scores is of."""
    return (
        "Masked cross-entropy of the codes in nats per hidden patch of held-out images, masks frozen; the unigram "
        "baseline uses the train split's counts with add-one smoothing, those of the place do so at each place of the "
        "grid, a copy of a neighbour is asked beside them, the untrained model is this one before its first step. In "
        "brackets: 95 % intervals (bootstrap over images). Where images have a background, nearly every guess is right "
        "there."
    )


def exposed(one: Outcome) -> Iterator[str]:
    """Nothing: equal images are in one split."""
    yield from ()


def predictions(predictions: Sequence[Mapping[str, Any]]) -> str:
    """Where examples are: text cannot show them."""
    return "Held-out images as they are, with hidden patches and filled in: `pictures.png` among the artifacts."


def learnt(parents: Mapping[str, Manifest]) -> list[str]:
    """Of what the images were, and what the codebook is."""
    corpus, facts = parents["corpus"].facts, parents["vocabulary"].facts
    payload, labels = facts["payload"], corpus.get("labels", [])
    input_, target = ("pixels" if one == "payload" else "codes" for one in _of(parents))
    height, width, channels = _shape(facts)
    named = ", ".join(map(code, labels[:20])) + (f" and {len(labels) - 20:,} more" if len(labels) > 20 else "")
    side, (rows, columns) = payload["patch"], payload["grid"]
    return [
        f"- modality: images of {width}×{height} pixels, {_colour(channels)}; labels: {named or 'none'}",
        f"- patches of {side}×{side} pixels, in a grid of {rows} rows and {columns} columns",
        f"- vocabulary: {facts['tokens'] - facts['ordinary'][0][0]:,} codes of the codebook, "
        f"{facts['size']:,} tokens ({facts['reserved']:,} of them reserved), learnt from the train split"
        + _quality(facts.get("quality", {})),
        f"- input: {input_} of visible patches; target: {target} of hidden ones",
    ]


def _quality(quality: Mapping[str, Any]) -> str:
    """How well the codebook fits images that it was not learnt from, and how much of it is used."""
    used, held = quality.get("train", {}).get("used"), quality.get("validation", {})
    parts = [f"{used:,} of them in use"] if used is not None else []
    if held.get("psnr") is not None:
        parts.append(f"held-out patches at {held['psnr']:.1f} dB")
    return f"; {', '.join(parts)}" if parts else ""


def limits(parents: Mapping[str, Manifest]) -> str:
    """What it cannot do."""
    silent = without_licence(parents["corpus"])
    asked = f" None is noted for {', '.join(map(code, silent))}: ask before you pass the model on." if silent else ""
    height, width, _ = _shape(parents["vocabulary"].facts)
    return (
        "It knows what its corpus shows, and no more. It fills in patches, each by itself; it draws no new images, and "
        f"its probabilities are not calibrated. Images of another size than {width}×{height} it cannot read: scale or "
        f"cut them. Licences and rights of the corpus's images apply.{asked}"
    )


LOADED = """\
The folder `artifacts/model` of a version needs neither MLflow nor maskmill. In it:

```python
from pathlib import Path

import numpy as np
import patch_network
from PIL import Image

network, hidden = patch_network.load(Path(".")), [0, 1]
pixels_HWC = np.asarray(Image.open("picture.png").convert("MODE")).reshape(network.shape)
tokens_L, patches_NP = network.prepared(pixels_HWC, hidden)
h_MD = network.encode(tokens_L[None], patches_NP[None], [(0, 1 + patch) for patch in hidden])
said = network.head(h_MD)
print(network.probabilities(said).topk(3))
patches_NP[hidden] = network.pixels(said)
Image.fromarray(network.picture(patches_NP).squeeze()).save("filled.png")
```"""
STOCK = """\
Its weights are those of a stock ModernBERT, so that `transformers` reads them, too; tokens are codes:

```python
import json

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForMaskedLM

codes, about = np.load("codebook.npy").astype(int), json.load(open("payload.json"))
(h, w), p, c = about["grid"], about["patch"], about["channels"]
pixels = np.asarray(Image.open("picture.png").convert("MODE"))
patches = pixels.reshape(h, p, w, p, c).swapaxes(1, 2).reshape(h * w, -1).astype(int)
ids = 5 + ((patches[:, None] - codes) ** 2).sum(-1).argmin(-1)
ids[[0, 1]] = 4  # [MASK]
logits = AutoModelForMaskedLM.from_pretrained(".")(torch.tensor([[2, *ids, 3]])).logits[0, 1:-1]
print(logits[[0, 1], 5 : 5 + len(codes)].softmax(-1).topk(3))
```"""


def use(name: str, parents: Mapping[str, Manifest]) -> str:
    """How it is loaded: by MLflow, by the file beside it, and where a stock model has its form by transformers."""
    channels = _shape(parents["vocabulary"].facts)[2]
    asked = f"""\
```python
import mlflow

model = mlflow.pyfunc.load_model("models:/{name}@champion")
image = {{"image": open("picture.png", "rb").read(), "mask": [0, 1]}}
(answer,) = model.predict([image], params={{"top_k": 3}})
print(answer["codes"], answer["picture"])
```
Images are PNG or JPEG in bytes or base64, or arrays; a mask lists patches row by row, or has a boolean for each."""
    stock = [STOCK] if _of(parents) == ("tokens", "tokens") else []
    return "\n\n".join([asked, LOADED, *stock]).replace("MODE", "L" if channels == 1 else "RGB")


def _of(parents: Mapping[str, Manifest]) -> tuple[str, str]:
    """What the model sees, and what it is asked for."""
    model = parents["pretrain"].facts.get(modalities.face(parents["pretrain"], parents["vocabulary"].digest), {})
    return model.get("input", "tokens"), model.get("target", "tokens")


def _shape(vocabulary: Mapping[str, Any]) -> tuple[int, int, int]:
    payload = vocabulary["payload"]
    rows, columns = payload["grid"]
    return rows * payload["patch"], columns * payload["patch"], payload["channels"]


def _colour(channels: int) -> str:
    return "grey" if channels == 1 else "RGB"


# A question.


def check(image: Any, params: Mapping[str, Any]) -> None:
    """Raises UsageError for what is known to be wrong at once."""
    if params.get("output") == "fill-image" and not image.get("mask") and not params.get("rate"):
        raise UsageError("No patch is hidden; give --mask 3,7 (patches, row by row from 0) or --rate 0.4.")


def explained(sentence: str) -> str:
    """What the model says of the only image of a request."""
    return re.sub(r"^Image 0\b", "The image", sentence)
