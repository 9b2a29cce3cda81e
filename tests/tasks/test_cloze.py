"""Cloze: the rank of the best answer, and what counts where there is none. pytest tests/tasks/test_cloze.py"""

import json
import random
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from tasks import cloze
from tasks.artifacts import Store
from tasks.battery import Seen, run
from tasks.cloze import MAJORITY, ClozeConfig, read
from tasks.errors import NumericError, UsageError
from tasks.results import MODEL, UNIGRAM, Exposure, outcome_of
from tasks.subjects import groups, ours
from tests.tasks import small_model
from tests.tasks.fake_subject import VOCABULARY, Fake, likes, random_rule, word_id

COLOURS = [
    {"text": "grass is [MASK] .", "answers": ["green"]},
    {"text": "the sky is [MASK] .", "answers": ["blue", "grey"]},
    {"text": "[MASK] is the sea", "answers": ["blue"]},
    {"text": "snow is [MASK]", "answers": ["as white as snow"]},
    {"text": "coal is [MASK]", "answers": ["pitch black", "black"]},
]


def task(folder: Path, rows=COLOURS, **more):
    path = folder / "cloze.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read(ClozeConfig("colours", str(path), **more))


def outcome(made, *rules, seen: Seen | None = None, length: int = 64):
    scores = {
        label: made.score(Fake(rule, length=length), lambda done: None)
        for label, rule in zip((MODEL, "champion"), rules)
    }
    return made.outcome(scores, made.baselines(), seen or Seen())


def value(found, metric: str, label: str = MODEL) -> float:
    return found.figures[metric][label].value


def test_the_rank_of_the_best_answer_is_what_counts(tmp_path: Path) -> None:
    found = outcome(task(tmp_path), likes("grey", "blue", "green", "x", "y", "z", "black"))
    # ranks: green 2, grey 0, blue 1, none, black 6
    assert value(found, "top1_accuracy") == 1 / 5 and value(found, "top5_accuracy") == 3 / 5
    assert value(found, "mean_reciprocal_rank") == pytest.approx((1 / 3 + 1 + 1 / 2 + 0 + 1 / 7) / 5)
    assert value(found, "top1_answerable") == 1 / 4 and found.figures["top1_answerable"][MODEL].n == 4
    assert found.counts["items"] == 5 and found.counts["answerable_by_all"] == 4
    assert any("1 of 5 items have no answer that is one of its tokens" in remark for remark in found.remarks)
    assert outcome_of(json.loads(json.dumps(found.as_json()))).as_json() == found.as_json()


def test_the_answers_of_the_set_itself_are_the_baseline(tmp_path: Path) -> None:
    found = outcome(task(tmp_path), likes("green"))
    # blue comes twice, then in the order of the alphabet: as white as snow, black, green, grey, pitch black
    assert value(found, "top1_accuracy", MAJORITY) == 2 / 5
    assert value(found, "mean_reciprocal_rank", MAJORITY) == pytest.approx((1 / 4 + 1 + 1 + 1 / 2 + 1 / 3) / 5)
    assert value(found, "top1_answerable", MAJORITY) == 2 / 4
    assert not any(UNIGRAM in by_label for by_label in found.figures.values())


def test_the_words_of_the_train_split_are_the_other_baseline(tmp_path: Path) -> None:
    made = task(tmp_path)
    assert list(made.words()) == ["black", "blue", "green", "grey"]
    assert "the sky is blue ." in made.texts()
    seen = Seen(Exposure(5, 0, 0), {"black": 9, "blue": 2, "green": 1, "grey": 0})
    found = outcome(made, likes("green"), seen=seen)
    assert value(found, "top1_accuracy", UNIGRAM) == 1 / 5 and value(found, "top5_accuracy", UNIGRAM) == 1.0
    assert found.exposure == Exposure(5, 0, 0)


