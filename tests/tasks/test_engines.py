"""Engines: the ids never depend on which one it was. python -m pytest tests/tasks/test_engines.py"""

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from tasks import engines
from tasks.engines import FAST, REFERENCE, check_parity, choose, odd_texts, open_engine, without_specials
from tasks.errors import DataError, UsageError
from tasks.tokens import PIECE_LIMIT, encode, open_for_text

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "data"
PROSE = [str(text) for _, text in sorted(topics.items())]
NAMES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
needs_fast = pytest.mark.skipif(find_spec(FAST) is None, reason="gigatoken is not installed (maskmill[fast])")


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """A byte-level BPE such as the vocabulary stage makes."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    specials = [AddedToken(name, lstrip=name == "[MASK]", normalized=False, special=True) for name in NAMES]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2048, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(PROSE, trainer)
    file = tmp_path_factory.mktemp("vocabulary") / "tokenizer.json"
    tokenizer.save(str(file))
    return file


@pytest.fixture
def changed(path, tmp_path):
    """A function that writes the tokenizer.json with some of its parts replaced."""

    def write(**parts) -> Path:
        file = tmp_path / "tokenizer.json"
        file.write_text(json.dumps(json.loads(path.read_text()) | parts))
        return file

    return write


class Made:
    """An engine of one token per character: its code point plus `off`."""

    name, version = "made", "0"

    def __init__(self, off: int = 0, only: str = "") -> None:
        self.off, self.only = off, only

    def encode(self, texts: list[str]):
        ids = [ord(one) + self.off * (self.only in text) for text in texts for one in text]
        return np.array(ids, np.int32), np.array([len(text) for text in texts], np.int64)


@pytest.fixture
def stand_in(monkeypatch):
    """A function that puts a module in gigatoken's place; what it encodes with is given."""

    def install(encode_batch) -> list[bytes]:
        opened: list[bytes] = []

        class Tokenizer:
            @staticmethod
            def from_json(page: bytes):
                opened.append(page)
                return SimpleNamespace(encode_batch=encode_batch)

        module = ModuleType(FAST)
        module.Tokenizer = Tokenizer  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, FAST, module)
        monkeypatch.setattr(engines, "installed", lambda: True)
        monkeypatch.setattr("importlib.metadata.version", lambda name: "9.9")
        engines._opened.cache_clear()
        return opened

    yield install
    engines._opened.cache_clear()


def laid_out(parts: list[list[int]], before: int = 0) -> SimpleNamespace:
    """What gigatoken returns: ids end to end and where each text begins."""
    content = np.array([0] * before + [one for part in parts for one in part], np.uint32)
    offsets = before + np.cumsum([0, *map(len, parts)])
    return SimpleNamespace(
        layout=SimpleNamespace(content=SimpleNamespace(data=content), offsets=SimpleNamespace(data=offsets))
    )


def like_the_reference(path: Path):
    """A stand-in that is right: it asks `tokenizers`."""
    tokenizer = open_for_text(path)

    def encode_batch(texts: list[str], parallel: bool | None) -> SimpleNamespace:
        return laid_out([one.ids for one in tokenizer.encode_batch_fast(texts, add_special_tokens=False)], before=3)

    return encode_batch


# The gate, wherever it runs


def test_the_reference_is_the_encoding_of_the_house(path):
    ours, sizes = open_engine(REFERENCE, path).encode(PROSE[:9])
    tokens, wanted = encode(open_for_text(path), PROSE[:9])
    assert np.array_equal(ours, tokens) and np.array_equal(sizes, wanted)


def test_equal_engines_have_no_difference_and_the_first_one_is_named_otherwise():
    texts = [f"text {number}" for number in range(200)]
    assert check_parity(Made(), Made(), texts) == ""
    assert check_parity(Made(), Made(), []) == ""
    assert check_parity(Made(1, "150"), Made(), iter(texts)) == "of 'text 150', token 0 is 117 instead of 116"


