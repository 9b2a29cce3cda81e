"""F13: hostile input, one kind a trial, among good input.

It is refused by name or counted, what is good beside it is kept, the peak of memory stays below MOST, nothing is
written outside the home, and no canary sings. Each trial runs in a process of its own, for PATIENCE seconds at most.
"""

import bz2
import ctypes
import gzip
import json
import lzma
import os
import resource
import signal
import struct
import sys
import time
import traceback
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from backports import zstd

from tests.faults.canary import pickled
from tests.faults.hostile_inputs import (
    GOOD,
    arrow_bomb,
    deep,
    file,
    images,
    long_line,
    loop,
    names,
    packed,
    parquet_bomb,
    png_bomb,
    special,
    tar,
    unreadable,
)
from tests.faults.trial import Failed, Outcome, Trial

MOST = 512 << 20
"""Bytes that a trial may take beside what its process had before."""
PATIENCE = 300.0
OVERRIDE = 0b110
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: by these root reads what is closed."""


@dataclass
class Seen:
    """What a trial's process reports."""

    texts: list[str] = field(default_factory=list)
    """Documents that were kept."""
    refused: dict[str, int] = field(default_factory=dict)
    """Reason -> number, in the quarantine."""
    passed: dict[str, int] = field(default_factory=dict)
    """What was passed over: suffix or reason -> number."""
    error: str = ""
    """Of a documented error its exit status and sentence."""
    wrong: str = ""
    """Traceback of any other."""
    memory: int = 0
    said: str = ""


def contained(work: Callable[[], dict[str, Any]], folder: Path, bound: bool = False) -> Seen:
    """Runs it in a child. Raises Failed where it hangs or ends by a signal."""
    _imported()
    page, log = folder / "seen.json", folder / "said"
    child = os.fork()
    if not child:
        _child(work, page, log, bound)
    deadline, before, most = time.monotonic() + PATIENCE, _anonymous(child), 0
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise Failed("hang", f"not over after {PATIENCE:.0f} s")
        most = max(most, _anonymous(child) - before)
        time.sleep(0.02)
    said = log.read_text(errors="replace")
    if ended[1]:
        raise Failed("undocumented", f"the process ended with status {ended[1]}: {said[-300:]}")
    seen = Seen(**json.loads(page.read_bytes()), said=said)
    seen.memory = max(seen.memory, most)
    page.unlink(), log.unlink()
    return seen


def _child(work: Callable[[], dict[str, Any]], page: Path, log: Path, bound: bool) -> None:
    from tasks.errors import MaskmillError

    status, found = 1, dict[str, Any]()
    try:
        os.setsid()
        with open(log, "wb") as file:
            for descriptor in (1, 2):
                os.dup2(file.fileno(), descriptor)
        out = os.open(page, os.O_WRONLY | os.O_CREAT, 0o644)
        if bound:
            _bind()
        try:
            found = work()
        except MaskmillError as error:
            found = {"error": f"{error.exit_code} {error}"}
        except BaseException:
            found = {"wrong": traceback.format_exc()[-800:]}
        others = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        os.write(out, json.dumps({"memory": others << 10, **found}).encode())
        status = 0
    finally:
        sys.stderr.flush()
        os._exit(status)


def _anonymous(pid: int) -> int:
    """Bytes of memory that a process has now. Without the files that it maps: those go when others want the room."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/status").read_text().partition("RssAnon:")[2].split()[0]) << 10
    return 0


def _bind() -> None:
    """Modes of files hold for this process, also where it is root's."""
    libc, head = ctypes.CDLL(None, use_errno=True), (ctypes.c_uint32 * 2)(0x20080522, 0)
    kept = (ctypes.c_uint32 * 6)()
    libc.capget(head, kept)
    for at in (0, 1, 2):
        kept[at] &= ~OVERRIDE
    if libc.capset(head, kept):
        raise OSError(ctypes.get_errno(), "capset")


def _imported() -> None:
    """What a trial needs, once for all of them."""
    import pyarrow.parquet

    from flows import recipes
    from tasks import adopted, corpus, examples, image_corpus, remotes

    assert pyarrow.parquet and recipes and adopted and corpus and examples and image_corpus and remotes


