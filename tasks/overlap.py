"""Was a model trained on copies of its test set? Of documents that are equal, or near copies (minhash.py).

The corpus stage sees to it that it was not: a document's split is a hash of its own text, so equal ones never stand on
both sides, and what is a near copy of a held-out document goes (near_heldout). Two ways are left, and measured here:
a recipe that switched near_duplicates off, and weights that come from a run with another corpus (pretrain.fork).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .artifacts import Manifest
from .evidence import document_ids, ids_of
from .minhash import NO_WORDS, NearDuplicates, Signer
from .modalities import TEXT, name_of
from .progress import progress
from .spans import documents_of
from .tokens import read_documents

EXAMPLES = 10
"""Documents that are named."""


def copies(corpus: Manifest, others: Sequence[Manifest] = ()) -> dict[str, Any]:
    """How many train documents are copies of a document of a corpus's test split, and which.

    others      further corpora that the model was trained on
    Returns {"equal", "near", "examples": [id, …], "measured": [digest, …]}.
    Raises DataError naming a file that cannot be read.
    """
    if name_of(corpus.facts) != TEXT:
        return _equal(corpus, others)
    settings = _settings(corpus)
    measured = [one for one in (corpus, *others) if one.digest != corpus.digest or not settings.enabled]
    found: dict[str, Any] = {"equal": 0, "near": 0, "examples": [], "measured": [one.digest for one in measured]}
    if not measured:
        return found
    heldout = _Heldout(corpus, settings)
    total = sum(documents_of(one, "train") for one in measured)
    with progress("evaluate: copies of the test set", total=total, unit="documents") as bar:
        for one in measured:
            for split, batch in read_documents(one):
                if split == "train" and len(batch):
                    heldout.look(batch, found)
                    bar.advance(len(batch))
    return found


def _equal(corpus: Manifest, others: Sequence[Manifest]) -> dict[str, Any]:
    """The same where documents have no words that could be nearly those of another: by their ids alone. Within one
    corpus none are equal on both sides, whatever it was made with."""
    held = set(document_ids(corpus, "test"))
    measured = [one for one in others if one.digest != corpus.digest]
    same = list(dict.fromkeys(one for other in measured for one in document_ids(other, "train") if one in held))
    page = {"equal": len(same), "near": 0, "examples": same[:EXAMPLES]}
    return page | {"measured": [one.digest for one in measured]}


def _settings(corpus: Manifest) -> NearDuplicates:
    """Those of the corpus; one that does not say is taken for one that did not look."""
    given = dict(corpus.config.get("near_duplicates", {"enabled": False}))
    return replace(NearDuplicates(), **given)


class _Heldout:
    """The documents of the test split: ids, signatures, band keys."""

    def __init__(self, corpus: Manifest, settings: NearDuplicates) -> None:
        self.signer, self.least_equal = Signer(settings), settings.least_equal
        self.ids: set[str] = set()
        self.known: set[str] = set()
        signatures, keys = [], []
        for split, batch in read_documents(corpus):
            if split == "test" and len(batch):
                self.ids.update(ids_of(batch))
                some = self.signer.sign(_texts(batch))
                signatures.append(some[0])
                keys.append(some[1])
        self.signatures, self.keys = np.concatenate(signatures), np.concatenate(keys)
        self.order = np.argsort(self.keys, axis=0, kind="stable")

    def look(self, batch: pa.RecordBatch, found: dict[str, Any]) -> None:
        """Adds what of some train documents is a copy; each document once, however often it is taken."""
        ids = ids_of(batch)
        signatures, keys = self.signer.sign(_texts(batch))
        near = self._near(signatures, keys)
        for number, one in enumerate(ids):
            if one not in self.known and (one in self.ids or near[number]):
                self.known.add(one)
                found["equal" if one in self.ids else "near"] += 1
                if len(found["examples"]) < EXAMPLES:
                    found["examples"].append(one)

    def _near(self, signatures: NDArray[np.uint16], keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
        near = np.zeros(len(keys), bool)
        for band in range(keys.shape[1]):
            order = self.order[:, band]
            there = self.keys[order, band]
            first, last = (np.searchsorted(there, keys[:, band], side) for side in ("left", "right"))
            for number in np.flatnonzero((last > first) & (keys[:, band] != NO_WORDS) & ~near).tolist():
                others = self.signatures[order[first[number] : last[number]]]
                equal = np.count_nonzero(others == signatures[number], axis=1)
                near[number] = bool((equal >= self.least_equal).any())
        return near


def _texts(batch: pa.RecordBatch) -> list[bytes]:
    return [text.encode() for text in batch.column("text").to_pylist()]
