"""Tagging: where words stand in a text, which tokens are theirs, and one n for all models."""

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tasks import tagging
from tasks.battery import Seen
from tasks.classification import MAJORITY
from tasks.errors import UsageError
from tasks.examples import FineTuning, TaggingConfig
from tasks.results import MODEL, UNTRAINED, outcome_of
from tasks.tagging import WORD_FORM, align
from tasks.treebank import Sentence, Word, read_treebank, sentences
from tests.tasks import toy

EWT = Path("../shared/data/eval/ud_ewt/en_ewt-ud-dev.conllu")
FROZEN = FineTuning(enabled=False)


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return toy.subject(tmp_path_factory.mktemp("store"))


def row(number: object, form: str, tag: str = "X", misc: str = "_") -> str:
    return f"{number}\t{form}\t_\t{tag}\t_\t_\t_\t_\t_\t{misc}"


def conllu(path: Path, *blocks: list[str]) -> Path:
    path.write_text("\n\n".join("\n".join(block) for block in blocks) + "\n")
    return path


def bank(path: Path, number: int = 200, seed: int = 0) -> Path:
    """Nouns are tagged by the word before them, which no list of word forms knows."""
    generator, blocks = random.Random(seed), []
    for text in toy.texts(number, seed):
        words = text.split()
        tags = ["W"] * len(words)
        for at, word in enumerate(words):
            if word in toy.NOUNS and at:
                words[at - 1] = generator.choice(("the", "on"))
                tags[at] = "THE" if words[at - 1] == "the" else "OTHER"
        blocks.append([row(at, *pair) for at, pair in enumerate(zip(words, tags), 1)])
    return conllu(path, *blocks)


def outcome_of_task(task, *subjects):
    scores = {}
    for label, one in zip((MODEL, UNTRAINED), subjects):
        scores[label] = json.loads(json.dumps(task.score(one, lambda amount: None)))
    return task.outcome(scores, task.baselines(), Seen())


# Files


@pytest.mark.skipif(not EWT.exists(), reason="the treebank is not beside this checkout")
def test_every_sentence_of_ewt_is_read_and_its_text_is_the_one_that_its_comment_says(capsys):
    counts = Counter[str]()
    found = [one for _, one in sentences(EWT, counts)]
    said = [line.removeprefix("# text = ") for line in EWT.read_text().splitlines() if line.startswith("# text = ")]
    assert [one.text for one in found] == said and len(said) == 2001 and counts == {"empty_nodes": 4}
    words = [(word, one.text[word.start : word.stop]) for one in found for word in one.words]
    assert len(words) == 25147 and all(word.form == written for word, written in words)
    read = read_treebank(TaggingConfig("ud", str(EWT)))
    assert read.counts["train"] + read.counts["test"] == 2001 and len(read.tags) == 17 and not read.unseen


def test_ranges_empty_nodes_and_spaces_are_understood(tmp_path):
    path = conllu(
        tmp_path / "a.conllu",
        ["# text = x", row("1-2", "don't", "_"),
         row(1, "do", "A"), row(2, "n't", "B"), row(3, "go", "C", "SpaceAfter=No"),
         row("3.1", "gone", "D"), row(4, "!", "E", "Gloss=a|SpaceAfter=No")],
        [row("1-2", "du", "_", "SpaceAfter=No"), row(1, "de", "A"), row(2, "le", "B"), row(3, "10 000", "C")],
    )  # fmt: skip
    counts = Counter[str]()
    first, second = (one for _, one in sentences(path, counts))
    assert first == Sentence(
        "don't go!", (Word("do", "A", 0, 2), Word("n't", "B", 2, 5), Word("go", "C", 6, 8), Word("!", "E", 8, 9))
    )
    assert second == Sentence("du10 000", (Word("de", "A", 0, 2), Word("le", "B", 0, 2), Word("10 000", "C", 2, 8)))
    assert counts == {"empty_nodes": 1}


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([row(1, "a"), "2\tb"], "malformed"),
        ([row(1, "a"), row(3, "b")], "malformed"),
        ([row("1-2", "ab", "_"), row(1, "a")], "malformed"),
        ([row("2-1", "ab", "_")], "malformed"),
        ([row("1-" + "9" * 5000, "ab", "_"), row(1, "a")], "malformed"),
        ([row("x", "a")], "malformed"),
        ([row(1, "a", "_")], "no_tag"),
        ([row(1, " ")], "empty_form"),
        ([row(1, "\udcff")], "undecodable"),
    ],
)
def test_a_sentence_with_a_bad_row_is_left_out_and_counted(tmp_path, capsys, rows, reason):
    good = [[row(1, f"w{n}", "A"), row(2, f"v{n}", "B")] for n in range(20)]
    path = tmp_path / "a.conllu"
    text = "\n\n".join("\n".join(block) for block in [*good[:3], rows, *good[3:]]) + "\n"
    path.write_bytes(text.encode(errors="surrogateescape"))
    read = read_treebank(TaggingConfig("set", str(path)))
    assert read.counts[reason] == 1 and read.counts["train"] + read.counts["test"] == 20
    assert f"left out 1 {reason}, first in line" in capsys.readouterr().err


