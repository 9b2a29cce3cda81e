"""The roofline of steps.py: the matrix products of a training step, and nothing else.

For each linear layer one product forward and two backward, two and four for attention (all positions of a row with each
other), the head at masked places, and Muon's Newton-Schulz iterations by shape, always in bfloat16. The operands lie in
memory, one set for all layers, and nothing else is computed: no step that takes all of these products can be faster.
"""

from collections.abc import Iterator
from fractions import Fraction

import torch
from torch import Tensor
from trial import Data, Shape

NEWTON_SCHULZ = 5


class Products:
    """The matrix products of a step of ours, as a side."""

    def __init__(
        self,
        shape: Shape,
        data: Data,
        dtype: str = "bfloat16",
        rows: int = 0,
        micro: int = 0,
        mask_rate: float = 0.15,
        optimizer: str = "muon",
    ) -> None:
        self.rows = rows or shape.rows
        micro = micro or self.rows
        train = data.shards.facts["splits"]["train"]
        self.tokens = self.rows * train["tokens"] // train["rows"]
        masked = int(micro * shape.length * Fraction(str(mask_rate)))
        found = list(self._network(shape, micro, masked, getattr(torch, dtype))) * (self.rows // micro)
        if optimizer == "muon":
            found += self._newton_schulz(shape)
        self.products = found
        self.flops = sum(2 * left.numel() * right.shape[-1] for left, right, _ in found)

    def _network(self, shape: Shape, rows: int, masked: int, dtype: torch.dtype) -> Iterator[tuple[Tensor, ...]]:
        places, width, inner, heads = rows * shape.length, shape.width, shape.intermediate, shape.heads
        linear = [
            (places, width, 3 * width),
            (places, width, width),
            (places, width, 2 * inner),
            (places, inner, width),
        ]
        made = [product for sizes in linear for product in _linear(*sizes, dtype)]
        made += _attention(rows * heads, shape.length, width // heads, dtype)
        for _ in range(shape.layers):
            yield from made
        yield from (*_linear(masked, width, width, dtype), *_linear(masked, width, shape.vocabulary, dtype))

    def _newton_schulz(self, shape: Shape) -> list[tuple[Tensor, ...]]:
        d, f, layers = shape.width, shape.intermediate, shape.layers
        made = []
        for number, low, high in (
            (4 * layers + 1, d, d),
            (2 * layers, min(d, f), max(d, f)),
            (layers, min(d, f), max(d, f)),
        ):
            x, gram = _some(number, low, high), _some(number, low, low)
            once = [(x, x.mT, gram), (gram, gram, torch.empty_like(gram)), (gram, x, torch.empty_like(x))]
            made += once * NEWTON_SCHULZ
        return made

    def prepare(self, steps: int = 1) -> None:
        """Nothing: the operands are there."""

    def step(self, share: float = 0.0) -> int:
        with torch.no_grad():
            for left, right, out in self.products:
                torch.matmul(left, right, out=out)
        return self.tokens


def _some(*sizes: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return (torch.randn(sizes) * 0.05).to(dtype)


def _linear(places: int, wide: int, out: int, dtype: torch.dtype) -> list[tuple[Tensor, ...]]:
    """y = x Wᵀ, then dx = dy W and dW = dyᵀ x."""
    x, y, w = (_some(*sizes, dtype=dtype) for sizes in ((places, wide), (places, out), (out, wide)))
    return [(x, w.T, y), (y, w, torch.empty_like(x)), (y.T, x, torch.empty_like(w))]


def _attention(batch: int, length: int, wide: int, dtype: torch.dtype) -> list[tuple[Tensor, ...]]:
    """q kᵀ and p v, then dp = do vᵀ, dv = pᵀ do, dq = ds k, dk = dsᵀ q."""
    q, p = _some(batch, length, wide, dtype=dtype), _some(batch, length, length, dtype=dtype)
    wide_out, square_out = torch.empty_like(q), torch.empty_like(p)
    square, into = (q, q.mT, square_out), (p, q, wide_out)
    return [square, into, square, (p.mT, q, wide_out), into, (p.mT, q, wide_out)]
