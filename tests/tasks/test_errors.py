"""Which errors stand for which exit status. pytest tests/tasks/test_errors.py"""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.errors import DataError, is_out_of_memory

ROOT = Path(__file__).parents[2]


def behind(error, cause):
    """An error raised because of another one, as a library that wraps it does."""
    try:
        raise error from cause
    except type(error) as wrapped:
        return wrapped


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError(), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), True),
        (BlockingIOError(errno.EAGAIN, "write could not complete without blocking"), False),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (RuntimeError("can't start new thread"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("cannot join thread before it is started"), True),
        (SystemError("error return without exception set"), True),
        (SystemError("<function _find_and_load at 0x7f> returned NULL without setting an exception"), True),
        (OSError("libgomp.so.1: failed to map segment from shared object"), True),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), True),
        (behind(ValueError("a library says something else"), MemoryError()), True),
        (behind(DataError("names what is wrong"), MemoryError()), False),
        (behind(ValueError("after one that was dealt with"), None), False),
        (RuntimeError("shape mismatch"), False),
        (SystemError("bad argument to internal function"), False),
        (OSError(errno.ENOENT, "No such file"), False),
    ],
)
def test_a_refusal_of_memory_is_known_whoever_tells_of_it(error, is_one):
    assert is_out_of_memory(error) is is_one


def test_a_thread_without_memory_to_begin_ends_the_process():
    """CPython would wait for it for ever."""
    script = """
import _thread, time
from tasks.errors import end_without_threads
end_without_threads()
def begin():
    raise MemoryError
_thread.start_new_thread(begin, ())
time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert done.returncode == 71 and done.stderr.startswith("\nError: Out of memory, a thread could not begin")
