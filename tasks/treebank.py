"""Sentences in CoNLL-U (universaldependencies.org/format.html): words with parts of speech and where they stand.

    1-2   don't   a range: what is written, of several words. Its words get the characters of their forms where these,
    1     do      end to end, are the range's; else (French "du": "de", "le") each gets the whole range's
    2     n't
    8.1   …       an empty node: no word, and counted

The text of a sentence is made of the forms and of SpaceAfter=No, so that every word's place in it is known. A sentence
with a row that cannot be used is left out whole, and counted by the reason of its first one:

    malformed     no ten columns, or an id that does not go on from the one before
    no_tag        a word without a part of speech
    undecodable   bytes that are not UTF-8
    empty_form    a word of blanks only
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .books import listed
from .errors import UsageError
from .examples import Files, TaggingConfig, Tell, drawn, is_held_out, key_of, paths, usable
from .labelled_files import is_unicode, read_text, tidied
from .progress import say

COLUMNS = 10


@dataclass(frozen=True)
class Word:
    """A syntactic word."""

    form: str
    tag: str
    start: int
    """Characters of the sentence that it stands for, from start to stop."""
    stop: int


@dataclass(frozen=True)
class Sentence:
    """A text in NFC and its words."""

    text: str
    words: tuple[Word, ...]


@dataclass(frozen=True)
class Treebank:
    """Sentences to train and to test on."""

    train: tuple[Sentence, ...]
    test: tuple[Sentence, ...]
    tags: tuple[str, ...]
    """Those of train, in order; behind them those that only test has."""
    counts: dict[str, int]
    unseen: int
    """Words of test whose tag train lacks: wrong for every model."""


class _BadSentence(ValueError):
    pass


def read_treebank(config: TaggingConfig, tell: Tell = say) -> Treebank:
    """Reads and parts a treebank as `examples.read_examples` does; tells what was left out.

    Raises UsageError, naming the file, for one that cannot be read or has no usable sentence, and for a train or a test
    set of one tag.
    """
    counts = Counter[str]()
    train = _sentences(config, config.train, counts, tell)
    if paths(config.test):
        test = _sentences(config, config.test, counts, tell)
        held = {key_of(one.text) for one in test}
        kept = [one for one in train if key_of(one.text) not in held]
        counts["train_also_in_test"] = len(train) - len(kept)
        train = kept
    else:
        test = [one for one in train if is_held_out(key_of(one.text))]
        train = [one for one in train if not is_held_out(key_of(one.text))]
    sizes = len(train), len(test)
    train, test = (
        drawn(some, [key_of(one.text) for one in some], most)
        for some, most in ((train, config.max_train), (test, config.max_test))
    )
    counts |= Counter(train_not_drawn=sizes[0] - len(train), test_not_drawn=sizes[1] - len(test))
    return _whole(config, train, test, counts, tell)


def _whole(
    config: TaggingConfig, train: list[Sentence], test: list[Sentence], counts: Counter[str], tell: Tell
) -> Treebank:
    for part, some in (("train", train), ("test", test)):
        found = sorted({word.tag for one in some for word in one.words})
        if len(found) < 2:
            what = f"only the tag {found[0]!r}" if found else "no sentence"
            raise UsageError(f"evaluation set {config.name}: its {part} set has {what}; give other files.")
    known = sorted({word.tag for one in train for word in one.words})
    tags = (*known, *sorted({word.tag for one in test for word in one.words} - set(known)))
    words = {f"{part}_words": sum(len(one.words) for one in some) for part, some in (("train", train), ("test", test))}
    unseen = sum(word.tag not in known for one in test for word in one.words)
    kept = {"train": len(train), "test": len(test), **words}
    left_out = {key: number for key, number in counts.items() if number}
    if unseen:
        left_out["test_label_not_in_train"] = unseen
    why = f"; left out or counted apart: {listed(left_out)}" if left_out else ""
    tell(f"evaluate: {config.name}: {len(train)} sentences to train on, {len(test)} to test on{why}")
    return Treebank(tuple(train), tuple(test), tags, kept | left_out, unseen)


def _sentences(config: TaggingConfig, files: Files, counts: Counter[str], tell: Tell) -> list[Sentence]:
    found: list[Sentence] = []
    for path in paths(files):
        rows = list(sentences(path, counts))
        found += usable(config.name, path, rows, counts, tell)
    return found


def sentences(path: Path, counts: Counter[str]) -> Iterator[tuple[int, Sentence | str]]:
    """Every sentence with the number of its first line, or the reason why it is left out with the number of the row.

    counts    gets the empty nodes
    """
    block: list[tuple[int, str]] = []
    for number, line in enumerate([*read_text(path, "utf-8").split("\n"), ""], 1):
        line = line.removesuffix("\r")
        if line.strip():
            if not line.startswith("#"):
                block.append((number, line))
        elif block:
            at = block[0][0]
            try:
                yield at, _sentence(block, counts)
            except _BadSentence as error:
                yield error.args
            block = []


def _sentence(block: Sequence[tuple[int, str]], counts: Counter[str]) -> Sentence:
    """A sentence of its rows; raises _BadSentence(line, reason)."""
    text, words, empty = "", list[Word](), 0
    range_end, range_start = 0, 0
    pending: list[tuple[str, str]] = []
    for number, line in block:
        cells = line.split("\t")
        if not is_unicode(line):
            raise _BadSentence(number, "undecodable")
        if len(cells) != COLUMNS:
            raise _BadSentence(number, "malformed")
        name, form, tag, misc = cells[0], tidied(cells[1]), cells[3].strip(), cells[9]
        if "." in name:
            empty += 1
            continue
        if not form:
            raise _BadSentence(number, "empty_form")
        space = "" if "SpaceAfter=No" in misc.split("|") else " "
        first, dash, last = name.partition("-")
        expected = len(words) + len(pending) + 1
        if first != str(expected) or (dash and (range_end or _number(last) <= expected)):
            raise _BadSentence(number, "malformed")
        if dash:
            range_end, range_start, text = int(last), len(text), text + form + space
            continue
        if tag in ("", "_"):
            raise _BadSentence(number, "no_tag")
        if not range_end:
            words.append(Word(form, tag, len(text), len(text) + len(form)))
            text += form + space
            continue
        pending.append((form, tag))
        if expected == range_end:
            words += _placed(pending, text, range_start)
            pending, range_end = [], 0
    if range_end or not words:
        raise _BadSentence(block[-1][0], "malformed")
    counts["empty_nodes"] += empty
    return Sentence(text.rstrip(), tuple(words))


def _number(name: str) -> int:
    """0 for what numbers no word. Python itself refuses to read thousands of digits."""
    return int(name) if name.isdecimal() and len(name) < 10 else 0


def _placed(pending: Sequence[tuple[str, str]], text: str, start: int) -> list[Word]:
    """The words of a range, which is the end of the text so far."""
    surface = text[start:].rstrip()
    if "".join(form for form, _ in pending) != surface:
        return [Word(form, tag, start, start + len(surface)) for form, tag in pending]
    found = []
    for form, tag in pending:
        found.append(Word(form, tag, start, start + len(form)))
        start += len(form)
    return found
