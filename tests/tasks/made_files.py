"""Files of all kinds, written and read. Shared by the tests of the readers."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
from backports import zstd

from tasks.artifacts import file_digest
from tasks.reading import documents
from tasks.streams import Document, Item, Limits, Reject

DATA = Path(__file__).parents[2].parent / "shared" / "data"
GOOD = b'{"text": "good"}'
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "zst": zstd.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
}


def put(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def item_of(path: Path, kind: str, **more: object) -> Item:
    return Item(kind, str(path), path.name, file_digest(path), path.stat().st_size, **more)  # type: ignore[arg-type]


def read(path: Path, kind: str, limits: Limits | None = None, **more: object) -> tuple[list[Document], list[Reject]]:
    """(documents, rejects) of a file."""
    events = list(documents(item_of(path, kind, **more), limits or Limits()))
    return [e for e in events if isinstance(e, Document)], [e for e in events if isinstance(e, Reject)]


def jsonl(texts: list[str]) -> bytes:
    return b"".join(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n" for text in texts)


def development(*parts: str) -> Path:
    """A file or folder of the development data; skips the test where there is none."""
    path = DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip("needs the development data")
    return path
