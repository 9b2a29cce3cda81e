"""Images, whole files of each kind that holds them, and a piece of a PNG. Shared by the tests of damaged images."""

import gzip
import struct
import zlib

from tasks.image_decoding import ImageLimits
from tests.tasks.made_images import encoded, idx, noise, parquet, tar

PIXELS = noise(6)
PNGS = [encoded(one) for one in PIXELS]
PHOTO = encoded(noise(1, 24, 40, 3)[0], "JPEG")
FILES: dict[str, bytes] = {
    "a.png": PNGS[0],
    "a.jpg": PHOTO,
    "a.tar": tar({f"class/{number}.png": data for number, data in enumerate(PNGS)} | {"x/photo.jpg": PHOTO}),
    "a.tar.gz": gzip.compress(tar({f"{number}.png": data for number, data in enumerate(PNGS)})),
    "a-idx3-ubyte": idx(PIXELS),
    "a-idx3-ubyte.gz": gzip.compress(idx(PIXELS)),
    "a.parquet": parquet(PNGS, list("aabbcc")),
}
"""Whole files, each of them of six images at least where it can have more than one."""
LIMITS = ImageLimits(file_bytes=1 << 20, pixels=1 << 16)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
