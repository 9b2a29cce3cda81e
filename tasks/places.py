"""Where the files of a corpus lie, and whether they are still what they were when it was made.

A corpus's key knows its sources by their bytes, never by their place. So places stand beside its manifest, outside its
digest, as all that depends on the machine: `measured.sources.jsonl`, a line for each file.
"""

import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .artifacts import canonical, file_digest, write_atomic
from .errors import DataError
from .manifests import json_of
from .remotes import without_secrets
from .sources import Surveyed

PLACES = "measured.sources.jsonl"
THERE, CHANGED, GONE, UNASKED = "there", "changed", "gone", "not asked"


@dataclass(frozen=True)
class File:
    """A file that a corpus was made from."""

    label: str
    path: str
    digest: str
    """sha256; of a remote one its version."""
    bytes: int
    state: str
    """there, changed, gone; not asked: it is not on this machine."""


def remember(folder: Path, sources: Iterable[Surveyed], evaluation: Iterable[Surveyed] = ()) -> None:
    """Writes down where the files are, beside the manifest; they may have moved since the corpus was made."""
    lines = []
    for prefix, some in (("", sources), ("evaluation/", evaluation)):
        for one in some:
            for item in one.items:
                away = item.remote or item.kind == "hub"
                place: dict[str, Any] = {"source": prefix + one.source.name, "label": item.label, "away": away}
                place |= {"path": without_secrets(item.path) if away else item.path, "digest": item.digest}
                # Installed packages do not change in place: their size is enough, there are thousands of files.
                stamp = None if one.kind == "installed-docs" else list(item.stamp)
                lines.append(canonical(place | {"bytes": item.size, "stamp": stamp}) + b"\n")
    data = b"".join(lines)
    with suppress(OSError):  # a full disk, a store that may not be written to: it costs lines of `maskmill lineage`
        if not (folder / PLACES).exists() or (folder / PLACES).read_bytes() != data:
            write_atomic(folder / PLACES, data)


def files(folder: Path, hashed: bool = False) -> dict[str, list[File]]:
    """Source -> its files. Raises FileNotFoundError where they were never remembered, DataError where that is damaged.

    hashed  hash them all; else a file of the same size and times is taken to be what it was
    """
    found: dict[str, list[File]] = {}
    path = folder / PLACES
    try:
        for line in path.read_bytes().splitlines():
            place = json_of(line)
            state = UNASKED if place["away"] else _state(place, hashed)
            one = File(place["label"], place["path"], place["digest"], place["bytes"], state)
            found.setdefault(place["source"], []).append(one)
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path} is damaged; the next run of its recipe writes it anew.") from None
    return found


def _state(place: Mapping[str, Any], hashed: bool) -> str:
    path = Path(place["path"])
    try:
        now = path.stat()
        if not stat.S_ISREG(now.st_mode):  # a pipe or a device would block or never end
            return CHANGED
        if place["bytes"] and now.st_size != place["bytes"]:
            return CHANGED
        stamp = [now.st_size, now.st_mtime_ns, now.st_ino, now.st_ctime_ns]
        if not hashed and place["stamp"] in (None, stamp):
            return THERE
        return THERE if file_digest(path) == place["digest"] else CHANGED
    except OSError:
        return GONE
