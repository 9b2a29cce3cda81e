"""What an evaluation is asked: the settings of the stage, and what its evaluation sets are as a part of an identity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .artifacts import file_digest
from .cloze_file import ClozeConfig, items_of
from .errors import UsageError
from .evaluation_sets import files_of
from .examples import ClassificationConfig, TaggingConfig, read_examples
from .hardware import device_kind, thread_count
from .masking import spelling
from .pairs_file import MinimalPairsConfig, pairs_of
from .passages import PseudoLikelihoodConfig
from .treebank import read_treebank

MASK = "[MASK]"
"""In a sentence of the recipe, whatever the vocabulary calls it."""
SETS = ("minimal_pairs", "cloze", "classification", "tagging")
"""Keys that list evaluation sets."""
FILES = ("file", "files", "train", "test")
"""Keys of an evaluation set that name files."""
NOT_IDENTITY: set[str] = set()


@dataclass(frozen=True)
class EvaluateConfig:
    """What is asked of the model."""

    rates: tuple[str, ...] = ("0.15", "0.3", "0.5")
    """Mask rates to score at; the rate of the shards always comes along."""
    pseudo_likelihood: PseudoLikelihoodConfig = field(default_factory=PseudoLikelihoodConfig)
    """Passages whose tokens are asked for one by one: bits per byte."""
    minimal_pairs: tuple[MinimalPairsConfig, ...] = ()
    """Sets of a good and a bad sentence, as BLiMP and Zorro have them."""
    cloze: tuple[ClozeConfig, ...] = ()
    """Sets of sentences with one [MASK] and what may stand there."""
    classification: tuple[ClassificationConfig, ...] = ()
    """Sets of texts with classes, on which the encoder is tried and fine-tuned."""
    tagging: tuple[TaggingConfig, ...] = ()
    """Sets of sentences whose words have parts of speech."""
    sentences: tuple[str, ...] = (
        "She opened the [MASK] and looked at him.",
        "It was the [MASK] of the day.",
        "Return a list of all the [MASK] in the file.",
    )
    """Texts with a [MASK], whose top-5 predictions go into the report."""
    rows_per_batch: int = 64
    """Rows scored at a time; changes digits behind the fifth only."""
    max_rows: int = 0
    """Rows of the test split to score, drawn evenly from it; 0 takes all."""
    device: str = "cpu"
    """auto, cpu or cuda."""
    threads: int = 0
    """CPU threads; 0 takes all cores. Part of the identity: sums are split by thread."""

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "rates", tuple(spelling(rate) for rate in self.rates))
        except UsageError as error:
            raise UsageError(f"evaluate.rates: {error}") from None
        if self.rows_per_batch < 1 or self.max_rows < 0:
            raise UsageError("evaluate.rows_per_batch must be at least 1, and evaluate.max_rows at least 0 (all rows).")
        for text in self.sentences:
            if MASK not in text:
                raise UsageError(f"evaluate.sentences: {text!r} holds no {MASK}; put one where a token is missing.")
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise UsageError(f"evaluate.sentences: {text!r} has half of a surrogate pair; give whole characters.")
        names = [one.name for key in SETS for one in getattr(self, key)]
        for name in names:
            if names.count(name) > 1 or name == "pseudo_likelihood" or name.startswith("rate_"):
                raise UsageError(f"evaluate: two evaluation sets are called {name!r}; give each a name of its own.")


def settings(config: EvaluateConfig) -> dict[str, Any]:
    """What of the settings makes a difference to the report: of files what is in them, not where they lie.

    Raises UsageError for a file that is not there.
    """
    found = {name: value for name, value in asdict(config).items() if name not in NOT_IDENTITY}
    found |= {"device": device_kind(config.device), "threads": thread_count(config.threads)}
    for key in SETS:
        found[key] = [_contents(entry) for entry in found[key]]
    return found


def check_sets(config: EvaluateConfig) -> None:
    """Reads every evaluation set: one that cannot be used shall not be noticed after hours of training.

    Raises UsageError, naming the set and the file.
    """
    for pairs in config.minimal_pairs:
        pairs_of(pairs)
    for cloze in config.cloze:
        items_of(cloze)
    for texts in config.classification:
        read_examples(texts, tell=lambda line: None)  # the stage tells
    for sentences in config.tagging:
        read_treebank(sentences, tell=lambda line: None)


def _contents(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry with its files by name and content. Those of `files` have no order; the rows of train and test do."""
    found = dict(entry)
    for key in FILES:
        if found.get(key):
            some = [
                {"name": path.name, "sha256": file_digest(path), **({"class": label} if label else {})}
                for label, path in _named(found[key], entry["name"])
            ]
            ordered = key in ("train", "test")
            found[key] = some if ordered else sorted(some, key=lambda one: (one["name"], one["sha256"]))
    return found


def _named(files: str | Mapping[str, str] | tuple[str, ...] | list[str], name: str) -> Iterator[tuple[str, Path]]:
    """(class, path) of every file of an entry, as the recipe has them."""
    if isinstance(files, Mapping):
        pairs = list(files.items())
    else:
        pairs = [("", file) for file in ((files,) if isinstance(files, str) else files)]
    for label, file in pairs:
        yield from ((label, path) for path in files_of((file,), name))
