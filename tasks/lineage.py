"""From a registered version down to the source files: what it was made from, what of that is still there and whole.

    version ─► evaluate ─► pretrain (─► fork) ─► shards (of each length) ─► vocabulary ─► corpus ─► sources ─► files

A version's tags name every artifact by its digest, manifests what each was made from, places.py where files lie.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import places, tracking
from .artifacts import MANIFEST, Manifest, Store, digest_of, file_digest, load, verify
from .errors import DataError
from .manifests import json_of, size_of
from .places import File
from .progress import progress

if TYPE_CHECKING:
    from .versions import Version

STAGES = ("register", "evaluate", "pretrain", "shards", "vocabulary", "corpus")
"""What a version's tags name, the last first."""
OTHERS = {"fork": "pretrain", "rival": "pretrain", "champion": "pretrain"}
"""What tags and inputs call an artifact otherwise -> its stage."""
WHOLE, DAMAGED, GONE = "whole", "damaged", "gone"


@dataclass(frozen=True)
class Origin:
    """A source of a corpus."""

    name: str
    digest: str
    kind: str
    licence: str
    files: tuple[File, ...]
    note: str = ""
    """Why its files are not known."""


@dataclass(frozen=True)
class Artifact:
    """A part of the chain."""

    name: str
    """What the version, or the artifact above, calls it: its stage, shards_128, fork, champion."""
    digest: str
    state: str
    """whole, damaged, gone."""
    why: str = ""
    folder: Path | None = None
    key: str = ""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Name -> digest of what it was made from; of a corpus nothing, see its origins."""
    origins: tuple[Origin, ...] = ()
    named_by: str = ""
    """Digest of the artifact that was made from it; "" where the version's own tags name it."""

    @property
    def stage(self) -> str:
        return stage_of(self.name)


@dataclass
class Lineage:
    """The chain of a version."""

    artifacts: dict[str, Artifact]
    """Digest -> artifact, the last made first."""
    lacking: list[str]
    """What a version's tags should say, and do not: a sentence each."""

    def above(self, one: Artifact) -> str:
        """Digest of the artifact below which a person looks for this one; "" for the version itself."""
        stage = {"rival": "evaluate", "champion": "evaluate", "fork": "pretrain"}.get(one.name)
        own = (other.digest for other in self.artifacts.values() if other.name == stage)
        return one.named_by or next(own, "")

    @property
    def damaged(self) -> list[Artifact]:
        return [one for one in self.artifacts.values() if one.state == DAMAGED]

    @property
    def gone(self) -> list[Artifact]:
        return [one for one in self.artifacts.values() if one.state == GONE]


def stage_of(name: str) -> str:
    """The stage whose artifact it is: shards_128 -> shards, fork -> pretrain."""
    return OTHERS.get(name, name.partition("_")[0])


def roots(tags: Mapping[str, str]) -> dict[str, str]:
    """Name -> digest of every artifact that a version's tags name, the last made first."""
    named = {name: digest for name, digest in tags.items() if digest and _is_artifact(name, digest)}
    order = [*STAGES, *OTHERS]
    return dict(sorted(named.items(), key=lambda item: (_place(item[0], order), item[0])))


def _is_artifact(name: str, digest: str) -> bool:
    known = name in STAGES or name in OTHERS or name.partition("_")[2].isdigit()
    return known and stage_of(name) in STAGES and len(digest) == 64


def _place(name: str, order: Sequence[str]) -> int:
    return order.index(name) if name in order else order.index(stage_of(name))


def every(home: Path) -> list["Version"]:
    """Every version of every model, in the registry that is asked and in the embedded one of this home.

    Raises MaskmillError where one does not answer: what it holds is not known then.
    """
    from .versions import Version, explained

    found = []
    for uri in addresses(home):
        with explained(home):
            client = tracking.connect(home, uri)
            for model in _pages(client.search_registered_models):
                aliases: dict[str, list[str]] = {}
                for alias, number in model.aliases.items():
                    aliases.setdefault(str(number), []).append(alias)
                for one in _pages(client.search_model_versions, f"name = '{model.name}'"):
                    names = tuple(sorted(aliases.get(str(one.version), ())))
                    found.append(Version(one.name, int(one.version), names, dict(one.tags), str(one.source)))
    return found


def addresses(home: Path) -> list[str]:
    """The registries that may hold models of this home."""
    embedded = f"sqlite:///{tracking.database(home)}"
    each = [tracking.tracking_uri(home)] if tracking.exists(home) else []
    return [*each, embedded] if tracking.database(home).exists() and embedded not in each else each


def _pages(search: Any, query: str = "") -> Iterator[Any]:
    token = None
    while True:
        page = search(query, page_token=token) if query else search(page_token=token)
        yield from page
        token = page.token
        if not token:
            return


# The chain.


