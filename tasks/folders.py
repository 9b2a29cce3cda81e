"""Local files: one file, a folder with all that is below it, or a glob. Every file that is passed over is counted.

Names that begin with a dot and links to folders are passed over: so no walk goes round in circles. A link to a file
outside the folder is, too: a folder that somebody else filled shall not hand out other files of this machine.
"""

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from glob import has_magic
from pathlib import Path

from .errors import UsageError

HIDDEN, LINKED, OUTSIDE, CLOSED = "(hidden)", "(linked folder)", "(outside the folder)", "(unreadable folder)"
PASSED_OVER = (HIDDEN, LINKED, OUTSIDE, CLOSED)
KINDS = {
    stat.S_ISFIFO: "a named pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}
ALL = ("**",)
Parts = tuple[str, ...]


@dataclass
class Found:
    """The files of a source, in the order of their names, those of a folder before those of its folders."""

    root: Path
    """What their names start at; the file itself where it is one."""
    files: list[Path] = field(default_factory=list)
    passed: Counter[str] = field(default_factory=Counter)
    """Why -> how many were passed over."""


def expanded(path: str) -> str:
    """A path with ~ and ~user as the shell has them; as it is where there is no such user, or can be none."""
    with suppress(ValueError):  # a name with a NUL
        return os.path.expanduser(path)
    return path


def find(uri: str) -> Found:
    """Raises UsageError where there is nothing, or neither a file nor a folder."""
    path = Path(expanded(uri))
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        root = static_part(path)
        if not has_magic(uri) or not os.path.isdir(root):
            raise UsageError(f"The source {uri} {_why(path, error)}; give a file, a folder or a quoted glob.") from None
        return _walk(root, path.parts[len(root.parts) :])
    if stat.S_ISREG(mode):
        return Found(path, [path])
    if stat.S_ISDIR(mode):
        return _walk(path, ALL)
    what = next((name for test, name in KINDS.items() if test(mode)), "neither a file nor a folder")
    raise UsageError(f"The source {uri} is {what}; write what it holds to a file and give that.")


def static_part(pattern: Path) -> Path:
    """The folder before the first part with a wildcard."""
    parts = pattern.parts
    first = next((number for number, part in enumerate(parts) if has_magic(part)), len(parts))
    return Path(*parts[:first])


def _walk(root: Path, pattern: Parts) -> Found:
    found = Found(root)
    home = Path(os.path.realpath(root))

    def closed(error: OSError) -> None:
        found.passed[CLOSED] += 1

    for folder, folders, files in os.walk(root, onerror=closed):
        parts = Path(folder).relative_to(root).parts
        inside = [name for name in sorted(folders) if _leads_to((*parts, name), pattern)]
        folders[:] = list(_taken(Path(folder), inside, lambda path: LINKED if os.path.islink(path) else "", found))
        chosen = [name for name in sorted(files) if _matches((*parts, name), pattern)]
        taken = _taken(Path(folder), chosen, lambda path: OUTSIDE if _is_outside(path, home) else "", found)
        found.files += [Path(folder, name) for name in taken]
    return found


def _taken(folder: Path, names: list[str], refused: Callable[[Path], str], found: Found) -> Iterator[str]:
    for name in names:
        why = HIDDEN if name.startswith(".") else refused(folder / name)
        if why:
            found.passed[why] += 1
        else:
            yield name


def _is_outside(path: Path, home: Path) -> bool:
    return os.path.islink(path) and not Path(os.path.realpath(path)).is_relative_to(home)


def _matches(parts: Parts, pattern: Parts) -> bool:
    """Does the pattern name this file, or a folder that it lies in?"""
    if not pattern:
        return True
    if pattern[0] == "**":
        return any(_matches(parts[number:], pattern[1:]) for number in range(len(parts)))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _leads_to(parts: Parts, pattern: Parts) -> bool:
    """May a file below this folder match?"""
    for part, wanted in zip(parts, pattern):
        if wanted == "**":
            return True
        if not fnmatchcase(part, wanted):
            return False
    return True


def _why(path: Path, error: Exception) -> str:
    if isinstance(error, PermissionError):
        return "cannot be opened (permission denied)"
    if os.path.islink(path):
        return f"is a link to {os.readlink(path)}, which leads nowhere"
    return "does not exist"
