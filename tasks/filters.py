"""Published rules about which documents read like text: C4's and Gopher's, for English pages of the web.

    C4       Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer",
             section 2.2; where the paper is silent, as its code does it (tensorflow_datasets/text/c4_utils.py)
    Gopher   Rae et al. 2021, "Scaling Language Models: Methods, Analysis & Insights from Training Gopher",
             appendix A.1.1 and table A1

A rule gives its reason, or "" where a document passes. Shares are compared as integers, so no document is kept on one
machine and dropped on another. A word is what stands between blanks, a line one that is not blank.
"""

import re
from collections.abc import Sequence
from typing import Any

POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
SENTENCE = re.compile(r"[.!?]+[\"”’')\]]*(?=\s|\Z)")
"""An end of a sentence. C4 had nltk's punkt count them."""
STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
BULLETS = ("•", "‣", "●", "▪", "◦", "-", "*")
TOP = ((2, 20), (3, 18), (4, 16))
"""(n, percent): characters of the most frequent n-gram."""
REPEATED = ((5, 15), (6, 14), (7, 13), (8, 12), (9, 11), (10, 10))
"""(n, percent): characters of n-grams that stood before."""


def without_boilerplate(text: str) -> str:
    """Without the lines that C4 takes for a page's own: those about Javascript, cookies and policies."""
    lowered = text.lower()
    if "javascript" not in lowered and not any(phrase in lowered for phrase in POLICIES):
        return text
    return "\n".join(line for line in text.split("\n") if not _is_boilerplate(line.lower()))


def _is_boilerplate(line: str) -> bool:
    return "javascript" in line or any(phrase in line for phrase in POLICIES)


def c4_lines(text: str) -> str:
    """The lines that C4 keeps: at least 5 words, and a full stop, question mark, exclamation mark or closing quotation
    mark at the end. Marks of citations ([1], [edit], [citation needed]) go first."""
    return "\n".join(
        line
        for line in CITATION.sub("", text).split("\n")
        if not line.strip() or (line.rstrip().endswith((".", "?", "!", '"', "”")) and len(line.split(None, 4)) == 5)
    )


def c4(text: str) -> str:
    """C4 drops a page with "lorem ipsum" or a curly bracket in it, or with fewer than 3 sentences.

    Its list of bad words is not here: it drops whole subjects and dialects (Dodge et al. 2021).
    """
    if "lorem ipsum" in text.lower():
        return "c4_lorem_ipsum"
    if "{" in text:
        return "c4_curly_bracket"
    return "c4_too_few_sentences" if sum(1 for _ in SENTENCE.finditer(text)) < 3 else ""


def gopher_quality(text: str) -> str:
    """Gopher's quality rules (A.1.1): 50 to 100,000 words of 3 to 10 characters on average; at most one # and one
    ellipsis for every 10 words; at most 90 % of the lines with a bullet, at most 30 % that end in an ellipsis; at least
    80 % of the words with a letter; at least two of the, be, to, of, and, that, have, with.
    """
    words = text.split()
    number = len(words)
    if not 50 <= number <= 100_000:
        return "gopher_word_count"
    if not 3 * number <= sum(map(len, words)) <= 10 * number:
        return "gopher_word_length"
    if text.count("#") * 10 > number:
        return "gopher_hash_ratio"
    if (text.count("...") + text.count("…")) * 10 > number:
        return "gopher_ellipsis_ratio"
    lines = _lines(text)
    if sum(line.lstrip().startswith(BULLETS) for line in lines) * 10 > 9 * len(lines):
        return "gopher_bullet_lines"
    if sum(line.rstrip().endswith(("...", "…")) for line in lines) * 10 > 3 * len(lines):
        return "gopher_ellipsis_lines"
    if sum(word.isalpha() or any(map(str.isalpha, word)) for word in words) * 10 < 8 * number:
        return "gopher_alphabetic_words"
    found = STOP_WORDS.intersection(word.strip(".,;:!?\"'“”‘’()[]").lower() for word in words)
    return "gopher_stop_words" if len(found) < 2 else ""


def gopher_repetition(text: str) -> str:
    """Gopher's repetition rules (table A1): more than

        30 % of the lines, or of the paragraphs, that stood before; 20 % of the characters in them
        20, 18, 16 % of the characters in the most frequent n-gram of n = 2, 3, 4 words
        15, 14, 13, 12, 11, 10 % of the characters in n-grams of n = 5 to 10 words that stood before

    A first occurrence is no repetition (as in datatrove), and a character counts once however many n-grams hold it.
    Characters of n-grams are those of words.
    """
    paragraphs = [part for part in text.split("\n\n") if part.strip()]
    for name, parts in (("line", _lines(text)), ("paragraph", paragraphs)):
        again, characters = _repeated(parts)
        if again * 100 > 30 * len(parts):
            return f"gopher_duplicate_{name}s"
        if characters * 100 > 20 * sum(map(len, parts)):
            return f"gopher_duplicate_{name}_characters"
    return _repeated_words(text.split())


def _lines(text: str) -> list[str]:
    return [line for line in text.split("\n") if line and not line.isspace()]


def _repeated(parts: Sequence[str]) -> tuple[int, int]:
    """How many stood before, and their characters."""
    seen: set[str] = set()
    number = characters = 0
    for part in parts:
        if part in seen:
            number += 1
            characters += len(part)
        seen.add(part)
    return number, characters


def _repeated_words(words: Sequence[str]) -> str:
    """The first rule about n-grams that a text breaks.

    An n-gram has a number: that of the (n-1)-gram it begins with and that of its last word, numbered again. So equal
    numbers are equal n-grams, without a hash.
    """
    import numpy as np

    codes: dict[str, int] = {}
    word = np.array([codes.setdefault(one, len(codes)) for one in words], np.int64)
    sizes = np.array([len(one) for one in words], np.int64)
    total = int(sizes.sum())
    limits = {**dict(TOP), **dict(REPEATED)}
    gram = word
    for n in range(2, 11):
        if len(gram) < 2:
            return ""
        pairs = gram[:-1] * len(codes) + word[n - 1 :]
        _, first, gram, counts = np.unique(pairs, return_index=True, return_inverse=True, return_counts=True)
        if int(counts.max()) == 1:  # then no longer n-gram stands twice
            return ""
        if n <= TOP[-1][0]:
            starts = gram == _most_frequent(gram, counts, first, n, sizes)
        else:
            starts = first[gram] != np.arange(len(gram))
        if int(_covered(starts, n, sizes)) * 100 > limits[n] * total:
            return f"gopher_top_{n}_gram" if n <= TOP[-1][0] else f"gopher_duplicate_{n}_grams"
    return ""


def _most_frequent(gram: Any, counts: Any, first: Any, n: int, sizes: Any) -> int:
    """The number of the most frequent n-gram; of several, that of the longest, then of the first."""
    import numpy as np

    ends = np.concatenate([[0], np.cumsum(sizes)])
    lengths = ends[first + n] - ends[first]
    return int(np.lexsort((first, -lengths, -counts))[0])


def _covered(starts: Any, n: int, sizes: Any) -> Any:
    """Characters of the words that an n-gram at one of the starts holds."""
    import numpy as np

    edges = np.zeros(len(sizes) + 1, np.int64)
    edges[: len(starts)] += starts
    edges[n : n + len(starts)] -= starts
    return sizes[np.cumsum(edges[:-1]) > 0].sum()