def test_a_model_that_reads_the_text_beats_both_baselines(tmp_path: Path) -> None:
    def reads(ids: np.ndarray, place: int) -> np.ndarray:
        logits = np.zeros(VOCABULARY)
        for thing, colour in (("grass", "green"), ("sky", "blue"), ("sea", "blue"), ("coal", "black")):
            logits[word_id(colour)] += 9.0 * (word_id(thing) in ids)
        return logits

    found = outcome(task(tmp_path), reads)
    assert value(found, "top1_accuracy") == 4 / 5 > value(found, "top1_accuracy", MAJORITY)
    examples = found.details["examples"]
    assert len(examples) == 5 and {"grass is [MASK] .", "green"} <= {
        text for one in examples for text in (one["text"], one["guesses"][MODEL])
    }


def test_what_a_vocabulary_cannot_spell_answers_nothing(tmp_path: Path) -> None:
    made = task(tmp_path, [{"text": "a [MASK]", "answers": ["?rare"]}, {"text": "b [MASK]", "answers": ["b"]}])
    score = made.score(Fake(lambda ids, place: -np.arange(VOCABULARY)), lambda done: None)
    assert sorted(rank is None for rank in score["rank"]) == [False, True]


def test_an_item_that_one_model_cannot_be_asked_counts_for_none(tmp_path: Path) -> None:
    made = task(tmp_path)
    scores = {MODEL: made.score(Fake(random_rule(0)), lambda done: None)}
    scores["champion"] = made.score(Fake(random_rule(0), length=6), lambda done: None)
    found = made.outcome(scores, {}, Seen())
    assert found.counts["left_out_beyond_the_context"] == 1 and found.counts["items"] == 4
    assert {figure.n for figure in found.figures["top1_accuracy"].values()} == {4}
    with pytest.raises(UsageError, match="no item can be read by every model"):
        outcome(made, random_rule(0), length=3)


def test_progress_is_whole_and_what_is_unreadable_is_not_asked(tmp_path: Path) -> None:
    made, subject, done = task(tmp_path), Fake(random_rule(0), length=6), []
    made.score(subject, done.append)
    assert subject.asked == sum(done) == made.size(subject) == 4


def test_no_order_of_lines_and_no_size_of_a_batch_changes_a_rank(tmp_path: Path, monkeypatch) -> None:
    store = Store(tmp_path / "store")
    words = small_model.vocabulary(store, small_model.corpus(store))
    weights = small_model.pretrain(store, words, small_model.shards(store, words), noise=0.3)
    folder = weights.whole("model/model.safetensors").parent
    subject = ours(folder, words.whole("tokenizer.json"), "small", "cpu")
    source, text = random.Random(0), small_model.TEXT.split()
    rows = []
    for _ in range(40):
        some = source.choices(text, k=source.randint(2, 6))
        at = source.randrange(len(some))
        rows.append({"text": " ".join([*some[:at], "[MASK]", *some[at + 1 :]]), "answers": [some[at], "the"]})
    found = []
    for positions in (1, 8192):
        source.shuffle(rows)
        made = task(tmp_path, rows)
        monkeypatch.setattr(cloze, "groups", partial(groups, positions=positions))
        found.append(made.outcome({MODEL: made.score(subject, lambda done: None)}, {}, Seen()).as_json())
    assert found[0] == found[1] and found[0]["counts"]["answerable_by_all"] > 30


@pytest.mark.parametrize("kind", ["byte_level", "wordpiece", "metaspace"])
def test_answers_are_tokens_with_or_without_a_space_in_any_kind_of_vocabulary(kind: str) -> None:
    subject = Fake(random_rule(0))
    tokenizer = _tokenizer(kind)
    encode = lambda texts, prompts=False: [  # noqa: E731
        cloze.Encoded(np.array(one.ids), np.array([-1, *range(len(one.ids) - 2), -1]), np.zeros((len(one.ids), 2)))
        for one in tokenizer.encode_batch(list(texts))
    ]
    subject.encode = encode  # type: ignore[method-assign]
    subject.decode = lambda ids: tokenizer.decode(list(ids), skip_special_tokens=False)  # type: ignore[method-assign]
    found = cloze._tokens_of(subject, ["dog", "dogs", "\u2603"])
    names = {answer: {tokenizer.id_to_token(one) for one in tokens} for answer, tokens in found.items()}
    expected = {"byte_level": {"dog", "Ġdog"}, "wordpiece": {"dog"}, "metaspace": {"▁dog"}}[kind]
    assert names == {"dog": expected, "dogs": set(), "\u2603": set()}


