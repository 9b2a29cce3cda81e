"""The vocabulary card shows what is there, whatever texts and tokens say. pytest tests/tasks/test_vocabulary_card.py"""

import copy
import json
import re
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import excerpts, tokens
from tasks.artifacts import canonical
from tasks.errors import DataError
from tasks.spellings import spellings
from tasks.token_texts import Texts
from tasks.vocabulary_card import card, markdown, render
from tasks.vocabulary_remarks import remarks
from tests.tasks.carded_vocabularies import (
    PROSE,
    SPECIAL_IDS,
    arguments,
    byte_level,
    check,
    make_corpus,
    saved,
    unigram,
    word_piece,
)
from tests.tasks.carded_vocabularies import made as made

DATA = Path(__file__).parents[3] / "shared/data/corpus"


def test_the_numbers_add_up(made):
    totals, ids = made["totals"], made["ids"]
    for key in ("bytes", "tokens", "words", "characters", "unknown", "documents"):
        assert totals[key] == sum(one[key] for one in made["sources"])
    for one in made["sources"]:
        assert one["bytes"] == one["bytes_of_tokens"]  # lossless: bytes per token x tokens = bytes
        assert one["words_of_one_token"] <= one["words"] <= max(one["characters"], one["tokens"])
        assert one["characters_broken"] <= one["characters"] <= one["bytes"]
    assert sum(number for _, number, _ in ids["lengths"]) == ids["ordinary"]
    assert sum(times for _, _, times in ids["lengths"]) == totals["tokens"] - totals["unknown"]
    assert sum(size * times for size, _, times in ids["lengths"]) == totals["bytes"]
    assert ids["unused_single"] <= ids["unused"] and ids["unused"] + ids["rare"] <= ids["ordinary"]
    assert [one["name"] for one in made["sources"]] == ["prose", "odd", "nothing"]
    assert made["sources"][2]["tokens"] == made["sources"][2]["documents"] == 0
    assert "Nothing of nothing is in the train split." in remarks(made)


def test_a_sentence_is_shown_with_all_its_tokens_and_the_space_before_it(made):
    one = next(one for one in made["samples"] if one["source"] == "prose")
    assert "".join(text for _, text, _ in one["tokens"]) in {
        "\u2423Does it rain today, or will it do so tomorrow?".replace(" ", "\u2423"),
        "\u2423\u00c9tienne na\u00efvely said \u4e2d\u6587 \U0001f600.".replace(" ", "\u2423"),
        "\u21b5The cat sat on the mat, and the dog didn't mind it.".replace(" ", "\u2423"),
    }


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.text(max_size=30) | st.sampled_from([PROSE, "\u4e2d\u6587\u5b57 \U0001f600\u00e9", " \u00e9 "]),
        min_size=1,
        max_size=4,
    )
)
def test_what_is_said_of_words_is_so_of_each_word(texts):
    tokenizer = _cached_byte_level()
    facts = {
        "size": tokenizer.get_vocab_size(),
        "special_ids": SPECIAL_IDS,
        "ordinary": [[5, tokenizer.get_vocab_size()]],
    }
    tokenizer.encode_special_tokens = True
    words = sorted({word for text in texts for word in re.findall(r" ?\S+", text)})
    ids, sizes = tokens.encode(tokenizer, words)
    word_of = np.repeat(np.arange(len(words)), sizes)
    broken = Texts(tokenizer, facts).broken(ids, word_of, words)
    spelled = spellings(tokenizer)
    for number, word in enumerate(words):
        ends = np.cumsum([len(spelled[one].text) for one in ids[word_of == number].tolist()])
        starts = np.cumsum([0, *(len(one.encode()) for one in word)])
        expected = sum(bool(((ends > first) & (ends < last)).any()) for first, last in pairwise(starts))
        assert broken[number] == expected, word


_kept: list[Any] = []


def _cached_byte_level() -> Any:
    if not _kept:
        _kept.append(byte_level([PROSE * 5, "\u4e2d\u6587"], 500))
    return _kept[0]


def test_unknown_words_and_characters_are_counted(tmp_path: Path):
    corpus = make_corpus(tmp_path, [("the cat \u4e2d sat, thethe", "a/x")] * 40, plain=True)
    where, _, facts = arguments(word_piece(["the", "cat", "##the", ","]), tmp_path, corpus)
    facts["lossless"] = False
    (one,) = card(where, corpus, facts)["sources"]
    assert one["name"] == "corpus" and one["documents"] == 40 and one["words"] == 200
    assert one["tokens"] == 40 * 7 and one["unknown"] == 40 * 2  # the cat [UNK] [UNK] , the ##the
    assert one["words_of_one_token"] == 40 * 2 and one["characters_broken"] == 40 * (1 + 3)
    made = card(where, corpus, facts)
    assert any("of the tokens of corpus are unknown" in remark for remark in remarks(made))
    assert any(kind == "unknown" for _, _, kind in made["samples"][0]["tokens"])


def test_byte_fallback_is_counted_by_characters(tmp_path: Path):
    corpus = make_corpus(tmp_path, [("the \u4e2d ~ the\u00e9", "a/x")], plain=True)
    made = card(*arguments(unigram(["\u2581", "the", "\u2581the"]), tmp_path, corpus))
    (one,) = made["sources"]
    assert one["characters"] == 9 and one["characters_broken"] == 3 and one["unknown"] == 0
    assert one["bytes_of_tokens"] == one["bytes"]
    assert [text for _, text, kind in made["samples"][0]["tokens"] if kind == "bytes"] == [
        "\u27e8E4\u27e9", "\u27e8B8\u27e9", "\u27e8AD\u27e9", "~", "\u27e8C3\u27e9", "\u27e8A9\u27e9"
    ]  # fmt: skip


