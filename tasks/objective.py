"""The objective: equations (3) to (5) of the design.

    (3)  H' = { h_{L,j} | j ∈ 𝓜 }                 gather BEFORE the head
    (4)  Ĥ  = g(H')                               logits over the vocabulary, for 𝓜 only
    (5)  L  = Σ_{j∈𝓜} −log p(i | ĥ_j)             summed; whoever steps the optimiser divides, once, by the step's Σ|𝓜|

Suffixes: B rows, L positions, M slots for masked positions (a constant capacity; spare slots weigh 0), V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .encoder import MaskedLanguageModel, Segments


class Loss(NamedTuple):
    """Sums over 𝓜, never means: a mean of means has another gradient where the counts differ."""

    sum_nll: Tensor
    """Scalar, float32, in nats: Σ −log p(target)."""
    correct: Tensor
    """Scalar, float32, no gradient: how many argmaxes are the target."""


CHUNK = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Logits computed at a time: few enough to stay in the cache of a CPU, to bound the memory of a GPU."""
FEWEST_SLOTS = 64
"""However large the vocabulary: a thinner product would only read the embedding."""


class SummedCrossEntropy(torch.autograd.Function):
    """Equations (4) and (5) after the head's features, in chunks of slots: the logits (M, V) never exist at once.

        z_V = E h + b,   L = Σ_j w_j (log Σ_v exp z_v − z_i),   dL/dz_v = w_j (softmax(z)_v − [v = i])

    The products run in the type of `h_MD`, everything else in float32. The gradient is made in the forward pass, while
    a chunk's logits are at hand. Measured at M 2457, V 4096, D 128 (one thread, forward and backward): bf16 68 ms,
    float32 118 ms; `F.cross_entropy` on whole logits 130 and 180. `F.linear_cross_entropy` (torch 2.13, sum) takes 113
    and 107, but knows no weight per slot and no argmax, and under bf16 its sum is in bf16 (371 nats off in 20,000).
    """

    @staticmethod
    def forward(
        ctx: Any, h_MD: Tensor, embedding_VD: Tensor, bias_V: Tensor, targets_M: Tensor, weights_M: Tensor, learn: bool
    ) -> tuple[Tensor, Tensor]:
        nll, correct = weights_M.new_zeros(()), weights_M.new_zeros(())
        grad_h, grad_e, grad_b = torch.empty_like(h_MD), torch.zeros_like(embedding_VD), torch.zeros_like(bias_V)
        rows_VD = embedding_VD.to(h_MD.dtype)
        slots = max(FEWEST_SLOTS, CHUNK.get(h_MD.device.type, CHUNK["cuda"]) // len(bias_V))
        for chunk in range(0, len(h_MD), slots):
            at = slice(chunk, chunk + slots)
            target_M1, weight_M1 = targets_M[at, None], weights_M[at, None]
            z_MV = (h_MD[at] @ rows_VD.T).float().add_(bias_V)
            largest_M1, argmax_M1 = z_MV.max(dim=-1, keepdim=True)
            target_z_M1 = z_MV.gather(1, target_M1)
            exp_MV = z_MV.sub_(largest_M1).exp_()
            sum_M1 = exp_MV.sum(dim=-1, keepdim=True)
            nll += ((sum_M1.log() + largest_M1 - target_z_M1) * weight_M1).sum()
            correct += ((argmax_M1 == target_M1) * weight_M1).sum()
            if learn:
                dz_MV = exp_MV.mul_(weight_M1 / sum_M1).scatter_add_(1, target_M1, -weight_M1)
                grad_b += dz_MV.sum(dim=0)
                dz_MV = dz_MV.to(h_MD.dtype)
                grad_h[at] = dz_MV @ rows_VD
                grad_e += dz_MV.T @ h_MD[at]
        if learn:
            ctx.save_for_backward(grad_h, grad_e, grad_b)
        ctx.mark_non_differentiable(correct)
        return nll, correct

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_h, grad_e, grad_b = (grad * grads[0] for grad in ctx.saved_tensors)
        return grad_h, grad_e, grad_b, None, None, None


def masked_loss(
    model: MaskedLanguageModel,
    tokens_BL: Tensor,
    segments: Segments,
    masked_M: Tensor,
    targets_M: Tensor,
    weights_M: Tensor,
) -> Loss:
    """Equations (2) to (5) for one micro-batch; under autocast the products run in its type.

    `masked_M` are flat indices into B*L, `targets_M` the hidden token ids (both int64), `weights_M` float32: 1 for a
    masked position, 0 for a spare slot (whose index and target may be any valid numbers).
    """
    h_BLD = model.encoder(tokens_BL, segments)
    h_MD = h_BLD.flatten(0, 1).index_select(0, masked_M)
    h_MD = model.prediction.features(h_MD)
    if torch.is_autocast_enabled(h_MD.device.type):
        h_MD = h_MD.to(torch.get_autocast_dtype(h_MD.device.type))
    embedding_VD, bias_V = model.encoder.embedding.weight, model.prediction.bias
    learn = torch.is_grad_enabled()
    nll, correct = SummedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        h_MD, embedding_VD, bias_V, targets_M, weights_M, learn
    )
    return Loss(nll, correct)
