"""The page of a vocabulary card is the same few tags, whatever tokens and names say."""

import copy
import unicodedata
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from flows import summary
from tasks import excerpts, tracking
from tasks.artifacts import Built, Identity, Store, canonical
from tasks.token_texts import of_bytes, visible
from tasks.vocabulary_card import card, markdown, render
from tasks.vocabulary_remarks import remarks
from tests.tasks.carded_vocabularies import PROSE, WILD, arguments, byte_level, check, make_corpus, saved, unigram
from tests.tasks.carded_vocabularies import made as made
from tests.tasks.test_corpus_card import HOSTILE


def test_tokens_of_any_kind_are_shown_and_nothing_else(tmp_path: Path):
    pieces = [text.replace(" ", "\u2581") for text in WILD]
    corpus = make_corpus(tmp_path, [(text, f"{name}/{name}") for text in WILD if len(text) < 100 for name in HOSTILE])
    made = card(*arguments(unigram(pieces), tmp_path, corpus))
    assert made["ids"]["longest"][0]["bytes"] == 10_000 and len(made["ids"]["longest"][0]["text"]) < 300
    assert any("10,000 bytes" in remark and len(remark) < 200 for remark in remarks(made))
    check(made)


TEXTS = st.one_of(st.text(max_size=20), st.sampled_from(WILD))


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=6), TEXTS)
def test_whatever_tokens_and_names_say_the_page_is_the_same_tags(made, texts, name):
    other = copy.deepcopy(made)
    other["sources"][0]["name"] = other["vocabulary"]["model"] = other["settings"]["model.type"] = name
    told = [{"id": 5, "text": visible(text), "bytes": len(text), "count": 1} for text in texts]
    other["ids"] |= {"longest": told, "unused_examples": told, "rare_examples": told}
    other["vocabulary"]["special"] = [{"name": name, "id": 0, "text": text} for text in texts]
    cut = [[5, visible(text), ""] for text in texts]
    other["samples"] = [{"source": name, "file": name, "tokens": cut}]
    check(other)


@given(st.text(max_size=30), st.binary(max_size=30))
def test_everything_is_visible(text, data):
    for shown in (visible(text), of_bytes(data)):
        assert not [one for one in shown if unicodedata.category(one)[0] in "CZ"]
    assert of_bytes(text.encode(errors="ignore")) == visible(text.encode(errors="ignore").decode())


def test_a_corpus_of_one_document_has_a_card_and_a_long_one_is_cut(tmp_path: Path, monkeypatch):
    where, facts = saved(byte_level([PROSE]), tmp_path / "vocabulary")
    small = card(where, make_corpus(tmp_path, [("One.", "a/x")]), facts)
    assert small["totals"]["whole"] and small["totals"]["bytes"] == 4 and small["totals"]["words"] == 1
    assert "whole train split" in markdown(small)
    check(small)
    monkeypatch.setattr(excerpts, "SOURCE_BYTES", 50_000)
    text = PROSE * 2000
    long = card(where, make_corpus(tmp_path, [(text, "a/x")]), facts)["totals"]
    assert not long["whole"] and 49_000 < long["bytes"] <= 50_000 and long["train_bytes"] == len(text.encode())
    wide = card(where, make_corpus(tmp_path, [("\u4e2d" * 30_000, "a/x")]), facts)["totals"]
    assert wide["bytes"] == 49_998


def test_a_corpus_of_nothing_and_one_of_many_sources_have_a_card(tmp_path: Path):
    where, facts = saved(byte_level([PROSE]), tmp_path / "vocabulary")
    check(card(where, make_corpus(tmp_path, [], plain=True), facts))
    check(card(where, make_corpus(tmp_path, [("", "a/x"), (" \n ", "a/y")]), facts))
    many = card(where, make_corpus(tmp_path, [(PROSE * 2, f"source {n}/x") for n in range(300)]), facts)
    assert len(many["sources"]) == 300 and len(markdown(many)) < 16_000 and "and 280 more" in markdown(many)
    assert many["totals"]["bytes"] <= excerpts.ALL_BYTES
    check(many)


def test_prefect_and_mlflow_show_it(made, tmp_path: Path):
    def build(workspace: Any) -> Built:
        (workspace.folder / "card.json").write_bytes(canonical(made))
        (workspace.folder / "card.html").write_text(render(made))
        (workspace.folder / "tokenizer.json").write_text("{}")
        return Built({}, {"size": 400})

    manifest, _ = Store(tmp_path).make(Identity("vocabulary", 1, {}, {}), build)
    text = summary.card("vocabulary", manifest, {"state": "made", "seconds": 1.0, "why": "it is not made yet"}, "tiny")
    assert markdown(made) in text

    class Told:
        said: list[Any] = []

        def tell(self, *entries: Any) -> None:
            self.said += entries

    told: Any = Told()
    tracking.StageRun(told, "vocabulary", {}).record(manifest, False)
    shown = sorted(Path(entry["path"]).name for entry in told.said if entry["do"] == "file")
    assert shown == ["card.html", "card.json"]
