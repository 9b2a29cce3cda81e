"""python -m pytest tests/tasks/test_filters.py

Each published rule with a text that just passes and one that just fails.
"""

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import filters
from tasks.cleaning import Cleaner, Cleaning
from tasks.filters import c4, c4_lines, gopher_quality, gopher_repetition, without_boilerplate

SENTENCE = "The house of my aunt and that garden have stood with trees for many years. It is. It was."


def unique(number: int, length: int = 4) -> list[str]:
    """Different words of one length."""
    letters = "abcdefghij"
    return ["".join(letters[int(digit)] for digit in f"{one:0{length}}") for one in range(number)]


def quality(number: int, word: str = "word", *others: str) -> str:
    """`number` words, the others among them, and two stop words."""
    return " ".join([*others, "the", "with", *[word] * (number - len(others) - 2)])


# C4


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("One is here. Two is here! Is three here?", ""),
        ("One is here. Two is 3.5 here!", "c4_too_few_sentences"),
        ('He said "One." She said (two.) "Three?"', ""),
        ("One. Two. Three { four.", "c4_curly_bracket"),
        ("One. Two. Three } four.", ""),
        ("One. Two. Three: Lorem  ipsum.", ""),
        ("One. Two. Three: Lorem ipsum.", "c4_lorem_ipsum"),
    ],
)
def test_c4_pages(text: str, reason: str) -> None:
    assert c4(text) == reason


@pytest.mark.parametrize("mark", [".", "?", "!", '"', "”", ". "])
def test_c4_lines_end_like_a_sentence_and_have_five_words(mark: str) -> None:
    assert c4_lines(f"one two three four five{mark}") == f"one two three four five{mark}"
    assert c4_lines(f"one two three four{mark}") == ""
    assert c4_lines("one two three four five;\n\nsix.") == ""


def test_c4_drops_marks_of_citations() -> None:
    assert c4_lines("It was so[1] in those[citation needed] days[edit] too.[]") == "It was so in those days too."
    assert c4_lines("It was [so] in those days, [a1].") == "It was [so] in those days, [a1]."


@pytest.mark.parametrize(
    ("line", "stays"),
    [("Please enable JavaScript.", False), ("Read our Terms of Use!", False), ("This site uses cookies.", False),
     ("We are using cookies.", True), ("Java, script by script", True), ("Terms of the use", True)],
)  # fmt: skip
def test_boilerplate_goes_by_lines(line: str, stays: bool) -> None:
    assert without_boilerplate(f"Above.\n{line}\nBelow.") == (f"Above.\n{line}\nBelow." if stays else "Above.\nBelow.")


# Gopher: quality


@pytest.mark.parametrize(
    ("passes", "fails", "reason"),
    [
        (quality(50), quality(49), "word_count"),
        (quality(100_000), quality(100_001), "word_count"),
        (quality(100, "ab", *["abcdef"] * 25), quality(100, "ab", *["abcdef"] * 24), "word_length"),
        (quality(101, "a" * 10), quality(101, "a" * 11), "word_length"),
        (quality(100, "word", *["a#bc"] * 10), quality(100, "word", *["a#bc"] * 11), "hash_ratio"),
        (quality(100, "word", *["so…"] * 10), quality(100, "word", *["so…"] * 5, *["so..."] * 6), "ellipsis_ratio"),
        ("- the word with that\n" * 18 + "a line\n\n" * 2, "• the word with that\n" * 19 + "a line\n\n" * 2,
         "bullet_lines"),
        ("the word with that it…\n" * 3 + "the word with that it is here now\n" * 7,
         "the word with that it…\n" * 4 + "the word with that it is here now\n" * 9, "ellipsis_lines"),
        (quality(100, "word", *["1234"] * 20), quality(100, "word", *["1234"] * 21), "alphabetic_words"),
        (" ".join(["The", "“Of”", *["word"] * 60]), " ".join(["The", "the", *["word"] * 60]), "stop_words"),
    ],
)  # fmt: skip
def test_gopher_quality(passes: str, fails: str, reason: str) -> None:
    assert gopher_quality(passes) == "" and gopher_quality(fails) == f"gopher_{reason}"


# Gopher: repetition


def with_repeated(number: int) -> str:
    """Lines, of which three stood before."""
    words = unique(number - 3)
    return "\n".join([*words, *words[:1] * 3, "long" * 30])


@pytest.mark.parametrize(
    ("passes", "fails", "reason"),
    [
        (with_repeated(9), with_repeated(8), "lines"),
        ("aaaa\naaaa\nbbbbbb\ncccccc", "aaaa\naaaa\nbbbbbb\nccccc", "line_characters"),
    ],
)
def test_gopher_duplicate_lines(passes: str, fails: str, reason: str) -> None:
    assert gopher_repetition(passes) == "" and gopher_repetition(fails) == f"gopher_duplicate_{reason}"


