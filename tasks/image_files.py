"""Files that hold images: IDX, tar, Parquet, single PNG and JPEG; with a name for everything that is wrong with them.

One bad image never loses the others, and nothing passes silently:

    image       it is taken or refused
    IDX         the header says how many images there are; where the file is shorter, the whole ones before its end stay
    tar         a member that is bad is refused; after a bad header the next good one is looked for (image_tar.py)
    Parquet     a row group that cannot be decoded is refused, the others stay

Readers give pictures as they stand in the file; image_decoding.py makes pixels of them.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from . import archives
from .errors import DataError
from .image_decoding import ImageLimits
from .image_sources import ImageFile, ImageSource
from .image_streams import Event, Misplaced, Picture, Slice, Stream
from .image_tables import parquet
from .image_tar import tar
from .reading import refuse_changed
from .streams import CHUNK, Broken, Item, Reject, first_line


def pictures(
    file: ImageFile, source: ImageSource, limits: ImageLimits, unread: Counter[str], part: Slice | None = None
) -> Iterator[Event]:
    """The images of a file, in order, and all that was refused.

    unread  counts what is passed over inside an archive
    part    of an IDX file that is not packed
    Raises DataError when a file is no longer the one whose digest went into the key, or its labels do not fit.
    """
    item = file.item
    if len(item.digest) != 64 and not item.remote:
        yield Reject("unreadable", bytes=item.size, detail=item.digest)
        return
    try:
        found, before = False, unread.total()
        try:
            for event in _read(file, source, limits, unread, part or Slice()):
                found = True
                yield event
            if not found and part is None and unread.total() == before:
                yield Reject("empty_file", bytes=item.size)
        except Broken as broken:
            yield broken.reject
        refuse_changed(item)
    except OSError as error:
        why = error.strerror or first_line(error)
        raise DataError(f"{item.label} cannot be read any more ({why}); run again.") from error


def _read(
    file: ImageFile, source: ImageSource, limits: ImageLimits, unread: Counter[str], part: Slice
) -> Iterator[Event]:
    if file.item.kind == "idx":
        return idx(file, limits, part)
    if file.item.kind == "tar":
        return tar(file, source, limits, unread)
    if file.item.kind == "parquet":
        return _rows(file, source, limits)
    return single(file, limits)


def single(file: ImageFile, limits: ImageLimits) -> Iterator[Event]:
    """A file that is one image."""
    if file.item.size > limits.file_bytes:
        yield Reject("file_too_large", bytes=file.item.size, detail=f"more than {limits.file_bytes} bytes")
        return
    with archives.open_item(file.item) as opened:
        data = opened.read(limits.file_bytes + 1)
    yield Picture(data, len(data), label=file.folder, origin="folder" if file.folder else "")


def _rows(file: ImageFile, source: ImageSource, limits: ImageLimits) -> Iterator[Event]:
    for event in parquet(file, source, limits):
        if isinstance(event, Reject):
            yield Misplaced(event, f"#{event.offset}")
        else:
            yield Picture(event.data, len(event.data), event.row, f"#{event.row}", event.label, event.origin)


# IDX: two zero bytes, a type, the number of dimensions, each of them in four bytes (big end first), then the numbers


@dataclass(frozen=True)
class Header:
    """What an IDX file says of itself."""

    images: int
    height: int
    width: int
    channels: int
    bytes: int
    """Of the header."""
    packed: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.height, self.width, self.channels

    @property
    def image_bytes(self) -> int:
        return self.height * self.width * self.channels


def idx_header(item: Item, limits: ImageLimits) -> Header:
    """Raises Broken where it is none, or says more than the limits allow."""
    with archives.open_item(item) as opened:
        packed = opened.read(2) != b"\0\0"
    return _header(Stream(archives.unpacked(item, limits.unpacking())), item, limits, packed)


def _header(stream: Stream, item: Item, limits: ImageLimits, packed: bool) -> Header:
    head = stream.read(4)
    if len(head) < 4:
        reject = stream.damage or Reject("truncated_idx", 0, item.size, None, "ends in its header")
        raise Broken(reject.reason, reject.detail, reject.offset, item.size)
    if head[:3] != b"\0\0\x08" or head[3] not in (3, 4):
        what = f"begins with {head.hex(' ')}, not with 00 00 08 03 (or 04): bytes in three (or four) dimensions"
        raise Broken("broken_idx", what, 0, item.size)
    sizes = stream.read(4 * head[3])
    if len(sizes) < 4 * head[3]:
        raise Broken("truncated_idx", "ends in its header", 0, item.size)
    images, height, width, *more = np.frombuffer(sizes, ">u4").tolist()
    channels = more[0] if more else 1
    if channels not in (1, 3) or not height or not width:
        raise Broken("broken_idx", f"images of {height}×{width}×{channels}", 0, item.size)
    if height * width > limits.pixels:
        raise Broken("too_many_pixels", f"{height}×{width}, more than {limits.pixels} pixels", 0, item.size)
    return Header(images, height, width, channels, stream.at, packed)


def idx(file: ImageFile, limits: ImageLimits, part: Slice) -> Iterator[Event]:
    """Images of an IDX file with their labels. Raises Broken; DataError where the labels do not fit the images."""
    header = idx_header(file.item, limits)
    labels = idx_labels(file, header, limits)
    size, first = header.image_bytes, part.first
    stop = header.images if part.stop is None else min(part.stop, header.images)
    with archives.open_item(file.item) as opened:
        start = header.bytes + first * size
        stream = Stream(_from(opened, start) if first else archives.unpacked(file.item, limits.unpacking()), start)
        if not first:
            stream.at = 0
            stream.skip(header.bytes)
        number, batch = first, max(CHUNK // size, 1)
        while number < stop:
            data = stream.read(min(batch, stop - number) * size)
            whole = len(data) // size
            some = np.frombuffer(data, np.uint8, whole * size).reshape(
                whole, header.height, header.width, header.channels
            )
            for pixels in some:
                label = file.folder if labels is None else str(labels[number])
                origin = "" if label is None else "folder" if labels is None else "file"
                yield Picture(pixels, size, header.bytes + number * size, f"#{number}", label, origin)
                number += 1
            if len(data) % size or not whole:
                yield _cut_off(stream, header, number, len(data) % size)
                return
        if part.stop is None:
            yield from _behind(stream)


def _from(opened: BinaryIO, start: int) -> Iterator[bytes]:
    opened.seek(start)
    yield from iter(lambda: opened.read(CHUNK), b"")


def _cut_off(stream: Stream, header: Header, number: int, rest: int) -> Reject:
    said = f"says {header.images} images of {header.height}×{header.width}, holds {number}"
    if stream.damage:
        detail = f"{said}; {stream.damage.detail}"
        return Reject(stream.damage.reason, stream.at - rest, rest + stream.damage.bytes, None, detail)
    return Reject("truncated_idx", stream.at - rest, rest, None, said)


def _behind(stream: Stream) -> Iterator[Reject]:
    at, size = stream.at, 0
    while more := stream.skip(CHUNK):
        size += more
    if stream.damage:
        yield stream.damage
    elif size:
        yield Reject("trailing_junk", at, size, None, "more bytes than its header says")


def idx_labels(file: ImageFile, header: Header, limits: ImageLimits) -> bytes | None:
    """One label (a byte) for each image; None where there is no such file. Raises DataError where they do not fit."""
    if file.labels is None:
        return None
    stream = Stream(archives.unpacked(file.labels, limits.unpacking()))
    head = stream.read(8)
    number = int.from_bytes(head[4:], "big")
    hint = "give the file that belongs to it, or set the source's labels to none"
    if len(head) < 8 or head[:4] != b"\0\0\x08\x01":
        raise DataError(f"{file.labels.path} is no IDX file of labels (00 00 08 01); {hint}.")
    if number != header.images:
        what = f"{number} labels, but {file.item.path} has {header.images} images"
        raise DataError(f"{file.labels.path} has {what}; {hint}.")
    labels = stream.read(number)
    if len(labels) < number or stream.read(1):
        raise DataError(f"{file.labels.path} says {number} labels and does not hold as many; {hint}.")
    refuse_changed(file.labels)
    return labels
