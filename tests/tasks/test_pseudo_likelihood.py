"""Pseudo-likelihood: equal to a plain loop through transformers, and to what can be computed by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from tasks.artifacts import Store
from tasks.battery import Seen
from tasks.encoder import EncoderConfig, MaskedLanguageModel, Segments, initialise
from tasks.errors import UsageError
from tasks.passages import Passage, PseudoLikelihoodConfig
from tasks.pseudo_likelihood import UNIFORM, PseudoLikelihood, log_probabilities, log_softmax_at, read, says
from tasks.results import MODEL, UNIGRAM, outcome_of
from tasks.scoring import unigram as unigram_of
from tasks.special_tokens import SPECIAL_IDS, set_template, special_token, tokenizer_config
from tasks.stock import save_stock
from tasks.subjects import Encoded, Ours, Subject
from tests.tasks import test_passages

BLIMP = Path(__file__).parents[3] / "shared/data/eval/blimp_first300"
needs_blimp = pytest.mark.skipif(not BLIMP.is_dir(), reason="the evaluation sets are not beside the repository")
MADE = [f"The {noun}s that {verb} here {verb}ed unhelpfully." for noun in ("dog", "cat") for verb in ("walk", "look")]


def sentences(count: int) -> list[str]:
    if not BLIMP.is_dir():
        return (MADE * count)[:count]
    files = sorted(BLIMP.glob("*.jsonl"))
    lines = [path.read_text().splitlines()[: 1 + count // len(files)] for path in files]
    return [json.loads(lines[n % len(files)][n // len(files)])["sentence_bad"] for n in range(count)]


def trained(folder: Path, steps: int = 80) -> Ours:
    """A small model with a vocabulary in which many words are several tokens, trained for a few seconds."""
    texts = sentences(300)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(**special_token(name)) for name in SPECIAL_IDS]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    set_template(tokenizer, SPECIAL_IDS)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config()))
    size = tokenizer.get_vocab_size()
    model = MaskedLanguageModel(EncoderConfig(size, 64, layers=3, width=32, heads=2, intermediate=48, window=16))
    initialise(model, 0)
    optimizer, generator = torch.optim.AdamW(model.parameters(), 3e-3), torch.Generator().manual_seed(0)
    rows = [tokenizer.encode(text).ids[:64] for text in texts]
    tokens_BL = torch.tensor([row + [0] * (64 - len(row)) for row in rows])
    for _ in range(steps):
        some = tokens_BL[torch.randint(len(rows), (24,), generator=generator)]
        hidden = (torch.rand(some.shape, generator=generator) < 0.2) & (some > 4)
        masked_M = hidden.flatten().nonzero()[:, 0]
        segments = Segments.from_ids((some > 0).long() - 1, 16)
        loss = F.cross_entropy(model(some.masked_fill(hidden, 4), segments, masked_M), some.flatten()[masked_M])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_stock(model, folder)
    return Ours(model, folder / "tokenizer.json", MODEL)


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("model"))


def plain(folder: Path, texts: list[str], within_word: bool) -> list[list[float]]:
    """One masked copy after the other, through transformers and nothing of ours: log p of the ordinary tokens."""
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForMaskedLM.from_pretrained(folder).eval()
    found = []
    for text in texts:
        encoding = tokenizer(text)
        ids, words = encoding["input_ids"], encoding.word_ids()
        values = []
        for place in range(1, len(ids) - 1):
            copy = list(ids)
            for other in range(place, len(ids) - 1):
                if other == place or (within_word and words[other] == words[place]):
                    copy[other] = tokenizer.mask_token_id
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([copy])).logits[0, place]
            values.append(float(logits.log_softmax(-1)[ids[place]]))
        found.append(values)
    return found


def check_truth(subject: Ours, count: int, within_word: bool) -> None:
    texts = sentences(count)
    encoded = subject.encode(texts)
    several = np.mean([np.mean(np.diff(text.word[1:-1]) == 0) for text in encoded])
    assert several > 0.1, "words of several tokens are among them"
    found = log_probabilities(subject, encoded, within_word=within_word)
    expected = plain(subject._path.parent, texts, within_word)
    for values, others in zip(found, expected, strict=True):
        np.testing.assert_allclose(values[1:-1], others, atol=1e-4)
        assert values[0] == values[-1] == 0 and values.dtype == np.float64


@pytest.mark.parametrize("within_word", [True, False])
def test_log_probabilities_are_those_of_a_plain_loop(subject, within_word):
    check_truth(subject, 12, within_word)


@needs_blimp
@pytest.mark.slow
def test_log_probabilities_are_those_of_a_plain_loop_on_200_sentences(subject):
    check_truth(subject, 200, True)


def test_the_correction_touches_all_tokens_of_a_word_but_its_last(subject):
    encoded = subject.encode(sentences(20))
    corrected, first = (log_probabilities(subject, encoded, within_word=way) for way in (True, False))
    for text, one, other in zip(encoded, corrected, first, strict=True):
        last_of_word = np.append(np.diff(text.word) != 0, True)
        np.testing.assert_allclose(one[last_of_word], other[last_of_word], atol=1e-5)
        assert (np.abs(one - other)[~last_of_word] > 1e-5).mean() > 0.9 or last_of_word.all()


def test_neither_batch_size_nor_order_changes_a_digit_that_counts(subject):
    texts = sentences(12)
    encoded = subject.encode(texts)
    first = log_probabilities(subject, encoded)
    order = np.random.default_rng(0).permutation(len(texts))
    for positions in (1, 100, 1000):
        again = log_probabilities(subject, [encoded[n] for n in order], positions=positions)
        for number, values in zip(order, again, strict=True):
            np.testing.assert_allclose(values, first[number], atol=1e-5)


def test_progress_hears_of_every_token_once(subject):
    encoded, heard = subject.encode([*MADE, ""]), []
    log_probabilities(subject, encoded, heard.append, positions=64)
    assert sum(heard) == sum(len(text.ordinary) for text in encoded) and len(heard) > 1
    assert log_probabilities(subject, []) == []


class Uniform(Subject):
    """A model that knows nothing; a character is a token, a text with blanks has words."""

    label, length, vocabulary_size, mask_id, width, parameters = "uniform", 40, 50021, 1, 1, 0

    def encode(self, texts, prompts=False):
        found = []
        for text in texts:
            word = np.cumsum([0, *(character == " " for character in text)])[1:]
            inner = np.array([ord(character) for character in text], np.int64)
            spans = np.array([(0, 0), *((at, at + 1) for at in range(len(text))), (0, 0)])
            found.append(Encoded(np.array([2, *inner, 3]), np.array([-1, *word, -1]), spans))
        return found

    def logits(self, sequences, at):
        return torch.full((sum(map(len, at)), self.vocabulary_size), 0.1)

    def states(self, sequences):
        raise NotImplementedError

    def trainable(self):
        raise NotImplementedError

    def untrained(self, seed):
        return self


def test_uniform_logits_are_exactly_ln_v_a_token():
    uniform = Uniform()
    encoded = uniform.encode(["a text", "another", ""])
    for text, values in zip(encoded, log_probabilities(uniform, encoded), strict=True):
        assert (values[text.ordinary] == -math.log(uniform.vocabulary_size)).all()
    task = PseudoLikelihood([Passage("a text", 0), Passage("another one", 1)])
    found = task.outcome({MODEL: task.score(uniform, lambda done: None)}, {}, Seen())
    figure = found.figures["nats_per_token"][MODEL]
    assert figure.value == pytest.approx(math.log(50021), abs=1e-12) and figure.n == 17
    assert found.figures["bits_per_byte"][MODEL].value == found.figures["bits_per_byte"][UNIFORM].value
    assert found.figures["nats_per_word"][MODEL].value == pytest.approx(17 * math.log(50021) / 4)


def test_log_softmax_is_exact_where_logits_are_large_and_leaves_them_as_they_are():
    logits = torch.randn(50, 300, generator=torch.Generator().manual_seed(0)) * 40
    kept, targets = logits.clone(), torch.arange(50)
    expected = logits.double().log_softmax(-1)[torch.arange(50), targets]
    torch.testing.assert_close(log_softmax_at(logits, targets), expected, atol=2e-5, rtol=0)
    assert torch.equal(logits, kept)


def renamed(subject: Ours, folder: Path) -> Ours:
    """The same model with its ids permuted, those of the special tokens among them."""
    size = subject.vocabulary_size
    new_of = np.random.default_rng(1).permutation(size)
    page = json.loads(subject._path.read_text())
    page["model"]["vocab"] = {token: int(new_of[number]) for token, number in page["model"]["vocab"].items()}
    for entry in page["added_tokens"]:
        entry["id"] = int(new_of[entry["id"]])
    page["added_tokens"].sort(key=lambda entry: entry["id"])
    for entry in page["post_processor"]["special_tokens"].values():
        entry["ids"] = [int(new_of[number]) for number in entry["ids"]]
    (folder / "tokenizer.json").write_text(json.dumps(page))
    specials = {f"{name}_id": int(new_of[number]) for name, number in SPECIAL_IDS.items()}
    model = MaskedLanguageModel(EncoderConfig(**{**vars(subject.config), **specials}))
    state = {name: value.clone() for name, value in subject.model.state_dict().items()}
    for name in ("encoder.embedding.weight", "prediction.bias"):
        state[name][torch.from_numpy(new_of)] = subject.model.state_dict()[name]
    model.load_state_dict(state)
    return Ours(model, folder / "tokenizer.json", "renamed")


def test_bits_per_byte_do_not_change_when_only_ids_do(subject, tmp_path):
    other = renamed(subject, tmp_path)
    assert not np.array_equal(other.encode(MADE)[0].ids, subject.encode(MADE)[0].ids)
    task = PseudoLikelihood([Passage(text, number) for number, text in enumerate(sentences(20))])
    scores = {one.label: task.score(one, lambda done: None) for one in (subject, other)}
    figures = task.outcome(scores, {}, Seen()).figures["bits_per_byte"]
    assert figures["renamed"].value == pytest.approx(figures[MODEL].value, abs=1e-5)
    assert figures["renamed"].n == figures[MODEL].n == sum(len(text.encode()) for text in sentences(20))


def test_a_passage_beyond_one_models_context_is_left_out_for_all(subject):
    texts = ["The cats walk.", "a" * 45, "The dogs look here."]
    task = PseudoLikelihood([Passage(text, number) for number, text in enumerate(texts)])
    scores = {one.label: task.score(one, lambda done: None) for one in (subject, Uniform())}
    assert scores["uniform"]["nats"][1] is None and scores[MODEL]["nats"][1] is not None
    found = task.outcome(scores, {}, Seen())
    assert found.counts == {"passages": 3, "documents": 3, "longer_than_a_context": 1}
    assert any("longer than the context of uniform" in remark for remark in found.remarks)
    assert found.figures["bits_per_byte"][MODEL].n == found.figures["bits_per_byte"]["uniform"].n == 33
    only = PseudoLikelihood([Passage("a" * 45, 0)])
    with pytest.raises(UsageError, match="none of 1 passages fits into the contexts of uniform"):
        only.outcome({"uniform": only.score(Uniform(), lambda done: None)}, {}, Seen())


def test_baselines_n_and_intervals_by_document(subject):
    texts = sentences(20)
    counts = np.bincount(np.concatenate([one.ids for one in subject.encode(sentences(300))]), minlength=600)
    counts[:5] = 0
    unigram = unigram_of(counts[: subject.vocabulary_size], [[5, subject.vocabulary_size]])
    task = PseudoLikelihood([Passage(text, number // 2) for number, text in enumerate(texts)], unigram)
    heard = []
    found = task.outcome({MODEL: json.loads(json.dumps(task.score(subject, heard.append)))}, {}, Seen())
    assert sum(heard) == task.size(subject)
    assert outcome_of(json.loads(json.dumps(found.as_json()))) == found
    ids = np.concatenate([one.ids[one.ordinary] for one in subject.encode(texts)])
    smoothed = np.log((counts[ids] + 1) / (counts + 1)[5 : subject.vocabulary_size].sum())
    per_token = found.figures["nats_per_token"]
    assert per_token[UNIGRAM].value == pytest.approx(-smoothed.mean(), abs=1e-5)
    assert per_token[UNIFORM].value == pytest.approx(math.log(subject.vocabulary_size))
    assert per_token[MODEL].value < per_token[UNIGRAM].value < per_token[UNIFORM].value, "it has learnt something"
    assert per_token[MODEL].n == len(ids) and found.counts["documents"] == 10
    assert found.figures["nats_per_word"][MODEL].n == sum(len(text.split()) for text in texts)
    for by_label in found.figures.values():
        for figure in by_label.values():
            assert figure.low <= figure.value <= figure.high
    assert any("Only bits per byte" in remark for remark in found.remarks) and len(found.remarks) == 1


def test_a_vocabulary_that_changes_texts_is_said_to(subject, tmp_path):
    page = json.loads(subject._path.read_text())
    page["normalizer"] = {"type": "Lowercase"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(page))
    task = PseudoLikelihood([Passage("The cats walk.", 0), Passage("dogs look", 0)])
    score = task.score(Ours(subject.model, tmp_path / "tokenizer.json", "small"), lambda done: None)
    assert score["changed"] == 1
    assert any(
        "does not keep 1 of the passages" in remark for remark in task.outcome({"small": score}, {}, Seen()).remarks
    )


def test_it_is_read_from_a_corpus(subject, tmp_path):
    texts = [test_passages.document(number, 30) for number in range(12)]
    corpus = test_passages.corpus(Store(tmp_path), texts)
    counts = np.ones(subject.vocabulary_size, np.int64)
    task = read(PseudoLikelihoodConfig(passages=3, passage_bytes=40), corpus, counts, [[5, len(counts)]])
    found = task.outcome({MODEL: task.score(subject, lambda done: None)}, {}, Seen())
    assert found.counts["passages"] == 3 and UNIGRAM in found.figures["bits_per_byte"]
    assert list(task.texts()) == [passage.text for passage in task.passages]


def test_a_vocabulary_that_drops_line_ends_is_told_from_one_that_keeps_them():
    class Says:
        def __init__(self, decoded):
            self.decoded = decoded

        def decode(self, ids):
            return self.decoded

    text = "def f(x):\n\n        return x + 1"
    one = Encoded(np.arange(3), np.arange(3), np.zeros((3, 2), np.int64))
    assert says(Says(text), one, text) and says(Says(" " + text.replace("f(x)", "f (x)")), one, text)
    assert not says(Says(" ".join(text.split())), one, text)
