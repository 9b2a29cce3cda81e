"""The models that a vocabulary may have: lossless where they say so, and read by transformers."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import tokens, words
from tasks.artifacts import Manifest
from tasks.vocabulary import VocabularyConfig, vocabulary
from tests.tasks.prose_corpus import TEXTS, make_corpus
from tests.tasks.prose_corpus import store as store

ROOT = Path(__file__).parents[2]
KINDS = {
    "bpe": {},
    "bpe, digits split, a space in front": {"split_digits": True, "prefix_space": True},
    "bpe, lower case": {"lowercase": True},
    "wordpiece": {"model": "wordpiece"},
    "wordpiece, lower case, digits split": {"model": "wordpiece", "lowercase": True, "split_digits": True},
    "unigram": {"model": "unigram"},
    "unigram, lower case": {"model": "unigram", "lowercase": True},
    "unigram, a space in front": {"model": "unigram", "prefix_space": True, "reserved": 70},
}


@pytest.fixture(scope="module")
def kinds(store) -> dict[str, Manifest]:
    corpus = make_corpus(store, TEXTS)
    return {kind: vocabulary(VocabularyConfig(size=1000, **some), corpus, store)[0] for kind, some in KINDS.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_v_is_a_multiple_of_64_and_reserved_ids_fill_it_up(kinds, kind):
    facts, tokenizer = kinds[kind].facts, tokens.open_for_text(kinds[kind].path("tokenizer.json"))
    learnt = 1000 - KINDS[kind].get("reserved", 0)
    assert facts["tokens"] == learnt and facts["size"] == 1024 == tokenizer.get_vocab_size()
    assert facts["reserved"] == 1024 - learnt and facts["ordinary"] == [[5, learnt]] and facts["asked"] == 1000
    reserved = [tokenizer.id_to_token(number) for number in range(learnt, 1024)]
    assert reserved == [f"[unused{number}]" for number in range(1024 - learnt)]
    sizes = np.load(kinds[kind].path("token_bytes.npy"), allow_pickle=False)
    assert sizes.dtype == np.int32 and sizes.shape == (1024,)
    assert not sizes[:5].any() and not sizes[learnt:].any() and sizes[5:learnt].all()
    table = np.load(kinds[kind].path("words.npy"), allow_pickle=False)
    assert table.dtype == np.uint8 and np.array_equal(table, words.table(tokenizer))


LITERAL = [
    "[MASK]",
    "[unused0]",
    "[CLS]",
    "<0x41>",
    "\u2581",
    "\ue00a",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "\0",
    "\x85",
    "the",
    "1",
]
ODD = st.lists(st.sampled_from(LITERAL) | st.text(max_size=3), max_size=20).map("".join)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(text=ODD)
def test_any_text_comes_back_where_the_model_says_so(kinds, kind, text):
    facts, tokenizer = kinds[kind].facts, tokens.open_for_text(kinds[kind].path("tokenizer.json"))
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    ordinary = [(first, end) for first, end in facts["ordinary"]]
    assert facts["lossless"] == (kind in ("bpe", "unigram"))
    if facts["model"] != "wordpiece":  # which says [UNK] where it cannot
        assert all(any(first <= number < end for first, end in ordinary) for number in ids)
        wanted = text
        if KINDS[kind].get("lowercase"):
            wanted = "".join(one.lower() for one in text)
        if KINDS[kind].get("prefix_space") and text and not text.startswith(" "):
            wanted = " " + text
        assert tokenizer.decode(ids, skip_special_tokens=False) == wanted
    else:
        assert not set(ids) & {0, 2, 3, 4} and max(ids, default=0) < facts["tokens"]
    if facts["lossless"]:
        sizes = np.load(kinds[kind].path("token_bytes.npy"), allow_pickle=False)
        assert sizes[ids].sum() == len(text.encode())


DIRTY = ROOT.parent / "shared" / "data" / "dirty"


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.skipif(not DIRTY.is_dir(), reason="needs shared/data/dirty")
def test_texts_of_many_languages_come_back_byte_for_byte(kinds, kind):
    tokenizer = tokens.open_for_text(kinds[kind].path("tokenizer.json"))
    sizes = np.load(kinds[kind].path("token_bytes.npy"), allow_pickle=False)
    paths = [DIRTY / "blns.txt", *sorted((DIRTY / "udhr").iterdir())[::4], *sorted((DIRTY / "encodings").iterdir())]
    texts = [path.read_bytes()[:20_000].decode("utf-8", "replace") for path in paths if path.is_file()]
    ids, of_each = tokens.encode(tokenizer, texts)
    for text, some in zip(texts, np.split(ids, np.cumsum(of_each)[:-1]), strict=True):
        assert sizes[some].sum() == len(text.encode())
        assert tokenizer.decode(some.tolist(), skip_special_tokens=False) == text


@pytest.mark.parametrize("kind", KINDS)
def test_a_typed_mask_stands_for_one_token_of_any_model(kinds, kind):
    tokenizer = tokens.open_for_prompts(kinds[kind].path("tokenizer.json"))
    whole = tokenizer.encode("the value of the object (class).").ids
    assert whole[0] == 2 and whole[-1] == 3
    for typed, at in (("the value of [MASK] object (class).", 4), ("the value of the [MASK] (class).", 5)):
        assert tokenizer.encode(typed).ids == [*whole[:at], 4, *whole[at + 1 :]], typed
    assert tokenizer.encode("").ids == [2, 3]


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_loads_it(kinds, kind):
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    made = kinds[kind]
    ours = tokens.open_for_prompts(made.path("tokenizer.json"))
    for text in ("the value of [MASK] is (not [MASK]).", "Ünlike 2048 \n  [MASK]!", "", " 漢字\t1.5"):
        for load_with in (AutoTokenizer, PreTrainedTokenizerFast):
            theirs = load_with.from_pretrained(made.folder)
            assert theirs(text)["input_ids"] == ours.encode(text).ids
            raw = theirs(text, split_special_tokens=True, add_special_tokens=False)["input_ids"]
            assert raw == tokens.open_for_text(made.path("tokenizer.json")).encode(text, add_special_tokens=False).ids
            assert theirs.decode(raw) == ours.decode(raw, skip_special_tokens=False)
    assert [theirs.pad_token_id, theirs.unk_token_id, theirs.cls_token_id] == [0, 1, 2]
    assert (theirs.sep_token_id, theirs.mask_token_id, len(theirs)) == (3, 4, 1024)
    assert theirs(["a", "the value"], padding=True)["input_ids"][0][-1] == 0
    lstrip = json.loads(made.path("tokenizer_config.json").read_text())["mask_token"]["lstrip"]
    assert lstrip is (made.facts["model"] != "wordpiece")


def test_what_a_setting_does(kinds):
    def shown(kind: str, text: str) -> list[str]:
        tokenizer = tokens.open_for_text(kinds[kind].path("tokenizer.json"))
        return tokenizer.encode(text, add_special_tokens=False).tokens

    assert shown("bpe, digits split, a space in front", "the 12") == ["Ġthe", "Ġ", "1", "2"]
    assert shown("bpe, digits split, a space in front", " the") == ["Ġthe"]
    assert shown("bpe, lower case", "THE")[-1] == shown("bpe", "the")[-1]
    assert shown("wordpiece, lower case, digits split", "Thé 12") == ["the", "1", "2"]
    assert "[UNK]" in shown("wordpiece", "漢字") and "[UNK]" not in shown("wordpiece", "unbelievable 12")
    assert shown("unigram", "the value") == ["the", " value"]
    assert shown("unigram, a space in front", "the value") == [" the", " value"]


def test_words_of_the_models_that_are_learnt(kinds):
    text = "the value of 12 is an object."
    for kind in KINDS:
        tokenizer = tokens.open_for_text(kinds[kind].path("tokenizer.json"))
        ids, _ = tokens.encode(tokenizer, [text])
        begins = words.word_begins(np.load(kinds[kind].path("words.npy"), allow_pickle=False), ids)
        digits = 1 if kind == "wordpiece, lower case, digits split" else 0  # of WordPiece nothing shows the space
        assert begins.sum() == 8 + digits, kind


def test_the_alphabet_of_wordpiece_comes_first_and_in_order(kinds):
    tokenizer = tokens.open_for_text(kinds["wordpiece"].path("tokenizer.json"))
    names = [tokenizer.id_to_token(number) for number in range(5, 1000)]
    letters = [name for name in names if len(name) == 1]
    inside = [name for name in names if name.startswith("##") and len(name) == 3]
    assert names[: len(letters) + len(inside)] == sorted(letters) + sorted(inside)
    assert "##." not in inside and "." in letters and "##e" in inside
