"""Schedules from the file to finished runs: a real server, a real worker, kill -9, and the three ways to run again."""

import json
import time
from pathlib import Path

import pytest
import yaml

from flows import deployments
from tasks.errors import UsageError
from tests.flows.house import DATA, LONG, NEWS, TRAINING, House, until

AUTOMATIONS = ["maskmill-zombies", "maskmill-failed", "maskmill-promoted"]
STAGES = ["corpus", "vocabulary", "shards", "pretrain", "evaluate", "register"]
GOOD = """
deployments:
  - name: mine
    entrypoint: flows/mlm.py:maskmill
    parameters: {recipe: tiny}
    work_pool: {name: maskmill}
"""


def test_the_file_that_comes_with_maskmill_is_right() -> None:
    listed = deployments.check(deployments.FILE)
    assert [one["name"] for one in listed] == [name.split("/")[1] for name in (DATA, TRAINING, NEWS)]
    for one in listed:
        assert one["schedules"][0]["timezone"] and one["concurrency_limit"]["collision_strategy"] and one["tags"]


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("deployments:", "deployment:", "`deployments` must be a list"),
        ("  - name: mine\n    entrypoint", "  - entrypoint", "deployment 1: `name` is missing"),
        ("flows/mlm.py", "flows/mlmm.py", "deployment mine: entrypoint flows/mlmm.py:maskmill is no FILE:FLOW"),
        ("recipe: tiny", "recipe: tinny", "deployment mine: There is no recipe 'tinny'. Did you mean tiny?"),
        ("{recipe: tiny}", "{recipe: tiny, set: [pretrain.stepz=3]}", "deployment mine: --set pretrain.stepz=3"),
        ("name: mine", "name: [", "is not YAML"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(before: str, after: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "prefect.yaml").write_text(GOOD)
    assert deployments.check(tmp_path / "prefect.yaml")
    (tmp_path / "prefect.yaml").write_text(GOOD.replace(before, after))
    with pytest.raises(UsageError) as error:
        deployments.check(tmp_path / "prefect.yaml")
    assert words in str(error.value) and str(tmp_path / "prefect.yaml") in str(error.value)


@pytest.mark.slow
def test_deploying_again_changes_nothing(house: House) -> None:
    before = house.ask("deployments/filter", {})
    assert json.loads(house.maskmill("deploy", "--json"))["automations"] == AUTOMATIONS
    after = house.ask("deployments/filter", {})
    assert {one["id"] for one in before} == {one["id"] for one in after}
    automations = house.ask("automations/filter", {})
    assert sorted(one["name"] for one in automations) == sorted(AUTOMATIONS)


@pytest.mark.slow
def test_each_schedule_makes_its_next_runs(house: House) -> None:
    """With SQLAlchemy 2.1 Prefect's own server makes none (flows/prefect_server.py)."""
    asked = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}, "deployment_id": {"is_null_": False}}}
    until(lambda: len({one["deployment_id"] for one in house.ask("flow_runs/filter", asked)}) == 3, 120)


@pytest.mark.slow
def test_the_form_says_what_each_parameter_means(house: House) -> None:
    schema = house.ask(f"deployments/name/{TRAINING}")["parameter_openapi_schema"]["properties"]
    assert all(schema[name].get("description") for name in ("recipe", "source", "set", "force_from", "wait"))
    assert set(STAGES) <= set(json.dumps(schema["force_from"]).split('"'))


@pytest.mark.slow
def test_data_first_then_a_training_that_dies_and_the_retry_button(house: House) -> None:
    house.kill_worker()
    house.start_worker(bare=True)
    assert house.ends(data := house.begin(DATA, *LONG)) == "COMPLETED"
    assert house.stages(data) == dict.fromkeys(STAGES[:3], "made")
    run = house.begin(TRAINING, *LONG)
    house.dies_in_training(run)
    assert house.ends(run) == "CRASHED"
    time.sleep(30)  # a worker says a second time that the run crashed, some 8 s later, more on a busy machine
    house.set_state(run, "SCHEDULED", "AwaitingRetry")
    until(lambda: house.state(run) != "CRASHED", 30)
    assert house.ends(run) == "COMPLETED", house.log
    assert house.stages(run) == dict.fromkeys(STAGES[:3], "reused") | dict.fromkeys(STAGES[3:], "made")


