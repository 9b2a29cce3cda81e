"""Files of sources, of text and of images.

A source never refuses more than it must: whatever its bytes, documents or named refusals come out of it, and of a
packed file with a checksum never another document without a word.
"""

import bz2
import contextlib
import gzip
import json
import lzma
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from backports import zstd

from tasks import evidence
from tasks.folders import static_part
from tasks.image_decoding import ImageLimits
from tasks.reading import documents
from tasks.remotes import is_remote, local
from tasks.sources import Source, survey
from tasks.streams import Document, Item, Limits
from tests.faults.fuzz import Build, Parser, Silent
from tests.faults.fuzz_cases import Case
from tests.faults.fuzz_inputs import CSV

# Sources of text

TEXTS = ["The first text of a file, with words.", "Zweiter Text, länger:\n\nmit Absätzen.", "x" * 300, "終わり"]
JSONL = b"".join(json.dumps({"text": text, "n": {"a": [text]}}, ensure_ascii=False).encode() + b"\n" for text in TEXTS)
PAGE = b"""<html><head><title>Title</title><meta charset="utf-8"></head><body><nav>menu</nav><article><h1>A title</h1>
<p>A paragraph with enough words to be the main text of a page, and some more of them.</p><p>Another &amp; one &#8364;
<b>bold</b></p><script>var x = 1;</script><table><tr><td>1</td></tr></table></article></body></html>"""
PYTHON = (
    '"""'
    + "A docstring with prose in it, long enough to be taken for documentation. " * 4
    + '"""\n\ndef f(x=[1, {2: 3}]):\n    """Short."""\n    return x\n'
)


