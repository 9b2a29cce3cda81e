"""A seeded handful of the faults that need whole processes; all of them: `python -m tests.faults`."""

import random
import tempfile
from pathlib import Path

import pytest

from tests.faults import numbers, ranks, runs, signals, surroundings, twice
from tests.faults.trial import Trial

FAMILIES = (signals, ranks, twice, numbers, surroundings)
HANDFUL = 2
"""Trials of each family."""


def handful() -> list[Trial]:
    seeded, found = random.Random(10), []
    every = [trial for family in FAMILIES for trial in family.trials()]
    for name in sorted({trial.family for trial in every}):
        found += seeded.sample([trial for trial in every if trial.family == name], HANDFUL)
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all trials share lies here."""
    return tmp_path_factory.mktemp("processes")


def test_every_trial_has_a_name_of_its_own() -> None:
    names = [trial.name for family in FAMILIES for trial in family.trials()]
    assert len(names) == len(set(names)) and [trial.name for trial in handful()] == [trial.name for trial in handful()]


def test_moments_are_spread_over_all_places_of_a_run() -> None:
    places = [moment.place for moment in signals.moments(signals.KILLS, 5)]
    assert {*runs.STAGES, *signals.AFTER, "start", "end", "training"} == set(places)
    assert max(places.count(place) for place in set(places)) <= signals.KILLS / 5


def test_what_is_stated_of_the_guards_is_what_the_page_says() -> None:
    guards = numbers.GUARDS | {"patience": 1, "rollbacks": 1, "rollback_every": 5}
    poison = {"by": "nan", "steps": [7, 8, 9]}
    facts = numbers.stated(poison, guards)
    assert facts and facts["rollbacks"] == [{"from_step": 8, "to_step": 5, "reason": "not finite"}]
    assert facts["skipped"] == {"count": 3, "first_step": 7, "last_step": 9}
    assert numbers.stated({"by": "nan", "steps": [7, 8, 9, 10]}, guards) is None


@pytest.mark.slow
@pytest.mark.parametrize("trial", handful(), ids=lambda trial: trial.name)
def test_nothing_is_lost(trial: Trial, place: Path) -> None:
    folder = Path(tempfile.mkdtemp(dir=place))
    assert trial.run(folder).verdict in ("recovered", "withstood", "refused")
