"""A seeded handful of F14; all of them by the long command."""

import json
from pathlib import Path
from random import Random

import pytest

from flows.ledger import STAGES
from tests.faults.away import trials
from tests.faults.gateway import REPLIES
from tests.faults.trial import Trial

CHEAP = [trial for trial in trials() if trial.cost < 100]
HANDFUL = Random(14).sample(CHEAP, 5)


@pytest.mark.slow
@pytest.mark.parametrize("trial", HANDFUL, ids=lambda trial: trial.name)
def test_a_run_whose_server_goes_away_comes_to_its_end(trial: Trial, tmp_path: Path) -> None:
    assert trial.run(tmp_path).verdict in ("recovered", "withstood")


def test_every_server_is_away_in_every_stage_in_every_way() -> None:
    names = [trial.name for trial in trials()]
    assert len(set(names)) == len(names) and names == [trial.name for trial in trials()]
    for stage in STAGES:
        for way in ("killed", "stopped"):
            assert f"F14 {stage} prefect {way}, back after the run" in names, json.dumps(names, indent=1)
            assert f"F14 {stage} mlflow {way}, back after the run" in names
        assert f"F14 {stage} database locked for ever" in names
    assert all(f"F14 register mlflow {way}" in names for way in REPLIES)
