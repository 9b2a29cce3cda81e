"""Short passages of the test split, the same for every model: what pseudo-likelihood is measured on.

They are cut by bytes and blanks, never by tokens, so a vocabulary has no part in them. A document is cut end to end
into passages at its blanks; which documents, and which of its passages, the counter hash says. One passage a document,
as long as there are documents: passages of one document are not independent of each other.
"""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from .artifacts import Manifest
from .errors import UsageError
from .evidence import ids_of
from .keys import permutation
from .masking import EVALUATION_SEED
from .tokens import read_documents

SHORTEST = 16
"""Bytes; a passage needs room for a few words."""


@dataclass(frozen=True)
class PseudoLikelihoodConfig:
    """Passages of the test split whose tokens are asked for one by one."""

    passages: int = 128
    """At most; a test split with less text has fewer."""
    passage_bytes: int = 256
    """UTF-8 bytes of a passage, at most; it ends with a word."""

    def __post_init__(self) -> None:
        for name, least in (("passages", 1), ("passage_bytes", SHORTEST)):
            if getattr(self, name) < least:
                raise UsageError(f"evaluate.pseudo_likelihood.{name} is {getattr(self, name)}; use at least {least}.")


@dataclass(frozen=True)
class Passage:
    """A piece of a document."""

    text: str
    """In NFC, without blanks around it."""
    document: int
    """Number of its document in the test split."""
    id: str = ""
    """Of that document."""


def passages(config: PseudoLikelihoodConfig, corpus: Manifest) -> list[Passage]:
    """The passages in the order of the documents, those of one document in the order of its text.

    Raises UsageError where the test split has no text, DataError where a file cannot be read.
    """
    documents = corpus.counts.get("documents_test", 0)
    order = permutation(EVALUATION_SEED, 0, documents)
    wanted = set(order[: config.passages].tolist())
    cut: dict[int, list[str]] = {}
    ids: dict[int, str] = {}
    for number, (identifier, text) in enumerate(_test_texts(corpus)):
        if number in wanted:
            cut[number], ids[number] = (
                [text[start:stop] for start, stop in spans(text, config.passage_bytes)],
                identifier,
            )
    taken: list[tuple[int, int]] = []
    turn = 0
    while len(taken) < config.passages and any(len(pieces) > turn for pieces in cut.values()):
        for number in order[: config.passages].tolist():
            pieces = cut.get(number, [])
            if turn < len(pieces) and len(taken) < config.passages:
                taken.append((number, int(permutation(EVALUATION_SEED, 1 + number, len(pieces))[turn])))
        turn += 1
    if not taken:
        raise UsageError(f"pseudo_likelihood: the test split of {corpus.folder} has no text; raise corpus.test.")
    return [Passage(cut[number][piece], number, ids[number]) for number, piece in sorted(taken)]


def _test_texts(corpus: Manifest) -> Iterator[tuple[str, str]]:
    """(id, text in NFC) of every document."""
    for split, batch in read_documents(corpus):
        if split == "test":
            texts = batch.column("text").to_pylist()
            yield from zip(ids_of(batch), (unicodedata.normalize("NFC", text) for text in texts), strict=True)


def spans(text: str, size: int) -> Iterator[tuple[int, int]]:
    """Start and stop of consecutive passages of at most `size` bytes, without the blanks between them. They end with a
    word; one that is longer than a passage is cut between characters."""
    at = 0
    while True:
        while at < len(text) and text[at].isspace():
            at += 1
        if at >= len(text):
            return
        stop = at + len(text[at : at + size].encode()[:size].decode(errors="ignore"))
        if stop < len(text) and not text[stop].isspace():
            border = max(text.rfind(blank, at, stop) for blank in " \n\t")
            stop = border if border > at else stop
        yield at, at + len(text[at:stop].rstrip())
        at = stop
