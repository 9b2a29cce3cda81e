"""The served file: what it answers, what it refuses, that it is stock ModernBERT, and needs nothing of the project."""

import hashlib
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mlflow.exceptions import MlflowException

from tasks import tokens
from tasks.artifacts import Store
from tasks.encoder import EncoderConfig, MaskedLanguageModel
from tasks.stock import save_stock
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
    return sealed(folder)


def sealed(folder: Path) -> Path:
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}
    (folder / "digests.json").write_text(json.dumps({"sha256": digests}))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    return write_model(Store(root / "store"), root / "model")


@pytest.fixture(scope="module")
def long(folder, served, tmp_path_factory):
    """A model whose texts are longer than its windows, with every parameter random. And its folder."""
    sizes = EncoderConfig(281, length=96, layers=5, width=32, heads=2, intermediate=48, global_every=3, window=12)
    network, generator = MaskedLanguageModel(sizes), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + (parameter.ndim == 1))
    target = tmp_path_factory.mktemp("long")
    save_stock(network, target)
    for name in FILES[2:]:
        (target / name).write_bytes((folder / name).read_bytes())
    return served.FillMask().open(sealed(target)), target


WORDS = small_model.TEXT.split()


def texts(count: int, masks: int = 1) -> list[str]:
    """Of all lengths, with masks at random places."""
    rng = np.random.default_rng(count)
    found = []
    for _ in range(count):
        words = [WORDS[n] for n in rng.integers(0, len(WORDS), rng.integers(2, 60))]
        for at in rng.integers(0, len(words), masks):
            words[at] = "[MASK]"
        found.append(" ".join(words))
    return found


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
    (masks,) = model.predict(["the [MASK]"], {"top_k": model.size})
    assert sum(it["probability"] for it in masks[0]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("output", ["fill-mask", "embedding"])
def test_a_text_is_answered_the_same_alone_and_among_others(long, output):
    model, _ = long
    some = texts(24, masks=2)
    alone = [model.predict([text], {"output": output, "top_k": model.size})[0] for text in some]
    for got, wanted in zip(model.predict(some, {"output": output, "top_k": model.size}), alone, strict=True):
        assert numbers(got) == pytest.approx(numbers(wanted), abs=1e-5)


def numbers(answer):
    """An embedding as it is; of a fill-mask answer the probabilities in the order of the tokens."""
    if isinstance(answer[0], float):
        return answer
    return [it["probability"] for ranked in answer for it in sorted(ranked, key=lambda it: it["token"])]


@pytest.mark.parametrize("which", ["short", "long"])
def test_it_computes_what_stock_transformers_computes(model, folder, long, which):
    from transformers import AutoModelForMaskedLM

    ours, where = (model, folder) if which == "short" else long
    stock = AutoModelForMaskedLM.from_pretrained(where).eval()
    some = [text for text in texts(16) if len(ours._encode(text, "")) <= ours.length]
    assert which == "short" or max(len(ours._encode(text, "")) for text in some) > 4 * ours.network.window
    for question, text in zip(ours.questions(some), some, strict=True):
        with torch.inference_mode():
            told = stock(input_ids=torch.tensor([question.ids]), output_hidden_states=False)
            hidden = stock.model(input_ids=torch.tensor([question.ids])).last_hidden_state[0]
        wanted = told.logits[0, question.masks].softmax(dim=-1)
        got = ours.network.head(ours.network.encode([question.ids], [(0, at) for at in question.masks])).softmax(dim=-1)
        assert torch.allclose(got, wanted, rtol=0, atol=1e-5)
        mean = hidden[1:-1].mean(dim=0).tolist()  # neither [CLS] nor [SEP]
        assert ours.predict([text], {"output": "embedding"})[0] == pytest.approx(mean, abs=1e-5)


def test_an_embedding_needs_no_mask_and_has_the_width_of_the_model(model):
    (vector,) = model.predict(["the cat sat"], {"output": "embedding"})
    assert len(vector) == 32 and all(isinstance(value, float) for value in vector)


def test_the_head_sees_masked_positions_only(model, monkeypatch):
    rows = []
    head = type(model.network).head
    monkeypatch.setattr(type(model.network), "head", lambda self, h: rows.append(len(h)) or head(self, h))
    model.predict(["the [MASK] sat on the [MASK]", "a [MASK]"])
    model.predict(["the cat sat"], {"output": "embedding"})
    assert sum(rows) == 3


def test_texts_of_like_length_are_computed_together(long, served):
    model, _ = long
    questions = model.questions(texts(60))
    groups = list(served.groups(questions))
    assert sorted(number for group in groups for number in group) == list(range(60))
    for group in groups:
        lengths = [len(questions[number].ids) for number in group]
        positions = max(lengths) * len(lengths)
        assert positions - sum(lengths) <= max(served.SPARE, positions // 8)
    assert len(groups) < 12


def test_a_mask_gets_the_ids_that_training_used(model):
    whole = model.tokenizer.encode("the cat sat", add_special_tokens=False).ids
    masked = model._encode("the [MASK] sat", "")
    (cat,) = model.tokenizer.encode(" cat", add_special_tokens=False).ids
    at = whole.index(cat)
    expected = [*whole[:at], model.mask_id, *whole[at + 1 :]]
    assert masked == [model.cls_id, *expected, model.sep_id]


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
        (["[MASK] " * 10_000], {}, "10,000 masks, more than 1,000"),
        (["[MASK] " * 900], {}, "context is 32 tokens"),
        (["[MASK]"] * 2000, {"top_k": 281}, "562,000 candidates"),
        ([""], {"output": "embedding"}, "holds no token"),
        (["a"], {"output": "logits"}, "output is 'logits'"),
        (["a"], {"output": ["embedding"]}, "it must be fill-mask or embedding"),
        (["[MASK]"], [3], "must be given by name"),
        (["[MASK]"], {"top_k": "x" * 10_000}, "top_k is 'xx"),
        (["[MASK]"], {"top_k": 0}, "top_k is 0"),
        (["[MASK]"], {"top_k": 10_000}, "from 1 to 281"),
        (["[MASK]"], {"top_k": True}, "top_k is True"),
        (["[MASK]"], {"top_k": 1.5}, "top_k is 1.5"),
        (["[MASK]"], {"topk": 3}, "Unknown parameter 'topk'"),
        (["[MASK]"], {"targets": "the supercalifragilistic"}, "'supercalifragilistic' is not one token"),
        (["[MASK]"], {"targets": "[CLS]"}, "is not one token"),
        (["[MASK]"], {"targets": 5}, "targets must be"),
        (["[MASK]"], {"targets": "the " * 1001}, "1,001 words, more than 1,000"),
        (["[MASK]"], {"targets": "x" * 1_000_000}, "is not one token"),
        ([1], {}, "str"),
        ("[MASK]", {}, "list"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_one_sentence(model, texts, params, says):
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match=says.replace("(", r"\(")) as raised:
        model.predict(texts, params)
    assert raised.value.error_code == "INVALID_PARAMETER_VALUE" or texts in ([1], "[MASK]")
    assert "\n" not in raised.value.message and (len(raised.value.message) < 300 or texts in ([1], "[MASK]"))


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


def test_a_list_of_digests_that_leaves_the_weights_out_is_refused(served, folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "digests.json").write_text('{"sha256": {}}')
    with pytest.raises(MlflowException, match=r"does not name config\.json"):
        served.check_digests(tmp_path)


def test_it_imports_nothing_of_the_project_nor_transformers():
    source = SERVER.read_text()
    assert "from ." not in source and "import tasks" not in source and "from tasks" not in source
    assert "import transformers" not in source and "from transformers" not in source


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
    model = served.FillMask().open(sealed(folder))
    names, ids = words.facts["special_names"], words.facts["special_ids"]
    typed = model._encode("the value of [MASK] class", "")
    assert typed == model._encode(f"the value of {names['mask']} class", "") and typed.count(ids["mask"]) == 1
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
