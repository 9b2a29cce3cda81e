"""Packs: what was read and cleaned, kept per source file, so that a new file costs only itself.

    store/corpus/.packs/<how>/<pack>/     <how> is a digest of everything that decides how a file is read and cleaned
        texts.arrow                           text, offset: one row a document
        ids.npy sizes.npy leaks.npy           id (two halves), [bytes, characters], overlap with an evaluation set
        bands.npy signatures.npy              for near copies (minhash.py)
        quarantine.jsonl                      what was refused
    store/corpus/.packs/<how>/<pack>.receipt.json     written last: digests, and an entry for each source file

A file is found again by the digest of its bytes, whatever its name or place, and a corpus of the same settings takes
its rows from the pack. A pack holds the files that were read together, since a folder for each small file would cost
more than reading it. Packs are hashed when they are taken up again; one that is damaged is read anew.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .arrays import numbers, strings
from .artifacts import digest_of, finish_unit, finished_unit, save_array
from .books import Books, is_fault
from .cleaning import Cleaner, Cleaning, document_id
from .leakage import Probe
from .manifests import json_of
from .minhash import NearDuplicates, Signer
from .quarantine import Faults
from .reading import documents, refuse_changed
from .sources import file_name, suffix_of
from .streams import Item, Limits, Reject

BATCH_BYTES = 4 << 20
"""Text that is signed and written together: what a reading process holds in memory, a few times."""
UNUSED_DAYS = 14
"""A pack that no run has used for so long is removed."""
SCHEMA = pa.schema([("text", pa.large_string()), ("offset", pa.int64())])


@dataclass(frozen=True)
class Manner:
    """How files are read and cleaned; picklable."""

    cleaning: Cleaning
    limits: Limits
    near: NearDuplicates
    probe: str = ""
    """File of the 13-grams of the evaluation sets; "" without."""


@dataclass(frozen=True)
class Reading:
    """The files that one process reads into one pack, or the pack in which they lie already."""

    pack: str
    files: tuple[tuple[str, Item], ...]
    """(key of the file, the file)."""


def key_of(item: Item) -> str:
    """What a file's documents depend on, besides the manner: its bytes, and how they are taken."""
    known = len(item.digest) == 64 and not item.remote and item.kind != "hub"
    where = "" if known else item.path
    how = [item.kind, item.text_key, item.cut, item.encoding, item.stop_bytes, suffix_of(file_name(item))]
    return digest_of([item.digest, where, *how])[:32]


def name_of(keys: Sequence[str]) -> str:
    """The name of the pack in which these files are read together."""
    return "pack-" + digest_of(list(keys))[:24]


