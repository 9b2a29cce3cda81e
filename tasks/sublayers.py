"""The two halves of a block, and the tied embedding, with gradients written by hand: the training step on a CPU.

    h <- h + W_o attention(norm(h))          h <- h + W_down (gelu(W_gate norm(h)) ∘ W_up norm(h))

They compute what the modules of `encoder` compute, with fewer passes over memory, which is where a CPU loses the time
that the matrix products leave: weights are cast and joined in one pass, queries and keys are rotated as complex numbers
on their way to the heads, the mlp's inner values are feature-major so that gate and up are contiguous halves, sums go
in place, and the residual stream stays in float32 while all else has the products' type. Figures are in the README.

Suffixes: B rows, L positions, N = B·L, D width, H heads, K width of a head, F inner width, M positions that are asked
for, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .attention import Dropout, mix, unmix
from .tiles import Segments

aten = torch.ops.aten
Grads = tuple[Tensor | None, ...]
NO_DROPOUT = Dropout(0.0)


def turns(positions_BL: Tensor, theta: float, head_width: int) -> Tensor:
    """exp(i · position · theta^(-2k/K)) for the K/2 pairs k, times K^-1/2 for queries, then for keys.

    complex64 (2, 1, N, K/2) (Su et al. 2021).
    """
    exponents = torch.arange(0, head_width, 2, dtype=torch.float32) / head_width
    at_L = torch.arange(positions_BL.shape[1], dtype=torch.float32)
    angles = at_L[:, None] * (1.0 / theta**exponents)
    turn = torch.polar(torch.ones_like(angles), angles).index_select(0, positions_BL.flatten())
    return torch.stack((turn * head_width**-0.5, turn))[:, None]


def _normed(h: Tensor, scale: Tensor | None, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """norm(h) as (N, D) of `dtype`, and the statistics; h itself where there is no scale."""
    if scale is None:
        return h.to(dtype).flatten(0, -2), h, h
    x, mean, rstd = aten.native_layer_norm(h, h.shape[-1:], scale, None, eps)
    return x.to(dtype).flatten(0, -2), mean, rstd


def _through_norm(
    grad_x: Tensor, h: Tensor, mean: Tensor, rstd: Tensor, scale: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Gradients of h, a tensor of its own, and of the scale, from that of norm(h)."""
    grad_x = grad_x.to(h.dtype).view_as(h)
    if scale is None:
        return grad_x, None
    grad_h, grad_scale, _ = aten.native_layer_norm_backward(
        grad_x, h, h.shape[-1:], mean, rstd, scale, None, [True, True, False]
    )
    return grad_h, grad_scale


def _plus(h: Tensor, y: Tensor) -> Tensor:
    """h + y in the type of h, as a new tensor: casting first takes fewer passes than adding two types."""
    return y.to(h.dtype, copy=y.dtype == h.dtype).add_(h)


def _paired(weight_DD: Tensor, heads: int) -> Tensor:
    """Rows 0, K/2, 1, K/2 + 1, … of each head, as (H, K/2, 2, D): a pair that is turned together is one complex number.

    q k^T does not change when both take the same order.
    """
    return weight_DD.view(heads, 2, -1, weight_DD.shape[1]).transpose(1, 2)


