"""One image: from the bytes of a PNG or JPEG to pixels, and from any pixels to those of the corpus.

Nothing in a file is believed. Its format is told by its first bytes, and it is PNG or JPEG or refused; sizes are looked
at before anything is unpacked; the checksum of every chunk of a PNG must be right, and its decoder gets only the chunks
that decide on pixels (no texts, no profiles, no further frames). JPEG has no checksums: damage in the middle of it may
pass as other pixels, an end that is missing does not.

What an image becomes, in this order:

    transparency    the image stands on white
    16 bits         the upper eight of each
    palette, CMYK   RGB, by the plain formula; colour profiles are not looked at
    animation       its first frame (of a PNG the one that programs without animation show)
    orientation     of EXIF is applied
    colour          grey is (19595·R + 38470·G + 7471·B) / 2^16, rounded (ITU-R 601-2); grey to RGB is three times it
    size            scaled until it just covers the wanted one, antialiased (bicubic); what juts out is cut off evenly

H, W, C: height, width, channels (1 or 3).
"""

import io
import warnings
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import UsageError
from .streams import Limits, first_line

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
OTHERS = {
    b"GIF8": "GIF",
    b"RIFF": "WebP",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"<svg": "SVG",
    b"<?xml": "SVG",
    b"<!": "HTML",
    b"<html": "HTML",
    b"%PDF": "PDF",
}
"""First bytes -> what is refused by name."""
DECIDES = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"IEND"}
"""Chunks of a PNG that decide on its pixels, or how they stand."""
CHUNKS = 100_000
"""Most chunks of a PNG."""
SEGMENTS = 10_000
"""Most segments of a JPEG before its image; what they say of it may take 64 KiB each."""
JUNK = 1 << 16
"""Most bytes of a JPEG that belong to no segment: Pillow looks at them one by one."""
SIZED = {*range(0xC0, 0xD0), *range(0xDA, 0xF0), 0xFE} - {0xC8}
"""Markers of a JPEG that are followed by the size of their segment."""
SCANS, SCANNED = 100, 1 << 30
"""Most scans of a JPEG, and most pixels in all of them: a few bytes each cost a look at the whole image."""
MOST_PIXELS = 89_478_485
"""Where Pillow itself takes an image for a bomb."""
TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
"""Orientation of EXIF -> Pillow's Transpose that undoes it."""
Pixels = NDArray[np.uint8]


class Refused(Exception):
    """An image that cannot be taken: a reason, and in words what is wrong."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class ImageLimits:
    """From where on a thing is refused as too large."""

    file_bytes: int = 64 << 20
    """Of an image as it is stored."""
    pixels: int = 1 << 26
    """Of an image; decoding takes up to twenty bytes for each."""
    archive_members: int = 10_000_000
    """Of a tar; the rest is refused."""
    archive_ratio: int = 200
    """A packed file that unpacks to more than this times its size is a bomb: it is read no further."""

    def __post_init__(self) -> None:
        for name, least in (("file_bytes", 64), ("pixels", 1), ("archive_members", 1), ("archive_ratio", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"corpus.limits.{name} is {getattr(self, name)}; use at least {least}.")
        if self.pixels > MOST_PIXELS:
            raise UsageError(f"corpus.limits.pixels is {self.pixels}; use {MOST_PIXELS} at most.")

    def unpacking(self) -> Limits:
        """What archives.py wants to know."""
        return Limits(archive_ratio=self.archive_ratio)


@dataclass(frozen=True)
class Shape:
    """What all images of a corpus have in common."""

    height: int
    width: int
    channels: int

    @property
    def bytes(self) -> int:
        return self.height * self.width * self.channels

    def __str__(self) -> str:
        return f"{self.height}×{self.width}, {'grey' if self.channels == 1 else 'RGB'}"


def pillow() -> Any:
    """Pillow's module `Image`. Raises UsageError where it is not installed."""
    try:
        from PIL import Image
    except ImportError:
        raise UsageError("Images need Pillow; pip install 'maskmill[images]'.") from None
    return Image


