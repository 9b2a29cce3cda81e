"""python -m pytest tests/tasks/test_archives.py"""

import bz2
import gzip
import io
import lzma
import resource
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from backports import zstd
from hypothesis import assume, given
from hypothesis import strategies as st

from tasks import archives
from tasks.archives import chunks
from tasks.streams import Broken, Item, Limits, Reject
from tests.tasks.made_files import PACKERS, put

CODEC = {"gz": "gzip", "zst": "zstd", "bz2": "bz2", "xz": "xz"}
CHECKED: dict[str, Callable[[bytes], bytes]] = PACKERS | {
    "zst": lambda data: zstd.compress(data, options={zstd.CompressionParameter.checksum_flag: 1})
}
PACKED = st.sampled_from(sorted(PACKERS))


def unpack(
    path: Path, encoding: str = "utf-8", kind: str = "text", limits: Limits | None = None
) -> tuple[bytes, Reject | None]:
    """(all that came out, how it ended)."""
    item = Item(kind, str(path), path.name, "", path.stat().st_size, encoding=encoding)
    out = b""
    try:
        for chunk in chunks(item, limits or Limits()):
            assert 0 < len(chunk) <= 8 << 20
            out += chunk
    except Broken as broken:
        return out, broken.reject
    return out, None


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("archives") / "file"


@given(PACKED, st.lists(st.binary(max_size=300).map(lambda data: b"text" + data), min_size=1, max_size=4))
def test_all_members_are_read_under_any_name(place: Path, packer: str, members: list[bytes]) -> None:
    padding = b"\0" * 8 if packer in ("gz", "xz") else b""
    data = padding.join(map(PACKERS[packer], members)) + padding
    assert unpack(put(place, data)) == (b"".join(members), None)


@given(PACKED, st.binary(min_size=1, max_size=2000), st.data())
def test_a_cut_archive_gives_a_beginning_and_says_so(
    place: Path, packer: str, text: bytes, data: st.DataObject
) -> None:
    packed = PACKERS[packer](b"text" + text)
    assume(len(packed) > 12)
    cut = data.draw(st.integers(12, len(packed) - 1))
    out, reject = unpack(put(place, packed[:cut]))
    assert (b"text" + text).startswith(out) and reject
    assert (reject.reason, reject.offset) == ("truncated_archive", len(out))
    assert f"{CODEC[packer]}, byte {cut} of the packed file" in reject.detail


@given(PACKED, st.binary(min_size=1, max_size=50))
def test_junk_behind_the_end_is_named_with_its_place(place: Path, packer: str, junk: bytes) -> None:
    packed = PACKERS[packer](b"text")
    assume(not any(codec.starts(junk.lstrip(b"\0")) for codec in archives.CODECS) and junk.strip(b"\0"))
    out, reject = unpack(put(place, packed + junk))
    at = len(packed) + (len(junk) - len(junk.lstrip(b"\0")) if packer in ("gz", "xz") else 0)
    assert out == b"text" and reject and reject.reason == "trailing_junk"
    assert f"byte {at} of" in reject.detail and reject.bytes == len(packed + junk) - at


@given(PACKED, st.integers(0, 10**6), st.integers(0, 7), st.integers(1, 3))
def test_a_flipped_bit_never_passes_for_good(place: Path, packer: str, where: int, bit: int, members: int) -> None:
    text = b"".join(b"line %d of a text that is packed\n" % number for number in range(200))
    packed = bytearray(b"".join([CHECKED[packer](text)] * members))
    where %= len(packed)
    packed[where] ^= 1 << bit
    out, reject = unpack(put(place, bytes(packed)))
    plain = reject is None and out == bytes(packed)  # the magic bytes are gone
    # zlib and zstd check neither the time nor the spare bits of a header
    assert plain or reject or out == text * members
    if reject and where > len(packed) // members * (members - 1) + 30:
        assert out.startswith(text * (members - 1))


@pytest.mark.parametrize("packer", ["gz", "zst"])
@pytest.mark.parametrize("size", [30, 200_000, 3_000_000])
def test_a_wrong_checksum_loses_nothing_that_stands_before_it(tmp_path: Path, packer: str, size: int) -> None:
    text = (b"%x" % (3**2_000_000))[:size] if size > 1000 else b"x" * size
    packed = bytearray(CHECKED[packer](text))
    packed[-5 if packer == "gz" else -1] ^= 1
    first = CHECKED[packer](b"first ")
    out, reject = unpack(put(tmp_path / "a", first + bytes(packed)))
    assert out == b"first " + text
    assert reject and (reject.reason, reject.offset) == ("broken_archive", len(out))
    place = int(reject.detail.split("byte ")[1].split()[0])
    assert abs(len(first + packed) - place) <= 8


def test_a_damaged_block_of_bz2_is_no_text(tmp_path: Path) -> None:
    good, bad = bz2.compress(b"good " * 1000), bytearray(bz2.compress(b"some text " * 5000))
    bad[10] ^= 1  # the checksum of the block
    out, reject = unpack(put(tmp_path / "a", good + bytes(bad)))
    assert out == b"good " * 1000 and reject and reject.reason == "broken_archive"


@pytest.mark.parametrize("packer", sorted(PACKERS))
def test_a_bomb_is_stopped_in_little_memory(tmp_path: Path, packer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "FREE_EXPANSION", 4 << 20)
    path = put(tmp_path / "bomb", PACKERS[packer](bytes(40 << 20)))
    unpack(path)  # the window of a decoder is taken once
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    out, reject = unpack(path)
    assert reject and reject.reason == "archive_bomb" and 3 << 20 <= len(out) < 40 << 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10
    assert unpack(path, limits=Limits(archive_ratio=10**9)) == (bytes(40 << 20), None)


