"""To and from the stock layout: what `transformers.AutoModelForMaskedLM.from_pretrained` loads, with equal logits.

The stock state dict fuses query, key and value to `Wqkv`, and gate and up to `Wi`, in that order. Its `decoder.weight`
is tied to the embedding and therefore not in the file. Names and config keys are those of transformers' ModernBERT,
which is not imported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as serialise_tensors
from torch import Tensor

from . import modalities
from .artifacts import write_atomic
from .encoder import EncoderConfig, MaskedLanguageModel
from .encoder_config import PayloadConfig, carried
from .errors import DataError
from .manifests import json_of
from .streams import first_line

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
OURS = "maskmill"
"""The model type of what no stock model holds: one that has to do with the bytes that go along with tokens."""
OF_OURS = ("input", "target", "modality", "payload")


def stock_names(config: EncoderConfig) -> dict[str, tuple[str, ...]]:
    """Stock name -> our parameters, whose rows one below the other make the stock tensor."""
    names: dict[str, tuple[str, ...]] = {
        "model.embeddings.tok_embeddings.weight": ("encoder.embedding.weight",),
        "model.embeddings.norm.weight": ("encoder.embedding_norm.weight",),
        "model.final_norm.weight": ("encoder.final_norm.weight",),
    } | _more_names(config)
    for layer in range(config.layers):
        stock, ours = f"model.layers.{layer}", f"encoder.layers.{layer}"
        if layer:
            names[f"{stock}.attn_norm.weight"] = (f"{ours}.attention_norm.weight",)
        parts = ("query", "key", "value")
        names[f"{stock}.attn.Wqkv.weight"] = tuple(f"{ours}.attention.{part}.weight" for part in parts)
        names[f"{stock}.attn.Wo.weight"] = (f"{ours}.attention.output.weight",)
        names[f"{stock}.mlp_norm.weight"] = (f"{ours}.mlp_norm.weight",)
        names[f"{stock}.mlp.Wi.weight"] = tuple(f"{ours}.mlp.{part}.weight" for part in ("gate", "up"))
        names[f"{stock}.mlp.Wo.weight"] = (f"{ours}.mlp.down.weight",)
    return names


def _more_names(config: EncoderConfig) -> dict[str, tuple[str, ...]]:
    """Those of the head, and of the embedding of what goes along with the tokens."""
    mine = carried(config)
    names: dict[str, tuple[str, ...]] = {}
    if mine and mine.input == "payload":
        parts = modalities.module(modalities.MODALITIES[mine.modality].embedding).PARAMETERS
        names = {f"model.embeddings.{part}": (f"encoder.payload.{part}",) for part in parts}
    if mine and mine.target == "payload":
        return names | {f"head.mean.{part}": (f"prediction.mean.{part}",) for part in ("weight", "bias")}
    return names | {
        "head.dense.weight": ("prediction.dense.weight",),
        "head.norm.weight": ("prediction.norm.weight",),
        "decoder.bias": ("prediction.bias",),
    }


def to_stock(model: MaskedLanguageModel) -> dict[str, Tensor]:
    """The weights under their stock names, as new float32 tensors on the host."""
    ours = model.state_dict()
    return {
        stock: torch.cat([ours[part] for part in parts]).to("cpu", torch.float32).contiguous()
        for stock, parts in stock_names(model.config).items()
    }


def from_stock(state: Mapping[str, Tensor], config: EncoderConfig) -> MaskedLanguageModel:
    """The model with these stock weights. DataError where a name is missing or unknown, or a shape does not fit."""
    names = stock_names(config)
    if unexpected := (state.keys() ^ names.keys()) - {"decoder.weight"}:
        raise DataError(f"weights and config do not fit: {min(unexpected)} is in one only; save the model again.")
    _check_shapes(state, config)
    model = MaskedLanguageModel(config)
    with torch.no_grad():
        for stock, parts in names.items():
            targets = [model.get_parameter(part) for part in parts]
            rows = [len(target) for target in targets]
            for target, part in zip(targets, torch.split(state[stock], rows), strict=True):
                target.copy_(part)
    return model


def _check_shapes(state: Mapping[str, Tensor], config: EncoderConfig) -> None:
    """Without memory for the weights: a damaged size in the config may ask for more than there is."""
    try:
        with torch.device("meta"):
            model = MaskedLanguageModel(config)
    except (RuntimeError, TypeError) as error:
        said = f"{CONFIG_FILE} has sizes that no model has ({first_line(error)})"
        raise DataError(f"{said}; save the model again.") from None
    for stock, parts in stock_names(config).items():
        targets = [model.get_parameter(part) for part in parts]
        if state[stock].shape != (sum(map(len, targets)), *targets[0].shape[1:]):
            shape = tuple(state[stock].shape)
            raise DataError(f"weights and config do not fit: {stock} is {shape}; save the model again.")


def stock_config(config: EncoderConfig) -> dict[str, Any]:
    """The content of config.json: every setting that the stock model would otherwise fill with a default of its own.

    What no stock model holds has the same keys, and more, and another type.
    """
    mine = carried(config)
    ours = {name: getattr(mine, name) for name in OF_OURS} if mine else {}
    return _of_stock(config) | ({"architectures": ["Maskmill"], "model_type": OURS, **ours} if mine else {})


def _of_stock(config: EncoderConfig) -> dict[str, Any]:
    return {
        "architectures": ["ModernBertForMaskedLM"],
        "model_type": "modernbert",
        "dtype": "float32",
        "vocab_size": config.vocabulary_size,
        "max_position_embeddings": config.length,
        "num_hidden_layers": config.layers,
        "hidden_size": config.width,
        "num_attention_heads": config.heads,
        "intermediate_size": config.intermediate,
        "hidden_activation": "gelu",
        "layer_types": [
            "full_attention" if config.is_global(layer) else "sliding_attention" for layer in range(config.layers)
        ],
        "global_attn_every_n_layers": config.global_every,
        "local_attention": config.window,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": config.rope_global},
            "sliding_attention": {"rope_type": "default", "rope_theta": config.rope_local},
        },
        "norm_eps": config.norm_eps,
        "norm_bias": False,
        "attention_bias": False,
        "attention_dropout": config.dropout,
        "mlp_bias": False,
        "mlp_dropout": config.dropout,
        "embedding_dropout": config.dropout,
        "classifier_activation": "gelu",
        "classifier_bias": False,
        "decoder_bias": True,
        "tie_word_embeddings": True,
        "pad_token_id": config.pad_id,
        "unk_token_id": config.unk_id,
        "cls_token_id": config.cls_id,
        "sep_token_id": config.sep_id,
        "mask_token_id": config.mask_id,
        "bos_token_id": config.cls_id,
        "eos_token_id": config.sep_id,
    }


def encoder_config(stock: Mapping[str, Any]) -> EncoderConfig:
    """The inverse of `stock_config`. DataError where a key is missing, or asks for what is not computed here."""
    try:
        ours = {name: stock[name] for name in OF_OURS} if stock["model_type"] == OURS else {}
        config = (PayloadConfig if ours else EncoderConfig)(
            vocabulary_size=stock["vocab_size"],
            length=stock["max_position_embeddings"],
            layers=stock["num_hidden_layers"],
            width=stock["hidden_size"],
            heads=stock["num_attention_heads"],
            intermediate=stock["intermediate_size"],
            global_every=stock["global_attn_every_n_layers"],
            window=stock["local_attention"],
            rope_global=stock["rope_parameters"]["full_attention"]["rope_theta"],
            rope_local=stock["rope_parameters"]["sliding_attention"]["rope_theta"],
            norm_eps=stock["norm_eps"],
            dropout=stock["mlp_dropout"],
            pad_id=stock["pad_token_id"],
            unk_id=stock["unk_token_id"],
            cls_id=stock["cls_token_id"],
            sep_id=stock["sep_token_id"],
            mask_id=stock["mask_token_id"],
            **ours,
        )
    except KeyError as missing:
        raise DataError(f"{CONFIG_FILE} lacks the key {missing}: save the model again.") from None
    for key, value in stock_config(config).items():
        if stock.get(key) != value:
            raise DataError(f"{CONFIG_FILE} says {key} = {stock.get(key)}, only {value} is computed: save it again.")
    return config


def save_stock(model: MaskedLanguageModel, folder: Path) -> None:
    """Write config.json and model.safetensors into `folder`: the same bytes for the same weights."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / WEIGHTS_FILE, serialise_tensors(to_stock(model), metadata={"format": "pt"}))
    write_atomic(folder / CONFIG_FILE, (json.dumps(stock_config(model.config), indent=2) + "\n").encode())


def load_stock(folder: Path) -> MaskedLanguageModel:
    """The model that `save_stock` wrote, in evaluation mode. DataError where a file is missing or cannot be read."""
    try:
        stock = json_of((folder / CONFIG_FILE).read_bytes())
        state = parse_tensors((folder / WEIGHTS_FILE).read_bytes())
        if not isinstance(stock, dict):
            raise ValueError(f"{CONFIG_FILE} holds no settings")
        if int(layers := stock.get("num_hidden_layers", 0)) > len(state):
            raise ValueError(f"{CONFIG_FILE} asks for {layers} layers, there are {len(state)} tensors")
        config = encoder_config(stock)
    except (OSError, ArithmeticError, LookupError, TypeError, ValueError, SafetensorError) as error:
        raise DataError(f"no model can be read from {folder}: {error}; make it again.") from error
    return from_stock(state, config).eval()
