"""Where images come from: enumerating sources and digesting them. Nothing is decoded here, so `plan` is fast.

PATH            file, folder or glob (folders.py)
PROTOCOL://…    the same behind any URL that fsspec knows (remotes.py)

What a file is read as follows from its name, unless the source has a `format`: .png .jpg .jpeg as an image,
…-idx3-ubyte and .idx as IDX (the format of MNIST), .tar as a tar of images, .parquet as a table with a column of them;
IDX and tar also packed (.gz .zst .bz2 .xz). Others in a folder are passed over and counted.

Labels: an IDX file's are in the file beside it (…images-idx3… has …labels-idx1…), a Parquet file's in its column
`label_key`, all others are the name of the folder that the image lies in, below what the source names.
"""

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from . import folders, remotes
from .archives import SUFFIXES
from .artifacts import digest_of
from .digests import Memory
from .errors import UsageError
from .progress import say
from .sources import Source, Surveyed
from .streams import Item

FORMATS = ("image", "idx", "tar", "parquet")
LABELS = ("auto", "folder", "none")
IMAGES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif")
_IDX = re.compile(r"[.-]idx[34]-ubyte$|\.idx[34]?$")
_IDX_LABELS = re.compile(r"[.-]idx1-ubyte$|\.idx1$")
ORPHAN = "(labels without images)"
"""Why a file of labels is passed over."""


@dataclass(frozen=True)
class ImageSource:
    """One place that images come from."""

    uri: str
    """A path or a URL; see the module."""
    name: str = ""
    """What documents of this source are called; "" for the last part of the uri."""
    licence: str = ""
    """A note for the card, such as CC-BY-4.0."""
    format: str = ""
    """image, idx, tar or parquet, for all of its files; "" goes by each file's name."""
    image_key: str = "image"
    """Column of a Parquet file that holds the images: PNG or JPEG as binary, or as struct{bytes, path}."""
    label_key: str = "label"
    """Column of a Parquet file that holds their labels."""
    labels: str = "auto"
    """auto: see the module; folder: the folder's name always, also the source's own; none."""

    def __post_init__(self) -> None:
        self.as_source()  # what any source must keep to: name, address
        for key, value, known in (("format", self.format, ("", *FORMATS)), ("labels", self.labels, LABELS)):
            if value not in known:
                raise UsageError(f"corpus.sources.{key} is {value!r}; use {', '.join(filter(None, known))}.")
        for key in ("image_key", "label_key"):
            if not getattr(self, key):
                raise UsageError(f"corpus.sources.{key} is empty; name a column, such as {key.partition('_')[0]}.")

    def as_source(self) -> Source:
        """What this source has in common with one of text."""
        return Source(self.uri, self.name, licence=self.licence)


@dataclass(frozen=True)
class ImageFile:
    """One file of a source that holds images."""

    item: Item
    """kind: image, idx, tar, parquet."""
    labels: Item | None = None
    """The file of labels that belongs to an IDX file."""
    folder: str | None = None
    """The label that its folder gives; None where labels come from elsewhere, or there is none."""


@dataclass(frozen=True)
class SurveyedImages:
    """A source with its files, in the order in which they are read."""

    source: ImageSource
    kind: str
    """files, remote."""
    files: tuple[ImageFile, ...]
    skipped: dict[str, int]
    """Suffix, or the reason in brackets -> number of files that maskmill does not read."""
    digest: str

    @property
    def items(self) -> tuple[Item, ...]:
        """All files, those of labels too."""
        return tuple(item for one in self.files for item in (one.item, one.labels) if item)

    def as_surveyed(self) -> Surveyed:
        """The same in the form that is remembered beside the corpus (places.py)."""
        return Surveyed(self.source.as_source(), self.kind, self.items, self.skipped, self.digest)


@dataclass(frozen=True)
class _Listed:
    """A file that was found, before it is known what it is."""

    path: str
    name: str
    """Its path below the source's root, in POSIX's manner; "" for a single file."""
    remote: remotes.Remote | None = None


Chosen = tuple[str, _Listed, _Listed | None]
"""Kind of a file, the file, and its labels."""


def survey(sources: Sequence[ImageSource], store_root: Path) -> list[SurveyedImages]:
    """Enumerates and digests all sources. Digests of files are remembered in <store_root>/digests.json.

    Raises UsageError for a source that does not exist or holds no image.
    """
    if not sources:
        raise UsageError(
            "corpus.sources is empty; name at least one file, folder or glob: --source PATH, or of a second modality "
            "--set 'beside.corpus.sources=[{uri: PATH}]'."
        )
    memory = Memory(store_root)
    surveyed: list[SurveyedImages] = []
    names: set[str] = set()
    for source in sources:
        name = source.name or _default_name(source.uri)
        unique, number = name, 1
        while unique in names:
            number += 1
            unique = f"{name}-{number}"
        if source.name and unique != source.name:
            say(f"corpus: two sources are called {source.name}; the second one is called {unique} here")
        names.add(unique)
        surveyed.append(_survey_one(replace(source, name=unique), memory))
    memory.save()
    return surveyed