def test_windows_larger_than_memory_are_refused(tmp_path: Path) -> None:
    data = b"text" * 10_000
    wide = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 28})
    huge = lzma.compress(data, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 256 << 20}])
    fine = lzma.compress(data, preset=9)
    stream = wide.compress(data) + wide.flush()
    for packed in (stream, huge):
        out, reject = unpack(put(tmp_path / "a", packed))
        assert out == b"" and reject and reject.reason == "broken_archive" and "emory" in reject.detail
    assert unpack(put(tmp_path / "a", fine)) == (data, None)


@pytest.mark.parametrize(
    ("packer", "error"),
    [("zst", zstd.ZstdError("Unable to decompress: Allocation error : not enough memory")), ("bz2", MemoryError())],
)
def test_a_machine_without_memory_is_no_broken_archive(
    packer: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a run that is short of memory would leave texts out, and go on."""

    class Starved:
        eof, needs_input, unused_data = False, True, b""

        def decompress(self, data: bytes, max_length: int = -1) -> bytes:
            raise error

    monkeypatch.setattr(archives, "CODECS", [replace(codec, decoder=Starved) for codec in archives.CODECS])
    with pytest.raises(MemoryError):
        unpack(put(tmp_path / "a", PACKERS[packer](b"text" * 1000)))


def test_skippable_frames_of_zstd_are_skipped(tmp_path: Path) -> None:
    skip = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"
    assert unpack(put(tmp_path / "a", skip + zstd.compress(b"text") + skip)) == (b"text", None)


@pytest.mark.parametrize("name", ["a.gz", "a.GZIP", "a.txt.zst", "a.bz2", "a.xz"])
@pytest.mark.parametrize("data", [b"plain text", b"", b"BZh9 is how this text begins"])
def test_a_name_alone_makes_no_archive(tmp_path: Path, name: str, data: bytes) -> None:
    out, reject = unpack(put(tmp_path / name, data))
    assert out == b"" and reject and (reject.reason, reject.bytes) == ("not_an_archive", len(data))
    assert unpack(put(tmp_path / "a.txt", data)) == (data, None)


# Encodings


@given(
    st.sampled_from(["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-7", "gb18030", "UTF8", "utf-8-sig"]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=60),
    st.sampled_from([None, *PACKERS]),
)
def test_any_encoding_comes_out_as_utf8(place: Path, encoding: str, text: str, packer: str | None) -> None:
    data = (text * 30).encode(encoding)
    if packer is None:
        assume(not any(codec.starts(data) for codec in archives.CODECS))
    out, reject = unpack(put(place, PACKERS[packer](data) if packer else data), encoding)
    plain = encoding in ("UTF8", "utf-8-sig")
    assume(not (plain and reject and reject.reason == "utf16"))
    assert (out, reject) == (data if plain else (text * 30).encode(), None)


@given(
    st.lists(st.sampled_from(["line of it", "café", "日本語", "BAD"]), min_size=1, max_size=20),
    st.sampled_from([1, 7, 64]),
)
def test_a_byte_that_is_not_of_the_encoding_spoils_its_line_alone(place: Path, lines: list[str], size: int) -> None:
    bad = b"\x81\xff" if "日本語" in lines else b"\x98"
    encoding = "shift_jis" if "日本語" in lines else "cp1251"
    taken = [line for line in lines if line != "café"]
    data = b"\n".join(bad if line == "BAD" else line.encode(encoding) for line in taken)
    item = Item("text", str(put(place, data)), "a", "", len(data), encoding=encoding)
    stream = io.BytesIO(data)
    out = b"".join(archives._in_utf8(iter(lambda: stream.read(size), b""), item))
    found = out.split(b"\n")
    assert len(found) == max(len(taken), 1)
    for line, came in zip(taken, found):
        assert b"\xff" in came if line == "BAD" else came == line.encode()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("packer", [None, "gz", "zst"])
def test_a_byte_order_mark_says_what_to_set(tmp_path: Path, encoding: str, packer: str | None) -> None:
    data = ("\ufeff" if encoding.endswith("be") else "").encode(encoding) + "text".encode(encoding)
    path = put(tmp_path / "a", PACKERS[packer](data) if packer else data)
    for setting in ("utf-8", "cp1252"):
        out, reject = unpack(path, setting)
        assert out == b"" and reject and reject.reason == "utf16" and f"encoding: {encoding[:6]}`" in reject.detail
    assert unpack(path, encoding)[0].removeprefix(b"\xef\xbb\xbf") == b"text"
    assert unpack(path, kind="html") == (data, None)


def test_an_encoding_that_takes_no_mark_ends_the_file(tmp_path: Path) -> None:
    _, reject = unpack(put(tmp_path / "a", b"xn--" + b"\xff" * 20), "idna")
    assert reject and reject.reason == "invalid_encoding"


def test_members_of_gzip_that_other_tools_write_are_read(tmp_path: Path) -> None:
    named = io.BytesIO()
    with gzip.GzipFile("some name.txt", "wb", fileobj=named) as file:
        file.write(b"named ")
    stored = zlib.compressobj(0, zlib.DEFLATED, 31)
    data = named.getvalue() + stored.compress(b"stored") + stored.flush() + gzip.compress(b"")
    assert unpack(put(tmp_path / "a", data)) == (b"named stored", None)
