"""A visual vocabulary: the patches of images, and the codes nearest to them. Every number is exact.

An image is cut into squares of side p; a code is a patch that stands for the patches nearest to it (k-means: vector
quantisation, as the codebook of BEiT v2 has it, but of pixels). Codes are learnt with mini-batches (Sculley 2010,
"Web-scale k-means clustering") from a k-means++ start (Arthur and Vassilvitskii 2007).

Pixels are bytes, sums of them are integers, and a code is a mean rounded to bytes. A matrix product only ever adds
multiples of ½ that its floats hold, so it gives the same on every machine, for any BLAS and number of threads.

Suffixes: B images, H rows, W columns, C channels; N = h·w patches of an image in raster order; P = p·p·C bytes of a
patch, in order of row, column, channel; X patches of any images; K codes.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import DataError, UsageError
from .keys import Domain, permutation, stream
from .progress import Bar, progress

if TYPE_CHECKING:
    import pyarrow as pa
    from threadpoolctl import ThreadpoolController

    from .artifacts import Manifest

Bytes = NDArray[np.uint8]

SPLITS = ("train", "validation", "test")
BATCH_BYTES = 4 << 20
"""Pixels read at a time."""
SCORES_BYTES = 1 << 20
"""Of patches and their scores held at a time: what a core's cache holds is fast."""
MIDDLE = 128
"""Taken off every pixel before a product: products of bytes would need four times the room."""
SEEDS = 1 << 14
"""Patches that the start is drawn from, or four for each code where that is more."""


def patches_of(pixels_BHWC: Bytes, p: int) -> Bytes:
    """Images cut into patches: uint8 (B, N, P). Raises UsageError where p does not divide H and W."""
    images, height, width, channels = pixels_BHWC.shape
    if p < 1 or height % p or width % p:
        raise UsageError(
            f"A patch of side {p} does not divide images of {height} × {width} pixels; set vocabulary.patch to a "
            "divisor of both."
        )
    rows, columns = height // p, width // p
    split = pixels_BHWC.reshape(images, rows, p, columns, p, channels).transpose(0, 1, 3, 2, 4, 5)
    return np.ascontiguousarray(split).reshape(images, rows * columns, p * p * channels)


def pixels_of(patches_BNP: Bytes, grid: tuple[int, int], p: int, channels: int) -> Bytes:
    """`patches_of` undone: uint8 (B, H, W, C). `grid` is (h, w)."""
    images, (rows, columns) = len(patches_BNP), grid
    split = patches_BNP.reshape(images, rows, columns, p, p, channels).transpose(0, 1, 3, 2, 4, 5)
    return np.ascontiguousarray(split).reshape(images, rows * p, columns * p, channels)


