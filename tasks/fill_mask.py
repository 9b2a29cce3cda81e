"""The registered model: fills the masks of a text. MLflow logs this very file (models from code), not a pickle of it.

It stands alone: it must load where the project is not installed, so it imports nothing of it, only transformers, torch
and mlflow. Weights come as safetensors beside `digests.json`; a file that is not what was registered is refused, by
name.

    mlflow.pyfunc.load_model("models:/NAME@champion").predict(["A [MASK] text."], params={"top_k": 3})

gives for each text, for each [MASK] in it, the k most probable tokens:

    [[[{"token": " short", "probability": 0.12}, …]]]

Suffixes: B texts, L positions, V vocabulary.
"""

import hashlib
import json
import unicodedata
from pathlib import Path
from typing import Any

import mlflow
import torch
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from pydantic import BaseModel
from transformers import AutoModelForMaskedLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

DIGESTS = "digests.json"
MASK = "[MASK]"
"""What a text may always say, whatever the vocabulary calls it."""
PARAMETERS = {"top_k": 5, "targets": ""}
"""Parameters of predict with their defaults; targets is a list of words, or one string of words between spaces."""
TEXTS_AT_ONCE = 16
LONGEST_TEXT = 1_000_000
"""Characters; a longer text is refused before it is tokenised."""


class Candidate(BaseModel):
    """One answer. For the signature only: predict returns plain dictionaries of this form."""

    token: str
    probability: float


def refuse(sentence: str) -> MlflowException:
    """An error that says what is wrong with the request; an HTTP server answers it with 400."""
    return MlflowException.invalid_parameter_value(sentence)


class FillMask(PythonModel):
    """Masked texts in, probable tokens out."""

    def load_context(self, context: PythonModelContext) -> None:
        """Checks every file against digests.json, then loads tokenizer and weights. Raises where a byte differs."""
        folder = Path(context.artifacts["model"])
        check_digests(folder)
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model = AutoModelForMaskedLM.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
        self.length = self.model.config.max_position_embeddings

    def predict(  # type: ignore[override]
        self, model_input: list[str], params: dict[str, Any] | None = None
    ) -> list[list[list[Candidate]]]:
        """Per text, per mask, the top_k tokens with their probabilities, most probable first.

        With targets, only those words are ranked; each must be one token of the vocabulary. Probabilities are always
        over the whole vocabulary. Refused with one sentence: a text without a mask or longer than the context, an
        unknown or impossible parameter, a wrong type.
        """
        top_k, targets = self._parameters(params)
        if not isinstance(model_input, list) or not all(isinstance(text, str) for text in model_input):
            raise refuse("The input must be a list of texts (or a table with a column of them).")
        encoded = [self._encode(text, number) for number, text in enumerate(model_input)]
        answers: list[Any] = []
        for start in range(0, len(encoded), TEXTS_AT_ONCE):
            answers += self._fill(encoded[start : start + TEXTS_AT_ONCE], top_k, targets)
        return answers

    def _parameters(self, params: dict[str, Any] | None) -> tuple[int, list[int]]:
        given = PARAMETERS | (params or {})
        if unknown := sorted(set(given) - set(PARAMETERS)):
            raise refuse(f"Unknown parameter {unknown[0]!r}; the parameters are {', '.join(PARAMETERS)}.")
        top_k, words = given["top_k"], given["targets"]
        size = self.model.config.vocab_size
        if isinstance(top_k, bool) or not isinstance(top_k, int) or not 1 <= top_k <= size:
            raise refuse(f"top_k is {top_k!r}; it must be a whole number from 1 to {size}, the size of the vocabulary.")
        words = words.split() if isinstance(words, str) else words
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise refuse("targets must be a string of words between spaces, or a list of words.")
        return top_k, [self._target(word) for word in words]

    def _target(self, word: str) -> int:
        """The id of a word that is one token: with a space before it, as within a text, else without.

        Where the vocabulary drops spaces both are the same; [UNK] and reserved tokens are special, so no target.
        """
        refuse_half_characters(word, "A target")
        special = {number for number, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        for form in (" " + word, word):
            ids = self.tokenizer.encode(form, add_special_tokens=False)
            if len(ids) == 1 and ids[0] not in special:
                return int(ids[0])
        raise refuse(f"The target {word!r} is not one token of this vocabulary; give words that are.")

    def _encode(self, text: str, number: int) -> list[int]:
        """[CLS] text [SEP] as ids, checked."""
        mask = self.tokenizer.mask_token
        text = text.replace(MASK, mask)  # a vocabulary that was taken over may call it <mask>
        refuse_half_characters(text, f"Text {number}")
        if len(text) > LONGEST_TEXT:
            raise refuse(f"Text {number} has {len(text):,} characters, more than {LONGEST_TEXT:,}; cut it.")
        if mask not in text:
            raise refuse(f"Text {number} holds no {mask}; put one where a token is to be filled in.")
        # verbose: the tokenizer would warn of a text that is refused below
        body = self.tokenizer(unicodedata.normalize("NFC", text), add_special_tokens=False, verbose=False)["input_ids"]
        ids = [self.tokenizer.cls_token_id, *body, self.tokenizer.sep_token_id]
        if len(ids) > self.length:
            raise refuse(f"Text {number} has {len(ids)} tokens, but the context is {self.length} tokens long; cut it.")
        return ids

    def _fill(self, texts: list[list[int]], top_k: int, targets: list[int]) -> list[Any]:
        longest = max(map(len, texts))
        padding = self.tokenizer.pad_token_id
        tokens_BL = torch.tensor([ids + [padding] * (longest - len(ids)) for ids in texts])
        attention_BL = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in texts])
        with torch.inference_mode():
            logits_BLV = self.model(input_ids=tokens_BL, attention_mask=attention_BL).logits.float()
        mask = self.tokenizer.mask_token_id
        return [
            [self._rank(logits_LV[at], top_k, targets) for at, token in enumerate(ids) if token == mask]
            for ids, logits_LV in zip(texts, logits_BLV, strict=True)
        ]

    def _rank(self, logits_V: torch.Tensor, top_k: int, targets: list[int]) -> list[dict[str, Any]]:
        probabilities_V = logits_V.softmax(dim=-1)
        candidates = torch.tensor(sorted(set(targets))) if targets else torch.arange(len(probabilities_V))
        order = probabilities_V[candidates].argsort(descending=True, stable=True)[:top_k]
        return [{"token": self._text(int(i)), "probability": float(probabilities_V[i])} for i in candidates[order]]

    def _text(self, token: int) -> str:
        """The token as it reads in a text, with the space before it where it has one."""
        return str(self.tokenizer.decode([token], clean_up_tokenization_spaces=False))


def refuse_half_characters(text: str, name: str) -> None:
    """Refuses a text with half of a surrogate pair, which has no encoding."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise refuse(
            f"{name} has half of a surrogate pair at character {error.start}; give whole characters."
        ) from None


def check_digests(folder: Path) -> None:
    """Compares the sha256 of each file named in digests.json; names the first that differs or is missing."""
    for name, expected in json.loads((folder / DIGESTS).read_text())["sha256"].items():
        path = folder / name
        if not path.is_file():
            raise refuse(f"{name} of the registered model is missing.")
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            raise refuse(f"{name} is not the file that was registered: sha256 {found[:12]}…, not {expected[:12]}…")


mlflow.models.set_model(FillMask())
