"""Manifests: what a complete artifact says of itself, byte for byte.

A manifest's digest is the sha256 of its canonical JSON without clock, host, path, run id or library versions. The seal
covers the rest too, so that no bit of the file can change unseen. Most single bit flips in safetensors, Arrow and
Parquet files load without an error and with other data: so every file's bytes are digested when they are written.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .errors import DataError, UsageError

MANIFEST = "manifest.json"
MEASURED = "measured"
SCRATCH = ".scratch"
DAMAGED = ".damaged"
"""What is left in the folder of an artifact whose bytes were found damaged, since looking it up checks sizes only."""


def canonical(value: Any) -> bytes:
    """Canonical JSON: sorted keys, no spaces, ASCII, no NaN (ValueError)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def page(value: Any) -> bytes:
    """The same JSON for people: one key a line. Also unique, so that `verify` can compare every byte."""
    return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False).encode() + b"\n"


def digest_of(value: Any) -> str:
    """sha256 (64 hex characters) of the canonical JSON of a value."""
    return hashlib.sha256(canonical(value)).hexdigest()


def json_of(data: bytes | str) -> Any:
    """The value of some JSON. ValueError where it is none, also for nesting without end."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def file_digest(path: Path) -> str:
    """sha256 (64 hex characters) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync(path: Path) -> None:
    """Forces a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(descriptor)


def save_array(path: Path, array: Any) -> None:
    """np.save, but so that a full disk is an OSError with its number: numpy's own way to a file hides that."""
    import numpy as np

    with open(path, "wb") as file:
        np.save(SimpleNamespace(write=file.write), array, allow_pickle=False)


def write_atomic(path: Path, data: bytes) -> None:
    """Puts data at path so that a reader sees the old file or the new one, whole, also after a power cut."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:  # of a write, the system does not say to which file
        error.filename = error.filename or str(path)
        temporary.unlink(missing_ok=True)
        raise
    fsync(path.parent)


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    return value | {"seal": digest_of(value)}


def read_sealed(path: Path) -> dict[str, Any]:
    """A JSON object whose `seal` is the digest of the rest, byte for byte as it was written.

    Raises DataError naming the file.
    """
    return unsealed(path.read_bytes(), path)


def unsealed(data: bytes, where: Path | str) -> dict[str, Any]:
    """The same of bytes that lay there. Raises DataError naming the place."""
    try:
        value = json.loads(data)
        seal = value.pop("seal")
        honest = digest_of(value) == seal and page(value | {"seal": seal}) == data  # ValueError: a NaN
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(f"{where} is damaged: not a sealed JSON object; run again to make it anew.") from None
    if not honest:
        raise DataError(f"{where} is damaged: its bytes are not those that were sealed; run again to make it anew.")
    return value


@dataclass(frozen=True)
class Identity:
    """What an artifact is a pure function of. Equal identities, equal bytes."""

    stage: str
    version: int
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    """Name of each input -> digest."""

    @cached_property
    def key(self) -> str:
        """Name of the artifact's folder: 32 hex characters (128 bits)."""
        return digest_of([self.stage, self.version, dict(self.config), dict(self.inputs)])[:32]


@dataclass(frozen=True)
class FileEntry:
    """One file of an artifact."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A complete artifact."""

    identity: Identity
    files: Mapping[str, FileEntry]
    """Path relative to the folder, with slashes -> size and digest."""
    counts: Mapping[str, int]
    """The books: what came in, what was kept, what was rejected and why."""
    facts: Mapping[str, Any]
    """What the next stages need to know (sizes, special ids, layout)."""
    libraries: Mapping[str, str]
    """Versions of the libraries that made it; outside the digest."""
    digest: str
    folder: Path

    @property
    def stage(self) -> str:
        return self.identity.stage

    @property
    def key(self) -> str:
        return self.identity.key

    @property
    def config(self) -> Mapping[str, Any]:
        return self.identity.config

    @property
    def bytes(self) -> int:
        """Size of all files together."""
        return sum(entry.bytes for entry in self.files.values())

    def path(self, name: str) -> Path:
        """Where a file of the manifest lies. Raises DataError when the manifest has no such file."""
        if name not in self.files:
            raise DataError(f"{self.folder / MANIFEST} names no file {name!r}; run `maskmill verify {self.stage}`.")
        return self.folder / name

    def whole(self, name: str) -> Path:
        """`path`, after its bytes were hashed: what is computed from a damaged file would be sealed as good.

        Raises DataError naming the file.
        """
        path = self.path(name)
        if size_of(path) != self.files[name].bytes or file_digest(path) != self.files[name].sha256:
            finding = f"{path} is damaged: its bytes are not those of the manifest"
            with suppress(OSError):  # remembered, so that the next run makes it again
                mark(self.folder, [finding])
            raise DataError(f"{finding}; run again to make it anew.")
        return path

    def whole_folder(self, name: str) -> Path:
        """`whole` of every file below a folder of the artifact. Raises DataError naming the file, or where none is."""
        for file in [one for one in self.files if one.startswith(f"{name}/")] or [f"{name}/"]:
            self.whole(file)
        return self.folder / name

    def measured(self) -> dict[str, Any]:
        """What depended on the clock and the machine: seconds, tokens per second, memory."""
        path = self.folder / f"{MEASURED}.json"
        return read_sealed(path) if path.exists() else {}


