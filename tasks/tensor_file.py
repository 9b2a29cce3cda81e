"""A safetensors file as one run of bytes in host memory: laid out once, filled by copies, written as it lies.

    8 bytes     length of the header, little endian
    header      JSON, padded with spaces to 8 bytes: name -> {dtype, shape, data_offsets}
    data        the tensors, widest type first, then by name; so each is aligned to its type

The bytes are those of `safetensors.torch.save` (a test compares them), which makes two more copies of everything on its
way. Such a run of bytes is the only copy of the tensors that a checkpoint holds: the copy from the device goes straight
to where the file has it, and the tensors of a file that was read are views of what was hashed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .errors import DataError

DTYPES = {
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "F32": torch.float32,
    "U32": torch.uint32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "U16": torch.uint16,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The format's name of a type -> torch's, in the order of the data."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}
ORDER = {name: number for number, name in enumerate(DTYPES)}
HEADER_MOST = 100_000_000
"""Bytes of the largest header that the safetensors library reads."""
PIECE = 1 << 20
"""Bytes written, read and hashed at a time: they stay in the processor's cache from the one to the other."""

Shapes = Mapping[str, tuple[str, tuple[int, ...]]]
"""Name of a tensor -> (the format's name of its type, shape)."""


@dataclass(frozen=True)
class Layout:
    """Where what lies in the file."""

    head: bytes
    """The file up to its data."""
    places: Mapping[str, tuple[str, tuple[int, ...], int, int]]
    """Name -> (type, shape, first byte in the file, byte after the last)."""
    size: int
    """Bytes of the whole file."""


