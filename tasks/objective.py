"""The objective: equations (3) to (5) of the design.

    (3)  H' = { h_{L,j} | j ∈ 𝓜 }                 gather BEFORE the head
    (4)  Ĥ  = g(H')                               logits over the vocabulary, for 𝓜 only
    (5)  L  = Σ_{j∈𝓜} −log p(i | ĥ_j)             summed; whoever steps the optimiser divides, once, by the step's Σ|𝓜|

Suffixes: B rows, L positions, M slots for masked positions (a constant capacity; spare slots weigh 0), V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from . import modalities
from .encoder import MaskedLanguageModel, Prediction, Segments
from .encoder_config import carried
from .sublayers import TiedEmbedding
from .tiles import ROWS_LENGTH


class Loss(NamedTuple):
    """Sums over 𝓜, never means: a mean of means has another gradient where the counts differ."""

    sum_nll: Tensor
    """Scalar, float32, in nats: Σ −log p(target)."""
    correct: Tensor
    """Scalar, float32, no gradient: how many targets no other token exceeds in probability."""


HELD = {"cpu": 1 << 23, "cuda": 1 << 26}
"""Logits at a time in the type of the products: enough for products at full speed, few enough to bound the memory."""
CHUNK = {"cpu": 1 << 19, "cuda": 1 << 26}
"""Logits at a time in float32: few enough to stay in the cache of a CPU."""
FEWEST_SLOTS = 64
"""Slots whose logits are held, however large the vocabulary: a thinner product would only read the embedding."""


class SummedCrossEntropy(torch.autograd.Function):
    """Equations (4) and (5) after the head's features, in chunks of slots: the logits (M, V) need not exist at once.

        z_V = E h + b,   L = Σ_j w_j (log Σ_v exp z_v − z_i),   dL/dz_v = w_j (softmax(z)_v − [v = i])

    The products run in the type of `h_MD`, everything else in float32. The gradient is made in the forward pass, while
    the logits are at hand, and takes their place. Measured at M 614, V 8192, D 256 and at M 2457, V 4096, D 128 (one
    thread, forward and backward): bf16 56 and 62 ms, float32 103 and 113; `F.cross_entropy` on whole logits 81 and 136,
    128 and 218; `F.linear_cross_entropy` (torch 2.13, sum) 53 and 79, 201 and 155, but it knows no weight per slot and
    no argmax, and under bf16 its sum is in bf16 (371 nats off in 20,000).
    """

    @staticmethod
    def forward(
        ctx: Any, h_MD: Tensor, embedding_VD: Tensor, bias_V: Tensor, targets_M: Tensor, weights_M: Tensor, learn: bool
    ) -> tuple[Tensor, Tensor]:
        size, kind = len(bias_V), h_MD.device.type
        held = max(FEWEST_SLOTS, HELD.get(kind, HELD["cuda"]) // size)
        chunk = max(1, CHUNK.get(kind, CHUNK["cuda"]) // size)
        rows_VD, weights_M1 = embedding_VD.to(h_MD.dtype), weights_M[:, None].to(h_MD.dtype)
        nll, correct = weights_M.new_zeros(()), weights_M.new_zeros(())
        grad_h, grad_e, grad_b = torch.empty_like(h_MD), torch.zeros_like(embedding_VD), torch.zeros_like(bias_V)
        for first in range(0, len(h_MD), held):
            at = slice(first, first + held)
            z_MV = h_MD[at] @ rows_VD.T
            parts = (torch.split(one, chunk) for one in (z_MV, targets_M[at, None], weights_M[at, None]))
            for z, target, weight in zip(*parts, strict=True):
                gradient, *sums = _chunk(z.float().add_(bias_V), target, weight, learn)
                nll += sums[0]
                correct += sums[1]
                if learn:
                    grad_b.addmv_(gradient.T, weight[:, 0])
                    z.copy_(gradient)
            if learn:  # the weights of the slots come in where there are fewest numbers
                grad_h[at] = (z_MV @ rows_VD).mul_(weights_M1[at])
                grad_e += z_MV.T @ (h_MD[at] * weights_M1[at])
        if learn:
            ctx.save_for_backward(grad_h, grad_e, grad_b)
        ctx.mark_non_differentiable(correct)
        return nll, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_h, grad_e, grad_b = (grad * grads[0] for grad in ctx.saved_tensors)
        return grad_h, grad_e, grad_b, None, None, None


def _chunk(z_MV: Tensor, target_M1: Tensor, weight_M1: Tensor, learn: bool) -> tuple[Tensor, Tensor, Tensor]:
    """softmax(z) − [v = i], Σ w (−log p(target)) and Σ w [target is the argmax] of a few slots."""
    largest_M1, target_z_M1 = z_MV.amax(dim=-1, keepdim=True), z_MV.gather(1, target_M1)
    p_MV = torch.softmax(z_MV, dim=-1)
    # log Σ exp z, from the largest p, which is 1 / V at least: the target's may be too small for a float
    log_sum_M1 = largest_M1 - p_MV.amax(dim=-1, keepdim=True).log()
    nll = ((log_sum_M1 - target_z_M1) * weight_M1).sum()
    correct = ((target_z_M1 >= largest_M1) * weight_M1).sum()
    if learn:
        p_MV.scatter_add_(1, target_M1, torch.full_like(target_z_M1, -1.0))
    return p_MV, nll, correct


def masked_loss(
    model: MaskedLanguageModel,
    tokens_BL: Tensor,
    segments: Segments,
    masked_M: Tensor,
    targets_M: Tensor,
    weights_M: Tensor,
    payload_BLP: Tensor | None = None,
) -> Loss:
    """Equations (2) to (5) for one micro-batch; under autocast the products run in its type.

    `masked_M` are flat indices into B*L, `weights_M` float32: 1 for a masked position, 0 for a spare slot (whose index
    and target may be any valid numbers). `targets_M` are what the head is asked for: hidden token ids (int64), or the
    bytes that go along with them (uint8, (M, P)). `payload_BLP` is what a model sees of such bytes.
    """
    encoder, embedding_VD = model.encoder, model.encoder.embedding.weight
    if encoder.by_hand(embedding_VD) and isinstance(model.prediction, Prediction):
        rows_BLD, embedding_VD = TiedEmbedding.apply(embedding_VD, tokens_BL)  # type: ignore[no-untyped-call]
    else:
        rows_BLD = encoder.embedding(tokens_BL)
    h_MD = encoder.states(encoder.shown(rows_BLD, tokens_BL, segments, payload_BLP), segments, masked_M)
    if isinstance(model.prediction, Prediction):
        return _categorical(model.prediction, h_MD, embedding_VD, targets_M, weights_M)
    return _gaussian(model, h_MD, targets_M, weights_M)


def _gaussian(model: MaskedLanguageModel, h_MD: Tensor, bytes_MP: Tensor, weights_M: Tensor) -> Loss:
    """−log p of unit-variance Gaussians: Σ_j w_j (½ ‖x_j − μ_j‖² + P/2 · log 2π), x the standardised bytes.

    Nothing is right or wrong here, so no prediction counts as correct.
    """
    config = carried(model.config)
    assert config is not None
    x_MP = modalities.module(modalities.MODALITIES[config.modality].embedding).standardised(bytes_MP, config.payload)
    squares_M = (x_MP - model.head(h_MD).float()).square().sum(dim=-1)
    nll_M = 0.5 * squares_M + 0.5 * x_MP.shape[1] * math.log(2 * math.pi)
    return Loss((nll_M * weights_M).sum(), weights_M.new_zeros(()))


def _categorical(
    prediction: Prediction, h_MD: Tensor, embedding_VD: Tensor, targets_M: Tensor, weights_M: Tensor
) -> Loss:
    """−log p of the tokens: `SummedCrossEntropy`."""
    h_MD = prediction.features(h_MD)
    if torch.is_autocast_enabled(h_MD.device.type):
        h_MD = h_MD.to(torch.get_autocast_dtype(h_MD.device.type))
    learn = torch.is_grad_enabled()
    nll, correct = SummedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        h_MD, embedding_VD, prediction.bias, targets_M, weights_M, learn
    )
    return Loss(nll, correct)


class Objective(nn.Module):
    """`masked_loss` as a module: every parameter is used through its forward, so it can be wrapped (DDP, FSDP2)."""

    def __init__(self, model: MaskedLanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        tokens_BL: Tensor,
        segments: Segments,
        masked_M: Tensor,
        targets_M: Tensor,
        weights_M: Tensor,
        payload_BLP: Tensor | None = None,
        beside: bool = False,
    ) -> Loss:
        model = self.model.beside if beside else self.model
        assert model is not None
        return masked_loss(model, tokens_BL, segments, masked_M, targets_M, weights_M, payload_BLP)


class Compiled(nn.Module):
    """An objective in the hands of torch.compile, one graph for each shape of a batch."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        objective.model.encoder.compiled = True
        self.compiled = torch.compile(objective, dynamic=False)

    def forward(
        self,
        tokens_BL: Tensor,
        segments: Segments,
        masked_M: Tensor,
        targets_M: Tensor,
        weights_M: Tensor,
        payload_BLP: Tensor | None = None,
        beside: bool = False,
    ) -> Loss:
        kind = tokens_BL.device.type
        if kind == "cpu":  # what the host computes once a batch stays outside of the graph
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
            for is_global in (True, False):
                segments.bias(is_global, dtype)
        return self.compiled(tokens_BL, segments, masked_M, targets_M, weights_M, payload_BLP, beside)


def compile_objective(objective: Objective) -> nn.Module:
    """The objective compiled, for batches of constant shapes; as it is where that cannot be.

    Measured on a CPU (6 x 256, V 8192, 4096 positions of L 128, bf16): 30 to 60 seconds at the first step, and then 7 %
    less time than with the gradients written by hand. It needs a C++ compiler there, and batches of up to 256
    positions: beyond, tiles have the shapes of a batch's segments, and the objective comes back as it is.

    CUDA graphs (mode="reduce-overhead") would find the shapes they need: B, L, the slots of M and the power of two of
    `bounds_S` stay the same. They are not used. The gradient of a step's first micro-batch stays in the graphs' own
    memory, which the next one overwrites: a step of several fails, or comes out wrong without an error (pytorch issues
    169545 and 96693). That leaves steps of one micro-batch, for which nothing was measured yet.
    """
    config = objective.model.config
    if next(objective.parameters()).device.type == "cpu" and config.length > ROWS_LENGTH:
        return objective
    return Compiled(objective)
