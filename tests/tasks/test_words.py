"""Words and sentences in a stream of tokens: as GPT-2's pre-tokenizer sees the text, for every model of tokenizer."""

import time
import unicodedata
from itertools import pairwise
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from tasks import spellings, words
from tasks.learning import Manner, learn
from tests.tasks import other_tokenizers

DATA = Path(__file__).parents[2].parent / "shared" / "data"
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS = [str(text) for _, text in sorted(topics.items())][:40]
SENTENCES = [
    "She said: “No.” Then (after a while) he left! Did he? Yes…",
    'He asked, "Why?" "Because." (It was late.) They went home.',
    "The value is 3.14 and not 2.71. See sec. 4.2 for that.",
    "First paragraph, no full stop\n\nSecond paragraph.\nThird line\n \nFourth one",
    "don't you'll we've it's 1990's dogs' o'clock well-known x_y = 'a'",
    "東京は日本の首都です。人口は多い。They say so！そうか？はい",
    "Ελλάς. Και μετά. Россия была. Потом нет.",
    "ภาษาไทยไม่มีช่องว่าง. अब हिन्दी में है।",
    "naïve café 😀😀 ok… “quoted” – dash",
]


CONTRACTIONS = "don't it's 'tis you'll we're I'd I'm I've "
"""Learnt as tokens, as any vocabulary of English does (Unigram leaves them apart)."""


def byte_level(texts: list[str], size: int) -> Tokenizer:
    tokenizer = other_tokenizers.byte_level(SPECIALS, size=size, texts=texts)
    tokenizer.encode_special_tokens = True
    return tokenizer


