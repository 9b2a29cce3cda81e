"""The documentation that every machine already has: docstrings and READMEs of installed packages, topics of pydoc.

A corpus for a first run, with no download and nothing bundled. Which distributions: the closure of what maskmill itself
requires, without extras and without maskmill, so that installing the test tools does not change the corpus. Nothing is
imported: sources are read by `ast`, and RECORD files say which ones there are and what their digests are.
"""

import ast
import base64
import importlib.metadata as metadata
import importlib.util
import io
import os
import re
import sys
import warnings
from collections.abc import Iterator
from email import message_from_string
from email.message import Message
from hashlib import sha256
from math import sqrt
from pathlib import Path
from typing import NamedTuple

from .artifacts import digest_of, file_digest
from .errors import UsageError

PROJECT = "maskmill"
DENSITY = 0.15
"""A module with less of its bytes in triple quotes is not parsed: a tenth of the prose, but two fifths of the time."""


class DocFile(NamedTuple):
    """A file with documentation in it."""

    kind: str
    path: str
    label: str
    digest: str
    size: int


def survey(names: str = "") -> tuple[list[DocFile], list[list[str]]]:
    """Files in reading order, and [name, version, digest of RECORD] of each distribution.

    names   comma-separated distributions to start from; "" for what maskmill requires
    The digest covers the lines of RECORD for the files read here only: others hold the address of the environment.
    READMEs and topics come first (they are the best prose), then modules: those of a package in the order of a hash,
    and packages mixed in proportion to the square root of their number of modules, so that a budget takes a fair mix
    and not the first or the largest few. Raises UsageError for a name that is not installed.
    """
    identities: list[list[str]] = []
    pages = [_topics()]
    modules: dict[str, tuple[float, str, DocFile]] = {}  # by path: some distributions list each other's files
    for name, distribution in sorted(_closure(names).items()):
        files = sorted(_files(name, distribution), key=lambda file: sha256(file.label.encode()).digest())
        digest = digest_of(sorted([file.label, file.digest] for file in files))
        identities.append([name, str(_head(distribution)["Version"]), digest])
        pages += [file for file in files if file.kind == "metadata"]
        own = [file for file in files if file.kind == "python"]
        for rank, file in enumerate(own, 1):
            modules.setdefault(file.path, (rank / sqrt(len(own)), file.label, file))
    identities.append(["python", pages[0].label, pages[0].digest])
    return pages + [file for *_, file in sorted(modules.values())], identities


def _closure(names: str) -> dict[str, metadata.Distribution]:
    """Canonical name -> installed distribution, for all that is required, directly or not."""
    from packaging.requirements import Requirement

    def canonical(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name.strip()).lower()

    def required(distribution: metadata.Distribution) -> list[str]:
        if distribution.read_text("METADATA") is None:  # an egg-info, as setuptools leaves it beside the sources
            requirements = map(Requirement, distribution.requires or [])
        else:
            requirements = map(Requirement, _head(distribution).get_all("Requires-Dist", []))
        return [one.name for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})]

    try:
        roots = names.split(",") if names else required(metadata.distribution(PROJECT))
        found = {canonical(name): metadata.distribution(name.strip()) for name in names.split(",") if names}
    except metadata.PackageNotFoundError as error:
        raise UsageError(
            f"installed-docs: no distribution {error.name!r} is installed; run `make run`, or name others as in "
            "installed-docs:numpy,torch."
        ) from None
    waiting = list(roots) if not names else [name for one in found.values() for name in required(one)]
    while waiting:
        name = canonical(waiting.pop())
        if name in found or name == PROJECT:
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # required, but not there: nothing to read
            continue
        waiting += required(found[name])
    return found


def _head(distribution: metadata.Distribution) -> Message:
    """Headers of METADATA. importlib.metadata parses the README with them, at every access."""
    return message_from_string((distribution.read_text("METADATA") or "").partition("\n\n")[0])


def _files(name: str, distribution: metadata.Distribution) -> Iterator[DocFile]:
    root = str(distribution.locate_file(""))
    for line in (distribution.read_text("RECORD") or "").split("\n"):
        path, _, rest = line.rpartition(",sha256=")
        digest, _, size = rest.partition(",")
        parts = path.strip('"').split("/")
        if path.endswith(".dist-info/METADATA") and len(parts) == 2:
            kind = "metadata"
        elif path.endswith(".py") and ".." not in parts and not {"tests", "test"} & set(parts):
            kind = "python"
        else:
            continue
        sha = base64.urlsafe_b64decode(digest + "=").hex()
        yield DocFile(kind, os.path.join(root, *parts), f"{name}/{'/'.join(parts)}", sha, int(size or 0))


def _topics() -> DocFile:
    spec = importlib.util.find_spec("pydoc_data.topics")
    if spec is None or spec.origin is None:
        raise UsageError("installed-docs: this Python lacks pydoc_data.topics; install its standard library whole.")
    path = Path(spec.origin)
    label = f"python/{sys.version_info.major}.{sys.version_info.minor}/pydoc_data/topics.py"
    return DocFile("topics", str(path), label, file_digest(path), path.stat().st_size)


# Reading

_QUOTED = re.compile(rb'"""(.*?)"""', re.S)


def documentation(kind: str, path: Path) -> Iterator[tuple[int, str]]:
    """(byte offset, documentation) of a file as it was written. Raises SyntaxError or ValueError for a broken one."""
    data = path.read_bytes()
    if kind == "metadata":
        yield from _readme(data.decode(errors="replace"))
    elif kind == "topics" or sum(map(len, _QUOTED.findall(data))) >= DENSITY * len(data):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(data)
        starts = _line_starts(data)
        for text, line in _topic_texts(tree) if kind == "topics" else _docstrings(tree):
            yield starts[line - 1], text


def _docstrings(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """In the order of the file. Statements only: ast.walk also visits expressions, which takes five times as long."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text:
                yield text, node.body[0].lineno
        for block in ("handlers", "finalbody", "orelse", "body"):
            waiting += reversed(getattr(node, block, ()))


def _topic_texts(tree: ast.Module) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            for value in node.values:
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield value.value, value.lineno


def _line_starts(data: bytes) -> list[int]:
    starts = [0]
    for line in io.BytesIO(data):
        starts.append(starts[-1] + len(line))
    return starts


def _readme(text: str) -> Iterator[tuple[int, str]]:
    """The long description: the body of METADATA, or its Description field in old ones."""
    head, _, body = text.partition("\n\n")
    description = body if body.strip() else str(message_from_string(head).get("Description", ""))
    if description.strip():
        yield len(text.encode()) - len(description.encode()), description
