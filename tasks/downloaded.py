"""A masked language model in transformers' format, of a folder or of the hub, as a subject: what ours is compared with.

Sequences are padded to the longest and computed with an attention mask. Positions are gathered before the head where
the model's head takes any rows: a hook replaces the encoder's output by the rows that are asked for. That is tried once
on a small batch, and only used if the logits are those of the whole; otherwise the head computes every position, of
fewer sequences at a time.

Suffixes: S sequences, N tokens of the sequences end to end, L positions of the longest, M positions asked for, D width,
V vocabulary.
"""

from __future__ import annotations

import copy
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from .errors import MaskmillError, UsageError, is_out_of_memory, panics_as_errors
from .streams import first_line
from .subjects import MASK, Encoded, Ids, Subject, one_word_a_text, words_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

DENSE_LOGITS = 1 << 25
"""Logits at a time where all positions go through the head: 128 MB."""
NO_LIMIT = 1 << 20
"""Tokens of a text where neither model nor tokenizer has a limit."""
MOST_LAYERS = 1000
"""A config.json that asks for more is damaged: transformers would build them for hours, and then miss their weights."""


class Downloaded(Subject):
    """A model that somebody else trained. Built by `downloaded`."""

    def __init__(self, model: Any, tokenizer: Any, label: str) -> None:
        """model, tokenizer    of transformers, the model on its device

        Raises UsageError where they do not fit each other, or the tokenizer has no mask.
        """
        self.model, self.label, self._tokenizer = model.eval(), label, tokenizer
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.length = _length(model, tokenizer, label)
        self._prompts, self._text = _fronts(tokenizer, int(model.config.vocab_size), label)
        if tokenizer.mask_token_id is None:
            raise UsageError(f"{label} has no mask token, so it is no masked language model; choose another.")
        self.mask_id = int(tokenizer.mask_token_id)
        self._pad_id = int(tokenizer.pad_token_id or 0)
        self._at_blanks = one_word_a_text(self._text)
        self._asked_M: Tensor | None = None
        self._gathers = False
        try:
            self.vocabulary_size, self.width = self._try()
        except Exception as error:  # of code that is not ours: settings that do not fit each other show here
            if isinstance(error, MaskmillError) or is_out_of_memory(error):
                raise
            raise UsageError(f"{label} cannot be asked ({first_line(error)}); give another model.") from error

    def _try(self) -> tuple[int, int]:
        """V and D; finds out whether the head takes gathered rows."""
        sequences = [encoded.ids for encoded in self.encode(["One text.", "A text that is longer."])]
        at = [np.array([1]), np.array([2, 1])]
        dense_MV = self._dense(sequences, at)
        self.model.base_model.register_forward_hook(self._gather)
        try:
            self._gathers = True
            gathered_MV = self._gathered(sequences, at)
            self._gathers = gathered_MV.shape == dense_MV.shape and torch.allclose(
                gathered_MV, dense_MV, atol=1e-5, rtol=1e-5
            )
        except Exception:  # whatever a head of unknown make says to rows that are no batch
            self._gathers = False
        return dense_MV.shape[1], self.states(sequences[:1]).shape[1]

    def encode(self, texts: Sequence[str], prompts: bool = False) -> list[Encoded]:
        normal = [unicodedata.normalize("NFC", text) for text in texts]
        if prompts:
            normal = [text.replace(MASK, self._tokenizer.mask_token) for text in normal]
        front = self._prompts if prompts else self._text
        found = []
        for text, encoding in zip(normal, front.encode_batch(normal), strict=True):
            inner = np.flatnonzero(np.array(encoding.special_tokens_mask, np.int64) == 0)
            word = np.full(len(encoding.ids), -1, np.int64)
            word[inner] = words_of(text, encoding, self._at_blanks)[inner]
            word[inner] -= word[inner[:1]]
            offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
            found.append(Encoded(np.array(encoding.ids, np.int64), word, offsets))
        return found

    def decode(self, ids: Ids) -> str | None:
        if self._text.decoder is None:
            return None
        return self._text.decode(ids.tolist(), skip_special_tokens=False)

    def logits(self, sequences: Sequence[Ids], at: Sequence[Ids]) -> Tensor:
        if not sum(map(len, at)):
            return torch.zeros(0, self.vocabulary_size)
        return self._gathered(sequences, at) if self._gathers else self._dense(sequences, at)

    def _gathered(self, sequences: Sequence[Ids], at: Sequence[Ids]) -> Tensor:
        longest = max(map(len, sequences))
        asked_M = np.concatenate([number * longest + some for number, some in enumerate(at)])
        self._asked_M = torch.from_numpy(asked_M).to(self.device)
        try:
            with torch.inference_mode():
                logits: Tensor = self.model(**self._padded(sequences)).logits
                return logits.flatten(0, -2).float().cpu()
        finally:
            self._asked_M = None

    def _gather(self, module: nn.Module, given: Any, output: Any) -> Any:
        """The hook: the rows that are asked for, as a batch of one."""
        if self._asked_M is not None:
            output.last_hidden_state = output.last_hidden_state.flatten(0, 1)[self._asked_M][None]
        return output

    def _dense(self, sequences: Sequence[Ids], at: Sequence[Ids]) -> Tensor:
        found = []
        vocabulary = int(self.model.config.vocab_size)
        together = max(1, DENSE_LOGITS // (vocabulary * max(map(len, sequences))))
        with torch.inference_mode():
            for start in range(0, len(sequences), together):
                some = slice(start, start + together)
                logits_SLV = self.model(**self._padded(sequences[some])).logits
                found += [logits_SLV[n, torch.from_numpy(places)] for n, places in enumerate(at[some])]
        return torch.cat(found).float().cpu()

    def states(self, sequences: Sequence[Ids]) -> Tensor:
        if not len(sequences):
            return torch.zeros(0, self.width)
        with torch.inference_mode():
            return _states(self.model.base_model, self._padded(sequences)).float().cpu()

    def _padded(self, sequences: Sequence[Ids]) -> dict[str, Tensor]:
        return padded(sequences, self._pad_id, self.length, self.device)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def trainable(self) -> nn.Module:
        encoder = copy.deepcopy(self.model.base_model)
        encoder._forward_hooks.clear()
        return Trainable(encoder, self._pad_id, self.length)

    def untrained(self, seed: int) -> Downloaded:
        """The same architecture, with random weights as transformers draws them."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = type(self.model)(self.model.config)
        return Downloaded(model.to(self.device), self._tokenizer, self.label)


class Trainable(nn.Module):
    """An encoder that learns from sequences."""

    def __init__(self, encoder: nn.Module, pad_id: int, length: int) -> None:
        super().__init__()
        self.encoder, self._pad_id, self._length = encoder.train(), pad_id, length

    def forward(self, sequences: Sequence[Ids]) -> Tensor:
        """The last hidden states (N, D) of all sequences end to end, on the device."""
        device = next(self.encoder.parameters()).device
        return _states(self.encoder, padded(sequences, self._pad_id, self._length, device))


def padded(sequences: Sequence[Ids], pad_id: int, length: int, device: torch.device) -> dict[str, Tensor]:
    """What a model of transformers is given. Raises UsageError where a sequence is longer than `length`."""
    longest = max(map(len, sequences))
    if longest > length:
        raise UsageError(f"a text of {longest} tokens was given to a model whose context is {length}; leave it out.")
    tokens_SL = np.full((len(sequences), longest), pad_id, np.int64)
    for row_L, sequence in zip(tokens_SL, sequences, strict=True):
        row_L[: len(sequence)] = sequence
    seen_SL = np.arange(longest) < np.array([len(sequence) for sequence in sequences])[:, None]
    return {
        "input_ids": torch.from_numpy(tokens_SL).to(device),
        "attention_mask": torch.from_numpy(seen_SL.astype(np.int64)).to(device),
    }


def _states(encoder: Any, given: dict[str, Tensor]) -> Tensor:
    states_SLD: Tensor = encoder(**given).last_hidden_state
    return states_SLD[given["attention_mask"].bool()]


def downloaded(name: str | Path, label: str, device: str) -> Downloaded:
    """The masked language model of a folder or of a name on the hub.

    Raises UsageError where there is none that can be read: no such name, no network, weights that are no safetensors or
    lack a head, code of its own, or a tokenizer without word numbers and offsets.
    """
    from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer

    options = {"local_files_only": Path(name).is_dir(), "trust_remote_code": False}
    with _quietly():
        try:
            with panics_as_errors():
                config = AutoConfig.from_pretrained(str(name), **options)
                if int(getattr(config, "num_hidden_layers", None) or 0) > MOST_LAYERS:
                    raise ValueError(f"its config.json asks for more than {MOST_LAYERS:,} layers")
                tokenizer = AutoTokenizer.from_pretrained(str(name), config=config, **options)
                model, info = AutoModelForMaskedLM.from_pretrained(
                    str(name),
                    config=config,
                    use_safetensors=True,
                    dtype=torch.float32,
                    output_loading_info=True,
                    **options,
                )
        except Exception as error:  # transformers, the hub's client and safetensors raise their own
            said = " ".join(str(error).split()) or type(error).__name__
            raise UsageError(
                f"{name} is no masked language model in transformers' format that can be read here ({said[:200]}); "
                "give a folder with config.json, model.safetensors and tokenizer.json, or a name on the hub."
            ) from error
    if missing := sorted(info["missing_keys"]):
        raise UsageError(
            f"{name} has no weights for {missing[0]}, so it was not saved as a masked language model; give one that "
            "was."
        )
    return Downloaded(model.to(device), tokenizer, label)


@contextmanager
def _quietly() -> Iterator[None]:
    """No bars and no warnings of transformers."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _fronts(tokenizer: Any, known: int, label: str) -> tuple[Tokenizer, Tokenizer]:
    """The tokenizer for prompts, and the one for raw text, to which the name of a special token is characters.

    known    tokens of the model
    """
    from tokenizers import Tokenizer as Opened

    if not getattr(tokenizer, "is_fast", False):
        raise UsageError(
            f"the tokenizer of {label} is a slow one, which cannot tell words; save a fast one (tokenizer.json) with "
            "transformers."
        )
    # before to_str(), which lists each id that no token has: 8 GB for one of 2^31
    if (largest := max(tokenizer.get_vocab().values(), default=0)) >= known:
        raise UsageError(
            f"the tokenizer of {label} has ids up to {largest}, but the model knows only {known} tokens; give a model "
            "with its own tokenizer."
        )
    fronts = []
    for as_text in (False, True):
        front = Opened.from_str(tokenizer.backend_tokenizer.to_str())
        front.no_truncation()
        front.no_padding()
        front.encode_special_tokens = as_text
        fronts.append(front)
    probe = "One text."
    try:
        with panics_as_errors():
            own, plain = list(tokenizer(probe)["input_ids"]), fronts[1].encode(probe).ids
    except Exception as error:  # the library raises bare Exception
        said = f"the tokenizer of {label} cannot encode a text ({first_line(error)})"
        raise UsageError(f"{said}; save it again with transformers.") from error
    if own != plain:
        raise UsageError(
            f"the tokenizer of {label} does not add its special tokens by tokenizer.json; save it again with "
            "transformers."
        )
    return fronts[0], fronts[1]


def _length(model: Any, tokenizer: Any, label: str) -> int:
    """Tokens of a text at most: what the table of positions holds, and the tokenizer says."""
    said = tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None) or 0
    if odd := [one for one in said if not (isinstance(one, int | float) and one > -NO_LIMIT)]:
        raise UsageError(f"the tokenizer or the config of {label} has a length of {odd[0]!r}; give a number of tokens.")
    limits = [NO_LIMIT, *(int(min(one, NO_LIMIT)) for one in said)]
    for name, module in model.named_modules():
        # RoBERTa and its kin count positions from the id of padding on.
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            limits.append(module.num_embeddings - (-1 if module.padding_idx is None else module.padding_idx) - 1)
    return min(limit for limit in limits if limit > 0)
