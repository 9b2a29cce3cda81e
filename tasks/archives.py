"""Bytes of a source file, unpacked and in UTF-8: the one place that opens and unpacks.

gzip, zstd, bz2 and xz are told by their magic bytes, never by a name; a file may have several members or frames. What
was unpacked before a damage is handed out, then Broken is raised:

    truncated_archive   the file ends before its end mark
    broken_archive      bytes that no packer wrote, a checksum that is off, or more memory asked for than MEMORY
    trailing_junk       something else follows the end (zeros behind gzip and xz are padding and fine)
    archive_bomb        it unpacks to more than `limits.archive_ratio` times its size
    not_an_archive      the name ends like an archive's, the bytes are none
    utf16               a byte order mark of UTF-16 or UTF-32, and no `encoding` that says so

The bytes shortly before a broken place may be wrong too: gzip, zstd and xz find out late. A block of bz2 with a wrong
checksum is gibberish from its first byte, so of that nothing is handed out.
Offsets count unpacked bytes; where in the packed file it happened stands in the detail.
"""

import bz2
import codecs
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import BinaryIO, Protocol

from backports import zstd

from . import remotes
from .streams import CHUNK, Broken, Item, Limits

COLUMNS = ("parquet", "arrow")
"""Kinds whose readers jump to and fro: they are not read packed once more."""
SUFFIXES = (".gz", ".gzip", ".zst", ".zstd", ".bz2", ".xz")
"""Names of packed files."""
FREE_EXPANSION = 64 << 20
"""Bytes that a file may unpack to, whatever its ratio."""
PIECE = 1 << 17
"""Packed bytes that are unpacked together."""
MEMORY = 128 << 20
"""What a window may take: all that `xz -9` and `zstd --long` ask for, and no more."""
NO_MEMORY = "not enough memory"
"""What zstd says where the machine has none (others raise MemoryError): a file cannot ask for more than MEMORY."""
END = 1 << 62
MARK = "\udcff"
"""Stands for bytes that are not of the file's encoding; comes out as the byte FF, which UTF-8 never has."""


