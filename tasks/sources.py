"""Where text comes from: enumerating sources and digesting them. Nothing is parsed here, so `plan` is fast.

PATH                   file, folder or glob (folders.py)
PROTOCOL://…           the same behind any URL that fsspec knows: s3, gs, hf, http, … (remotes.py)
hf:NAME_OR_FOLDER      a `save_to_disk` folder of datasets, or a dataset of the hub: NAME[:CONFIG][@REVISION]
installed-docs         documentation of the installed Python packages (installed-docs:NAME,NAME to choose them)

What a file is read as follows from its suffix, unless the source has a `format`: .txt .md .rst as text, .html .htm,
.jsonl .ndjson, .csv .tsv, each also packed (.gz .zst .bz2 .xz), .parquet, .arrow. Others in a folder are passed over
and counted; a file that is a source by itself is read as text.
"""

import codecs
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from pathlib import Path

from . import folders, hub, installed_docs, remotes
from .archives import COLUMNS, SUFFIXES
from .artifacts import digest_of
from .digests import Memory
from .errors import UsageError
from .progress import say
from .streams import Item

FORMATS = {
    "text": "text",
    "html": "html",
    "jsonl": "records",
    "csv": "csv",
    "parquet": "parquet",
    "arrow": "arrow",
}
"""What a recipe calls a format -> the kind of its files."""
KINDS = {
    **dict.fromkeys((".txt", ".md", ".rst"), "text"),
    **dict.fromkeys((".html", ".htm"), "html"),
    **dict.fromkeys((".jsonl", ".ndjson"), "records"),
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    ".parquet": "parquet",
    ".arrow": "arrow",
}
HEAVIEST = 100
CUTS = ("pages", "file", "paragraph", "line")


@dataclass(frozen=True)
class Source:
    """One place that text comes from."""

    uri: str
    """A path, a URL, `hf:…` or `installed-docs`; see the module."""
    name: str = ""
    """What documents of this source are called; "" for the last part of the uri."""
    weight: str = "1"
    """How often its train documents are taken: "2" twice, "0.5" every other one; exact, so a string."""
    licence: str = ""
    """A note for the card, such as CC-BY-4.0."""
    format: str = ""
    """text, html, jsonl, csv, parquet or arrow, for all of its files; "" goes by each file's suffix."""
    cut: str = "pages"
    """What a document of a text file is: pages (cut at blank lines), the whole file, a paragraph or a line."""
    text_key: str = "text"
    """Key or column that holds the text, where there are keys; dotted where it lies deeper."""
    encoding: str = "utf-8"
    """Of text, html, jsonl and csv."""
    budget_bytes: int = 0
    """Stop when this many bytes of text have been kept; 0 takes all."""

    def __post_init__(self) -> None:
        self._check_weight()
        if self.name.startswith("evaluation/") or _printable(self.name + self.licence) != self.name + self.licence:
            raise UsageError(f"corpus.sources.name is {_printable(self.name)!r}; choose another one.")
        for key, value, known in (("format", self.format, ("", *FORMATS)), ("cut", self.cut, CUTS)):
            if value not in known:
                raise UsageError(f"corpus.sources.{key} is {value!r}; use {', '.join(filter(None, known))}.")
        try:
            codec = codecs.lookup(self.encoding)
        except (LookupError, ValueError):
            codec = None
        if codec is None or not codec._is_text_encoding or codec.incrementaldecoder is None:
            raise UsageError(
                f"corpus.sources.encoding is {self.encoding!r}, which Python does not know; try utf-16 or cp1252."
            )
        if "\0" in self.uri:
            raise UsageError(f"The source {self.uri!r} has a zero character in its name; correct it.")
        if not all(self.text_key.split(".")):
            raise UsageError(
                f"corpus.sources.text_key is {self.text_key!r}; name the key or column that holds the text, such as "
                "text or message.body."
            )
        if "@" in (authority := self.uri.partition("://")[2].partition("/")[0]) and ":" in authority.partition("@")[0]:
            raise UsageError(
                f"The source {remotes.without_secrets(self.uri)} has a password in its address, which would be written "
                "down with the recipe; give it by the environment instead."
            )
        if self.budget_bytes < 0:
            raise UsageError(f"corpus.sources.budget_bytes is {self.budget_bytes}; use 0 to take all.")

    def _check_weight(self) -> None:
        try:
            weight = Fraction(self.weight if len(self.weight) <= 32 and "e" not in self.weight.lower() else "")
        except (ValueError, ZeroDivisionError):
            raise UsageError(
                f"corpus.sources.weight is {self.weight!r}; write a number such as 2, 0.5 or 3/2."
            ) from None
        if weight > HEAVIEST:
            raise UsageError(f"corpus.sources.weight is {self.weight} for {self.uri}; use {HEAVIEST} at most.")
        if weight <= 0:
            raise UsageError(
                f"corpus.sources.weight is {self.weight} for {self.uri}; remove the source, or give more than 0."
            )


