"""Passages: whole words of the test split, the same for every vocabulary."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.artifacts import Built, Identity, Manifest, Store
from tasks.errors import UsageError
from tasks.passages import PseudoLikelihoodConfig, passages, spans

WORDS = ["the", "cat", "sat", "on", "the", "mat", "and", "then", "w\u00f6rds", "happened", "to", "many", "of", "them"]


def corpus(store: Store, texts: list[str], held_out: int = 3) -> Manifest:
    """Every `held_out`-th document is of the test split."""
    splits = ["test" if number % held_out == 0 else "train" for number in range(len(texts))]

    def build(workspace):
        pq.write_table(pa.table({"text": texts, "split": splits}), workspace.folder / "part-0.parquet")
        return Built({f"documents_{one}": splits.count(one) for one in ("train", "validation", "test")}, {})

    return store.make(Identity("corpus", 1, {"texts": texts}, {}), build)[0]


def document(number: int, words: int) -> str:
    return " ".join(f"{WORDS[(number * 7 + at) % len(WORDS)]}{number}" for at in range(words))


def test_one_passage_a_document_of_whole_words_of_the_test_split(tmp_path):
    texts = [document(number, 5 + 13 * number % 200) for number in range(90)]
    made = corpus(Store(tmp_path), texts)
    found = passages(PseudoLikelihoodConfig(passages=20, passage_bytes=100), made)
    assert len(found) == 20 and len({passage.document for passage in found}) == 20
    for passage in found:
        whole = texts[3 * passage.document]
        assert passage.text in whole and len(passage.text.encode()) <= 100
        assert set(passage.text.split()) <= set(whole.split()), "no word is cut"
    assert found == passages(PseudoLikelihoodConfig(passages=20, passage_bytes=100), made)
    assert [passage.document for passage in found] == sorted(passage.document for passage in found)
    begins = sum(texts[3 * one.document].startswith(one.text) for one in found)
    assert begins < 15, "not always the beginning of a document"


def test_few_documents_give_several_passages_each_and_none_twice(tmp_path):
    texts = [document(number, 60) for number in range(9)]
    found = passages(PseudoLikelihoodConfig(passages=8, passage_bytes=100), corpus(Store(tmp_path), texts))
    assert len(found) == 8 and len(set(found)) == 8 and {passage.document for passage in found} == {0, 1, 2}
    every = passages(PseudoLikelihoodConfig(passages=999, passage_bytes=100), corpus(Store(tmp_path), texts))
    assert len(every) < 30 and set(found) <= set(every)
    for number in range(3):
        parts = [passage.text for passage in every if passage.document == number]
        assert " ".join(parts) == texts[3 * number], "all of it, in its order"


def test_a_test_split_without_text_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"the test split of .* has no text"):
        passages(PseudoLikelihoodConfig(), corpus(Store(tmp_path), [" \n", "the cat"]))


@pytest.mark.parametrize("settings", [{"passages": 0}, {"passage_bytes": 15}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(UsageError, match="use at least"):
        PseudoLikelihoodConfig(**settings)


@given(st.text(alphabet="ab\u00e9\U0001f600 \n\t\u3000", max_size=120), st.integers(16, 40))
def test_spans_cover_a_text_and_end_with_words(text, size):
    found = list(spans(text, size))
    assert "".join("".join(text[start:stop].split()) for start, stop in found) == "".join(text.split())
    for start, stop in found:
        piece = text[start:stop]
        assert piece == piece.strip() and 0 < len(piece.encode()) <= size
        cut = stop < len(text) and not text[stop].isspace()
        assert not cut or not any(blank in piece for blank in " \n\t"), "only a word longer than a passage is cut"
