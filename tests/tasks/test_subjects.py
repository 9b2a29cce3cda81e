"""Whoever is asked: words, specials, and numbers that do not depend on company."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from tasks.artifacts import Store
from tasks.encoder import EncoderConfig, MaskedLanguageModel
from tasks.errors import UsageError
from tasks.subjects import MASK, Ours, groups, one_word_a_text, ours, pack, words_of
from tests.tasks import other_tokenizers, small_model

TEXTS = [
    "the cat sat on the mat",
    "the dog",
    "a log and a mat and a cat",
    "",
    "unheard-of w\u00f6rds, isn't it?",
    "the log sat on the dog and the cat sat on the log and so on",
]
WIDE = {"layers": 4, "width": 32, "heads": 2, "intermediate": 48, "window": 8}


def filled(config: EncoderConfig, seed: int = 0) -> MaskedLanguageModel:
    """Every parameter random: zero projections would make any block pass."""
    model, generator = MaskedLanguageModel(config), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.3 if parameter.ndim > 1 else 1.0))
    return model


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store"))
    return small_model.vocabulary(store, small_model.corpus(store))


@pytest.fixture(scope="module")
def subject(vocabulary):
    model = filled(EncoderConfig(vocabulary_size=vocabulary.facts["size"], length=600, **WIDE))
    return Ours(model, vocabulary.path("tokenizer.json"), "small")


def alone(subject: Ours, ids: np.ndarray) -> torch.Tensor:
    """Hidden states of one sequence by itself, without packing."""
    from tasks.encoder import Segments

    tokens_BL = torch.from_numpy(ids[None])
    with torch.inference_mode():
        return subject.model.encoder(tokens_BL, Segments.from_ids(torch.zeros_like(tokens_BL), subject.config.window))[
            0
        ]


def test_numbers_do_not_depend_on_company_nor_order(subject):
    rng = np.random.default_rng(0)
    sequences = [rng.integers(5, subject.vocabulary_size, rng.integers(2, 60)) for _ in range(40)]
    sequences += [rng.integers(5, subject.vocabulary_size, 530)]  # pieces and bands
    at = [rng.permutation(len(ids))[: rng.integers(0, 4)] for ids in sequences]
    states = [alone(subject, ids) for ids in sequences]
    for trial in range(6):
        chosen = rng.permutation(len(sequences))[: rng.integers(1, len(sequences) + 1)]
        if trial % 2:
            chosen = chosen[chosen < 40]
        got = subject.states([sequences[n] for n in chosen])
        torch.testing.assert_close(got, torch.cat([states[n] for n in chosen]), atol=1e-5, rtol=1e-5)
        logits = subject.logits([sequences[n] for n in chosen], [at[n] for n in chosen])
        with torch.inference_mode():
            expected = torch.cat([subject.model.head(states[n][at[n]]) for n in chosen])
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_what_is_learnt_from_is_what_is_looked_at(subject):
    sequences = [encoded.ids for encoded in subject.encode(TEXTS)]
    trainable = subject.trainable()
    states = trainable(sequences)
    torch.testing.assert_close(states.detach(), subject.states(sequences), atol=1e-5, rtol=1e-5)
    states.square().sum().backward()
    assert all(parameter.grad is not None for parameter in trainable.parameters())
    assert all(parameter.grad is None for parameter in subject.model.parameters())
    assert trainable.training and not subject.model.training


def test_nothing_asked_is_nothing_answered(subject):
    assert subject.logits([], []).shape == (0, subject.vocabulary_size)
    assert subject.logits([np.array([2, 7, 3])], [np.zeros(0, np.int64)]).shape == (0, subject.vocabulary_size)
    assert subject.states([]).shape == (0, subject.width)
    assert subject.encode([]) == []


def test_a_sequence_beyond_the_context_is_refused(subject):
    with pytest.raises(UsageError, match="601 tokens"):
        subject.states([np.full(601, 7)])


def test_rows_hold_every_sequence_once_and_little_else():
    rng = np.random.default_rng(1)
    for _ in range(20):
        sequences = [rng.integers(5, 99, rng.integers(2, 50)) for _ in range(rng.integers(1, 80))]
        packed = pack(sequences, 0, 64)
        assert np.array_equal(packed.tokens_BL.reshape(-1)[packed.place_N], np.concatenate(sequences))
        assert len(np.unique(packed.place_N)) == len(packed.place_N)
        assert (packed.segment_ids_BL >= 0).sum() == len(packed.place_N)
        for number, sequence in enumerate(sequences):
            row, column = np.nonzero(packed.segment_ids_BL == number)
            assert len(set(row)) == 1 and np.array_equal(column, column[0] + np.arange(len(sequence)))
        assert packed.tokens_BL.shape[1] == max(map(len, sequences))
    many = [rng.integers(5, 99, rng.integers(2, 50)) for _ in range(500)]
    packed = pack(many, 0, 64)
    assert packed.tokens_BL.size < 1.03 * len(packed.place_N)


def test_groups_cover_all_once_longest_first():
    lengths = [3, 9, 9, 1, 40, 7]
    found = list(groups(lengths, 20))
    assert sorted(number for some in found for number in some) == list(range(6)) and found[0] == [4]
    assert all(len(some) == 1 or len(some) * max(lengths[n] for n in some) <= 20 for some in found)


def test_words_are_the_pre_tokenizers_and_specials_have_none(subject):
    text = "the cat isn't w\u00f6rdly"
    (encoded,) = subject.encode([text])
    assert encoded.ids[0] == 2 and encoded.ids[-1] == 3 and (encoded.word[[0, -1]] == -1).all()
    assert (encoded.word[1:-1] >= 0).all() and len(encoded.ordinary) == len(encoded) - 2
    pieces = {}
    for word, (start, stop) in zip(encoded.word, encoded.offsets, strict=True):
        if word >= 0:
            first, last = pieces.get(word, (start, stop))
            pieces[word] = min(first, start), max(last, stop)
    assert [text[start:stop] for start, stop in pieces.values()] == ["the", " cat", " isn", "'t", " w\u00f6rdly"]


def test_a_mask_in_a_prompt_is_the_mask_and_in_a_text_its_characters(subject):
    (prompt,), (text,) = subject.encode([f"the {MASK} sat"], prompts=True), subject.encode([f"the {MASK} sat"])
    assert (prompt.ids == subject.mask_id).sum() == 1 and not (text.ids == subject.mask_id).any()
    (whole,) = subject.encode(["the cat sat"])
    assert np.array_equal(prompt.ids, np.where(np.arange(len(whole)) == 2, subject.mask_id, whole.ids))
    assert prompt.word.tolist() == whole.word.tolist()


def test_texts_are_read_in_nfc(subject):
    composed, apart = subject.encode(["w\u00f6rd", "wo\u0308rd"])
    assert np.array_equal(composed.ids, apart.ids)


def test_a_vocabulary_that_calls_its_mask_otherwise_is_asked_by_the_same_name(subject, vocabulary, tmp_path):
    renamed = vocabulary.path("tokenizer.json").read_text().replace(MASK, "<mask>")
    (tmp_path / "tokenizer.json").write_text(renamed)
    other = Ours(subject.model, tmp_path / "tokenizer.json", "renamed")
    for prompts in (True, False):
        (one,), (same,) = other.encode([f"the {MASK} sat"], prompts), subject.encode([f"the {MASK} sat"], prompts)
        assert np.array_equal(one.ids, same.ids)


@pytest.mark.parametrize("layout", other_tokenizers.LAYOUTS)
def test_words_of_any_layout_begin_where_words_begin(layout, tmp_path):
    tokenizer = Tokenizer.from_file(str(other_tokenizers.saved(tmp_path, layout) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    text = "The statement is evaluated, and unforeseeable  things happen"
    encoding = tokenizer.encode(text, add_special_tokens=False)
    words = words_of(text, encoding, one_word_a_text(tokenizer))
    assert one_word_a_text(tokenizer) == (layout == "llama")
    assert words[0] == 0 and (np.diff(words) >= 0).all() and (np.diff(words) <= 1).all()
    starts = {0, *(at for at in range(1, len(text)) if text[at - 1] == " " and text[at] != " ")}
    found = set()
    for word in range(words[-1] + 1):
        spans = [encoding.offsets[at] for at in np.flatnonzero(words == word)]
        piece = text[min(start for start, _ in spans) : max(stop for _, stop in spans)]
        if piece.strip():
            found.add(min(start for start, _ in spans) + len(piece) - len(piece.lstrip()))
            assert len(piece.split()) == 1
    assert starts <= found and len(found - starts) <= 1, "every word begins one, and the comma perhaps another"


def test_a_tokenizer_that_is_not_the_models_is_refused(vocabulary, tmp_path):
    tokenizer = vocabulary.path("tokenizer.json")
    size = vocabulary.facts["size"]
    with pytest.raises(UsageError, match=f"ids up to {size - 1}"):
        Ours(filled(EncoderConfig(vocabulary_size=size - 1, length=32, **WIDE)), tokenizer, "narrow")
    with pytest.raises(UsageError, match="no special token of id 9"):
        Ours(filled(EncoderConfig(vocabulary_size=size, length=32, mask_id=9, **WIDE)), tokenizer, "other mask")
    with pytest.raises(UsageError, match=r"puts the ids \[2, 3\]"):
        Ours(filled(EncoderConfig(vocabulary_size=size, length=32, cls_id=0, **WIDE)), tokenizer, "other cls")


def test_a_model_of_the_store_and_what_it_was_before(vocabulary, tmp_path):
    from tasks.encoder import initialise
    from tasks.stock import load_stock

    store = Store(tmp_path)
    shards = small_model.shards(store, vocabulary)
    made = small_model.pretrain(store, vocabulary, shards, noise=0.3)
    counts = np.load(shards.path("unigrams.npy"), allow_pickle=False)
    subject = ours(made.folder / "model", vocabulary.path("tokenizer.json"), "test", "cpu", counts)
    assert subject.parameters == made.facts["parameters"] and subject.length == small_model.LENGTH
    model = load_stock(made.folder / "model")
    initialise(model, 5, counts)
    sequences = [encoded.ids for encoded in subject.encode(TEXTS[:3])]
    at = [np.arange(len(ids)) for ids in sequences]
    before, expected = subject.untrained(5), Ours(model, vocabulary.path("tokenizer.json"), "test")
    torch.testing.assert_close(before.logits(sequences, at), expected.logits(sequences, at))
    assert not torch.allclose(before.logits(sequences, at), subject.logits(sequences, at))
