"""Digests of local files, remembered: a corpus of gigabytes is hashed once, and after that only what changed."""

import json
import os
import stat
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import NamedTuple

from .artifacts import digest_of, file_digest, write_atomic
from .hardware import thread_count
from .manifests import json_of
from .progress import progress

MEMORY = "digests.json"
SETTLED = 2.0
"""A file that changed less than these seconds ago may change again without a trace: mtime is too coarse for that."""
NOISY_BYTES = 1 << 30
"""More than this to hash is worth a progress bar."""


class Digest(NamedTuple):
    """What is known of a file's bytes."""

    digest: str
    """sha256; or why there is none, where the file cannot be read."""
    size: int = 0
    stamp: tuple[int, ...] = ()
    """What changes when the file does, if it proves that these are the file's bytes."""


class Memory:
    """Digests of files by absolute path, size, mtime, inode and ctime. Losing it, or a part, costs time only."""

    def __init__(self, store_root: Path) -> None:
        self.path = store_root / MEMORY
        self.known: dict[str, list[int | str]] = {}
        with suppress(OSError, ValueError):
            known = json_of(self.path.read_bytes())
            self.known = known if isinstance(known, dict) else {}
        self.changed = False

    def digests(self, paths: Sequence[Path]) -> list[Digest]:
        """The digest of each file; those that are not remembered are hashed."""
        found: list[Digest | None] = [self._remembered(path) for path in paths]
        unknown = [number for number, digest in enumerate(found) if digest is None]
        for number, digest in self._hash(paths, unknown):
            found[number] = digest
        return [one for one in found if one is not None]

    def save(self) -> None:
        if self.changed and self.path.parent.is_dir():
            with suppress(OSError):
                write_atomic(self.path, json.dumps(self.known, indent=0).encode())

    def _remembered(self, path: Path) -> Digest | None:
        try:
            state = path.stat()
        except OSError:
            return Digest("unreadable")
        if not stat.S_ISREG(state.st_mode):  # a pipe or a device would block or never end
            return Digest("not a regular file")
        entry = self.known.get(name := str(path.absolute()))
        digest = entry[4] if isinstance(entry, list) and len(entry) == 6 else None
        if isinstance(digest, str) and entry == _entry(name, *_stamp(state), digest):
            return Digest(digest, state.st_size, _stamp(state))
        return None

    def _hash(self, paths: Sequence[Path], unknown: Sequence[int]) -> Iterator[tuple[int, Digest]]:
        sizes = [_size(paths[number]) for number in unknown]
        shown = progress("digests", sum(sizes) / 1e6, "MB") if sum(sizes) > NOISY_BYTES else nullcontext()
        with shown as bar, ThreadPoolExecutor(thread_count()) as pool:  # hashing lets other threads work
            hashed = pool.map(self._hashed, [paths[number] for number in unknown])
            for number, size, digest in zip(unknown, sizes, hashed):
                yield number, digest
                if bar is not None:
                    bar.advance(size / 1e6)

    def _hashed(self, path: Path) -> Digest:
        try:
            before = _stamp(path.stat())
            digest = file_digest(path)
            after = _stamp(path.stat())
        except OSError:
            return Digest("unreadable", _size(path))
        if before != after or time.time() - after[1] / 1e9 < SETTLED:
            return Digest(digest, after[0])
        name = str(path.absolute())
        self.known[name] = _entry(name, *after, digest)
        self.changed = True
        return Digest(digest, after[0], after)


def _entry(name: str, *what: int | str) -> list[int | str]:
    """What is remembered of a file, and what says that it is what was remembered: a bit of a digest that is another
    would make all that follows from it again, under other keys."""
    return [*what, digest_of([name, *what])[:16]]


def _stamp(state: os.stat_result) -> tuple[int, ...]:
    """The modification time alone can be set back; the change time cannot."""
    return state.st_size, state.st_mtime_ns, state.st_ino, state.st_ctime_ns


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
