"""The registered model of images: fills hidden patches, or makes a vector of an image. MLflow logs this very file.

It must load where the project is not installed, as fill_mask.py: it imports nothing of it but `patch_network`, of which
a copy lies in the model's folder; the project itself takes its own, so that it runs no code of a version.

    model = mlflow.pyfunc.load_model("models:/NAME@champion")
    model.predict([{"image": png_bytes, "mask": [3, 7]}], params={"top_k": 2})

An image is the bytes of a PNG or JPEG, these bytes as base64 text (what JSON can carry), or an array (H, W) or
(H, W, C) of whole numbers from 0 to 255; a mask is a list of patches, by number in raster order, or h rows of w
booleans. An image without a mask gets one of params={"rate": "0.4", "seed": 0}. For each image:

    {"grid": [h, w], "hidden": [3, 7], "codes": [[{"code": 12, "probability": 0.4}, …], …], "picture": (H, W, C)}

Codes are the most probable ones of the codebook at each hidden patch; the picture shows what is visible as it is, and
at hidden patches the first of these codes (of a model whose target is pixels, their mean); params={"picture": "png"}
gives it as base64. With {"output": "embedding"} each image becomes one vector, the mean state of its patches.

Nothing in a file is believed: PNG or JPEG by its first bytes, checksums right, its size looked at before it is decoded.

Suffixes: B images, L positions, N patches, M hidden ones, P bytes of a patch, K codes, D width.
"""

import base64
import hashlib
import importlib.util
import io
import re
import reprlib
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, Self

import mlflow
import numpy as np
import torch
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from numpy.typing import NDArray
from pydantic import BaseModel
from torch import Tensor

FILL, EMBED = "fill-image", "embedding"
ARRAY, IN_PNG = "array", "png"
PARAMETERS = {"top_k": 5, "rate": "", "seed": 0, "output": FILL, "picture": ARRAY}
"""Parameters of predict with their defaults; rate is a decimal, kept exact."""
LARGEST_FILE = 4 << 20
"""Bytes of a PNG or JPEG; those of a large image may be twice its pixels' bytes."""
MOST_CANDIDATES = 500_000
"""Hidden patches times top_k in a request: the length of its answer."""
POSITIONS = 4096
"""Positions that pass the encoder at a time."""
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
MOST_SCANS = 100  # of a progressive JPEG: a few bytes each cost a look at the whole image
TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
"""Orientation of EXIF -> Pillow's Transpose that undoes it."""
Bytes = NDArray[np.uint8]


class Code(BaseModel):
    """A code of the codebook. For the signature only, as the next: predict returns plain dictionaries of this form."""

    code: int
    probability: float


class Filled(BaseModel):
    """The answer for an image."""

    grid: list[int]
    hidden: list[int]
    codes: list[list[Code]]
    picture: list[list[list[int]]]


class Question(NamedTuple):
    """An image that was checked, and what is asked about it."""

    tokens_L: Tensor
    """[CLS], a code's id or [MASK] for each patch, [SEP]."""
    patches_NP: Tensor
    """Zeros where hidden."""
    hidden: list[int]
    top_k: int
    output: str
    picture: str


def in_short(value: Any) -> str:
    """What somebody gave, on a line."""
    return " ".join(reprlib.repr(value).split())[:80]


def refuse(sentence: str) -> MlflowException:
    """An error that says what is wrong with the request; an HTTP server answers it with 400."""
    return MlflowException.invalid_parameter_value(sentence)


