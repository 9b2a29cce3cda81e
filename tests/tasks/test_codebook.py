"""Patches go there and back, the nearest code is exact, the codebook is the same everywhere.

pytest tests/tasks/test_codebook.py
"""

from contextlib import nullcontext

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from tasks import codebook
from tasks.codebook import errors, learn, nearest, patches_of, pixels_of
from tasks.errors import DataError, UsageError
from tests.tasks import drawn_images

SHAPES = [(1, 1, 1, 1), (8, 8, 1, 4), (6, 9, 3, 3), (32, 16, 3, 16), (4, 4, 3, 1)]


def noise(number: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (number, width), np.uint8)


@pytest.mark.parametrize("height, width, channels, p", SHAPES)
def test_patches_go_there_and_back_and_stand_in_raster_order(height, width, channels, p):
    images = np.random.default_rng(1).integers(0, 256, (3, height, width, channels), np.uint8)
    patches = patches_of(images, p)
    grid = height // p, width // p
    assert patches.shape == (3, grid[0] * grid[1], p * p * channels)
    assert patches.dtype == np.uint8
    assert (pixels_of(patches, grid, p, channels) == images).all()
    for number in range(patches.shape[1]):
        row, column = divmod(number, grid[1])
        square = images[:, row * p : (row + 1) * p, column * p : (column + 1) * p]
        assert (patches[:, number] == square.reshape(3, -1)).all()


def test_no_images_have_no_patches():
    patches = patches_of(np.zeros((0, 8, 8, 3), np.uint8), 4)
    assert patches.shape == (0, 4, 48)
    assert pixels_of(patches, (2, 2), 4, 3).shape == (0, 8, 8, 3)
    assert len(nearest(patches.reshape(0, 48), noise(3, 48))) == 0


@pytest.mark.parametrize("height, width, p", [(8, 8, 3), (8, 9, 4), (9, 8, 4), (8, 8, 16), (8, 8, 0)])
def test_a_patch_that_does_not_divide_the_image_is_a_usage_error(height, width, p):
    with pytest.raises(UsageError, match=r"set vocabulary.patch to a divisor"):
        patches_of(np.zeros((1, height, width, 1), np.uint8), p)


def by_hand(patches: np.ndarray, codes: np.ndarray) -> list[tuple[int, int]]:
    """(squared distance, code) in Python's integers; the lowest of equal codes."""
    return [
        min((sum((a - b) ** 2 for a, b in zip(one, other)), code) for code, other in enumerate(codes.tolist()))
        for one in patches.tolist()
    ]


@pytest.mark.parametrize("width", [1, 2, 16, 48, 341, 342, 768])
def test_nearest_is_that_of_integers_with_ties_to_the_lowest(width):
    patches = noise(40, width)
    patches[:4] = [[0], [255], [127], [128]]
    codes = np.concatenate([noise(9, width, 1), np.full((1, width), 255, np.uint8), np.zeros((1, width), np.uint8)])
    codes = np.concatenate([codes, codes[::-1]])  # every code twice: a tie for each patch
    found = nearest(patches, codes)
    assert found.dtype == np.int32
    assert list(zip(errors(patches, found, codes).tolist(), found.tolist())) == by_hand(patches, codes)


@pytest.mark.parametrize("width", [16, 341, 342, 768])
def test_distances_that_differ_by_one_are_told_apart(width):
    """The hardest case: the largest sums, of white and nearly black, and scores that differ by a half."""
    sums = {a * a + b * b: (a, b) for a in range(200, 256) for b in range(a, 256)}
    near, far = next((sums[total], sums[total + 1]) for total in sums if total + 1 in sums)
    patch = np.full((1, width), 255, np.uint8)
    codes = np.zeros((2, width), np.uint8)
    codes[0, -2:], codes[1, -2:] = 255 - np.array(far), 255 - np.array(near)
    assert np.diff(errors(patch.repeat(2, 0), np.arange(2, dtype=np.int32), codes)).tolist() == [-1]
    assert nearest(patch, codes)[0] == 1
    assert nearest(255 - patch, 255 - codes)[0] == 1


def test_a_mean_is_rounded_to_the_nearest_byte_and_a_half_up():
    sums, counts = np.array([[1], [3], [4], [5], [510]]), np.array([2, 2, 3, 3, 2])
    assert codebook._rounded(sums, counts).ravel().tolist() == [1, 2, 1, 2, 255]


def test_the_codebook_is_the_same_for_one_and_two_threads_of_blas(monkeypatch):
    monkeypatch.setattr(codebook, "one_thread", nullcontext)
    patches = patches_of(drawn_images.drawn(600), 4).reshape(-1, 16)
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            found.append(learn(patches, 60, seed=3, epochs=2, batch=256).tobytes())
    assert found[0] == found[1]


@pytest.mark.parametrize("batch", [1, 50, 4096])
def test_a_codebook_has_different_codes_by_brightness_and_as_many_as_asked(batch):
    patches = noise(400, 12)
    codes = learn(patches, 32, seed=0, epochs=2, batch=batch)
    assert codes.shape == (32, 12)
    assert codes.dtype == np.uint8
    rows = [(sum(one), one) for one in codes.tolist()]
    assert rows == sorted(rows)
    assert len(np.unique(codes, axis=0)) == 32


