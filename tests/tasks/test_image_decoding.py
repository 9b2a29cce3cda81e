"""Hostile and damaged images: what cannot be decoded is refused, what can follows the stated rules.

python -m pytest tests/tasks/test_image_decoding.py
"""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.image_decoding import ImageLimits, Refused, Shape, decode, fit
from tests.tasks.made_images import encoded, noise
from tests.tasks.whole_images import LIMITS, PHOTO, PIXELS, PNGS, chunk

calm = settings(max_examples=60, suppress_health_check=list(HealthCheck), deadline=None)


@calm
@given(at=st.integers(0, len(PNGS[0]) - 1), bit=st.integers(0, 7))
def test_no_flipped_bit_of_a_png_passes(at: int, bit: int) -> None:
    flipped = bytearray(PNGS[0])
    flipped[at] ^= 1 << bit
    with pytest.raises(Refused):
        decode(bytes(flipped), LIMITS)


@calm
@given(end=st.integers(0, len(PHOTO) - 3))
def test_an_image_that_is_cut_off_is_refused(end: int) -> None:
    for data in (PHOTO[:end], PNGS[0][: end * len(PNGS[0]) // len(PHOTO)]):
        with pytest.raises(Refused):
            decode(data, LIMITS)


@given(data=st.binary(max_size=300))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    for start in (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"):
        with pytest.raises(Refused) as caught:
            decode(start + data, LIMITS)
        assert " at 0x" not in caught.value.detail


def png(width: int, height: int, packed: bytes, *more: bytes, depth: int = 8, colour: int = 0) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def test_the_sizes_in_a_header_are_looked_at_before_anything_is_unpacked() -> None:
    bomb = zlib.compress(bytes(1 << 20))
    for data in (
        png(1 << 30, 1 << 30, bomb),
        png(40_000, 40_000, bomb),
        png(257, 256, bomb),
        encoded(noise(1, 257, 256)[0], "JPEG"),
    ):
        with pytest.raises(Refused) as caught:
            decode(data, LIMITS)
        assert caught.value.reason == "too_many_pixels"
    assert decode(png(256, 256, zlib.compress(bytes(256 * 257))), LIMITS)[0].shape == (256, 256, 1)


def test_a_png_may_hold_more_than_its_header_says_but_not_less() -> None:
    assert not decode(png(4, 4, zlib.compress(bytes(1 << 22))), LIMITS)[0].any()
    with pytest.raises(Refused):
        decode(png(64, 64, zlib.compress(bytes(100))), LIMITS)


def test_texts_and_profiles_of_a_png_are_not_unpacked() -> None:
    text = chunk(b"zTXt", b"comment\0\0" + zlib.compress(bytes(1 << 24)))
    profile = chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(1 << 24)))
    packed = zlib.compress(bytes(20))
    assert decode(png(4, 4, packed, *[text] * 20, *[profile] * 20), LIMITS)[0].shape == (4, 4, 1)
    with pytest.raises(Refused):
        decode(png(4, 4, packed, *[chunk(b"teXt", b"")] * 100_001), ImageLimits())


def test_a_jpeg_of_scans_without_end_is_refused() -> None:
    progressive = encoded(noise(1, 64, 64)[0], "JPEG", progressive=True)
    scans = progressive.index(b"\xff\xda")
    assert decode(progressive, LIMITS)[0].shape == (64, 64, 1)
    with pytest.raises(Refused) as caught:
        decode(progressive[:-2] + progressive[scans:-2] * 40 + b"\xff\xd9", LIMITS)
    assert caught.value.reason == "too_many_scans"


def test_a_jpeg_of_segments_without_end_is_refused() -> None:
    for more in (b"\xff\xe0\0\2", b"\xff\xe1\0\4ab", b"\xff\xd0", b"\xff", b"\xff\0", b"\xff\xf0"):
        with pytest.raises(Refused, match="segments"):
            decode(PHOTO[:2] + b"\xff\xe0\0\2" + more * 20_000 + PHOTO[2:], LIMITS)
        with pytest.raises(Refused, match="between"):
            decode(PHOTO[:20] + bytes(70_000) + PHOTO[20:], LIMITS)
        if more[1:2] in b"\xe0\xe1":
            assert decode(PHOTO[:2] + more * 200 + PHOTO[2:], LIMITS)[0].shape == (24, 40, 3)


def test_of_a_photo_of_several_pictures_the_first_is_taken() -> None:
    from PIL import Image

    first, second = (Image.fromarray(one) for one in noise(2, 16, 16, 3))
    file = io.BytesIO()
    first.save(file, "MPO", save_all=True, append_images=[second])
    alone = io.BytesIO()
    first.save(alone, "JPEG")
    np.testing.assert_array_equal(decode(file.getvalue(), LIMITS)[0], decode(alone.getvalue(), LIMITS)[0])


def test_other_formats_are_refused_by_name() -> None:
    for name in ("GIF", "BMP", "TIFF"):
        with pytest.raises(Refused, match=name):
            decode(encoded(PIXELS[0], name), LIMITS)


def test_what_an_image_becomes_follows_the_stated_rules() -> None:
    colour = noise(1, 6, 5, 3)[0]
    alpha = np.dstack([colour, np.full((6, 5), 0, np.uint8)])
    wide = (noise(1, 6, 5)[0, :, :, 0].astype(np.uint16) << 8) + 255
    assert (decode(encoded(alpha), LIMITS)[0] == 255).all()  # what cannot be seen stands on white
    np.testing.assert_array_equal(decode(encoded(np.dstack([colour, alpha[:, :, 3] | 255])), LIMITS)[0], colour)
    np.testing.assert_array_equal(decode(encoded(wide), LIMITS)[0][:, :, 0], wide >> 8)
    for mode, channels in (("1", 1), ("L", 1), ("LA", 1), ("P", 3), ("RGB", 3), ("RGBA", 3)):
        assert decode(encoded(colour, mode=mode), LIMITS)[0].shape == (6, 5, channels), mode
    assert decode(encoded(colour, "JPEG", "CMYK"), LIMITS)[0].shape == (6, 5, 3)
    frames = io.BytesIO()
    from PIL import Image

    first, second = (Image.fromarray(one[:, :, 0]) for one in PIXELS[:2])
    first.save(frames, "PNG", save_all=True, append_images=[second])
    np.testing.assert_array_equal(decode(frames.getvalue(), LIMITS)[0], PIXELS[0])


@pytest.mark.parametrize("turn", range(1, 9))
def test_the_orientation_of_exif_is_applied(turn: int) -> None:
    from PIL import Image, ImageOps

    exif = Image.Exif()
    exif[0x0112] = turn
    for name in ("PNG", "JPEG"):
        data = encoded(noise(1, 16, 24)[0], name, exif=exif)
        wanted = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
        np.testing.assert_array_equal(decode(data, LIMITS)[0][:, :, 0], wanted)


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    side=st.integers(1, 20),
    other=st.integers(1, 20),
    rgb=st.booleans(),
)
def test_any_image_fits_any_shape(height: int, width: int, side: int, other: int, rgb: bool) -> None:
    pixels = np.full((height, width, 3 if rgb else 1), 77, np.uint8)
    for channels in (1, 3):
        fitted, steps = fit(pixels, Shape(side, other, channels))
        assert fitted.shape == (side, other, channels) and (fitted == 77).all()
        assert ("resized" in steps) == ((height, width) != (side, other))
        assert ("cropped" in steps) == (height * other != width * side)


def test_what_juts_out_is_cut_off_on_both_sides() -> None:
    pixels = np.zeros((4, 12, 1), np.uint8)
    pixels[:, 4:8] = 200
    assert (fit(pixels, Shape(4, 4, 1))[0] == 200).all()


def test_grey_is_that_of_pillow() -> None:
    from PIL import Image

    pixels = noise(1, 50, 50, 3)[0]
    wanted = np.asarray(Image.fromarray(pixels).convert("L"))
    np.testing.assert_array_equal(fit(pixels, Shape(50, 50, 1))[0][:, :, 0], wanted)
