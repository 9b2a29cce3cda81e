"""Held-out images as a model fills them in: one picture, four rows. The same weights give the same bytes.

    original       as it is
    hidden         its frozen draw at the shards' rate, hidden patches in grey
    filled in      the code that the model finds most probable at each of them (of a model that is asked for pixels
                   the mean that it gives), the original elsewhere
    as codes       every patch as its code: the best that this vocabulary can do

Suffixes: E images, H, W, C of an image, N patches of an image, P bytes of a patch, B rows, L positions, M masked.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from . import masking
from .artifacts import Manifest, write_atomic
from .batches import Batch, ShardReader, frozen_batch
from .codebook import pixels_of
from .image_subject import FIRST, ImageSubject

FILE = "pictures.png"
GREY = 128
SIDE = 96
"""Pixels of an image in the picture, about: small ones are enlarged, each pixel to a square; of large ones every
so-many-th pixel is shown."""
GAP, MARGIN = 6, 84
"""Pixels between images, and to the left of them, for the names of the rows."""
DPI = 100


@dataclass(frozen=True)
class Shown:
    """Images, each uint8 (E, H, W, C)."""

    original: NDArray[np.uint8]
    hidden: NDArray[np.uint8]
    filled: NDArray[np.uint8]
    codes: NDArray[np.uint8]


def pictures(number: int, model: ImageSubject, shards: Manifest, folder: Path) -> dict[str, bytes]:
    """A PNG by what it shows, of so many images of the test split; it is written to the folder, too. None of none."""
    reader = ShardReader(shards, "test", payload=True)
    number = min(number, len(reader.segment_lengths))
    if not number:
        return {}
    percent = f"{100 * float(masking.fraction(reader.rate)):g}\u00a0%"
    how = "the mean of the pixels that it expects" if model.asked_for_payload else "its most probable code"
    caption = (
        f"{number} images of the test split: as they are; with {percent} of their patches hidden, as the model sees "
        f"them; with {how} at each hidden patch; and with every patch as its code, which is the best that this "
        "vocabulary can do."
    )
    shown = filled_in(model, reader, spread(len(reader.segment_lengths), number))
    found = drawn(shown, ("original", f"{percent} hidden", "filled in", "as codes"))
    write_atomic(folder / FILE, found)
    return {caption: found}


def spread(total: int, number: int) -> NDArray[np.int64]:
    """So many of `total`, evenly: corpora are often in order of their classes."""
    return (2 * np.arange(number) + 1) * total // (2 * number)


def filled_in(model: ImageSubject, reader: ShardReader, segments_E: NDArray[np.int64]) -> Shown:
    """Some images of a held-out split, with their frozen draw at the reader's rate.

    segments    numbers of the images, among all segments of the split, ascending
    """
    rows_E = np.searchsorted(reader.segment_offsets, segments_E, side="right") - 1
    rows_B, row_E = np.unique(rows_E, return_inverse=True)
    batch = frozen_batch(reader, rows_B, reader.rate)
    bytes_BLP = reader.stored_payload(rows_B)
    assert bytes_BLP is not None
    first_E = _begins(reader, segments_E, rows_E) + row_E * reader.length
    at_EN = first_E[:, None] + 1 + np.arange(model.patches)
    tokens = reader.rows_of(rows_B).reshape(-1)
    original = bytes_BLP.reshape(-1, bytes_BLP.shape[2])
    hidden, filled = original.copy(), original.copy()
    masked_M = batch.masked_M[: batch.count]
    hidden[masked_M.numpy()] = GREY
    filled[masked_M.numpy()] = _said(model, batch)
    codes_ENP = model.codebook_KP[tokens[at_EN] - FIRST]

    def image(patches_ENP: NDArray[np.uint8]) -> NDArray[np.uint8]:
        payload = model.payload
        return pixels_of(patches_ENP, tuple(payload["grid"]), payload["patch"], payload["channels"])

    return Shown(image(original[at_EN]), image(hidden[at_EN]), image(filled[at_EN]), image(codes_ENP))


def _begins(reader: ShardReader, segments_E: NDArray[np.int64], rows_E: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each segment begins in its row."""
    ends = np.concatenate([[0], np.cumsum(reader.segment_lengths)])
    begins: NDArray[np.int64] = ends[segments_E] - ends[reader.segment_offsets[rows_E]]
    return begins


def _said(model: ImageSubject, batch: Batch) -> NDArray[np.uint8]:
    """Pixels that the model puts at 𝓜: (M, P)."""
    given: list[Any] = [batch.tokens_BL, batch.segment_ids_BL, batch.masked_M[: batch.count]]
    with torch.inference_mode():
        said = model.means()(*given, batch.payload_BLP).float().cpu()
    if model.asked_for_payload:
        pixels = said.shape[1] // model.payload["channels"]
        mean_P, deviation_P = (torch.tensor(model.payload[name]).repeat(pixels) for name in ("mean", "deviation"))
        bytes_MP = (said * deviation_P.clamp(min=1.0) + mean_P).round().clamp(0, 255)
        return bytes_MP.to(torch.uint8).numpy()
    codes_M = said[:, FIRST : FIRST + len(model.codebook_KP)].argmax(dim=1).numpy()
    found: NDArray[np.uint8] = model.codebook_KP[codes_M]
    return found


def drawn(shown: Shown, names: Sequence[str]) -> bytes:
    """A PNG: a row for each of the four, an image in each column."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [_sized(some) for some in (shown.original, shown.hidden, shown.filled, shown.codes)]
    images, height, width = rows[0].shape[:3]
    whole = MARGIN + images * (width + GAP), len(rows) * (height + GAP) + GAP
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's matplotlibrc must not change the bytes
        figure = Figure(figsize=(whole[0] / DPI, whole[1] / DPI), dpi=DPI)
        for number, (name, row) in enumerate(zip(names, rows, strict=True)):
            bottom = whole[1] - (number + 1) * (height + GAP)
            figure.text(
                (MARGIN - 8) / whole[0], (bottom + height / 2) / whole[1], name, ha="right", va="center", size=8
            )
            for column, image in enumerate(row):
                figure.figimage(image, MARGIN + column * (width + GAP), bottom)
        picture = io.BytesIO()
        FigureCanvasAgg(figure).print_png(picture, metadata={"Software": None})  # type: ignore[no-untyped-call]
    return picture.getvalue()


def _sized(pixels_EHWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """In colour and of a size that a person can see; every pixel stays one colour."""
    side = max(pixels_EHWC.shape[1:3])
    every, times = max(1, side // (2 * SIDE)), max(1, SIDE // side)
    some = pixels_EHWC[:, ::every, ::every].repeat(times, axis=1).repeat(times, axis=2)
    return np.ascontiguousarray(np.broadcast_to(some, (*some.shape[:3], 3)))
