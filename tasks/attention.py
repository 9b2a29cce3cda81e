"""softmax(q k^T / sqrt(K)) v inside the segments of packed rows, by what is fastest on the device.

On a CPU: plain products over tiles (`tiles`), forward and backward, since scaled_dot_product_attention has no fast
backward pass there in 16 bits (figures in the README).

    P = softmax(q k^T + bias),  o = P v
    dv = P^T do,  dP = do v^T,  dS = P ∘ (dP − rowsum(P ∘ dP)),  dq = dS k,  dk = dS^T q

P is kept for the backward pass unless a tile has more than 2^20 scores (a segment beyond 1024 positions): then it is
computed in stripes of queries, and again in the backward pass, so that nothing of the size L x L exists.

On CUDA: `varlen_attn` of torch in 16 bits, whose kernels know segments and windows; otherwise (float32, or dropout of
P, which it lacks) scaled_dot_product_attention with masks, whose memory grows with L².

Suffixes: B rows, L positions, N = B·L, H heads, K width of a head, T tiles, Q queries and S keys of a tile, G = H·T.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .tiles import Segments

KEPT_SCORES = 1 << 20
"""Scores of a tile, per head, that are kept for the backward pass."""


class Dropout:
    """Dropout of attention weights that can be drawn again: its seed is drawn from torch's global generator."""

    def __init__(self, rate: float, seed: int | None = None) -> None:
        self.rate = rate
        self.seed = int(torch.randint(1 << 62, ())) if rate and seed is None else seed or 0
        self._generator = torch.Generator().manual_seed(self.seed) if rate else None

    def draw(self, weights: Tensor) -> Tensor | None:
        """What the next weights are multiplied with: 0, or 1 / (1 − rate). None without dropout."""
        if not self.rate:
            return None
        drawn = torch.empty_like(weights).bernoulli_(1 - self.rate, generator=self._generator)
        return drawn.div_(1 - self.rate)


def mix(
    query_HNK: Tensor, key_HNK: Tensor, value_HNK: Tensor, segments: Segments, is_global: bool, dropout: Dropout
) -> tuple[Tensor, list[Tensor | None]]:
    """o (H, N, K), and P of every group of tiles for `unmix`, None where it is made again.

    The queries are scaled by K^-1/2 already.
    """
    tiles, biases = segments.tiles(is_global), segments.bias(is_global, query_HNK.dtype)
    mixed, kept = [], []
    groups = (tiles.queries(query_HNK), tiles.keys(key_HNK), tiles.keys(value_HNK), biases)
    for query, key, value, bias in zip(*groups, strict=True):
        parts = []
        for at in _stripes(query, key):
            weights = _weights(query, key, bias, at, len(query_HNK))
            drawn = dropout.draw(weights)
            parts.append(torch.bmm(weights if drawn is None else weights * drawn, value))
        kept.append(weights if len(parts) == 1 else None)
        mixed.append(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1))
    return tiles.from_queries(mixed), kept