def decode(data: bytes, limits: ImageLimits) -> tuple[Pixels, list[str]]:
    """Pixels (H, W, C) of a PNG or JPEG, and the names of what was done to get them. Raises Refused, UsageError.

    Memory: up to twenty bytes for each pixel, of which there are `limits.pixels` at most.
    """
    if len(data) > limits.file_bytes:
        raise Refused("file_too_large", f"{len(data)} bytes, more than {limits.file_bytes}")
    if data.startswith(PNG):
        return _decoded(_checked_png(data, limits), "PNG", limits)
    if data.startswith(JPEG):
        _check_segments(data)
        return _decoded(data, "JPEG", limits)
    known = next((name for start, name in OTHERS.items() if data.startswith(start)), "")
    raise Refused("not_an_image", f"neither PNG nor JPEG{known and f', but {known}'}" if data else "no bytes")


def _decoded(data: bytes, name: str, limits: ImageLimits) -> tuple[Pixels, list[str]]:
    image = pillow()
    from PIL import UnidentifiedImageError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata: what is wrong with the pixels is an error
        warnings.simplefilter("error", image.DecompressionBombWarning)
        try:
            with image.open(io.BytesIO(data), formats=[name]) as opened:
                _check_size(opened.width, opened.height, limits)
                if name == "JPEG":
                    _check_scans(data, opened.width * opened.height)
                opened.load()
                return _plain(image, opened)
        except (Refused, UsageError):
            raise
        except (image.DecompressionBombWarning, image.DecompressionBombError) as error:
            raise Refused("too_many_pixels", first_line(error)) from None
        except UnidentifiedImageError:  # its message names an address in memory
            raise Refused("broken_image", f"{name}: its header cannot be read") from None
        except Exception as error:  # whatever a decoder raises (a dozen kinds), it is about this image
            reason = "truncated_image" if "truncated" in str(error) else "broken_image"
            raise Refused(reason, f"{name}: {first_line(error)}") from None


def _check_size(width: int, height: int, limits: ImageLimits) -> None:
    if width < 1 or height < 1:
        raise Refused("broken_image", f"{width}×{height} pixels")
    if width * height > limits.pixels:
        raise Refused("too_many_pixels", f"{width}×{height}, more than {limits.pixels} pixels")


def _check_segments(data: bytes) -> None:
    """Raises Refused for a JPEG of segments without end: Pillow keeps an object for each. Steps as Pillow does."""
    at, junk = 2, 0
    for _ in range(SEGMENTS):
        start, at = at, data.find(b"\xff", at)
        junk += (at if at >= 0 else len(data)) - start
        if junk > JUNK:
            raise Refused("broken_image", f"JPEG: more than {JUNK} bytes between its segments")
        code = data[at + 1] if 0 <= at < len(data) - 4 else 0xDA
        if code == 0xDA:  # here the image begins, or nothing more comes
            return
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big") if code in SIZED else 1 if code == 0xFF else 2
    raise Refused("broken_image", f"JPEG: more than {SEGMENTS} segments before its image")


def _check_scans(data: bytes, pixels: int) -> None:
    scans = data.count(b"\xff\xda")
    if scans > SCANS or scans * pixels > SCANNED:
        raise Refused("too_many_scans", f"{scans} scans of {pixels} pixels")


