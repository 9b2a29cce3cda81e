"""python -m pytest tests/tasks/test_prose.py"""

import inspect

from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.prose import prose, reads_as_prose

SENTENCE = "Return the largest of the values that are found in the given array."


PIECES = ["the", "of", "and", "that", "x", *".:`*>#|[]()<-=1", "::", "\n", "\n\n", "\n    "]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(PIECES)).map(" ".join))
def test_what_is_left_is_sentences(documentation: str) -> None:
    text = prose(documentation)
    assert all(reads_as_prose(paragraph) for paragraph in text.split("\n\n") if paragraph)


def test_the_sentences_of_a_docstring_stay_and_its_code_goes() -> None:
    text = prose(
        f"""{SENTENCE}

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
        SENTENCE,
        "The values among which the largest one is to be found by this function.",
        "The axis along which the largest of the values is searched for.",
        "See ndarray for the kind of value that is returned in this case::",
    ]


def test_a_docstring_of_the_standard_library_gives_its_sentences() -> None:
    text = prose(inspect.getdoc(inspect.getmro) or "") + prose(inspect.getdoc(inspect.cleandoc) or "")
    assert "Any whitespace that can be uniformly removed from the second line onwards is removed." in text


def test_code_tables_and_names_are_no_prose() -> None:
    assert prose("x = 1\ny = 2\nfor a in b:\n    print(a)") == ""
    assert prose("| a | b |\n|---|---|\n| 1 | 2 |") == ""
    assert prose("alpha beta gamma delta epsilon zeta eta theta iota kappa.") == ""