def _survey_one(source: ImageSource, memory: Memory) -> SurveyedImages:
    if remotes.is_remote(source.uri):
        found, skipped = remotes.find(source.uri)
        listed = [_Listed(one.url, one.name, one) for one in found]
    else:
        local = folders.find(remotes.local(source.uri))
        skipped = local.passed
        single = local.files == [local.root]
        below = len(str(local.root / "x")) - 1
        names = ["" if single else str(path)[below:] for path in local.files]
        listed = [_Listed(str(path), name) for path, name in zip(local.files, names)]
        if single:
            listed += _sibling_on_disk(listed[0])
    chosen = _chosen(source, listed, skipped)
    items = _items(source, chosen, memory)
    files = [
        ImageFile(items[one.path], items[labels.path] if labels else None, _folder_of(source, one, kind, bool(labels)))
        for kind, one, labels in chosen
    ]
    what = [[f.item.kind, f.item.label, f.item.digest, f.labels and f.labels.digest, f.folder] for f in files]
    kind = "remote" if remotes.is_remote(source.uri) else "files"
    return SurveyedImages(source, kind, tuple(files), dict(sorted(skipped.items())), digest_of(what))


def _default_name(uri: str) -> str:
    if remotes.is_remote(uri):
        parts = [part for part in remotes.without_secrets(uri).partition("://")[2].split("/") if part]
        plain = next((number for number, part in enumerate(parts) if "*" in part), len(parts))
        return _printable(parts[:plain][-1] if plain else uri.partition("://")[0])
    path = Path(folders.expanded(remotes.local(uri)))
    return _printable((path if os.path.exists(path) else folders.static_part(path)).resolve().name or "root")


# Which files, and what they are read as


def kind_of(name: str) -> str:
    """image, idx, labels, tar or parquet by a file's name; "" where that says nothing."""
    base = name.lower().rpartition("/")[2]
    plain = base.removesuffix(next((end for end in SUFFIXES if base.endswith(end)), ""))
    if base.endswith(IMAGES):
        return "image"
    if plain.endswith(".tar") or base.endswith((".tgz", ".txz", ".tbz2")):
        return "tar"
    if _IDX_LABELS.search(plain):
        return "labels"
    if _IDX.search(plain):
        return "idx"
    return "parquet" if base.endswith(".parquet") else ""


def label_names(name: str) -> list[str]:
    """What the file of labels beside an IDX file may be called: packed or not."""
    folder, _, base = name.rpartition("/")
    plain = base.removesuffix(next((end for end in SUFFIXES if base.lower().endswith(end)), ""))
    if "images" not in plain:
        return []
    wanted = re.sub(r"idx[34]", "idx1", plain.replace("images", "labels"))
    return [f"{folder}/{wanted}{end}" if folder else wanted + end for end in ("", *SUFFIXES)]


def _name(one: _Listed) -> str:
    return one.name or (one.path.partition("?")[0] if one.remote else one.path)


def _sibling_on_disk(one: _Listed) -> list[_Listed]:
    names = label_names(one.path) if kind_of(one.path) == "idx" else []
    return [_Listed(name, "") for name in names if os.path.isfile(name)][:1]


def _chosen(source: ImageSource, listed: Sequence[_Listed], skipped: Counter[str]) -> list[Chosen]:
    """(kind, file, its labels) of what is read; counts the rest. Raises UsageError where nothing is left."""
    kinds = [kind_of(_name(one)) for one in listed]
    labels = {_name(one): one for one, kind in zip(listed, kinds) if kind == "labels"}
    used = set[str]()
    chosen: list[Chosen] = []
    for one, kind in zip(listed, kinds):
        if kind == "labels":
            continue
        if not (kind := source.format or kind):
            skipped[_suffix(_name(one))] += 1
            continue
        beside = None
        if kind == "idx":
            beside = next((labels[name] for name in label_names(_name(one)) if name in labels), None)
            used |= {_name(beside)} if beside else set()
        chosen.append((kind, one, beside if source.labels == "auto" else None))
    if orphans := len(labels.keys() - used):
        skipped[ORPHAN] += orphans
    if not chosen:
        there = ", ".join(f"{number} × {what}" for what, number in skipped.most_common(5)) or "no file at all"
        raise UsageError(
            f"The source {remotes.without_secrets(source.uri)} holds no PNG, JPEG, IDX, tar or Parquet file (there: "
            f"{there}); name one that does, or set its format: {', '.join(FORMATS)}."
        )
    return chosen


def _suffix(name: str) -> str:
    return PurePosixPath(name.lower()).suffix or "(no suffix)"


def _folder_of(source: ImageSource, one: _Listed, kind: str, labelled: bool) -> str | None:
    """The label that the place of a file gives to what is in it; of a tar it is for images at its top."""
    if source.labels == "none" or labelled or (source.labels == "auto" and kind in ("idx", "parquet", "tar")):
        return None
    name = one.name.rpartition("/")[0].rpartition("/")[2]
    if not name and source.labels == "folder":
        path = one.path.partition("?")[0] if one.remote else os.path.abspath(one.path)
        name = PurePosixPath(path).parent.name
    return _printable(name) or None


def _items(source: ImageSource, chosen: Sequence[Chosen], memory: Memory) -> dict[str, Item]:
    """Path -> the file with its digest."""
    wanted = {one.path: (kind, one) for kind, one, _ in chosen}
    wanted |= {labels.path: ("labels", labels) for _, _, labels in chosen if labels}
    local = [path for path, (_, one) in wanted.items() if not one.remote]
    known = dict(zip(local, memory.digests([Path(path) for path in local])))
    items = {}
    for path, (kind, one) in wanted.items():
        name = one.name or (PurePosixPath(path).name if kind == "labels" else "")
        label = _printable(f"{source.name}/{name}" if name else source.name)
        if one.remote:
            there = remotes.identified(one.remote)
            items[path] = Item(kind, path, label, there.identity, there.size, remote=True)
        else:
            digest = known[path]
            items[path] = Item(kind, path, label, digest.digest, digest.size, stamp=digest.stamp)
    return items


def _printable(name: str) -> str:
    """File names are bytes; those that are not UTF-8 are written with backslashes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
