"""Sets of labelled examples that a model is tried on: what a recipe says of them, and train and test made of files.

What is held out is a function of the texts alone. Without files for test, a fifth of the examples is: those whose text
(in NFC, blanks and case ignored) hashes below 1/5, so equal texts never stand on both sides and the order of the file
does not matter. With files for test, an example of train whose text also stands in test is left out of train.
"""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from .books import listed
from .errors import UsageError
from .labelled_files import FORMATS, Columns, Example, Row, format_of, rows
from .progress import say

Files = str | tuple[str, ...] | Mapping[str, str]
HELD_OUT = (1 << 64) // 5
"""Hashes below it, of 64 bits, are held out."""
METRICS = ("accuracy", "mcc", "macro_f1")
LEAST_SEEDS = 3
T = TypeVar("T")
Tell = Callable[[str], object]
NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")


@dataclass(frozen=True)
class FineTuning:
    """Training of the whole encoder on the examples. CoLA costs a model of 6 x 256 some 72 core seconds an epoch."""

    enabled: bool = True
    """Whether it is done beside the probe of the frozen encoder."""
    epochs: int = 3
    """Times that the examples are shown; kept is the epoch that is best on a tenth of them."""
    learning_rate: float = 0.0
    """At its highest; 0 is 20 / width², at most 1e-3: 3e-4 for a width of 256, 3.4e-5 for one of 768."""
    batch: int = 32
    """Examples of a step."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1 or not 0 <= self.learning_rate < 1:
            raise UsageError(
                f"fine_tuning: epochs {self.epochs} and batch {self.batch} must be at least 1, learning_rate "
                f"{self.learning_rate} from 0 to below 1."
            )


@dataclass(frozen=True)
class ClassificationConfig:
    """A set of texts, or pairs of texts, with classes."""

    name: str
    """What it is called in the report and in metrics, such as cola."""
    train: Files
    """A file, a list of files, or class: file where each class has its own."""
    test: Files = ()
    """The same; none holds out a fifth of `train` by a hash of the text."""
    format: str = ""
    """jsonl, csv, tsv, cola, rte or lines; "" goes by the files' names (lines where each class has a file)."""
    text: str = "text"
    """Key or column of the text; a number, from 1, where the file has no header."""
    label: str = "label"
    """Key or column of the class."""
    pair: str = ""
    """Key or column of a second text; "" for none."""
    encoding: str = "utf-8"
    """Of the files; XML says its own."""
    metric: str = "accuracy"
    """The figure that counts: accuracy, mcc (Matthews correlation; two classes) or macro_f1."""
    seeds: int = 3
    """Times that each model is trained, at least 3."""
    fine_tuning: FineTuning = field(default_factory=FineTuning)
    """How the whole encoder is trained."""
    max_train: int = 0
    """Examples to train on at most, drawn by a hash of their texts; 0 takes all."""
    max_test: int = 0
    """Examples to test on at most, likewise."""

    def __post_init__(self) -> None:
        check(self.name, self.seeds, self.max_train, self.max_test)
        for key, value, known in (("format", self.format, ("", *FORMATS)), ("metric", self.metric, METRICS)):
            if value not in known:
                raise UsageError(
                    f"evaluation set {self.name}: {key} is {value!r}; use {', '.join(filter(None, known))}."
                )
        if not self.text or not self.label:
            raise UsageError(f"evaluation set {self.name}: `text` and `label` name a key or a column; give both.")
        if len({column.isdecimal() for column in Columns(self.text, self.label, self.pair).asked}) > 1:
            raise UsageError(
                f"evaluation set {self.name}: give `text`, `pair` and `label` all as names or all as numbers."
            )
        if not paths(self.train):
            raise UsageError(f"evaluation set {self.name}: `train` names no file.")


@dataclass(frozen=True)
class TaggingConfig:
    """Sentences in CoNLL-U whose words have parts of speech (UPOS)."""

    name: str
    """What it is called in the report and in metrics, such as ud_ewt."""
    train: Files
    """A file or a list of files."""
    test: Files = ()
    """The same; none holds out a fifth of the sentences of `train` by a hash of their text."""
    seeds: int = 3
    """Times that each model is trained, at least 3."""
    fine_tuning: FineTuning = field(default_factory=lambda: FineTuning(epochs=6))
    """How the whole encoder is trained."""
    max_train: int = 0
    """Sentences to train on at most, drawn by a hash of their texts; 0 takes all."""
    max_test: int = 0
    """Sentences to test on at most, likewise."""

    def __post_init__(self) -> None:
        check(self.name, self.seeds, self.max_train, self.max_test)
        if isinstance(self.train, Mapping) or isinstance(self.test, Mapping) or not paths(self.train):
            raise UsageError(f"evaluation set {self.name}: give `train` and `test` as a file or a list of files.")


@dataclass(frozen=True)
class ExampleSet:
    """What a model is trained and tested on."""

    train: tuple[Example, ...]
    test: tuple[Example, ...]
    labels: tuple[str, ...]
    """Classes of train, in order; behind them those that only test has, which no model can name."""
    counts: Mapping[str, int]
    """What was read, and what was left out, by reason."""
    unseen: int
    """Test examples of a class that train lacks: wrong for every model."""


def check(name: str, seeds: int, max_train: int, max_test: int) -> None:
    """Raises UsageError for what no evaluation set can have."""
    if not NAME.fullmatch(name):
        raise UsageError(f"An evaluation set is called {name!r}; use lower case letters, digits, _, - and dots.")
    if seeds < LEAST_SEEDS:
        raise UsageError(
            f"evaluation set {name}: seeds is {seeds}; fewer than {LEAST_SEEDS} say nothing of the spread."
        )
    if max_train < 0 or max_test < 0:
        raise UsageError(f"evaluation set {name}: max_train and max_test are at least 0, which takes all.")


