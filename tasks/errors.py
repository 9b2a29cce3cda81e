"""What can go wrong, and the exit status that a program sees.

Every message is one sentence: what is wrong, where (file, line, key), what to do.
The numbers follow sysexits.h where it has a fitting one (65, 69, 71, 73, 74, 75), and timeout(1) for 124.
"""

import errno
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Any


class MaskmillError(Exception):
    """An error that maskmill can explain. What it says shows no secrets, wherever it is written down."""

    exit_code = 1

    def __str__(self) -> str:
        return without_secrets(super().__str__())


class UsageError(MaskmillError):
    """Wrong use or configuration: a source that does not exist, an unknown key, an empty corpus."""

    exit_code = 2


class DataError(MaskmillError):
    """Bad or damaged data: a file whose bytes are not those of its manifest, books that do not balance."""

    exit_code = 65


class UnreachableError(MaskmillError):
    """A server or a network that does not answer; it may a little later. Prefect tries such a stage again."""

    exit_code = 69


class MemoryExhausted(MaskmillError):
    """Out of host or device memory."""

    exit_code = 71


class HeldError(MaskmillError):
    """Another run holds what this one wants to make."""

    exit_code = 73


class DiskError(MaskmillError):
    """A disk that fails."""

    exit_code = 74


class DiskFullError(DiskError):
    """No space left where an artifact is being written."""


class InterruptedRun(MaskmillError):
    """Stopped from outside; the same command goes on from where it stopped."""

    exit_code = 75


class StageTimeout(MaskmillError):
    """A stage that took longer than it may."""

    exit_code = 124


class NumericError(MaskmillError):
    """A loss or a gradient that is not finite."""

    exit_code = 78


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """A library in Rust that gives up raises what is no Exception: its words come as a RuntimeError."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # its class has no module to be had from
            raise
        raise RuntimeError(str(error)) from error


EXIT_CODES = {
    0: "done",
    1: "internal error",
    2: "wrong use or config",
    65: "bad or damaged data",
    69: "unreachable, try again later",
    71: "out of memory",
    73: "held by another run",
    74: "disk full or failing",
    75: "interrupted, run it again",
    78: "numeric failure",
    124: "a stage took longer than its timeout",
}


NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FAILING = (errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.EUCLEAN, errno.EBADMSG)
"""What a disk, or the server of a file system, says when it fails."""


def of_disk(error: BaseException, where: object, kept: str = "finished work is kept") -> DiskError | None:
    """What the system says of a disk as one of our errors; None for anything else.

    where       the file, where the system does not name it
    kept        what is not lost
    """
    if not isinstance(error, OSError):
        return None
    where = error.filename or where
    if error.errno in NO_SPACE:
        return DiskFullError(f"No space left for {where}; free some and run again: {kept}.")
    if error.errno in FAILING:
        why = os.strerror(error.errno)
        return DiskError(f"The disk fails at {where} ({why}); look after it and run again: {kept}.")
    return None


NO_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "can't start new thread",
    "cannot join thread before it is started",
    "failed to map segment",
    "bad_alloc",
    "error return without exception set",
    "returned null without setting an exception",
)
"""What torch, the system, Python, the loader of libraries and C++ say where no memory is left, in small letters.

The last two are SystemErrors of CPython 3.11, where the frame of a call finds no memory: no error is set then.
"""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Does the system's refusal to give memory lie behind this error? Libraries say so in many ways.

    Python raises a MemoryError, torch a RuntimeError or, for a device, a kind of its own, a library that is loaded only
    now an ImportError or, by ctypes, an OSError without a number, and others wrap these. No more processes or threads
    is counted as no memory. A stream that would block raises a BlockingIOError too, with other words.
    """
    while error is not None and not isinstance(error, MaskmillError):  # ours say themselves what they are
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return True
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return True
        if isinstance(error, BlockingIOError) and error.strerror == os.strerror(errno.EAGAIN):  # of fork
            return True
        if isinstance(error, (RuntimeError, ImportError, OSError, SystemError)) and any(
            word in str(error).lower() for word in NO_MEMORY
        ):
            return True
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False


LAST_WORDS = b"\nError: Out of memory, a thread could not begin; run again when more is free, or on a larger machine.\n"


def end_without_threads() -> None:
    """From now on the process ends (71) where a thread of it has no memory to begin.

    CPython 3.11 tells sys.unraisablehook, and who started the thread waits for it for ever (threading.Thread.start). A
    hook in Python cannot be called there: the thread has no memory for a frame either. One in C can, and another thread
    reads what it was told. What is on the disk is whole at any instant, as after a kill.
    """
    told: SimpleQueue[Any] = SimpleQueue()
    with suppress(RuntimeError, MemoryError):
        threading.Thread(target=_listen, args=(told,), name="unraisable", daemon=True).start()
        sys.unraisablehook = told.put


def _listen(told: "SimpleQueue[Any]") -> None:
    while True:
        unraisable = told.get()
        if unraisable.exc_type is MemoryError and "in thread started by" in (unraisable.err_msg or ""):
            os.write(2, LAST_WORDS)
            os._exit(MemoryExhausted.exit_code)
        sys.__unraisablehook__(unraisable)
        del unraisable


HIDDEN = "?…"
"""What stands for the query of an address."""


_NAMED = re.compile(
    r"\b((?:[A-Z][A-Z0-9_]*_)?(?:TOKEN|KEY|SECRET|PASSWORD)(?:=['\"]?|['\"]\s*:\s*['\"]))[^\s'\",;}\]]+"
)
_HEADER = re.compile(r"\b(authorization['\"]?\s*[:=]\s*['\"]?\w+\s+|bearer\s+(?=\S{16}))[\w.~+/-]+=*", re.IGNORECASE)


def without_secrets(text: str) -> str:
    """A text whose addresses show no user, password and query, and that shows nothing of what follows ..._TOKEN=,
    ..._KEY=, ..._SECRET=, ..._PASSWORD= or Authorization: Bearer, Basic."""
    text = re.sub(r"://[^/@\s]*@", "://…@", text)
    text = _HEADER.sub(r"\1…", _NAMED.sub(r"\1…", text))
    return without_queries(text)


def without_queries(text: str) -> str:
    """A text whose addresses show no query: it may hold a signature, a key or a password."""
    return re.sub(r"(://[^\s?'\"]*)\?[^\s'\"]*=[^\s'\"]*", rf"\1{HIDDEN}", text)
