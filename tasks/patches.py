"""The embedding of images: patches of pixels as vectors, and where they lie in the grid (Dosovitskiy et al. 2021).

    visible patch j     e_j = W ((x_j / 255 − mean) / deviation) + b + r[row of j] + c[column of j]
    hidden patch j      e_j = E[[MASK]]                               + r[row of j] + c[column of j]
    [CLS], [SEP]        rows of E, as in text

x_j are the P bytes of a patch: rows, columns, channels. Mean and deviation are those of each channel in the train
split, from the vocabulary's facts. A hidden patch's pixels are not in the batch at all (batches.py); [MASK] is BEiT's
learned mask embedding (Bao et al. 2022, arXiv 2106.08254).

Suffixes: B rows, L positions, P bytes of a patch, D width; X any number of patches, F features of a position.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PARAMETERS = ("projection.weight", "projection.bias", "rows.weight", "columns.weight")


def standardised(bytes_XP: Tensor, payload: Mapping[str, Any]) -> Tensor:
    """Bytes of patches as numbers whose mean is 0 and deviation 1 in each channel: float32 (X, P)."""
    pixels = payload["bytes"] // payload["channels"]
    mean_P, deviation_P = (
        torch.tensor(payload[name], dtype=torch.float32, device=bytes_XP.device).repeat(pixels)
        for name in ("mean", "deviation")
    )
    return (bytes_XP.float() - mean_P) / deviation_P.clamp(min=1.0)


class Embedding(nn.Module):
    """Rows of the token embedding, and the patches' own in their place."""

    def __init__(self, payload: Mapping[str, Any], width: int) -> None:
        super().__init__()
        self.payload = dict(payload)
        self.projection = nn.Linear(payload["bytes"], width)
        self.rows = nn.Embedding(payload["grid"][0], width)
        self.columns = nn.Embedding(payload["grid"][1], width)

    def forward(
        self, rows_BLD: Tensor, ordinary_BL: Tensor, hidden_BL: Tensor, index_BL: Tensor, payload_BLP: Tensor
    ) -> Tensor:
        """(B, L, D).

        ordinary    where a patch is, hidden or not
        hidden      where [MASK] stands
        index       number of the patch in its image, where one is
        """
        height, width = self.payload["grid"]
        index_BL = index_BL.clamp(0, height * width - 1)
        visible_BL1 = (ordinary_BL & ~hidden_BL)[..., None].float()
        here_BL1 = ordinary_BL[..., None].float()
        # One product instead of look-ups that are added: a twentieth of a step at 6 x 256, all of it memory traffic.
        features_BLF = torch.cat(
            (
                standardised(payload_BLP, self.payload) * visible_BL1,
                visible_BL1,
                F.one_hot(index_BL // width, height) * here_BL1,
                F.one_hot(index_BL % width, width) * here_BL1,
            ),
            dim=-1,
        )
        weight_FD = torch.cat(
            (self.projection.weight.T, self.projection.bias[None], self.rows.weight, self.columns.weight)
        )
        return torch.addcmul((features_BLF @ weight_FD).to(rows_BLD.dtype), rows_BLD, 1 - visible_BL1)
