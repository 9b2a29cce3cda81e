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

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from . import modalities
from .attention import attend
from .encoder_config import EncoderConfig as EncoderConfig
from .encoder_config import PayloadConfig, carried
from .errors import DataError
from .sublayers import AttentionHalf, MlpHalf, turns
from .tiles import Segments as Segments  # how callers describe packed rows

Turn = tuple[Tensor, Tensor]
"""cos and sin."""


def rotary(positions_BL: Tensor, theta: float, head_width: int) -> Turn:
    """cos and sin of position · theta^(-2k/K) for the K/2 pairs k: float32 (B, L, 1, K/2) (Su et al. 2021)."""
    exponents = torch.arange(0, head_width, 2, dtype=torch.float32, device=positions_BL.device) / head_width
    angles = positions_BL[..., None, None].float() * (1.0 / theta**exponents)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the pairs (k, k + K/2) of x (B, L, H, K), in float32."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


class Attention(nn.Module):
    """Multi-head attention without biases."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.query = nn.Linear(config.width, config.width, bias=False)
        self.key = nn.Linear(config.width, config.width, bias=False)
        self.value = nn.Linear(config.width, config.width, bias=False)
        self.output = nn.Linear(config.width, config.width, bias=False)

    def forward(
        self, h_BLD: Tensor, turn: Turn, segments: Segments, is_global: bool, masked_M: Tensor | None
    ) -> Tensor:
        weight = torch.cat((self.query.weight, self.key.weight, self.value.weight))
        qkv = F.linear(h_BLD, weight).unflatten(-1, (3, self.heads, -1))  # type: ignore[no-untyped-call]
        query, key, value = qkv.unbind(2)
        dropout = self.dropout if self.training else 0.0
        mixed = attend(rotate(query, *turn), rotate(key, *turn), value, segments, is_global, dropout).flatten(2)
        if masked_M is not None:
            mixed = mixed.flatten(0, 1).index_select(0, masked_M)
        return F.dropout(self.output(mixed), self.dropout, self.training)


class MLP(nn.Module):
    """GeGLU: W_down (gelu(W_gate h) * W_up h) (Shazeer 2020), with the exact gelu."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.gate = nn.Linear(config.width, config.intermediate, bias=False)
        self.up = nn.Linear(config.width, config.intermediate, bias=False)
        self.down = nn.Linear(config.intermediate, config.width, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        gate, up = F.linear(h, torch.cat((self.gate.weight, self.up.weight))).chunk(2, dim=-1)
        return self.down(F.dropout(F.gelu(gate) * up, self.dropout, self.training))


class Block(nn.Module):
    """h <- h + attention(norm(h)); h <- h + mlp(norm(h)). The first attention has no norm: the embedding had one."""

    def __init__(self, config: EncoderConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        self.is_global = config.is_global(layer)
        self.attention_norm = norm(config) if layer else nn.Identity()
        self.attention = Attention(config)
        self.mlp_norm = norm(config)
        self.mlp = MLP(config)

    def forward(self, h_BLD: Tensor, turn: Tensor | Turn, segments: Segments, masked_M: Tensor | None = None) -> Tensor:
        """(B, L, D) -> (B, L, D), or (M, D) where only some flat positions are asked for.

        `turn` says how: as `sublayers.turns` gives it, by hand; as `rotary`, by the modules.
        """
        if isinstance(turn, Tensor):
            return self._by_hand(h_BLD, turn, segments, masked_M)
        attended = self.attention(self.attention_norm(h_BLD), turn, segments, self.is_global, masked_M)
        if masked_M is not None:
            h_BLD = h_BLD.flatten(0, 1).index_select(0, masked_M)
        h_BLD = h_BLD + attended
        return h_BLD + self.mlp(self.mlp_norm(h_BLD))

    def _by_hand(self, h: Tensor, turn: Tensor, segments: Segments, masked_M: Tensor | None) -> Tensor:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else h.dtype
        attention, mlp, eps = self.attention, self.mlp, self.config.norm_eps
        scale = getattr(self.attention_norm, "weight", None)
        weights = (attention.query.weight, attention.key.weight, attention.value.weight, attention.output.weight)
        setting = (self.is_global, self.config.heads, eps, dtype)
        h = AttentionHalf.apply(h, scale, *weights, masked_M, turn, segments, setting)  # type: ignore[no-untyped-call]
        halves = (self.mlp_norm.weight, mlp.gate.weight, mlp.up.weight, mlp.down.weight)
        h = MlpHalf.apply(h, *halves, eps, dtype)  # type: ignore[no-untyped-call]
        return h


class Encoder(nn.Module):
    """Equation (2): token ids (B, L) and their segments -> hidden states (B, L, D)."""

    recompute = False
    """Whether a block keeps its input only and is computed again in the backward pass: less memory, more time."""
    compiled = False
    """Whether a compiler sees the blocks, so that the modules are used throughout: it cannot fuse what is opaque."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary_size, config.width)
        self.payload = _payload_embedding(config)
        self.embedding_norm = norm(config)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.final_norm = norm(config)

    def by_hand(self, h: Tensor) -> bool:
        """Whether `sublayers` computes the blocks: on a CPU, unless something is dropped or a compiler looks on."""
        dropout = self.config.dropout if self.training else 0.0
        return h.device.type == "cpu" and not dropout and not self.compiled

    def forward(
        self,
        tokens_BL: Tensor,
        segments: Segments,
        masked_M: Tensor | None = None,
        payload_BLP: Tensor | None = None,
    ) -> Tensor:
        """(B, L) -> (B, L, D), or (M, D) at the flat positions `masked_M` of the B·L."""
        rows_BLD = self.shown(self.embedding(tokens_BL), tokens_BL, segments, payload_BLP)
        return self.states(rows_BLD, segments, masked_M)

    def shown(
        self, rows_BLD: Tensor, tokens_BL: Tensor, segments: Segments, payload_BLP: Tensor | None = None
    ) -> Tensor:
        """The embedding of what the model sees: its rows as they are, or with what goes along with each token."""
        if self.payload is None:
            return rows_BLD
        assert payload_BLP is not None, "the model sees what goes along with the tokens, and the batch has none"
        config = self.config
        special = torch.tensor([config.pad_id, config.cls_id, config.sep_id], device=tokens_BL.device)
        ordinary_BL, hidden_BL = torch.isin(tokens_BL, special, invert=True), tokens_BL == config.mask_id
        shown_BLD: Tensor = self.payload(rows_BLD, ordinary_BL, hidden_BL, segments.positions_BL - 1, payload_BLP)
        return shown_BLD

    def states(self, rows_BLD: Tensor, segments: Segments, masked_M: Tensor | None = None) -> Tensor:
        """The same from rows of the embedding.

        The last block looks at all positions and computes what follows its attention for those asked for only: every
        other position of it has no part in the loss. At 15 % that is a twelfth of the work of 6 layers.
        """
        config = self.config
        h_BLD = F.dropout(self.embedding_norm(rows_BLD), config.dropout, self.training)
        made, head_width = turns if self.by_hand(h_BLD) else rotary, config.width // config.heads
        # Once a batch, not once a layer.
        turn_global = made(segments.positions_BL, config.rope_global, head_width)
        turn_local = made(segments.positions_BL, config.rope_local, head_width)
        for number, block in enumerate(self.layers, 1):
            asked_M = masked_M if number == len(self.layers) else None
            given = (h_BLD, turn_global if block.is_global else turn_local, segments, asked_M)
            recompute = self.recompute and torch.is_grad_enabled()
            h_BLD = checkpoint(block, *given, use_reentrant=False) if recompute else block(*given)
        final: Tensor = self.final_norm(h_BLD)
        return final


def _payload_embedding(config: EncoderConfig) -> nn.Module | None:
    """Of the modality, where the model is shown what goes along with the tokens."""
    mine = carried(config)
    if mine is None or mine.input == "tokens":
        return None
    made: nn.Module = modalities.module(modalities.MODALITIES[mine.modality].embedding).Embedding(
        mine.payload, config.width
    )
    return made


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


class Reconstruction(nn.Module):
    """Equation (4) for the bytes that go along with a token: their mean μ, of numbers with a deviation of 1.

    One linear layer (Xie et al. 2022, SimMIM, arXiv 2111.09886).
    """

    def __init__(self, config: PayloadConfig) -> None:
        super().__init__()
        self.mean = nn.Linear(config.width, config.payload["bytes"])

    def forward(self, h_MD: Tensor) -> Tensor:
        """μ (M, P)."""
        mean_MP: Tensor = self.mean(h_MD)
        return mean_MP


class MaskedLanguageModel(nn.Module):
    """Encoder and head. The head reads the encoder's embedding, so no parameter has two names.

    With the config of a second modality there is another such model `beside` it, with an embedding and a head of its
    own and the same blocks and final norm.
    """

    def __init__(self, config: EncoderConfig, second: EncoderConfig | None = None) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        mine = carried(config)
        self.prediction: Prediction | Reconstruction
        self.prediction = Reconstruction(mine) if mine and mine.target == "payload" else Prediction(config)
        self.beside = MaskedLanguageModel(second) if second else None
        if self.beside:
            self.beside.encoder.layers, self.beside.encoder.final_norm = self.encoder.layers, self.encoder.final_norm

    def head(self, h_MD: Tensor) -> Tensor:
        """Hidden states (…, D) -> logits (…, V); of a model that is asked for bytes, their means (…, P)."""
        if isinstance(self.prediction, Reconstruction):
            return self.prediction(h_MD)
        return self.prediction(h_MD, self.encoder.embedding.weight)

    def forward(
        self, tokens_BL: Tensor, segments: Segments, masked_M: Tensor, payload_BLP: Tensor | None = None
    ) -> Tensor:
        """Equations (2) to (4): what `head` says at the flat positions `masked_M` of the B*L, gathered before it."""
        return self.head(self.encoder(tokens_BL, segments, masked_M, payload_BLP))


def norm(config: EncoderConfig) -> nn.LayerNorm:
    """Layer norm with a scale and no bias."""
    return nn.LayerNorm(config.width, eps=config.norm_eps, bias=False)


def initialise(model: MaskedLanguageModel, seed: int, *unigram_counts: np.ndarray | None) -> None:
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
        elif name.endswith("prediction.bias"):
            counts = unigram_counts[name.startswith("beside.")] if unigram_counts else None
            parameter.data.copy_(unigram_bias(counts, len(parameter)))
        elif name.endswith(".bias"):
            nn.init.zeros_(parameter)
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