def test_the_same_card_for_any_order_of_files(tmp_path: Path):
    rows = [(f"{PROSE * (number % 7)}{number}", f"{'abc'[number % 3]}/{number}") for number in range(300)]
    where, facts = saved(byte_level([PROSE]), tmp_path / "vocabulary")
    orders = [[rows[:100], rows[100:]], [rows[100:], rows[:100]], [rows[::-1]]]
    corpora = [make_corpus(tmp_path, *files) for files in orders]
    pages = [canonical(card(where, corpus, facts)) for corpus in corpora]
    assert pages[0] == pages[1] == pages[2]
    again = json.loads(pages[0])
    assert render(again) == render(card(where, corpora[0], facts)) and len(markdown(again)) < 8000


def test_the_sample_is_what_its_hash_picks_and_has_its_size(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(excerpts, "SOURCE_BYTES", 9000)
    monkeypatch.setattr(excerpts, "ALL_BYTES", 20_000)
    rows = [(f"{PROSE * (1 + number % 3)}{number}", f"{'abcd'[number % 4]}/x") for number in range(800)]
    for names in ("abcd", "ab"):
        some = [row for row in rows if row[1][0] in names]
        found = excerpts.sample(make_corpus(tmp_path, some[:333], some[333:]))
        for one in found:
            mine = sorted(
                (text for text, label in some if label[0] == one.name),
                key=lambda text: blake2b(text.encode(), digest_size=16).digest()[8:],
            )
            assert one.texts[:-1] == mine[: one.taken - 1] and mine[one.taken - 1].startswith(one.texts[-1])
            size = sum(len(text.encode()) for text in one.texts)
            assert 0.9 < size / min(9000, 20_000 // len(names)) <= 1 and not one.whole
            true = sum(len(text.encode()) for text in mine)
            assert one.documents == len(mine) and abs(one.bytes / true - 1) < 0.2


def test_sources_are_told_by_their_names_also_with_slashes():
    names = {"a": 1, "a/b": 1}
    assert [excerpts.source_of(label, names) for label in ("a/x", "a/b/x", "a/bc", "c/d", "a")] == [
        "a",
        "a/b",
        "a",
        "c",
        "a",
    ]


def test_damage_in_the_corpus_is_named(tmp_path: Path):
    where, facts = saved(byte_level([PROSE]), tmp_path / "vocabulary")
    corpus = make_corpus(tmp_path, [(PROSE, "a/x")])
    path = corpus.path("documents-00000.parquet")
    data = bytearray(path.read_bytes())
    data[40] ^= 4
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"documents-00000\.parquet is damaged"):
        card(where, corpus, facts)


def test_remarks_say_what_to_look_at(made):
    calm = copy.deepcopy(made)
    calm["sources"] = [calm["sources"][0] | {"words": 9000, "tokens": 9000, "unknown": 0, "characters_broken": 0}]
    calm["totals"] |= {"tokens": 10**6, "words": 9 * 10**5, "whole": False}
    calm["ids"] |= {"ordinary": 395, "unused": 20, "unused_single": 5, "rare": 10, "longest": []}
    assert remarks(calm) == [] and "Nothing stands out" in render(calm)
    odd = copy.deepcopy(calm)
    odd["sources"].append(odd["sources"][0] | {"name": "code", "tokens": 18_000, "unknown": 19})
    odd["vocabulary"] |= {"asked": 4096, "size": 448, "reserved": 48}
    odd["ids"]["unused"] = 60
    assert [remark.split(":")[0] for remark in remarks(odd)] == [
        "The corpus is too small for 4,096 tokens",
        "0.1\u00a0% of the tokens of code are unknown",
        "A word of code takes 2.00 tokens, one of prose 1.00",
        "14\u00a0% of the ids of text are never used in the sample",
    ]
    few = copy.deepcopy(odd)
    few["totals"]["tokens"] = 1000  # too few to say that an id is never used
    assert not any("never used" in remark for remark in remarks(few))
    few["ids"]["rare"] = 90
    assert remarks(few)[-1].startswith("Training meets 37\u00a0% of the ids of text less often than 100 times")


def test_a_real_corpus_has_real_figures(tmp_path: Path):
    if not DATA.is_dir():
        pytest.skip("no shared data beside this checkout")
    files = {name: sorted((DATA / name).rglob("*.txt"))[:4] for name in ("speeches", "openstax", "novels")}
    rows = [
        (part, f"{name}/{path.name}")
        for name, paths in files.items()
        for path in paths
        for part in path.read_text(errors="ignore")[:60_000].split("\n\n")
    ]
    tokenizer = byte_level([text for text, _ in rows], 2048)
    made = card(*arguments(tokenizer, tmp_path, make_corpus(tmp_path, rows)))
    assert made["totals"]["bytes_of_tokens"] == made["totals"]["bytes"]
    for one in made["sources"]:
        assert 1 < one["tokens"] / one["words"] < 2.5 and 2 < one["bytes"] / one["tokens"] < 5
        assert 0.3 < one["words_of_one_token"] / one["words"] < 0.9
    check(made)
