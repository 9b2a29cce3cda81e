"""A model of images that is asked questions: what it makes of an image, and what it says of hidden patches.

    target tokens       logits over the vocabulary, as of text
    target payload      the head gives the mean μ of a patch's standardised pixels, with a deviation of 1; of the codes,
                        which are patches too, the logit of code c is then log p(c | μ) + constant = −½ ‖c − μ‖², and
                        −inf of ids that are no codes

So a model that is asked for pixels has a distribution over the same codes, and scores beside the same baselines.

Suffixes: E images, H, W, C of an image, N patches of an image, P bytes of a patch, K codes, B rows, L positions,
M masked positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import modalities
from .artifacts import Manifest
from .codebook import nearest, patches_of
from .encoder import MaskedLanguageModel, Segments, initialise
from .encoder_config import carried
from .errors import NumericError, UsageError
from .patches import standardised
from .scoring import Scorer, load_model, model_scorer
from .special_tokens import SPECIAL_IDS
from .subjects import POSITIONS

FIRST = len(SPECIAL_IDS)
"""The id of code 0."""


class ImageSubject:
    """A model under examination, in evaluation mode on its device, with the codebook that it knows patches by."""

    def __init__(
        self,
        model: MaskedLanguageModel,
        codebook_KP: NDArray[np.uint8],
        payload: Mapping[str, Any],
        label: str,
        counts_V: NDArray[np.int64] | None = None,
    ) -> None:
        """payload     what the vocabulary says of its patches
        counts_V    (V,) counts of the ids in the train split, where an untrained model begins; None: at nothing

        Raises UsageError where the codebook is not the model's.
        """
        self.model, self.label, self.counts_V = model.eval(), label, counts_V
        self.codebook_KP, self.payload, self.config = codebook_KP, payload, model.config
        self.length, self.vocabulary_size = self.config.length, self.config.vocabulary_size
        self.mask_id, self.width = self.config.mask_id, self.config.width
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        mine = carried(self.config)
        if FIRST + len(codebook_KP) > self.vocabulary_size or (mine and dict(mine.payload) != dict(payload)):
            raise UsageError(f"the model {label} was trained with another codebook; evaluate it with its own.")
        if self.patches + 2 > self.length:
            raise UsageError(
                f"the model {label} reads {self.length} positions, but an image of this codebook has {self.patches} "
                "patches and two special tokens; evaluate it with the codebook that it was trained with."
            )

    @property
    def patches(self) -> int:
        """N."""
        height, width = self.payload["grid"]
        return int(height * width)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the images that it reads."""
        side, (height, width) = self.payload["patch"], self.payload["grid"]
        return side * height, side * width, self.payload["channels"]

    @property
    def device(self) -> torch.device:
        return self.model.encoder.embedding.weight.device

    @property
    def sees_payload(self) -> bool:
        """Whether it is shown pixels, and not codes."""
        return self.model.encoder.payload is not None

    @property
    def asked_for_payload(self) -> bool:
        """Whether it is asked for pixels, and not for codes."""
        mine = carried(self.config)
        return mine is not None and mine.target == "payload"

    def states(
        self, pixels_EHWC: NDArray[np.uint8], advance: Callable[[int], None] = lambda images: None
    ) -> NDArray[np.float32]:
        """Means over the patches of the last hidden states, nothing hidden: float32 (E, D). Advances by images.

        Raises UsageError for images of another shape, NumericError for states that are not finite.
        """
        side = self.payload["patch"]
        if pixels_EHWC.shape[1:] != self.shape:
            raise UsageError(
                f"the model {self.label} was trained on images of {self.shape} (height, width, channels), not of "
                f"{pixels_EHWC.shape[1:]}; scale them."
            )
        found = np.zeros((len(pixels_EHWC), self.width), np.float32)
        step = max(1, POSITIONS // (self.patches + 2))
        for start in range(0, len(found), step):
            some = patches_of(pixels_EHWC[start : start + step], side)
            found[start : start + len(some)] = self._states(some).cpu().numpy()
            advance(len(some))
        if not np.isfinite(found).all():
            raise NumericError(f"{self.label} has states that are not finite; its weights are of no use.")
        return found

    def _states(self, patches_ENP: NDArray[np.uint8]) -> Tensor:
        images, number, size = patches_ENP.shape
        tokens_BL = np.full((images, number + 2), self.config.sep_id, np.int64)
        tokens_BL[:, 0] = self.config.cls_id
        payload_BLP = None
        if self.sees_payload:
            tokens_BL[:, 1:-1] = FIRST  # it is shown the pixels, whatever their codes
            shown_BLP = np.zeros((images, number + 2, size), np.uint8)
            shown_BLP[:, 1:-1] = patches_ENP
            payload_BLP = torch.from_numpy(shown_BLP).to(self.device)
        else:
            codes = nearest(patches_ENP.reshape(-1, size), self.codebook_KP)
            tokens_BL[:, 1:-1] = FIRST + codes.reshape(images, number)
        tokens = torch.from_numpy(tokens_BL)
        segments = Segments.from_ids(torch.zeros_like(tokens), self.config.window).to(self.device)
        with torch.inference_mode():
            states_BLD: Tensor = self.model.encoder(tokens.to(self.device), segments, None, payload_BLP)
            return states_BLD[:, 1:-1].float().mean(dim=1)

    def scorer(self) -> Scorer:
        """Logits over the vocabulary at 𝓜; on the device."""
        said = self.means()
        return self._of_codes(said) if self.asked_for_payload else said

    def means(self) -> Callable[..., Tensor]:
        """What the head says: logits (M, V), or μ (M, P)."""
        return model_scorer(self.model)

    def _of_codes(self, means: Callable[..., Tensor]) -> Scorer:
        codes_KP = standardised(torch.from_numpy(self.codebook_KP).to(self.device), self.payload).double()
        halves_K = codes_KP.square().sum(dim=1) / 2

        def logits(*given: Tensor) -> Tensor:
            # −½ ‖c − μ‖² less its largest, in float64: what float32 keeps of large squares is not their difference
            logits_MK = means(*given).double() @ codes_KP.T - halves_K
            logits_MV = torch.full((len(logits_MK), self.vocabulary_size), -torch.inf, device=self.device)
            logits_MV[:, FIRST : FIRST + len(codes_KP)] = logits_MK - logits_MK.amax(dim=1, keepdim=True)
            return logits_MV

        return logits

    def untrained(self, seed: int) -> ImageSubject:
        """The same model before it learnt anything."""
        model = MaskedLanguageModel(self.config)
        initialise(model, seed, self.counts_V)
        return ImageSubject(model.to(self.device), self.codebook_KP, self.payload, self.label, self.counts_V)


def subject(
    weights: Manifest, vocabulary: Manifest, label: str, device: str, counts_V: NDArray[np.int64]
) -> ImageSubject:
    """The model of a pretrain manifest, with its vocabulary's codebook. Raises as ImageSubject and `load_stock`."""
    model = load_model(weights.whole_folder(modalities.face(weights, vocabulary.digest)), device)
    codebook_KP = np.load(vocabulary.whole("codebook.npy"), allow_pickle=False)
    return ImageSubject(model, codebook_KP, vocabulary.facts["payload"], label, counts_V)