class Answering:
    """Images in; probable codes and pictures, or vectors, out."""

    def load_context(self, context: PythonModelContext) -> None:
        """What MLflow calls. Raises where a byte of the model differs from what was registered."""
        self.open(Path(context.artifacts["model"]))

    def open(self, folder: Path) -> Self:
        """Checks every file against digests.json, then loads from the bytes that were checked."""
        try:
            self.network = network_module(folder).load(folder)
        except ValueError as error:
            raise refuse(str(error)) from None
        return self

    def predict(self, model_input: list[Any], params: dict[str, Any] | None = None) -> list[Filled]:
        """Per image what is at its hidden patches, as the head of this file says.

        Probabilities of codes are over the whole vocabulary; of a model whose target is pixels they are those of a
        Gaussian around its mean, over the codebook. With output "embedding", per image one list of D numbers instead:
        the mean of the last layer over its patches, of which none needs to be hidden. (The signature shows the default
        output only.) What a hidden patch holds makes no difference to anything.

        Refused with one sentence: what is no image, one of another size, a mask that does not fit, a wrong parameter.
        """
        return self.answers(self.questions(model_input, params))

    def questions(self, images: list[Any], params: Mapping[str, Any] | None = None) -> list[Question]:
        """The request, checked and decoded; `answers` takes questions of several requests together."""
        given = self._parameters(params)
        if not isinstance(images, list):
            raise refuse("The input must be a list of images (or a table with a column of them).")
        found = [self._question(one, f"Image {n}", given) for n, one in enumerate(images)]
        candidates = sum(len(one.hidden) for one in found) * given["top_k"]
        if given["output"] == FILL and candidates > MOST_CANDIDATES:
            raise refuse(
                f"The answer would have {candidates:,} candidates, more than {MOST_CANDIDATES:,}; lower top_k."
            )
        return found

    def answers(self, questions: Sequence[Question]) -> list[Any]:
        """One answer a question, in their order."""
        found: list[Any] = [None] * len(questions)
        step = max(1, POSITIONS // (self.network.patches + 2))
        with torch.inference_mode():
            for output, answered in ((FILL, self._fill), (EMBED, self._embed)):
                asked = [number for number, one in enumerate(questions) if one.output == output]
                for start in range(0, len(asked), step):
                    some = asked[start : start + step]
                    for number, answer in zip(some, answered([questions[n] for n in some]), strict=True):
                        found[number] = answer
        return found

    def _parameters(self, params: Mapping[str, Any] | None) -> dict[str, Any]:
        if params is not None and not isinstance(params, Mapping):
            raise refuse(f"The parameters must be given by name; they are {', '.join(PARAMETERS)}.")
        given: dict[str, Any] = PARAMETERS | dict(params or {})
        if unknown := sorted(set(given) - set(PARAMETERS), key=str):
            raise refuse(f"Unknown parameter {in_short(unknown[0])}; the parameters are {', '.join(PARAMETERS)}.")
        for name, least, most in (("top_k", 1, len(self.network.codes_KP)), ("seed", 0, 2**63 - 1)):
            value = given[name]
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise refuse(f"{name} is {in_short(value)}; it must be a whole number from {least} to {most}.")
        for name, first, second in (("output", FILL, EMBED), ("picture", ARRAY, IN_PNG)):
            if not isinstance(given[name], str) or given[name] not in (first, second):
                raise refuse(f"{name} is {in_short(given[name])}; it must be {first} or {second}.")
        if given["picture"] == IN_PNG:
            pillow()
        return given | {"drawn": drawn(given["rate"], given["seed"], self.network.patches)}

    def _question(self, one: Any, name: str, given: Mapping[str, Any]) -> Question:
        mask = None
        if isinstance(one, dict):
            if "image" not in one or set(one) - {"image", "mask"}:
                raise refuse(f"{name} must have image, may have mask, and nothing else.")
            one, mask = one["image"], one.get("mask")
        hidden = given["drawn"] if mask is None else hidden_by(mask, self.network.grid, name)
        if given["output"] == FILL and not hidden:
            raise refuse(f"{name} has no hidden patch; give it a mask, or a rate for those that have none.")
        tokens_L, patches_NP = self.network.prepared(pixels_of(one, self.network.shape, name), hidden)
        return Question(tokens_L, patches_NP, hidden, given["top_k"], given["output"], given["picture"])

    def _states(self, some: Sequence[Question], at_M: Sequence[tuple[int, int]] | None = None) -> Tensor:
        tokens_BL = torch.stack([one.tokens_L for one in some])
        states: Tensor = self.network.encode(tokens_BL, torch.stack([one.patches_NP for one in some]), at_M)
        return states

    def _fill(self, some: Sequence[Question]) -> Iterator[dict[str, Any]]:
        h_MD = self._states(some, [(number, 1 + at) for number, one in enumerate(some) for at in one.hidden])
        for one, h in zip(some, torch.split(h_MD, [len(one.hidden) for one in some]), strict=True):
            said = self.network.head(h)
            patches_NP = one.patches_NP.clone()
            patches_NP[one.hidden] = self.network.pixels(said)
            picture = self.network.picture(patches_NP)
            yield {
                "grid": list(self.network.grid),
                "hidden": one.hidden,
                "codes": ranked(self.network.probabilities(said), one.top_k),
                "picture": picture.tolist() if one.picture == ARRAY else base64.b64encode(in_png(picture)).decode(),
            }

    def _embed(self, some: Sequence[Question]) -> list[list[float]]:
        """Means over the patches: [CLS] and [SEP] say nothing of them."""
        found: list[list[float]] = self._states(some)[:, 1:-1].mean(dim=1).tolist()
        return found


# An image may come in three forms: Any is meant. MLflow warns of it, and sets filters of its own to do so.
with warnings.catch_warnings():
    warnings.showwarning = lambda *given, **named: None

    class FillImage(Answering, PythonModel):
        predict = Answering.predict  # type: ignore[assignment]


def network_module(folder: Path) -> Any:
    """`patch_network`: within the project the one beside this file, elsewhere the one in the model's folder."""
    if __package__:
        from . import patch_network

        return patch_network
    spec = importlib.util.spec_from_file_location("patch_network", folder / "patch_network.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ranked(p_MK: Tensor, top_k: int) -> list[list[dict[str, Any]]]:
    """The best codes of each row; equal ones by their number."""
    best = p_MK.topk(top_k)
    each = zip(best.values.tolist(), best.indices.tolist(), strict=True)
    rows = (sorted(zip(*row), key=lambda it: (-it[0], it[1])) for row in each)
    return [[{"code": code, "probability": value} for value, code in row] for row in rows]


# Masks.


def drawn(rate: Any, seed: int, patches: int) -> list[int]:
    """⌊N·rate⌋ patches, the first ones in an order that the seed alone decides; none for a rate of ""."""
    if isinstance(rate, str) and not rate:
        return []
    try:  # not of any text: 1e-999999999 takes forever
        written = isinstance(rate, float) or (isinstance(rate, str) and re.fullmatch(r"[0-9./]{1,20}", rate))
        share = Fraction(str(rate) if written else -1)
    except (ValueError, ZeroDivisionError):
        share = Fraction(-1)
    if not 0 < share < 1:
        raise refuse(f"rate is {in_short(rate)}; it must be a number between 0 and 1, such as 0.4.")
    if not (number := int(patches * share)):
        raise refuse(f"rate is {rate}, which hides none of {patches} patches; raise it.")
    order = sorted(range(patches), key=lambda at: hashlib.sha256(f"{seed} {at}".encode()).digest())
    return sorted(order[:number])


def hidden_by(mask: Any, grid: tuple[int, int], name: str) -> list[int]:
    """The patches that a mask hides, in ascending order; it lists them, or says of each whether it is hidden."""
    rows, columns = grid
    if isinstance(mask, np.ndarray) and mask.size <= rows * columns:
        mask = mask.tolist()
    if not isinstance(mask, list):
        raise refuse(
            f"{name} has a mask that is no list; give numbers of patches, or {rows} rows of {columns} booleans."
        )
    if mask and all(isinstance(row, list) for row in mask):
        if len(mask) != rows or any(len(row) != columns for row in mask):
            raise refuse(f"{name} has a mask of another shape; give {rows} rows of {columns} booleans.")
        flat = [value for row in mask for value in row]
        if not all(isinstance(value, bool) for value in flat):
            raise refuse(f"{name} has a mask of something else than booleans; give {rows} rows of {columns} of them.")
        return [at for at, value in enumerate(flat) if value]
    for at in mask:
        if isinstance(at, bool) or not isinstance(at, int) or not 0 <= at < rows * columns:
            raise refuse(f"{name} has a mask with {in_short(at)}; patches have numbers from 0 to {rows * columns - 1}.")
    if len(set(mask)) < len(mask):
        raise refuse(f"{name} has a mask that names a patch twice; name each once.")
    return sorted(mask)


# Images.


def pixels_of(one: Any, shape: tuple[int, int, int], name: str) -> Bytes:
    """Pixels (H, W, C) of this shape, in grey or colour as the model's. Refuses what is none, or of another size."""
    if isinstance(one, str):
        most = 2 * max(LARGEST_FILE, 2 * shape[0] * shape[1] * shape[2])
        try:
            one = base64.b64decode("".join(one.split()) if len(one) < most else one[:most], validate=True)
        except ValueError:
            raise refuse(f"{name} is text, but not base64 of a PNG or JPEG.") from None
    pixels = _decoded(bytes(one), shape, name) if isinstance(one, bytes | bytearray) else _array(one, name)
    if pixels.shape[:2] != shape[:2]:
        raise _other_size(pixels.shape[1], pixels.shape[0], shape, name)
    if pixels.shape[2] == shape[2]:
        return pixels
    if shape[2] == 3:
        return np.repeat(pixels, 3, axis=2)
    weighed = pixels.astype(np.uint32) @ np.array([19595, 38470, 7471], np.uint32)  # ITU-R 601-2, as the corpus
    return ((weighed + 0x8000) >> 16).astype(np.uint8)[:, :, None]


def _other_size(width: int, height: int, shape: tuple[int, int, int], name: str) -> MlflowException:
    return refuse(
        f"{name} has {width}×{height} pixels, but the model was trained on {shape[1]}×{shape[0]}; scale or cut it."
    )


def _array(one: Any, name: str) -> Bytes:
    try:
        found = np.asarray(one) if isinstance(one, list | np.ndarray) else np.zeros(0)
    except (ValueError, TypeError, OverflowError, RecursionError):  # ragged, too deep, too large a number
        found = np.zeros(0)
    found = found[:, :, None] if found.ndim == 2 else found
    if found.ndim != 3 or found.shape[2] not in (1, 3) or found.dtype.kind not in "ui" or not found.size:
        raise refuse(
            f"{name} is no image; give the bytes of a PNG or JPEG, base64 of them, or rows of whole numbers (of one "
            "channel or three)."
        )
    if found.min() < 0 or found.max() > 255:
        raise refuse(f"{name} has numbers below 0 or above 255; give bytes.")
    return found.astype(np.uint8)


def pillow() -> Any:
    """Pillow's module `Image`."""
    try:
        from PIL import Image
    except ImportError:
        raise refuse("PNG and JPEG need Pillow where the model runs: pip install pillow; or send arrays.") from None
    return Image


def in_png(picture_HWC: Bytes) -> bytes:
    file = io.BytesIO()
    pillow().fromarray(picture_HWC[:, :, 0] if picture_HWC.shape[2] == 1 else picture_HWC).save(file, "PNG")
    return file.getvalue()


def _decoded(data: bytes, shape: tuple[int, int, int], name: str) -> Bytes:
    """Of a PNG or JPEG that has as many pixels as the model's images."""
    kind = "PNG" if data[: len(PNG)] == PNG else "JPEG" if data[: len(JPEG)] == JPEG else ""
    if not kind:
        raise refuse(f"{name} is neither PNG nor JPEG; convert it.")
    if len(data) > (most := max(LARGEST_FILE, 2 * shape[0] * shape[1] * shape[2])):
        raise refuse(f"{name} has {len(data):,} bytes, more than {most:,}; send it without what is not pixels.")
    image = pillow()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata: what is wrong with the pixels is an error
        try:
            if kind == "PNG":
                _check_chunks(data)
            with image.open(io.BytesIO(data), formats=[kind]) as opened:
                width, height = opened.size
                if sorted((width, height)) != sorted(shape[:2]):
                    raise _other_size(width, height, shape, name)
                if opened.info.get("progressive") and data.count(b"\xff\xda") > MOST_SCANS:
                    raise refuse(f"{name} is a JPEG of more than {MOST_SCANS} scans; save it as a plain one.")
                return _plain(image, opened)
        except MlflowException:
            raise
        except Exception as error:  # whatever a decoder raises (a dozen kinds), it is about this image
            said = (str(error).splitlines() or [""])[0][:200]
            raise refuse(f"{name} is a {kind} that cannot be decoded: {said or type(error).__name__}.") from None


def _check_chunks(data: bytes) -> None:
    """The checksums of a PNG, which Pillow does not ask for, and its end."""
    at, name = len(PNG), b""
    while name != b"IEND":
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        name = data[at + 4 : at + 8]
        if end > len(data) or zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise ValueError(f"the chunk at byte {at} is damaged or cut off")
        at = end


def _plain(image: Any, opened: Any) -> Bytes:
    """As the corpus sees it: on white where it is transparent, the upper eight bits of sixteen, upright."""
    turn = TURNS.get(opened.getexif().get(0x0112, 1))
    grey = opened.mode in ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L")
    if opened.mode.startswith("I"):
        wide = np.asarray(opened)
        upper = np.clip(wide >> 8, 0, 255).astype(np.uint8)
        if isinstance(through := opened.info.get("transparency"), int):
            upper[wide == through] = 255
        plain = image.fromarray(upper)
    elif opened.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in opened.info:
        clear = opened.convert("RGBA")
        white = image.new("RGBA", clear.size, (255, 255, 255, 255))
        plain = image.alpha_composite(white, clear).convert("L" if grey else "RGB")
    else:
        plain = opened if opened.mode in ("L", "RGB") else opened.convert("L" if grey else "RGB")
    pixels = np.asarray(plain if turn is None else plain.transpose(image.Transpose(turn)))
    return pixels.reshape(*pixels.shape[:2], -1)


mlflow.models.set_model(FillImage())
