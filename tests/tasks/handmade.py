"""Manifests written by hand, so that a stage is tested without the ones before it. Shared by several test modules."""

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa

from tasks import masking, words
from tasks.artifacts import Built, Identity, Manifest, Store, Workspace
from tasks.masking import Policy
from tasks.rows import Masks

SPECIAL_IDS = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}


def vocabulary(store: Store) -> Manifest:
    """A vocabulary whose files only have to be there."""

    def build(workspace: Workspace) -> Built:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (workspace.folder / name).write_text("{}")
        return Built({}, {})

    return store.make(Identity("vocabulary", 1, {}, {}), build)[0]


def shards(
    store: Store,
    *,
    rows: int = 96,
    files: int = 3,
    length: int = 32,
    size: int = 61,
    rate: str = "0.3",
    draws: int = 2,
    seed: int = 7,
    corruption: str = "mask",
    policy: str = "uniform",
) -> Manifest:
    """Shards of made-up text with the schema of the contract: each token follows from the one before it, mostly.

    Rows hold one to three segments, each a document of its own, and a little padding; `rows` in train, a quarter each
    in validation and test.
    """

    def build(workspace: Workspace) -> Built:
        unigrams = np.zeros(size, np.int64)
        splits = {}
        for number, (split, some, parts) in enumerate(
            (("train", rows, files), ("validation", rows // 4, 1), ("test", rows // 4, 1))
        ):
            rng = np.random.default_rng(number)
            entries, tokens_all, first = [], 0, 0
            for part, ids in enumerate(np.array_split(np.arange(some), parts)):
                lengths = [_lengths(rng, length) for _ in ids]
                tokens_RL = np.stack([_row(rng, one, length, size) for one in lengths])
                name = f"{split}-{part:05d}.arrow"
                mask_seed, own, stored = masking.manner_of(split, seed, Policy(policy), draws)
                masks = Masks(mask_seed, rate, own, words_of(size))
                _write(workspace.folder / name, tokens_RL, lengths, ids, masks, stored)
                if split == "train":
                    unigrams += np.bincount(tokens_RL[tokens_RL >= 5], minlength=size)
                tokens_all += int((tokens_RL >= 5).sum())
                entries.append({"name": name, "rows": len(ids), "first_sequence": first})
                first += len(ids)
            splits[split] = {"rows": some, "tokens": tokens_all, "files": entries}
        np.save(workspace.folder / "unigrams.npy", unigrams)
        np.save(workspace.folder / "words.npy", words_of(size))
        facts = {
            "length": length,
            "rate": rate,
            "draws": draws,
            "seed": seed,
            "corruption": corruption,
            "policy": policy,
            "span": 3,
            "sampler": masking.SAMPLER,
            "vocabulary": {"size": size, "special_ids": SPECIAL_IDS, "ordinary": [[5, size]]},
            "splits": splits,
        }
        return Built({}, facts)

    settings = {
        "rows": rows,
        "files": files,
        "length": length,
        "size": size,
        "rate": rate,
        "draws": draws,
        "seed": seed,
    }
    return store.make(Identity("shards", 1, settings | {"corruption": corruption, "policy": policy}, {}), build)[0]


def words_of(size: int) -> np.ndarray:
    """words.npy of the made-up vocabulary: every other token goes on with a word (a letter, or a space and letters)."""
    table = [words.First.SPACE << 4 | words.Last.LETTER, words.First.LETTER << 4 | words.Last.LETTER] * (size // 2 + 1)
    special = words.First.SPECIAL << 4 | words.Last.SPECIAL
    return np.array([special] * 5 + table[: size - 5], np.uint8)


def _lengths(rng: np.random.Generator, length: int) -> list[int]:
    """Positions of the row's segments, specials included; their sum leaves 0 to 2 positions of padding."""
    cuts = np.sort(rng.choice(np.arange(4, length - 4, 4), size=rng.integers(0, 3), replace=False))
    return np.diff([0, *cuts, length - rng.integers(0, 3)]).tolist()


def _row(rng: np.random.Generator, lengths: list[int], length: int, size: int) -> np.ndarray:
    row = np.zeros(length, np.int64)
    at = 0
    for positions in lengths:
        inner = (rng.integers(size) + 3 * np.arange(positions - 2) + (rng.random(positions - 2) < 0.1)) % (size - 5) + 5
        row[at : at + positions] = [2, *inner, 3]
        at += positions
    return row


def _write(
    path: Path, tokens_RL: np.ndarray, lengths: list[list[int]], ids: np.ndarray, masks: Masks, draws: int
) -> None:
    length = tokens_RL.shape[1]
    record = pa.struct([("length", pa.uint16()), ("document", pa.uint32()), ("start", pa.uint32())])
    number = itertools.count()
    segments = [[{"length": one, "document": next(number), "start": 0} for one in row] for row in lengths]
    columns = {
        "tokens": pa.FixedSizeListArray.from_arrays(pa.array(tokens_RL.reshape(-1).astype(np.uint16)), length),
        "sequence": pa.array(ids.astype(np.uint64)),
        "segments": pa.array(segments, pa.list_(record)),
    }
    flat, offsets = np.concatenate(lengths), np.cumsum([0, *map(len, lengths)])
    for number in range(draws):
        bits = masking.pack_bits(masks.draw(number, ids.astype(np.uint64), flat, offsets, tokens_RL))
        columns[f"draw_{number}"] = pa.array([row.tobytes() for row in bits], pa.binary(length // 8))
    batch = pa.record_batch(columns)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)
