"""A grid of settings: what commas mean, and what is shared. python -m pytest tests/flows/test_sweep.py"""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from flows import sweep
from tasks.errors import UsageError
from tests.flows.test_mlm import Mill


def test_every_combination_once_the_last_setting_varies_fastest() -> None:
    grid = sweep.points(["shards.rate=15%,30%", "pretrain.steps=10", "pretrain.seed=1,2"])
    assert grid == [
        ["shards.rate=15%", "pretrain.steps=10", "pretrain.seed=1"],
        ["shards.rate=15%", "pretrain.steps=10", "pretrain.seed=2"],
        ["shards.rate=30%", "pretrain.steps=10", "pretrain.seed=1"],
        ["shards.rate=30%", "pretrain.steps=10", "pretrain.seed=2"],
    ]
    assert sweep.varied(grid)[1] == {"shards.rate": "15%", "pretrain.seed": "2"}
    assert sweep.points([]) == [[]] and sweep.varied([[]]) == [{}]


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("evaluate.rates=[0.1, 0.2]", ["[0.1, 0.2]"]),
        ("evaluate.rates=[0.1], [0.2, 0.3]", ["[0.1]", "[0.2, 0.3]"]),
        ("name='a,b',c", ["'a,b'", "c"]),
        ('name="it\'s, so",c', ['"it\'s, so"', "c"]),
        (
            "pretrain.mask_rates={schedule: linear, rates: [0.3, 0.1]}, {}",
            ["{schedule: linear, rates: [0.3, 0.1]}", "{}"],
        ),
    ],
)
def test_commas_inside_brackets_and_quotes_part_nothing(setting: str, values: list[str]) -> None:
    key = setting.partition("=")[0]
    assert sweep.points([setting]) == [[f"{key}={value}"] for value in values]


@pytest.mark.parametrize("setting", ["a.b=1,", "a.b=,1", "a.b=1,,2"])
def test_an_empty_value_is_refused(setting: str) -> None:
    with pytest.raises(UsageError, match="empty"):
        sweep.points([setting])


def test_a_slip_of_the_pen_is_refused() -> None:
    many = ",".join(map(str, range(40)))
    with pytest.raises(UsageError, match="1,600 runs"):
        sweep.points([f"a={many}", f"b={many}"])


def above(database: Path) -> dict[str, int]:
    """How many runs of MLflow lie below that of a sweep, and how many below one of these."""
    parents = "SELECT run_uuid, value FROM tags WHERE key = 'mlflow.parentRunId'"
    with closing(sqlite3.connect(database)) as connection:
        under = dict(connection.execute(parents).fetchall())
    return {
        "sweep": sum(parent not in under for parent in under.values()),
        "run": sum(parent in under for parent in under.values()),
    }


@pytest.mark.slow
def test_a_sweep_shares_what_its_runs_have_in_common_and_one_that_fails_costs_its_line(
    tmp_path: Path, prefect_server: str
) -> None:
    mill = Mill(tmp_path, prefect_server)
    words = ["sweep", "tiny", "--source", str(tmp_path / "texts"), "--set", "pretrain.seed=1,2"]
    done = mill(*words)
    assert done.returncode == 0, done.stderr
    header, *rows = done.stdout.splitlines()[:3]
    assert header.split()[0] == "pretrain.seed" and "bits per byte" in header
    assert sorted(row.split()[-1] for row in rows) == ["tiny/1", "tiny/2"]
    assert [len(list((mill.home / "store" / stage).glob("[!.]*"))) for stage in ("corpus", "shards", "pretrain")] == [
        1,
        1,
        2,
    ]
    assert above(mill.home / "mlflow.db") == {"sweep": 2, "run": 12}
    failing = mill(*words, "--set", "evaluate.sentences=['" + "a " * 200 + "[MASK]'],['a [MASK].']")
    assert failing.returncode == 1 and failing.stdout.count("tiny/") == 2
    assert failing.stderr.splitlines()[-1].startswith(
        "Error: 2 of 4 runs of the sweep failed; the first, pretrain.seed=1"
    )
