"""What MODEL means in `maskmill compare`: a folder in transformers' format, a registered model, a name on the hub.

Each becomes a folder on this machine, and a digest of what is in it: finished work is known by that.
"""

import os
import re
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tasks import versions
from tasks.artifacts import Store, digest_of, load
from tasks.digests import Memory
from tasks.errors import DataError, UsageError
from tasks.folders import expanded
from tasks.results import BASELINE, CHAMPION, MODEL

PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model")
"""Files that a model and its tokenizer are made of. No pickle is read."""
_REGISTERED = re.compile(r"[^/@]+@[^/@]+|[^/@]+/\d+")
"""NAME@ALIAS or NAME/VERSION; NAME alone may also be on the hub."""


@dataclass(frozen=True)
class Contender:
    """A model that is compared."""

    label: str
    """How the report calls it."""
    origin: str
    """Where it comes from, for people."""
    folder: Path
    """config.json, model.safetensors, tokenizer.json."""
    digest: str
    """Of its files."""


def find(specs: Sequence[str], home: Path, store: Store) -> list[Contender]:
    """The models that the words of a command line stand for, in their order.

    Raises UsageError for one that is nowhere or stands twice, DataError for one whose files are gone.
    """
    memory = Memory(store.root)
    found = [_find(spec, home, store) for spec in specs]
    labels = _apart([label for label, _, _ in found])
    contenders = [
        Contender(label, origin, folder, _digest(folder, memory))
        for label, (_, origin, folder) in zip(labels, found, strict=True)
    ]
    memory.save()
    by_digest: dict[str, str] = {}
    for spec, one in zip(specs, contenders, strict=True):
        if one.digest in by_digest:
            raise UsageError(f"{by_digest[one.digest]} and {spec} are the same model; name another one.")
        by_digest[one.digest] = spec
    return contenders


def _find(spec: str, home: Path, store: Store) -> tuple[str, str, Path]:
    """(label, origin, folder)"""
    path = Path(expanded(spec))
    if path.is_dir():
        folder = path if (path / "config.json").is_file() else path / "model"
        if not (folder / "config.json").is_file():
            raise UsageError(f"{spec} holds no config.json; give a folder that transformers can load.")
        return os.path.relpath(path) if path.is_absolute() else os.path.normpath(path), f"folder {spec}", folder
    if spec.startswith((".", "/", "~")):
        raise UsageError(f"There is no folder {spec}.")
    known = versions.names(home)
    if _REGISTERED.fullmatch(spec) or spec in known:
        version = versions.find(spec, home)
        return f"{version.name}/{version.version}", "the registry", _registered(version, home, store)
    return spec, *_of_hub(spec, known)


def _registered(version: versions.Version, home: Path, store: Store) -> Path:
    """The folder of a registered version: in the store, else brought here from where the registry keeps it."""
    for folder in store.folders("register"):
        with suppress(DataError):
            manifest = load(folder)
            if manifest.digest == version.tags.get("register"):
                return manifest.whole("model/config.json").parent
    kept = home / "compare" / "models" / version.tags.get("weights", f"{version.name}-{version.version}")[:16]
    if not (kept / "config.json").is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as target:
            folder = versions.fetch(version, home, Path(target))
            if not (folder / "config.json").is_file():
                raise DataError(f"{version.name} version {version.version} holds no model; register it again.")
            with suppress(OSError):  # somebody else brought it in the meantime
                os.rename(folder, kept)
    return kept


def _of_hub(spec: str, known: Sequence[str]) -> tuple[str, Path]:
    """(origin, folder) of the files that the hub has now; of the cache where it does not answer."""
    from huggingface_hub import snapshot_download

    said = ""
    for offline in (False, True):
        try:
            folder = Path(snapshot_download(spec, allow_patterns=list(PATTERNS), local_files_only=offline))
        except Exception as error:  # the hub's client raises its own, httpx's and urllib's errors
            said = said or (str(error).strip() or type(error).__name__).split("\n", 1)[0][:160]
        else:
            return f"the hub, revision {folder.name[:12]}", folder
    there = f" (it has {', '.join(known)})" if known else ""
    raise UsageError(
        f"{spec} is no folder here, no model of the registry{there}, and the hub does not give it: {said.rstrip('.')}."
    )


def _digest(folder: Path, memory: Memory) -> str:
    paths = sorted(path for pattern in PATTERNS for path in folder.glob(pattern) if path.is_file())
    digests = memory.digests(paths)
    return digest_of({path.name: one.digest for path, one in zip(paths, digests, strict=True)})


def _apart(names: Sequence[str]) -> list[str]:
    """Short labels: of a path its last part, where that is enough to tell it from the others and from our own words."""
    short = [name if os.sep not in name.strip(".") or name.count("/") == 1 else Path(name).name for name in names]
    labels = [one if short.count(one) == 1 else name for one, name in zip(short, names, strict=True)]
    return [f"./{one}" if one in (MODEL, CHAMPION) or one.startswith(BASELINE) else one for one in labels]
