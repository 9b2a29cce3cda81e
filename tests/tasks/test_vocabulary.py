"""The vocabulary: the same for any number of threads, lossless, and with a [MASK] that means what training meant."""

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import tokens
from tasks.artifacts import Built, Identity, Manifest, Workspace, load
from tasks.errors import DataError, UsageError
from tasks.learning import share_below
from tasks.vocabulary import VocabularyConfig, identity, keys, vocabulary
from tests.tasks.prose_corpus import TEXTS, make_corpus
from tests.tasks.prose_corpus import store as store

ROOT = Path(__file__).parents[2]
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="module")
def made(store) -> Manifest:
    return vocabulary(VocabularyConfig(size=1024), make_corpus(store, TEXTS), store)[0]


@pytest.fixture(scope="module")
def for_text(made):
    return tokens.open_for_text(made.path("tokenizer.json"))


@pytest.fixture(scope="module")
def for_prompts(made):
    return tokens.open_for_prompts(made.path("tokenizer.json"))


def test_specials_come_first_then_every_byte(made, for_text):
    assert [for_text.id_to_token(number) for number in range(5)] == SPECIALS
    assert made.facts == {
        "model": "bpe",
        "kind": "byte-level BPE",
        "size": 1024,
        "asked": 1024,
        "tokens": 1024,
        "reserved": 0,
        "special_ids": {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4},
        "special_names": dict(zip(("pad", "unk", "cls", "sep", "mask"), SPECIALS)),
        "ordinary": [[5, 1024]],
        "unknown": False,
        "lossless": True,
        "source": "learnt",
        "sample": {"share": "1", "bytes_asked": 1_000_000_000, "whole": True},
    }
    assert len({for_text.id_to_token(number) for number in range(5, 261)} & set(map(chr, range(33, 324)))) == 256
    assert made.counts["documents_train"] == len(TEXTS)
    assert made.counts["bytes_train"] == sum(len(text.encode()) for text in TEXTS)


SCRIPT = """
import sys
from pathlib import Path
from tasks.artifacts import Store, load
from tasks.vocabulary import VocabularyConfig, vocabulary
for model in sys.argv[3:]:
    config = VocabularyConfig(model=model, size=1024)
    print(vocabulary(config, load(Path(sys.argv[1])), Store(Path(sys.argv[2])))[0].digest)
"""
MODELS = ["bpe", "wordpiece", "unigram"]


def test_the_same_bytes_for_any_number_of_threads_and_in_any_run(store, tmp_path):
    corpus = make_corpus(store, TEXTS)
    made = [vocabulary(VocabularyConfig(model=model, size=1024), corpus, store)[0].digest for model in MODELS]
    threads = {"RAYON_NUM_THREADS": "1"}, {"RAYON_NUM_THREADS": "2"}, {"TOKENIZERS_PARALLELISM": "false"}
    for number, extra in enumerate(threads):
        command = [sys.executable, "-c", SCRIPT, str(corpus.folder), str(tmp_path / str(number)), *MODELS]
        environment = os.environ | {"PYTHONHASHSEED": str(number)} | extra
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.split() == made


def test_a_second_run_reuses_it(made, store):
    again, reused = vocabulary(VocabularyConfig(size=1024), make_corpus(store, TEXTS), store)
    assert reused and again.digest == made.digest
    assert made.identity == identity(VocabularyConfig(size=1024), make_corpus(store, TEXTS).digest)


def test_only_the_train_split_is_read(store, made):
    corpus = make_corpus(store, TEXTS, "train")
    table = pq.read_table(corpus.path("documents-00000.parquet"))
    other = pa.table({"text": pa.array(["qzxj " * 500], pa.large_string()), "split": ["test"]})

    def build(workspace: Workspace) -> Built:
        pq.write_table(pa.concat_tables([other, table]), workspace.folder / "documents-00000.parquet")
        return Built({"documents_train": len(TEXTS), "documents_validation": 0, "documents_test": 1}, {})

    mixed, _ = store.make(Identity("corpus", 1, {"mixed": True}, {}), build)
    with_test, _ = vocabulary(VocabularyConfig(size=1024), mixed, store)
    assert with_test.files["tokenizer.json"] == made.files["tokenizer.json"]
    assert with_test.counts["documents_held_out"] == 1


