"""The vocabulary: the same for any number of threads, lossless, and with a [MASK] that means what training meant."""

import json
import os
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import tokens
from tasks.artifacts import Built, Identity, Manifest, Store, Workspace, load
from tasks.errors import DataError, UsageError
from tasks.vocabulary import VocabularyConfig, identity, vocabulary

ROOT = Path(__file__).parents[2]
TEXTS = [str(text) for _, text in sorted(topics.items())][:40]
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def make_corpus(store: Store, texts: list[str], split: str = "train") -> Manifest:
    """A corpus written by hand: the stages meet through manifests only."""
    splits = {"train": 0, "validation": 0, "test": 0} | {split: len(texts)}

    def build(workspace: Workspace) -> Built:
        column = pa.array(texts, pa.large_string())
        table = pa.table({"text": column, "split": pa.array([split] * len(texts), pa.string())})
        path = workspace.folder / "documents-00000.parquet"
        pq.write_table(table, path, compression="zstd", write_page_checksum=True)
        return Built({f"documents_{name}": count for name, count in splits.items()}, {})

    return store.make(Identity("corpus", 1, {"texts": texts, "split": split}, {}), build)[0]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


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
        "size": 1024,
        "asked": 1024,
        "special_ids": {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4},
        "ordinary": [5, 1024],
    }
    assert len({for_text.id_to_token(number) for number in range(5, 261)} & set(map(chr, range(33, 324)))) == 256
    assert made.counts["documents_train"] == len(TEXTS)
    assert made.counts["bytes_train"] == sum(len(text.encode()) for text in TEXTS)


SCRIPT = """
import sys
from pathlib import Path
from tasks.artifacts import Store, load
from tasks.vocabulary import VocabularyConfig, vocabulary
print(vocabulary(VocabularyConfig(size=1024), load(Path(sys.argv[1])), Store(Path(sys.argv[2])))[0].digest)
"""


def test_the_same_bytes_for_any_number_of_threads(made, store, tmp_path):
    corpus = store.folder(Identity("corpus", 1, {"texts": TEXTS, "split": "train"}, {}))
    threads = {"RAYON_NUM_THREADS": "1"}, {"RAYON_NUM_THREADS": "3"}, {"TOKENIZERS_PARALLELISM": "false"}
    for number, extra in enumerate(threads):
        command = [sys.executable, "-c", SCRIPT, str(corpus), str(tmp_path / str(number))]
        environment = os.environ | {"PYTHONHASHSEED": str(number)} | extra
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == made.digest


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


def test_transformers_loads_it(made, for_prompts):
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    text = "the value of [MASK] is (not [MASK])."
    for kind in (AutoTokenizer, PreTrainedTokenizerFast):
        theirs = kind.from_pretrained(made.folder)
        assert theirs(text)["input_ids"] == for_prompts.encode(text).ids
        assert [theirs.pad_token_id, theirs.unk_token_id, theirs.cls_token_id] == [0, 1, 2]
        assert (theirs.sep_token_id, theirs.mask_token_id, len(theirs)) == (3, 4, 1024)
        assert theirs(["a", "the value"], padding=True)["input_ids"][0][-1] == 0
        raw = theirs(text, split_special_tokens=True)["input_ids"]
        assert 4 not in raw
    assert json.loads(made.path("tokenizer_config.json").read_text())["mask_token"]["lstrip"] is True


PARTS = ["word", " a", "  ", "\n", "\n\n", "'s", "é", "漢字", "12", "...", "\t", "\u00a0x"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(PARTS), max_size=80))
def test_pieces_encode_as_the_whole(for_text, parts):
    text = "".join(parts)
    old = tokens.PIECE
    try:
        tokens.PIECE = 7
        some = list(tokens.pieces(text))
        ids, sizes = tokens.encode(for_text, [text, "", text])
    finally:
        tokens.PIECE = old
    whole = for_text.encode(text, add_special_tokens=False).ids
    assert "".join(some) == text
    assert list(ids) == whole * 2 and list(sizes) == [len(whole), 0, len(whole)]


def test_a_text_without_a_space_is_cut_and_comes_back(for_text):
    text = "x" * 200_000
    some = list(tokens.pieces(text))
    assert max(map(len, some)) <= tokens.PIECE_LIMIT and "".join(some) == text
    ids, sizes = tokens.encode(for_text, [text])
    assert for_text.decode(list(ids)) == text and sizes.sum() == len(ids)


def test_words_begin_at_spaces_and_punctuation(for_text):
    begins = tokens.word_begins(for_text)
    for text, expected in {" the": True, ".": True, "\n": True, "he": False, "7": False}.items():
        ids = for_text.encode(text, add_special_tokens=False).ids
        assert begins[ids[0]] == expected, text


def test_a_small_corpus_gives_a_smaller_vocabulary_and_says_so(store, capsys):
    made, _ = vocabulary(VocabularyConfig(size=1000), make_corpus(store, ["ab ab ab cd", "ab"]), store)
    assert made.facts["size"] == made.facts["ordinary"][1] < 300 and made.facts["asked"] == 1000
    assert f"{made.facts['size']} tokens instead of 1000" in capsys.readouterr().err


def test_wrong_use_is_one_sentence(store):
    with pytest.raises(UsageError, match=r"vocabulary\.size is 100.*use 261"):
        VocabularyConfig(size=100)
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
