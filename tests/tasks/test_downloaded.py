"""Models of transformers' format: ours gives the same numbers through it, and others are asked as they want to be."""

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch import nn

from tasks.artifacts import Store
from tasks.downloaded import Downloaded, downloaded
from tasks.encoder import EncoderConfig
from tasks.errors import UsageError
from tasks.pseudo_likelihood import log_probabilities
from tasks.stock import save_stock
from tasks.subjects import MASK, ours
from tests.tasks import other_models, other_tokenizers, small_model
from tests.tasks.test_subjects import TEXTS, WIDE, filled

ENGLISH = ["The statement is evaluated.", "An unforeseeable exception, isn't it?", "if x:", "", "a b c d e f g h"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """One model, opened in both ways."""
    folder = tmp_path_factory.mktemp("model")
    store = Store(folder / "store")
    vocabulary = small_model.vocabulary(store, small_model.corpus(store))
    save_stock(filled(EncoderConfig(vocabulary_size=vocabulary.facts["size"], length=64, **WIDE)), folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes(vocabulary.path(name).read_bytes())
    return ours(folder, folder / "tokenizer.json", "ours", "cpu"), downloaded(folder, "downloaded", "cpu")


def stranger(folder, layout: str) -> Downloaded:
    return downloaded(other_models.saved(folder, layout), layout, "cpu")


@pytest.fixture(scope="module", params=other_models.NAMES)
def other(request, tmp_path_factory):
    return stranger(tmp_path_factory.mktemp(request.param), request.param)


def test_our_own_model_is_read_alike(pair):
    mine, theirs = pair
    for prompts in (False, True):
        texts = [*TEXTS, f"the {MASK} sat", "[CLS] the [SEP]"]
        for one, two in zip(mine.encode(texts, prompts), theirs.encode(texts, prompts), strict=True):
            for name in ("ids", "word", "offsets"):
                assert np.array_equal(getattr(one, name), getattr(two, name)), name
    for name in ("length", "vocabulary_size", "mask_id", "width", "parameters"):
        assert getattr(mine, name) == getattr(theirs, name), name
    ids = mine.encode(TEXTS[:1])[0].ids
    assert mine.decode(ids) == theirs.decode(ids) == "[CLS]the cat sat on the mat[SEP]"


def test_our_own_model_gives_the_same_numbers(pair):
    mine, theirs = pair
    sequences = [encoded.ids for encoded in mine.encode(TEXTS)]
    at = [np.arange(len(ids))[::-1] for ids in sequences]
    torch.testing.assert_close(theirs.states(sequences), mine.states(sequences), atol=1e-4, rtol=0)
    torch.testing.assert_close(theirs.logits(sequences, at), mine.logits(sequences, at), atol=1e-4, rtol=0)
    found, expected = (log_probabilities(one, one.encode(TEXTS)) for one in (theirs, mine))
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-4)
    torch.testing.assert_close(theirs.trainable()(sequences).detach(), mine.states(sequences), atol=1e-4, rtol=0)


def test_numbers_do_not_depend_on_company_nor_on_where_the_head_gathers(other):
    rng = np.random.default_rng(0)
    assert other._gathers
    sequences = [encoded.ids for encoded in other.encode([*ENGLISH, "while True: return the value of " * 4])]
    at = [rng.permutation(len(ids))[: rng.integers(0, 4)] for ids in sequences]
    expected = []
    for ids, places in zip(sequences, at, strict=True):
        with torch.inference_mode():
            expected.append(other.model(input_ids=torch.from_numpy(ids[None])).logits[0, places])
    states = [other.states([ids]) for ids in sequences]
    for _ in range(4):
        some = rng.permutation(len(sequences))[: rng.integers(1, len(sequences) + 1)]
        asked = [sequences[n] for n in some], [at[n] for n in some]
        wanted = torch.cat([expected[n] for n in some])
        for logits in (other.logits(*asked), other._dense(*asked)):
            torch.testing.assert_close(logits, wanted, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(other.states(asked[0]), torch.cat([states[n] for n in some]), atol=1e-5, rtol=1e-5)


def test_texts_are_encoded_as_transformers_does(other):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(other.model.config._name_or_path)
    for text, encoded in zip(ENGLISH, other.encode(ENGLISH), strict=True):
        theirs = tokenizer(text)
        assert encoded.ids.tolist() == theirs["input_ids"]
        words = [-1 if word is None else word for word in theirs.word_ids()]
        assert (np.diff(encoded.word) != 0).tolist() == (np.diff(words) != 0).tolist()
        assert encoded.word[0] == encoded.word[-1] == -1 and (encoded.word[1:-1] >= 0).all()


def test_a_mask_in_a_prompt_is_the_models_and_in_a_text_its_characters(other):
    name = other._tokenizer.mask_token
    (prompt,) = other.encode([f"the {MASK} is"], prompts=True)
    assert (prompt.ids == other.mask_id).sum() == 1
    for raw in (MASK, name, other._tokenizer.sep_token):
        (text,) = other.encode([f"the {raw} is"])
        assert not (text.ids[1:-1] == other.mask_id).any() and (text.ids[-1] != text.ids[1:-1]).all()


def test_the_context_is_what_positions_and_tokenizer_hold(other):
    assert other.length == 48
    other._tokenizer.model_max_length = 10**30
    try:
        free = Downloaded(other.model, other._tokenizer, "free").length
    finally:
        other._tokenizer.model_max_length = 48
    assert free == {"bert": 64, "roberta": 62, "albert": 64}[other.label]
    full = np.full(free, other.encode(["a"])[0].ids[1])
    assert other.model(input_ids=torch.from_numpy(full[None])).logits.isfinite().all()
    with pytest.raises(UsageError, match="49 tokens"):
        other.states([np.full(49, 7)])


def test_learning_changes_a_copy_and_chance_makes_the_untrained(other):
    sequences = [encoded.ids for encoded in other.encode(ENGLISH)]
    before = other.states(sequences)
    trainable = other.trainable()
    trainable.eval()
    torch.testing.assert_close(trainable(sequences).detach(), before, atol=1e-5, rtol=1e-5)
    trainable(sequences).sum().backward()
    with torch.no_grad():
        for parameter in trainable.parameters():
            parameter += 1
    torch.testing.assert_close(other.states(sequences), before)
    one, same, another = (other.untrained(seed).states(sequences) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.allclose(one, another) and not torch.allclose(one, before)


def test_a_head_that_looks_around_is_not_given_gathered_rows(tmp_path):
    class LooksAround(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, states_BLD):
            return self.inner(states_BLD + states_BLD.mean(dim=1, keepdim=True))

    plain = stranger(tmp_path, "bert")
    plain.model.bert._forward_hooks.clear()
    plain.model.cls = LooksAround(plain.model.cls)
    other = Downloaded(plain.model, plain._tokenizer, "odd")
    assert not other._gathers
    ids = other.encode(ENGLISH[:1])[0].ids
    expected = other.model(input_ids=torch.from_numpy(ids[None])).logits[0, [1, 2]]
    torch.testing.assert_close(other.logits([ids], [np.array([1, 2])]), expected, atol=1e-5, rtol=1e-5)


def test_what_is_no_masked_language_model_is_refused_in_one_sentence(tmp_path, pair):
    with pytest.raises(UsageError, match="is no masked language model") as found:
        downloaded(tmp_path, "empty", "cpu")
    assert "\n" not in str(found.value)
    folder = pair[0]._path.parent
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(UsageError, match="is no masked language model"):
        downloaded(tmp_path, "no weights", "cpu")


def test_a_name_on_a_hub_that_cannot_be_reached_is_refused(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="nobody/nothing is no masked language model") as found:
        downloaded("nobody/nothing", "none", "cpu")
    assert "\n" not in str(found.value)


def test_weights_without_a_head_are_refused(tmp_path):
    import transformers

    other = stranger(tmp_path, "bert")
    transformers.BertModel(other.model.config).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"has no weights for .*cls\.predictions"):
        downloaded(tmp_path, "headless", "cpu")


@pytest.mark.parametrize(
    ("file", "keys", "value", "said"),
    [
        ("config.json", ["num_hidden_layers"], 1 << 62, "more than 1,000 layers"),
        ("config.json", ["hidden_dropout_prob"], float("nan"), "cannot be asked .*dropout probability"),
        ("config.json", ["num_attention_heads"], -1, "cannot be asked"),
        ("tokenizer_config.json", ["model_max_length"], "many", "has a length of 'many'"),
        ("tokenizer_config.json", ["model_max_length"], float("nan"), "has a length of nan"),
        ("tokenizer_config.json", ["model_max_length"], float("-inf"), "has a length of -inf"),
        ("tokenizer_config.json", ["pad_token"], "one that is new", "ids up to .* knows only"),
        ("tokenizer.json", ["model", "vocab", "the"], (1 << 32) - 1, "ids up to 4294967295, but the model knows only"),
    ],
)
def test_a_damaged_setting_is_refused_in_one_sentence(tmp_path, file, keys, value, said):
    stranger(tmp_path, "bert")
    page = inner = json.loads((tmp_path / file).read_text())
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    (tmp_path / file).write_text(json.dumps(page))
    with pytest.raises(UsageError, match=said) as found:
        downloaded(tmp_path, "a model", "cpu")
    assert "\n" not in str(found.value)


def test_a_slow_tokenizer_and_one_without_a_mask_are_refused(pair):
    theirs = pair[1]

    class Slow:
        is_fast, model_max_length, mask_token_id = False, 64, 4

    with pytest.raises(UsageError, match="is a slow one"):
        Downloaded(theirs.model, Slow(), "slow")
    tokenizer = theirs._tokenizer.__class__(tokenizer_object=Tokenizer.from_str(theirs._text.to_str()))
    with pytest.raises(UsageError, match="has no mask token"):
        Downloaded(theirs.model, tokenizer, "maskless")


def test_a_tokenizer_over_which_the_library_panics_is_refused(tmp_path):
    stranger(tmp_path, "bert")
    other_tokenizers.with_template(tmp_path, "unknown $A", "$A $B:1")
    with pytest.raises(UsageError, match="the tokenizer of broken cannot encode a text") as found:
        downloaded(tmp_path, "broken", "cpu")
    assert "\n" not in str(found.value)
