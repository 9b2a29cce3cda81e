"""The vocabulary: learnt from the train split only (learning.py), or an existing tokenizer taken over (adopted.py).

Whatever it is, the artifact is the same: a tokenizer.json that every library reads, with the special tokens, V a
multiple of 64, and two tables by id: the bytes of text that it stands for, and how words begin and end with it.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .artifacts import Built, Identity, Manifest, Store, Workspace, save_array, write_atomic
from .errors import UsageError
from .learning import Manner, learn, share_below
from .progress import Bar, progress, say
from .spans import documents_of
from .special_tokens import SPECIAL_IDS, ordinary_ranges, reserve, set_template, special_token, tokenizer_config
from .spellings import is_byte_level, spellings, token_bytes
from .tokens import SPACES, SPACES_AND_LINES, pieces, read_documents
from .vocabulary_card import card, render
from .words import table_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["VocabularyConfig", "identity", "special_token", "tokenizer_config", "vocabulary"]

STAGE = "vocabulary"
VERSION = 2
MODELS = {"bpe": len(SPECIAL_IDS) + 256, "unigram": len(SPECIAL_IDS) + 256, "wordpiece": 128}
"""Name -> the smallest size that makes sense: special tokens and all bytes, or letters and what is made of them."""
LARGEST = 1 << 22
"""Tokens; the largest vocabularies in use have a million, and one of billions would take all memory."""
NO_SPLIT = "The corpus has no document in its train split; add text to its sources."


@dataclass(frozen=True)
class VocabularyConfig:
    model: str = "bpe"
    """bpe (byte-level), wordpiece (as BERT) or unigram (as SentencePiece, with bytes for rare characters)."""
    size: int = 4096
    """Tokens in all: 5 special ones, what is learnt (with 256 bytes in bpe and unigram) and the reserved ones. V is the
    next multiple of 64: reserved ids at the end fill it up."""
    least: int = 2
    """A pair of tokens is merged only if it occurs this often (bpe, wordpiece)."""
    lowercase: bool = False
    """Lower-case all text; wordpiece drops accents as well, as BERT does."""
    split_digits: bool = False
    """Every digit is a token."""
    prefix_space: bool = False
    """A text gets a space in front, so that its first word is the same token as within a sentence (bpe, unigram)."""
    reserved: int = 0
    """Ids, at least, that stay free for later use."""
    sample_bytes: int = 1_000_000_000
    """Of a larger train split about this much is learnt on: documents chosen by the hash of their id."""
    tokenizer: str = ""
    """An existing tokenizer instead: a tokenizer.json, a folder with one, or hf:NAME[@REVISION]. Then nothing is
    learnt, and the settings above count for nothing, but for `reserved`."""

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise UsageError(f"vocabulary.model is bpe, wordpiece or unigram, not {self.model!r}.")
        if self.reserved < 0:
            raise UsageError(f"vocabulary.reserved is {self.reserved}; use 0 or more.")
        if self.tokenizer:
            self._check_adopted()
        else:
            self._check_learnt()

    def _check_adopted(self) -> None:
        for name in ("lowercase", "split_digits", "prefix_space"):
            if getattr(self, name):
                raise UsageError(
                    f"vocabulary.{name} cannot be changed in an existing tokenizer ({self.tokenizer}); leave it out, "
                    "or leave out vocabulary.tokenizer to learn one."
                )

    def _check_learnt(self) -> None:
        if self.size > LARGEST:
            raise UsageError(f"vocabulary.size is {self.size:,}; use at most {LARGEST:,}.")
        smallest = MODELS[self.model] + self.reserved
        if self.size < smallest:
            what = "letters and what is made of them" if self.model == "wordpiece" else "256 bytes"
            raise UsageError(
                f"vocabulary.size is {self.size}, but {what}, {len(SPECIAL_IDS)} special tokens and {self.reserved} "
                f"reserved ids take {smallest}; use {smallest} or more."
            )
        if self.least < 1:
            raise UsageError(f"vocabulary.least is {self.least}; use 1 or more.")
        if self.sample_bytes < 1:
            raise UsageError(f"vocabulary.sample_bytes is {self.sample_bytes}; use 1 or more.")
        if self.model == "unigram" and self.least != type(self).least:
            raise UsageError("vocabulary.least is of no use to unigram, which merges no pairs; leave it out.")
        if self.model == "wordpiece" and self.prefix_space:
            raise UsageError("vocabulary.prefix_space is of no use to wordpiece, which drops spaces; leave it out.")


def identity(config: VocabularyConfig, corpus_digest: str) -> Identity:
    """What the vocabulary is a function of. For an existing tokenizer: of the bytes of its files, not of their path.

    Raises UsageError where it is not there.
    """
    settings = asdict(config)
    if config.tokenizer:
        from .adopted import find

        settings = {"tokenizer": find(config.tokenizer).digest, "reserved": config.reserved}
    return Identity(STAGE, VERSION, settings, {"corpus": corpus_digest})


def vocabulary(config: VocabularyConfig, corpus: Manifest, store: Store) -> tuple[Manifest, bool]:
    """The stage. Second value: found, not made.

    Files: tokenizer.json and tokenizer_config.json (as `transformers` reads them), token_bytes.npy (int32 (V,)),
    words.npy (uint8 (V,), see words.py), card.json and card.html. A corpus too small for `config.size` gives a smaller
    vocabulary; facts["size"] is V.

    Raises UsageError when the train split is empty or a setting does not fit, DataError for damaged or odd files.
    """
    this = identity(config, corpus.digest)

    def build(workspace: Workspace) -> Built:
        if not corpus.counts["documents_train"]:
            raise UsageError(NO_SPLIT)
        if config.tokenizer:
            made = _adopted(config, corpus, this.config["tokenizer"])
        else:
            made = _learnt(config, corpus)
        facts = _write(workspace, made)
        found = card(workspace.folder, corpus, facts)
        write_atomic(workspace.folder / "card.json", json.dumps(found, indent=1, ensure_ascii=False).encode())
        write_atomic(workspace.folder / "card.html", render(found).encode())
        return Built(made.counts, facts, made.measured)

    return store.make(this, build, libraries=("tokenizers", "sentencepiece"))


@dataclass(frozen=True)
class _Made:
    """A tokenizer that is complete but for reserved ids."""

    tokenizer: "Tokenizer"
    special_ids: dict[str, int]
    reserved: int
    """Free ids that are asked for."""
    lossless: bool
    counts: dict[str, int]
    facts: dict[str, Any]
    measured: dict[str, Any] = field(default_factory=dict)
    """Where it came from, for people: equal bytes from two places are one vocabulary."""


def _write(workspace: Workspace, made: _Made) -> dict[str, Any]:
    """Writes the files. Returns the facts."""
    folder, tokenizer = workspace.folder, made.tokenizer
    tokens = tokenizer.get_vocab_size()
    reserved = reserve(tokenizer, made.reserved)
    # not tokenizer.save: on a full disk it raises a bare Exception
    page = tokenizer.to_str(pretty=True)
    write_atomic(folder / "tokenizer.json", page.encode())
    whole = json.loads(page)
    added = {entry["id"]: entry for entry in whole["added_tokens"]}
    special = {role: added[number] for role, number in made.special_ids.items()}
    names = {role: str(entry["content"]) for role, entry in special.items()}
    settings = json.dumps(tokenizer_config(special), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(settings, encoding="utf-8")
    spelled = spellings(tokenizer)
    save_array(folder / "token_bytes.npy", token_bytes(spelled))
    save_array(folder / "words.npy", table_of(spelled))
    model = str(whole["model"]["type"]).lower()
    return {
        "model": model,
        "kind": _kind(model, is_byte_level(whole)),
        "size": tokens + reserved,
        "tokens": tokens,
        "reserved": reserved,
        "special_ids": made.special_ids,
        "special_names": names,
        "ordinary": ordinary_ranges(spelled),
        "unknown": any(one.role == "unknown" for one in spelled) and not whole["model"].get("byte_fallback"),
        "lossless": made.lossless,
        **made.facts,
    }


def _kind(model: str, byte_level: bool) -> str:
    """What a person calls the model."""
    if model == "bpe":
        return "byte-level BPE" if byte_level else "BPE"
    return {"wordpiece": "WordPiece", "unigram": "Unigram", "wordlevel": "words"}.get(model, model)


def _adopted(config: VocabularyConfig, corpus: Manifest, digest: str) -> _Made:
    from .adopted import adopt, find

    found = find(config.tokenizer)
    if found.digest != digest:
        raise UsageError(f"The tokenizer {config.tokenizer} has changed while it was read; run again.")
    adopted = adopt(found)
    lossless = adopted.lossless(corpus.config.get("cleaning", {}).get("unicode", "off"))
    counts = {name: int(corpus.counts[f"documents_{name}"]) for name in ("train", "validation", "test")}
    books = {
        "documents_in": sum(counts.values()),
        "documents_train": counts["train"],
        "documents_held_out": counts["validation"] + counts["test"],
        "documents_sampled": 0,
    }
    facts = {"source": "adopted", "asked": adopted.tokenizer.get_vocab_size() + config.reserved, "added": adopted.added}
    where = {"tokenizer": found.name}
    return _Made(adopted.tokenizer, adopted.special_ids, config.reserved, lossless, books, facts, where)


def _learnt(config: VocabularyConfig, corpus: Manifest) -> _Made:
    asked = config.size - config.reserved
    manner = Manner(config.model, asked, config.least, config.lowercase, config.split_digits, config.prefix_space)
    tokenizer, counts, sample = learn_from(manner, corpus, config.sample_bytes)
    set_template(tokenizer, SPECIAL_IDS)
    size = tokenizer.get_vocab_size()
    if size < asked:
        say(f"vocabulary: {size:,} tokens instead of {asked:,}; the corpus has no more to learn")
    lossless = config.model != "wordpiece" and not (config.lowercase or config.prefix_space)
    facts = {"source": "learnt", "asked": config.size, "sample": sample}
    return _Made(tokenizer, dict(SPECIAL_IDS), config.reserved, lossless, counts, facts)


def learn_from(
    manner: Manner, corpus: Manifest, sample_bytes: int
) -> "tuple[Tokenizer, dict[str, int], dict[str, Any]]":
    """Learns on the train split, streamed. Returns the tokenizer, the books of what was read, and the sample."""
    size = sum(pc.sum(pc.binary_length(batch.column("text"))).as_py() or 0 for batch in _train(corpus))
    share = min(Fraction(1), Fraction(sample_bytes, max(size, 1)))
    counts: dict[str, int] = {}
    places = SPACES if manner.prefix_space else SPACES_AND_LINES
    passes = 2 if manner.model == "wordpiece" else 1
    what = "documents" if passes == 1 else "documents, twice each,"
    with progress(STAGE, passes * documents_of(corpus, "train"), what) as bar:

        def texts() -> Iterator[list[str]]:
            counts.clear()
            for batch in _sampled(corpus, share, counts, bar):
                for text in batch:
                    yield list(pieces(text, places))
            bar.note("learning")

        tokenizer = learn(manner, texts)
    if not counts["documents_sampled"]:
        raise UsageError(f"vocabulary.sample_bytes is {sample_bytes}: no document in the sample; use more.")
    sample = {"share": str(share), "bytes_asked": sample_bytes, "whole": share == 1}
    return tokenizer, counts | {"bytes_train": size}, sample


def _train(corpus: Manifest) -> Iterator[pa.RecordBatch]:
    return (batch for split, batch in read_documents(corpus) if split == "train")


def _sampled(corpus: Manifest, share: Fraction, counts: dict[str, int], bar: Bar) -> Iterator[list[str]]:
    """The texts of the train split that are in the sample; `counts` keeps the books."""
    counts |= dict.fromkeys(
        ("documents_in", "documents_train", "documents_held_out", "documents_sampled", "bytes_sampled"), 0
    )
    for split, batch in read_documents(corpus):
        counts["documents_in"] += len(batch)
        if split != "train":
            counts["documents_held_out"] += len(batch)
            continue
        counts["documents_train"] += len(batch)
        texts = batch.column("text")
        if share < 1:
            texts = texts.filter(pa.array(share_below(keys(batch), (share.numerator << 64) // share.denominator)))
        counts["documents_sampled"] += len(texts)
        counts["bytes_sampled"] += pc.sum(pc.binary_length(texts)).as_py() or 0
        yield texts.to_pylist()
        bar.advance(len(batch))


def keys(batch: pa.RecordBatch) -> "np.ndarray":
    """A hash of each document's id, or of its text where the corpus has no ids: uint64 (N,).

    Not the id itself, which is a hash as well: by that the document came into its split.
    """
    names = batch.column("id" if "id" in batch.schema.names else "text").to_pylist()
    hashed = b"".join(
        hashlib.blake2b(str(name).encode(), digest_size=8, person=b"vocabulary").digest() for name in names
    )
    return np.frombuffer(hashed, "<u8")
