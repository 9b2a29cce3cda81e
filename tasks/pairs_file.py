"""Pairs of a good and a bad sentence, in files.

BLiMP (Warstadt et al. 2020) is JSONL: sentence_good, sentence_bad, UID (the paradigm; the file's name where it is
missing), linguistics_term or field (the phenomenon). Zorro (Huebner et al. 2021) comes in the same form, or as text: an
odd line is bad, the even line after it good, and the file is called phenomenon-paradigm.txt.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from .errors import UsageError
from .evaluation_sets import LeftOut, check_name, files_of, is_text, lines_of, objects_of

UNNAMED = "unnamed"
"""Phenomenon of pairs whose file names none."""


@dataclass(frozen=True)
class MinimalPairsConfig:
    """One evaluation set."""

    name: str
    files: tuple[str, ...]
    """*.jsonl and *.txt; patterns as of the shell."""
    max_pairs: int = 0
    """Of a paradigm, drawn by a hash of their text; 0 takes all. Those of a smaller number are among those of a larger
    one."""
    rare: int = 10
    """A word that stands fewer times in the train split is hardly seen."""

    def __post_init__(self) -> None:
        check_name(self.name, "minimal pairs")
        if self.max_pairs < 0 or self.rare < 1:
            raise UsageError(
                f"minimal pairs {self.name}: max_pairs must be at least 0 (all pairs) and rare at least 1, "
                f"but they are {self.max_pairs} and {self.rare}; correct them."
            )


@dataclass(frozen=True)
class Pair:
    """A good and a bad sentence."""

    good: str
    bad: str
    phenomenon: str
    paradigm: str


def pairs_of(config: MinimalPairsConfig) -> tuple[list[Pair], LeftOut]:
    """The pairs of a set's files, and what was left out. Raises UsageError where there is no pair, and for a file of no
    known format."""
    pairs: list[Pair] = []
    left_out = LeftOut()
    for path in files_of(config.files, config.name):
        reader = READERS.get(path.suffix)
        if reader is None:
            raise UsageError(f"evaluation set {config.name}: {path} is neither .jsonl nor .txt; name other files.")
        pairs += reader(path, left_out)
    if not pairs:
        why = f": {left_out}" if left_out.counts else ""
        raise UsageError(f"evaluation set {config.name} has no pair of sentences{why}; correct its files.")
    return pairs, left_out


def _from_jsonl(path: Path, left_out: LeftOut) -> list[Pair]:
    pairs = []
    for number, row in objects_of(path, left_out):
        good, bad = row.get("sentence_good"), row.get("sentence_bad")
        if not (is_text(good) and is_text(bad)):
            left_out.add("without_two_sentences", path, number)
            continue
        named = (row.get("linguistics_term"), row.get("field"), UNNAMED)
        phenomenon = next(name for name in named if is_text(name) and name)
        paradigm = row.get("UID")
        paradigm = paradigm if is_text(paradigm) and paradigm else path.stem
        pairs += _checked(Pair(str(good), str(bad), str(phenomenon), str(paradigm)), left_out, path, number)
    return pairs


def _from_text(path: Path, left_out: LeftOut) -> list[Pair]:
    lines = lines_of(path)
    if len(lines) % 2:
        raise UsageError(
            f"{path} has {len(lines)} lines, an odd number, so its bad (odd) and good (even) lines cannot be told "
            "apart; correct the file."
        )
    phenomenon = path.stem.rpartition("-")[0] or UNNAMED
    pairs = []
    for number in range(0, len(lines), 2):
        bad, good = lines[number : number + 2]
        if bad is None or good is None:
            left_out.add("not_utf8", path, number + 1)
        else:
            # The whole name: agreement_subject_verb and local_attractor both have an in_question_with_aux.
            pairs += _checked(Pair(good, bad, phenomenon, path.stem), left_out, path, number + 1)
    return pairs


READERS: dict[str, Callable[[Path, LeftOut], list[Pair]]] = {".jsonl": _from_jsonl, ".txt": _from_text}


def _checked(pair: Pair, left_out: LeftOut, path: Path, line: int) -> list[Pair]:
    reason = "" if pair.good.strip() and pair.bad.strip() else "empty"
    if not reason and pair.good == pair.bad:
        reason = "of_equal_sentences"
    if reason:
        left_out.add(reason, path, line)
    return [] if reason else [pair]


def drawn(pairs: Iterable[Pair], most: int) -> list[Pair]:
    """`most` pairs of each paradigm (0: all), in an order in which neither files nor lines take part."""

    def key(pair: Pair) -> tuple[str, str, bytes]:
        text = f"{pair.good}\n{pair.bad}".encode()
        return pair.phenomenon, pair.paradigm, blake2b(text, digest_size=8).digest()

    groups: dict[tuple[str, str], list[Pair]] = defaultdict(list)
    for pair in sorted(pairs, key=key):
        groups[pair.phenomenon, pair.paradigm].append(pair)
    return [pair for some in groups.values() for pair in some[: most or None]]