def index(folder: Path) -> dict[str, str]:
    """Key of a file -> the pack that holds it. Not verified: a pack is hashed when it is taken up."""
    found: dict[str, str] = {}
    for receipt in sorted(folder.glob("pack-*.receipt.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            pack = receipt.name.removesuffix(".receipt.json")
            found |= dict.fromkeys(json_of(receipt.read_bytes())["facts"]["entries"], pack)
    return found


def read(reading: Reading, folder: Path, manner: Manner) -> tuple[str, dict[str, dict[str, Any]]]:
    """Reads files into a pack, unless it is there. Returns its name, and the entry of each file by its key.

    An entry: first and rows (its documents in the pack), books, faults (where its refusals stand in the quarantine).
    """
    keys = [key for key, _ in reading.files]
    facts = _taken_up(folder, reading.pack, keys)
    if facts is not None:
        return reading.pack, {key: facts["entries"][key] for key in keys}
    # Also where it was damaged: the files are read again, into a pack that may have another name.
    pack = name_of(keys)
    temporary = Path(mkdtemp(prefix=f".{pack}.", dir=folder))
    try:
        with _Writer(temporary, manner) as writer:
            entries = {key: _read_file(item, writer, manner) for key, item in reading.files}
        _publish(folder, pack, temporary, entries)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return pack, entries


def _taken_up(folder: Path, pack: str, keys: Sequence[str]) -> dict[str, Any] | None:
    """The facts of a pack that is there, whole, and has these files."""
    facts = finished_unit(folder, pack)
    entries = facts.get("entries") if facts else None
    if not isinstance(entries, dict) or not set(keys) <= set(entries) or not (folder / pack / "texts.arrow").exists():
        return None
    os.utime(folder / f"{pack}.receipt.json")
    return facts


def _publish(folder: Path, pack: str, temporary: Path, entries: dict[str, dict[str, Any]]) -> None:
    """Two runs may read the same files at the same time: the first one's pack stays, it has the same bytes."""
    with _locked(folder / ".publish", fcntl.LOCK_EX):
        if finished_unit(folder, pack) is None:
            shutil.rmtree(folder / pack, ignore_errors=True)
            os.rename(temporary, folder / pack)
            finish_unit(folder, pack, sorted((folder / pack).iterdir()), {"entries": entries})


def _read_file(item: Item, writer: "_Writer", manner: Manner) -> dict[str, Any]:
    books, faults = Books(), Faults(writer.quarantine)
    first, size = writer.rows, 0
    own: set[bytes] = set()
    cleaner = _cleaner(manner.cleaning)
    for event in documents(item, manner.limits):
        if isinstance(event, Reject):
            books.take(event.bytes, 0, event.reason)
            if is_fault(event.reason):
                faults.add(event)
            continue
        cleaned = cleaner.clean(event.text, event.tidy)
        if cleaned.reason:
            books.take(_size(event.text), len(event.text), cleaned.reason)
            continue
        data = cleaned.text.encode()
        came = _size(event.text) if cleaned.changed else len(data)
        books.take(came, len(event.text))
        if cleaned.changed:
            books.clean(cleaned.changed, came - len(data), len(event.text) - len(cleaned.text))
        writer.add(data, len(cleaned.text), event.offset)
        if item.stop_bytes and (name := document_id(data)) not in own:  # what it repeats is not what its budget is for
            own.add(name)
            size += len(data)
            if size >= item.stop_bytes:
                refuse_changed(item)
                break
    return {
        "first": first,
        "rows": writer.rows - first,
        "books": books.facts(),
        "faults": faults.close(),
    }


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


@lru_cache(4)
def _cleaner(cleaning: Cleaning) -> Cleaner:
    return Cleaner(cleaning)


@lru_cache(2)
def _probe(path: str) -> Probe:
    return Probe.load(Path(path))


@lru_cache(2)
def _signer(near: NearDuplicates) -> Signer:
    return Signer(near)


class _Writer:
    """Documents into the files of a pack, a batch at a time."""

    def __init__(self, folder: Path, manner: Manner) -> None:
        self.folder, self.manner = folder, manner
        self.quarantine = open(folder / "quarantine.jsonl", "wb")  # noqa: SIM115  (closed by __exit__)
        self.arrow = pa.ipc.new_file(folder / "texts.arrow", SCHEMA)
        self.rows = self.held = 0
        self.texts: list[bytes] = []
        self.offsets: list[int] = []
        self.columns: dict[str, list[NDArray[Any]]] = {}
        self.characters: list[int] = []

    def add(self, data: bytes, characters: int, offset: int) -> None:
        self.texts.append(data)
        self.characters.append(characters)
        self.offsets.append(offset)
        self.rows += 1
        self.held += len(data)
        if self.held >= BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self.texts:
            return
        for name, column in self._columns().items():
            self.columns.setdefault(name, []).append(column)
        texts = strings(b"".join(self.texts), np.fromiter(map(len, self.texts), np.int64, len(self.texts)), large=True)
        offsets = numbers(np.array(self.offsets, np.int64), pa.int64())
        self.arrow.write_batch(pa.record_batch([texts, offsets], SCHEMA))
        self.texts, self.offsets, self.characters, self.held = [], [], [], 0

    def _columns(self) -> dict[str, NDArray[Any]]:
        digests = b"".join(map(document_id, self.texts))
        sizes = [list(map(len, self.texts)), self.characters]
        columns: dict[str, NDArray[Any]] = {
            "ids": np.frombuffer(digests, ">u8").reshape(-1, 2).astype("<u8"),
            "sizes": np.array(sizes, "<u4").T,
        }
        if self.manner.probe:
            probe = _probe(self.manner.probe)
            columns["leaks"] = np.array([probe.hits(text) for text in self.texts], np.uint8)
        if self.manner.near.enabled:
            columns["signatures"], columns["bands"] = _signer(self.manner.near).sign(self.texts)
        return columns

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self._flush()
            for name, parts in self.columns.items():
                whole = np.concatenate(parts)
                if name == "bands":  # read one band at a time: each lies in one piece
                    whole = np.asfortranarray(whole)
                save_array(self.folder / f"{name}.npy", whole)
        self.arrow.close()
        self.quarantine.close()


# Taking up


@lru_cache(256)  # each holds a file open
def column(folder: Path, pack: str, name: str) -> NDArray[Any]:
    """A column of a pack, by memory map."""
    array: NDArray[Any] = np.load(folder / pack / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    return array


@lru_cache(8)
def _table(folder: Path, pack: str) -> pa.Table:
    with pa.memory_map(str(folder / pack / "texts.arrow")) as source:
        return pa.ipc.open_file(source).read_all()


def texts(folder: Path, pack: str, first: int, rows: int) -> pa.Table:
    """Rows of a pack: text and offset, by memory map."""
    return _table(folder, pack).slice(first, rows)


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """While packs are read or made. Before and after, what nobody has used for long is removed, here and beside."""
    folder.mkdir(parents=True, exist_ok=True)
    column.cache_clear()
    _table.cache_clear()
    sweep(folder)
    with _locked(folder / ".lock", fcntl.LOCK_SH):
        yield
    for beside in sorted(folder.parent.iterdir()):
        sweep(beside)


@contextmanager
def _locked(path: Path, how: int) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, how)
        yield descriptor
    finally:
        os.close(descriptor)


def unused(folder: Path, days: float = UNUSED_DAYS) -> list[Path]:
    """Packs that nobody has used for so long, and litter of killed runs. Whether somebody is at work, `sweep` knows."""
    packs = [path for path in sorted(folder.glob("*pack-*")) if path.is_dir()]
    return [path for path in packs if _is_old(folder / f"{path.name}.receipt.json", days)]


def _is_old(receipt: Path, days: float) -> bool:
    """Also where there is none: of a killed run, or damaged."""
    try:
        return time.time() - receipt.stat().st_mtime > days * 86400
    except FileNotFoundError:
        return True


def sweep(folder: Path, days: float = UNUSED_DAYS) -> bool:
    """Removes these, unless somebody is at work here: then False."""
    try:
        with _locked(folder / ".lock", fcntl.LOCK_EX | fcntl.LOCK_NB):
            for receipt in folder.glob("pack-*.receipt.json"):  # first: a pack without one is litter
                if _is_old(receipt, days):
                    receipt.unlink()
            for pack in unused(folder, days):
                shutil.rmtree(pack, ignore_errors=True)
    except OSError:
        return False
    return True