def body_of(identity: Identity, files: Mapping[str, FileEntry], counts: Any, facts: Any) -> dict[str, Any]:
    """What a manifest's digest covers: no clock, host, path, run id or library version."""
    return {
        "stage": identity.stage,
        "version": identity.version,
        "config": dict(identity.config),
        "inputs": dict(identity.inputs),
        "files": {name: {"bytes": entry.bytes, "sha256": entry.sha256} for name, entry in files.items()},
        "counts": dict(counts),
        "facts": dict(facts),
    }


def load(folder: Path) -> Manifest:
    """Reads a manifest; derives its key and digest again; checks that every file is there with its size.

    Raises DataError naming the file that is missing or damaged.
    """
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; run the flow to make it.") from None
    manifest = parsed(data, path, folder)
    for name, entry in manifest.files.items():
        size = size_of(folder / name)
        if size != entry.bytes:
            state = "missing" if size is None else f"{size} bytes instead of {entry.bytes}"
            raise DataError(f"{folder / name} is damaged: {state}; run again to make it anew.")
    return manifest


def parsed(data: bytes, where: Path | str, folder: Path) -> Manifest:
    """The manifest that these bytes are; its key and digest are derived again, its files are not looked at.

    where       where the bytes lay, for messages
    folder      where the files are, or will be
    Raises DataError.
    """
    value = unsealed(data, where)
    try:
        identity = Identity(value["stage"], value["version"], value["config"], value["inputs"])
        files = {name: FileEntry(**entry) for name, entry in value["files"].items()}
        manifest = Manifest(
            identity, files, value["counts"], value["facts"], value["libraries"], value["digest"], folder
        )
        honest = value["key"] == identity.key and value["digest"] == digest_of(
            body_of(identity, files, manifest.counts, manifest.facts)
        )
        _check_types(manifest)
    except (KeyError, TypeError, AttributeError, ValueError):
        raise DataError(f"{where} is damaged: it lacks a field of a manifest; run again to make it anew.") from None
    if not honest:
        raise DataError(f"{where} is damaged: its key or digest does not follow from its contents; run again.")
    for name in files:
        _check_inside(where, name)
    return manifest


def _check_types(manifest: Manifest) -> None:
    """Raises TypeError: a seal says that somebody sealed it, not that it was maskmill."""
    identity = manifest.identity
    mappings = (identity.config, identity.inputs, manifest.counts, manifest.facts, manifest.libraries)
    whole = [entry.bytes for entry in manifest.files.values()] + [identity.version]
    words = [entry.sha256 for entry in manifest.files.values()] + [identity.stage, *identity.inputs.values()]
    for kind, some in ((dict, mappings), (int, whole), (str, words)):
        if not all(isinstance(one, kind) for one in some):
            raise TypeError(f"a {kind.__name__} is expected")
    if not all(0 <= size < 1 << 63 for size in whole):
        raise ValueError("a size that no file has")


def check_parent(stage: str, made: Manifest, parent: Manifest) -> None:
    """Raises UsageError where `stage` is given an artifact that was made from another parent than the one beside it:
    token ids of another vocabulary train and score without an error, to nonsense. One made by hand may not say."""
    made_with = made.identity.inputs.get(parent.stage, parent.digest)
    second = made.identity.inputs.get(f"beside_{parent.stage}")  # of a model of two modalities
    if parent.digest not in (made_with, second):
        raise UsageError(
            f"{stage}: the {made.stage} artifact {made.digest[:12]} was made with the {parent.stage} {made_with[:12]}, "
            f"and this is {parent.digest[:12]}; give that {parent.stage}, or make the {made.stage} artifact again."
        )


def _check_inside(where: Path | str, name: str) -> None:
    parts = Path(name).parts
    try:
        fits = b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:  # half of a surrogate pair
        fits = False
    if Path(name).is_absolute() or ".." in parts or not parts or not fits:
        raise DataError(f"{where} names {name!r}, a file outside its folder; delete the folder.")


def size_of(path: Path) -> int | None:
    try:
        return path.stat(follow_symlinks=False).st_size
    except OSError:
        return None


def verify(manifest: Manifest) -> list[str]:
    """Hashes every byte of an artifact again. Returns a line for each finding; an empty list is a clean bill."""
    findings = []
    for name, entry in manifest.files.items():
        path = manifest.folder / name
        if size_of(path) != entry.bytes or file_digest(path) != entry.sha256:
            findings.append(f"{path}: its bytes are not those of the manifest")
    try:
        manifest.measured()
    except DataError as error:
        findings.append(str(error))
    strangers = sorted(names_in(manifest.folder) - set(manifest.files))
    return findings + [f"{manifest.folder / name}: not named by the manifest" for name in strangers]


def mark(folder: Path, findings: list[str]) -> None:
    """Remembers what was found, or that nothing was, so that the next run makes a damaged artifact again."""
    if findings:
        write_atomic(folder / DAMAGED, "\n".join(findings).encode())
    else:
        (folder / DAMAGED).unlink(missing_ok=True)


def names_in(folder: Path) -> set[str]:
    """The files that belong into a manifest: all but the manifest itself, the measurements and the scratch."""
    names = set()
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if (
            path.is_file()
            and name.parts[0] not in (MANIFEST, SCRATCH, DAMAGED)
            and not name.parts[0].startswith(MEASURED)
        ):
            names.add(name.as_posix())
    return names


def versions_of(libraries: Sequence[str]) -> dict[str, str]:
    """The versions of maskmill and of those libraries that are installed."""
    versions = {}
    for name in ("maskmill", *libraries):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions
