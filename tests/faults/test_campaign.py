"""A seeded minute of the campaign in the essential suite, eight of it in the whole one; and the harness has teeth."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults import calls, campaign, damage, injector, power, stand
from tests.faults.injector import Order
from tests.faults.trial import Failed, Outcome, Trial

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(injector.compiler() is None, reason="the shim needs a C compiler"),
]
OURS = ("calls", "power", "damage")
"""Families whose trials are of single stages, and take a second."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("faults")
    stand.at(folder)
    yield folder
    stand.leave()


def whole(seconds: float, modules: tuple[str, ...], seed: int, folder: Path) -> campaign.Report:
    trials = campaign.chosen(campaign.planned(modules), seconds, seed)
    report = campaign.run(trials, folder)
    print(campaign.table(report.rows()))
    assert report.total.injected == len(trials) > 0
    return report


def test_nothing_is_lost_in_a_seeded_minute(place: Path) -> None:
    assert whole(40, OURS, 10, place).failures == []


@pytest.mark.slow
def test_nothing_is_lost_in_eight_minutes(place: Path) -> None:
    assert whole(360, campaign.MODULES, 11, place).failures == []


def test_a_campaign_that_was_stopped_goes_on(place: Path, tmp_path: Path) -> None:
    ran: list[str] = []

    def trial(name: str, bad: bool = False) -> Trial:
        def run(_: Path) -> Outcome:
            ran.append(name)
            if bad:
                raise Failed("litter", "x.tmp")
            return Outcome("recovered", 1.5)

        return Trial("F1", name, "at call 1", 1.0, run)

    log = tmp_path / "log.jsonl"
    first = campaign.run([trial("corpus"), trial("shards", bad=True)], place, log=log)
    assert first.failures == ["F1 shards at call 1: litter: x.tmp"] and first.total.verdicts["litter"] == 1
    log.write_text(log.read_text() + '{"trial": "F1 pretr')  # killed as it wrote
    second = campaign.run([trial("corpus"), trial("shards"), trial("pretrain")], place, log=log)
    assert ran == ["corpus", "shards", "shards", "pretrain"]
    assert second.failures == [] and second.total.injected == second.total.verdicts["recovered"] == 3
    assert second.total.lost == 1.5
    campaign.run([trial("shards"), trial("pretrain")], place, log=log)
    assert len(ran) == 4


# Mutants: with the rename, the comparison of digests or the fsync gone, trials like these fail.

Shot = Callable[[str], Outcome]


def killed(at: int) -> Shot:
    return lambda mutant: calls._run(Path(), "vocabulary", Order("kill", at), mutant=mutant)


def damaged(seed: int) -> Shot:
    return lambda mutant: damage._run(Path(), "finished shards", seed, mutant=mutant)


def cut_off(at: int) -> Shot:
    return lambda mutant: power._run(Path(), "vocabulary", at, "least", mutant=mutant)


MUTANTS = {
    "rename": [killed(at) for at in range(5, 40, 5)],
    "digest": [damaged(seed) for seed in range(8)],
    "fsync": [cut_off(at) for at in (20, 40, 1000)],
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_defect_is_found(mutant: str, place: Path) -> None:
    found = []
    for run in MUTANTS[mutant]:
        try:
            run(mutant)
        except Failed as error:
            found.append(error.fault)
    assert found, f"{mutant}: the harness has no teeth"
    print(mutant, found)
