"""Images as tokens, for the shards: each patch becomes the id of the nearest code, and its pixels go along."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from .artifacts import load
from .codebook import images_of, nearest, patches_of
from .encoding import Encoded
from .spans import BATCH_BYTES, Span
from .special_tokens import SPECIAL_IDS

REFERENCE = "codebook"
"""The only engine: exact in integers, so there is nothing to compare."""


def settle(path: Path, found: Sequence[Span]) -> tuple[str, str]:
    """The engine, and why; there is no choice."""
    return REFERENCE, ""


def open_encoder(name: str, path: Path, alone: bool) -> Callable[[list[pa.Array]], Encoded]:
    """What encodes the images of a span that are of one split, by the codebook of a vocabulary."""
    facts = load(path.parent).facts["payload"]
    codes_KP = np.load(path, allow_pickle=False)
    (rows, columns), side, channels = facts["grid"], facts["patch"], facts["channels"]
    shape = rows * side, columns * side, channels

    def encode(parts: list[pa.Array]) -> Encoded:
        ids, payload = [np.zeros(0, np.int32)], [np.zeros((0, codes_KP.shape[1]), np.uint8)]
        step = max(1, BATCH_BYTES // (shape[0] * shape[1] * channels))
        for part in parts:
            for start in range(0, len(part), step):
                pixels_BHWC = images_of(part[start : start + step], shape)
                patches_XP = patches_of(pixels_BHWC, side).reshape(-1, codes_KP.shape[1])
                ids.append(nearest(patches_XP, codes_KP) + len(SPECIAL_IDS))
                payload.append(patches_XP)
        tokens = np.concatenate(ids).astype(np.int32)
        images = len(tokens) // (rows * columns)
        return Encoded(tokens, np.full(images, rows * columns, np.int64), np.concatenate(payload))

    return encode