def test_gopher_duplicate_paragraphs() -> None:
    def text(number: int) -> str:
        """Two paragraphs that stood before, and others, with so many lines that few of them are the same."""
        others = ["\n".join(f"{one}{line}" for line in unique(6)) for one in unique(number)]
        return "\n\n".join(["ab\ncd"] * 3 + others)

    assert gopher_repetition(text(4)) == "" and gopher_repetition(text(3)) == "gopher_duplicate_paragraphs"


def test_gopher_duplicate_paragraph_characters() -> None:
    def text(size: int) -> str:
        """A paragraph of 9 characters twice (18), and 7 lines in 2 paragraphs, with 5 newlines in them."""
        lines = [*"ghijkl", "m" * (size - 6)]
        return "\n\n".join(["a\nb\nc\nd\ne"] * 2 + ["\n".join(lines[:3]), "\n".join(lines[3:])])

    assert gopher_repetition(text(21)) == "gopher_duplicate_paragraph_characters"  # 9 of 44
    assert gopher_repetition(text(22)) == "gopher_top_3_gram"  # 9 of 45; a later rule


@pytest.mark.parametrize(("n", "percent"), filters.TOP)
def test_gopher_top_n_grams(n: int, percent: int) -> None:
    """Words of 4 letters, of which `percent` in a hundred stand in copies of one n-gram, and then n more."""
    words = unique(2400)
    gram, others = words[:n], words[n:]
    copies = 12 * percent // n  # of 1200 words

    def text(times: int) -> str:
        found: list[str] = []
        for number in range(times):
            found += [*gram, others[number]]
        return " ".join([*found, *others[times : 1200 - n * times]])

    assert copies * n * 100 == percent * 1200
    assert gopher_repetition(text(copies)) == ""
    assert gopher_repetition(text(copies + 1)) == f"gopher_top_{n}_gram"


@pytest.mark.parametrize(("n", "percent"), filters.REPEATED)
def test_gopher_duplicate_n_grams(n: int, percent: int) -> None:
    """Of so many words, the last ones stood before, in pieces of n words."""
    words = unique(9000)
    total = 100 * n

    def text(pieces: int) -> str:
        fresh = total - pieces * n
        found = words[:fresh]
        for piece in range(pieces):
            found += [*words[piece * (n + 1) : piece * (n + 1) + n], words[fresh + piece]]  # a word between them
        return " ".join(found[: total + pieces])

    assert gopher_repetition(text(percent)) == ""
    assert gopher_repetition(text(percent + 1)) == f"gopher_duplicate_{n}_grams"


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(["a", "bb", "ccc", "dd"]), max_size=40))
def test_repetition_is_what_plain_counting_says(words: list[str]) -> None:
    assert filters._repeated_words(words) == plain(words)


def plain(words: list[str]) -> str:
    """The same rules, counted one by one."""
    total = sum(map(len, words))
    for n, limit in (*filters.TOP, *filters.REPEATED):
        grams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
        counts = Counter(grams)
        if n <= 4:
            most = max(counts.values(), default=0)
            if most < 2:
                continue
            longest = max(len("".join(gram)) for gram, number in counts.items() if number == most)
            top = next(gram for gram in grams if counts[gram] == most and len("".join(gram)) == longest)
            starts = [start for start, gram in enumerate(grams) if gram == top]
        else:
            starts = [start for start, gram in enumerate(grams) if gram in grams[:start]]
        covered = {start + offset for start in starts for offset in range(n)}
        if sum(len(words[place]) for place in covered) * 100 > limit * total:
            return f"gopher_top_{n}_gram" if n <= 4 else f"gopher_duplicate_{n}_grams"
    return ""


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab.#… \n-{1"), max_size=300))
@pytest.mark.parametrize("rule", [c4, gopher_quality, gopher_repetition])
def test_a_rule_takes_any_text(rule: Callable[[str], str], text: str) -> None:
    assert rule(text) == "" or rule(text).startswith(("c4_", "gopher_"))


def test_each_group_is_switched_by_its_setting() -> None:
    code = "This is a sentence. " * 4 + "{"
    short = "Too few words. That is all. There is no more of the text and that is it, so it has an end."
    again = "The very same words with the very same end, and that is all.\n" * 9
    for text, group, reason in (
        (f"{code}.", "c4", "c4_curly_bracket"),
        (short, "gopher_quality", "gopher_word_count"),
        (again, "gopher_repetition", "gopher_duplicate_lines"),
    ):
        assert Cleaner(Cleaning()).clean(text).reason == ""
        assert Cleaner(Cleaning(**{group: True})).clean(text).reason == reason
    page = "Menu\nWe use cookies, so that you can have them.\n" + SENTENCE + "\n"
    cleaned = Cleaner(Cleaning(c4=True, boilerplate=True)).clean(page)
    assert cleaned.text == SENTENCE and cleaned.changed == (
        "boilerplate",
        "c4",
        "whitespace",
    )
