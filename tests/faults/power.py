"""F15: the power goes, and the disk has only what was forced to it (and what it happened to write of the rest).

A kill cannot show a missing fsync: the page cache survives it. So the calls of a stage are recorded with their data
(shim.c), and from the record the states are made that a power cut after the k-th call may leave:

    least    names and bytes that were fsynced (a file's by itself, a name's by its folder); POSIX promises no more
    names    all names, but of bytes only what was fsynced: the zero-length files of journalling file systems
    bytes    all bytes, but of names only those that were fsynced
    mixed    names as of a moment since the last fsync (a journal keeps their order), and of each file nothing, all or a
             beginning of what was not fsynced, before what was there; seeded

From each state: nothing that has a final name is damaged, and the same command ends in the artifacts of an undisturbed
run. After the last call, when the stage has reported success, its artifact is there even in the least state.

The idea is that of ALICE (Pillai et al., OSDI 2014) and CrashMonkey (Mohan et al., OSDI 2018).
"""

import os
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path

from tests.faults import injector, mill, stand
from tests.faults.calls import COST, REGISTER_EVERY, again
from tests.faults.injector import Call, Order
from tests.faults.stand import Stand
from tests.faults.trial import Failed, Outcome, Trial

KINDS = ("least", "names", "bytes", "mixed")


@dataclass(eq=False)
class File:
    """Bytes as programs see them, and as they are on the disk."""

    seen: bytearray = field(default_factory=bytearray)
    kept: bytes = b""


@dataclass(eq=False)
class Folder:
    """Names as programs see them, and as they are on the disk."""

    seen: "dict[str, File | Folder]" = field(default_factory=dict)
    kept: "dict[str, File | Folder]" = field(default_factory=dict)


def loaded(path: Path) -> Folder:
    """A folder on a disk that has had time."""
    found = Folder()
    for entry in path.iterdir():
        if entry.is_dir():
            found.seen[entry.name] = loaded(entry)
        else:
            data = entry.read_bytes()
            found.seen[entry.name] = File(bytearray(data), data)
    found.kept = dict(found.seen)
    return found


class Disk:
    """What calls do to a folder, below the path that they name it by."""

    def __init__(self, root: Folder, path: str) -> None:
        self.root, self.path = root, path

    def at(self, name: str) -> tuple[Folder, str] | None:
        """The folder that holds a name, and the last part of it; None for what is not there any more."""
        if name == self.path:
            return None
        *folders, last = os.path.relpath(name, self.path).split("/")
        here = self.root
        for part in folders:
            below = here.seen.get(part)
            if not isinstance(below, Folder):
                return None
            here = below
        return here, last

    def apply(self, call: Call) -> None:
        if call.result < 0:
            return
        if call.operation == "fsync" and call.first == self.path:
            self.root.kept = dict(self.root.seen)
        place = self.at(call.first)
        if place is None:
            return
        folder, name = place
        thing = folder.seen.get(name)
        if call.operation == "create":
            folder.seen.setdefault(name, File())
        elif call.operation == "mkdir":
            folder.seen.setdefault(name, Folder())
        elif call.operation in ("unlink", "rmdir"):
            folder.seen.pop(name, None)
        elif call.operation in ("rename", "link"):
            target = self.at(call.second)
            if target and thing is not None:
                target[0].seen[target[1]] = thing
                if call.operation == "rename":
                    del folder.seen[name]
        elif isinstance(thing, Folder):
            if call.operation == "fsync":
                thing.kept = dict(thing.seen)
        elif thing is not None:
            _change(thing, call)


def _change(file: File, call: Call) -> None:
    if call.operation == "fsync":
        file.kept = bytes(file.seen)
    elif call.operation == "truncate":
        del file.seen[call.offset :]
        file.seen.extend(bytes(call.offset - len(file.seen)))
    elif call.operation == "write":
        file.seen.extend(bytes(max(call.offset - len(file.seen), 0)))
        file.seen[call.offset : call.offset + len(call.data)] = call.data


Names = dict[str, "File | None"]
"""Path -> file, or None for a folder."""