@dataclass(frozen=True)
class Surveyed:
    """A source with its files, in the order in which they are read."""

    source: Source
    kind: str
    """files, remote, save_to_disk, hub, installed-docs."""
    items: tuple[Item, ...]
    skipped: dict[str, int]
    """Suffix, or the reason in brackets -> number of files that maskmill does not read."""
    digest: str


def survey(sources: Sequence[Source], store_root: Path) -> list[Surveyed]:
    """Enumerates and digests all sources. Digests of files are remembered in <store_root>/digests.json.

    Raises UsageError for a source that does not exist or holds nothing readable.
    """
    if not sources:
        raise UsageError("corpus.sources is empty; name at least one file, folder or glob.")
    memory = Memory(store_root)
    surveyed: list[Surveyed] = []
    names: set[str] = set()
    for source in sources:
        name = source.name or _printable(_default_name(source.uri))
        unique, number = name, 1
        while unique in names:
            number += 1
            unique = f"{name}-{number}"
        if unique != source.name and source.name:
            _say_once(f"corpus: two sources are called {source.name}; the second one is called {unique} here")
        names.add(unique)
        surveyed.append(_survey_one(replace(source, name=unique), memory))
    memory.save()
    return surveyed


def _survey_one(source: Source, memory: Memory) -> Surveyed:
    scheme, _, rest = source.uri.partition(":")
    if scheme == "installed-docs":
        files, identities = installed_docs.survey(rest)
        items = [Item(one.kind, one.path, f"{source.name}/{one.label}", one.digest, one.size) for one in files]
        return Surveyed(source, "installed-docs", tuple(items), {}, digest_of(identities))
    if remotes.is_remote(source.uri):
        return _remote_files(source)
    if scheme == "hf" and not Path(rest).exists():
        address, revision = hub.resolved(source.uri)
        item = Item("hub", address, source.name, revision, 0, source.text_key)
        return Surveyed(source, "hub", (item,), {}, digest_of([item.path, item.digest]))
    if scheme == "hf":
        root, files_ = hub.saved(source.uri)
        return _local_items(source, "save_to_disk", root, [(path, "arrow") for path in files_], Counter(), memory)
    return _local_files(source, memory)


def _surveyed(source: Source, kind: str, items: Sequence[Item], skipped: Counter[str]) -> Surveyed:
    # How a file is read follows from its suffix too, and a source that is one file with a name of its own hides that.
    what = [[one.kind, suffix_of(file_name(one)), one.label, one.digest] for one in items]
    return Surveyed(source, kind, tuple(items), dict(sorted(skipped.items())), digest_of(what))


def _default_name(uri: str) -> str:
    scheme, _, rest = uri.partition(":")
    if scheme == "installed-docs":
        return scheme
    if remotes.is_remote(uri):
        path = remotes.without_secrets(uri).partition("://")[2].partition("::")[0]
        parts = [part for part in path.split("/") if part]
        plain = next((number for number, part in enumerate(parts) if "*" in part), len(parts))
        return parts[:plain][-1] if plain else scheme
    if scheme == "hf":
        return Path(rest.partition("@")[0]).name.partition(":")[0]
    path_ = Path(folders.expanded(remotes.local(uri)))
    return (path_ if os.path.exists(path_) else folders.static_part(path_)).resolve().name or "root"


# Which files, and what they are read as


