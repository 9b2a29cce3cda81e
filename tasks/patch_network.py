"""The network of a registered model of images, from the folder that holds it. A copy of this file lies in that folder.

It stands alone: it needs numpy, torch and safetensors, and nothing of the project, of MLflow or of transformers.

    network = patch_network.load(Path("model"))
    tokens_L, patches_NP = network.prepared(pixels_HWC, hidden=[3, 7])
    h_MD = network.encode(tokens_L[None], patches_NP[None], [(0, 1 + patch) for patch in (3, 7)])
    p_MK = network.probabilities(network.head(h_MD))

Not fill_mask.py's network: an image has always the same number of patches, so that nothing is padded here; what goes in
and what comes out differ; and a served file that asked another one for its network would need that one's libraries.

Suffixes: B images, L positions, N patches, M hidden ones, P bytes of a patch, K codes, D width, V vocabulary.
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

DIGESTS = "digests.json"
CONFIG, WEIGHTS, CODEBOOK, PAYLOAD = "config.json", "model.safetensors", "codebook.npy", "payload.json"
FIRST_CODE = 5
"""Token id of code 0: the special tokens come before it."""
NUMBERS = 1 << 22
"""Distances at a time: 32 MB."""
Bytes = NDArray[np.uint8]


def load(folder: Path) -> "Network":
    """Checks every file against digests.json, then loads from the bytes that were checked. Raises ValueError."""
    files = check_digests(folder)
    codes_KP = np.load(io.BytesIO(files[CODEBOOK]), allow_pickle=False)
    config, payload = json.loads(files[CONFIG]), json.loads(files[PAYLOAD])
    return Network(config, payload, safetensors.torch.load(files[WEIGHTS]), codes_KP)


def check_digests(folder: Path) -> dict[str, bytes]:
    """The files named in digests.json, with the sha256 they have there; names the first that differs or is missing."""
    files = {}
    for name, expected in json.loads((folder / DIGESTS).read_bytes())["sha256"].items():
        if not (folder / name).is_file():
            raise ValueError(f"{name} of the registered model is missing.")
        files[name] = (folder / name).read_bytes()
        found = hashlib.sha256(files[name]).hexdigest()
        if found != expected:
            raise ValueError(f"{name} is not the file that was registered: sha256 {found[:12]}…, not {expected[:12]}…")
    if unnamed := [name for name in (CONFIG, WEIGHTS, CODEBOOK, PAYLOAD) if name not in files]:
        raise ValueError(f"{DIGESTS} of the registered model does not name {unnamed[0]}.")
    return files


class Network:
    """ModernBERT (Warner et al. 2024, arXiv 2412.13663) without dropout, in float32, from a state dict of stock layout.

    What goes in is a code's row of the embedding, or what its pixels become by a matrix (Dosovitskiy et al. 2021) and
    its place in the grid; what comes out are logits of the vocabulary, or the mean of standardised pixels. What stands
    after the last attention is computed at hidden patches only.
    """

    def __init__(
        self, config: Mapping[str, Any], payload: Mapping[str, Any], weights: Mapping[str, Tensor], codes_KP: Bytes
    ) -> None:
        if config.get("model_type") not in ("modernbert", "maskmill"):
            raise ValueError(f"{CONFIG} of the registered model is of the unknown type {config.get('model_type')!r}.")
        self.input, self.target = config.get("input", "tokens"), config.get("target", "tokens")
        self.heads, self.eps, self.size = config["num_attention_heads"], config["norm_eps"], config["vocab_size"]
        self.cls_id, self.sep_id, self.mask_id = (config[f"{role}_token_id"] for role in ("cls", "sep", "mask"))
        flat = {name.removesuffix(".weight"): tensor for name, tensor in weights.items()}
        self.embedding = flat["model.embeddings.tok_embeddings"]
        self.first_norm, self.final_norm = flat["model.embeddings.norm"], flat["model.final_norm"]
        parts = ("attn.Wqkv", "attn.Wo", "mlp_norm", "mlp.Wi", "mlp.Wo")
        self.layers = [
            (kind, flat.get(f"{at}.attn_norm"), [flat[f"{at}.{part}"] for part in parts])  # the first has no attn_norm
            for at, kind in ((f"model.layers.{number}", kind) for number, kind in enumerate(config["layer_types"]))
        ]
        self._of_images(payload, flat, codes_KP)
        self._of_places(config)

    def _of_images(self, payload: Mapping[str, Any], flat: Mapping[str, Tensor], codes_KP: Bytes) -> None:
        """How pixels become numbers, where they lie, and the head."""
        self.grid: tuple[int, int] = (payload["grid"][0], payload["grid"][1])
        self.side, channels = payload["patch"], payload["channels"]
        self.patches = self.grid[0] * self.grid[1]
        self.shape: tuple[int, int, int] = (self.grid[0] * self.side, self.grid[1] * self.side, channels)
        each = [torch.tensor(payload[name], dtype=torch.float32) for name in ("mean", "deviation")]
        self.mean_P, self.deviation_P = (one.repeat(self.side * self.side) for one in each)
        self.deviation_P = self.deviation_P.clamp(min=1.0)
        self.codes_KP = codes_KP
        self.centres_KP = self.standardised(torch.from_numpy(codes_KP))
        if self.input == "payload":
            self.project = flat["model.embeddings.projection"], flat["model.embeddings.projection.bias"]
            rows, columns = flat["model.embeddings.rows"], flat["model.embeddings.columns"]
            self.place_ND = (rows[:, None] + columns).flatten(0, 1)
        if self.target == "payload":
            self.mean = flat["head.mean"], flat["head.mean.bias"]
        else:
            self.dense, self.head_norm, self.bias = flat["head.dense"], flat["head.norm"], flat["decoder.bias"]

    def _of_places(self, config: Mapping[str, Any]) -> None:
        """Turns of queries and keys (Su et al. 2021), and which positions see which; None is all."""
        width = config["hidden_size"] // self.heads
        place_L = torch.arange(self.patches + 2)
        exponents = torch.arange(0, width, 2, dtype=torch.float32) / width
        self.turns = {}
        for kind, rope in config["rope_parameters"].items():
            angles = place_L[:, None].float() * (1.0 / rope["rope_theta"] ** exponents)
            cos, sin = angles.cos(), angles.sin()
            self.turns[kind] = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
        near_LL = (place_L[:, None] - place_L).abs() <= config["local_attention"] // 2
        self.seen = {"full_attention": None, "sliding_attention": near_LL}

    def prepared(self, pixels_HWC: Bytes, hidden: Sequence[int]) -> tuple[Tensor, Tensor]:
        """An image as tokens (L,), and its patches (N, P): [MASK] and zeros at the hidden ones, whatever they hold."""
        (rows, columns), side = self.grid, self.side
        parts = pixels_HWC.reshape(rows, side, columns, side, self.shape[2]).swapaxes(1, 2)
        patches_NP = parts.reshape(self.patches, -1).copy()
        patches_NP[list(hidden)] = 0
        tokens_N = torch.from_numpy(nearest(patches_NP, self.codes_KP)) + FIRST_CODE
        tokens_N[list(hidden)] = self.mask_id
        return F.pad(F.pad(tokens_N, (1, 0), value=self.cls_id), (0, 1), value=self.sep_id), torch.from_numpy(
            patches_NP
        )

    def picture(self, patches_NP: Tensor) -> Bytes:
        """Patches put together: (H, W, C)."""
        (rows, columns), side = self.grid, self.side
        parts = patches_NP.numpy().reshape(rows, columns, side, side, self.shape[2])
        return parts.swapaxes(1, 2).reshape(self.shape)

    def standardised(self, patches_XP: Tensor) -> Tensor:
        """Bytes as numbers whose mean is 0 and deviation 1 in each channel of the train split."""
        return (patches_XP.float() - self.mean_P) / self.deviation_P

    def encode(self, tokens_BL: Tensor, patches_BNP: Tensor, at_M: Sequence[tuple[int, int]] | None = None) -> Tensor:
        """Hidden states (B, L, D); with places (image, position) those only (M, D). Patch j has the position 1 + j."""
        length = tokens_BL.shape[1]
        flat_M = None if at_M is None else torch.tensor([image * length + place for image, place in at_M])
        h = self._norm(self._shown(tokens_BL, patches_BNP), self.first_norm)
        for number, (kind, attn_norm, (qkv, attn_out, mlp_norm, into, out)) in enumerate(self.layers):
            x = h if attn_norm is None else self._norm(h, attn_norm)
            mixed = self._attend(F.linear(x, qkv), kind)
            if flat_M is not None and number == len(self.layers) - 1:
                h, mixed = h.flatten(0, 1)[flat_M], mixed.flatten(0, 1)[flat_M]
            h = h + F.linear(mixed, attn_out)
            gate, up = F.linear(self._norm(h, mlp_norm), into).chunk(2, dim=-1)
            h = h + F.linear(F.gelu(gate) * up, out)
        return self._norm(h, self.final_norm)

    def head(self, h_MD: Tensor) -> Tensor:
        """Logits (M, V); of a model whose target is pixels the means of standardised ones (M, P)."""
        if self.target == "payload":
            return F.linear(h_MD, *self.mean)
        return F.linear(self._norm(F.gelu(F.linear(h_MD, self.dense)), self.head_norm), self.embedding, self.bias)

    def probabilities(self, said: Tensor) -> Tensor:
        """Of the codes (M, K), from what the head says: over the whole vocabulary; around a mean μ over the codes, in
        proportion to exp(−½‖c − μ‖²), where ‖μ‖² cancels out (in float64, since what is left is large)."""
        if self.target == "payload":
            centres_KP = self.centres_KP.double()
            logits_MK = F.linear(said.double(), centres_KP, -0.5 * centres_KP.square().sum(dim=-1))
            return logits_MK.softmax(dim=-1).float()
        return said.softmax(dim=-1)[:, FIRST_CODE : FIRST_CODE + len(self.codes_KP)]

    def pixels(self, said: Tensor) -> Tensor:
        """What fills the hidden patches, from what the head says: bytes (M, P) of the best code, or of the mean."""
        if self.target == "payload":
            return (said * self.deviation_P + self.mean_P).round().clamp(0, 255).to(torch.uint8)
        return torch.from_numpy(self.codes_KP)[self.probabilities(said).argmax(dim=-1)]

    def _shown(self, tokens_BL: Tensor, patches_BNP: Tensor) -> Tensor:
        rows_BLD = F.embedding(tokens_BL, self.embedding)
        if self.input != "payload":
            return rows_BLD
        hidden_BN1 = (tokens_BL[:, 1:-1] == self.mask_id)[..., None]
        seen_BND = F.linear(self.standardised(patches_BNP), *self.project)
        inner_BND = torch.where(hidden_BN1, rows_BLD[:, 1:-1], seen_BND) + self.place_ND
        return torch.cat((rows_BLD[:, :1], inner_BND, rows_BLD[:, -1:]), dim=1)

    def _norm(self, h: Tensor, weight: Tensor) -> Tensor:
        return F.layer_norm(h, weight.shape, weight, None, self.eps)

    def _attend(self, qkv_BLX: Tensor, kind: str) -> Tensor:
        images, length, _ = qkv_BLX.shape
        query, key, value = qkv_BLX.view(images, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        cos, sin = self.turns[kind]
        half = query.shape[-1] // 2
        query, key = (x * cos + x.roll(half, dims=-1) * sin for x in (query, key))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=self.seen[kind])
        return mixed.transpose(1, 2).flatten(2)


def nearest(patches_NP: Bytes, codes_KP: Bytes) -> NDArray[np.int64]:
    """The code at the least squared distance to each patch, the lowest of several; exact, in whole numbers."""
    codes = codes_KP.astype(np.float64)
    squares_K = np.square(codes).sum(axis=1)
    step = max(1, NUMBERS // len(codes))
    parts = (patches_NP[at : at + step].astype(np.float64) for at in range(0, len(patches_NP), step))
    return np.concatenate([(squares_K - 2 * (part @ codes.T)).argmin(axis=1) for part in parts])
