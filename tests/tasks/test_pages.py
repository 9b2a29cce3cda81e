"""Pages, and the blocks and paragraphs they are made of. python -m pytest tests/tasks/test_pages.py"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import paragraphs
from tasks.artifacts import file_digest
from tasks.blocks import blocks
from tasks.pages import assemble, cut, each, pages, unwrap
from tasks.reading import documents
from tasks.streams import Broken, Document, Item, Limits, Reject
from tests.tasks.made_files import development

BLANK = b" \t\r\n\x0b\x0c"
WORDS = [
    "a",
    "Upper",
    "lower",
    "words that go on ",
    "é",
    "É",
    "• x",
    "- ",
    "1. ",
    "12) ",
    "١. ",
    "..",
    "```",
    "#",
    "\u3000x",
]
WORDS += [
    "𝐀",
    "日本語",
    "x\u2028y",
    "\x85",
    "\x0b",
    "\x0c",
    "\x1c",
    "w" * 30,
    "lower case words, as many as a line holds ",
]
WORDS += ["\n", "\n\n", "\r\n", "\r\n\r\n", "\r", " \n", "\t\r\n", "   ", "\n \n", "\0"]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=60).map("".join).map(str.encode)
HEADS = st.sampled_from([b"", b"\xef\xbb\xbf"])


def plain(data: bytes) -> Iterator[tuple[int, str]]:
    """(offset, paragraph) by the rules, a line at a time: what the blocks have to find."""
    offset = 3 if data.startswith(b"\xef\xbb\xbf") else 0
    run: list[bytes] = []
    first = size = 0
    for line in [*data[offset:].splitlines(keepends=True), b""]:
        if line.strip(BLANK):
            first = first if run else offset
            run.append(line.rstrip(BLANK))
            size += len(line)
        offset += len(line)
        if run and (not line.strip(BLANK) or size > paragraphs.PARAGRAPH):
            yield first, unwrap(b"\n".join(run).decode())
            run, size = [], 0


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def read(data: bytes, size: int, chunk: int = 1 << 20, block: int = 1 << 20) -> list[tuple[int, str]]:
    found = list(pages(blocks(pieces(data, chunk), Limits(), size=block), size))
    assert all(isinstance(one, Document) for one in found)
    return [(one.offset, one.text) for one in found if isinstance(one, Document)]


@settings(max_examples=500, deadline=None)
@given(HEADS, TEXTS, st.integers(1, 9), st.sampled_from([1, 3, 20, 1 << 20]), st.sampled_from([64, 90, 4096]))
def test_blocks_of_any_size_give_what_the_plain_rules_give(
    head: bytes, text: bytes, chunk: int, block: int, size: int
) -> None:
    data = head + text
    assert read(data, size, chunk, block) == list(assemble(plain(data), size))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["a lower case line " * 4 + "\n", "x\n", "\n", "y" * 90 + "\r\n"]), max_size=40))
def test_a_paragraph_without_end_is_divided_at_the_same_lines_whatever_the_blocks_are(parts: list[str]) -> None:
    data = "".join(parts).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paragraphs, "PARAGRAPH", 200)
        expected = list(assemble(plain(data), 1000))
        assert [read(data, 1000, chunk, chunk) for chunk in (7, 100, 1000)] == [expected] * 3


def test_the_books_of_the_corpus_are_read_as_the_plain_rules_say() -> None:
    files = [path for path in sorted(development("corpus").rglob("*")) if path.suffix in (".txt", ".md", ".rst")]
    for path in files[::12]:
        data = path.read_bytes()
        assert read(data, 4096) == list(assemble(plain(data), 4096)), path.name


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_line_ends_and_trailing_blanks_make_no_difference_to_the_text(text: bytes) -> None:
    plain_text = b"\n".join(line.rstrip(BLANK) for line in text.splitlines())
    other = plain_text.replace(b"\n", b" \t\r\n")
    assert [one for _, one in read(plain_text, 90)] == [one for _, one in read(other, 90)]


@settings(max_examples=200, deadline=None)
@given(TEXTS.filter(bool), st.data())
def test_a_bad_byte_loses_its_line_and_no_other(text: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(text)))
    spoilt = text[:at] + b"\xff" + text[at:]
    lines = spoilt.splitlines(keepends=True)
    number = next(n for n, line in enumerate(lines) if b"\xff" in line)
    found = list(each(blocks(pieces(spoilt, 5), Limits(), lone=True, wrap=False, size=9), 1 << 20))
    good = [line.strip(BLANK) for line in lines if line.strip(BLANK) and b"\xff" not in line]
    bad = [one for one in found if isinstance(one, Reject)]
    assert [one.text.encode().strip(BLANK) for one in found if isinstance(one, Document)] == good
    assert [(one.reason, one.line, one.bytes) for one in bad] == [("invalid_utf8", number + 1, len(lines[number]))]
    assert bad[0].offset == sum(map(len, lines[:number]))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 200), st.sampled_from([b"\n", b"\r\n", b"\r"])), max_size=12),
    st.integers(1, 50),
    st.integers(1, 300),
)
def test_a_line_that_is_too_long_is_refused_alone(sizes: list[tuple[int, bytes]], chunk: int, block: int) -> None:
    lines = [b"x" * size + end for size, end in sizes]
    data = b"".join(lines)
    lines = data.splitlines(keepends=True)  # "\r" and "\n" may have met
    found = list(each(blocks(pieces(data, chunk), Limits(line_bytes=100), lone=True, size=block), 1 << 20))
    kept = [one.text for one in found if isinstance(one, Document)]
    refused = [(one.line, one.bytes, one.offset) for one in found if isinstance(one, Reject)]
    starts = [sum(map(len, lines[:number])) for number in range(len(lines))]
    assert kept == [line.decode().strip() for line in lines if line.strip() and len(line) <= 100]
    expected = [(n + 1, len(line), starts[n]) for n, line in enumerate(lines) if len(line) > 100]
    assert refused == expected


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_where_a_file_breaks_off_its_last_line_is_refused_and_the_others_stay(chunk: int) -> None:
    data = b"one\n\ntwo\nthree\ncut of"

    def broken() -> Iterator[bytes]:
        yield from pieces(data, chunk)
        raise Broken("truncated_archive", "why", 20, 7)

    found = list(pages(blocks(broken(), Limits(), size=1), 4096))
    assert [one.text for one in found if isinstance(one, Document)] == ["one\n\ntwo\nthree"]
    bad = [one for one in found if isinstance(one, Reject)]
    assert bad == [Reject("truncated_archive", 15, 7 + 6, None, "why")]


# The rules


@settings(max_examples=200, deadline=None)
@given(TEXTS.map(bytes.decode), st.integers(4, 60))
def test_cutting_loses_nothing_but_blanks(text: str, size: int) -> None:
    parts = cut(text, size)
    assert "".join("".join(parts).split()) == "".join(text.split())
    assert all(len(part) <= size for part in parts) or len(text) <= size


def test_a_long_text_is_cut_in_time_that_grows_with_its_length() -> None:
    parts = cut("word and more. " * 1_000_000, 100)
    assert len(parts) > 150_000 and max(map(len, parts)) <= 100


def test_documents_are_cut_at_blank_lines_and_keep_their_offsets() -> None:
    expected = [(0, "a" * 10 + "\n\n" + "b" * 10), (24, "c" * 10)]
    assert list(assemble([(0, "a" * 10), (12, "b" * 10), (24, "c" * 10)], 22)) == expected
    assert read(b"\n\n".join([b"a" * 30, b"b" * 32, b"c" * 10]), 64) == [
        (0, "a" * 30 + "\n\n" + "b" * 32),
        (66, "c" * 10),
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
    assert [read(wrapped.replace("\n", end).encode(), 4096) for end in ("\n", "\r\n", "\r")] == [[(0, words)]] * 3


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
    assert unwrap(text) == text and read(text.encode(), 4096) == [(0, text)]


@pytest.mark.parametrize("size", [1 << 18, (1 << 18) - 1, 1 << 20])
def test_a_last_line_that_is_too_long_is_refused_whatever_the_size_of_the_file(tmp_path: Path, size: int) -> None:
    good = b"A good paragraph that stays.\n\n"
    path = tmp_path / "a.txt"
    path.write_bytes(good + b"x" * (size - len(good)))
    state = path.stat()
    item = Item("text", str(path), "a.txt", file_digest(path), state.st_size)
    found = list(documents(item, Limits(line_bytes=1 << 16)))
    assert [one.reason for one in found if isinstance(one, Reject)] == ["line_too_long"]
    assert sum(one.bytes for one in found if isinstance(one, Reject)) == size - len(good)