def file_name(item: Item) -> str:
    """Its path, without the query of a URL."""
    return item.path.partition("?")[0] if item.remote else item.path


def suffix_of(name: str) -> str:
    """.txt, or .txt.gz where it is packed; in small letters."""
    path = Path(name.lower())
    return Path(path.stem).suffix + path.suffix if path.suffix in SUFFIXES else path.suffix


def kind_of(name: str) -> str | None:
    """What a file is read as, by its suffix; None where that says nothing."""
    suffix = suffix_of(name)
    plain = suffix if suffix in KINDS else os.path.splitext(suffix)[0]
    kind = KINDS.get(plain)
    return None if kind in COLUMNS and plain != suffix else kind


def _chosen(source: Source, names: Sequence[str], single: bool, skipped: Counter[str]) -> list[str]:
    """The kind of each file, "" for what is passed over. Raises UsageError where nothing is left."""
    if source.format:
        kinds: list[str] = [FORMATS[source.format]] * len(names)
    elif single:
        kinds = [kind_of(names[0]) or _as_text(source, names[0])]
    else:
        kinds = [kind_of(name) or "" for name in names]
        skipped.update(suffix_of(name) or "(no suffix)" for name, kind in zip(names, kinds) if not kind)
    if not any(kinds):
        there = ", ".join(f"{number} × {what}" for what, number in skipped.most_common(5)) or "no file at all"
        uri = remotes.without_secrets(source.uri)
        raise UsageError(
            f"The source {uri} holds no {' '.join(KINDS)} file (there: {there}); set its format otherwise."
        )
    return kinds


def _as_text(source: Source, name: str) -> str:
    suffix = suffix_of(name)
    if KINDS.get(os.path.splitext(suffix)[0]) in COLUMNS:
        raise UsageError(f"The source {source.uri} is {suffix}, columns that are packed once more; unpack it.")
    _say_once(
        f"corpus: {remotes.without_secrets(source.uri)} is read as text; if it is something else, set its format: "
        f"{', '.join(FORMATS)}."
    )
    return "text"


@cache
def _say_once(line: str) -> None:
    say(line)


def _local_files(source: Source, memory: Memory) -> Surveyed:
    uri = remotes.local(source.uri)
    found = folders.find(uri)
    if not source.format and hub.is_saved(folders.expanded(uri)):
        raise UsageError(f"The source {source.uri} is a save_to_disk folder of datasets; write hf:{uri}.")
    single = found.files == [found.root]
    kinds = _chosen(source, [path.name for path in found.files], single, found.passed)
    files = [(path, kind) for path, kind in zip(found.files, kinds) if kind]
    return _local_items(source, "files", found.root, files, found.passed, memory)


def _local_items(
    source: Source, kind: str, root: Path, files: Sequence[tuple[Path, str]], skipped: Counter[str], memory: Memory
) -> Surveyed:
    items = []
    for (path, file_kind), known in zip(files, memory.digests([path for path, _ in files])):
        label = _label(source, path.relative_to(root).as_posix() if path != root else "")
        items.append(
            Item(
                file_kind,
                str(path),
                label,
                known.digest,
                known.size,
                source.text_key,
                source.cut,
                source.encoding,
                known.stamp,
            )
        )
    return _surveyed(source, kind, items, skipped)


def _remote_files(source: Source) -> Surveyed:
    found, skipped = remotes.find(source.uri)
    single = len(found) == 1 and not found[0].name
    names = [one.name or one.url.partition("?")[0] for one in found]
    items = []
    for one, kind in zip(found, _chosen(source, names, single, skipped)):
        if kind:
            one = remotes.identified(one)
            label = _label(source, one.name)
            items.append(
                Item(
                    kind,
                    one.url,
                    label,
                    one.identity,
                    one.size,
                    source.text_key,
                    source.cut,
                    source.encoding,
                    remote=True,
                )
            )
    return _surveyed(source, "remote", items, skipped)


def _label(source: Source, relative: str) -> str:
    """File names are bytes; those that are not UTF-8 are written with backslashes."""
    return _printable(f"{source.name}/{relative}" if relative else source.name)


def _printable(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
