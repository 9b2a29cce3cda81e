"""A model that is asked questions: ours, or any masked language model that somebody else trained.

A task sees texts, tokens, logits and states, and nothing of how a model batches, pads or packs. All numbers are
float32, and those of a sequence do not depend on what else is asked at the same time (to 1e-5).

What a word is, is the pre-tokenizer's to say, as in Kauf and Ivanova (2023). Two cases it leaves open: where it makes
one word of every text (there is none, as in LLaMA's layout), words begin at blanks; a token that it gives no word is
one of its own.

Suffixes: S sequences, N tokens of the sequences end to end, B rows, L positions of a row, M positions asked for,
D width, V vocabulary.
"""

from __future__ import annotations

import copy
import unicodedata
from abc import ABC, abstractmethod
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .encoder import Encoder, MaskedLanguageModel, Segments, initialise
from .errors import UsageError
from .stock import load_stock
from .tokens import open_for_prompts, open_for_text

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

Ids = NDArray[np.int64]
POSITIONS = 8192
"""Positions computed at a time, unless a task says otherwise."""
MASK = "[MASK]"
"""In a prompt, whatever the vocabulary calls it."""


@dataclass(frozen=True)
class Encoded:
    """A text as the model reads it, its special tokens included. Never cut: `len` tells whether it fits."""

    ids: Ids
    """Token ids (N,)."""
    word: Ids
    """The number of the word that a token is part of, from 0 (N,); −1 for specials. Words are the pre-tokenizer's."""
    offsets: Ids
    """Characters of the text that a token stands for, start and stop (N, 2)."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def ordinary(self) -> Ids:
        """Places of the tokens that are none of [CLS] and [SEP]."""
        return np.flatnonzero(self.word >= 0)


class Subject(ABC):
    """A masked language model under examination, in evaluation mode on its device."""

    label: str
    """How the report calls it."""
    length: int
    """Tokens of a text at most, specials included."""
    vocabulary_size: int
    mask_id: int
    width: int
    parameters: int

    @abstractmethod
    def encode(self, texts: Sequence[str], prompts: bool = False) -> list[Encoded]:
        """Texts in NFC with the model's special tokens. With `prompts`, "[MASK]" in a text is the mask, whatever the
        vocabulary calls it; without, it is six characters as any others."""

    def decode(self, ids: Ids) -> str | None:
        """The text of some tokens, special ones by name; None where that is not known."""
        return None

    @abstractmethod
    def logits(self, sequences: Sequence[Ids], at: Sequence[Ids]) -> Tensor:
        """Logits (M, V), float32 on the host: of each sequence its places `at`, in that order. All in one batch."""

    @abstractmethod
    def states(self, sequences: Sequence[Ids]) -> Tensor:
        """The last hidden states (N, D), float32 on the host, of all sequences end to end. All in one batch."""

    @abstractmethod
    def trainable(self) -> nn.Module:
        """A copy of the encoder in training mode, whose forward(sequences) is `states` with gradients, on the
        device."""

    @abstractmethod
    def untrained(self, seed: int) -> Subject:
        """The same model before it learnt anything."""


def groups(lengths: Sequence[int], positions: int = POSITIONS) -> Iterator[list[int]]:
    """Numbers of sequences to compute together: longest first, at most `positions` in all, padding counted (the longest
    times their number). One that is longer stands alone."""
    order = sorted(range(len(lengths)), key=lambda number: (-lengths[number], number))
    start = 0
    while start < len(order):
        count = max(1, positions // max(1, lengths[order[start]]))
        yield order[start : start + count]
        start += count


class Ours(Subject):
    """An encoder of this project: sequences are laid end to end into rows, so next to no padding is computed."""

    def __init__(
        self, model: MaskedLanguageModel, tokenizer: Path, label: str, counts_V: NDArray[np.int64] | None = None
    ) -> None:
        """A model on its device, with its vocabulary's tokenizer.json.

        counts_V    (V,) unigram counts of the train split, where an untrained model begins; None: at nothing

        Raises UsageError where the tokenizer is not the model's, DataError where the file is none.
        """
        self.model, self.label, self.counts_V, self._path = model.eval(), label, counts_V, tokenizer
        config = self.config = model.config
        self.length, self.vocabulary_size, self.width = config.length, config.vocabulary_size, config.width
        self.mask_id = config.mask_id
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self._prompts, self._text = open_for_prompts(tokenizer), open_for_text(tokenizer)
        self._mask_name = self._name_of_mask()
        self._at_blanks = one_word_a_text(self._text)

    def _name_of_mask(self) -> str:
        largest = max(self._prompts.get_vocab(with_added_tokens=True).values(), default=-1)
        if largest >= self.vocabulary_size:
            raise UsageError(
                f"{self._path} has ids up to {largest}, but the model {self.label} knows only {self.vocabulary_size} "
                "tokens; give it the tokenizer that it was trained with."
            )
        added = self._prompts.get_added_tokens_decoder()
        for name, number in (("cls", self.config.cls_id), ("sep", self.config.sep_id), ("mask", self.mask_id)):
            if number not in added or not added[number].special:
                raise UsageError(
                    f"{self._path} has no special token of id {number}, which is [{name.upper()}] to the model "
                    f"{self.label}; give it the tokenizer that it was trained with."
                )
        empty, ours = self._prompts.encode("").ids, [self.config.cls_id, self.config.sep_id]
        if empty != ours:
            raise UsageError(
                f"{self._path} puts the ids {empty} around a text, the model {self.label} was trained with {ours}; "
                "give it the tokenizer that it was trained with."
            )
        return added[self.mask_id].content

    def encode(self, texts: Sequence[str], prompts: bool = False) -> list[Encoded]:
        normal = [unicodedata.normalize("NFC", text) for text in texts]
        if prompts:
            normal = [text.replace(MASK, self._mask_name) for text in normal]
        front = self._prompts if prompts else self._text
        found = []
        for text, encoding in zip(normal, front.encode_batch(normal, add_special_tokens=False), strict=True):
            word = np.concatenate([[-1], words_of(text, encoding, self._at_blanks), [-1]])
            offsets = np.array([(0, 0), *encoding.offsets, (0, 0)], np.int64)
            found.append(Encoded(np.array([self.config.cls_id, *encoding.ids, self.config.sep_id]), word, offsets))
        return found

    def decode(self, ids: Ids) -> str | None:
        if self._text.decoder is None:
            return None
        return self._text.decode(ids.tolist(), skip_special_tokens=False)

    def logits(self, sequences: Sequence[Ids], at: Sequence[Ids]) -> Tensor:
        if not sum(map(len, at)):
            return torch.zeros(0, self.vocabulary_size)
        packed = pack(sequences, self.config.pad_id, self.length)
        masked_M = torch.from_numpy(packed.place_N[np.concatenate(packed.whole(at))])
        with torch.inference_mode():
            logits_MV: Tensor = self.model(*self._given(packed), masked_M.to(self.device))
            return logits_MV.float().cpu()

    def states(self, sequences: Sequence[Ids]) -> Tensor:
        if not len(sequences):
            return torch.zeros(0, self.width)
        packed = pack(sequences, self.config.pad_id, self.length)
        with torch.inference_mode():
            rows_BLD = self.model.encoder(*self._given(packed))
            return rows_BLD.flatten(0, 1)[torch.from_numpy(packed.place_N).to(self.device)].float().cpu()

    def _given(self, packed: Packed) -> tuple[Tensor, Segments]:
        segments = Segments.from_ids(torch.from_numpy(packed.segment_ids_BL), self.config.window)
        return torch.from_numpy(packed.tokens_BL).to(self.device), segments.to(self.device)

    @property
    def device(self) -> torch.device:
        return self.model.encoder.embedding.weight.device

    def trainable(self) -> nn.Module:
        return Trainable(copy.deepcopy(self.model.encoder))

    def untrained(self, seed: int) -> Ours:
        model = MaskedLanguageModel(self.config)
        initialise(model, seed, self.counts_V)
        return Untrained(model.to(self.device), self._path, self.label, self.counts_V)


class Untrained(Ours):
    """One before its first step. Its blocks are the identity (`encoder.initialise`), so what it says of a position
    depends on the id there alone: each is computed once."""

    def logits(self, sequences: Sequence[Ids], at: Sequence[Ids]) -> Tensor:
        if not sum(map(len, at)):
            return torch.zeros(0, self.vocabulary_size)
        ids_M = np.concatenate([ids[places] for ids, places in zip(sequences, at, strict=True)])
        different, which_M = np.unique(ids_M, return_inverse=True)
        encoder = self.model.encoder
        with torch.inference_mode():
            h = encoder.embedding(torch.from_numpy(different).to(self.device))
            logits: Tensor = self.model.head(encoder.final_norm(encoder.embedding_norm(h)))
            return logits.float().cpu()[torch.from_numpy(which_M)]


class Trainable(nn.Module):
    """An encoder that learns from sequences."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder.train()

    def forward(self, sequences: Sequence[Ids]) -> Tensor:
        """The last hidden states (N, D) of all sequences end to end, on the device."""
        config, device = self.encoder.config, self.encoder.embedding.weight.device
        packed = pack(sequences, config.pad_id, config.length)
        segments = Segments.from_ids(torch.from_numpy(packed.segment_ids_BL), config.window)
        states_BLD = self.encoder(torch.from_numpy(packed.tokens_BL).to(device), segments.to(device))
        return states_BLD.flatten(0, 1)[torch.from_numpy(packed.place_N).to(device)]


