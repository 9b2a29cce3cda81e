"""The model card, from manifests written by hand. python -m pytest tests/tasks/test_card.py"""

import json

import pytest

from tasks.artifacts import Built, Identity, Store
from tasks.card import card, lineage, origin
from tasks.guards import Guards, GuardsConfig
from tests.tasks import small_model


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store"))
    corpus = small_model.corpus(store)
    vocabulary = small_model.vocabulary(store, corpus)
    shards = small_model.shards(store, vocabulary)
    weights = trained(store, {})
    report = small_model.evaluate(store, weights, 4.0)
    named = {"corpus": corpus, "vocabulary": vocabulary, "shards": shards, "pretrain": weights, "evaluate": report}
    return store, named


def trained(store, facts):
    """A manifest of pretrain, without weights."""
    sizes = {"parameters": 12_345, "steps": 4, "tokens": 4000}
    this = Identity("pretrain", 1, {"seed": len(facts)}, {})
    return store.make(this, lambda _: Built({"steps": 4}, sizes | facts))[0]


def test_the_card_is_silent_where_no_guard_fired_or_none_was_there(parents):
    store, named = parents
    quiet = {"guards": Guards(GuardsConfig(), 6.0).facts()}
    for weights in (named["pretrain"], trained(store, quiet)):
        page = card("small", named | {"pretrain": weights})
        assert "went wrong" not in page and "4 steps, 4,000 tokens.\n\n| setting | |" in page


def test_the_card_says_that_a_guard_fired(parents):
    store, named = parents
    guards = Guards(GuardsConfig(patience=0), 6.0)
    guards.see(7, float("nan"), 1.0)
    guards.rolled_back(5)
    page = card("small", named | {"pretrain": trained(store, {"guards": guards.facts(), "other": 1})})
    assert "**Something went wrong on the way.** 1 step (7) without an update" in page
    assert "At step 7 the weights went back to those of step 5" in page
    assert page.index("4,000 tokens.") < page.index("went wrong") < page.index("| setting | |")


def test_the_card_says_that_a_model_knows_frequencies_only(parents):
    store, named = parents
    page = card("small", named | {"pretrain": trained(store, {"at_unigram_level": True, "a": 1, "b": 2})})
    assert "At its end the loss was at the unigram level" in page
    page = card("small", named | {"pretrain": trained(store, {"at_unigram_level": False, "a": 1, "b": 2, "c": 3})})
    assert "unigram level" not in page


def test_settings_are_one_to_a_row_and_what_was_chosen_is_said(tmp_path):
    store = Store(tmp_path)
    whole = made_from(store)
    config = {"guards": {"window": 128, "patience": 3}, "fork": 0, "batch_warmup": {"start": 0}, "compile": "auto"}
    facts = dict(whole["pretrain"].facts) | {"chosen": {"compiled": True, "steps": 0, "micro_tokens": 0}}
    this = Identity("pretrain", 1, config, dict(whole["pretrain"].identity.inputs))
    page = card("small", whole | {"pretrain": store.make(this, lambda _: Built({}, facts))[0]})
    assert (
        "| guards.patience | 3 |\n| guards.window | 128 |" in page
        and "{" not in page.split("## How it was")[1].split("## Use")[0]
    )
    assert "| compile | auto: compiled |" in page and "| fork" not in page and "batch_warmup" not in page


def made_from(store, **inputs):
    """Manifests of all stages; the weights with these inputs beside vocabulary and shards."""
    corpus = small_model.corpus(store)
    vocabulary = small_model.vocabulary(store, corpus)
    shards = small_model.shards(store, vocabulary)
    lengths = {"lengths": [16, 24], "at": ["0.5", "0.8"]} if inputs else {"lengths": [], "at": []}
    inputs = {"vocabulary": vocabulary.digest, "shards": shards.digest} | inputs
    identity = Identity("pretrain", 1, {"lengths": lengths, "warmup": 0.05}, inputs)
    facts = {"parameters": 9, "steps": 4, "tokens": 40}
    pretrain = store.make(identity, lambda _: Built({}, facts))[0]
    evaluate = small_model.evaluate(store, pretrain, nats=3.0)
    return {one.stage: one for one in (corpus, vocabulary, shards, pretrain, evaluate)}


def test_shorter_shards_and_the_run_that_was_forked_are_named_with_their_digests(tmp_path):
    whole = made_from(Store(tmp_path), shards_16="a" * 64, shards_24="b" * 64, fork="c" * 64)
    stages = {name: manifest.digest for name, manifest in whole.items()}
    assert lineage(whole) == stages | {"shards_16": "a" * 64, "shards_24": "b" * 64, "fork": "c" * 64}
    page = card("small", whole)
    assert f"- shards_16 `{'a' * 64}`" in page and f"- fork `{'c' * 64}`" in page
    assert "in rows of 32, first of 16 until 0.5 of the run, then of 24 until 0.8 of the run\n" in page


def test_a_run_of_one_length_names_its_parents_and_no_lengths(tmp_path):
    whole = made_from(Store(tmp_path))
    assert lineage(whole) == {name: manifest.digest for name, manifest in whole.items()}
    assert "in rows of 32\n" in card("small", whole) and "| lengths |" not in card("small", whole)


def test_each_source_stands_with_what_was_kept_of_it_and_its_licence(tmp_path):
    store = Store(tmp_path)
    whole = made_from(store)
    sources = [{"name": "novels", "licence": "CC0 | public"}, {"name": "/disk/me/mail", "licence": ""}]
    books = [{"source": one["name"], "documents_kept": 1234, "bytes_kept": 5678} for one in sources]
    facts = {"sources": sources, "books": books}
    corpus = store.make(Identity("corpus", 1, {"n": 1}, {}), lambda _: Built({}, facts))[0]
    page = card("small", whole | {"corpus": corpus})
    assert "- source `novels`, 1,234 documents, 5,678 bytes; licence: CC0 \\| public\n" in page
    assert "- source `mail`, 1,234 documents, 5,678 bytes; licence: not noted\n" in page and "/disk/me" not in page
    assert "None is noted for `mail`: ask" in page


def test_scores_have_the_intervals_of_the_report(tmp_path):
    store = Store(tmp_path)
    whole = made_from(store)
    before = whole["evaluate"]
    figures = {"test": {"value": 3.0, "n": 5, "low": 2.9, "high": 3.125}, "baseline_unigram": None}
    report = {"outcomes": [{"task": "rate_0.3", "figures": {"masked_cross_entropy": figures}}]}

    def build(work):
        (work.folder / "report.json").write_text(json.dumps(report))
        return Built({}, dict(before.facts))

    evaluate = store.make(Identity("evaluate", 1, {"n": 1}, dict(before.identity.inputs)), build)[0]
    page = card("small", whole | {"evaluate": evaluate})
    assert "| 0.3 | this model | 3.000 (2.900 to 3.125) |" in page and "| 0.3 | unigram | 5.600 |" in page
    assert "| 0.15 | this model | 3.000 |" in page


def test_only_the_registry_says_by_which_command_and_commit(tmp_path):
    assert "commit" not in card("small", made_from(Store(tmp_path)))
    assert origin("maskmill run x", "abc with changes") == (
        "\nMake it again: `maskmill run x`, with the code of commit `abc with changes`\n"
    )
    assert origin("") == ""
