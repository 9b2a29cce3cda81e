"""What of a store nobody needs any more, and how it goes. Asks no registry: the caller says what is needed and why.

    needed     digests of registered versions and of running and recent runs, and all that these were made from
    young      whatever was made in the last days, whoever made it
    held       what a living process has locked

All other artifacts are spare, and so are unfinished ones and packs that nobody has touched for as long. An artifact is
renamed to a hidden name before it is deleted: a kill in between leaves one that is not there, never half of one, and
what is left of it goes with the next time, or when the artifact is made again.
"""

import fcntl
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from . import packs
from .artifacts import MANIFEST, Store
from .errors import DataError
from .manifests import json_of

DAY = 86400.0
GONE = "old-removed"
"""Suffix of an artifact that is being removed; Store sweeps what begins with `.<key>.old`, too."""


@dataclass(frozen=True)
class Node:
    """An artifact, as far as retention reads it: its manifest's own words, no file of it."""

    stage: str
    key: str
    digest: str
    inputs: tuple[str, ...]
    """Digests of what it was made from."""
    folder: Path
    made: float
    """Seconds since 1970."""


@dataclass(frozen=True)
class Spare:
    """Something that can go."""

    stage: str
    """That of an artifact; "packs" or "compare" otherwise."""
    what: str
    """artifact, unfinished, litter, pack, unit."""
    path: Path
    bytes: int
    why: str
    key: str = ""
    """Of the artifact whose lock has to be free."""
    digest: str = ""


@dataclass
class Plan:
    """What can go and what stays."""

    spare: list[Spare] = field(default_factory=list)
    kept: dict[str, list[int]] = field(default_factory=dict)
    """Stage -> number and bytes of the artifacts that stay."""
    skipped: list[str] = field(default_factory=list)
    """What might go but is held by a living process, or cannot be judged: a line each."""


def nodes(store: Store, stages: Iterable[str]) -> list[Node]:
    """Every artifact of a store. Raises DataError for a manifest that cannot be read: what it was made from, and so
    what is still needed, would not be known."""
    found = []
    for stage in stages:
        for folder in store.folders(stage):
            path = folder / MANIFEST
            try:
                value, made = json_of(path.read_bytes()), path.stat().st_mtime
                digest, inputs = value["digest"], tuple(value["inputs"].values())
                if not all(isinstance(one, str) for one in (digest, *inputs)):
                    raise TypeError("a digest is no string")
                found.append(Node(stage, folder.name, digest, inputs, folder, made))
            except FileNotFoundError:
                continue  # somebody's folder, or one that went this moment: not ours to judge
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                raise DataError(
                    f"{path} is damaged: what that artifact was made from is not known, so nothing can be removed; "
                    "run its recipe again, which makes it anew, or delete its folder."
                ) from None
    return found


def needed(everything: Iterable[Node], roots: Iterable[str]) -> set[str]:
    """Digests of the roots and of all that they were made from, over any number of steps."""
    inputs: dict[str, set[str]] = {}
    for node in everything:
        inputs.setdefault(node.digest, set()).update(node.inputs)
    found, waiting = set[str](), list(roots)
    while waiting:
        digest = waiting.pop()
        if digest not in found:
            found.add(digest)
            waiting += inputs.get(digest, ())
    return found


def plan(
    store: Store, stages: Iterable[str], roots: Mapping[str, str], keys: Iterable[str], days: float, units: Path
) -> Plan:
    """What can go now.

    Args:
        roots: digests that are needed -> by whom.
        keys: folder names that are needed, beside them.
        days: what is younger stays.
        units: folder of the finished units of `maskmill compare`.
    Raises:
        DataError: a manifest cannot be read.
    """
    stages, keys, since = tuple(stages), set(keys), time.time() - days * DAY
    everything = nodes(store, stages)
    young = [node.digest for node in everything if node.made >= since]
    named = [node.digest for node in everything if node.key in keys]
    stay = needed(everything, [*roots, *young, *named])
    found = Plan()
    for node in everything:
        size = size_of(node.folder)
        if node.digest in stay:
            kept = found.kept.setdefault(node.stage, [0, 0])
            kept[:] = kept[0] + 1, kept[1] + size
        else:
            found.spare.append(
                Spare(node.stage, "artifact", node.folder, size, "nothing needs it", node.key, node.digest)
            )
    for stage in stages:
        found.spare += _leftovers(store, stage, keys, since)
    found.spare += _packs(store, days) + _units(units, since)
    held = [spare for spare in found.spare if spare.key and is_held(store, spare)]
    found.skipped += [f"{spare.path}: a running process is making it" for spare in held]
    found.spare = [spare for spare in found.spare if spare not in held]
    return found


