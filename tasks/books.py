"""The books of a source: documents, bytes and characters, what came in and what became of it.

    in = kept + each reject reason (+ what cleaning took off, in bytes and characters)

Bytes are those of the text in UTF-8; of what never became a text, those of the line, row or file that was refused.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from .errors import DataError

UNITS = ("documents", "bytes", "characters")
DROPPED = {
    "empty", "too_short", "too_long", "language", "not_prose", "duplicate", "repeated", "over_budget",
    "near_duplicate", "near_heldout", "evaluation_leak", "downsampled",
}  # fmt: skip
"""No fault of the data: counted here, but no line in the quarantine. The filters' (c4_…, gopher_…) neither."""


def is_fault(reason: str) -> bool:
    """Is it something wrong with the data, which belongs into the quarantine?"""
    return reason not in DROPPED and not reason.startswith(("c4_", "gopher_"))


def listed(numbers: Mapping[str, int]) -> str:
    """The commonest first."""
    return ", ".join(f"{number} {name}" for name, number in sorted(numbers.items(), key=lambda one: (-one[1], one[0])))


def per_cent(part: int, whole: int) -> str:
    """In per cent."""
    return f"{100 * part / whole:.0f} %" if whole else "0 %"


class Books:
    """[documents, bytes, characters] of what came in, of each reason, and of what cleaning took off."""

    def __init__(self) -> None:
        self.came = [0, 0, 0]
        self.rejected: dict[str, list[int]] = {}
        self.cleaned = [0, 0]
        """Bytes and characters; below zero where a step made texts longer."""
        self.changed: dict[str, int] = {}
        """Cleaning step -> documents that it changed."""

    def take(self, size: int, characters: int, reason: str = "") -> None:
        """A document (or what should have been one) came in; with a reason, it goes no further."""
        self.came = [self.came[0] + 1, self.came[1] + size, self.came[2] + characters]
        if reason:
            self.reject(reason, 1, size, characters)

    def clean(self, steps: Sequence[str], size: int, characters: int) -> None:
        """These steps changed a document, and took so many bytes and characters off it."""
        self.cleaned = [self.cleaned[0] + size, self.cleaned[1] + characters]
        for step in steps:
            self.changed[step] = self.changed.get(step, 0) + 1

    def reject(self, reason: str, *numbers: int) -> None:
        """So many documents, bytes and characters go no further."""
        _add(self.rejected.setdefault(reason, [0, 0, 0]), numbers)

    def facts(self) -> dict[str, Any]:
        return {
            "came": self.came,
            "rejected": self.rejected,
            "cleaned": self.cleaned,
            "changed": self.changed,
        }

    def add(self, facts: Mapping[str, Any]) -> None:
        """Adds the books of a file."""
        _add(self.came, facts["came"])
        _add(self.cleaned, facts["cleaned"])
        for reason, numbers in facts["rejected"].items():
            self.reject(reason, *numbers)
        for step, number in facts["changed"].items():
            self.changed[step] = self.changed.get(step, 0) + number

    def faults(self) -> dict[str, list[int]]:
        """Reason -> documents, bytes, characters, of what is wrong with the data."""
        return {reason: numbers for reason, numbers in self.rejected.items() if is_fault(reason)}

    def page(self, source: str, kept: Sequence[int]) -> dict[str, Any]:
        """The books as the manifest has them. Raises DataError when they do not balance."""
        lost = [sum(numbers[unit] for numbers in self.rejected.values()) for unit in range(3)]
        off = [0, *self.cleaned]
        if self.came != [kept[unit] + lost[unit] + off[unit] for unit in range(3)]:
            raise DataError(
                f"The books of source {source} do not balance: {self.came} documents, bytes and characters in, "
                f"{list(kept)} kept, {lost} rejected, {off} cleaned off; please report this."
            )
        page: dict[str, Any] = {"source": source}
        for unit, name in enumerate(UNITS):
            page |= {f"{name}_in": self.came[unit], f"{name}_kept": kept[unit]}
        page |= {"bytes_cleaned": self.cleaned[0], "characters_cleaned": self.cleaned[1]}
        page["changed"] = dict(sorted(self.changed.items()))
        page["rejected"] = {reason: dict(zip(UNITS, numbers)) for reason, numbers in sorted(self.rejected.items())}
        return page


def _add(to: list[int], numbers: Sequence[int]) -> None:
    to[:] = [a + b for a, b in zip(to, numbers, strict=True)]