def shapes_of(tensors: Mapping[str, Tensor]) -> Shapes:
    """What the layout is a function of. DataError where the format has no name for a type."""
    for name, tensor in tensors.items():
        if tensor.dtype not in NAMES:
            raise DataError(f"checkpoint: {name} is {tensor.dtype}, which is not stored; convert it to {list(NAMES)}.")
    return {name: (NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()}


def lay_out(shapes: Shapes) -> Layout:
    """The layout of a file that holds tensors of these types and shapes, in whatever order they are given."""
    entries, spans, end = {}, {}, 0
    for name in sorted(shapes, key=lambda name: (ORDER[shapes[name][0]], name)):
        kind, shape = shapes[name]
        begin, end = end, end + math.prod(shape) * DTYPES[kind].itemsize
        entries[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [begin, end]}
        spans[name] = (kind, shape, begin, end)
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    head = struct.pack("<Q", len(header)) + header
    at = len(head)
    places = {name: (kind, shape, at + begin, at + after) for name, (kind, shape, begin, after) in spans.items()}
    return Layout(head, places, at + end)


def views(image: Tensor, layout: Layout) -> dict[str, Tensor]:
    """The tensors in the bytes of a file: views that share its memory.

    Args:
        image: uint8 (layout.size,), on the host.
    """
    return {
        name: image[begin:end].view(DTYPES[kind]).view(shape)
        for name, (kind, shape, begin, end) in layout.places.items()
    }


def parse(image: Tensor) -> dict[str, Tensor]:
    """The tensors of a file that was read: views of its bytes, uint8 (size,).

    Raises DataError where these are not the bytes of a file as we write it: a header that its own names, types and
    shapes do not lead to again could overlap tensors, leave holes or point outside.
    """
    head = image.numpy().data
    try:
        (length,) = struct.unpack("<Q", head[:8])
        if length > min(HEADER_MOST, len(head) - 8):
            raise ValueError("the header is longer than the file")
        entries = json.loads(bytes(head[8 : 8 + length]))
        layout = lay_out({name: (entry["dtype"], _shape(entry["shape"], len(head))) for name, entry in entries.items()})
        if layout.head != head[: 8 + length] or layout.size != len(head):
            raise ValueError("its tensors do not follow from its header")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise DataError(f"not a safetensors file as it is written here ({error})") from None
    return views(image, layout)


def _shape(sizes: Sequence[int], most: int) -> tuple[int, ...]:
    """Raises ValueError for a shape that no tensor has in a file of `most` bytes: two sizes below zero make a number of
    elements above it."""
    if not isinstance(sizes, list) or not all(type(one) is int and 0 <= one <= most for one in sizes):
        raise ValueError("a shape of no sizes")
    return tuple(sizes)


class Image:
    """The bytes of the file, in memory that is reused from checkpoint to checkpoint as long as the layout stays."""

    def __init__(self) -> None:
        self.layout = lay_out({})
        self.bytes = torch.empty(0, dtype=torch.uint8)
        self._shapes: Shapes = {}
        self._views: list[Tensor] = []
        self._copied: list[torch.cuda.Event] = []

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the tensors in. From a CUDA device the copies are only queued: `settle` waits for them.

        What the caller does next to a tensor, on the stream that it does it on now, comes after its copy.
        """
        devices = {tensor.device for tensor in tensors.values() if tensor.device.type == "cuda"}
        shapes = shapes_of(tensors)
        if shapes != self._shapes or len(self.bytes) == 0:
            self._allocate(shapes, pinned=bool(devices))
        for place, name in zip(self._views, self.layout.places, strict=True):
            _copy(place, tensors[name].detach())
        for device in devices:
            self._copied.append(torch.cuda.Event())  # type: ignore[no-untyped-call]
            self._copied[-1].record(torch.cuda.current_stream(device))

    def settle(self) -> None:
        """Wait until the copies have arrived; for the thread that reads the bytes."""
        while self._copied:
            self._copied.pop().synchronize()

    def _allocate(self, shapes: Shapes, pinned: bool) -> None:
        self.bytes, self._views = torch.empty(0, dtype=torch.uint8), []  # the old memory goes before the new one comes
        self.layout, self._shapes = lay_out(shapes), shapes
        self.bytes = torch.empty(self.layout.size, dtype=torch.uint8, pin_memory=pinned)
        self.bytes[: len(self.layout.head)] = torch.frombuffer(bytearray(self.layout.head), dtype=torch.uint8)
        self._views = list(views(self.bytes, self.layout).values())


def _copy(place: Tensor, tensor: Tensor) -> None:
    """From the host by one thread: torch takes all of them and waits for the last, which beside other processes took
    0.06 to 0.14 s for 290 tensors of 66 MB, against 0.02 to 0.04 (and 0.04 against 0.014 undisturbed)."""
    if tensor.device.type == "cpu":
        raw = tensor.contiguous().reshape(-1).view(torch.uint8)
        np.copyto(place.view(-1).view(torch.uint8).numpy(), raw.numpy())
    else:
        place.copy_(tensor, non_blocking=tensor.is_cuda)


def write(path: Path, image: Tensor) -> None:
    """All bytes, forced to the disk and out of the page cache: what is read next comes from the disk."""
    data = image.numpy().data
    with open(path, "wb", buffering=0) as file:
        at = 0
        while at < len(data):
            at += file.write(data[at : at + PIECE])
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):  # it also leaves the cache to the shards
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_back(path: Path, image: Tensor) -> str:
    """sha256 of a file of which every byte was compared with what was written. DataError where one differs.

    So the hash goes once over the bytes, over those of the disk: it takes 0.6 CPU seconds a GB, and writing and
    comparing 0.25 and 0.2.
    """
    data, piece = image.numpy(), np.empty(PIECE, np.uint8)
    digest, at = hashlib.sha256(), 0
    for size in _pieces(path, piece, over=True):
        if not np.array_equal(piece[:size], data[at : at + size]):
            break
        digest.update(piece[:size].data)
        at += size
    if at != len(data) or path.stat().st_size != at:
        raise DataError(f"checkpoint: {path} reads back otherwise than it was written; check the disk, run it again.")
    return digest.hexdigest()


def read(path: Path, size: int) -> tuple[Tensor, str]:
    """The first `size` bytes of a file, uint8 (size,), and their sha256; zeros where it is shorter."""
    image = torch.zeros(size, dtype=torch.uint8)
    digest, at = hashlib.sha256(), 0
    for count in _pieces(path, image.numpy()):
        digest.update(image.numpy().data[at : at + count])
        at += count
    return image, digest.hexdigest()


def _pieces(path: Path, into: np.ndarray, over: bool = False) -> Iterator[int]:
    """Reads a file into an array, piece after piece, or `over` and over to its begin; the size of each."""
    at = 0
    with open(path, "rb", buffering=0) as file:
        while size := file.readinto(into.data[at : at + PIECE]):
            yield size
            at += 0 if over else size