def _names(folder: Folder, kept: bool, before: str = "") -> Iterator[tuple[str, "File | None"]]:
    for name, thing in (folder.kept if kept else folder.seen).items():
        yield f"{before}{name}", thing if isinstance(thing, File) else None
        if isinstance(thing, Folder):
            yield from _names(thing, kept, f"{before}{name}/")


def state(start: Path, path: str, calls: list[Call], kind: str, seed: int) -> dict[str, bytes | None]:
    """What the disk holds when the power goes after these calls: path -> bytes, or None for a folder.

    start   the folder before the calls, wherever it lies now
    path    the name by which the calls know it
    """
    disk, chance = Disk(loaded(start), path), random.Random(seed)
    forced = max((number for number, call in enumerate(calls, 1) if call.operation == "fsync"), default=0)
    moment = chance.randint(forced, len(calls)) if kind == "mixed" else len(calls)
    for call in calls[:moment]:
        disk.apply(call)
    names: Names = dict(_names(disk.root, kept=kind in ("least", "bytes")))
    for call in calls[moment:]:
        disk.apply(call)
    return {name: None if file is None else _bytes(file, kind, chance) for name, file in names.items()}


def _bytes(file: File, kind: str, chance: random.Random) -> bytes:
    if kind == "bytes":
        return bytes(file.seen)
    if kind != "mixed" or file.kept == file.seen:
        return file.kept
    torn = chance.randint(0, len(file.seen))
    return chance.choice((file.kept, bytes(file.seen), bytes(file.seen[:torn]) + file.kept[torn:]))


def write(found: dict[str, bytes | None], home: Path) -> None:
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    for name, data in sorted(found.items()):
        if data is None:
            (home / name).mkdir(parents=True, exist_ok=True)
        else:
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_bytes(data)


# Trials.


def recorded(there: Stand, stage: str, mutant: str | None = None) -> list[Call]:
    """The calls of a stage with their data; recorded once."""
    recording = f"{stage}, {mutant}"
    if recording not in there.recorded:
        there.before(stage)
        done = there.run(stage, Order(log=2), mutant=mutant)
        assert done.status == 0 and done.order, done.said
        there.recorded[recording] = list(injector.calls(done.order))
    return there.recorded[recording]


def trials(of: str = "texts", stages: Sequence[str] = mill.STAGES, each: int = 1) -> list[Trial]:
    """A trial for each state that differs from those before it; each: after each so manieth call."""
    found, there = [], stand.here(of)
    for stage in stages:
        calls = recorded(there, stage)
        every = each * (REGISTER_EVERY if stage == "register" else 1)
        for at in (*range(1, len(calls), every), len(calls)):
            for kind in KINDS if at % 3 == 0 or at == len(calls) else KINDS[:2]:
                run = partial(_run, stage=stage, at=at, kind=kind, of=of)
                found.append(
                    Trial("F15", mill.place(stage, of), f"power off after call {at}, {kind}", COST[stage] * 0.8, run)
                )
    return found


def _run(_: Path, stage: str, at: int, kind: str, mutant: str | None = None, of: str = "texts") -> Outcome:
    there = stand.here(of)
    calls = recorded(there, stage, mutant)
    at = len(calls) if at >= len(calls) else at
    there.before(stage)
    found = state(there.home, str(there.home), calls[:at], kind, seed=at)
    key = sha256(repr(sorted((name, data) for name, data in found.items())).encode()).hexdigest()
    if key in there.states and not mutant and at < len(calls):
        return Outcome("recovered", note="as another state")
    write(found, there.home)
    if findings := mill.broken(there.home):
        raise Failed("silent", f"{findings}")
    if at == len(calls):
        _check_kept(there, stage, kind)
    again(there, stage, set(), mutant=mutant)
    there.states.add(key)
    return Outcome("recovered")


def _check_kept(there: Stand, stage: str, kind: str) -> None:
    """Success was reported: the stage's artifact, and the version, are on the disk."""
    expected = there.reference["digests"][stage]
    if expected not in mill.on_disk(there.home, stage):
        raise Failed("lost", f"{stage} reported success, and its artifact is not on the disk ({kind})")
    if stage == "register" and (found := there.look()["versions"]) != there.reference["versions"]:
        raise Failed("lost", f"the registry has {found} ({kind})")