def paths(files: Files) -> list[Path]:
    """The files that a recipe names."""
    if isinstance(files, str):
        return [Path(files)]
    return [Path(one) for one in (files.values() if isinstance(files, Mapping) else files)]


def read_examples(config: ClassificationConfig, tell: Tell = say) -> ExampleSet:
    """Reads and parts a set; tells what was left out.

    Raises UsageError, naming the file, for one that cannot be read or has no usable row, and for a train or a test set
    of one class.
    """
    counts = Counter[str]()
    train = [one for file in _sorted_out(config, config.train) for one in _usable(config, *file, counts, tell)]
    if paths(config.test):
        test = [one for file in _sorted_out(config, config.test) for one in _usable(config, *file, counts, tell)]
        held = {key_of(*one.texts) for one in test}
        kept = [one for one in train if key_of(*one.texts) not in held]
        counts["train_also_in_test"] = len(train) - len(kept)
        train = kept
    else:
        test = [one for one in train if is_held_out(key_of(*one.texts))]
        train = [one for one in train if not is_held_out(key_of(*one.texts))]
    sizes = len(train), len(test)
    train, test = (
        drawn(some, [key_of(*one.texts) for one in some], most)
        for some, most in ((train, config.max_train), (test, config.max_test))
    )
    counts |= Counter(train_not_drawn=sizes[0] - len(train), test_not_drawn=sizes[1] - len(test))
    return _whole(config, train, test, counts, tell)


def _whole(
    config: ClassificationConfig, train: Sequence[Example], test: Sequence[Example], counts: Counter[str], tell: Tell
) -> ExampleSet:
    for part, some in (("train", train), ("test", test)):
        found = sorted({one.label for one in some})
        if len(found) < 2:
            what = f"only the class {found[0]!r}" if found else "no example"
            raise UsageError(
                f"evaluation set {config.name}: its {part} set has {what}, so every model would look the same; "
                f"correct `label`, or give other files."
            )
    known = sorted({one.label for one in train})
    labels = (*known, *sorted({one.label for one in test} - set(known)))
    if config.metric == "mcc" and len(labels) > 2:
        raise UsageError(
            f"evaluation set {config.name}: mcc is of two classes, and it has {len(labels)}; use accuracy or macro_f1."
        )
    unseen = sum(one.label not in known for one in test)
    kept = {"train": len(train), "test": len(test), **{key: number for key, number in counts.items() if number}}
    if unseen:
        kept["test_label_not_in_train"] = unseen
    left_out = {key: number for key, number in kept.items() if key not in ("train", "test")}
    why = f"; left out or counted apart: {listed(left_out)}" if left_out else ""
    tell(f"evaluate: {config.name}: {len(train)} examples to train on, {len(test)} to test on{why}")
    return ExampleSet(tuple(train), tuple(test), labels, kept, unseen)


def _sorted_out(config: ClassificationConfig, files: Files) -> Iterable[tuple[Path, str, str]]:
    """Each file with its format and the class of all of its rows."""
    if isinstance(files, Mapping):
        return [(Path(path), config.format or "lines", label) for label, path in files.items()]
    if config.format == "lines":
        raise UsageError(
            f"evaluation set {config.name}: in a file of lines nothing says the class; give `train` and `test` as "
            "class: file."
        )
    return [(path, config.format or format_of(path), "") for path in paths(files)]


def _usable(
    config: ClassificationConfig, path: Path, form: str, label: str, counts: Counter[str], tell: Tell
) -> list[Example]:
    if label and form != "lines":
        raise UsageError(f"evaluation set {config.name}: class: file goes with the format lines only; it is {form!r}.")
    found: list[Row] = list(rows(path, form, Columns(config.text, config.label, config.pair), config.encoding, label))
    return usable(config.name, path, found, counts, tell)


def usable(name: str, path: Path, found: Sequence[tuple[int, T | str]], counts: Counter[str], tell: Tell) -> list[T]:
    """The rows that are no reasons; those are counted, and the first one is told with its line.

    Raises UsageError for a file that has no usable row.
    """
    lost = [(number, reason) for number, reason in found if isinstance(reason, str)]
    kept = [one for _, one in found if not isinstance(one, str)]
    why = f"{listed(Counter(reason for _, reason in lost))}, first in line {lost[0][0]}" if lost else "it is empty"
    if not kept:
        raise UsageError(f"evaluation set {name}: {path} has no usable row: {why}; correct its format and its keys.")
    if lost:
        tell(f"evaluate: {name}: {path.name}: {len(kept)} of {len(found)} rows are used; left out {why}")
    counts.update(reason for _, reason in lost)
    return kept


def key_of(*texts: str) -> str:
    """Texts that are equal but for blanks, case and the way characters are composed have the same key."""
    return "\n".join(" ".join(unicodedata.normalize("NFC", text).casefold().split()) for text in texts)


def is_held_out(key: str) -> bool:
    """Whether an example belongs to test where no files say so."""
    return _hashed(key) < HELD_OUT


def drawn(some: Sequence[T], keys: Sequence[str], most: int) -> list[T]:
    """`most` of them by the hash of their keys, in their order; all where it is 0. The order of a file has no part."""
    if not most or len(some) <= most:
        return list(some)
    # A second hash: by the first one, the largest or smallest are those that were held out.
    order = sorted(range(len(some)), key=lambda number: (_hashed(f"draw\n{keys[number]}"), number))
    return [some[number] for number in sorted(order[:most])]


def _hashed(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