def unmix(
    grad_HNK: Tensor,
    query_HNK: Tensor,
    key_HNK: Tensor,
    value_HNK: Tensor,
    segments: Segments,
    is_global: bool,
    dropout: Dropout,
    kept: list[Tensor | None],
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv of `mix` (H, N, K); `dropout` begins anew with the seed that `mix` had."""
    tiles, biases = segments.tiles(is_global), segments.bias(is_global, query_HNK.dtype)
    found = []
    groups = (tiles.queries(grad_HNK), tiles.queries(query_HNK), tiles.keys(key_HNK), tiles.keys(value_HNK))
    for grad, query, key, value, bias, weights in zip(*groups, biases, kept, strict=True):
        if weights is not None:
            found.append(_gradients(grad, query, key, value, weights, dropout))
            continue
        grad_query = torch.empty_like(query)
        exact = torch.promote_types(key.dtype, torch.float32)  # many stripes are added up
        grad_key, grad_value = (torch.zeros(key.shape, dtype=exact) for _ in range(2))
        for at in _stripes(query, key):
            weights = _weights(query, key, bias, at, len(query_HNK))
            grads = _gradients(grad[:, at], query[:, at], key, value, weights, dropout)
            grad_query[:, at] = grads[0]
            grad_key += grads[1]
            grad_value += grads[2]
        found.append((grad_query, grad_key.to(key.dtype), grad_value.to(key.dtype)))
    queries, keys, values = (list(one) for one in zip(*found, strict=True))
    return tiles.from_queries(queries), tiles.from_keys(keys), tiles.from_keys(values)


def _stripes(query: Tensor, key: Tensor) -> list[slice]:
    """The queries of a group, cut so that a tile has at most KEPT_SCORES scores at a time."""
    step = max(1, KEPT_SCORES // key.shape[1])
    return [slice(first, first + step) for first in range(0, query.shape[1], step)]


def _weights(query_GQK: Tensor, key_GSK: Tensor, bias_TQS: Tensor | None, at: slice, heads: int) -> Tensor:
    """P of some queries of a group."""
    scores = torch.bmm(query_GQK[:, at], key_GSK.transpose(1, 2))
    if bias_TQS is not None:
        scores.view(heads, -1, *scores.shape[1:]).add_(bias_TQS if bias_TQS.shape[1] == 1 else bias_TQS[:, at])
    return torch.softmax(scores, -1, out=scores)


def _gradients(
    grad_GQK: Tensor, query_GQK: Tensor, key_GSK: Tensor, value_GSK: Tensor, weights: Tensor, dropout: Dropout
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv of some queries."""
    drawn = dropout.draw(weights)
    grad_value = torch.bmm((weights if drawn is None else weights * drawn).transpose(1, 2), grad_GQK)
    grad_weights = torch.bmm(grad_GQK, value_GSK.transpose(1, 2))
    if drawn is not None:
        grad_weights.mul_(drawn)
    grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
    return torch.bmm(grad_scores, key_GSK), torch.bmm(grad_scores.transpose(1, 2), query_GQK), grad_value


class Products(torch.autograd.Function):
    """`mix` with its gradient, for what is not written by hand around it."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, segments: Segments, is_global: bool, dropout_rate: float
    ) -> Tensor:
        dropout = Dropout(dropout_rate)
        mixed, kept = mix(query, key, value, segments, is_global, dropout)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.given = (segments, is_global, dropout_rate, dropout.seed)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        segments, is_global, rate, seed = ctx.given
        query, key, value, *kept = ctx.saved_tensors
        grads = unmix(grad, query, key, value, segments, is_global, Dropout(rate, seed), kept)
        return *grads, None, None, None


def attend(
    query_BLHK: Tensor, key_BLHK: Tensor, value_BLHK: Tensor, segments: Segments, is_global: bool, dropout: float
) -> Tensor:
    """softmax(q k^T / sqrt(K)) v per head, inside the segments and the layer's window: (B, L, H, K)."""
    query, key, value = query_BLHK, key_BLHK, value_BLHK
    rows, length, heads, width = query.shape
    if query.device.type == "cpu":
        query, key, value = (one.permute(2, 0, 1, 3).reshape(heads, -1, width) for one in (query, key, value))
        mixed: Tensor = Products.apply(  # type: ignore[no-untyped-call]
            query * width**-0.5, key, value, segments, is_global, dropout
        )
        return mixed.view(heads, rows, length, width).permute(1, 2, 0, 3)
    if not dropout and has_varlen(query.device, query.dtype, width):
        from torch.nn.attention.varlen import varlen_attn

        # Both ends are included: a query sees the keys at a distance of at most window // 2.
        reach = -1 if segments.sees_all(is_global) else segments.window // 2
        query, key, value = (one.flatten(0, 1) for one in (query, key, value))
        bounds = segments.bounds_S
        packed = varlen_attn(query, key, value, bounds, bounds, length, length, window_size=(reach, reach))
        return packed.view(rows, length, heads, width)  # type: ignore[union-attr]
    query, key, value = (one.transpose(1, 2) for one in (query, key, value))
    mask = segments.mask_B1LL(is_global)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout).transpose(1, 2)


@lru_cache
def has_varlen(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether the kernels behind `varlen_attn` (FlashAttention) know this device, type and width of a head."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0) and width % 8 == 0 and width <= 256
