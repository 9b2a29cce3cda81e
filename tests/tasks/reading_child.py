"""Reads files in a process of its own, which says how much memory each took. Started by test_bad_input.py."""

import ctypes
import gc
import json
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa

from tasks.reading import documents
from tasks.streams import Document, Item, Limits


def memory(name: str) -> int:
    """MB, from /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text().split("\n") if line.startswith(name))
    return int(line.split()[1]) // 1024


def read(path: str, kind: str, more: dict) -> dict:
    state = Path(path).stat()
    stamp = (state.st_size, state.st_mtime_ns, state.st_ino, state.st_ctime_ns)
    item = Item(kind, path, Path(path).name, "0" * 64, state.st_size, stamp=stamp, **more)
    reasons: Counter[str] = Counter()
    number, first, last, longest = 0, "", "", 0
    for event in documents(item, Limits()):
        if isinstance(event, Document):
            number, last, longest = number + 1, event.text[-200:], max(longest, len(event.text))
            first = first or event.text[:200]
        else:
            reasons[event.reason] += 1
    return {"documents": number, "first": first, "last": last, "longest": longest, "reasons": reasons}


def main() -> None:
    import trafilatura  # noqa: F401  (its own size is not what is measured)

    for line in sys.stdin:
        gc.collect()
        pa.default_memory_pool().release_unused()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = memory("VmRSS")
        found = read(*json.loads(line))
        print(json.dumps(found | {"peak": memory("VmHWM") - before}), flush=True)


if __name__ == "__main__":
    main()
