"""A tar of images, read from its beginning to its end: also where it is packed, or behind a URL.

Each header is looked at by itself (tarfile parses it), so that a bad one loses only its member: the next good one is
looked for. No member is written to disk; links, devices and the like are not followed but counted. A member is held in
memory only where its size is within the limits.
"""

import tarfile
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import PurePosixPath

from . import archives
from .image_decoding import ImageLimits
from .image_sources import ImageFile, ImageSource, kind_of
from .image_streams import Event, Misplaced, Picture, Stream, printable
from .streams import Reject, first_line

BLOCK = 512
NAME_BYTES = 1 << 16
"""A longer name, or more of what a tar says of a member, is refused."""
REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
WITHOUT_DATA = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
)
ABOUT_NEXT = (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
ABOUT = (*ABOUT_NEXT, tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE)
"""Types of members that are no members, but say something of the next one, or of all."""


def tar(file: ImageFile, source: ImageSource, limits: ImageLimits, unread: Counter[str]) -> Iterator[Event]:
    """The images of a tar, and of those that were put behind it. Memory: one member."""
    stream = Stream(archives.unpacked(file.item, limits.unpacking()))
    members, name, ended, cut = 0, "", False, False
    bad: Reject | None = None
    while len(block := stream.read(BLOCK)) == BLOCK:
        ended = not block.strip(b"\0")
        info = None if ended else _header(block)
        if isinstance(info, str):
            start, size, why = (bad.offset, bad.bytes, bad.detail) if bad else (stream.at - BLOCK, 0, info)
            bad = Reject("broken_tar", start, size + BLOCK, None, why)
            continue
        if bad:
            yield bad
            bad = None
        if info is None:
            continue
        if info.type in ABOUT_NEXT:
            name = (yield from _name(stream, info)) or name
            continue
        if info.type in ABOUT:
            stream.skip(_padded(info.size))
            continue
        members += 1
        if members > limits.archive_members:
            yield Reject("too_many_members", stream.at - BLOCK, 0, None, f"more than {limits.archive_members}")
            return
        cut = yield from _member(stream, info, name or info.name, file, source, limits, unread)
        name = ""
    if bad:
        yield bad
    if stream.damage:
        yield stream.damage
    elif members and not ended and not cut:
        yield Reject("truncated_tar", stream.at - len(block), len(block), None, "ends without its end mark")


def _header(block: bytes) -> tarfile.TarInfo | str:
    """What a block says of the member behind it; in words what is wrong where it is no header."""
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError, OverflowError) as error:
        return f"no header of a member: {first_line(error)}"
    return info if info.size >= 0 else "no header of a member: a size below zero"


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _name(stream: Stream, info: tarfile.TarInfo) -> Generator[Event, None, str]:
    """The name that a GNU or PAX header gives the next member; "" where it gives none."""
    if info.size > NAME_BYTES:
        yield Reject("broken_tar", stream.at - BLOCK, info.size, None, f"a name of {info.size} bytes")
        stream.skip(_padded(info.size))
        return ""
    data = stream.read(_padded(info.size))[: info.size]
    if info.type == tarfile.GNUTYPE_LONGNAME:
        return data.rstrip(b"\0").decode("utf-8", "surrogateescape")
    found = ""
    while data:  # lines of "LENGTH KEY=VALUE\n"
        length, _, _ = data.partition(b" ")
        size = int(length) if length.isdigit() and len(length) < 8 else 0
        if not len(length) < size <= len(data):
            break
        key, _, value = data[len(length) + 1 : size - 1].partition(b"=")
        found = value.decode("utf-8", "surrogateescape") if key == b"path" else found
        data = data[size:]
    return found


def _member(
    stream: Stream,
    info: tarfile.TarInfo,
    name: str,
    file: ImageFile,
    source: ImageSource,
    limits: ImageLimits,
    unread: Counter[str],
) -> Generator[Event, None, bool]:
    """The image of a member, if it is one; the value says whether the tar ends inside it."""
    path, at = PurePosixPath(name), stream.at
    place = "#" + printable(name)
    why = _why_not(info, path)
    if why or info.size > limits.file_bytes:
        gone = stream.skip(0 if info.type in WITHOUT_DATA else _padded(info.size))
        if info.type == tarfile.DIRTYPE:
            return False
        if why:
            unread[why] += 1
        else:
            detail = f"{info.size} bytes, more than {limits.file_bytes}"
            yield Misplaced(Reject("file_too_large", at, min(info.size, gone), None, detail), place)
        return False
    data = stream.read(info.size)
    stream.skip(_padded(info.size) - info.size)
    if len(data) < info.size:
        detail = f"ends after {len(data)} of the {info.size} bytes of {name[:200]}"
        yield Misplaced(Reject("truncated_tar", at, len(data), None, detail), place)
        return True
    label = None if source.labels == "none" else (path.parent.name or file.folder)
    yield Picture(data, len(data), at, place, label and printable(label), "folder" if label else "")
    return False


def _why_not(info: tarfile.TarInfo, path: PurePosixPath) -> str:
    """Why a member is passed over; "" where it is an image by its name."""
    if info.type not in REGULAR:
        return "(no regular file in a tar)"
    if any(part.startswith(".") for part in path.parts if part not in (".", "..")):
        return "(hidden)"
    return "" if kind_of(path.name) == "image" else f"{path.suffix.lower() or '(no suffix)'} in a tar"
