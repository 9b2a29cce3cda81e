"""Where text comes from: enumerating sources and digesting them. Nothing is parsed here, so `plan` is fast.

PATH                   file, folder or glob of .txt .md .rst .jsonl .parquet, each of the first four also as .gz
hf:NAME_OR_FOLDER      a `save_to_disk` folder of datasets, or a dataset of the hub: NAME[:CONFIG][@REVISION]
installed-docs         documentation of the installed Python packages (installed-docs:NAME,NAME to choose them)
"""

import glob
import json
import os
import stat
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from . import installed_docs
from .artifacts import digest_of, file_digest, write_atomic
from .errors import UsageError
from .progress import progress
from .streams import Item

KINDS = {".txt": "text", ".md": "text", ".rst": "text", ".jsonl": "records", ".parquet": "parquet"}
MEMORY = "digests.json"
SETTLED = 2.0
"""Digests of files that changed less than these seconds ago are not remembered: mtime is too coarse for that."""
NOISY_BYTES = 1 << 30
"""More than this to hash is worth a progress bar."""


@dataclass(frozen=True)
class Source:
    """One place that text comes from."""

    uri: str
    """A path, `hf:…` or `installed-docs`; see the module."""
    name: str = ""
    """What documents of this source are called; "" for the last part of the uri."""
    text_key: str = "text"
    """Key or column that holds the text, where there are keys."""
    budget_bytes: int = 0
    """Stop when this many bytes of text have been kept; 0 takes all."""


@dataclass(frozen=True)
class Surveyed:
    """A source with its files, in the order in which they are read."""

    source: Source
    kind: str
    items: tuple[Item, ...]
    skipped: dict[str, int]
    """Suffix -> number of files that maskmill does not read."""
    digest: str


def survey(sources: Sequence[Source], store_root: Path) -> list[Surveyed]:
    """Enumerates and digests all sources. Digests of files are remembered in <store_root>/digests.json.

    Raises UsageError for a source that does not exist or holds nothing readable.
    """
    if not sources:
        raise UsageError("corpus.sources is empty; name at least one file, folder or glob.")
    memory = _Memory(store_root)
    surveyed: list[Surveyed] = []
    names: set[str] = set()
    for source in sources:
        name = source.name or _default_name(source.uri)
        unique, number = name, 1
        while unique in names:
            number += 1
            unique = f"{name}-{number}"
        names.add(unique)
        source = replace(source, name=unique)
        surveyed.append(_survey_one(source, memory))
    memory.save()
    return surveyed


def _survey_one(source: Source, memory: "_Memory") -> Surveyed:
    if source.uri.partition(":")[0] == "installed-docs":
        files, identities = installed_docs.survey(source.uri.partition(":")[2])
        items = [Item(one.kind, one.path, f"{source.name}/{one.label}", one.digest, one.size) for one in files]
        return Surveyed(source, "installed-docs", tuple(items), {}, digest_of(identities))
    if source.uri.startswith("hf:") and not Path(source.uri[3:]).exists():
        item = _hub_item(source)
        return Surveyed(source, "hub", (item,), {}, digest_of([item.path, item.digest]))
    if source.uri.startswith("hf:"):
        kind, root = "save_to_disk", Path(source.uri[3:])
        found = _saved_dataset(source, root)
        skipped: dict[str, int] = {}
    else:
        kind = "files"
        root, found, skipped = _local_files(source)
    digests = memory.digests([path for path, _ in found])
    items = []
    for (path, file_kind), (digest, size) in zip(found, digests):
        relative = path.relative_to(root).as_posix() if path != root else ""
        label = _printable(f"{source.name}/{relative}" if relative else source.name)
        items.append(Item(file_kind, str(path), label, digest, size, source.text_key))
    # How a file is read follows from its suffix, and a source that is one file with a name of its own hides that.
    what = [[one.kind, one.path.endswith(".gz"), one.label, one.digest] for one in items]
    return Surveyed(source, kind, tuple(items), skipped, digest_of(what))


def _printable(name: str) -> str:
    """File names are bytes; those that are not UTF-8 are written with backslashes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _default_name(uri: str) -> str:
    if uri.partition(":")[0] in ("installed-docs", "hf"):
        scheme, _, rest = uri.partition(":")
        return scheme if scheme == "installed-docs" else Path(rest.partition("@")[0]).name.partition(":")[0]
    path = Path(uri).expanduser()
    return (path if path.exists() else _static_part(path)).resolve().name or "root"


# Local files


def _local_files(source: Source) -> tuple[Path, list[tuple[Path, str]], dict[str, int]]:
    """(root, [(file, kind)] in order, what was skipped)."""
    path = Path(source.uri).expanduser()
    if path.is_file():
        return path, [(path, _kind(path) or "text")], {}
    if path.is_dir():
        root, candidates = path, list(_walk(path))
    elif glob.has_magic(source.uri):
        root = _static_part(path)
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        inside = [one for match in matches for one in (_walk(match) if match.is_dir() else [match])]
        candidates = list(dict.fromkeys(inside))
    else:
        raise UsageError(f"The source {source.uri} does not exist; give a file, a folder or a quoted glob.")
    kinds = [(one, _kind(one)) for one in candidates]
    found = [(one, kind) for one, kind in kinds if kind]
    skipped = Counter(one.suffix or "(no suffix)" for one, kind in kinds if not kind)
    if not found:
        there = ", ".join(f"{number} × {suffix}" for suffix, number in skipped.most_common(5)) or "no file at all"
        raise UsageError(f"The source {source.uri} holds no {' '.join(KINDS)} file (there: {there}).")
    return root, found, dict(sorted(skipped.items()))


def _kind(path: Path) -> str | None:
    suffix = Path(path.stem).suffix if path.suffix.lower() == ".gz" else path.suffix
    kind = KINDS.get(suffix.lower())
    return None if kind == "parquet" and path.suffix.lower() == ".gz" else kind


def _walk(root: Path) -> Iterator[Path]:
    """Files below a folder, in the order of their names. Hidden ones are passed over; folder links are not followed."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(files) if not name.startswith("."))


