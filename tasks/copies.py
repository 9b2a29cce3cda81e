"""The copy of a registered model that MLflow keeps on this machine: forced to the disk, compared, and mended.

MLflow copies a model's files without an fsync and never looks at them again: after a power cut an alias may stand for
empty files. So they are forced to the disk before a version is made of them, and what they are is written down in the
store, beside the register artifacts: `.copies/<key>.json`. A run compares sizes, `maskmill verify` bytes; what is
damaged is written again, from the store where it has the same bytes.
"""

import base64
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from .artifacts import Manifest, file_digest, fsync, write_atomic
from .errors import DataError
from .manifests import page, read_sealed, sealed, size_of
from .progress import say

FOLDER = ".copies"
MODEL = "model/"
LARGEST = 64 << 10
"""Bytes of a file of MLflow's own (MLmodel, requirements, an example) that is kept to be written again."""


def folder_of(address: str) -> Path | None:
    """The folder on this machine that an artifact location means; None where it is somewhere else."""
    parts = urlsplit(address)
    if parts.scheme not in ("", "file"):
        return None
    folder = Path(unquote(parts.path) if parts.scheme else address)
    return folder if folder.is_dir() else None


def force(folder: Path) -> None:
    """Forces the files of a folder, their names, and the names of the folders above it, to the disk."""
    for path in (*folder.rglob("*"), folder, *list(folder.parents)[:4]):
        fsync(path)


def record(manifest: Manifest) -> Path:
    """Where it is written down what the copy of a register artifact is."""
    return manifest.folder.parent / FOLDER / f"{manifest.key}.json"


def remember(manifest: Manifest, report: Manifest, folder: Path) -> None:
    """Writes down what each file of the copy is, once all are as in the artifact, and on the disk.

    report      evaluate's, which lays its evidence and pictures beside the model
    """
    ours = {(f"artifacts/{name}" if name.startswith(MODEL) else name): name for name in manifest.files}
    for there, name in ours.items():
        if not _is(folder / there, manifest.files[name].sha256):
            _write(folder / there, manifest.whole(name).read_bytes())
    force(folder)
    reported = {entry.sha256: name for name, entry in report.files.items()}
    files: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name, size = path.relative_to(folder).as_posix(), path.stat().st_size
        digest = manifest.files[ours[name]].sha256 if name in ours else file_digest(path)  # hashed above
        files[name] = entry = {"bytes": size, "sha256": digest}
        if name in ours:
            entry["artifact"] = ours[name]
        elif digest in reported:
            entry["report"] = reported[digest]
        elif size <= LARGEST:
            entry["content"] = base64.b64encode(path.read_bytes()).decode()
    record(manifest).parent.mkdir(exist_ok=True)
    write_atomic(record(manifest), page(sealed({"folder": str(folder), "files": files})))


def _is(path: Path, digest: str) -> bool:
    return path.is_file() and file_digest(path) == digest


def damaged(manifest: Manifest, whole: bool) -> dict[Path, dict[str, Any]]:
    """Files of the copy that are not what they were, and what is known of them.

    whole       by their bytes, not only their sizes
    None where nothing was written down, or the copy is not here at all. Raises DataError where what was written down is
    damaged itself.
    """
    if not record(manifest).exists():
        return {}
    about = read_sealed(record(manifest))
    found, folder = {}, Path(about["folder"])
    for name, entry in about["files"].items() if folder.is_dir() else ():
        path = folder / name
        if size_of(path) != entry["bytes"] or (whole and file_digest(path) != entry["sha256"]):
            found[path] = entry
    return found


def mend(manifest: Manifest, report: Manifest, whole: bool) -> bool:
    """Writes again what is damaged. False where nothing is known of the copy.

    Raises DataError for what nobody has any more, and for a damaged source.
    """
    try:
        files = damaged(manifest, whole)
    except DataError as error:
        say(f"{error}")
        record(manifest).unlink()
    else:
        for path, entry in files.items():
            if "artifact" in entry:
                data = manifest.whole(entry["artifact"]).read_bytes()
            elif "report" in entry:
                data = report.whole(entry["report"]).read_bytes()
            elif "content" in entry:
                data = base64.b64decode(entry["content"])
            else:
                raise DataError(f"{path} is damaged, and nothing else holds its bytes; register under another name.")
            _write(path, data)
    return record(manifest).exists()


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, data)
    say(f"register: {path} was damaged; written again")
