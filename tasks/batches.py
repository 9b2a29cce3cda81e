"""Batches: rows of shards with 𝓜 hidden, as a pure function of (shards, seed, step).

    sample g of a run  = permutation(seed, epoch)[g % rows],  epoch = g // rows,  g = step * rows_per_step + place in it
    draw of a sample   = number `epoch` of the shards' seed: stored where epoch < K at the stored rate, else made again
    slots              = ⌊B·L·p⌋, never exceeded since Σ⌊M_i·p⌋ <= ⌊B·L·p⌋; spare slots weigh 0

So there is no cursor, no shuffle buffer and no generator to lose: resuming is asking for another step. Positions are
found on the host, where the masks are, so that nothing on the device waits for `nonzero`. A batch of 128 rows of 64
takes half a millisecond, its draw stored or made again, so it is made when asked for: a prefetching thread would only
fight for the interpreter.

Suffixes: B, R rows, L positions, M slots, S segments.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from . import masking
from .artifacts import Manifest
from .errors import DataError
from .rows import read, segments_of, stored_draw


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
    """Mask rate p, which sets the number of slots."""

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
            slots = _slots(masked_M[low:high] - first * length, targets_M, end - first, length, self.rate)
            yield Batch(tokens_BL, ids_BL, *slots, int(high - low), _ordinary_tokens(ids_BL.numpy()), self.rate)


class ShardReader:
    """One split of the shards, memory-mapped. Rows are addressed by their global sequence id, 0 <= id < rows."""

    def __init__(self, manifest: Manifest, split: str) -> None:
        """Opens every file of the split.

        Raises DataError where the bytes of a file are not those of the manifest: most bit flips in an Arrow file load
        without an error and with other data, so all bytes are hashed once before they are trained on.
        """
        facts = manifest.facts
        self.split, self.digest = split, manifest.digest
        self.length: int = facts["length"]
        self.rate: str = facts["rate"]
        self.corruption: str = facts["corruption"]
        self.mask_id: int = facts["vocabulary"]["special_ids"]["mask"]
        self.ordinary_ids: tuple[int, int] = tuple(facts["vocabulary"]["ordinary"])
        self.seed: int = facts["seed"] if split == "train" else masking.EVALUATION_SEED
        """Of the masks; validation and test have frozen ones."""
        if facts["sampler"] != masking.SAMPLER:
            raise DataError(f"{manifest.folder} has masks of sampler {facts['sampler']}; make the shards again.")
        files = [read(manifest.whole(file["name"])) for file in facts["splits"][split]["files"]]
        self.tokens = [file.column("tokens").values.to_numpy().reshape(-1, self.length) for file in files]
        stored = facts["draws"]
        self.draws = [[stored_draw(file, number, self.length) for file in files] for number in range(stored)]
        self.first = np.cumsum([0, *(file.num_rows for file in files)])
        """Sequence id of each file's first row, and the end."""
        segments = [segments_of(file) for file in files]
        self.segment_lengths = np.concatenate([np.zeros(0, np.int64), *(lengths for lengths, _ in segments)])
        self.segment_offsets = np.cumsum(np.concatenate([[0], *(np.diff(offsets) for _, offsets in segments)]))
        """Segments of row r: segment_lengths[segment_offsets[r] : segment_offsets[r + 1]]."""

    @property
    def rows(self) -> int:
        return int(self.first[-1])

    def rows_of(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Token ids of some rows (R, L)."""
        return self._gather(self.tokens, ids).astype(np.int64)

    def stored_draw(self, number: int, ids: NDArray[np.int64]) -> NDArray[np.bool_] | None:
        """Draw `number` of some rows as the shards store it, bool (R, L); None where they do not."""
        if number >= len(self.draws):
            return None
        return masking.unpack_bits(self._gather(self.draws[number], ids), self.length)

    def segments_of_rows(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Lengths (S,), specials included, and offsets (R + 1,) of the segments of some rows."""
        begins = self.segment_offsets[ids]
        per_row = self.segment_offsets[ids + 1] - begins
        offsets = np.concatenate([[0], np.cumsum(per_row)])
        at = np.arange(offsets[-1]) + np.repeat(begins - offsets[:-1], per_row)
        return self.segment_lengths[at], offsets

    def _gather(self, files: list[NDArray[Any]], ids: NDArray[np.int64]) -> NDArray[Any]:
        file_R = np.searchsorted(self.first, ids, side="right") - 1
        rows = np.empty((len(ids), files[0].shape[1]), files[0].dtype)
        for number in np.unique(file_R):
            here = file_R == number
            rows[here] = files[number][ids[here] - self.first[number]]
        return rows


def training_batch(reader: ShardReader, step: int, rows_per_step: int, seed: int) -> Batch:
    """The batch of a step: rows in the order of `seed`, each with the draw of its epoch."""
    samples = np.arange(step * rows_per_step, (step + 1) * rows_per_step)
    epochs, index = np.divmod(samples, reader.rows)
    parts = []
    for epoch in np.unique(epochs):  # one, or a few where an epoch ends inside the batch
        order = _order(seed, int(epoch), reader.rows)
        parts.append(_Rows.read(reader, order[index[epochs == epoch]], int(epoch), reader.rate, reader.corruption))
    return _assemble(parts, reader.length, reader.rate)


def frozen_batch(reader: ShardReader, ids: ArrayLike, rate: str) -> Batch:
    """Some rows with draw 0 of the reader's seed, at any rate: what validation and evaluation ask.

    All of 𝓜 shows [MASK], whatever training's policy. Masks are nested: a higher rate hides what a lower one hides.
    """
    return _assemble([_Rows.read(reader, np.asarray(ids, dtype=np.int64), 0, rate, "mask")], reader.length, rate)


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, rows: int) -> NDArray[np.int64]:
    return masking.permutation(seed, epoch, rows)