@pytest.mark.parametrize(
    ("mine", "said"),
    [([1, 2], "token 2 is missing instead of 3"), ([1, 2, 3, 4], "token 3 is 4 instead of missing")],
)
def test_a_token_too_few_or_too_many_is_a_difference(mine, said):
    def fixed(ids):
        return SimpleNamespace(encode=lambda texts: (np.array(ids, np.int32), np.array([len(ids)])))

    assert check_parity(fixed(mine), fixed([1, 2, 3]), ["é" * 50]).endswith(said)


def test_ids_that_are_equal_but_counted_otherwise_are_a_difference():
    one = SimpleNamespace(encode=lambda texts: (np.arange(4, dtype=np.int32), np.array([1, 3])))
    two = SimpleNamespace(encode=lambda texts: (np.arange(4, dtype=np.int32), np.array([2, 2])))
    assert check_parity(one, two, ["a", "b"]).startswith("of 'a', token 1")


def test_the_sample_is_read_some_at_a_time(monkeypatch):
    asked = 0

    def texts() -> Iterator[str]:
        nonlocal asked
        for asked in range(1, 10_001):
            yield "b" if asked == 100 else "a"

    assert check_parity(Made(1, "b"), Made(), texts())
    assert asked <= 2 * engines.SAMPLED


def test_odd_texts_have_every_byte_and_character_class_and_are_always_the_same():
    texts = list(odd_texts(NAMES))
    assert texts == list(odd_texts(NAMES)) and len(texts) > 1000
    data = set("".join(texts).encode())
    assert data == set(range(256)) - {0xC0, 0xC1, *range(0xF5, 0x100)}, "UTF-8 has no other bytes"
    assert {"", "\r\n", "\x00", "[MASK]", "a[CLS]b", " [SEP] "} <= set(texts)
    assert any(len(text) > PIECE_LIMIT and " " not in text[2:] and "\n" not in text for text in texts)
    for mark in ("👩\u200d", "e\u0301", "ไทย", "العالم", "漢字", "\u3000" * 64, "\t" * 1000):
        assert any(mark in text for text in texts), ascii(mark)


# Falling back, with stand-ins


def test_without_the_extra_tokenizers_is_used(path, monkeypatch):
    monkeypatch.setattr(engines, "installed", lambda: False)
    assert choose(path, PROSE) == (REFERENCE, "gigatoken is not installed (pip install 'maskmill[fast]').")
    with pytest.raises(UsageError, match=r"maskmill\[fast\]"):
        open_engine(FAST, path)


def test_an_unknown_engine_is_refused(path):
    with pytest.raises(UsageError, match="There is no engine 'steam'; use tokenizers or gigatoken"):
        open_engine("steam", path)


@pytest.mark.parametrize("model", ["WordPiece", "Unigram", "WordLevel"])
def test_another_model_than_bpe_is_not_even_tried(changed, stand_in, model):
    opened = stand_in(None)
    name, why = choose(changed(model={"type": model, "vocab": {}}), PROSE)
    assert (name, why, opened) == (REFERENCE, f"The model is {model}, and gigatoken knows BPE alone.", [])


def test_a_right_stand_in_is_used(path, stand_in):
    opened = stand_in(like_the_reference(path))
    name, why = choose(path, PROSE[:20])
    assert name == FAST and why.startswith("gigatoken 9.9 gives the ids of tokenizers ")
    assert json.loads(opened[0])["added_tokens"] == [], "it is given the file's contents, without special tokens"
    ours, sizes = open_engine(FAST, path).encode([PROSE[0], "", "x" * 3 * PIECE_LIMIT])
    tokens, wanted = open_engine(REFERENCE, path).encode([PROSE[0], "", "x" * 3 * PIECE_LIMIT])
    assert ours.dtype == np.int32 and sizes.dtype == np.int64
    assert np.array_equal(ours, tokens) and np.array_equal(sizes, wanted)
    assert len(opened) == 1, "opened once per process"