def word_piece(texts: list[str], size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=SPECIALS, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.encode_special_tokens = True
    return tokenizer


def metaspace(texts: list[str], size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=size, special_tokens=SPECIALS, unk_token="[UNK]", show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.encode_special_tokens = True
    return tokenizer


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return byte_level(TEXTS + [*SENTENCES[:5], CONTRACTIONS] * 20, 1500)


@pytest.fixture(scope="module")
def unigram() -> Tokenizer:
    """Learnt here. An apostrophe and what follows it are mostly two tokens in it."""
    tokenizer = learn(Manner("unigram", 1500, 2, False, False, False), lambda: ([text] for text in TEXTS))
    tokenizer.encode_special_tokens = True
    return tokenizer


def flat(tokenizer: Tokenizer, text: str) -> np.ndarray:
    return np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.int32)


def words_of_gpt2(text: str) -> set[int]:
    """Offsets, in bytes, at which a word begins: GPT-2's pre-tokens, contractions with what stands before them."""
    found = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
    spans = [span for _, span in found]
    at = np.cumsum([0, *(len(character.encode()) for character in text)])
    begins = {spans[0][0]} if spans else set()
    for (first, end), (begin, stop) in pairwise(spans):
        before, here = text[first:end], text[begin:stop]
        contraction = here in ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d") and before[-1].isalnum()
        after = before in ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d") and here[0].isalpha()
        if not contraction and not after:
            begins.add(begin)
    return without_runs(text, {int(at[begin]) for begin in begins})


def begins_in_bytes(tokenizer: Tokenizer, text: str) -> set[int]:
    ids = flat(tokenizer, text)
    sizes = spellings.token_bytes(spellings.spellings(tokenizer))[ids]
    assert sizes.sum() == len(text.encode())
    begins = words.word_begins(words.table(tokenizer), ids)
    return without_runs(text, {int(at) for at in (np.cumsum(sizes) - sizes)[begins]})


def without_runs(text: str, begins: set[int]) -> set[int]:
    """White space after white space is left out: a token of it always begins a word here."""
    at = np.cumsum([0, *(len(character.encode()) for character in text)])
    return begins - {int(at[n]) for n in range(1, len(text)) if text[n].isspace() and text[n - 1].isspace()}


@pytest.mark.parametrize("folder", ["speeches", "peps", "novels"])
@pytest.mark.skipif(not (DATA / "corpus").is_dir(), reason="needs shared/data/corpus")
def test_words_begin_where_gpt2_has_them_in_real_texts(bpe, unigram, folder):
    for path in sorted((DATA / "corpus" / folder).rglob("*.*"))[:6]:
        text = path.read_text(encoding="utf-8-sig", errors="replace")[:60_000]
        text = "".join(c for c in text if not unicodedata.category(c).startswith("M"))  # GPT-2 cuts before a mark
        raw, theirs = text.encode(), words_of_gpt2(text)
        for tokenizer in (bpe, unigram):
            ours = begins_in_bytes(tokenizer, text)
            assert not [raw[at - 9 : at + 9] for at in sorted(ours ^ theirs)]


LATIN = st.text(st.sampled_from("ab Zé12.,'-\"“”…\n\t_€ßж😀")) | st.lists(
    st.sampled_from(["don't ", "it's", "'tis", " well-known", "1990's", "\n\n", " x_y", "!?", "e.g. ", "’s", "   "])
).map("".join)


@settings(max_examples=150, deadline=None)
@given(LATIN)
def test_words_begin_where_gpt2_has_them_in_odd_texts(whole_characters, text):
    assert begins_in_bytes(whole_characters, text) == words_of_gpt2(text)


@pytest.fixture(scope="module")
def whole_characters() -> Tokenizer:
    """No character of the odd texts is split: of half a character only the likely class is known."""
    return byte_level([*TEXTS[:10], ("é “x” “ ” … € ß ж 😀 ’ ’s " + CONTRACTIONS) * 50], 900)


@pytest.mark.parametrize("sentence", SENTENCES)
def test_what_a_word_is_made_of(bpe, sentence):
    ids = flat(bpe, sentence)
    of = spellings.spellings(bpe)
    begins = words.word_begins(words.table(bpe), ids)
    pieces = [of[token].text for token in ids]
    assert begins[0]
    for piece, begin in zip(pieces, begins, strict=True):
        if piece[:1].isspace():
            assert begin, piece
        if 0x80 <= piece[0] < 0xC0:
            assert not begin, piece
    assert b"".join(pieces) == sentence.encode()


def texts_between(tokenizer: Tokenizer, text: str, begins: np.ndarray) -> list[str]:
    of, ids = spellings.spellings(tokenizer), flat(tokenizer, text)
    parts: list[bytes] = []
    for token, begin in zip(ids, begins, strict=True):
        parts = [*parts, of[token].text] if begin or not parts else [*parts[:-1], parts[-1] + of[token].text]
    return [part.decode("utf-8", "replace") for part in parts]


WHOLE = {
    SENTENCES[0]: ["She said: “No.”", " Then (after a while) he left!", " Did he?", " Yes…"],
    SENTENCES[1]: ['He asked, "Why?"', ' "Because."', " (It was late.)", " They went home."],
    SENTENCES[2]: ["The value is 3.14 and not 2.71.", " See sec.", " 4.2 for that."],
    SENTENCES[5]: ["東京は日本の首都です。", "人口は多い。", "They say so！", "そうか？", "はい"],
    SENTENCES[6]: ["Ελλάς.", " Και μετά.", " Россия была.", " Потом нет."],
}


@pytest.mark.parametrize("text", WHOLE)
def test_sentences_are_told(text):
    tokenizer = byte_level([*TEXTS[:10], "".join(SENTENCES) * 50], 1200)
    begins = words.sentence_begins(words.table(tokenizer), flat(tokenizer, text))
    expected = WHOLE[text]
    if text == SENTENCES[5]:  # Latin after 。 has no space before it: no sentence begins there
        expected = [*expected[:1], expected[1] + expected[2], *expected[3:]]
    assert texts_between(tokenizer, text, begins) == expected


def test_an_empty_line_ends_a_sentence(bpe):
    text = SENTENCES[3]
    parts = texts_between(bpe, text, words.sentence_begins(words.table(bpe), flat(bpe, text)))
    starts = [part.strip() for part in parts if part.strip()]
    assert starts[0] == "First paragraph, no full stop" and starts[1] == "Second paragraph."
    assert any(part.startswith("Fourth") for part in starts)
    assert not any(part.startswith("Second") and "Third" in part for part in starts)


@pytest.mark.skipif(not (DATA / "corpus" / "openstax").is_dir(), reason="needs shared/data/corpus/openstax")
def test_sentences_of_real_paragraphs_hold_together(bpe):
    """Of a few dozen real sentences, one each: nothing is cut off inside, and where they join, a sentence begins."""
    path = sorted((DATA / "corpus" / "openstax").rglob("*.txt"))[3]
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if len(line) > 200]
    found = [part.strip() for line in lines for part in line.replace("? ", "?|").replace(". ", ".|").split("|")]
    real = [part for part in found if len(part) > 40 and part[-1] in ".?!" and part.count(".") == 1][:60]
    assert len(real) >= 24
    text = " ".join(real)
    parts = texts_between(bpe, text, words.sentence_begins(words.table(bpe), flat(bpe, text)))
    assert [part.strip() for part in parts] == real