def _checked_png(data: bytes, limits: ImageLimits) -> bytes:
    """The PNG without what does not decide on its pixels. Raises Refused where a chunk or a size is wrong."""
    kept, at, number, view = [PNG], len(PNG), 0, memoryview(data)
    name = b""
    while name != b"IEND":
        size, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        end = at + 12 + size
        if end > len(data) or len(name) < 4:
            raise Refused("truncated_image", f"PNG: ends in chunk {name.decode('ascii', 'replace')!r} at byte {at}")
        if zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise Refused("bad_checksum", f"PNG: chunk {name.decode('ascii', 'replace')!r} at byte {at}")
        if not number:
            if name != b"IHDR" or size != 13:
                raise Refused("broken_image", "PNG: does not begin with its header")
            width, height = (int.from_bytes(data[at + 8 + 4 * i : at + 12 + 4 * i], "big") for i in (0, 1))
            _check_size(width, height, limits)
        number += 1
        if number > CHUNKS:
            raise Refused("broken_image", f"PNG: more than {CHUNKS} chunks")
        if name in DECIDES:
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def _plain(image: Any, opened: Any) -> tuple[Pixels, list[str]]:
    """An opened image as grey or RGB, upright."""
    steps = []
    grey = opened.mode in ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L")
    if opened.mode.startswith("I"):
        steps.append("sixteen_bits")
        wide = np.asarray(opened)
        upper = np.clip(wide >> 8, 0, 255).astype(np.uint8)
        if isinstance(hidden := opened.info.get("transparency"), int):
            steps.append("transparency")
            upper[wide == hidden] = 255
        plain = image.fromarray(upper)
    elif opened.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in opened.info:
        steps.append("transparency")
        clear = opened if opened.mode == "RGBA" else opened.convert("RGBA")
        plain = image.new("RGB", clear.size, (255, 255, 255))
        plain.paste(clear, mask=clear.getchannel("A"))
        plain = plain.convert("L") if grey else plain
    else:
        plain = opened if opened.mode in ("L", "RGB") else opened.convert("L" if grey else "RGB")
    turn = TURNS.get(_orientation(opened))
    if turn is not None:
        steps.append("orientation")
        plain = plain.transpose(image.Transpose(turn))
    pixels = np.asarray(plain)
    return pixels.reshape(*pixels.shape[:2], -1), steps


def _orientation(opened: Any) -> Any:
    """Of EXIF; 1 where there is none, or none that can be read: the pixels are whole all the same."""
    if not opened.info.keys() & {"exif", "xmp", "Raw profile type exif"}:
        return 1
    try:
        return opened.getexif().get(0x0112, 1)
    except Exception:
        return 1


# From any pixels to those of the corpus


def fit(pixels: Pixels, shape: Shape) -> tuple[Pixels, list[str]]:
    """Pixels of the corpus's shape, and what was done: recoloured, resized, cropped."""
    steps = []
    if pixels.shape[2] != shape.channels:
        steps.append("recoloured")
        pixels = np.repeat(pixels, 3, axis=2) if shape.channels == 3 else grey(pixels)
    height, width = pixels.shape[:2]
    if (height, width) != (shape.height, shape.width):
        steps.append("resized")
        box = _middle(height, width, shape)
        if box != (0, 0, width, height):
            steps.append("cropped")
        image = pillow()
        flat = image.fromarray(pixels[:, :, 0] if shape.channels == 1 else pixels)
        scaled = flat.resize((shape.width, shape.height), image.Resampling.BICUBIC, box)
        pixels = np.asarray(scaled).reshape(shape.height, shape.width, shape.channels)
    return pixels, steps


def grey(pixels: Pixels) -> Pixels:
    """(H, W, 3) -> (H, W, 1), in the integers of Pillow."""
    weighed = pixels.astype(np.uint32) @ np.array([19595, 38470, 7471], np.uint32)
    return ((weighed + 0x8000) >> 16).astype(np.uint8)[:, :, None]


def _middle(height: int, width: int, shape: Shape) -> tuple[float, float, float, float]:
    """The largest part in the middle that has the sides' ratio of the shape: left, upper, right, lower."""
    if width * shape.height > height * shape.width:
        part = height * shape.width / shape.height
        return (width - part) / 2, 0, (width + part) / 2, height
    part = width * shape.height / shape.width
    return 0, (height - part) / 2, width, (height + part) / 2