def read_corpus(source: Path, home: Path, recipe: str, settings: tuple[str, ...]) -> dict[str, Any]:
    """The stage corpus on a folder: what was kept, and what was not."""
    import pyarrow.parquet as pq

    from flows import recipes
    from tasks import modalities
    from tasks.artifacts import Store

    config = recipes.load(recipe, [str(source)], ["corpus.max_bad_fraction=1", *settings]).corpus
    manifest, _ = modalities.corpus(config, Store(home / "store"))
    texts: list[str] = []
    for name in manifest.files:
        if name.endswith(".parquet") and recipe == "tiny":
            texts += pq.read_table(manifest.path(name)).column("text").to_pylist()
        elif name.endswith(".parquet"):
            texts += ["image"] * pq.read_metadata(manifest.path(name)).num_rows
    refused: dict[str, int] = {}
    for line in manifest.path("quarantine.jsonl").read_bytes().splitlines():
        reason = json.loads(line)["reason"]
        refused[reason] = refused.get(reason, 0) + 1
    passed: dict[str, int] = {}
    for some in manifest.measured().get("skipped", {}).values():
        passed |= some
    return {"texts": texts, "refused": refused, "passed": passed}


# The trials


def prepared(folder: Path, recipe: str) -> tuple[Path, Path]:
    """The source with its good file, and the home."""
    source, home = folder / "source", folder / "home"
    source.mkdir(), home.mkdir()
    if recipe == "tiny":
        (source / "good.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in GOOD))
    else:
        (source / "class").mkdir()
        for number, data in enumerate(images()):
            (source / "class" / f"{number}.png").write_bytes(data)
    return source, home


@dataclass(frozen=True)
class Hostile:
    """One kind of input."""

    plant: Callable[[Path], None]
    """Into the source's folder; the trial's own folder is its parent."""
    why: str = ""
    """The reason in the quarantine, or what it was passed over as; "" where it is taken (and harmless)."""
    recipe: str = "tiny"
    settings: tuple[str, ...] = ()
    bound: bool = False


def planted(plant: Callable[[Path], None], where: Path) -> None:
    """In a process of its own: libraries start threads here, which a fork of this one would lack, and wait for."""
    if (child := os.fork()) == 0:
        status = 1
        try:
            plant(where)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0, f"{where} was not planted"


def among_good(hostile: Hostile, folder: Path) -> Outcome:
    """It lies beside a good file."""
    source, home = prepared(folder, hostile.recipe)
    planted(hostile.plant, source)
    before = _names(folder)
    seen = contained(lambda: read_corpus(source, home, hostile.recipe, hostile.settings), folder, hostile.bound)
    _check(seen, folder, before)
    if seen.error:
        raise Failed("different", f"the good file was refused with it: {seen.error}")
    whole = "\n".join(seen.texts)
    kept = len(seen.texts) if hostile.recipe != "tiny" else sum(text in whole for text in GOOD)
    if kept < (20 if hostile.recipe != "tiny" else len(GOOD)):
        raise Failed("lost", f"{kept} good texts or images are left")
    there = seen.refused | seen.passed
    if hostile.why and not any(hostile.why in reason for reason in there):
        raise Failed("silent", f"it was not counted as {hostile.why}, but {there}")
    return Outcome("refused", note=f"{there}, {seen.memory >> 20} MB")


def alone(name: str, plant: Callable[[Path], None], words: str, folder: Path, recipe: str = "tiny") -> Outcome:
    """It is the source itself: refused by name, with a documented status."""
    (folder / "home").mkdir()
    path = folder / name
    planted(plant, path)
    before = _names(folder)
    seen = contained(lambda: read_corpus(path, folder / "home", recipe, ()), folder)
    _check(seen, folder, before)
    if words not in seen.error:
        raise Failed("undocumented", f"{words!r} of {path.name!r} was not said, but: {seen.error or seen}")
    return Outcome("refused", note=seen.error[:80])


def refused(work: Callable[[Path], dict[str, Any]], words: str, folder: Path) -> Outcome:
    """A reader is given a file, and says what is wrong with it."""
    seen = contained(lambda: work(folder), folder)
    _check(seen, folder, None)
    if words not in seen.error:
        raise Failed("undocumented", f"{words!r} was not said, but: {seen.error or seen}")
    return Outcome("refused", note=seen.error[:80])


def _names(folder: Path) -> set[str]:
    home = os.fsencode(folder / "home")
    return {
        os.fsdecode(os.path.join(top, one))
        for top, _, files in os.walk(os.fsencode(folder))
        for one in files
        if not top.startswith(home)
    }


def _check(seen: Seen, folder: Path, before: set[str] | None) -> None:
    if seen.wrong:
        raise Failed("undocumented", seen.wrong)
    if "Traceback" in seen.said:
        raise Failed("undocumented", seen.said[-500:])
    if any(ord(character) < 32 and character not in "\n\t" for character in seen.said) or "\u202e" in seen.said:
        raise Failed("undocumented", f"a name of a file writes to the terminal: {seen.said[-200:]!r}")
    if seen.memory > MOST:
        raise Failed("undocumented", f"{seen.memory >> 20} MB were taken")
    if (folder / "canary").exists():
        raise Failed("silent", "a pickle was loaded")
    if before is not None and (new := _names(folder) - before):
        raise Failed("litter", f"written outside the home: {sorted(new)[:3]}")


def header_of(data: bytes, folder: Path) -> dict[str, Any]:
    """A checkpoint whose tensors are these bytes, with a receipt that says so."""
    import hashlib

    from tasks.checkpoint import load
    from tasks.manifests import page, sealed

    (folder / "step-000000001.safetensors").write_bytes(data)
    about = {"step": 1, "regular": True, "state": {}, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "step-000000001.json").write_bytes(page(sealed(about)))
    load(folder, 1)
    return {}


def safetensors(entries: Any, data: int, length: int | None = None) -> bytes:
    header = json.dumps(entries, separators=(",", ":")).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + bytes(data)


def recipe_of(text: bytes, folder: Path) -> dict[str, Any]:
    from flows import recipes

    (folder / "hostile.yaml").write_bytes(text)
    recipes.load(str(folder / "hostile.yaml"))
    return {}


def entities(folder: Path) -> dict[str, Any]:
    """XML whose entities unfold to thousands of millions."""
    from tasks.examples import ClassificationConfig, read_examples

    lines = ['<!ENTITY a0 "aaaaaaaaaa">', *(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))]
    page = f"<?xml version='1.0'?><!DOCTYPE x [{''.join(lines)}]><x><pair value='TRUE'><t>&a9;</t><h>b</h></pair></x>"
    (folder / "bomb.xml").write_text(page)
    read_examples(ClassificationConfig("a", str(folder / "bomb.xml"), pair="pair"), lambda line: None)
    return {}