@dataclass(frozen=True)
class _Rows:
    """Rows with one draw of 𝓜."""

    tokens_RL: NDArray[np.int64]
    corrupted_RL: NDArray[np.int64]
    hidden_RL: NDArray[np.bool_]
    segment_ids_RL: NDArray[np.int32]

    @classmethod
    def read(cls, reader: ShardReader, ids: NDArray[np.int64], draw: int, rate: str, policy: str) -> _Rows:
        tokens_RL = reader.rows_of(ids)
        lengths, offsets = reader.segments_of_rows(ids)
        hidden_RL = reader.stored_draw(draw, ids) if masking.fraction(rate) == masking.fraction(reader.rate) else None
        if hidden_RL is None:
            hidden_RL = masking.draw(reader.seed, draw, ids, lengths, offsets, reader.length, rate)
        corrupted_RL = masking.corrupt(
            tokens_RL,
            hidden_RL,
            seed=reader.seed,
            draw=draw,
            sequence_ids=ids,
            mask_id=reader.mask_id,
            ordinary_ids=reader.ordinary_ids,
            policy=policy,
        )
        return cls(tokens_RL, corrupted_RL, hidden_RL, masking.segment_ids(lengths, offsets, reader.length))


def _assemble(parts: list[_Rows], length: int, rate: str) -> Batch:
    tokens_BL, corrupted_BL, hidden_BL, segment_ids_BL = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("tokens_RL", "corrupted_RL", "hidden_RL", "segment_ids_RL")
    )
    masked = np.flatnonzero(hidden_BL)
    slots = _slots(masked, tokens_BL.reshape(-1)[masked], len(tokens_BL), length, rate)
    tokens, segment_ids = torch.from_numpy(corrupted_BL), torch.from_numpy(segment_ids_BL.astype(np.int64))
    return Batch(tokens, segment_ids, *slots, len(masked), _ordinary_tokens(segment_ids_BL), rate)


def _slots(
    masked: NDArray[np.int64], targets: NDArray[np.int64], rows: int, length: int, rate: str
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


# The same hash on the device, bit for bit: int64 carries the bits of uint64, for which torch has no shift and no sort.

_SIGN = -(2**63)


def _signed(value: int) -> int:
    return (value & (2**64 - 1)) - ((value & 2**63) << 1)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical right shift: torch's is arithmetic and would drag the sign along."""
    return (x >> bits) & (2 ** (64 - bits) - 1)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shifted(z, 30)) * _signed(masking.MIX_1)
    z = (z ^ _shifted(z, 27)) * _signed(masking.MIX_2)
    return z ^ _shifted(z, 31)


def keys_torch(seed: int, domain: masking.Domain, draw: int, sequence_ids_R: Tensor, length: int) -> Tensor:
    """`masking.keys` in torch: int64 (R, L) with the bits of the uint64; products wrap around in both."""
    golden = _signed(masking.GOLDEN)
    row_R = _mix(_signed(masking.stream(seed, domain, draw)) + (sequence_ids_R + 1) * golden)
    steps_L = torch.arange(1, length + 1, device=sequence_ids_R.device) * golden
    return _mix(row_R[:, None] + steps_L)


def choose_torch(keys_RL: Tensor, lengths: NDArray[np.int64], offsets: NDArray[np.int64], rate: str) -> Tensor:
    """`masking.choose` in torch: bool (R, L). The layout of the segments comes from the host."""
    rows, length = keys_RL.shape
    device = keys_RL.device
    bits = masking.position_bits(length)
    segment_RL = torch.from_numpy(masking.segment_ids(lengths, offsets, length).astype(np.int64)).to(device)
    ordinary_RL = torch.from_numpy(masking.ordinary(lengths, offsets, length)).to(device)
    words_RL = _shifted(keys_RL, 2 * bits) << bits | torch.arange(length, device=device) | segment_RL << (64 - bits)
    words_RL = torch.where(ordinary_RL, words_RL, -1) ^ _SIGN  # flipped, signed order is the unsigned one
    sorted_RL = words_RL.sort(dim=1).values ^ _SIGN
    ordinary_S = lengths - 2
    hidden_S = masking.count(ordinary_S, rate)
    row_S = np.repeat(np.arange(rows), np.diff(offsets))
    before = np.concatenate([[0], np.cumsum(ordinary_S)])
    begins = row_S * length + before[:-1] - before[offsets[row_S]]
    taken = np.repeat(begins - (np.cumsum(hidden_S) - hidden_S), hidden_S) + np.arange(int(hidden_S.sum()))
    positions = sorted_RL.reshape(-1)[torch.from_numpy(taken).to(device)] & (2**bits - 1)
    flat = torch.from_numpy(np.repeat(row_S, hidden_S) * length).to(device) + positions
    hidden = torch.zeros(rows * length, dtype=torch.bool, device=device)
    hidden[flat] = True
    return hidden.reshape(rows, length)