def test_codes_are_no_worse_than_one_mean_and_than_patches_at_random():
    patches = patches_of(drawn_images.drawn(500), 4).reshape(-1, 16)
    codes = learn(patches, 40, seed=0, epochs=3, batch=512)
    error = errors(patches, nearest(patches, codes), codes).sum()
    mean = np.round(patches.mean(0)).astype(np.uint8)[None]
    assert error < errors(patches, np.zeros(len(patches), np.int32), mean).sum()
    different = np.unique(patches, axis=0)
    some = different[np.random.default_rng(0).permutation(len(different))[:40]]
    assert error < errors(patches, nearest(patches, some), some).sum()


@pytest.mark.parametrize("size", [5, 6, 7, 100])
def test_where_there_are_no_more_different_patches_they_are_the_codes(size):
    different = np.unique(noise(5, 16), axis=0)
    patches = different[np.random.default_rng(0).integers(0, 5, 300)]
    codes = learn(patches, size, seed=0, epochs=2, batch=64)
    assert sorted(map(bytes, codes)) == sorted(map(bytes, different))
    assert not errors(patches, nearest(patches, codes), codes).any()


def test_a_start_with_too_few_different_patches_is_filled_up_with_the_worst():
    """Nearly all patches are one: the mini-batches lose codes, and the rare patches must become codes all the same."""
    patches = np.concatenate([np.zeros((50_000, 16), np.uint8), noise(60, 16)])
    codes = learn(patches, 50, seed=0, epochs=1, batch=4096)
    assert len(np.unique(codes, axis=0)) == 50
    assert (errors(patches, nearest(patches, codes), codes) > 0).sum() <= 60


def test_a_code_that_gets_no_patch_moves_to_the_patch_with_the_largest_error():
    patches = np.array([[0], [1], [2], [100], [250]], np.uint8)
    stuck = np.array([[0], [255], [180], [181]], np.uint8)
    with codebook.progress("test") as bar:
        after = codebook._epoch(patches, stuck, np.arange(5), 5, bar)
    # 0, 1, 2 -> 1; 250 -> 250; 180 takes 100; nothing is left for 181, which goes to the worst patch not yet a code
    assert sorted(after.ravel().tolist()) == [1, 2, 100, 250]


def test_another_seed_is_another_start():
    patches = noise(500, 12)
    assert (learn(patches, 20, 0, 1, 64) != learn(patches, 20, 1, 1, 64)).any()


def test_decoding_is_off_by_no_more_than_the_furthest_patch_is_from_its_code():
    images = drawn_images.drawn(80, 12, 8, 3)
    patches = patches_of(images, 4)
    flat = patches.reshape(-1, 48)
    codes = learn(flat, 30, seed=0, epochs=2, batch=64)
    found = nearest(flat, codes)
    again = pixels_of(codes[found].reshape(patches.shape), (3, 2), 4, 3)
    off = np.square(images.astype(int) - again).sum((1, 2, 3))
    assert (off <= 6 * errors(flat, found, codes).max()).all()


def test_images_are_read_with_their_splits_for_any_row_groups(tmp_path):
    images = drawn_images.drawn(120, 6, 4, 3)
    for group in (1, 7, 1000):
        corpus = drawn_images.corpus(drawn_images.Store(tmp_path), images, group=group)
        for split in drawn_images.SPLITS:
            read = np.concatenate([pixels for name, pixels in codebook.read_images(corpus) if name == split])
            wanted = [images[number] for number in range(120) if drawn_images.split_of(number) == split]
            assert (read == wanted).all()


def test_a_damaged_file_and_an_image_of_another_size_are_named(tmp_path):
    store = drawn_images.Store(tmp_path)
    corpus = drawn_images.corpus(store, drawn_images.drawn(30))
    lying = drawn_images.Manifest(
        **vars(corpus) | {"facts": {**corpus.facts, "image": {"height": 8, "width": 4, "channels": 1}}}
    )
    with pytest.raises(DataError, match=r"documents-00000\.parquet cannot be read"):
        list(codebook.read_images(lying))
    path = corpus.path("documents-00001.parquet")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"documents-00001\.parquet is damaged"):
        list(codebook.read_images(corpus))


def test_a_corpus_of_text_is_refused(tmp_path):
    corpus = drawn_images.corpus(drawn_images.Store(tmp_path), drawn_images.drawn(30))
    text = drawn_images.Manifest(**vars(corpus) | {"facts": {}})
    with pytest.raises(UsageError, match="not a corpus of images"):
        list(codebook.read_images(text))


def test_a_split_of_another_name_is_not_skipped(tmp_path):
    corpus = drawn_images.corpus(drawn_images.Store(tmp_path), drawn_images.drawn(4), ["train", "train", "dev", "test"])
    with pytest.raises(DataError, match="a split is none of train, validation, test"):
        list(codebook.read_images(corpus))
