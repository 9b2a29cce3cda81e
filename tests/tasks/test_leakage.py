"""python -m pytest tests/tasks/test_leakage.py"""

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import DataError
from tasks.leakage import Probe

DATA = Path(__file__).parents[2].parent / "shared" / "data"
WORDS = st.lists(st.sampled_from(["a", "b", "Ä", "漢"]), max_size=12)


def holds(text: list[str], example: list[str], words: int) -> bool:
    runs = {tuple(text[at : at + words]) for at in range(len(text) - words + 1)}
    return any(tuple(example[at : at + words]) in runs for at in range(len(example) - words + 1))


@settings(deadline=None, max_examples=300)
@given(st.lists(WORDS, max_size=4), WORDS, st.integers(1, 6))
def test_a_hit_is_a_run_of_words_in_common(examples: list[list[str]], text: list[str], words: int) -> None:
    probe = Probe.from_texts((" ".join(example) for example in examples), words)
    assert probe.hits(", ".join(text).encode()) == any(holds(text, example, words) for example in examples)
    assert probe.short == sum(len(example) < words for example in examples)
    assert (np.diff(probe.hashes) > 0).all()


def test_thirteen_words_whatever_their_case_and_punctuation() -> None:
    sentence = "One two three four five six seven eight nine ten eleven twelve thirteen"
    probe = Probe.from_texts([sentence, "Too short to be looked for."])
    assert len(probe) == 1 and probe.short == 1
    assert probe.hits(f"Before: “{sentence.upper().replace(' ', ' - ')}”, after.".encode())
    assert not probe.hits(sentence.rsplit(" ", 1)[0].encode())
    assert not probe.hits(sentence.replace("seven", "7").encode()) and not probe.hits(b"")
    assert not Probe.from_texts([]).hits(sentence.encode())


def test_a_saved_probe_is_the_same(tmp_path: Path) -> None:
    probe = Probe.from_texts(["a b c d", "b c d e", "a"], 3)
    probe.save(tmp_path / "evaluation.npy")
    again = Probe.load(tmp_path / "evaluation.npy")
    assert (again.hashes == probe.hashes).all() and (len(again), again.words, again.short) == (3, 3, 1)
    assert again.hits(b"x A, b; c") and not again.hits(b"a b d")
    (tmp_path / "evaluation.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"evaluation\.npy does not hold"):
        Probe.load(tmp_path / "evaluation.npy")


def blimp() -> list[str]:
    lines = (
        line for path in sorted((DATA / "eval/blimp_first300").glob("*.jsonl")) for line in path.open(encoding="utf-8")
    )
    return [json.loads(line)["sentence_good"] for line in lines]


def lambada() -> list[str]:
    return (DATA / "eval/lambada/lambada_development_plain_text.txt").read_text(encoding="utf-8").splitlines()


@pytest.mark.skipif(not (DATA / "eval").exists(), reason="needs shared/data")
def test_examples_planted_in_real_documents_are_found_and_nothing_else() -> None:
    source = random.Random(11)
    examples = source.sample(lambada(), 400) + [one for one in blimp() if len(one.split()) > 15][:400]
    probe = Probe.from_texts(examples)
    documents = []
    for path in sorted((DATA / "corpus/novels").glob("*.txt"))[:4]:
        text = path.read_text(encoding="utf-8")
        documents += [text[at : at + 4096] for at in range(0, len(text) - 4096, 4096)]
    assert len(documents) > 400 and len(probe) > 10_000 and probe.short < 10
    assert not any(probe.hits(document.encode()) for document in documents)
    for document, example in zip(documents, examples):
        words = re.findall(r"[^\W_]+", example)
        first = source.randrange(max(1, len(words) - 12))
        at = document.index(" ", source.randrange(3000))
        for number, hit in ((13, True), (12, False)):
            piece = re.sub("[a-z]", lambda letter: letter[0].upper(), "\n".join(words[first : first + number]))
            leaked = f"{document[:at]} plugh “{piece}” xyzzy {document[at:]}"
            assert probe.hits(leaked.encode()) is (hit and len(words) >= 13), piece