def test_the_words_of_wordpiece_are_its_own():
    tokenizer = word_piece(TEXTS + ["東京 “No.” "] * 9, 900)
    text = "She isn't unbelievable. Then 3.14 東京 \u0f40"
    encoding = tokenizer.encode(text, add_special_tokens=False)
    begins = words.word_begins(words.table(tokenizer), np.array(encoding.ids))
    assert list(begins) == [not token.startswith("##") for token in encoding.tokens]
    assert "[UNK]" in encoding.tokens
    ends = words.sentence_begins(words.table(tokenizer), np.array(encoding.ids))
    assert [encoding.tokens[at] for at in np.flatnonzero(ends)[1:]] == ["T"] or encoding.tokens[
        np.flatnonzero(ends)[1]
    ].startswith("Th")
    sizes = spellings.token_bytes(spellings.spellings(tokenizer))
    assert sizes[tokenizer.token_to_id("##ing")] == 3 and sizes[:5].sum() == 0


def test_the_space_of_a_metaspace_counts():
    tokenizer = metaspace(TEXTS, 600)
    sizes = spellings.token_bytes(spellings.spellings(tokenizer))
    assert sizes[tokenizer.token_to_id("▁the")] == 4
    ids = flat(tokenizer, "the value of it.")
    begins = words.word_begins(words.table(tokenizer), ids)
    tokens = [tokenizer.id_to_token(int(token)) for token in ids]
    assert [token for token, begin in zip(tokens, begins, strict=True) if begin][-1].startswith(("▁", "."))
    assert all(begin for token, begin in zip(tokens, begins, strict=True) if token.startswith("▁"))


def test_bytes_and_suffixes():
    vocabulary = {"[UNK]": 0, "<0xE2>": 1, "<0x0A>": 2, "a</w>": 3, "a": 4}
    model = models.BPE(vocabulary, [], unk_token="[UNK]", byte_fallback=True, end_of_word_suffix="</w>")
    of = spellings.spellings(Tokenizer(model))
    assert [spelling.text for spelling in of] == [b"", b"\xe2", b"\n", b"a", b"a"]
    assert of[0].role == "unknown" and of[3].ends
    table = words.table_of(of)
    assert list(words.word_begins(table, np.array([4, 4, 3, 4, 1, 0, 4, 2]))) == [
        True, False, False, True, True, True, True, True,
    ]  # fmt: skip


def test_rows_are_read_flat_and_special_tokens_stand_apart(bpe):
    table = words.table(bpe)
    inside = next(token for token, of in enumerate(spellings.spellings(bpe)) if of.text[:1] == b"\x82")
    rows = np.array([[2, *flat(bpe, "an"), 3, 0, 0][:5], [2, inside, 3, 0, 0]], np.uint16)
    begins = words.word_begins(table, rows)
    assert begins.shape == rows.shape == words.sentence_begins(table, rows).shape
    assert begins[rows < 5].all() and begins[0, 1] and begins[1, 1]
    assert words.sentence_begins(table, rows)[0, 1]
    assert words.word_begins(table, np.zeros(0, np.int32)).shape == (0,)


def test_a_stream_is_answered_at_memory_speed(bpe):
    tokens = np.tile(flat(bpe, TEXTS[0]), 4_000_000 // len(flat(bpe, TEXTS[0])) + 1).astype(np.uint16)
    table = words.table(bpe)
    best = min(_seconds(words.word_begins, table, tokens) for _ in range(3))
    assert len(tokens) / best > 20e6, "a fifth of the aim, for a busy machine"


def _seconds(function, *arguments) -> float:
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started
