"""What the trials of F13 lay among good files."""

import io
import os
import random
import socket
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

LARGE = 256 << 20
"""Bytes that a bomb unpacks to."""
WORDS = ["the", "of", "and", "to", "in", "that", "was", "his", "he", "it", "with", "is", "for", "as", "had", "you"]
GOOD = [" ".join(random.Random(number).choices(WORDS, k=30)) + "." for number in range(200)]


def images() -> list[bytes]:
    import numpy as np
    from PIL import Image

    found = []
    for number in range(20):
        file = io.BytesIO()
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (32, 32), np.uint8)).save(file, "PNG")
        found.append(file.getvalue())
    return found


# What is planted


def file(name: str, data: Callable[[Path], bytes], source: Path) -> None:
    (source / name).write_bytes(data(source.parent))


def packed(name: str, packer: Callable[[], Any], source: Path) -> None:
    """LARGE bytes in a few kilobytes."""
    compressor = packer()
    with open(source / name, "wb") as out:
        for _ in range(LARGE >> 20):
            out.write(compressor.compress(b" " * (1 << 20)))
        out.write(compressor.flush())


def parquet_bomb(source: Path) -> None:
    """One text of 4 MB, and 20,000 rows that have it: 80 GB, by a dictionary of one entry."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), pa.array(["a bomb " * (4 << 17)]))
    pq.write_table(pa.table({"text": column}), source / "bomb.parquet", compression="zstd")


def arrow_bomb(source: Path) -> None:
    """2 GB of one text over and over, well packed."""
    import pyarrow as pa

    batch = pa.record_batch([pa.array(["a bomb " * (3 << 20)] * 10)], ["text"])
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with (
        pa.OSFile(str(source / "bomb.arrow"), "wb") as file,
        pa.ipc.new_file(file, batch.schema, options=options) as to,
    ):
        for _ in range(10):
            to.write_batch(batch)


def png_bomb(width: int, source: Path) -> None:
    """Pixels by the thousand million, in a chunk of zeros."""
    (source / "class" / "bomb.png").write_bytes(png(width, width, zlib.compress(bytes(width * 64), 9)))


def png(width: int, height: int, data: bytes) -> bytes:
    def chunk(name: bytes, inside: bytes) -> bytes:
        return struct.pack(">I", len(inside)) + name + inside + struct.pack(">I", zlib.crc32(name + inside))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def tar(source: Path) -> None:
    """Members that lead out of any folder, links, devices; among two good images."""
    good = images()[:2]
    with tarfile.open(source / "a.tar", "w") as archive:
        for name, data in (("../../escaped.png", good[0]), ("/tmp/escaped.png", good[1])):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for kind, name in ((tarfile.SYMTYPE, "link.png"), (tarfile.LNKTYPE, "hard.png"), (tarfile.CHRTYPE, "zero.png")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.devmajor, info.devminor = kind, "/etc/passwd", 1, 5
            archive.addfile(info)


def long_line(source: Path) -> None:
    with open(source / "long.jsonl", "wb") as out:
        out.write(b'{"text": "')
        for _ in range(100):
            out.write(b"long " * (1 << 18))
        out.write(b'"}\n')


def special(kind: str, path: Path) -> None:
    """No file, under the name of one; in a folder, where a folder is given."""
    path = path / "special.txt" if path.is_dir() else path
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as one:
            here = os.getcwd()
            os.chdir(path.parent)  # the address of a socket has 108 characters at most
            try:
                one.bind(path.name)
            finally:
                os.chdir(here)
    else:
        path.symlink_to(kind)


def names(source: Path) -> None:
    """Names that are not what they seem, or no text: their texts are good, and taken."""
    for number, name in enumerate(
        (b"new\nline\x1b[31m.txt", "bidi\u202etxt.txt".encode(), b"not-utf8-\xff\xfe.txt", b"-rf.txt")
    ):
        text = " ".join(random.Random(1000 + number).choices(WORDS, k=30))
        with open(os.path.join(os.fsencode(source), name), "w") as out:
            out.write(text)
    with open(os.path.join(os.fsencode(source), b"no\x1b[31mkind\n.xyz"), "w") as out:
        out.write("x")


def loop(source: Path) -> None:
    (source / "again").symlink_to(source, target_is_directory=True)
    (source / "own.txt").symlink_to("own.txt")


def unreadable(source: Path) -> None:
    (source / "closed.txt").write_text("nobody reads this")
    (source / "closed.txt").chmod(0)
    (source / "closed").mkdir(mode=0)


def deep(source: Path) -> None:
    (source / "deep.jsonl").write_bytes(b'{"text": ' + b"[" * 2_000_000 + b"\n" + b'{"text":' * 500_000 + b"\n")