def trace(tags: Mapping[str, str], store: Store, hashed: bool = False) -> Lineage:
    """The chain of a version with these tags.

    hashed  hash every file, also the source files; else sizes, times and manifests are looked at
    """
    named, looked = roots(tags), dict[str, Artifact]()
    waiting = [(name, digest, "") for name, digest in named.items()]
    with progress("lineage", None, "artifacts") if hashed else nullcontext() as bar:
        while waiting:
            name, digest, above = waiting.pop(0)
            if digest in looked:
                continue
            looked[digest] = one = replace(_look(name, digest, store, hashed), named_by=above)
            if bar:
                bar.advance()
            if name not in ("rival", "champion"):  # what it was compared with: where that came from is another story
                waiting += [(name, inner, digest) for name, inner in one.inputs.items()]
    order = sorted(looked.values(), key=lambda one: (bool(one.named_by), STAGES.index(one.stage)))
    return Lineage({one.digest: one for one in order}, list(_lacking(tags, named, looked)))


def _lacking(tags: Mapping[str, str], named: Mapping[str, str], looked: Mapping[str, Artifact]) -> Iterator[str]:
    for stage in STAGES:
        if stage not in named:
            yield f"The version has no tag {stage!r} with a digest: it was not registered by maskmill, or it was cut."
    trained = looked.get(named.get("pretrain", ""))
    for name, digest in trained.inputs.items() if trained else ():
        if named.get(name) != digest:
            said = f"says {named[name][:12]}" if name in named else "is not there"
            yield f"The version's tag {name!r} {said}, but its pretrain artifact was made from {digest[:12]}."


def _look(name: str, digest: str, store: Store, hashed: bool) -> Artifact:
    stage = stage_of(name)
    folder, unreadable = _folder(store, stage, digest)
    if folder is None and unreadable:
        return Artifact(name, digest, DAMAGED, f"{unreadable[0] / MANIFEST} cannot be read; it may be this one")
    if folder is None:
        return Artifact(name, digest, GONE, "the store does not have it (any more)")
    try:
        manifest = load(folder)
        findings = verify(manifest) if hashed else []
    except (DataError, OSError) as error:
        return Artifact(name, digest, DAMAGED, str(error), folder, folder.name, _inputs(folder, stage))
    if manifest.digest != digest or manifest.key != folder.name:
        findings.append(f"{folder} holds another artifact than its name says")
    origins = _origins(manifest, hashed) if stage == "corpus" else ()
    state, why = (DAMAGED, findings[0]) if findings else (WHOLE, "")
    return Artifact(name, digest, state, why, folder, folder.name, _inputs(folder, stage), origins)


def _folder(store: Store, stage: str, digest: str) -> tuple[Path | None, list[Path]]:
    """Where the artifact with a digest lies, and which folders of its stage cannot say what they are."""
    pages, unreadable = {}, []
    for folder in store.folders(stage):
        try:
            pages[folder] = json_of((folder / MANIFEST).read_bytes())
            if pages[folder]["digest"] == digest:
                return folder, []
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError):
            unreadable.append(folder)
    parts = ("stage", "version", "config", "inputs", "files", "counts", "facts")
    for folder, value in pages.items():  # a bit of the digest itself may be what is damaged
        with suppress(KeyError, TypeError, AttributeError, ValueError):
            if digest_of({part: value[part] for part in parts}) == digest:
                return folder, []
    return None, unreadable


def _inputs(folder: Path, stage: str) -> dict[str, str]:
    """Also of an artifact whose files are damaged."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        if stage != "corpus":
            return dict(json_of((folder / MANIFEST).read_bytes())["inputs"])
    return {}


def _origins(manifest: Manifest, hashed: bool) -> tuple[Origin, ...]:
    facts = {one["name"]: one for one in manifest.facts.get("sources", []) if isinstance(one, Mapping)}
    files: Mapping[str, Sequence[File]] = {}
    note = ""
    try:
        files = places.files(manifest.folder, hashed)
    except DataError as error:
        note = str(error)
    except OSError:
        note = "where its files lay is not known; the next run of its recipe writes it down"
    found = []
    for name, digest in manifest.identity.inputs.items():
        of = facts.get(name, {})
        kind = of.get("kind", "evaluation file" if name.startswith("evaluation/") else "")
        found.append(Origin(name, digest, kind, of.get("licence", ""), tuple(files.get(name, ())), note))
    return tuple(found)


def model_findings(folder: Path) -> list[str]:
    """What differs in a registered model's folder from the digests that were registered with it; [] is a clean bill."""
    try:
        expected = json_of((folder / "digests.json").read_bytes())["sha256"]
        there = {name: file_digest(folder / name) for name in expected if size_of(folder / name) is not None}
        wrong = [name for name, digest in expected.items() if there.get(name) != digest]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [f"{folder / 'digests.json'} cannot be read"]
    return [f"{name} of the registered model is not the file that was registered" for name in wrong]