class _Decoder(Protocol):
    """What the decoders of bz2, lzma and zstd have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int = -1, /) -> bytes: ...


class _Gzip:
    """zlib in the manner of the other three."""

    def __init__(self) -> None:
        self.inner = zlib.decompressobj(31)
        self.needs_input = True
        self.eof, self.unused_data = False, b""

    def decompress(self, data: bytes, max_length: int = -1, /) -> bytes:
        out = self.inner.decompress(self.inner.unconsumed_tail + data, max_length)
        self.needs_input = not self.inner.unconsumed_tail and len(out) < max_length
        self.eof, self.unused_data = self.inner.eof, self.inner.unused_data
        return out


@dataclass(frozen=True)
class _Codec:
    name: str
    decoder: Callable[[], _Decoder]
    starts: Callable[[bytes], bool]
    """Are these the first bytes of a member?"""
    padded: bool
    """May zeros follow the end?"""
    rescued: bool = True
    """Is what it gave right before a damage worth having?"""


def _starts_bz2(head: bytes) -> bool:
    # "BZh9" alone could begin a text; the magic of a block, or of the end of an empty file, follows it
    block = head[4:10] in (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90")
    return head[:3] == b"BZh" and head[3:4] in b"123456789" and block


def _starts_zstd(head: bytes) -> bool:
    return head[:4] == b"\x28\xb5\x2f\xfd" or (head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5)  # or skippable


WINDOW = {int(zstd.DecompressionParameter.window_log_max): MEMORY.bit_length() - 1}
CODECS = (
    _Codec("gzip", _Gzip, lambda head: head[:2] == b"\x1f\x8b", True),
    _Codec("zstd", lambda: zstd.ZstdDecompressor(options=WINDOW), _starts_zstd, False),
    _Codec("bz2", bz2.BZ2Decompressor, _starts_bz2, False, False),
    _Codec("xz", partial(lzma.LZMADecompressor, lzma.FORMAT_XZ, MEMORY), lambda head: head[:6] == b"\xfd7zXZ\0", True),
)
MAGIC = 10
"""Bytes that tell a codec."""


def open_item(item: Item) -> BinaryIO:
    """The file as it lies there, packed or not. Raises OSError; DataError where a remote one cannot be read."""
    return remotes.open_url(item.path, item.kind in COLUMNS) if item.remote else open(item.path, "rb")


def chunks(item: Item, limits: Limits) -> Iterator[bytes]:
    """The bytes of a file, unpacked, in UTF-8 where the item names another encoding. Raises Broken.

    Bytes that are not of that encoding come out as FF, so that only their line is refused. HTML is left as it is: a
    page names its encoding itself.
    """
    with open_item(item) as file:
        unpacked = _unpacked(file, item, limits)
        yield from unpacked if item.kind == "html" else _in_utf8(unpacked, item)


def unpacked(item: Item, limits: Limits) -> Iterator[bytes]:
    """The bytes of a file, unpacked, and otherwise as they are. Raises Broken."""
    with open_item(item) as file:
        yield from _unpacked(file, item, limits)


def _unpacked(file: BinaryIO, item: Item, limits: Limits) -> Iterator[bytes]:
    head = file.read(MAGIC)
    codec = next((codec for codec in CODECS if head and codec.starts(head)), None)
    if codec:
        yield from _members(_Packed(file, head), codec, item, limits)
        return
    name = item.path.partition("?")[0] if item.remote else item.path
    if name.lower().endswith(SUFFIXES):
        suffix = name.rpartition(".")[2]
        raise Broken("not_an_archive", f"the name ends in .{suffix}, but the bytes are not packed", 0, item.size)
    if head:
        yield head + file.read(CHUNK - len(head))
    yield from iter(lambda: file.read(CHUNK), b"")


class _Packed:
    """The packed bytes of a file, and where one is in them."""

    def __init__(self, file: BinaryIO, head: bytes) -> None:
        self.file, self.rest = file, head
        self.position = self.last = 0
        """Where the next and the last piece begin."""

    def read(self, size: int) -> bytes:
        data = self.rest[:size] or self.file.read(size)
        self.rest = self.rest[size:]
        self.last, self.position = self.position, self.position + len(data)
        return data

    def back(self, data: bytes) -> None:
        """Puts back what was read too much."""
        self.rest, self.position = data + self.rest, self.position - len(data)

    def seek(self, position: int) -> None:
        self.file.seek(position)
        self.rest, self.position = b"", position


class _Damaged(Exception):
    pass


def _members(packed: _Packed, codec: _Codec, item: Item, limits: Limits) -> Iterator[bytes]:
    total, more = 0, True
    while more:
        start, before = packed.position, total
        try:
            for out in _member(packed, codec, END):
                total += len(out)
                if total > FREE_EXPANSION and total > limits.archive_ratio * packed.position:
                    detail = f"unpacks to more than {limits.archive_ratio} times its size"
                    raise _broken("archive_bomb", codec, packed, detail, item, total)
                yield out
        except EOFError:
            raise _broken("truncated_archive", codec, packed, "ends before its end mark", item, total) from None
        except _Damaged as error:
            for out in _rescued(packed, codec, start, total - before):
                total += len(out)
                yield out
            raise _broken("broken_archive", codec, packed, str(error), item, total) from None
        more = _another(packed, codec, item, total)


def _member(packed: _Packed, codec: _Codec, fine: int) -> Iterator[bytes]:
    """Unpacks one member; from byte `fine` of the file on it is fed single bytes. Memory is bounded on both sides.

    Raises MemoryError where the machine has not even that: such a file is not broken.
    """
    decoder = codec.decoder()
    while not decoder.eof:
        data = b""
        if decoder.needs_input:
            data = packed.read(min(PIECE, max(fine - packed.position, 1)))
            if not data:
                raise EOFError
        try:
            out = decoder.decompress(data, CHUNK)
        except (zlib.error, lzma.LZMAError, zstd.ZstdError, OSError, EOFError, ValueError) as error:
            if NO_MEMORY in str(error):
                raise MemoryError(str(error)) from error
            raise _Damaged(str(error) or type(error).__name__) from None
        if out:
            yield out
    packed.back(decoder.unused_data)


def _rescued(packed: _Packed, codec: _Codec, start: int, known: int) -> Iterator[bytes]:
    """What lies between the last good piece and the damage: decoders throw that away. `known` bytes are out already.

    A small file whose checksum is off would lose all of its text otherwise.
    """
    damaged = packed.last
    if not codec.rescued or not packed.file.seekable():  # some servers hand out files from beginning to end only
        return
    packed.seek(start)
    with suppress(_Damaged, EOFError):
        for out in _member(packed, codec, damaged):
            if len(out) > known:
                yield out[known:]
            known = max(known - len(out), 0)


def _another(packed: _Packed, codec: _Codec, item: Item, total: int) -> bool:
    """Does another member follow? Raises Broken for anything else but the end."""
    head = packed.read(PIECE)
    while head and codec.padded and not head.strip(b"\0"):
        head = packed.read(PIECE)
    if codec.padded:
        head = head.lstrip(b"\0")
    while head and len(head) < MAGIC and (more := packed.read(MAGIC)):
        head += more
    packed.back(head)
    if head and not codec.starts(head):
        raise _broken("trailing_junk", codec, packed, "something else follows its end", item, total)
    return bool(head)


def _broken(reason: str, codec: _Codec, packed: _Packed, detail: str, item: Item, total: int) -> Broken:
    what = f"{codec.name}, byte {packed.position} of the packed file: {detail}"
    return Broken(reason, what, total, max(item.size - packed.position, 0))


# Encodings


def _mark(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return MARK, error.end


codecs.register_error("maskmill.mark", _mark)


def _in_utf8(unpacked: Iterator[bytes], item: Item) -> Iterator[bytes]:
    encoding = codecs.lookup(item.encoding).name
    head = b""
    try:
        while len(head) < 4 and (chunk := next(unpacked, b"")):
            head += chunk
    except Broken:
        if head:
            yield head
        raise
    name = "utf-32" if head[:4] in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE) else "utf-16"
    wide = name == "utf-32" or head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    if wide and not encoding.startswith(("utf-16", "utf-32")):
        detail = f"a byte order mark of {name.upper()}; set `encoding: {name}` for this source"
        raise Broken("utf16", detail, 0, item.size)
    stream = chain([head] if head else [], unpacked)
    yield from stream if encoding in ("utf-8", "utf-8-sig") else _recoded(stream, encoding, item)


def _recoded(stream: Iterable[bytes], encoding: str, item: Item) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)("maskmill.mark")
    total = 0
    try:
        for chunk, last in chain(((chunk, False) for chunk in stream), [(b"", True)]):
            out = decoder.decode(chunk, last).encode("utf-8", "surrogateescape")
            total += len(out)
            if out:
                yield out
    except UnicodeError as error:  # of the few encodings that take no mark
        raise Broken("invalid_encoding", f"not {encoding}: {error}", total, item.size) from None