def nearest(patches_XP: Bytes, codebook_KP: Bytes) -> NDArray[np.int32]:
    """The code at the least squared distance from each patch, the lowest of equal ones: int32 (X,).

    ‖x − c‖² is least where x·c − ‖c‖²/2 is largest. With 128 taken off every pixel no partial sum passes P·24576; that
    is a multiple of ½ which float32 holds up to P = 341, and float64 for any larger patch.
    """
    codes, width = codebook_KP.shape
    kind = _real(width)
    centred_KP = codebook_KP.astype(np.int64) - MIDDLE
    halves_K = -np.square(centred_KP).sum(1) / 2
    weights = np.ascontiguousarray(np.column_stack([centred_KP, halves_K]).T.astype(kind))
    rows = min(len(patches_XP), max(64, SCORES_BYTES // ((codes + width) * weights.itemsize)))
    scores, augmented = np.empty((rows, codes), kind), np.ones((rows, width + 1), kind)
    found_X = np.empty(len(patches_XP), np.int32)
    with one_thread():
        for start in range(0, len(patches_XP), rows or 1):
            some = patches_XP[start : start + rows]
            augmented[: len(some), :width] = some
            augmented[: len(some), :width] -= MIDDLE
            np.matmul(augmented[: len(some)], weights, out=scores[: len(some)])
            found_X[start : start + len(some)] = scores[: len(some)].argmax(1)
    return found_X


def one_thread() -> AbstractContextManager[Any]:
    """For the time of the block BLAS has one thread: products this narrow wait for memory, and where other work has
    the cores, threads that wait for each other take twenty times as long. The numbers are the same.
    """
    return _pools().limit(limits=1)


@cache
def _pools() -> "ThreadpoolController":
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


def errors(patches_XP: Bytes, codes_X: NDArray[np.int32], codebook_KP: Bytes) -> NDArray[np.int64]:
    """Squared distance of each patch from its code, in squares of pixel values summed over P: int64 (X,)."""
    found_X = np.empty(len(patches_XP), np.int64)
    rows = max(1, BATCH_BYTES // (4 * patches_XP.shape[1]))
    for start in range(0, len(found_X), rows):
        off = patches_XP[start : start + rows].astype(np.int32)
        off -= codebook_KP[codes_X[start : start + rows]]
        found_X[start : start + rows] = np.einsum("xp,xp->x", off, off, dtype=np.int64)
    return found_X


def _real(width: int) -> Any:
    """The float type in which scores are exact."""
    return np.float32 if width * 3 << 13 < 1 << 23 else np.float64


def learn(patches_XP: Bytes, size: int, seed: int, epochs: int, batch: int) -> Bytes:
    """A codebook of these patches: uint8 (K, P), all different, by brightness and then by bytes.

    K = size, or all the different patches where there are no more of them. `batch` patches between two updates of the
    codes; their order in an epoch is keys.permutation.
    """
    whole = _different(patches_XP, size)
    if whole is not None:
        return _ordered(whole)
    codebook_KP = _start(patches_XP, size, seed)
    with progress("vocabulary", epochs * len(patches_XP), "patches") as bar:
        for epoch in range(epochs):
            order = permutation(seed, epoch, len(patches_XP))
            codebook_KP = _epoch(patches_XP, codebook_KP, order, batch, bar)
    return _ordered(_filled(np.unique(codebook_KP, axis=0), patches_XP, size))


def _different(patches_XP: Bytes, most: int) -> Bytes | None:
    """All different patches; None where there are more than `most`."""
    width = patches_XP.shape[1]
    seen: set[bytes] = set()
    for start in range(0, len(patches_XP), 4096):
        some = np.ascontiguousarray(patches_XP[start : start + 4096])
        seen.update(some.view(f"V{width}").ravel().tolist())
        if len(seen) > most:
            return None
    return np.frombuffer(b"".join(sorted(seen)), np.uint8).reshape(-1, width)


def _ordered(codebook_KP: Bytes) -> Bytes:
    """By brightness, then by bytes: neighbours look alike, and an id means the same whatever the codes' order was."""
    by_bytes = np.unique(codebook_KP, axis=0)
    return by_bytes[np.argsort(by_bytes.sum(1, dtype=np.int64), kind="stable")]


def _start(patches_XP: Bytes, size: int, seed: int) -> Bytes:
    """k-means++: each further code is a patch drawn in proportion to its squared distance from those before it.

    Fewer than `size` where the patches that it is drawn from have no more different ones.
    """
    number = max(SEEDS, 4 * size)
    some = patches_XP
    if len(patches_XP) > number:
        some = patches_XP[np.sort(permutation(seed, 0, len(patches_XP))[:number])]
    width = some.shape[1]
    centred = (some.astype(np.int16) - MIDDLE).astype(_real(width))
    squares = np.square(some.astype(np.int64) - MIDDLE).sum(1)
    chosen = [stream(seed, Domain.CHOICE, 0) % len(some)]
    far = np.full(len(some), np.iinfo(np.int64).max)
    with one_thread():
        for draw in range(1, size):
            last = chosen[-1]
            off = squares + squares[last] - 2 * (centred @ centred[last]).astype(np.int64)
            np.minimum(far, off, out=far)
            reach = np.cumsum(far)
            if not reach[-1]:
                break
            chosen.append(int(np.searchsorted(reach, stream(seed, Domain.CHOICE, draw) % int(reach[-1]), "right")))
    return some[chosen]


def _epoch(patches_XP: Bytes, codebook_KP: Bytes, order: NDArray[np.int64], batch: int, bar: Bar) -> Bytes:
    """Every patch once. A code is the mean of all patches that it got in this epoch (rate 1/n), and stays where it is
    until it gets one; codes that got none are put on the patches that were furthest from theirs.
    """
    codes, width = codebook_KP.shape
    codebook_KP = codebook_KP.copy()
    sums_KP, counts_K = np.zeros((codes, width), np.int64), np.zeros(codes, np.int64)
    far_X = np.empty(len(patches_XP), np.int64)
    for start in range(0, len(order), batch):
        at = order[start : start + batch]
        some = patches_XP[at]
        found = nearest(some, codebook_KP)
        far_X[at] = errors(some, found, codebook_KP)
        _add(sums_KP, counts_K, some, found)
        there = counts_K > 0
        codebook_KP[there] = _rounded(sums_KP[there], counts_K[there])
        bar.advance(len(at))
    lost = np.flatnonzero(counts_K == 0)
    others = np.delete(codebook_KP, lost, axis=0)
    new = _furthest(patches_XP, far_X, len(lost), others)
    return np.concatenate([others, new])


def _add(sums_KP: NDArray[np.int64], counts_K: NDArray[np.int64], some: Bytes, found: NDArray[np.int32]) -> None:
    """Adds patches to the sums and counts of their codes."""
    order = np.argsort(found, kind="stable")
    there, first = np.unique(found[order], return_index=True)
    sums_KP[there] += np.add.reduceat(some[order], first, axis=0, dtype=np.int64)
    counts_K += np.bincount(found, minlength=len(counts_K))


def _rounded(sums_KP: NDArray[np.int64], counts_K: NDArray[np.int64]) -> Bytes:
    """Means, a half rounded up."""
    return ((2 * sums_KP + counts_K[:, None]) // (2 * counts_K[:, None])).astype(np.uint8)


def _furthest(patches_XP: Bytes, far_X: NDArray[np.int64], number: int, taken: Bytes) -> Bytes:
    """The patches with the largest errors, the first of equal ones; all different, none of them `taken` or exact."""
    seen = {row.tobytes() for row in taken}
    found: list[bytes] = []
    if number:
        for at in np.argsort(-far_X, kind="stable"):
            one = patches_XP[at].tobytes()
            if len(found) == number or not far_X[at]:
                break
            if one not in seen:
                found.append(one)
                seen.add(one)
    return np.frombuffer(b"".join(found), np.uint8).reshape(-1, patches_XP.shape[1])


def _filled(codebook_KP: Bytes, patches_XP: Bytes, size: int) -> Bytes:
    """With the worst patches as codes, until there are `size`. There are more different patches than that."""
    while len(codebook_KP) < size:
        far_X = errors(patches_XP, nearest(patches_XP, codebook_KP), codebook_KP)
        new = _furthest(patches_XP, far_X, size - len(codebook_KP), codebook_KP)
        codebook_KP = np.concatenate([codebook_KP, new])
    return codebook_KP


def read_images(corpus: "Manifest") -> Iterator[tuple[str, Bytes]]:
    """(split, pixels (B, H, W, C)) in corpus order, megabytes at a time.

    Raises DataError naming the file that cannot be read, or that has an image of another shape.
    """
    import pyarrow as pa

    shape = shape_of(corpus)
    for name in sorted(name for name in corpus.files if name.endswith(".parquet")):
        path = corpus.whole(name)
        try:
            for batch in _batches(path):
                split = np.array(batch.column("split").to_pylist(), object)
                if not np.isin(split, SPLITS).all():
                    raise pa.ArrowInvalid(f"a split is none of {', '.join(SPLITS)}")
                pixels = images_of(batch.column("pixels"), shape)
                for label in SPLITS:
                    some = split == label
                    if some.any():
                        yield label, pixels[some]
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, KeyError) as error:
            why = str(error).splitlines()[0]
            raise DataError(f"{path} cannot be read ({why}); run `maskmill verify corpus`.") from None


def shape_of(corpus: "Manifest") -> tuple[int, int, int]:
    """(H, W, C) of all its images. Raises UsageError for a corpus of another kind."""
    image = corpus.facts.get("image")
    if corpus.facts.get("modality") != "images" or not image:
        raise UsageError(
            f"{corpus.folder} is not a corpus of images; give the visual vocabulary one that was made from images."
        )
    return int(image["height"]), int(image["width"]), int(image["channels"])


def _batches(path: Path) -> "Iterator[pa.RecordBatch]":
    """Row groups in batches of about BATCH_BYTES; page checksums are checked."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        for group in range(file.num_row_groups):
            about = file.metadata.row_group(group)
            rows = max(1, BATCH_BYTES * about.num_rows // max(1, about.total_byte_size))
            yield from file.iter_batches(rows, row_groups=[group], columns=["pixels", "split"])


def images_of(column: "pa.Array", shape: tuple[int, int, int]) -> Bytes:
    """The images of a column of bytes, where they lie."""
    import pyarrow as pa

    size = int(np.prod(shape))
    if column.null_count:
        raise pa.ArrowInvalid("an image is null")
    fixed = column.cast(pa.binary(size))  # raises ArrowInvalid where one has another number of bytes
    return np.frombuffer(fixed.buffers()[1], np.uint8)[fixed.offset * size :][: len(fixed) * size].reshape(-1, *shape)
