"""A long text is encoded in pieces, and nobody can tell: for every model, every prefix and every pre-tokenizer."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tasks import tokens
from tasks.learning import Manner, learn
from tests.tasks.other_tokenizers import LAYOUTS, TEXTS

LEARNT = {
    "bpe": Manner("bpe", 700, 2, False, False, False),
    "bpe_prefix": Manner("bpe", 700, 2, False, False, True),
    "bpe_digits_lower": Manner("bpe", 700, 2, True, True, True),
    "wordpiece": Manner("wordpiece", 700, 2, True, True, False),
    "unigram": Manner("unigram", 700, 2, False, False, False),
    "unigram_prefix_digits": Manner("unigram", 700, 2, False, True, True),
}
WHOLE = {"llama"}
"""Tokenizers for which no place to cut is safe."""


@contextmanager
def small_pieces(size: int) -> Iterator[None]:
    old, tokens.PIECE = tokens.PIECE, size
    try:
        yield
    finally:
        tokens.PIECE = old


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    made = {name: learn(manner, lambda: ([text] for text in TEXTS)) for name, manner in LEARNT.items()}
    made |= {name: build() for name, build in LAYOUTS.items()}
    for tokenizer in made.values():
        tokenizer.encode_special_tokens = True
        tokenizer.no_truncation()
        tokenizer.no_padding()
    return made


PARTS = [
    "word",
    " a",
    "  ",
    "\n",
    "\n\n",
    "'s",
    "é",
    "漢字",
    "12",
    "...",
    ".\n",
    "\t",
    "\u00a0x",
    "_",
    "-",
    "[MASK]",
    "Σ",
    "▁",
]
TEXT = st.lists(st.sampled_from(PARTS) | st.characters(categories=["L", "N", "P", "Z", "M"]), max_size=60).map("".join)


@pytest.mark.parametrize("name", [*LEARNT, *LAYOUTS])
@settings(max_examples=60, deadline=None)
@given(text=TEXT, words=st.lists(st.sampled_from(["the", "value", "of", "x7", "None"]), max_size=30))
def test_pieces_encode_as_the_whole(tokenizers, name, text, words):
    tokenizer = tokenizers[name]
    text += " ".join(words) + "\n".join(words)
    with small_pieces(7):
        some = list(tokens.pieces(text, tokens.places(tokenizer)))
        ids, sizes = tokens.encode(tokenizer, [text, "", text])
    whole = tokenizer.encode(text, add_special_tokens=False).ids
    assert "".join(some) == text
    assert list(ids) == whole * 2 and list(sizes) == [len(whole), 0, len(whole)]


@pytest.mark.parametrize("name", [*LEARNT, *LAYOUTS])
def test_real_texts_are_cut_and_encode_as_the_whole(tokenizers, name):
    tokenizer, text = tokenizers[name], "\n".join(TEXTS)
    some = list(tokens.pieces(text, tokens.places(tokenizer)))
    assert (len(some) == 1) == (name in WHOLE) and "".join(some) == text
    if name not in WHOLE:
        assert max(map(len, some)) < 2 * tokens.PIECE
    assert list(tokens.encode(tokenizer, [text])[0]) == tokenizer.encode(text, add_special_tokens=False).ids


def test_a_text_without_a_space_is_cut_and_comes_back(tokenizers):
    text = "x" * 200_000
    some = list(tokens.pieces(text))
    assert max(map(len, some)) <= tokens.PIECE_LIMIT and "".join(some) == text
    for name in ("bpe", "unigram"):
        ids, sizes = tokens.encode(tokenizers[name], [text])
        assert tokenizers[name].decode(list(ids)) == text and sizes.sum() == len(ids)


def test_no_text_has_no_tokens(tokenizers):
    ids, sizes = tokens.encode(tokenizers["bpe"], [])
    assert ids.dtype == np.int32 and len(ids) == len(sizes) == 0
