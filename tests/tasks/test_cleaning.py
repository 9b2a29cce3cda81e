"""python -m pytest tests/tasks/test_cleaning.py"""

import unicodedata
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.cleaning import assemble, cut, document_id, normalise, prose, split_of, unwrap

TEXTS = st.text(alphabet=st.one_of(st.characters(), st.sampled_from("\r\n\t \x00\x0b\x0c\x85\u2028\ufeffe\u0301ab")))


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_the_normal_form_is_stable_and_clean(text: str) -> None:
    clean = normalise(text)
    assert normalise(clean) == clean
    assert unicodedata.is_normalized("NFC", clean)
    assert not {"\r", "\x00", "\ufeff", "\x85", "\x0c"} & set(clean) and "\n\n\n" not in clean


def test_lines_end_at_newlines_only() -> None:
    assert normalise("a\r\nb\rc\u2028d\x0be") == "a\nb\nc\u2028d e"


@settings(max_examples=200, deadline=None)
@given(TEXTS.map(normalise), st.integers(4, 60))
def test_cutting_loses_nothing_but_blanks(text: str, size: int) -> None:
    parts = cut(text, size)
    assert "".join("".join(parts).split()) == "".join(text.split())
    assert all(len(part) <= size for part in parts) or len(text) <= size


def test_documents_are_cut_at_blank_lines_and_keep_their_offsets() -> None:
    assert list(assemble([(0, "a" * 10), (12, "b" * 10), (24, "c" * 10)], 22)) == [
        (0, "a" * 10 + "\n\n" + "b" * 10),
        (24, "c" * 10),
    ]


def test_hard_wrapped_prose_is_unwrapped() -> None:
    words = "It was a Sunday evening in October and in common with many other ladies of her class she poured out tea"
    lines, line = [], ""
    for word in words.split():
        if len(line) + 1 + len(word) > 60:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    wrapped = "\n".join([*lines, line])
    assert "\n" in wrapped and unwrap(wrapped) == words


@pytest.mark.parametrize(
    "text",
    [
        "Shall I compare thee to a summer's day and all its hours?\n"
        "Thou art more lovely and more temperate than it was:\n"
        "Rough winds do shake the darling buds of May, and then,\n"
        "And summer's lease hath all too short a date, they say.",
        "- the first thing that is to be done before anything else\n- the second thing which comes after the first",
        "one\ntwo\nthree",
        "a" * 300 + "\n" + "b" * 200,
    ],
)
def test_verse_lists_and_long_lines_are_left_alone(text: str) -> None:
    assert unwrap(text) == text


def test_the_sentences_of_a_docstring_stay_and_its_code_goes() -> None:
    text = prose(
        """Return the largest of the values that are found in the given array.

        Parameters
        ----------
        a : array_like
            The values among which the largest one is to be found by this function.
        axis (int, optional): The axis along which the largest of the values is searched for.

        >>> largest([1, 2, 3])
        3

        See :class:`~numpy.ndarray` for the kind of value that is returned in this case::

            import numpy as np  # this is not for the reader of a text in the first place.
        """
    )
    assert text.split("\n\n") == [
        "Return the largest of the values that are found in the given array.",
        "The values among which the largest one is to be found by this function.",
        "The axis along which the largest of the values is searched for.",
        "See ndarray for the kind of value that is returned in this case::",
    ]


def test_splits_follow_the_shares_and_never_move_between_held_out_and_train_when_one_share_grows() -> None:
    names = [document_id(str(number).encode()) for number in range(20_000)]
    small = [split_of(name, Fraction("0.05"), Fraction("0.02")) for name in names]
    large = [split_of(name, Fraction("0.05"), Fraction("0.04")) for name in names]
    assert abs(small.count("validation") / 20_000 - 0.05) < 0.006 and abs(small.count("test") / 20_000 - 0.02) < 0.004
    assert all(a == b or (a, b) == ("train", "test") for a, b in zip(small, large))
    assert {split_of(name, Fraction(0), Fraction(0)) for name in names} == {"train"}
