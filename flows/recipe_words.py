"""What is said of a recipe that is wrong: what was expected and given, the key that was meant, how to write it."""

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import yaml

SOURCES = ("sources", "evaluation_files")
"""The keys of corpus that list sources."""
ENTRIES: dict[str, dict[str, Any]] = {
    **{f"corpus.{name}": {"uri": "FILE"} for name in SOURCES},
    "evaluate.minimal_pairs": {"name": "NAME", "files": ["FILE"]},
    "evaluate.cloze": {"name": "NAME", "file": "FILE"},
    "evaluate.classification": {"name": "NAME", "train": "FILE"},
    "evaluate.tagging": {"name": "NAME", "train": "FILE"},
}
"""Keys that hold a list of groups of settings -> what each group needs at least."""
RENAMED = {
    "pretrain.rows_per_step": "pretrain.batch_tokens (rows times shards.length)",
    "pretrain.micro_rows": "pretrain.micro_tokens (rows times shards.length)",
}
"""Keys of before -> what to write."""
LONGEST = 60
"""Characters of a value in a message."""
Path_: TypeAlias = tuple[str, ...]
"""A key by its parts: pretrain.steps is ("pretrain", "steps")."""


EXPECTED = {
    "int": "a whole number is expected",
    "float": "a number is expected",
    "string": "a text or a number is expected",
    "bool": "true or false is expected",
    "tuple": "a list is expected",
    "dataclass": "this is a group of settings, so keys belong below it",
}
"""How pydantic's names of what is wrong begin -> what to say."""


def expected(wrong: Any) -> str:
    """What pydantic found wrong with a value, in words: what is expected, and what was given."""
    kind, given = wrong["type"].partition("_")[0], wrong["input"]
    what = EXPECTED.get(kind, wrong["msg"].removeprefix("Value error, ").replace("Input should be", "use"))
    if kind == "tuple" and isinstance(given, str | int | float):
        what += f", such as {shown([given])}"
    if kind == "string" and isinstance(given, bool):
        what += " (true and false are no text; quote them where they are meant as words)"
    return f"{what}, not {shown(given)}"


def shown(value: Any) -> str:
    """A value as one writes it in a recipe, on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False)
    text = repr(value) if isinstance(value, str) else text.removesuffix("...\n").strip()
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def no_values(value: Any, key: Path_ = ()) -> Iterator[tuple[Path_, str]]:
    """(key, what is wrong) for what YAML knows and a recipe does not: dates, infinity, keys that are no text."""
    if isinstance(value, Mapping | list):
        for name, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from no_values(inner, (*key, str(name)))
    elif isinstance(value, float) and not math.isfinite(value):
        yield key, f"a finite number is expected, not {shown(value)}"
    elif not isinstance(value, str | int | float | None):
        yield (
            key,
            f"a text, a number or a list is expected, not a {type(value).__name__}; quote what is meant as a text",
        )


def whole(above: str, key: str, value: Any) -> str:
    """How a key of a source or an evaluation set is set on the command line: a list can only be given whole."""
    if above not in ENTRIES:
        return f"--set '{above}=[…]'"
    entry: dict[str, Any] = ENTRIES[above] | ({} if key.isdecimal() else {key: value})
    text = yaml.safe_dump(entry, default_flow_style=True, sort_keys=False, width=10**6).strip()
    return f"--set '{above}=[{text}]'"


def unknown(key: Path_, keys: Sequence[Path_]) -> str:
    """What to say of a key that does not exist: the nearest beside it, else the same word elsewhere, else all."""
    place = tuple(part for part in key[:-1] if not part.isdecimal())  # entries of a list have the same keys
    beside = [known[-1] for known in keys if known[:-1] == place]
    near = difflib.get_close_matches(key[-1], beside, 1)
    elsewhere = [".".join(known) for known in keys if known[-1] == key[-1]]
    others = [".".join(known) for known in keys if known != key[: len(known)]]
    anywhere = difflib.get_close_matches(".".join(key), others, 1) if len(place) < 2 else []
    if renamed := RENAMED.get(".".join(key)):
        hint = f"it is {renamed} now."
    elif near:
        hint = f"did you mean {'.'.join((*key[:-1], near[0]))}?"
    elif elsewhere or anywhere:
        meant = (elsewhere or anywhere)[0]
        above, _, last = meant.rpartition(".")
        in_list = next((name for name in ENTRIES if above == name or above.startswith(f"{name}.")), "")
        hint = f"did you mean {meant}?" + (f" Write {whole(in_list, last, 'VALUE')}." if in_list == above else "")
    else:
        hint = f"known here: {', '.join(beside)}."
    return f"unknown key {'.'.join(key)}; {hint}"