def ours(folder: Path, tokenizer: Path, label: str, device: str, counts_V: NDArray[np.int64] | None = None) -> Ours:
    """The model in stock form in a folder. Raises as `Ours` and `stock.load_stock`."""
    return Ours(load_stock(folder).to(device), tokenizer, label, counts_V)


@dataclass(frozen=True)
class Packed:
    """Sequences laid into rows."""

    tokens_BL: Ids
    segment_ids_BL: Ids
    """Number of the sequence, −1 on padding."""
    place_N: Ids
    """Where each token lies among the B·L positions."""
    first_S: Ids
    """Index of each sequence's first token among the N."""

    def whole(self, at: Sequence[Ids]) -> list[Ids]:
        """Places in each sequence as indices into the N."""
        return [np.asarray(some, np.int64) + first for some, first in zip(at, self.first_S, strict=True)]


def pack(sequences: Sequence[Ids], pad_id: int, length: int) -> Packed:
    """At least one sequence, in rows as long as the longest: best fit, longest first. `groups` hands out sequences of
    about one length, so nearly every one has a row for itself and attention computes nothing that is masked.

    Raises UsageError where one is longer than `length`.
    """
    lengths_S = np.array([len(sequence) for sequence in sequences], np.int64)
    longest = int(lengths_S.max())
    if longest > length:
        raise UsageError(f"a text of {longest} tokens was given to a model whose context is {length}; leave it out.")
    row_S, column_S, rows = _best_fit(lengths_S, longest)
    first_S = np.cumsum(lengths_S) - lengths_S
    inside_N = np.arange(lengths_S.sum()) - np.repeat(first_S, lengths_S)
    place_N = np.repeat(row_S * longest + column_S, lengths_S) + inside_N
    tokens, segments = np.full(rows * longest, pad_id, np.int64), np.full(rows * longest, -1, np.int64)
    tokens[place_N] = np.concatenate(sequences)
    segments[place_N] = np.repeat(np.arange(len(sequences)), lengths_S)
    return Packed(tokens.reshape(rows, longest), segments.reshape(rows, longest), place_N, first_S)