def columns(kind: str, **options: Any) -> bytes:
    table = pa.table({"text": TEXTS, "n": [1.5, None, 3.0, 4.0], "meta": [{"text": one} for one in TEXTS]})
    sink = pa.BufferOutputStream()
    if kind == "parquet":
        pq.write_table(table, sink, row_group_size=2, write_page_checksum=True, **options)
    else:
        with (pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file)(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    return sink.getvalue().to_pybytes()


def text(folder: Path, kind: str, name: str, examples: Callable[[], list[bytes]], **more: Any) -> Parser:
    """A file of a source, as the corpus reads it. `packed`: its bytes have a checksum."""
    path, packed = folder / name, more.pop("packed", False)
    limits = Limits(line_bytes=1 << 16)
    whole = list(examples())

    def taken(data: bytes) -> tuple[list[str], bool]:
        path.write_bytes(data)
        item = Item(kind, str(path), name, "0" * 64, len(data), stamp=_stamp(path), **more)
        found, refused = [], False
        for event in documents(item, limits):
            if isinstance(event, Document):
                found.append(event.text)
                event.text.encode()
            else:
                refused = True
        return found, refused

    expected = [taken(data) for data in whole]

    def read(case: Case) -> str | None:
        found, refused = taken(case.data)
        if not found and not refused and kind != "python":
            raise Silent("neither a document nor a refusal")
        if packed and case.origin is not None and not refused and found != expected[case.origin][0]:
            raise Silent("other documents came out of a damaged archive")
        return "rejected" if refused else None

    return Parser(whole, read, "lines" if kind == "records" and not packed else "bytes")


def _stamp(path: Path) -> tuple[int, ...]:
    now = path.stat()
    return now.st_size, now.st_mtime_ns, now.st_ino, now.st_ctime_ns


def zstandard(data: bytes) -> bytes:
    return zstd.compress(data, options={zstd.CompressionParameter.checksum_flag: 1})


def surveyed(folder: Path) -> Parser:
    """Addresses of sources: what a recipe may name."""
    (folder / "a").mkdir()
    (folder / "a" / "b.txt").write_text("text")

    def read(case: Case) -> str | None:
        uri = case.data.decode("utf-8", "surrogateescape")
        with contextlib.chdir(folder):
            source = Source(uri)
            place = static_part(Path(os.path.expanduser(local(uri))))
            if (
                is_remote(uri)
                or uri.startswith("hf:")
                or (place.is_absolute() and folder not in (place, *place.parents))
            ):
                return "rejected"  # another machine, or much of this one
            if ".." in place.parts:
                return "rejected"
            survey([source], folder / "store")
        return None

    names = ["a", "a/*.txt", "a/**/b.txt", "a/b.txt", "file://" + str(folder / "a")]
    pieces = (b"*", b"[", b"]", b"?", b"**/", b"\0", b"~", b"/", b"file://", b"hf:/", b"installed-docs:", b"{", b"a")
    return Parser([name.encode() for name in names], read, pieces=pieces)


def corpus_ids(folder: Path) -> Parser:
    """The table of a corpus, where its ids are read without its digest."""
    path = folder / "documents-00000.parquet"
    table = pa.table({"text": TEXTS, "id": ["a", "b", "c", "d"], "split": ["train", "test"] * 2})
    pq.write_table(table, path, write_page_checksum=True)

    corpus: Any = SimpleNamespace(files=[path.name], path=lambda name: path)

    def read(case: Case) -> None:
        path.write_bytes(case.data)
        evidence.document_ids(corpus, "test")

    return Parser([path.read_bytes()], read)


# Sources of images


def image(folder: Path, name: str) -> Parser:
    """A file of images, and each image that is in it."""
    from tests.tasks.made_images import read as read_images
    from tests.tasks.whole_images import FILES

    path, limits = folder / name, ImageLimits(file_bytes=1 << 20, pixels=1 << 16)

    def read(case: Case) -> str | None:
        path.write_bytes(case.data)
        kept, rejects = read_images(path, limits)
        if not kept and not rejects and ".tar" not in name:
            raise Silent("neither an image nor a refusal")
        return "rejected" if rejects else None

    return Parser([FILES[name]], read)


PARSERS: dict[str, Build] = {
    "source": surveyed,
    "text": partial(
        text, kind="text", name="a.txt", examples=lambda: ["\n\n".join(TEXTS).encode(), b"\xef\xbb\xbfa\r\nb\rc"]
    ),
    "text-utf16": partial(
        text, kind="text", name="a.txt", encoding="utf-16", examples=lambda: ["\n\n".join(TEXTS).encode("utf-16")]
    ),
    "html": partial(text, kind="html", name="a.html", examples=lambda: [PAGE]),
    "records": partial(text, kind="records", name="a.jsonl", examples=lambda: [JSONL]),
    "records-path": partial(text, kind="records", name="a.jsonl", text_key="n.a.0", examples=lambda: [JSONL]),
    "csv": partial(text, kind="csv", name="a.csv", examples=lambda: [CSV, b'text;b\n"a;\n""b""";c\n']),
    "parquet": partial(
        text,
        kind="parquet",
        name="a.parquet",
        examples=lambda: [columns("parquet"), columns("parquet", compression="zstd", use_dictionary=False)],
    ),
    "parquet-struct": partial(
        text,
        kind="parquet",
        name="a.parquet",
        text_key="meta.text",
        examples=lambda: [columns("parquet", data_page_version="2.0")],
    ),
    "arrow-file": partial(text, kind="arrow", name="a.arrow", examples=lambda: [columns("file")]),
    "arrow-stream": partial(
        text, kind="arrow", name="a.arrow", text_key="meta.text", examples=lambda: [columns("stream")]
    ),
    "gzip": partial(text, kind="records", name="a.jsonl.gz", packed=True, examples=lambda: [gzip.compress(JSONL)]),
    "zstd": partial(text, kind="records", name="a.jsonl.zst", packed=True, examples=lambda: [zstandard(JSONL)]),
    "bz2": partial(text, kind="text", name="a.txt.bz2", packed=True, examples=lambda: [bz2.compress(JSONL)]),
    "xz": partial(text, kind="text", name="a.txt.xz", packed=True, examples=lambda: [lzma.compress(JSONL)]),
    "python": partial(text, kind="python", name="a.py", examples=lambda: [PYTHON.encode()]),
    "corpus-ids": corpus_ids,
    **{
        f"image-{name}": partial(image, name=name)
        for name in ("a.png", "a.jpg", "a.tar", "a.tar.gz", "a-idx3-ubyte", "a.parquet")
    },
}
