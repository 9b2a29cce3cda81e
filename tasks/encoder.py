"""The encoder f and the head g of a masked language model: equations (2) and (4) of the design.

    (2)  H_L = f(H_0)      pre-norm blocks, h <- h + attention(norm(h)), h <- h + mlp(norm(h)), then one final norm
    (4)  Ĥ   = g(H')       norm(gelu(W h)) E^T + b, with E the embedding matrix (tied)

The function computed is exactly transformers' ModernBERT (Warner et al. 2024, arXiv 2412.13663), written without it:
rotary positions (Su et al. 2021), GeGLU (Shazeer 2020), every `global_every`-th layer global and the others local.
`stock` carries the weights to and from the stock layout. The query, key, value, gate and up matrices are parameters of
their own, since Muon orthogonalises each matrix whole; one product still computes them, the small weights concatenated.

Suffixes: B rows, L positions, M masked positions, D width, H heads, K width of a head, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import DataError, UsageError

PRODUCT_LENGTH = 512
"""Up to this many positions attention on a CPU is two plain products. Measured on an EPYC with avx512_bf16 (torch
2.13, one thread, a layer of B 128, L 64, D 128, forward and backward): in bf16 38 ms, against 75 ms by
scaled_dot_product_attention, whose backward is the slow part; twice as fast at L 512 too; in float32 the two are equal.
Past it the scores (B, H, L, L) would take too much memory."""


@dataclass(frozen=True)
class EncoderConfig:
    vocabulary_size: int
    """Tokens in the vocabulary, V."""
    length: int
    """Positions in a row at most, L."""
    layers: int = 4
    """Blocks of attention and mlp."""
    width: int = 128
    """Width of the residual stream, D."""
    heads: int = 2
    """Attention heads, H; each is D / H wide, an even number."""
    intermediate: int = 256
    """Width inside the mlp, F."""
    global_every: int = 3
    """Layers 0, n, 2n, … attend to the whole segment, the others to a window."""
    window: int = 128
    """A local layer sees positions at a distance of at most window // 2."""
    rope_global: float = 160_000.0
    """Base of the rotary frequencies in global layers."""
    rope_local: float = 10_000.0
    """Base of the rotary frequencies in local layers."""
    norm_eps: float = 1e-5
    """Added to the variance in every norm."""
    pad_id: int = 0
    """Token id of [PAD]."""
    unk_id: int = 1
    """Token id of [UNK]."""
    cls_id: int = 2
    """Token id of [CLS]."""
    sep_id: int = 3
    """Token id of [SEP]."""
    mask_id: int = 4
    """Token id of [MASK]."""

    def __post_init__(self) -> None:
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise UsageError(
                f"width {self.width} cannot be split over {self.heads} heads of even width: "
                f"choose a width that is a multiple of {2 * self.heads}."
            )
        if min(self.vocabulary_size, self.length, self.layers, self.intermediate, self.global_every, self.window) < 1:
            raise UsageError(f"every size of the encoder must be at least 1, but it is {self}: correct the recipe.")

    def is_global(self, layer: int) -> bool:
        """Whether layer number `layer` (from 0) attends to its whole segment."""
        return layer % self.global_every == 0


@dataclass(frozen=True)
class Segments:
    """Where the segments of each packed row are: a row holds several texts and attention stays inside each."""

    positions_BL: Tensor
    """int64: position inside the segment, from 0."""
    mask_global_B1LL: Tensor
    """bool: query position (third axis) may see key position (fourth axis)."""
    mask_local_B1LL: Tensor
    """The same with the window; the very same tensor where the window covers the row."""

    @classmethod
    def from_ids(cls, segment_ids_BL: Tensor, window: int) -> Segments:
        """Segment numbers (B, L), -1 on padding, equal in one contiguous run per segment -> masks and positions.

        A padding position sees itself only: a softmax over nothing would be NaN.
        """
        length = segment_ids_BL.shape[1]
        at_L = torch.arange(length, device=segment_ids_BL.device)
        starts_BL = F.pad(segment_ids_BL[:, 1:] != segment_ids_BL[:, :-1], (1, 0), value=True)
        first_BL = torch.where(starts_BL, at_L, 0).cummax(dim=1).values
        padding_BL = segment_ids_BL < 0
        positions_BL = (at_L - first_BL).masked_fill(padding_BL, 0)

        same_BLL = (segment_ids_BL[:, :, None] == segment_ids_BL[:, None, :]) & ~padding_BL[:, :, None]
        distance_LL = (at_L[:, None] - at_L[None, :]).abs()
        global_BLL = same_BLL | (distance_LL == 0)
        local_BLL = global_BLL if window // 2 >= length - 1 else global_BLL & (distance_LL <= window // 2)
        mask_global_B1LL = global_BLL[:, None]
        mask_local_B1LL = mask_global_B1LL if local_BLL is global_BLL else local_BLL[:, None]
        return cls(positions_BL, mask_global_B1LL, mask_local_B1LL)

    @property
    def one_mask(self) -> bool:
        """Whether the window covers the row, so that local layers see what global layers see."""
        return self.mask_local_B1LL is self.mask_global_B1LL

    def to(self, device: torch.device | str) -> Segments:
        """The same segments on another device."""
        mask_global = self.mask_global_B1LL.to(device, non_blocking=True)
        mask_local = mask_global if self.one_mask else self.mask_local_B1LL.to(device, non_blocking=True)
        return Segments(self.positions_BL.to(device, non_blocking=True), mask_global, mask_local)


