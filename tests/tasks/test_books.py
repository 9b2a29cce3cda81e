"""python -m pytest tests/tasks/test_books.py"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.books import Books, is_fault
from tasks.errors import DataError

EVENT = st.tuples(
    st.sampled_from(["", "too_short", "broken_json", "c4_curly_bracket"]),
    st.integers(0, 1 << 40),
    st.integers(0, 1 << 40),
    st.integers(-100, 100),
)


@given(st.lists(st.lists(EVENT)))
def test_the_books_of_files_add_up_to_those_of_their_source(files: list[list[tuple[str, int, int, int]]]) -> None:
    whole, kept = Books(), [0, 0, 0]
    for events in files:
        books = Books()
        for reason, size, characters, off in events:
            books.take(size, characters, reason)
            if not reason:
                books.clean(["unicode"] if off else [], off, off)
                kept = [kept[0] + 1, kept[1] + size - off, kept[2] + characters - off]
        whole.add(books.facts())
    page = whole.page("source", kept)
    events = [event for some in files for event in some]
    assert page["documents_in"] == len(events)
    assert page["changed"].get("unicode", 0) == sum(1 for reason, *_, off in events if off and not reason)
    assert whole.faults().get("broken_json", [0])[0] == sum(reason == "broken_json" for reason, *_ in events)
    with pytest.raises(DataError, match="The books of source source do not balance"):
        whole.page("source", [kept[0], kept[1], kept[2] + 1])


def test_what_a_filter_drops_is_no_fault() -> None:
    assert is_fault("broken_json") and is_fault("not_utf8")
    assert not is_fault("gopher_word_count") and not is_fault("c4_curly_bracket") and not is_fault("near_heldout")
