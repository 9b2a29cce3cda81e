"""What an Arrow file says that it unpacks to is what pyarrow unpacks; a bomb is refused before it is."""

import random
import struct
from pathlib import Path

import pyarrow as pa
import pytest

from tasks import arrow_sizes
from tasks.streams import Limits
from tests.tasks.made_files import read


def batches(seed: int) -> list[pa.RecordBatch]:
    """Texts with and without nulls, nested, in dictionaries that are replaced, and a column that is not read."""
    rng = random.Random(seed)
    found = []
    for number in range(rng.randrange(1, 4)):
        rows = rng.choice([0, 1, 7, 300])
        texts = [rng.choice([None, "", f"text {number} " * rng.randrange(1, 200)]) for _ in range(rows)]
        names = pa.array([rng.choice("abc") for _ in range(rows)], pa.string()).dictionary_encode()
        columns_ = [
            pa.array(texts, pa.string()),
            pa.array([{"n": at} for at in range(rows)], pa.struct({"n": "int64"})),
        ]
        found.append(pa.record_batch([*columns_, names], ["text", "nested", "name"]))
    return found


def written(path: Path, some: list[pa.RecordBatch], codec: str | None, whole: bool, legacy: bool = False) -> Path:
    options = pa.ipc.IpcWriteOptions(compression=codec, use_legacy_format=legacy, unify_dictionaries=whole)
    if whole:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, some[0].schema, options=options) as writer:
            writer.write_table(pa.Table.from_batches(some))
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, some[0].schema, options=options) as writer:
            for batch in some:
                writer.write_batch(batch)
    return path


def size(path: Path) -> int:
    with pa.memory_map(str(path)) as source:
        return arrow_sizes.unpacked(source)


@pytest.mark.parametrize("whole", [True, False], ids=["file", "stream"])
@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_it_is_what_the_messages_unpack_to(codec: str, whole: bool, tmp_path: Path) -> None:
    """Counted on the uncompressed twin: its bodies are these bytes, each buffer padded to 64."""
    for seed in range(20):
        some = batches(seed)
        packed = size(written(tmp_path / "packed", some, codec, whole))
        plain = written(tmp_path / "plain", some, None, whole)
        with pa.memory_map(str(plain)) as source:
            source.seek(8 if whole else 0)
            bodies = [message.body.size for message in pa.ipc.MessageReader.open_stream(source) if message.body]
        buffers = 12 * len(bodies)
        assert sum(bodies) - 64 * buffers <= packed <= sum(bodies)
        assert size(plain) == 0


def test_the_format_before_0_15(tmp_path: Path) -> None:
    texts = pa.record_batch([pa.array(["a" * 1000] * 1000)], ["text"])
    modern = size(written(tmp_path / "a", [texts], "zstd", False))
    assert modern > 1_000_000
    data = bytearray((tmp_path / "a").read_bytes())
    # As older versions wrote it: no continuation mark before the lengths. pyarrow still reads it.
    at, out = 0, b""
    while at < len(data):
        (length,) = struct.unpack_from("<i", data, at + 4)
        if length == 0:
            out += bytes(4)
            break
        with pa.BufferReader(bytes(data[at:])) as source:
            message = pa.ipc.read_message(source)
            body = message.body.size if message.body else 0
        metadata = bytes(data[at + 8 : at + 8 + length]) + bytes(4)
        out += struct.pack("<i", length + 4) + metadata + bytes(data[at + 8 + length : at + 8 + length + body])
        at += 8 + length + body
    (tmp_path / "old").write_bytes(out)
    with pa.ipc.open_stream(tmp_path / "old") as reader:
        assert reader.read_all().num_rows == 1000
    assert size(tmp_path / "old") == modern


@pytest.mark.parametrize("whole", [True, False], ids=["file", "stream"])
@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_a_bomb_is_refused_and_what_is_well_packed_is_read(codec: str, whole: bool, tmp_path: Path) -> None:
    texts = pa.record_batch([pa.array(["a bomb " * 150_000] * 200)], ["text"])
    bomb = written(tmp_path / "bomb.arrow", [texts], codec, whole)
    assert bomb.stat().st_size < 2_100_000 and size(bomb) > 200_000_000
    documents, rejects = read(bomb, "arrow", Limits(archive_ratio=50))
    assert [one.reason for one in rejects] == ["archive_bomb"] and documents == []
    assert rejects[0].detail == "it unpacks to more than 50 times its size"
    good = written(tmp_path / "good.arrow", [texts.slice(0, 3)], codec, whole)
    documents, rejects = read(good, "arrow", Limits(archive_ratio=50))
    assert sum(len(one.text) for one in documents) > 3_000_000 and rejects == []


def test_what_is_damaged_counts_for_nothing_and_ends(tmp_path: Path) -> None:
    for whole in (True, False):
        path = written(tmp_path / "a", batches(3), "lz4", whole)
        data = path.read_bytes()
        rng = random.Random(1)
        for _ in range(2000):
            damaged = bytearray(data[: rng.randrange(len(data))] if rng.random() < 0.3 else data)
            for _ in range(rng.randrange(1, 4)):
                if damaged:
                    damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            path.write_bytes(damaged or b"ARROW1")
            assert size(path) >= 0
