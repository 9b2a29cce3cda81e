"""The bytes of a safetensors file: those of the library, and no others are read. pytest -k tensor_file"""

import json
import struct

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import DataError
from tasks.tensor_file import DTYPES, Image, lay_out, parse, read, read_back, write

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(lambda name: name[:2] != "__")
KINDS = st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 4), max_size=3).map(tuple))


def filled(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (kind, shape) in shapes.items():
        raw = torch.randint(0, 2, (*shape, DTYPES[kind].itemsize), generator=generator, dtype=torch.uint8)
        tensors[name] = raw.view(DTYPES[kind]).reshape(shape)
    return tensors


def image_of(tensors):
    image = Image()
    image.fill(tensors)
    return image.bytes


@given(st.dictionaries(NAMES, KINDS, max_size=6))
@settings(max_examples=150, deadline=None)
def test_the_bytes_are_those_of_the_library_and_parse_is_the_inverse(shapes):
    tensors = filled(shapes)
    image = image_of(tensors)
    assert image.numpy().tobytes() == safetensors.torch.save(tensors)
    back = parse(image)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype and back[name].shape == tensor.shape
        assert (
            back[name].numpy(force=True).tobytes() == tensor.numpy().tobytes()
            if tensor.dtype != torch.bfloat16
            else (torch.equal(back[name].view(torch.int16), tensor.view(torch.int16)))
        )


def test_the_order_in_which_the_tensors_come_is_no_matter_and_strides_are_not_kept():
    one = {"b": torch.arange(6.0).reshape(2, 3).T, "a": torch.arange(8)[::2]}
    two = {name: one[name].contiguous() for name in ("a", "b")}
    assert torch.equal(image_of(one), image_of(two))


def test_memory_is_reused_while_the_layout_stays_and_a_new_layout_gets_its_own():
    image = Image()
    image.fill({"a": torch.zeros(3)})
    where = image.bytes.data_ptr()
    image.fill({"a": torch.ones(3)})
    assert image.bytes.data_ptr() == where and parse(image.bytes)["a"].tolist() == [1, 1, 1]
    image.fill({"a": torch.ones(3), "b": torch.zeros(2)})
    assert parse(image.bytes)["b"].tolist() == [0, 0]


def test_what_was_filled_in_does_not_change_with_the_tensors():
    tensor = torch.zeros(1000)
    image = image_of({"a": tensor})
    tensor.fill_(7)
    assert not parse(image)["a"].any()


def test_a_type_without_a_name_is_refused_with_the_tensors_name():
    with pytest.raises(DataError, match="moment"):
        Image().fill({"moment": torch.zeros(2, dtype=torch.complex128)})


def changed(**changes):
    """A file whose one tensor's entry says something else, in an otherwise correct header."""
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes
    header = json.dumps({"a": entry}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + bytes(8)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x08\0\0",
        struct.pack("<Q", 2**63) + b"{}      ",
        struct.pack("<Q", 8) + b"[1]     ",
        struct.pack("<Q", 8) + b"\xff\xfe      ",
        changed(shape=[3]),
        changed(shape=[-2]),
        changed(shape=[2, 10**30]),
        changed(shape="2"),
        changed(dtype="F31"),
        changed(dtype=["F32"]),
        changed(data_offsets=[4, 12]),
        changed(data_offsets=[0, 10**12]),
        changed(shape=[2.0]),
        changed() + b"x",
        changed()[:-1],
    ],
)
def test_bytes_that_are_no_such_file_are_refused(data):
    with pytest.raises(DataError, match="not a safetensors file"):
        parse(torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8))


def test_a_correct_header_written_by_hand_is_taken():
    assert parse(torch.frombuffer(bytearray(changed()), dtype=torch.uint8))["a"].tolist() == [0, 0]


@pytest.mark.parametrize("size", [0, 1, 2**20 - 1, 2**20, 2**20 + 1, 3 * 2**20 + 5])
def test_what_is_written_reads_back_with_one_digest_and_any_other_byte_is_found(tmp_path, size):
    image = torch.randint(0, 256, (size,), dtype=torch.uint8)
    path = tmp_path / "file"
    write(path, image)
    digest = read_back(path, image)
    again, other = read(path, size)
    assert torch.equal(image, again) and digest == other
    for at in {0, size // 2, size - 1} if size else ():
        image[at] ^= 16
        with pytest.raises(DataError, match="reads back otherwise"):
            read_back(path, image)
        image[at] ^= 16
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(DataError, match="reads back otherwise"):
        read_back(path, image)


def test_two_tensors_of_the_same_memory_are_both_written():
    tensor = torch.arange(4)
    back = parse(image_of({"a": tensor, "b": tensor}))
    assert torch.equal(back["a"], tensor) and torch.equal(back["b"], tensor)


def test_a_layout_is_aligned_and_has_no_holes():
    layout = lay_out({"a": ("BOOL", (3,)), "b": ("F64", (1,)), "c": ("BF16", (5,)), "d": ("F32", ())})
    end = len(layout.head)
    for kind, _, begin, after in layout.places.values():
        assert begin == end and begin % DTYPES[kind].itemsize == 0
        end = after
    assert end == layout.size


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_copies_from_a_device_are_of_the_moment_at_which_they_were_queued():
    image = Image()
    tensors = {f"t{number}": torch.full((1 << 22,), float(number), device="cuda") for number in range(8)}
    for turn in range(3):
        image.fill(tensors)
        for tensor in tensors.values():
            tensor.add_(1)  # on the same stream: after the copy
        image.settle()
        for number, name in enumerate(tensors):
            assert (parse(image.bytes)[name] == number + turn).all()
    assert image.bytes.is_pinned()


@pytest.mark.parametrize("shape", [[-2, -2], [True, 4], [4.0], "4", [1 << 70, 0], {"4": 1}])
def test_a_shape_that_no_tensor_has_is_refused(shape):
    header = json.dumps(
        {"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 16]}}, separators=(",", ":")
    ).encode()
    header += b" " * (-len(header) % 8)
    data = struct.pack("<Q", len(header)) + header + bytes(16)
    with pytest.raises(DataError, match="not a safetensors file"):
        parse(torch.frombuffer(bytearray(data), dtype=torch.uint8))