def rotary(positions_BL: Tensor, theta: float, head_width: int) -> Tensor:
    """exp(i * position * theta^(-2k/K)) for the K/2 pairs k: complex64 (B, L, 1, K/2) (Su et al. 2021)."""
    exponents = torch.arange(0, head_width, 2, dtype=torch.float32, device=positions_BL.device) / head_width
    at_L = torch.arange(positions_BL.shape[1], dtype=torch.float32, device=positions_BL.device)
    angles = at_L[:, None] * (1.0 / theta**exponents)
    return torch.polar(torch.ones_like(angles), angles)[positions_BL, None]


def pair_rows(weight_DD: Tensor, heads: int) -> Tensor:
    """Rows 0, K/2, 1, K/2 + 1, … of each head: the stock rotation turns (i, i + K/2), and this makes them neighbours.

    q k^T does not change when both take the same order, and neighbours are one complex number: one product rotates all.
    Measured (one thread, B 128, L 64, D 128, bf16): 14 ms of an attention layer's 42 ms were rotation; 4 ms remain.
    """
    return weight_DD.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)  # type: ignore[no-untyped-call]


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Each pair (…, 2k), (…, 2k + 1) of x (B, L, heads, K) times a complex number of modulus 1, in float32."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))  # type: ignore[no-untyped-call]
    return torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)


def added(mask_B1LL: Tensor) -> Tensor:
    """The mask as a float32 term of the scores: 0 where a position is seen, -inf where not."""
    return torch.zeros(mask_B1LL.shape, device=mask_B1LL.device).masked_fill(~mask_B1LL, -torch.inf)


def attend(query: Tensor, key: Tensor, value: Tensor, bias_B1LL: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(K) + bias) v, per head: (B, H, L, K) -> (B, H, L, K)."""
    if query.device.type != "cpu" or query.shape[2] > PRODUCT_LENGTH:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias_B1LL.to(query.dtype))
    scores_BHLL = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2) + bias_B1LL
    return scores_BHLL.softmax(dim=-1) @ value


class Attention(nn.Module):
    """Multi-head attention without biases."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.width, config.width, bias=False)
        self.key = nn.Linear(config.width, config.width, bias=False)
        self.value = nn.Linear(config.width, config.width, bias=False)
        self.output = nn.Linear(config.width, config.width, bias=False)

    def forward(self, h_BLD: Tensor, turn: Tensor, bias_B1LL: Tensor) -> Tensor:
        heads = self.heads
        weight = torch.cat((pair_rows(self.query.weight, heads), pair_rows(self.key.weight, heads), self.value.weight))
        qkv = F.linear(h_BLD, weight).unflatten(-1, (3 * heads, -1))  # type: ignore[no-untyped-call]
        query_key, value = qkv.split((2 * heads, heads), dim=2)
        query, key = rotate(query_key, turn).transpose(1, 2).chunk(2, dim=1)
        mixed_BHLK = attend(query, key, value.transpose(1, 2), bias_B1LL)
        mixed: Tensor = self.output(mixed_BHLK.transpose(1, 2).flatten(2))
        return mixed


