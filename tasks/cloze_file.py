"""Sentences with one word missing and the words that may stand there, in a file.

JSONL: {"text": "The capital of France is [MASK].", "answers": ["Paris"]}. One mask an item: of several, the answers
would depend on each other, and which belongs to which is not said. An answer counts as it is written, capitals
included.
"""

from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from .errors import UsageError
from .evaluation_sets import LeftOut, check_name, files_of, is_text, objects_of

MASK = "[MASK]"
"""In a text, whatever a vocabulary calls it."""


@dataclass(frozen=True)
class ClozeConfig:
    """One evaluation set."""

    name: str
    file: str
    """A JSONL; patterns as of the shell."""
    max_items: int = 0
    """Drawn by a hash of their text; 0 takes all."""

    def __post_init__(self) -> None:
        check_name(self.name, "cloze")
        if self.max_items < 0:
            raise UsageError(
                f"cloze {self.name}: max_items must be at least 0 (all items), but it is {self.max_items}; correct it."
            )


@dataclass(frozen=True)
class Item:
    """A question."""

    text: str
    answers: tuple[str, ...]
    """Each once; any of them is right."""

    @property
    def whole(self) -> str:
        """The text with its first answer."""
        return self.text.replace(MASK, self.answers[0])


def items_of(config: ClozeConfig) -> tuple[list[Item], int, LeftOut]:
    """The items drawn, in an order in which lines take no part; how many there are; what was left out.

    Raises UsageError where there is no item.
    """
    items: list[Item] = []
    left_out = LeftOut()
    for path in files_of((config.file,), config.name):
        for number, row in objects_of(path, left_out):
            item, reason = _item(row)
            if item is None:
                left_out.add(reason, path, number)
            else:
                items.append(item)
    if not items:
        why = f": {left_out}" if left_out.counts else ""
        raise UsageError(f"evaluation set {config.name}: {config.file} has no item{why}; correct it.")
    items.sort(key=lambda item: blake2b("\n".join((item.text, *item.answers)).encode(), digest_size=8).digest())
    return items[: config.max_items or None], len(items), left_out


def _item(row: dict[str, Any]) -> tuple[Item | None, str]:
    """The item of a row, or why it is none."""
    text, answers = row.get("text"), row.get("answers")
    if not is_text(text):
        return None, "without_text"
    masks = str(text).count(MASK)
    if masks != 1:
        return None, "with_several_masks" if masks else "without_mask"
    listed = answers if isinstance(answers, list) else []
    some = tuple(dict.fromkeys(answer.strip() for answer in listed if is_text(answer) and answer.strip()))
    return (Item(str(text), some), "") if some else (None, "without_answers")