def canary(folder: Path) -> bytes:
    return pickled(folder / "canary")


def bad_line(_: Path) -> bytes:
    return b"\n\n".join([b"A good line of a file with words."] * 20 + [b"\xff\xfe \xed\xa0\x80"])


ALIASES = b"a: &a0 [x, x]\n" + b"".join(b"b%d: &a%d [*a%d, *a%d]\n" % (n, n, n - 1, n - 1) for n in range(1, 40))
OVERLAP = {
    "a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
    "b": {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]},
}
BELOW_ZERO = {"a": {"dtype": "F32", "shape": [-2, -2], "data_offsets": [0, 16]}}

AMONG: dict[str, Hostile] = {
    "pickle as text": Hostile(partial(file, "a.txt", canary), "invalid_utf8"),
    "pickle as jsonl": Hostile(partial(file, "a.jsonl", canary), "invalid_utf8"),
    "pickle as parquet": Hostile(partial(file, "a.parquet", canary), "broken_parquet"),
    "pickle as arrow": Hostile(partial(file, "a.arrow", canary), "broken_arrow"),
    "pickle in gzip": Hostile(partial(file, "a.txt.gz", lambda folder: gzip.compress(canary(folder))), "invalid_utf8"),
    "pickle by its own name": Hostile(partial(file, "a.pkl", canary), ".pkl"),
    "gzip bomb": Hostile(partial(packed, "a.txt.gz", lambda: zlib.compressobj(9, wbits=31)), "archive_bomb"),
    "zstd bomb": Hostile(partial(packed, "a.txt.zst", zstd.ZstdCompressor), "archive_bomb"),
    "bz2 bomb": Hostile(partial(packed, "a.txt.bz2", bz2.BZ2Compressor), "archive_bomb"),
    "xz bomb": Hostile(partial(packed, "a.txt.xz", lambda: lzma.LZMACompressor(preset=0)), "archive_bomb"),
    "Parquet bomb": Hostile(parquet_bomb, "archive_bomb"),
    "Arrow bomb": Hostile(arrow_bomb, "archive_bomb"),
    "PNG bomb": Hostile(partial(png_bomb, 60_000), "too_many_pixels", "images"),
    "PNG of few bytes": Hostile(partial(png_bomb, 8_000), "truncated_image", "images"),
    "tar that leads elsewhere": Hostile(tar, "(no regular file in a tar)", "images"),
    "pickle as image": Hostile(partial(file, "class/a.png", canary), "not_an_image", "images"),
    "pickle as tar": Hostile(partial(file, "a.tar", lambda folder: canary(folder) * 100), "broken_tar", "images"),
    "not UTF-8": Hostile(partial(file, "a.txt", bad_line), "invalid_utf8"),
    "line of 100 MB": Hostile(long_line, "line_too_long"),
    "deep JSON": Hostile(deep, "broken_json"),
    "deep HTML": Hostile(partial(file, "a.html", lambda _: b"<div>" * 300_000 + b"text"), ""),
    "open quote": Hostile(partial(file, "a.csv", lambda _: b'text\n"' + b"never closed\n" * 200_000), "broken_csv"),
    "named pipe": Hostile(partial(special, "fifo"), "unreadable"),
    "socket": Hostile(partial(special, "socket"), "unreadable"),
    "link to /dev/zero": Hostile(partial(special, "/dev/zero"), "(outside the folder)"),
    "link to /proc/self/mem": Hostile(partial(special, "/proc/self/mem"), "(outside the folder)"),
    "odd names": Hostile(names, ".xyz"),
    "folder in itself": Hostile(loop, "(linked folder)"),
    "closed file": Hostile(unreadable, "unreadable", bound=True),
}  # fmt: skip
ALONE: dict[str, tuple[Callable[[Path], None], str]] = {
    "named pipe": (partial(special, "fifo"), "2 The source"),
    "/dev/zero": (partial(special, "/dev/zero"), "2 The source"),
    "folder of nothing": (Path.mkdir, "2 The source"),
    "pickle": (
        lambda path: path.write_bytes(pickled(path.parent / "canary")),
        "2 Nothing is left of 1 documents: 1 invalid_utf8",
    ),
}
READERS: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "tensors that overlap": (partial(header_of, safetensors(OVERLAP, 24)), "65 not a safetensors file"),
    "tensors below zero": (partial(header_of, safetensors(BELOW_ZERO, 16)), "65 not a safetensors file"),
    "a header of 2^62 bytes": (partial(header_of, safetensors({}, 8, 1 << 62)), "65 not a safetensors file"),
    "recipe of aliases": (partial(recipe_of, ALIASES), "hostile.yaml"),
    "recipe of an object": (
        partial(recipe_of, b"a: !!python/object/apply:os.system ['touch canary']\n"),
        "hostile.yaml",
    ),
    "XML of entities": (entities, "declares an entity"),
}


def trials() -> list[Trial]:
    found = [Trial("F13", "corpus", name, 3.0, partial(among_good, one)) for name, one in AMONG.items()]
    found += [Trial("F13", "source", name, 1.5, partial(alone, "hostile", *one)) for name, one in ALONE.items()]
    return found + [Trial("F13", "reader", name, 1.0, partial(refused, *one)) for name, one in READERS.items()]