class MLP(nn.Module):
    """GeGLU: W_down (gelu(W_gate h) * W_up h) (Shazeer 2020), with the exact gelu."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.width, config.intermediate, bias=False)
        self.up = nn.Linear(config.width, config.intermediate, bias=False)
        self.down = nn.Linear(config.intermediate, config.width, bias=False)

    def forward(self, h_BLD: Tensor) -> Tensor:
        gate, up = F.linear(h_BLD, torch.cat((self.gate.weight, self.up.weight))).chunk(2, dim=-1)
        return self.down(F.gelu(gate) * up)


class Block(nn.Module):
    """h <- h + attention(norm(h)); h <- h + mlp(norm(h)). The first attention has no norm: the embedding had one."""

    def __init__(self, config: EncoderConfig, layer: int) -> None:
        super().__init__()
        self.is_global = config.is_global(layer)
        self.attention_norm = norm(config) if layer else nn.Identity()
        self.attention = Attention(config)
        self.mlp_norm = norm(config)
        self.mlp = MLP(config)

    def forward(self, h_BLD: Tensor, turn: Tensor, bias_B1LL: Tensor) -> Tensor:
        h_BLD = h_BLD + self.attention(self.attention_norm(h_BLD), turn, bias_B1LL)
        return h_BLD + self.mlp(self.mlp_norm(h_BLD))


class Encoder(nn.Module):
    """Equation (2): token ids (B, L) and their segments -> hidden states (B, L, D)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary_size, config.width)
        self.embedding_norm = norm(config)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.final_norm = norm(config)

    def forward(self, tokens_BL: Tensor, segments: Segments) -> Tensor:
        config, head_width = self.config, self.config.width // self.config.heads
        # Once a batch, not once a layer: the rotations, and the masks as what is added to the scores (0 or -inf).
        seen_global = (
            rotary(segments.positions_BL, config.rope_global, head_width),
            added(segments.mask_global_B1LL),
        )
        seen_local = (
            rotary(segments.positions_BL, config.rope_local, head_width),
            seen_global[1] if segments.one_mask else added(segments.mask_local_B1LL),
        )
        h_BLD: Tensor = self.embedding_norm(self.embedding(tokens_BL))
        for block in self.layers:
            h_BLD = block(h_BLD, *(seen_global if block.is_global else seen_local))
        final_BLD: Tensor = self.final_norm(h_BLD)
        return final_BLD


class Prediction(nn.Module):
    """Equation (4) less the tied matrix: norm(gelu(W h)) E^T + b."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.width, config.width, bias=False)
        self.norm = norm(config)
        self.bias = nn.Parameter(torch.zeros(config.vocabulary_size))

    def features(self, h_MD: Tensor) -> Tensor:
        """norm(gelu(W h)), what is multiplied with the embedding."""
        features_MD: Tensor = self.norm(F.gelu(self.dense(h_MD)))
        return features_MD

    def forward(self, h_MD: Tensor, embedding_VD: Tensor) -> Tensor:
        return F.linear(self.features(h_MD), embedding_VD, self.bias)


class MaskedLanguageModel(nn.Module):
    """Encoder and head. The head reads the encoder's embedding, so no parameter has two names."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.prediction = Prediction(config)

    def head(self, h_MD: Tensor) -> Tensor:
        """Hidden states (…, D) -> logits (…, V)."""
        return self.prediction(h_MD, self.encoder.embedding.weight)

    def forward(self, tokens_BL: Tensor, segments: Segments, masked_M: Tensor) -> Tensor:
        """Equations (2) to (4): logits (M, V) at the flat positions `masked_M` of the B*L, gathered before the head."""
        h_BLD = self.encoder(tokens_BL, segments)
        return self.head(h_BLD.flatten(0, 1).index_select(0, masked_M))


def norm(config: EncoderConfig) -> nn.LayerNorm:
    """Layer norm with a scale and no bias."""
    return nn.LayerNorm(config.width, eps=config.norm_eps, bias=False)


def initialise(model: MaskedLanguageModel, seed: int, unigram_counts: np.ndarray | None = None) -> None:
    """Fill every parameter: a pure function of (config, seed, unigram counts), in the order of `named_parameters`.

    Matrices: truncated normal, standard deviation 0.02, cut at two of them (as the stock model). The output projections
    of attention and mlp are zero, so each block starts as the identity. Norm scales are 1. The decoder bias starts at
    log((count + 1) / Σ(count + 1)), where `unigram_counts` (V,) are those of the training split, 0 for special tokens:
    the first loss is then the unigram cross-entropy. Without counts the bias is 0 and the first loss ln V.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith(("attention.output.weight", "mlp.down.weight")):
            nn.init.zeros_(parameter)
        elif parameter.ndim == 2:
            # Drawn on the host, so that the values are the same on every device.
            drawn = torch.empty(parameter.shape)
            nn.init.trunc_normal_(drawn, std=0.02, a=-0.04, b=0.04, generator=generator)
            parameter.data.copy_(drawn)
        elif name == "prediction.bias":
            parameter.data.copy_(unigram_bias(unigram_counts, len(parameter)))
        else:
            nn.init.ones_(parameter)


def unigram_bias(counts: np.ndarray | None, size: int) -> Tensor:
    """log of the add-one-smoothed frequencies (V,), float32, computed in float64; zeros without counts."""
    if counts is None:
        return torch.zeros(size)
    if counts.shape != (size,) or counts.min() < 0:
        raise DataError(f"unigram counts {counts.shape} are not ({size},) or are negative: make the shards again.")
    smoothed = torch.from_numpy(counts.astype(np.float64)) + 1.0
    return (smoothed / smoothed.sum()).log().float()