def _leftovers(store: Store, stage: str, keys: set[str], since: float) -> Iterator[Spare]:
    """Unfinished artifacts that nobody has gone on with, and what a publication or a removal left that was killed."""
    for path in sorted((store.root / stage).glob(".*.*")):
        key, _, kind = path.name[1:].partition(".")
        if not path.is_dir():
            continue
        if kind.startswith("old"):
            yield Spare(stage, "litter", path, size_of(path), "left by a process that was killed", key)
        elif kind in ("partial", "fetch") and key not in keys and newest(path) < since:
            yield Spare(stage, "unfinished", path, size_of(path), "nobody has gone on with it", key)


def _packs(store: Store, days: float) -> list[Spare]:
    found = []
    for folder in sorted((store.root / "corpus" / ".packs").glob("*")):
        if folder.is_dir() and (unused := packs.unused(folder, days)):
            size = sum(size_of(path) for path in unused)
            found.append(Spare("packs", "pack", folder, size, f"{len(unused)} that no run has used for so long"))
    return found


def _units(folder: Path, since: float) -> list[Spare]:
    each = [path for path in sorted(folder.glob("*")) if path.is_dir() and newest(path) < since]
    return [Spare("compare", "unit", path, size_of(path), "no comparison has used it for so long") for path in each]


def remove(store: Store, spare: Spare, days: float, wanted: Callable[[], set[str]]) -> str:
    """Removes it; "" where that was done, else why it was not.

    wanted  keys and digests that runs need which began meanwhile; asked when the artifact is out of their sight. A run
            writes down what it needs before it looks for it: so either that is seen here, or it finds the artifact gone
            and makes it.
    """
    if spare.what == "pack":
        return "" if packs.sweep(spare.path, days) else "a running process uses it"
    if not spare.key:
        return _delete(spare.path)
    with _locked(store, spare) as free:
        if not free:
            return "a running process is making it"
        if spare.what == "litter":
            return _delete(spare.path)
        hidden = spare.path.with_name(f".{spare.key}.{GONE}-{spare.what}")
        if hidden.exists():  # a killed removal's
            _delete(hidden)
        try:
            os.rename(spare.path, hidden)
        except FileNotFoundError:
            return ""
        except OSError as error:
            return f"cannot be removed: {error.strerror}"
        if {spare.key, spare.digest} & wanted():
            os.rename(hidden, spare.path)
            return "a run needs it"
        return _delete(hidden)


def _delete(path: Path) -> str:
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"cannot be removed: {error.strerror}"
    return ""


def is_held(store: Store, spare: Spare) -> bool:
    """Does a living process have its lock?"""
    with _locked(store, spare) as free:
        return not free


@contextmanager
def _locked(store: Store, spare: Spare) -> Iterator[bool]:
    """The lock under which the artifact is made, if it is free. Its file stays: deleting it would let two in."""
    path = store.root / ".locks" / f"{spare.stage}-{spare.key}"
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)


def size_of(path: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(state.st_size for state in _states(path) if not stat.S_ISDIR(state.st_mode))


def newest(path: Path) -> float:
    """When something below a folder, or the folder itself, was last written to."""
    return max((state.st_mtime for state in _states(path)), default=0.0)


def _states(path: Path) -> Iterator[os.stat_result]:
    for one in (path, *path.rglob("*")):
        with suppress(OSError):  # it went meanwhile
            yield one.lstat()
