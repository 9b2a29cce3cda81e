"""The vocabulary: byte-level BPE, learnt from the train split only.

Bytes, not characters, so that every text has an encoding and none has an unknown token (Radford et al. 2019). The
merges are a pure function of the corpus: `tokenizers` counts words in any order but breaks ties by token id.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .artifacts import Built, Identity, Manifest, Store, Workspace, write_atomic
from .errors import UsageError
from .progress import Bar, progress, say
from .tokens import SPECIAL_IDS, pieces, read_texts, texts_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

STAGE = "vocabulary"
VERSION = 1
SMALLEST = len(SPECIAL_IDS) + 256


@dataclass(frozen=True)
class VocabularyConfig:
    size: int = 4096
    """V, tokens in all: 5 special ones, 256 bytes, and what is learnt."""
    least: int = 2
    """A pair of tokens is merged only if it occurs this often."""

    def __post_init__(self) -> None:
        if self.size < SMALLEST:
            raise UsageError(
                f"vocabulary.size is {self.size}, but 256 bytes and {len(SPECIAL_IDS)} special tokens take {SMALLEST}; "
                f"use {SMALLEST} or more."
            )
        if self.least < 1:
            raise UsageError(f"vocabulary.least is {self.least}; use 1 or more.")


def identity(config: VocabularyConfig, corpus_digest: str) -> Identity:
    """What the vocabulary is a function of."""
    return Identity(STAGE, VERSION, asdict(config), {"corpus": corpus_digest})


def vocabulary(config: VocabularyConfig, corpus: Manifest, store: Store) -> tuple[Manifest, bool]:
    """The stage: tokenizer.json and tokenizer_config.json. Second value: found, not made.

    A corpus too small for `config.size` gives a smaller vocabulary; facts["size"] is what it has.
    Raises UsageError when the train split is empty.
    """

    def build(workspace: Workspace) -> Built:
        if not corpus.counts["documents_train"]:
            raise UsageError("The corpus has no document in its train split; add text to its sources.")
        tokenizer, counts = learn(config, corpus)
        # not tokenizer.save: on a full disk it raises a bare Exception
        write_atomic(workspace.folder / "tokenizer.json", tokenizer.to_str(pretty=True).encode())
        page = json.dumps(tokenizer_config(), indent=2, sort_keys=True) + "\n"
        (workspace.folder / "tokenizer_config.json").write_text(page, encoding="utf-8")
        size = tokenizer.get_vocab_size()
        if size < config.size:
            say(f"vocabulary: {size} tokens instead of {config.size}; the corpus has no more pairs to merge")
        facts = {"size": size, "asked": config.size, "special_ids": SPECIAL_IDS, "ordinary": [len(SPECIAL_IDS), size]}
        return Built(counts, facts)

    return store.make(identity(config, corpus.digest), build, libraries=("tokenizers",))


def learn(config: VocabularyConfig, corpus: Manifest) -> "tuple[Tokenizer, dict[str, int]]":
    """Trains on the train split, streamed. Returns the tokenizer and the books of what it read."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    # No space is put before the first word: the text stays as it is, and decoding gives it back.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.size,
        min_frequency=config.least,
        special_tokens=[AddedToken(**special_token(name)) for name in SPECIAL_IDS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    counts = {"documents_in": 0, "documents_train": 0, "documents_held_out": 0, "bytes_train": 0}
    with progress(STAGE, texts_of(corpus, "train"), "documents") as bar:
        tokenizer.train_from_iterator(_train_texts(corpus, counts, bar), trainer)
    cls, sep = (special_token(name)["content"] for name in ("cls", "sep"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(cls, SPECIAL_IDS["cls"]), (sep, SPECIAL_IDS["sep"])],
    )
    return tokenizer, counts


def _train_texts(corpus: Manifest, counts: dict[str, int], bar: Bar) -> Iterator[list[str]]:
    for split, texts in read_texts(corpus):
        counts["documents_in"] += len(texts)
        if split != "train":
            counts["documents_held_out"] += len(texts)
            continue
        counts["documents_train"] += len(texts)
        for text in texts.to_pylist():
            counts["bytes_train"] += len(text.encode())
            yield list(pieces(text))
        bar.advance(len(texts))
    bar.note("merging")


def special_token(name: str) -> dict[str, Any]:
    """The properties of a special token as an AddedToken.

    [MASK] strips the space to its left: byte-level BPE would leave it as a lone `Ġ` before the mask, which training
    never shows, since there the hidden token carries it.
    """
    return {
        "content": f"[{name.upper()}]",
        "lstrip": name == "mask",
        "rstrip": False,
        "single_word": False,
        "normalized": False,
        "special": True,
    }


def tokenizer_config() -> dict[str, Any]:
    """tokenizer_config.json for `transformers`: the names of the special tokens, with [MASK]'s lstrip said again."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **{f"{name}_token": special_token(name) | {"__type": "AddedToken"} for name in SPECIAL_IDS},
    }