@settings(max_examples=80, deadline=None)
@given(st.text(max_size=60))
def test_any_text_comes_back_and_nothing_is_unknown(for_text, text):
    ids = for_text.encode(text, add_special_tokens=False).ids
    assert for_text.decode(ids, skip_special_tokens=False) == text
    assert all(number >= 5 for number in ids)


def test_the_name_of_a_special_token_in_a_text_is_just_characters(for_text):
    for name in SPECIALS:
        ids = for_text.encode(f"a {name} b{name}", add_special_tokens=False).ids
        assert min(ids) >= 5 and for_text.decode(ids) == f"a {name} b{name}"


SENTENCES = ["the value of the name is not an object.", "The class, if any, (the type) has a method:\nreturn it"]


@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_typed_mask_gets_the_ids_that_training_used(for_text, for_prompts, sentence):
    whole = for_text.encode(sentence)
    tried = 0
    for position, (begin, end) in enumerate(whole.offsets):
        word = sentence[begin:end]
        if not word.strip().isalpha() or "\n" in sentence[max(begin - 1, 0) : end]:
            continue  # lstrip also takes a newline along: a word at the beginning of a line is the one exception
        blank = len(word) - len(word.lstrip())
        typed = sentence[: begin + blank] + "[MASK]" + sentence[end:]
        masked = [*whole.ids[:position], 4, *whole.ids[position + 1 :]]
        if for_prompts.encode(sentence).ids == whole.ids and sentence[end : end + 1] in " .,:)":
            assert for_prompts.encode(typed).ids == masked, typed
            tried += 1
    assert tried >= 5