def _static_part(pattern: Path) -> Path:
    """The folder before the first part with a wildcard."""
    parts = pattern.parts
    first = next((number for number, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    return Path(*parts[:first])


# Hugging Face


def _saved_dataset(source: Source, root: Path) -> list[tuple[Path, str]]:
    """The Arrow files of a `save_to_disk` folder, split after split, in the order of its state.json."""
    states = sorted(root.glob("state.json")) or sorted(root.glob("*/state.json"))
    try:
        listed = [(path.parent, json.loads(path.read_bytes())["_data_files"]) for path in states]
        files = [folder / one["filename"] for folder, entries in listed for one in entries]
    except (ValueError, KeyError, TypeError):
        files = []
    if not files:
        raise UsageError(f"The source {source.uri} is no save_to_disk folder of datasets; give the path without hf:.")
    return [(path, "arrow") for path in files]


def _hub_item(source: Source) -> Item:
    from huggingface_hub import HfApi

    address, _, revision = source.uri[3:].partition("@")
    name = address.partition(":")[0]
    try:
        resolved = HfApi().dataset_info(name, revision=revision or None, timeout=30).sha
    except Exception as error:  # the hub's client raises its own, httpx's and urllib's errors
        said = (str(error).strip() or type(error).__name__).split("\n", 1)[0][:160]
        raise UsageError(f"The source {source.uri} is neither a folder nor found on the hub ({said}).") from None
    return Item("hub", address, f"{source.name}", str(resolved), 0, source.text_key)


# Digests


class _Memory:
    """Digests of files by absolute path, size, mtime and inode. Losing it costs time only."""

    def __init__(self, store_root: Path) -> None:
        self.path = store_root / MEMORY
        self.known: dict[str, list[int | str]] = {}
        with suppress(OSError, ValueError):
            known = json.loads(self.path.read_bytes())
            self.known = known if isinstance(known, dict) else {}
        self.changed = False

    def digests(self, paths: Sequence[Path]) -> list[tuple[str, int]]:
        """(sha256, size) of each file; the reason in place of the digest where a file cannot be read."""
        found: list[tuple[str, int] | None] = [None] * len(paths)
        unknown: list[tuple[int, os.stat_result]] = []
        for number, path in enumerate(paths):
            try:
                state = path.stat()
            except OSError:
                found[number] = ("unreadable", 0)
                continue
            entry = self.known.get(str(path.absolute()))
            if not stat.S_ISREG(state.st_mode):  # a pipe or a device would block or never end
                found[number] = ("not a regular file", 0)
            elif entry and entry[:-1] == _stamp(state):
                found[number] = (str(entry[-1]), state.st_size)
            else:
                unknown.append((number, state))
        for number, state, digest in self._hash(paths, unknown):
            found[number] = (digest, state.st_size)
        return [one for one in found if one is not None]

    def _hash(
        self, paths: Sequence[Path], unknown: list[tuple[int, os.stat_result]]
    ) -> Iterator[tuple[int, os.stat_result, str]]:
        total = sum(state.st_size for _, state in unknown)
        with progress("digests", total / 1e6, "MB") if total > NOISY_BYTES else nullcontext() as bar:
            for number, state in unknown:
                try:
                    digest = file_digest(paths[number])
                except OSError:
                    digest = "unreadable"
                else:
                    self._remember(paths[number], state, digest)
                yield number, state, digest
                if bar is not None:
                    bar.advance(state.st_size / 1e6)

    def _remember(self, path: Path, state: os.stat_result, digest: str) -> None:
        if time.time() - state.st_mtime > SETTLED:
            self.known[str(path.absolute())] = [*_stamp(state), digest]
            self.changed = True

    def save(self) -> None:
        if self.changed and self.path.parent.is_dir():
            with suppress(OSError):
                write_atomic(self.path, json.dumps(self.known, indent=0).encode())


def _stamp(state: os.stat_result) -> list[int | str]:
    """What changes when a file does. The modification time alone can be set back; the change time cannot."""
    return [state.st_size, state.st_mtime_ns, state.st_ino, state.st_ctime_ns]
