"""Files of images of all kinds, made and read. Shared by the tests of the image corpus."""

import io
import struct
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tasks.artifacts import file_digest
from tasks.image_decoding import ImageLimits, Refused, decode
from tasks.image_files import pictures
from tasks.image_sources import ImageFile, ImageSource, kind_of
from tasks.image_streams import Misplaced, Picture
from tasks.streams import Item, Reject


def noise(number: int, height: int = 8, width: int = 8, channels: int = 1, seed: int = 0) -> NDArray[np.uint8]:
    """(number, height, width, channels), all different."""
    return np.random.default_rng(seed).integers(0, 256, (number, height, width, channels), np.uint8)


def encoded(pixels: NDArray[Any], name: str = "PNG", mode: str | None = None, **options: Any) -> bytes:
    from PIL import Image

    flat = pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    image = Image.fromarray(flat)
    file = io.BytesIO()
    (image.convert(mode) if mode else image).save(file, name, **options)
    return file.getvalue()


def idx(images: NDArray[np.uint8], said: int | None = None) -> bytes:
    """As MNIST has them: (number, height, width)."""
    number, height, width = images.shape[:3]
    return struct.pack(">4sIII", b"\0\0\x08\x03", number if said is None else said, height, width) + images.tobytes()


def idx_labels(labels: Sequence[int], said: int | None = None) -> bytes:
    return struct.pack(">4sI", b"\0\0\x08\x01", len(labels) if said is None else said) + bytes(labels)


def tar(members: Mapping[str, bytes], kind: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def parquet(images: Sequence[bytes | None], labels: Sequence[Any] | None = None, struct: bool = True) -> bytes:
    """As `datasets` writes it."""
    column: Any = [{"bytes": data, "path": f"{n % 2}/{n}.png"} for n, data in enumerate(images)] if struct else images
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if struct else pa.binary()
    columns = {"image": pa.array(column, kind)} | ({"label": pa.array(labels)} if labels is not None else {})
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, row_group_size=3)
    return sink.getvalue().to_pybytes()


def read(
    path: Path, limits: ImageLimits | None = None, beside: Path | None = None, **source: Any
) -> tuple[list[Picture], list[Reject]]:
    """(images, rejects) of a file; the images' data are pixels. `beside` is a file of labels."""
    limits = limits or ImageLimits()
    kept: list[Picture] = []
    rejects: list[Reject] = []
    one = ImageSource(str(path), path.name, **source)
    file = ImageFile(item_of(path, kind_of(path.name)), item_of(beside, "labels") if beside else None)
    for event in pictures(file, one, limits, Counter()):
        if isinstance(event, Picture):
            try:
                pixels = decode(event.data, limits)[0] if isinstance(event.data, bytes) else event.data
            except Refused as refused:
                rejects.append(Reject(refused.reason, event.offset, event.size, None, refused.detail))
                continue
            assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] in (1, 3)
            kept.append(Picture(pixels, event.size, event.offset, event.place, event.label, event.origin))
        else:
            rejects.append(event.reject if isinstance(event, Misplaced) else event)
    return kept, rejects


def item_of(path: Path, kind: str) -> Item:
    return Item(kind, str(path), path.name, file_digest(path), path.stat().st_size)