def test_files_that_give_nothing_are_errors(tmp_path):
    path = conllu(tmp_path / "a.conllu", [row(1, "a", "_")])
    with pytest.raises(UsageError, match=r"a\.conllu has no usable row: 1 no_tag, first in line 1"):
        read_treebank(TaggingConfig("set", str(path)))
    path = conllu(tmp_path / "b.conllu", *[[row(1, f"w{n}")] for n in range(30)])
    with pytest.raises(UsageError, match="its train set has only the tag 'X'"):
        read_treebank(TaggingConfig("set", str(path)))
    with pytest.raises(UsageError, match="as a file or a list of files"):
        TaggingConfig("set", {"a": "b"})


# Words and tokens


def test_the_tokens_of_a_word_are_those_that_share_a_character_with_it(subject):
    sentence = Sentence("the cat isn't", (Word("the", "A", 0, 3), Word("cat", "B", 4, 7), Word("is", "C", 8, 10),
                                          Word("n't", "D", 10, 13)))  # fmt: skip
    encoded = subject.encode([sentence.text])[0]
    pooled, kept = align(sentence, encoded, 64)
    assert kept.all() and pooled.groups == 4 and pooled.ids.tolist() == encoded.ids.tolist()
    for number, word in enumerate(sentence.words):
        places = pooled.places[pooled.group == number]
        written = sentence.text[encoded.offsets[places[0], 0] : encoded.offsets[places[-1], 1]]
        assert written.strip() == word.form


def test_a_word_beyond_the_context_has_no_tokens_and_no_model_is_asked_about_it(tmp_path, subject):
    sentence = Sentence("the cat sat", (Word("the", "A", 0, 3), Word("cat", "B", 4, 7), Word("sat", "C", 8, 11)))
    encoded = subject.encode([sentence.text])[0]
    pooled, kept = align(sentence, encoded, len(encoded) - 1)
    assert kept.tolist() == [True, True, False] and pooled.ids[-1] == 3 and pooled.cut
    assert len(pooled.ids) == len(encoded) - 1 and pooled.groups == 2

    task = tagging.read(TaggingConfig("toy", str(bank(tmp_path / "a.conllu", 60)), fine_tuning=FROZEN))
    short = toy.subject(tmp_path / "store", length=7)
    outcome = outcome_of_task(task, subject, short)
    left_out = outcome.counts["words_left_out"]
    assert 0 < left_out < outcome.counts["test_words"]
    for figure in outcome.figures["probe_accuracy"].values():
        assert figure.n == outcome.counts["test_words"] - left_out
    assert any("left out for all models" in remark for remark in outcome.remarks)


# Scores


def test_tags_that_the_word_before_tells_are_learnt_by_fine_tuning(tmp_path):
    tuned = FineTuning(epochs=6, learning_rate=0.003, batch=8)
    subject = toy.subject(tmp_path, blocks=0.2)
    task = tagging.read(TaggingConfig("toy", str(bank(tmp_path / "a.conllu", 240)), fine_tuning=tuned))
    outcome = outcome_of_task(task, subject)
    figures = outcome.figures["fine_tuned_accuracy"]
    assert outcome.main == "fine_tuned_accuracy" and set(figures) == {MODEL, WORD_FORM, MAJORITY}
    assert figures[MODEL].value > figures[WORD_FORM].value + 0.03 and figures[WORD_FORM].value > figures[MAJORITY].value
    assert outcome.figures["probe_accuracy"][MODEL].value > figures[MAJORITY].value
    by_tag = outcome.tables[1]
    assert by_tag.rows == ("OTHER", "THE", "W")
    assert sum(figure.n for figure in by_tag.columns[MODEL]) == outcome.counts["test_words"]
    assert outcome_of(json.loads(json.dumps(outcome.as_json()))) == outcome


def test_shuffled_tags_stay_at_the_level_of_chance(tmp_path, subject):
    generator, path = random.Random(1), tmp_path / "a.conllu"
    conllu(
        path,
        *[[row(n, word, generator.choice("AB")) for n, word in enumerate(text.split(), 1)] for text in toy.texts(120)],
    )
    task = tagging.read(TaggingConfig("toy", str(path), fine_tuning=FROZEN))
    figure = outcome_of_task(task, subject).figures["probe_accuracy"][MODEL]
    assert 0.3 < figure.low < figure.value < figure.high < 0.7


def test_a_tag_that_train_lacks_counts_as_wrong_and_is_said(tmp_path, subject):
    train, test = bank(tmp_path / "train.conllu", 40), tmp_path / "test.conllu"
    conllu(test, [row(1, "unheard", "NEW"), row(2, "the", "W")])
    outcome = outcome_of_task(tagging.read(TaggingConfig("toy", str(train), str(test), fine_tuning=FROZEN)), subject)
    assert all(figure.value <= 0.5 and figure.n == 2 for figure in outcome.figures["probe_accuracy"].values())
    assert any("a tag that no training word has (NEW)" in remark for remark in outcome.remarks)
    assert np.isclose(outcome.figures["probe_accuracy"][WORD_FORM].value, 0.5)
