"""Floating-point operations that a training step needs, and the matrix products it consists of. No torch.

    a product of (m, k) and (k, n)      2 m k n
    q, k, v, o of a block               4 products (N, D) (D, D)
    gate, up, down of a block           3 products (N, D) (D, F)
    attention of a layer                2 products, 2 · pairs · D each: q k^T and the mixing of values
    dense and decoder of the head       (|𝓜|, D) (D, D) and (|𝓜|, D) (D, V)
    backward                            twice the forward: a gradient for either factor

N counts the positions of segments, specials included and padding left out. Pairs are those that attention is defined
on: Σ len² where a layer is global, the window's true count where it is local; a kernel that computes more (a whole row,
a padded block) does not need more. Norms, rotations, activations, softmax and the optimizer are no products of the
model: their operations are few, though not their time. N, D, F, V, 𝓜 as in encoder.py and in the design.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Sizes(Protocol):
    """What an EncoderConfig says of its sizes."""

    @property
    def vocabulary_size(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def intermediate(self) -> int: ...
    @property
    def global_every(self) -> int: ...
    @property
    def window(self) -> int: ...


@dataclass(frozen=True)
class Flops:
    """Operations of a step, forward and backward, by part."""

    blocks: int
    attention: int
    head: int

    @property
    def total(self) -> int:
        return self.blocks + self.attention + self.head


@dataclass(frozen=True)
class Product:
    """`count` times a batch of `batch` products (m, k) (k, n): its two gradients too, which take as much each."""

    part: str
    """blocks, attention, head or optimizer."""
    count: int
    batch: int
    m: int
    k: int
    n: int
    gradients: bool = True
    """Whether the backward pass makes (m, n) (n, k) and (k, m) (m, n) of it."""

    @property
    def flops(self) -> int:
        """Operations, gradients included."""
        return 2 * self.count * self.batch * self.m * self.k * self.n * (3 if self.gradients else 1)


def segment_lengths(segment_ids_BL: ArrayLike) -> NDArray[np.int64]:
    """Lengths (S,) of the segments of packed rows: numbers equal in one contiguous run per segment, -1 on padding."""
    ids_BL = np.asarray(segment_ids_BL)
    begins_BL = np.ones(ids_BL.shape, bool)
    begins_BL[:, 1:] = ids_BL[:, 1:] != ids_BL[:, :-1]
    begins = np.flatnonzero(begins_BL)
    lengths = np.diff(begins, append=ids_BL.size)
    return lengths[ids_BL.reshape(-1)[begins] >= 0]


def pairs(lengths_S: ArrayLike, window: int | None = None) -> int:
    """(query, key) pairs of segments: Σ len², or those at a distance of at most window // 2."""
    lengths = np.asarray(lengths_S, np.int64)
    if window is None:
        return int((lengths * lengths).sum())
    reach = np.minimum(window // 2, np.maximum(lengths - 1, 0))
    # Each of len queries has 2 reach + 1 keys, less those beyond the two ends: 1 + 2 + … + reach at either.
    return int((lengths * (2 * reach + 1) - reach * (reach + 1)).sum())


def layers_of(sizes: Sizes) -> tuple[int, int]:
    """How many layers are global and how many local."""
    everywhere = len(range(0, sizes.layers, sizes.global_every))
    return everywhere, sizes.layers - everywhere


def step_flops(sizes: Sizes, lengths_S: ArrayLike, masked: int) -> Flops:
    """Operations of a step over segments of these lengths, specials included, with `masked` positions in 𝓜.

    What follows the last attention is needed at 𝓜 only.
    """
    positions, width = int(np.asarray(lengths_S).sum()), sizes.width
    everywhere, local = layers_of(sizes)
    attended = everywhere * pairs(lengths_S) + local * pairs(lengths_S, sizes.window)
    inner, outer = 3 * width * width, width * width + 3 * width * sizes.intermediate  # q, k, v; what follows
    blocks = sizes.layers * positions * inner + ((sizes.layers - 1) * positions + masked) * outer
    head = masked * (width * width + width * sizes.vocabulary_size)
    return Flops(*(3 * 2 * products for products in (blocks, 2 * attended * width, head)))


def parameters(sizes: Sizes) -> int:
    """Parameters of the model: the decoder is the embedding, and counts once."""
    width = sizes.width
    block = 4 * width * width + 3 * width * sizes.intermediate + 2 * width
    norms = width if sizes.layers else 0  # embedding norm, in place of the first block's own
    return sizes.vocabulary_size * (width + 1) + sizes.layers * block - norms + 2 * width + width * width + width


def products(sizes: Sizes, lengths_S: ArrayLike, masked: int, muon_steps: int = 0) -> list[Product]:
    """The matrix products of a step, as one would hand them to the fastest library: q, k, v together, gate and up too.

    Attention is written as products over segments of the mean length, with the mean number of keys: the operations are
    those that are needed, up to rounding. muon_steps: Newton-Schulz iterations of the optimizer, 0 without Muon.
    """
    lengths = np.asarray(lengths_S, np.int64)
    if not len(lengths):
        return []
    positions, width, middle = int(lengths.sum()), sizes.width, sizes.intermediate
    found = [
        Product("blocks", sizes.layers, 1, positions, width, 3 * width),
        *(
            Product("blocks", count, 1, rows, *of)
            for count, rows in ((sizes.layers - 1, positions), (1, masked))
            for of in ((width, width), (width, 2 * middle), (middle, width))
            if count
        ),
        Product("head", 1, 1, masked, width, width),
        Product("head", 1, 1, masked, width, sizes.vocabulary_size),
    ]
    mean, head_width = round(positions / len(lengths)), width // sizes.heads
    for layers, window in zip(layers_of(sizes), (None, sizes.window), strict=True):
        if layers:
            keys = max(1, round(pairs(lengths, window) / positions))
            found.append(Product("attention", layers, len(lengths) * sizes.heads, mean, head_width, keys))
            found.append(Product("attention", layers, len(lengths) * sizes.heads, mean, keys, head_width))
    return found + list(_newton_schulz(sizes, muon_steps))


def _newton_schulz(sizes: Sizes, steps: int) -> Iterator[Product]:
    """x x^T, its square, and that times x, for every hidden matrix, `steps` times (Jordan et al. 2024)."""
    width, middle, layers = sizes.width, sizes.intermediate, sizes.layers
    for number, rows, columns in ((4 * layers + 1, width, width), (3 * layers, *sorted((width, middle)))):
        if steps and number:
            yield Product("optimizer", steps, number, rows, columns, rows, gradients=False)
            yield Product("optimizer", steps, number, rows, rows, rows, gradients=False)
            yield Product("optimizer", steps, number, rows, rows, columns, gradients=False)


def as_dict(flops: Flops) -> dict[str, Any]:
    """For JSON: the parts and their sum."""
    return {"blocks": flops.blocks, "attention": flops.attention, "head": flops.head, "total": flops.total}
