"""The shim (shim.c) from Python: what is to happen at which system call, and what calls there were."""

import ctypes
import errno
import mmap
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).with_name("shim.c")
ACTIONS = ("nothing", "kill", "kill one", "tear", "fail", "short", "kill after")
OPERATIONS = ("create", "truncate", "write", "rename", "link", "unlink", "mkdir", "rmdir", "fsync")
LAYOUT = struct.Struct("<QQiiiiii4096s4096s")
RECORD = struct.Struct("<IIqqIIII")


def compiler() -> str | None:
    """Where there is none, what needs the shim is left out, with that reason."""
    return shutil.which("cc") or shutil.which("gcc")


def compiled(folder: Path) -> Path:
    """The shim as a library in the folder; the same source is compiled once."""
    library = folder / f"shim-{sha256(SOURCE.read_bytes()).hexdigest()[:12]}.so"
    if not library.exists():
        cc = compiler()
        assert cc, "the shim needs a C compiler"
        draft = library.with_suffix(f".{os.getpid()}")
        subprocess.run([cc, "-shared", "-fPIC", "-O1", "-o", str(draft), str(SOURCE), "-ldl"], check=True)
        draft.rename(library)
    return library


@dataclass(frozen=True)
class Order:
    """What is to happen."""

    action: str = "nothing"
    at: int = 0
    """At which call, from 1."""
    error: int = 0
    """errno, where the call is to fail."""
    persistent: bool = False
    """At every later call, too."""
    log: int = 0
    """0 none, 1 names, 2 names and data."""

    def __str__(self) -> str:
        what = errno.errorcode[self.error] if self.error else self.action
        return f"{what} {'from' if self.persistent else 'at'} call {self.at}"


@dataclass(frozen=True)
class Seen:
    """What the shim saw."""

    calls: int
    hits: int
    dead: bool


@dataclass(frozen=True)
class Call:
    """A line of the log."""

    operation: str
    pid: int
    offset: int
    result: int
    first: str
    """The name; of a rename the old one."""
    second: str
    """The new name."""
    data: bytes


def write_order(path: Path, root: Path, order: Order) -> None:
    """The file that processes share. root: only calls below it count. The log lies beside it, as .log."""
    numbers = (order.at, ACTIONS.index(order.action), order.error, int(order.persistent), 0, 0, order.log)
    names = (os.fsencode(os.path.realpath(root)), os.fsencode(path.with_suffix(".log")))
    path.write_bytes(LAYOUT.pack(0, *numbers, *names))


def read_seen(path: Path) -> Seen:
    count, _, _, _, _, dead, hits, *_ = LAYOUT.unpack(path.read_bytes()[: LAYOUT.size])
    return Seen(count, hits, bool(dead))


def calls(path: Path) -> Iterator[Call]:
    """The log of an order, in its order."""
    log = path.with_suffix(".log")
    if not log.exists() or not log.stat().st_size:
        return
    with open(log, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        at = 0
        while at + RECORD.size <= len(whole):
            operation, pid, offset, result, first, second, data, _ = RECORD.unpack_from(whole, at)
            at += RECORD.size
            parts = []
            for length in (first, second, data):
                parts.append(whole[at : at + length])
                at += length
            names = [os.fsdecode(part) for part in parts[:2]]
            yield Call(OPERATIONS[operation], pid, offset, result, *names, parts[2])


def arm(path: Path) -> None:
    """From here on this process and those that it starts are under the order. It was started with the shim."""
    os.environ["FAULTS_CONTROL"] = str(path)
    if ctypes.CDLL(None).faults_arm(os.fsencode(path)):
        raise OSError(f"{path} is no order")
