"""The served file: what it answers, what it refuses, and that it needs nothing of the project."""

import hashlib
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow.exceptions import MlflowException

from tasks import tokens
from tasks.artifacts import Store
from tasks.vocabulary import VocabularyConfig, vocabulary
from tests.tasks import handmade, other_tokenizers, small_model, test_vocabulary

SERVER = Path(__file__).parents[2] / "tasks" / "fill_mask.py"
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def write_model(store: Store, folder: Path) -> Path:
    words = small_model.vocabulary(store, small_model.corpus(store))
    weights = small_model.pretrain(store, words, small_model.shards(store, words), noise=0.2)
    folder.mkdir()
    for name in FILES:
        (folder / name).write_bytes(weights.path(f"model/{name}").read_bytes())
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}
    (folder / "digests.json").write_text(json.dumps({"sha256": digests}))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    return write_model(Store(root / "store"), root / "model")


@pytest.fixture(scope="module")
def served():
    spec = importlib.util.spec_from_file_location("served", SERVER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model(served, folder):
    model = served.FillMask()
    model.load_context(SimpleNamespace(artifacts={"model": str(folder)}))
    return model


def test_it_answers_each_mask_of_each_text(model):
    answers = model.predict(["the [MASK] sat on the [MASK]", "a [MASK]"], {"top_k": 3})
    assert [[len(ranked) for ranked in masks] for masks in answers] == [[3, 3], [3]]
    ranked = answers[0][0]
    assert [it["probability"] for it in ranked] == sorted((it["probability"] for it in ranked), reverse=True)
    assert set(ranked[0]) == {"token", "probability"}
    assert model.predict([]) == []


def test_the_whole_vocabulary_has_probability_one(model):
    (masks,) = model.predict(["the [MASK]"], {"top_k": model.model.config.vocab_size})
    assert sum(it["probability"] for it in masks[0]) == pytest.approx(1, abs=1e-5)


def test_a_text_is_answered_the_same_alone_and_among_longer_ones(model):
    text, longer = "the [MASK] sat", "the cat sat on the mat and the [MASK] sat on the log"
    alone, among = model.predict([text])[0], model.predict([longer, text, longer])[1]
    assert [it["token"] for it in alone[0]] == [it["token"] for it in among[0]]
    assert [it["probability"] for it in alone[0]] == pytest.approx([it["probability"] for it in among[0]], abs=1e-6)


def test_a_mask_gets_the_ids_that_training_used(model):
    whole = model.tokenizer.encode("the cat sat", add_special_tokens=False)
    masked = model._encode("the [MASK] sat", 0)
    (cat,) = model.tokenizer.encode(" cat", add_special_tokens=False)
    at = whole.index(cat)
    expected = [*whole[:at], model.tokenizer.mask_token_id, *whole[at + 1 :]]
    assert masked == [model.tokenizer.cls_token_id, *expected, model.tokenizer.sep_token_id]


def test_targets_are_ranked_with_their_probability_over_the_whole_vocabulary(model):
    text = "the [MASK] sat"
    everything = {it["token"]: it["probability"] for it in model.predict([text], {"top_k": 281})[0][0]}
    for targets in ("the on", ["the", "on"]):
        (ranked,) = model.predict([text], {"targets": targets})[0]
        assert {it["token"] for it in ranked} == {" the", " on"}
        assert all(it["probability"] == pytest.approx(everything[it["token"]]) for it in ranked)


@pytest.mark.parametrize(
    ("texts", "params", "says"),
    [
        (["no mask"], {}, "Text 0 holds no"),
        (["[MASK]", "none"], {}, "Text 1 holds no"),
        (["[MASK] " + "x" * 60], {}, "context is 32 tokens"),
        (["[MASK]" + "x" * 2_000_000], {}, "2,000,006 characters"),
        (["[MASK]"], {"top_k": 0}, "top_k is 0"),
        (["[MASK]"], {"top_k": 10_000}, "from 1 to 281"),
        (["[MASK]"], {"top_k": True}, "top_k is True"),
        (["[MASK]"], {"top_k": 1.5}, "top_k is 1.5"),
        (["[MASK]"], {"topk": 3}, "Unknown parameter 'topk'"),
        (["[MASK]"], {"targets": "the supercalifragilistic"}, "'supercalifragilistic' is not one token"),
        (["[MASK]"], {"targets": "[CLS]"}, "is not one token"),
        (["[MASK]"], {"targets": 5}, "targets must be"),
        ([1], {}, "str"),
        ("[MASK]", {}, "list"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_one_sentence(model, texts, params, says):
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match=says.replace("(", r"\(")) as raised:
        model.predict(texts, params)
    assert raised.value.error_code == "INVALID_PARAMETER_VALUE" or texts in ([1], "[MASK]")
    assert "\n" not in raised.value.message


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_not_the_registered_one_is_refused_by_name(served, folder, tmp_path, name):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    data = bytearray((tmp_path / name).read_bytes())
    data[-1] ^= 1
    (tmp_path / name).write_bytes(data)
    with pytest.raises(Exception, match=f"{name} is not the file that was registered"):
        served.check_digests(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(Exception, match=f"{name} of the registered model is missing"):
        served.check_digests(tmp_path)


def test_it_imports_nothing_of_the_project():
    source = SERVER.read_text()
    assert "from ." not in source and "import tasks" not in source and "from tasks" not in source


def test_stock_transformers_fills_masks_with_the_same_folder(model, folder):
    from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

    network, tokenizer = AutoModelForMaskedLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    stock = pipeline("fill-mask", model=network, tokenizer=tokenizer)("the [MASK] sat", top_k=3)
    (ours,) = model.predict(["the [MASK] sat"], {"top_k": 3})[0]
    assert [it["token_str"] for it in stock] == [it["token"] for it in ours]
    assert [it["score"] for it in stock] == pytest.approx([it["probability"] for it in ours], abs=1e-5)


KINDS = {"wordpiece": {"model": "wordpiece"}, "unigram": {"model": "unigram"}, "roberta": {}, "albert": {}}


@pytest.mark.parametrize("kind", KINDS)
def test_it_serves_every_kind_of_vocabulary(served, tmp_path, kind):
    store = Store(tmp_path / "store")
    settings = {**KINDS[kind], "size": 600}
    if kind in other_tokenizers.LAYOUTS:
        settings = {"tokenizer": str(other_tokenizers.saved(tmp_path / kind, kind))}
    corpus = test_vocabulary.make_corpus(store, other_tokenizers.TEXTS)
    words = vocabulary(VocabularyConfig(**settings), corpus, store)[0]
    rows = handmade.shards(store, rows=16, length=small_model.LENGTH, size=words.facts["size"])
    weights = small_model.pretrain(store, words, rows, noise=0.2)
    folder = tmp_path / "model"
    folder.mkdir()
    for name in FILES:
        (folder / name).write_bytes(weights.path(f"model/{name}").read_bytes())
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}
    (folder / "digests.json").write_text(json.dumps({"sha256": digests}))
    model = served.FillMask()
    model.load_context(SimpleNamespace(artifacts={"model": str(folder)}))
    names, ids = words.facts["special_names"], words.facts["special_ids"]
    typed = model._encode("the value of [MASK] class", 0)
    assert typed == model._encode(f"the value of {names['mask']} class", 0) and typed.count(ids["mask"]) == 1
    ours = tokens.open_for_prompts(words.path("tokenizer.json"))
    assert typed == ours.encode(f"the value of {names['mask']} class").ids
    (ranked,) = model.predict(["the value of [MASK] class"], {"top_k": 2, "targets": "the value"})[0]
    assert sorted(it["token"].strip() for it in ranked) == ["the", "value"]
    for word in (names["unk"], "[unused0]", "\u0f40\u0f41"):
        with pytest.raises(MlflowException, match="not one token"):
            model.predict(["a [MASK]"], {"targets": [word]})
    for name, given, parameters in (
        ("Text 0", "a [MASK] \ud800", {}),
        ("A target", "a [MASK]", {"targets": ["\udfff"]}),
    ):
        with pytest.raises(MlflowException, match=f"{name} has half of a surrogate pair"):
            model.predict([given], parameters)
