"""Small vocabularies of every model, corpora written by hand for them, and what their card must be. Shared."""

import json
import re
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from markdown_it import MarkdownIt

from tasks.artifacts import Built, Identity, Manifest, Store, Workspace
from tasks.spellings import spellings, token_bytes
from tasks.vocabulary_card import card, markdown, render
from tests.tasks import other_tokenizers
from tests.tasks.test_corpus_card import ATTRIBUTES, HOSTILE, MARKS, TAGS, Reader

NAMES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SPECIAL_IDS = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
PROSE = (
    "The cat sat on the mat, and the dog didn't mind it. Does it rain today, or will it do so tomorrow? "
    "\u00c9tienne na\u00efvely said \u4e2d\u6587 \U0001f600.\n\n"
)
WILD = [
    *HOSTILE,
    "\u202eright to left\u202c \u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd",
    "a\u0301 \u0301b",
    "x" * 10_000,
    "\u0085\u2028\ue000",
]

Row = tuple[str, str]
"""Text and the label of its file."""


def make_corpus(folder: Path, *files: list[Row], books: list[str] | None = None, plain: bool = False) -> Manifest:
    """A corpus written by hand, in these files; plain: text and split, no more."""

    def build(workspace: Workspace) -> Built:
        for number, rows in enumerate(files):
            columns: dict[str, Any] = {
                "text": pa.array([text for text, _ in rows], pa.large_string()),
                "split": pa.array(["train"] * len(rows), pa.string()),
            }
            if not plain:
                ids = [blake2b(text.encode(), digest_size=16).hexdigest() for text, _ in rows]
                columns |= {
                    "id": pa.array(ids, pa.string()),
                    "source": pa.array([label for _, label in rows], pa.string()),
                }
                columns["copies"] = pa.array(np.ones(len(rows), np.int32))
            pq.write_table(pa.table(columns), workspace.folder / f"documents-{number:05d}.parquet", row_group_size=50)
        facts = {"books": [{"source": name} for name in books]} if books else {}
        return Built({"documents_train": sum(map(len, files))}, facts)

    identity = Identity("corpus", 1, {"rows": json.dumps([files, books, plain])}, {})
    return Store(folder).make(identity, build)[0]


def saved(tokenizer: Any, folder: Path) -> tuple[Path, dict[str, Any]]:
    """The files that a card reads, and facts as the stage's."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    np.save(folder / "token_bytes.npy", token_bytes(spellings(tokenizer)))
    facts = {"model": "bpe", "size": size, "asked": size, "tokens": size, "reserved": 0, "special_ids": SPECIAL_IDS}
    return folder, facts | {"ordinary": [[5, size]], "lossless": True, "source": "learnt"}


def byte_level(texts: list[str], size: int = 400) -> Any:
    return other_tokenizers.byte_level(NAMES, size=size, texts=texts)


def word_piece(words: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocabulary = {word: number for number, word in enumerate(dict.fromkeys([*NAMES, *words]))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=20_000))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def unigram(pieces: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    names = list(dict.fromkeys([*NAMES, *pieces]))
    scores = [(name, -5.0 if len(name) < 50 else -1.0) for name in names] + [(name, -20.0) for name in fallback]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=1, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Metaspace()])
    return tokenizer


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Any]:
    """A card of three sources, one of them odd."""
    folder = tmp_path_factory.mktemp("made")
    rows = [(PROSE * 30 + str(number), "prose/a.txt") for number in range(60)]
    rows += [(text + str(number), "odd/b.txt") for number in range(5) for text in WILD]
    corpus = make_corpus(folder, rows, books=["prose", "odd", "nothing"])
    return card(*arguments(byte_level([PROSE * 5]), folder, corpus))


def arguments(tokenizer: Any, folder: Path, corpus: Manifest) -> tuple[Path, Manifest, dict[str, Any]]:
    where, facts = saved(tokenizer, folder / "vocabulary")
    return where, corpus, facts


def leaves(parsed: Any) -> Any:
    for token in parsed:
        yield token
        yield from leaves(token.children or [])


def check(made: dict[str, Any]) -> None:
    page = render(made)
    page.encode()
    read = Reader(page)
    assert all(re.fullmatch(f"small|{TAGS.pattern}", tag) for tag in read.tags) and read.attributes <= ATTRIBUTES
    assert all(0 <= width <= 100 for width in read.widths)
    assert not re.search(r"<script|url\(|@import|<[^>]*(src|href)=", page)
    seen = "".join(read.texts)
    for one in made["samples"]:
        assert "".join(text for _, text, _ in one["tokens"]) in seen
    parsed = list(leaves(MarkdownIt("gfm-like", {"html": True, "linkify": False}).parse(markdown(made))))
    assert {token.type for token in parsed if not MARKS.fullmatch(token.type)} == set()
