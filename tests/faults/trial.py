"""One fault, injected once, and what may come of it.

The matrix (README, "What is promised") has a family of trials for each kind of fault. A family is a module with

    def trials() -> list[Trial]      all of them, in a fixed order, each repeatable from its words alone

and a trial is a function of an empty folder. It returns what became of the work, or raises Failed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Verdict = Literal["recovered", "withstood", "refused"]
"""recovered    the run ended as documented, and the same command ended in the artifacts of an undisturbed run
withstood    the run itself ended in these artifacts
refused      what is hostile or damaged was refused by name, and nothing else was lost
"""
Fault = Literal["silent", "hang", "undocumented", "different", "litter", "lost"]
"""silent        a damaged or wrong artifact was readable under a final name, or used, without a word
hang          it did not end in its time
undocumented  another exit status than the documented one, a traceback, or a message that names no file
different     the same command did not end in the artifacts of an undisturbed run
litter        temporary files stayed
lost          more than one unit of work was done again
"""


class Failed(AssertionError):
    """A finding."""

    def __init__(self, fault: Fault, what: str) -> None:
        super().__init__(f"{fault}: {what}")
        self.fault, self.what = fault, what


@dataclass(frozen=True)
class Outcome:
    """What became of a trial that went as it should."""

    verdict: Verdict
    lost: float = 0.0
    """Seconds of work that were done again."""
    note: str = ""


@dataclass(frozen=True)
class Trial:
    """One fault at one place."""

    family: str
    """F1 to F15."""
    place: str
    """A stage, a file, a parser."""
    detail: str
    """Which system call, bit, signal or seed: with family and place enough to repeat it."""
    cost: float
    """Seconds on a quiet core, about: a selection for a given time goes by it."""
    run: Callable[[Path], Outcome]
    """In an empty folder of its own."""

    @property
    def name(self) -> str:
        return f"{self.family} {self.place} {self.detail}"
