"""What readers of images have in common: bytes one after the other, and images as they stand in a file."""

from collections.abc import Iterator
from dataclasses import dataclass

from .image_decoding import Pixels
from .streams import Broken, Reject


@dataclass(frozen=True, slots=True)
class Picture:
    """An image as it stands in a file."""

    data: bytes | Pixels
    """Of a PNG or JPEG; or pixels (H, W, C)."""
    size: int
    """In bytes, as it is stored."""
    offset: int = 0
    """Where it begins in the (unpacked) file, or its row."""
    place: str = ""
    """#number or #member inside the file."""
    label: str | None = None
    origin: str = ""
    """Where its label comes from: a file, a folder, a column; "" where it has none."""


@dataclass(frozen=True)
class Misplaced:
    """A picture's place, where it is refused before it is one."""

    reject: Reject
    place: str


Event = Picture | Misplaced | Reject


@dataclass(frozen=True)
class Slice:
    """Images [first, stop) of an IDX file; stop None for all to the end."""

    first: int = 0
    stop: int | None = None


class Stream:
    """Bytes one after the other. Damage in the packed file looks like its end, and stands in `damage`."""

    def __init__(self, chunks: Iterator[bytes], at: int = 0) -> None:
        self.chunks, self.rest, self.at = chunks, memoryview(b""), at
        self.damage: Reject | None = None

    def read(self, size: int) -> bytes:
        """The next bytes; fewer at the end."""
        parts, wanted = [], size
        while wanted and self._fill():
            parts.append(self.rest[:wanted])
            self.rest = self.rest[len(parts[-1]) :]
            wanted -= len(parts[-1])
        self.at += size - wanted
        return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)

    def skip(self, size: int) -> int:
        """Passes over bytes, and says how many there were."""
        wanted = size
        while wanted and self._fill():
            gone = min(wanted, len(self.rest))
            self.rest = self.rest[gone:]
            wanted -= gone
        self.at += size - wanted
        return size - wanted

    def _fill(self) -> bool:
        try:
            while not self.rest:
                self.rest = memoryview(next(self.chunks))
        except StopIteration:
            return False
        except Broken as broken:
            self.damage = broken.reject
            return False
        return True


def printable(name: str) -> str:
    """File names are bytes; those that are not UTF-8 are written with backslashes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
