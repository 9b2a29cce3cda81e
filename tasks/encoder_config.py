"""Sizes of a model, and what it sees of a token and is asked for: what `model` in a manifest and config.json hold."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from . import modalities
from .errors import UsageError
from .pretrain_config import PretrainConfig


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of a model. What it may leave out is as in pretrain's settings."""

    vocabulary_size: int
    """Tokens in the vocabulary, V."""
    length: int
    """Positions in a row at most, L."""
    layers: int
    """Blocks of attention and mlp."""
    width: int
    """Width of the residual stream, D."""
    heads: int
    """Attention heads, H; each is D / H wide, an even number."""
    intermediate: int
    """Width inside the mlp, F."""
    global_every: int = PretrainConfig.global_every
    """Layers 0, n, 2n, … attend to the whole segment, the others to a window."""
    window: int = PretrainConfig.window
    """A local layer sees positions at a distance of at most window // 2."""
    rope_global: float = PretrainConfig.rope_global
    """Base of the rotary frequencies in global layers."""
    rope_local: float = PretrainConfig.rope_local
    """Base of the rotary frequencies in local layers."""
    norm_eps: float = PretrainConfig.norm_eps
    """Added to the variance in every norm."""
    dropout: float = PretrainConfig.dropout
    """Share of values dropped in training: of the embedding, the attention weights, and in attention and mlp."""
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
        if min(self.rope_global, self.rope_local) <= 1 or self.norm_eps <= 0 or not 0 <= self.dropout < 1:
            raise UsageError(
                "the bases rope_global and rope_local must be above 1, norm_eps above 0 and dropout from 0 to below 1, "
                f"but the encoder is {self}: correct the recipe."
            )

    def is_global(self, layer: int) -> bool:
        """Whether layer number `layer` (from 0) attends to its whole segment."""
        return layer % self.global_every == 0


@dataclass(frozen=True)
class PayloadConfig(EncoderConfig):
    """Of a model that is shown the bytes that the shards carry with each token, or is asked for them."""

    input: str = "tokens"
    """What it sees of a token: its id (tokens), or the bytes that go along with it (payload)."""
    target: str = "tokens"
    """What it is asked for at 𝓜: the id, or these bytes."""
    modality: str = modalities.TEXT
    """Whose embedding it is."""
    payload: Mapping[str, Any] = field(default_factory=dict)
    """What its vocabulary says of these bytes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.payload:
            raise UsageError(
                f"pretrain.input is {self.input} and pretrain.target {self.target}, and the shards carry nothing but "
                "tokens; use tokens for both."
            )


def config_of(sizes: Mapping[str, Any]) -> EncoderConfig:
    """The inverse of `vars`."""
    return PayloadConfig(**sizes) if "payload" in sizes else EncoderConfig(**sizes)


def carried(config: EncoderConfig) -> PayloadConfig | None:
    """The config of a model that has to do with bytes beside the tokens; None of one that has not."""
    return config if isinstance(config, PayloadConfig) else None
