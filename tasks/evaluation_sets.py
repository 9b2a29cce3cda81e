"""Evaluation sets in files: which files, their lines, and which of them were left out.

A line that cannot be used never loses the others: it is counted by reason, and the first of each reason is named.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from .errors import UsageError

_NAME = re.compile(r"[a-z0-9_.\-]+")


@dataclass
class LeftOut:
    """Examples that were left out."""

    counts: Counter[str] = field(default_factory=Counter)
    """By reason: "not_json"."""
    first: dict[str, str] = field(default_factory=dict)
    """Where the first of a reason stands: "zorro.jsonl, line 7"."""

    def add(self, reason: str, path: Path, line: int) -> None:
        self.counts[reason] += 1
        self.first.setdefault(reason, f"{path.name}, line {line}")

    def __str__(self) -> str:
        """2 not json (the first: zorro.jsonl, line 7), 1 empty (…)"""
        return ", ".join(
            f"{number:,} {reason.replace('_', ' ')} (the first: {self.first[reason]})"
            for reason, number in sorted(self.counts.items())
        )


def check_name(name: str, key: str) -> None:
    """Raises UsageError for a name that cannot be a part of a metric's name."""
    if not _NAME.fullmatch(name):
        raise UsageError(f'{key}: the name {name!r} may hold only small letters, digits, "_", "-" and "."; change it.')


def files_of(patterns: Iterable[str], name: str) -> list[Path]:
    """The files of an evaluation set, sorted, each once; patterns as of the shell, "**" too.

    Raises UsageError for a pattern that no file fits.
    """
    found: set[Path] = set()
    for pattern in patterns:
        path = Path(pattern)
        some = [path] if path.exists() or not has_magic(pattern) else map(Path, glob(pattern, recursive=True))
        fitting = [one for one in some if one.is_file()]
        if not fitting:
            why = "is a folder; name its files, as in folder/*.jsonl" if path.is_dir() else "is no file; correct it"
            raise UsageError(f"evaluation set {name}: {pattern} {why}.")
        found.update(fitting)
    return sorted(found)


def lines_of(path: Path) -> list[str | None]:
    """The lines of a file, without their ends and a byte order mark; None for one that is not UTF-8.

    Raises UsageError where it cannot be read.
    """
    try:
        data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); correct the evaluation set.") from None
    lines = [_decoded(line.removesuffix(b"\r")) for line in data.split(b"\n")]
    while lines and lines[-1] is not None and not lines[-1].strip():
        lines.pop()
    return lines


def _decoded(line: bytes) -> str | None:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        return None


def objects_of(path: Path, left_out: LeftOut) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of a JSONL file; a line that is none is counted: not_utf8, empty, not_json."""
    for number, line in enumerate(lines_of(path), 1):
        if line is None:
            left_out.add("not_utf8", path, number)
        elif not line.strip():
            left_out.add("empty", path, number)
        else:
            try:
                found = json.loads(line)
            except (ValueError, RecursionError):
                found = None
            if isinstance(found, dict):
                yield number, found
            else:
                left_out.add("not_json", path, number)


def is_text(value: object) -> bool:
    """Whether it is a string that UTF-8 can hold: JSON can spell half of a surrogate pair."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)
