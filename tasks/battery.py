"""The tasks of an evaluation, one after the other, each asked of every model. What is finished is not asked again.

A task knows its evaluation set and asks a Subject; it knows neither stages nor reports. Its unit of work is one model:
what `score` returns is kept (as JSON) until the whole evaluation is done, so a killed one goes on where it was.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .artifacts import finish_unit, finished_unit
from .errors import UsageError
from .progress import progress, say
from .results import Exposure, Outcome
from .subjects import Subject

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Seen:
    """What the train split holds of a task's examples."""

    exposure: Exposure | None = None
    words: Mapping[str, int] = field(default_factory=dict)
    """How often each of `Task.words` stands in it."""


class Task(ABC):
    """One evaluation set, read and checked, and how it is scored."""

    name: str
    """Unique among the tasks, and a part of metric names: lower case letters, digits, "_", "-", "."."""

    def texts(self) -> Iterable[str]:
        """The examples, one text each, that are looked for in the train split."""
        return ()

    def words(self) -> Iterable[str]:
        """Words whose number in the train split is asked for, as `exposure` splits texts into them."""
        return ()

    @abstractmethod
    def size(self, subject: Subject) -> int:
        """How much `score` will advance, for the progress bar."""

    @abstractmethod
    def score(self, subject: Subject, advance: Advance) -> dict[str, Any]:
        """Everything that `outcome` needs of this model, as JSON holds it. The same for any batch size (to 1e-5)."""

    def baselines(self) -> dict[str, Any]:
        """What needs no model but takes time (bag of words), as JSON holds it; computed once."""
        return {}

    @abstractmethod
    def outcome(self, scores: Mapping[str, Mapping[str, Any]], baselines: Mapping[str, Any], seen: Seen) -> Outcome:
        """The figures of all models, by label, with their baselines.

        Raises UsageError where there is nothing that all of them could be asked.
        """


def run(
    tasks: Sequence[Task],
    subjects: Mapping[str, Callable[[], Subject]],
    seen: Mapping[str, Seen],
    scratch: Path,
    keys: Mapping[str, str] | None = None,
) -> tuple[list[Outcome], list[str]]:
    """An outcome for each task; and of each that not all models can be asked anything of, a sentence: that costs a
    figure, not the others.

    subjects    by label; opened when first needed
    seen        by the task's name
    scratch     where finished units are kept
    keys        label -> what its units are known by, where that is not the label
    """
    opened: dict[str, Subject] = {}
    outcomes, left_out = [], []

    def asked(task: Task, label: str, open_subject: Callable[[], Subject]) -> dict[str, Any]:
        unit = f"{task.name}-{quote((keys or {}).get(label, label), safe=' ')}"
        found = finished_unit(scratch, unit)
        if found is None:
            if label not in opened:
                opened[label] = open_subject()
            subject = opened[label]
            with progress(f"{task.name}, {label}", total=task.size(subject), unit="steps") as bar:
                found = _finish(scratch, unit, task.score(subject, bar.advance))
        return found

    for task in tasks:
        try:
            scores = {label: asked(task, label, open_subject) for label, open_subject in subjects.items()}
            unit = f"{task.name}-baselines"
            baselines = finished_unit(scratch, unit)
            if baselines is None:
                baselines = _finish(scratch, unit, task.baselines())
            outcomes.append(task.outcome(scores, baselines, seen.get(task.name, Seen())))
        except UsageError as error:
            say(f"evaluate: {error}")
            left_out.append(f"{task.name} is left out. {error}")
    return outcomes, left_out


def _finish(scratch: Path, unit: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts as a later run will find them (sorted keys, lists for tuples): so the outcome is the same in both."""
    found: dict[str, Any] = json.loads(json.dumps(finish_unit(scratch, unit, [], facts), sort_keys=True))
    return found