@pytest.mark.slow
def test_rerun_from_a_stage_and_the_champion_on_new_data(house: House) -> None:
    run = house.begin(TRAINING)
    assert house.ends(run) == "COMPLETED"
    shown = house.maskmill("rerun", run[:13], "--from", "evaluate")
    assert "a new run from evaluate on" in shown
    newest = until(
        lambda: [
            one
            for one in house.ask("flow_runs/filter", {"sort": "EXPECTED_START_TIME_DESC"})
            if one["parameters"].get("force_from")
        ],
        30,
    )
    assert house.ends(newest[0]["id"]) == "COMPLETED"
    assert list(house.stages(newest[0]["id"]).values()) == ["reused"] * 4 + ["made"] * 2
    (house.folder / "texts" / "new.txt").write_text("the cow sat on the old mats and the pig on the new ones. " * 20)
    news = house.begin(NEWS)
    assert house.ends(news) == "COMPLETED", house.log
    assert list(house.stages(news)) == ["corpus", "shards", "evaluate"]


@pytest.mark.slow
def test_a_deployment_that_is_fired_twice_makes_one_model(house: House) -> None:
    runs = [house.begin(TRAINING, "pretrain.seed=5") for _ in range(2)]
    assert [house.ends(run) for run in runs] == ["COMPLETED", "COMPLETED"], house.log
    nothing, something = sorted(list(house.stages(run).values()).count("made") for run in runs)
    assert nothing == 0 < something


@pytest.mark.slow
def test_after_a_power_cut_the_doctor_sends_the_run_back_and_a_new_worker_ends_it(house: House) -> None:
    run = house.begin(TRAINING, *LONG, "pretrain.seed=1")
    house.trains(run)
    house.kill_worker()
    assert house.state(run) == "RUNNING"
    (found,) = [one for one in json.loads(house.maskmill("doctor", "--json")) if one["run"] == run]
    assert found["mended"] and "its process died in pretrain" in found["what"]
    assert house.state(run) == "CRASHED"
    assert "goes back to the queue" in house.maskmill("rerun", run[:13])
    house.start_worker()
    until(lambda: house.state(run) == "RUNNING", 120)
    assert house.ends(run) == "COMPLETED"
    assert house.stages(run)["pretrain"] == "made"


@pytest.mark.parametrize(
    ("odd", "says"),
    [
        ({"parameters": [1]}, "`parameters` must be a group of settings"),
        ({"schedules": "x"}, "`schedules` must be a list"),
        ({"schedules": [3]}, "`schedules` must be a list"),
        ({"work_pool": {"name": 3}}, "no text"),
        ({"parameters": {"recipe": ["tiny"]}}, "`recipe` must be a text"),
        ({"parameters": {"recipe": "x" * 5000}}, "There is no recipe"),
        ({"parameters": {"recipe": "tiny", "set": [3]}}, "lists of texts"),
        ({"entrypoint": "x" * 5000 + ":a"}, "is no FILE:FLOW"),
    ],
)
def test_a_deployment_of_odd_fields_is_refused_by_name(tmp_path, odd, says):
    one = {"name": "nightly", "entrypoint": "flows/mlm.py:data"} | odd
    (tmp_path / "prefect.yaml").write_text(yaml.safe_dump({"deployments": [one]}))
    with pytest.raises(UsageError, match="deployment nightly") as caught:
        deployments.check(tmp_path / "prefect.yaml")
    assert says in str(caught.value)