@pytest.mark.parametrize("wrong", ["[MASK]", "👩\u200d", "\r\n", "\x00", PROSE[3][:40]])
def test_one_wrong_id_is_enough_to_fall_back(path, stand_in, wrong):
    right = like_the_reference(path)

    def encode_batch(texts: list[str], parallel: bool | None) -> SimpleNamespace:
        found = right(texts, parallel)
        for at, text in enumerate(texts):
            if wrong in text:
                found.layout.content.data[found.layout.offsets.data[at]] += 1
        return found

    stand_in(encode_batch)
    name, why = choose(path, PROSE[:5])
    assert name == REFERENCE and why.startswith("gigatoken 9.9 differs from tokenizers ") and why.endswith(".")


def test_an_engine_that_gives_lists_is_not_used(path, stand_in):
    """gigatoken does where it cannot import awkward."""
    stand_in(lambda texts, parallel: [[1] for _ in texts])
    name, why = choose(path, PROSE[:5])
    assert name == REFERENCE and why.startswith("gigatoken cannot encode a text (")


class PanicException(BaseException):
    """As pyo3's: no Exception."""


@pytest.mark.parametrize("raised", [RuntimeError("no such thing\n\nLocation: hf.rs"), PanicException("no such thing")])
def test_an_engine_that_fails_falls_back_and_says_why_in_one_line(path, stand_in, raised):
    def encode_batch(texts: list[str], parallel: bool | None) -> SimpleNamespace:
        raise raised

    stand_in(encode_batch)
    name, why = choose(path, PROSE[:5])
    assert (name, why) == (
        REFERENCE,
        "gigatoken cannot encode a text (no such thing), so tokenizers is used.",
    )
    with pytest.raises(DataError, match="cannot encode a text"):
        open_engine(FAST, path).encode(["a"])


def test_a_user_who_stops_it_is_not_a_reason_to_fall_back(path, stand_in):
    def encode_batch(texts: list[str], parallel: bool | None) -> SimpleNamespace:
        raise KeyboardInterrupt

    stand_in(encode_batch)
    with pytest.raises(KeyboardInterrupt):
        choose(path, PROSE[:5])


def test_a_damaged_corpus_is_not_a_reason_to_fall_back(path, stand_in):
    def texts() -> Iterator[str]:
        yield "a"
        raise DataError("documents-00000.parquet cannot be read.")

    stand_in(like_the_reference(path))
    with pytest.raises(DataError, match="cannot be read"):
        choose(path, texts())


def test_a_broken_installation_falls_back(path, stand_in, monkeypatch):
    stand_in(None)
    monkeypatch.delattr(sys.modules[FAST], "Tokenizer")
    name, why = choose(path, PROSE[:5])
    assert name == REFERENCE and why.startswith("gigatoken cannot open this vocabulary (")


@pytest.mark.parametrize("page", ["", "[]", "{", "{}", '{"model": {"type": "BPE"}}'])
def test_a_file_that_is_no_tokenizer_is_an_error_not_a_fall_back(tmp_path, stand_in, page):
    stand_in(None)
    file = tmp_path / "tokenizer.json"
    file.write_text(page)
    with pytest.raises(DataError, match="is not a tokenizer"):
        choose(file, [])


@pytest.mark.parametrize("name", [REFERENCE, FAST])
def test_a_missing_file_is_an_error(tmp_path, stand_in, name):
    stand_in(None)
    with pytest.raises(DataError, match="verify vocabulary"):
        open_engine(name, tmp_path / "tokenizer.json")


def test_a_changed_file_is_opened_anew(path, changed):
    first = open_engine(REFERENCE, path)
    file = changed()
    assert open_engine(REFERENCE, path) is first
    one = open_engine(REFERENCE, file)
    file.write_text(file.read_text() + "\n")
    assert open_engine(REFERENCE, file) is not one


def test_it_is_opened_anew_after_so_many_tokens_since_it_forgets_no_word(path, stand_in, monkeypatch):
    opened = stand_in(like_the_reference(path))
    monkeypatch.setattr(engines, "FRESH_TOKENS", 100)
    engine = open_engine(FAST, path)
    for _ in range(7):
        engine.encode(["one two three " * 12])
    assert len(opened) == 1 + 2, "a new one before each call that finds 100 tokens or more met"