class AttentionHalf(torch.autograd.Function):
    """h + W_o attention(norm(h)), of all positions or of those that are asked for: (B, L, D) -> (B, L, D) or (M, D)."""

    @staticmethod
    def forward(
        ctx: Any,
        h_BLD: Tensor,
        scale_D: Tensor | None,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        masked_M: Tensor | None,
        turn: Tensor,
        segments: Segments,
        setting: tuple[bool, int, float, torch.dtype],
    ) -> Tensor:
        is_global, heads, eps, dtype = setting
        width = h_BLD.shape[-1]
        x_ND, mean, rstd = _normed(h_BLD, scale_D, eps, dtype)
        weight_3DD = torch.empty(3, width, width, dtype=dtype)
        for joined, one in zip(weight_3DD, (query, key), strict=False):
            joined.view(heads, -1, 2, width).copy_(_paired(one, heads))
        weight_3DD[2].copy_(value)
        qkv = (x_ND @ weight_3DD.view(3 * width, width).T).view(len(x_ND), 3, heads, -1).permute(1, 2, 0, 3)
        turned = torch.empty(2, *qkv.shape[1:], dtype=h_BLD.dtype).copy_(qkv[:2])
        torch.view_as_complex(turned.unflatten(-1, (-1, 2))).mul_(turn)  # type: ignore[no-untyped-call]
        q_HNK, k_HNK = turned.to(dtype)
        v_HNK = qkv[2].contiguous()
        del qkv, turned
        mixed_HNK, kept = mix(q_HNK, k_HNK, v_HNK, segments, is_global, NO_DROPOUT)
        mixed_ND = mixed_HNK.transpose(0, 1).reshape(len(x_ND), width)
        if masked_M is not None:
            h_MD, mixed_ND = h_BLD.view(-1, width).index_select(0, masked_M), mixed_ND.index_select(0, masked_M)
        weight_o = output.to(dtype)
        given = (h_BLD, scale_D, mean, rstd, x_ND, q_HNK, k_HNK, v_HNK, mixed_ND, weight_3DD, weight_o, turn, masked_M)
        ctx.save_for_backward(*given, *kept)
        ctx.segments, ctx.is_global, ctx.heads = segments, is_global, heads
        out = _plus(h_BLD.view(-1, width) if masked_M is None else h_MD, mixed_ND @ weight_o.T)
        return out.view_as(h_BLD) if masked_M is None else out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Grads:
        h, scale, mean, rstd, x_ND, q, k, v, mixed, weight_3DD, weight_o, turn, masked_M, *kept = ctx.saved_tensors
        heads, (positions, width), dtype = ctx.heads, x_ND.shape, x_ND.dtype
        grad_y = grad.to(dtype).view(-1, width)
        grad_output = (grad_y.T @ mixed).to(h.dtype)
        grad_mixed = grad_y @ weight_o
        if masked_M is not None:
            grad_mixed = torch.zeros_like(x_ND).index_add_(0, masked_M, grad_mixed)
        grad_HNK = grad_mixed.view(positions, heads, -1).transpose(0, 1).contiguous()
        *grads, grad_v = unmix(grad_HNK, q, k, v, ctx.segments, ctx.is_global, NO_DROPOUT, kept)
        turned = torch.empty(2, *grad_v.shape, dtype=h.dtype)
        for one, grad_one in zip(turned, grads, strict=True):
            one.copy_(grad_one)
        torch.view_as_complex(turned.unflatten(-1, (-1, 2))).mul_(turn.conj())  # type: ignore[no-untyped-call]
        grad_qkv = torch.empty(positions, 3, heads, grad_v.shape[-1], dtype=dtype)
        grad_qkv[:, :2].copy_(turned.permute(2, 0, 1, 3))
        grad_qkv[:, 2].copy_(grad_v.transpose(0, 1))
        grad_qkv = grad_qkv.view(positions, 3 * width)
        grad_weight = (grad_qkv.T @ x_ND).view_as(weight_3DD)
        grad_x = grad_qkv @ weight_3DD.view(3 * width, width)
        grad_h, grad_scale = _through_norm(grad_x, h, mean, rstd, scale)
        if masked_M is None:
            grad_h += grad
        else:
            grad_h.view(-1, width).index_add_(0, masked_M, grad)
        grad_parts = torch.empty(3, width, width, dtype=h.dtype)
        for one, joined in zip(grad_parts, grad_weight[:2], strict=False):
            _paired(one, heads).copy_(joined.view(heads, -1, 2, width))
        grad_parts[2].copy_(grad_weight[2])
        return grad_h, grad_scale, *grad_parts, grad_output, *[None] * 4


class MlpHalf(torch.autograd.Function):
    """h + W_down (gelu(W_gate norm(h)) ∘ W_up norm(h)): (…, D) -> (…, D)."""

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, scale_D: Tensor, gate: Tensor, up: Tensor, down: Tensor, eps: float, dtype: torch.dtype
    ) -> Tensor:
        x_ND, mean, rstd = _normed(h, scale_D, eps, dtype)
        weight_2FD = torch.empty(2, *gate.shape, dtype=dtype)
        weight_2FD[0].copy_(gate)
        weight_2FD[1].copy_(up)
        gate_FN, up_FN = (weight_2FD.flatten(0, 1) @ x_ND.T).unflatten(0, (2, -1))  # type: ignore[no-untyped-call]
        gelu_FN = F.gelu(gate_FN)
        inner_FN, weight_down = gelu_FN * up_FN, down.to(dtype)
        ctx.save_for_backward(h, scale_D, mean, rstd, x_ND, gate_FN, up_FN, gelu_FN, inner_FN, weight_2FD, weight_down)
        return _plus(h, (inner_FN.T @ weight_down.T).view_as(h))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Grads:
        h, scale, mean, rstd, x_ND, gate_FN, up_FN, gelu_FN, inner_FN, weight_2FD, weight_down = ctx.saved_tensors
        grad_y = grad.to(x_ND.dtype).view(x_ND.shape)
        grad_down = (inner_FN @ grad_y).T.to(h.dtype, memory_format=torch.contiguous_format)
        grad_inner = weight_down.T @ grad_y.T
        grad_2FN = torch.empty(2, *gate_FN.shape, dtype=gate_FN.dtype)
        torch.mul(grad_inner, gelu_FN, out=grad_2FN[1])
        aten.gelu_backward.grad_input(grad_inner.mul_(up_FN), gate_FN, grad_input=grad_2FN[0])
        grad_gate, grad_up = (grad_2FN.flatten(0, 1) @ x_ND).to(h.dtype).view(weight_2FD.shape)
        grad_x = grad_2FN.flatten(0, 1).T @ weight_2FD.flatten(0, 1)
        grad_h, grad_scale = _through_norm(grad_x, h, mean, rstd, scale)
        return grad_h.add_(grad), grad_scale, grad_gate, grad_up, grad_down, None, None


class TiedEmbedding(torch.autograd.Function):
    """The rows of some tokens, and the whole matrix for the head: (V, D) -> (B, L, D) and (V, D).

    Its gradient is the head's, which hands over a tensor of its own, with that of the rows added in place: no second
    matrix of the size of the vocabulary is filled, and all uses of the parameter are behind one node.
    """

    @staticmethod
    def forward(ctx: Any, weight_VD: Tensor, tokens_BL: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(tokens_BL)
        return F.embedding(tokens_BL, weight_VD), weight_VD.view_as(weight_VD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BLD: Tensor, grad_VD: Tensor) -> Grads:
        (tokens_BL,) = ctx.saved_tensors
        rows_N1 = tokens_BL.reshape(-1, 1).expand(-1, grad_VD.shape[1])
        return grad_VD.scatter_add_(0, rows_N1, grad_BLD.flatten(0, 1)), None