def _best_fit(lengths_S: Ids, room: int) -> tuple[Ids, Ids, int]:
    """Row and column of every sequence, and how many rows there are."""
    row_S, column_S = np.zeros_like(lengths_S), np.zeros_like(lengths_S)
    free: list[tuple[int, int]] = []
    """(room left, row), sorted."""
    rows = 0
    for number in np.argsort(-lengths_S, kind="stable").tolist():
        size = int(lengths_S[number])
        found = bisect_left(free, (size, 0))
        left, row = free.pop(found) if found < len(free) else (room, rows)
        rows += row == rows
        row_S[number], column_S[number] = row, room - left
        if left > size:
            insort(free, (left - size, row))
    return row_S, column_S, rows


def one_word_a_text(tokenizer: Tokenizer) -> bool:
    """Whether the pre-tokenizer leaves a text whole."""
    encoding = tokenizer.encode("one two", add_special_tokens=False)
    return len(encoding.ids) > 1 and len(set(encoding.word_ids)) == 1


def words_of(text: str, encoding: Encoding, at_blanks: bool) -> Ids:
    """The number of each token's word, from 0 on (N,), of an encoding without special tokens around it."""
    if at_blanks:
        begins = _after_blanks(text, encoding.offsets)
    else:
        words = encoding.word_ids
        begins = [
            at == 0 or word is None or word != before for at, (word, before) in enumerate(zip(words, [None, *words]))
        ]
    return np.cumsum(begins, dtype=np.int64) - 1


def _after_blanks(text: str, offsets: Sequence[tuple[int, int]]) -> list[bool]:
    """Whether a word begins with a token: it, or what lies between it and the token before, begins with a blank."""
    begins: list[bool] = []
    before = (0, 0)
    for start, stop in offsets:
        only_blanks = text[slice(*before)].isspace()  # a lone ▁ belongs to what follows
        begins.append(not begins or (not only_blanks and text[before[1] : max(start, before[1]) + 1][:1].isspace()))
        before = (start, stop)
    return begins
