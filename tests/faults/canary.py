"""Pickles that sing: what unpickles one makes a file."""

import gzip
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np


class Canary:
    """Unpickling it makes the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


def pickled(canary: Path) -> bytes:
    return pickle.dumps({"text": Canary(canary)})


def forms(canary: Path) -> dict[str, bytes]:
    """A pickle as programs write it: bare, by numpy, by torch in its two forms, packed."""
    import torch

    bare = pickled(canary)
    array, zipped, old = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(array, np.array([Canary(canary)], dtype=object), allow_pickle=True)
    torch.save({"text": Canary(canary)}, zipped)
    torch.save({"text": Canary(canary)}, old, _use_new_zipfile_serialization=False)
    return {
        "bare": bare,
        "npy": array.getvalue(),
        "torch": zipped.getvalue(),
        "torch, old": old.getvalue(),
        "gzip": gzip.compress(bare),
    }