@pytest.mark.parametrize(("said", "wanted"), [("false", False), ("", None), ("true", None)])
def test_the_switch_of_tokenizers_keeps_it_to_one_thread_too(path, stand_in, monkeypatch, said, wanted):
    asked = []

    def encode_batch(texts: list[str], parallel: bool | None) -> SimpleNamespace:
        asked.append(parallel)
        return laid_out([[5] for _ in texts])

    stand_in(encode_batch)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", said)
    open_engine(FAST, path).encode(["a", "b"])
    assert asked == [wanted]


def test_only_special_tokens_lose_their_names():
    page = {"added_tokens": [{"content": "[X]", "special": True}, {"content": "<y>", "special": False}], "model": 1}
    assert json.loads(without_specials(page)) == {
        "added_tokens": [{"content": "<y>", "special": False}],
        "post_processor": None,
        "model": 1,
    }
    assert json.loads(without_specials({}))["added_tokens"] == []


def test_the_library_is_imported_only_when_it_is_asked_for():
    code = "import sys, tasks.engines; assert not {'gigatoken', 'awkward', 'tokenizers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# gigatoken itself


@needs_fast
def test_gigatoken_gives_the_ids_of_tokenizers(path):
    engines._opened.cache_clear()
    name, why = choose(path, PROSE)
    assert name == FAST, why


@needs_fast
def test_text_does_not_depend_on_how_it_is_batched(path):
    texts = [*PROSE[:30], *odd_texts(NAMES)][::3]
    engine = open_engine(FAST, path)
    tokens, sizes = engine.encode(texts)
    assert sizes.sum() == len(tokens) and len(sizes) == len(texts)
    alone = [engine.encode([text])[0] for text in texts]
    assert np.array_equal(np.concatenate(alone), tokens)
    assert [len(one) for one in alone] == sizes.tolist()
    nothing, none = engine.encode([])
    assert (nothing.dtype, len(nothing), none.dtype, len(none)) == (np.int32, 0, np.int64, 0)


@needs_fast
def test_names_of_special_tokens_are_characters_for_it(path):
    tokens, _ = open_engine(FAST, path).encode(["".join(NAMES), *NAMES])
    assert tokens.min() >= len(NAMES)


@needs_fast
def test_a_normalizer_that_it_does_not_know_falls_back(changed):
    name, why = choose(changed(normalizer={"type": "Lowercase"}), PROSE[:3])
    assert (name, why) == (
        REFERENCE,
        "gigatoken cannot open this vocabulary (Unsupported normalizer type: Lowercase), so tokenizers is used.",
    )


@needs_fast
def test_a_vocabulary_that_it_reads_otherwise_falls_back(changed):
    """Without the pre-tokenizer's pattern gigatoken 0.10.0 merges in another order; the gate is what finds it."""
    splits = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    file = changed(pre_tokenizer=splits)
    name, why = choose(file, PROSE[:3])
    fast, reference = (open_engine(one, file) for one in (FAST, REFERENCE))
    differs = check_parity(fast, reference, [*odd_texts(NAMES), *PROSE[:3]])
    assert (name == REFERENCE) == bool(differs) and differs in why


@needs_fast
@pytest.mark.slow
def test_thirty_thousand_mixtures_of_characters(path):
    fast, reference = (open_engine(name, path) for name in (FAST, REFERENCE))
    assert check_parity(fast, reference, engines._mixtures(30_000)) == ""


@needs_fast
@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="there is no shared/data beside the checkout")
@pytest.mark.parametrize("part", ["corpus", "dirty", "eval"])
def test_all_real_files_damaged_ones_too(path, part):
    files = sorted(file for file in (REAL / part).rglob("*") if file.is_file() and file.stat().st_size < 2_000_000)
    texts = (file.read_bytes().decode(errors="replace") for file in files)
    fast, reference = (open_engine(name, path) for name in (FAST, REFERENCE))
    assert check_parity(fast, reference, texts) == ""