def test_a_large_train_split_is_sampled_by_the_hash_of_the_ids(store):
    texts = [f"{text[:300]} {number}" for number in range(8) for text in TEXTS]
    corpus = make_corpus(store, texts)
    size = sum(len(text.encode()) for text in texts)
    found = {}
    for wanted in (size // 4, size // 2, size - 1, size, 10 * size):
        made, _ = vocabulary(VocabularyConfig(size=600, sample_bytes=wanted), corpus, store)
        counts, sample = made.counts, made.facts["sample"]
        assert counts["bytes_train"] == size and counts["documents_train"] == len(texts) == counts["documents_in"]
        assert sample["whole"] == (wanted >= size) and Fraction(sample["share"]) == min(Fraction(wanted, size), 1)
        found[wanted] = counts["bytes_sampled"]
    assert abs(found[size // 2] - size // 2) < size // 6 and abs(found[size // 4] - size // 4) < size // 6
    assert found[size // 4] < found[size // 2] < found[size - 1] <= found[size] == found[10 * size] == size
    with pytest.raises(UsageError, match="no document in the sample"):
        vocabulary(VocabularyConfig(size=600, sample_bytes=1), corpus, store)


@pytest.mark.parametrize("model", MODELS)
def test_odd_corpora_give_a_vocabulary(store, model):
    for texts in (
        ["a"],
        ["\n\n", " "],
        ["[MASK] [CLS] [PAD] [unused0] <0x41> ▁ \ue00a"] * 3,
        ["漢字仮名交じり文" * 3] * 2,
    ):
        made, _ = vocabulary(VocabularyConfig(model=model, size=300), make_corpus(store, texts), store)
        tokenizer = tokens.open_for_text(made.path("tokenizer.json"))
        ids = tokenizer.encode(texts[0], add_special_tokens=False).ids
        assert not set(ids) & {0, 2, 3, 4} and max(ids, default=0) < made.facts["tokens"]
        if model != "wordpiece":
            assert tokenizer.decode(ids, skip_special_tokens=False) == texts[0]


def test_a_small_corpus_gives_a_smaller_vocabulary_and_says_so(store, capsys):
    made, _ = vocabulary(VocabularyConfig(size=1000), make_corpus(store, ["ab ab ab cd", "ab"]), store)
    assert made.facts["tokens"] == made.facts["ordinary"][0][1] < 300 and made.facts["asked"] == 1000
    assert made.facts["size"] % 64 == 0 and made.facts["size"] - made.facts["tokens"] == made.facts["reserved"]
    assert f"{made.facts['tokens']} tokens instead of 1,000" in capsys.readouterr().err


def test_wrong_use_is_one_sentence(store):
    for wrong, said in {
        "size=100": r"vocabulary\.size is 100.*use 261",
        "size=300 reserved=64": r"vocabulary\.size is 300.*64 reserved ids take 325",
        "size=100 model=unigram": r"vocabulary\.size is 100.*256 bytes.*use 261",
        "size=100 model=wordpiece": r"vocabulary\.size is 100.*use 128",
        "model=words": r"vocabulary\.model is bpe, wordpiece or unigram, not 'words'",
        "reserved=-1": r"vocabulary\.reserved is -1",
        "least=0": r"vocabulary\.least is 0",
        "sample_bytes=0": r"vocabulary\.sample_bytes is 0",
        "model=unigram least=3": r"vocabulary\.least is of no use to unigram",
        "model=wordpiece prefix_space=1": r"vocabulary\.prefix_space is of no use to wordpiece",
    }.items():
        pairs = (setting.split("=") for setting in wrong.split())
        with pytest.raises(UsageError, match=said):
            VocabularyConfig(**{key: value if key == "model" else int(value) for key, value in pairs})
    with pytest.raises(UsageError, match="no document in its train split"):
        vocabulary(VocabularyConfig(), make_corpus(store, ["a"], "test"), store)


def test_damage_is_named(store, tmp_path):
    corpus = make_corpus(store, ["some text that will be damaged " * 50, "b"])
    path = corpus.path("documents-00000.parquet")
    data = bytearray(path.read_bytes())
    data[40] ^= 4
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"documents-00000\.parquet is damaged"):
        vocabulary(VocabularyConfig(), load(corpus.folder), store)
    bad = tmp_path / "tokenizer.json"
    bad.write_text('{"version": "1.0"}')
    with pytest.raises(DataError, match="is not a tokenizer"):
        tokens.open_for_text(bad)


def test_half_a_character_in_the_corpus_is_refused_by_name(store):
    def build(workspace: Workspace) -> Built:
        data = pa.array([b"fine", b"lone surrogate \xed\xa0\x80"], pa.large_binary())
        table = pa.table({"text": data.view(pa.large_string()), "split": ["train", "train"]})
        pq.write_table(table, workspace.folder / "documents-00000.parquet")
        return Built({"documents_train": 2, "documents_validation": 0, "documents_test": 0}, {})

    corpus, _ = store.make(Identity("corpus", 1, {"surrogate": True}, {}), build)
    with pytest.raises(DataError, match=r"documents-00000\.parquet cannot be read .*UTF8"):
        vocabulary(VocabularyConfig(), corpus, store)


def test_the_sample_goes_by_the_id_where_there_is_one():
    texts = pa.array([f"text {number}" for number in range(400)], pa.large_string())
    names = pa.array([f"{number:032x}" for number in range(400)])
    by_id = keys(pa.RecordBatch.from_arrays([texts, names], ["text", "id"]))
    assert not np.array_equal(by_id, keys(pa.RecordBatch.from_arrays([texts], ["text"])))
    assert np.array_equal(by_id, keys(pa.RecordBatch.from_arrays([texts[::-1], names], ["text", "id"])))
    chosen = share_below(by_id, (1 << 64) // 4)
    assert 60 < chosen.sum() < 140 and not (chosen & ~share_below(by_id, (1 << 64) // 2)).any(), "samples are nested"
    assert share_below(by_id, 1 << 64).all()
