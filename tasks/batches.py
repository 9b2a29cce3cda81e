"""Batches: rows of shards with 𝓜 hidden, as a pure function of (shards, seed, place in the run, rate).

    sample g of a run  = permutation(seed, epoch)[g % rows],  epoch = g // rows;  a step takes B samples from `first` on
    part of a rank     = the places ⌊r·B/n⌋ to ⌊(r+1)·B/n⌋ of the step, for rank (or logical shard) r of n
    draw of a sample   = number `epoch` of the shards' seed: stored where epoch < K at the stored rate, else made again
    slots              = ⌊B·L·p⌋ for the highest rate of the run, never exceeded since Σ⌊M_i·p⌋ <= ⌊B·L·p⌋; spare slots
                         weigh 0

So there is no cursor, no shuffle buffer and no generator to lose: resuming is asking for another step, and the samples
and their masks are the same for any number of ranks. Positions are found on the host, where the masks are, so that
nothing on the device waits for `nonzero`. A batch of 64 rows of 128 takes 0.2 ms where its draw is stored and 0.6 ms
where it is made, so it is made when asked for: a prefetching thread would only fight for the interpreter.

Where the shards carry bytes with each token, a batch has those that a model may see: zeros at 𝓜, as it has [MASK]
there; and apart from them those of 𝓜, which a model may be asked for.

Suffixes: B, R rows, L positions, M slots, S segments, P bytes of a token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from . import keys, masking
from .artifacts import Manifest
from .draws import manner, masks_of
from .errors import UsageError
from .packing import SPECIALS
from .rows import payload_of, read, segments_of, stored_draw, tokens_of


@dataclass(frozen=True)
class Batch:
    """Rows as the model sees them, and what it is asked. Everything lies on the host."""

    tokens_BL: Tensor
    """int64: token ids, 𝓜 hidden."""
    segment_ids_BL: Tensor
    """int64: number of the segment in its row, -1 on padding."""
    masked_M: Tensor
    """int64: 𝓜 as flat indices into B*L, ascending; spare slots at the end are 0."""
    targets_M: Tensor
    """int64: the tokens that are hidden there."""
    weights_M: Tensor
    """float32: 1, and 0 in spare slots."""
    count: int
    """|𝓜|, all rows together."""
    tokens: int
    """Ordinary tokens, Σ M: without specials and padding."""
    rate: str
    """Mask rate p."""
    slots: str
    """The rate that sets the number of slots: at least p."""
    sequence_ids_B: NDArray[np.int64]
    """Global sequence ids of the rows."""
    payload_BLP: Tensor | None = None
    """uint8: the bytes that go along with each token, zeros where there is none and at 𝓜; None where none is read."""
    payload_MP: Tensor | None = None
    """uint8: those of the slots; zeros in spare ones."""
    strand: int = 0
    """Number of the strand that it is of, in a training of several modalities."""

    def split(self, rows: int) -> Iterator[Batch]:
        """The same batch in micro-batches of at most `rows` rows (all at once where 0), each with its own slots."""
        size, length = self.tokens_BL.shape
        if not 0 < rows < size:
            yield self
            return
        masked_M = self.masked_M[: self.count].numpy()
        for first in range(0, size, rows):
            end = min(first + rows, size)
            low, high = np.searchsorted(masked_M, (first * length, end * length))
            tokens_BL, ids_BL = self.tokens_BL[first:end], self.segment_ids_BL[first:end]
            targets_M = self.targets_M[low:high].numpy()
            slots = _slots(masked_M[low:high] - first * length, targets_M, end - first, length, self.slots)
            counts = int(high - low), _ordinary_tokens(ids_BL.numpy())
            along: tuple[Tensor | None, Tensor | None] = (None, None)
            if self.payload_BLP is not None and self.payload_MP is not None:
                along = self.payload_BLP[first:end], _padded(self.payload_MP[low:high], len(slots[0]))
            ids_B = self.sequence_ids_B[first:end]
            yield Batch(tokens_BL, ids_BL, *slots, *counts, self.rate, self.slots, ids_B, *along, self.strand)


class ShardReader:
    """One split of the shards, memory-mapped. Rows are addressed by their global sequence id, 0 <= id < rows."""

    def __init__(self, manifest: Manifest, split: str, payload: bool = False) -> None:
        """Opens every file of the split.

        payload     whether the bytes that go along with each token are read, too

        Raises DataError where the bytes of a file are not those of the manifest: most bit flips in an Arrow file load
        without an error and with other data, so all bytes are hashed once before they are trained on.
        """
        facts = manifest.facts
        self.split, self.digest = split, manifest.digest
        self.length: int = facts["length"]
        self.rate: str = facts["rate"]
        self.corruption: str = facts["corruption"]
        self.mask_id: int = facts["vocabulary"]["special_ids"]["mask"]
        self.ordinary_ids = masking.ids_in(facts["vocabulary"]["ordinary"])
        self.along: Mapping[str, Any] = facts.get("payload", {})
        """What the vocabulary says of the bytes that go along with each token; nothing where there are none."""
        self.masks = masks_of(manifest, split)
        """Draws what is not stored; those of validation and test are frozen."""
        files = [read(manifest.whole(file["name"])) for file in facts["splits"][split]["files"]]
        self.tokens = [tokens_of(file) for file in files]
        self.payload = [payload_of(file, self.length).reshape(len(file), -1) for file in files] if payload else []
        """Those bytes, uint8 (R, L·P) of each file."""
        stored = manner(facts, split)[2]
        self.draws = [[stored_draw(file, number) for file in files] for number in range(stored)]
        self.first = np.cumsum([0, *(file.num_rows for file in files)])
        """Sequence id of each file's first row, and the end."""
        segments = [segments_of(file) for file in files]
        self.segment_lengths = np.concatenate([np.zeros(0, np.int64), *(lengths for lengths, _ in segments)])
        self.segment_offsets = np.cumsum(np.concatenate([[0], *(np.diff(offsets) for _, offsets in segments)]))
        """Segments of row r: segment_lengths[segment_offsets[r] : segment_offsets[r + 1]]."""

    @property
    def rows(self) -> int:
        return int(self.first[-1])

    def stored_rows(self, ids: NDArray[np.int64]) -> NDArray[Any]:
        """Token ids of some rows as they are stored: uint16 or uint32 (R, L)."""
        return self._gather(self.tokens, ids)

    def rows_of(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Token ids of some rows (R, L)."""
        return self.stored_rows(ids).astype(np.int64)

    def stored_draw(self, number: int, ids: NDArray[np.int64]) -> NDArray[np.bool_] | None:
        """Draw `number` of some rows as the shards store it, bool (R, L); None where they do not."""
        if number >= len(self.draws):
            return None
        return masking.unpack_bits(self._gather(self.draws[number], ids), self.length)

    def stored_payload(self, ids: NDArray[np.int64]) -> NDArray[np.uint8] | None:
        """The bytes that go along with each token of some rows, uint8 (R, L, P); None where they are not read."""
        return self._gather(self.payload, ids).reshape(len(ids), self.length, -1) if self.payload else None

    def segments_of_rows(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Lengths (S,), specials included, and offsets (R + 1,) of the segments of some rows."""
        begins = self.segment_offsets[ids]
        per_row = self.segment_offsets[ids + 1] - begins
        offsets = np.concatenate([[0], np.cumsum(per_row)])
        at = np.arange(offsets[-1]) + np.repeat(begins - offsets[:-1], per_row)
        return self.segment_lengths[at], offsets

    def _gather(self, files: list[NDArray[Any]], ids: NDArray[np.int64]) -> NDArray[Any]:
        """Rows of several files as one array, in the order of the ids.

        Joining buffers takes the same time for any number of files. Fancy indexing needs a pass for each of them: with
        32 files, a batch of 64 rows of 128 tokens takes seven times as long.
        """
        file_R = np.searchsorted(self.first, ids, side="right") - 1
        places = zip(file_R.tolist(), (ids - self.first[file_R]).tolist(), strict=True)
        joined = bytearray().join([files[file][row] for file, row in places])
        return np.frombuffer(joined, files[0].dtype).reshape(len(ids), files[0].shape[1])


def training_batch(
    reader: ShardReader,
    first: int,
    rows: int,
    seed: int,
    *,
    rate: str = "",
    slots: str = "",
    part: int = 0,
    parts: int = 1,
) -> Batch:
    """What a part takes of a step: rows in the order of `seed`, each with the draw of its epoch.

    Args:
        first: the step's first sample.
        rows: the rows of the whole step.
        rate: the mask rate p of the step; "" is that of the shards.
        slots: the highest rate of the run, which sets the number of slots; "" is the rate of the step.
        part: of `parts` equal ones (to a row); a rank, or a logical shard.
    Raises:
        UsageError: there are fewer rows than parts.
    """
    if rows < parts:
        raise UsageError(
            f"A step of {rows} rows cannot be split over {parts} ranks; raise pretrain.batch_tokens, or lower "
            "pretrain.devices or pretrain.nodes."
        )
    low, high = (first + one * rows // parts for one in (part, part + 1))
    rate = rate or reader.rate
    read = [_Rows.read(reader, ids, epoch, rate, reader.corruption) for epoch, ids in _samples(reader, low, high, seed)]
    return _assemble(read, reader.length, rate, slots or rate)


def segments_of_step(reader: ShardReader, first: int, rows: int, seed: int) -> NDArray[np.int64]:
    """Lengths (S,) of all segments of a step, specials included.

    They give Σ|𝓜| (`hidden_in`): so every rank knows what the summed loss is divided by before it starts, and no rank
    has to ask another.
    """
    return np.concatenate([reader.segments_of_rows(ids)[0] for _, ids in _samples(reader, first, first + rows, seed)])


def hidden_in(lengths_S: NDArray[np.int64], rate: str) -> int:
    """Σ|𝓜| = Σ ⌊M·p⌋ of segments of these lengths, specials included."""
    return int(masking.count(lengths_S - SPECIALS, rate).sum())


def _samples(reader: ShardReader, low: int, high: int, seed: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Samples low to high as (epoch, sequence ids): one epoch, or a few where one ends in between."""
    epochs, index = np.divmod(np.arange(low, high), reader.rows)
    for epoch in range(epochs[0], epochs[-1] + 1):
        yield epoch, _order(seed, epoch, reader.rows)[index[epochs == epoch]]


def frozen_batch(reader: ShardReader, ids: ArrayLike, rate: str) -> Batch:
    """Some rows with draw 0 of the reader's seed, at any rate: what validation and evaluation ask.

    All of 𝓜 shows [MASK], whatever training's policy. Masks are nested: a higher rate hides what a lower one hides.
    """
    rows = _Rows.read(reader, np.asarray(ids, dtype=np.int64), 0, rate, "mask")
    return _assemble([rows], reader.length, rate, rate)


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, rows: int) -> NDArray[np.int64]:
    return keys.permutation(seed, epoch, rows)


@dataclass(frozen=True)
class _Rows:
    """Rows with one draw of 𝓜. Tokens are as stored: a quarter of the bytes to move until the batch is whole."""

    ids_R: NDArray[np.int64]
    tokens_RL: NDArray[Any]
    corrupted_RL: NDArray[Any]
    hidden_RL: NDArray[np.bool_]
    segment_ids_RL: NDArray[np.int32]
    ordinary: int
    """Σ M."""
    payload_RLP: NDArray[np.uint8] | None

    @classmethod
    def read(cls, reader: ShardReader, ids: NDArray[np.int64], draw: int, rate: str, policy: str) -> _Rows:
        tokens_RL = reader.stored_rows(ids)
        lengths, offsets = reader.segments_of_rows(ids)
        hidden_RL = reader.stored_draw(draw, ids) if masking.fraction(rate) == masking.fraction(reader.rate) else None
        if hidden_RL is None:
            hidden_RL = reader.masks.draw(draw, ids.astype(np.uint64), lengths, offsets, tokens_RL, rate)
        corrupted_RL = masking.corrupt(
            tokens_RL,
            hidden_RL,
            seed=reader.masks.seed,
            draw=draw,
            sequence_ids=ids,
            mask_id=reader.mask_id,
            ordinary_ids=reader.ordinary_ids,
            policy=policy,
        )
        segment_ids_RL = masking.segment_ids(lengths, offsets, reader.length)
        ordinary, along = int(lengths.sum()) - SPECIALS * len(lengths), reader.stored_payload(ids)
        return cls(ids, tokens_RL, corrupted_RL, hidden_RL, segment_ids_RL, ordinary, along)


def _assemble(parts: list[_Rows], length: int, rate: str, slots: str) -> Batch:
    def whole(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(part, name) for part in parts])

    ids_B, tokens_BL = whole("ids_R"), whole("tokens_RL")
    masked = np.flatnonzero(whole("hidden_RL"))
    at_M = _slots(masked, tokens_BL.reshape(-1)[masked], len(ids_B), length, slots)
    along: dict[str, Any] = {}
    if parts[0].payload_RLP is not None:
        shown_BLP = whole("payload_RLP")
        hidden_MP = torch.from_numpy(shown_BLP.reshape(len(ids_B) * length, -1)[masked])
        shown_BLP[whole("hidden_RL")] = 0  # what is not there cannot be looked at
        along = {"payload_BLP": torch.from_numpy(shown_BLP), "payload_MP": _padded(hidden_MP, len(at_M[0]))}
    return Batch(
        torch.from_numpy(whole("corrupted_RL").astype(np.int64)),
        torch.from_numpy(whole("segment_ids_RL").astype(np.int64)),
        *at_M,
        count=len(masked),
        tokens=sum(part.ordinary for part in parts),
        rate=rate,
        slots=slots,
        sequence_ids_B=ids_B,
        **along,
    )


def _padded(rows_MP: Tensor, slots: int) -> Tensor:
    """Zeros for the spare slots at the end."""
    return torch.nn.functional.pad(rows_MP, (0, 0, 0, slots - len(rows_MP)))


def _slots(
    masked: NDArray[np.int64], targets: NDArray[Any], rows: int, length: int, rate: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Indices, targets and weights, padded to the capacity ⌊B·L·p⌋, so that every batch of a size has one shape."""
    capacity = int(masking.count(rows * length, rate))
    masked_M, targets_M = np.zeros(capacity, np.int64), np.zeros(capacity, np.int64)
    weights_M = np.zeros(capacity, np.float32)
    masked_M[: len(masked)], targets_M[: len(masked)], weights_M[: len(masked)] = masked, targets, 1
    return torch.from_numpy(masked_M), torch.from_numpy(targets_M), torch.from_numpy(weights_M)


def _ordinary_tokens(segment_ids_BL: NDArray[Any]) -> int:
    """Σ M: positions of segments less two specials each."""
    inside = segment_ids_BL >= 0
    begins = inside.copy()
    begins[:, 1:] &= segment_ids_BL[:, 1:] != segment_ids_BL[:, :-1]
    return int(inside.sum() - 2 * begins.sum())
