"""Hostile and damaged images: whatever a file holds, images and rejects come out, in bounded time and memory.

python -m pytest tests/tasks/test_image_files.py
"""

import gzip
import io
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.errors import DataError
from tasks.image_decoding import ImageLimits
from tasks.image_files import idx_header
from tests.tasks.made_images import idx, idx_labels, item_of, noise, parquet, read, tar
from tests.tasks.whole_images import FILES, LIMITS, PIXELS, PNGS, chunk

ROOT = Path(__file__).parents[2]
calm = settings(max_examples=60, suppress_health_check=list(HealthCheck), deadline=None)


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Some bytes flipped, cut out, put in or cut off."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(changed) - 1, 0)))
        what = draw(st.sampled_from(["flip", "cut", "insert", "end"]))
        if what == "flip" and changed:
            changed[at] ^= 1 << draw(st.integers(0, 7))
        elif what == "cut":
            del changed[at : at + draw(st.integers(1, 600))]
        elif what == "insert":
            changed[at:at] = draw(st.binary(min_size=1, max_size=600))
        else:
            del changed[at:]
    return bytes(changed)


@pytest.mark.parametrize("name", FILES)
def test_a_whole_file_gives_its_images(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(FILES[name])
    kept, rejects = read(path)
    assert not rejects and len(kept) == (1 if name in ("a.png", "a.jpg") else 7 if name == "a.tar" else 6)
    if "jpg" not in name:
        np.testing.assert_array_equal(kept[0].data, PIXELS[0])


@pytest.mark.parametrize("name", FILES)
@calm
@given(data=st.data())
def test_damage_gives_images_and_rejects_and_nothing_else(
    name: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(data.draw(damaged(FILES[name])))
    kept, rejects = read(path, LIMITS)
    assert kept or rejects or name.startswith("a.tar")  # of a tar nothing may be left but members that are no images
    assert len(kept) <= 8
    for one in rejects:  # what is said of it is part of the artifact, so it may not depend on the machine
        assert str(path) not in one.detail and " at 0x" not in one.detail


# IDX


def put(tmp_path: Path, name: str, data: bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_an_idx_file_that_lies_about_its_number_keeps_its_whole_images(
    tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    for said, reason in ((9, "truncated_idx"), (1 << 31, "truncated_idx"), (5, "trailing_junk")):
        kept, rejects = read(put(tmp_path, "a-idx3-ubyte", pack(idx(PIXELS, said) + b"half an image")))
        assert len(kept) == min(said, 6) and [one.reason for one in rejects] == [reason]
    kept, rejects = read(put(tmp_path, "a-idx3-ubyte", pack(idx(PIXELS)[:-1])))
    assert len(kept) == 5 and rejects[0].reason == "truncated_idx" and rejects[0].bytes == 63


def test_an_idx_header_is_not_believed(tmp_path: Path) -> None:
    for head, reason in (
        (b"\0\0\x08\x03" + struct.pack(">III", 1, 1 << 31, 1 << 31), "too_many_pixels"),
        (b"\0\0\x08\x03" + struct.pack(">III", 1, 0, 5), "broken_idx"),
        (b"\0\0\x08\x04" + struct.pack(">IIII", 1, 5, 5, 7), "broken_idx"),
        (b"\0\0\x0d\x03" + struct.pack(">III", 1, 5, 5), "broken_idx"),
        (b"\0\0\x08\x01" + struct.pack(">I", 1), "broken_idx"),
        (b"\0\0\x08", "truncated_idx"),
        (b"", "truncated_idx"),
    ):
        kept, rejects = read(put(tmp_path, "a-idx3-ubyte", head + bytes(10)[: 10 * (len(head) > 4)]))
        assert not kept and [one.reason for one in rejects] == [reason]


def test_labels_that_are_not_those_of_the_images_are_an_error(tmp_path: Path) -> None:
    images = put(tmp_path, "a-images-idx3-ubyte", idx(PIXELS))
    for data in (idx_labels([1] * 5), idx_labels([1] * 5, 6), idx_labels([1] * 7, 6), b"", idx(PIXELS)):
        with pytest.raises(DataError, match="labels"):
            read(images, beside=put(tmp_path, "a-labels-idx1-ubyte", data))
    kept, _ = read(
        images, beside=put(tmp_path, "a-labels-idx1-ubyte.gz", gzip.compress(idx_labels([4, 5, 6, 7, 8, 9])))
    )
    assert [one.label for one in kept] == list("456789") and kept[0].origin == "file"


def test_a_packed_bomb_is_refused_and_what_came_before_it_stays(tmp_path: Path) -> None:
    bomb = put(tmp_path, "a-idx3-ubyte.gz", gzip.compress(idx(noise(2, 512, 512), 1000) + bytes(80 << 20), 1))
    assert idx_header(item_of(bomb, "idx"), ImageLimits()).packed
    kept, rejects = read(bomb, ImageLimits(archive_ratio=10))
    assert kept[0].data is not None and [one.reason for one in rejects] == ["archive_bomb"]


# tar


def test_only_regular_files_of_a_tar_are_read_and_none_is_written(tmp_path: Path) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, kind in (
            ("link.png", tarfile.SYMTYPE),
            ("hard.png", tarfile.LNKTYPE),
            ("pipe.png", tarfile.FIFOTYPE),
            ("device.png", tarfile.CHRTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        for name in ("/etc/evil.png", "../../evil.png", "a/./b.png", ".hidden.png", "notes.txt"):
            info = tarfile.TarInfo(name)
            info.size = len(PNGS[0])
            archive.addfile(info, io.BytesIO(PNGS[0]))
    path = put(tmp_path, "a.tar", file.getvalue())
    kept, rejects = read(path)
    assert [one.place for one in kept] == ["#/etc/evil.png", "#../../evil.png", "#a/./b.png"] and not rejects
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_members_and_their_folders_come_from_any_tar(tmp_path: Path, kind: int) -> None:
    name = "/".join(["folder" * 10] * (2 if kind == tarfile.USTAR_FORMAT else 5)) + "/a cat/1.png"
    kept, _ = read(put(tmp_path, "a.tar", tar({name: PNGS[0], "dog/2.png": PNGS[1], "3.png": PNGS[2]}, kind)))
    assert [one.label for one in kept] == ["a cat", "dog", None] and kept[0].place == "#" + name


def test_a_bad_header_loses_its_member_alone(tmp_path: Path) -> None:
    data = bytearray(tar({f"{number}.png": one for number, one in enumerate(PNGS)}))
    data[512 * 2 + 3] ^= 1  # the name of the second member
    kept, rejects = read(put(tmp_path, "a.tar", bytes(data)))
    assert len(kept) == 5 and [one.reason for one in rejects] == ["broken_tar"]


@pytest.mark.parametrize("end", [0, 512, 512 + 60, 1024, 1024 + 512])
def test_a_tar_that_is_cut_off_says_so_and_zeros_end_nothing(tmp_path: Path, end: int) -> None:
    whole = tar({"0.png": PNGS[0]}).rstrip(b"\0")
    whole += bytes(-len(whole) % 512)
    assert len(whole) == 1024
    kept, rejects = read(put(tmp_path, "a.tar", (whole + bytes(1024))[:end]))
    assert [one.reason for one in rejects] == [{0: "empty_file"}.get(end, "truncated_tar")][: end <= 1024]
    assert len(kept) == (end >= 1024)
    both = tar({"0.png": PNGS[0]}) + tar({"1.png": PNGS[1]}) + b"x" * 700
    kept, rejects = read(put(tmp_path, "b.tar", both))
    assert len(kept) == 2 and [one.reason for one in rejects] == ["broken_tar", "truncated_tar"]


def test_a_tar_whose_sizes_lie_is_read_in_bounded_memory(tmp_path: Path) -> None:
    for size, name in ((1 << 33, "a.png"), (1 << 20, "a.png"), (1 << 33, "a.txt"), ((1 << 20) + 1, "a.png")):
        info = tarfile.TarInfo(name)
        info.size = size
        head = info.tobuf(tarfile.GNU_FORMAT)
        kept, rejects = read(put(tmp_path, "a.tar", head + bytes(5000)), LIMITS)
        assert not kept and (rejects or name == "a.txt")
    long = tarfile.TarInfo("x")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    _, rejects = read(put(tmp_path, "a.tar", long.tobuf() + bytes(5000)), LIMITS)
    assert [one.reason for one in rejects] == ["broken_tar"]


def test_a_tar_of_members_without_end_is_read_to_its_limit(tmp_path: Path) -> None:
    path = put(tmp_path, "a.tar", tar({f"{number}.png": one for number, one in enumerate(PNGS)}))
    kept, rejects = read(path, ImageLimits(archive_members=4))
    assert len(kept) == 4 and [one.reason for one in rejects] == ["too_many_members"]


# Parquet


def test_labels_of_a_table_are_told_by_name_where_it_knows_them(tmp_path: Path) -> None:
    import json

    import pyarrow.parquet as pq

    path = put(tmp_path, "a.parquet", parquet(PNGS, [0, 1, -1, 1, 7, None]))
    assert [one.label for one in read(path)[0]] == ["0", "1", "-1", "1", "7", None]
    features = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), path)
    kept, _ = read(path)
    assert [one.label for one in kept] == ["cat", "dog", None, "dog", "7", None] and kept[0].origin == "column"
    assert [one.label for one in read(path, labels="folder")[0]] == list("010101")
    long = put(tmp_path, "b.parquet", parquet(PNGS, ["a"] * 5 + ["a" * 300]))
    assert len(read(long)[0]) == 5 and read(long)[1][0].reason == "not_a_label"
    assert {one.label for one in read(path, labels="none")[0]} == {None}


def test_tables_that_are_none_or_hold_none(tmp_path: Path) -> None:
    kept, rejects = read(put(tmp_path, "a.parquet", parquet([None, *PNGS, b"", b"GIF89a"], struct=False)))
    assert len(kept) == 6 and [one.reason for one in rejects] == ["null", "not_an_image", "not_an_image"]
    path = put(tmp_path, "a.parquet", parquet(PNGS, [[1]] * 6))
    assert read(path, image_key="picture")[1][0].reason == "missing_key"
    assert read(path, image_key="label", labels="none")[1][0].reason == "not_an_image"
    assert read(path)[1][0].reason == "not_a_label"


@pytest.mark.slow
def test_a_large_image_that_thousands_of_rows_share_is_held_once(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    big = PNGS[0][:-12] + chunk(b"teXt", bytes(1 << 20)) + PNGS[0][-12:]
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 2000), pa.array([big], pa.binary()))
    path, table = tmp_path / "a.parquet", pa.table({"image": column})
    pq.write_table(table, path, store_schema=False, dictionary_pagesize_limit=1 << 30)
    script = (
        "from pathlib import Path\n"
        "from tasks.image_tables import parquet\nfrom tests.tasks.made_images import item_of\n"
        "from tasks.image_sources import ImageFile, ImageSource\nfrom tasks.image_decoding import ImageLimits\n"
        f"item = item_of(Path({str(path)!r}), 'parquet')\n"
        "n = sum(1 for _ in parquet(ImageFile(item), ImageSource('a'), ImageLimits()))\n"
        "peak = Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0]\n"
        "print(n, int(peak) >> 10)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    number, megabytes = map(int, run.stdout.split())
    assert number == 2000 and megabytes < 400, megabytes