def _tokenizer(kind: str) -> Tokenizer:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    names = [*special, "dog", "s", "##s", "Ġdog", "▁dog", "▁"]
    vocabulary = {name: number for number, name in enumerate(names)}
    if kind == "byte_level":
        alphabet = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(vocabulary))
        vocabulary |= {name: len(vocabulary) + number for number, name in enumerate(alphabet)}
        vocabulary |= {name: len(vocabulary) + number for number, name in enumerate(["do"])}
        model = models.BPE(vocabulary, [("d", "o"), ("do", "g"), ("Ġ", "dog")])
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    elif kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    else:
        scores = [(name, -1.0) for name in names]
        tokenizer = Tokenizer(models.Unigram(scores, 1, False))
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    pair = [(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=pair)
    return tokenizer


def test_the_battery_runs_it_and_a_broken_model_stops_it(tmp_path: Path) -> None:
    made = task(tmp_path)
    (tmp_path / "scratch").mkdir()
    first, _ = run([made], {MODEL: lambda: Fake(random_rule(0))}, {}, tmp_path / "scratch")
    assert first[0].as_json() == outcome(made, random_rule(0)).as_json()
    with pytest.raises(NumericError, match="not finite"):
        made.score(Fake(lambda ids, place: np.full(VOCABULARY, np.nan)), lambda done: None)


# Files.


def test_what_is_no_item_is_counted_by_reason_and_loses_nothing_else(tmp_path: Path) -> None:
    rows = [
        {"text": "no gap", "answers": ["x"]},
        {"text": "[MASK] [MASK]", "answers": ["x"]},
        {"answers": ["x"]},
        {"text": 3, "answers": ["x"]},
        {"text": "a [MASK]", "answers": []},
        {"text": "a [MASK]", "answers": "x"},
        {"text": "a [MASK]", "answers": [" ", None, 3]},
        {"text": "a [MASK]", "answers": [" b ", "b", None, "c"]},
        ["a [MASK]"],
    ]
    made = task(tmp_path, rows)
    assert [(item.text, item.answers) for item in made.items] == [("a [MASK]", ("b", "c"))]
    reasons = {"without_mask": 1, "with_several_masks": 1, "without_text": 2, "without_answers": 3, "not_json": 1}
    assert made.left_out.counts == reasons
    found = outcome(made, likes("b"))
    assert found.counts["left_out_with_several_masks"] == 1
    assert any("1 with several masks (the first: cloze.jsonl, line 2)" in remark for remark in found.remarks)


def test_a_file_of_no_use_is_an_error_that_says_why(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cloze\.jsonl has no item: 1 without mask \(the first: cloze.jsonl, line 1"):
        task(tmp_path, [{"text": "x", "answers": ["y"]}])
    with pytest.raises(UsageError, match=r"has no item; correct"):
        task(tmp_path, [])
    with pytest.raises(UsageError, match="is no file"):
        read(ClozeConfig("set", str(tmp_path / "nothing.jsonl")))
    for wrong in ({"name": "Big"}, {"max_items": -1}):
        with pytest.raises(UsageError):
            ClozeConfig(**{"name": "set", "file": "", **wrong})


def test_a_draw_is_a_part_of_a_larger_one(tmp_path: Path) -> None:
    few, more = (set(task(tmp_path, max_items=most).items) for most in (2, 4))
    assert len(few) == 2 and few < more
    found = outcome(task(tmp_path, max_items=2), likes("green"))
    assert found.counts["not_drawn"] == 3 and any("2 of 5 items are drawn" in remark for remark in found.remarks)


def test_equal_logits_rank_by_id_as_everywhere(tmp_path: Path) -> None:
    made = task(tmp_path, [{"text": "a [MASK]", "answers": ["b"]}])
    assert made.score(Fake(lambda ids, place: np.zeros(VOCABULARY)), lambda done: None)["rank"] == [word_id("b")]
    assert torch.zeros(3).argmax() == 0
