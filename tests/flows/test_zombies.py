"""Runs that are killed, cancelled, left behind or stopped: no slot stays taken, nothing is lost, and somebody hears."""

import time

import pytest

from tests.flows.house import LONG, TRAINING, House, until

pytestmark = pytest.mark.slow


def heard(house: House, *words: str, seconds: float = 60) -> str:
    """Waits for a notice with all of these words."""
    found = until(lambda: [text for text in house.heard if all(word in text for word in words)], seconds)
    return str(found[-1])


def slots(house: House) -> int:
    """Of the limit on trainings, how many are taken."""
    return int(house.ask("v2/concurrency_limits/maskmill-training")["active_slots"])


def checkpoints(house: House) -> list[str]:
    return [str(path) for path in (house.home / "store").glob("pretrain/.*.partial/.scratch/checkpoints/*.json")]


def test_a_run_that_fails_is_told_with_its_reason_and_not_tried_again(house: House) -> None:
    run = house.begin(TRAINING, source=[str(house.folder / "nowhere")])
    assert house.ends(run) == "FAILED"
    said = heard(house, "Failed", "nowhere")
    assert said.startswith("maskmill: tiny")
    assert house.ask(f"flow_runs/{run}")["run_count"] == 1


def test_cancel_stops_the_training_with_a_checkpoint_and_all_its_processes(house: House) -> None:
    run = house.begin(TRAINING, *LONG)
    family = house.family(house.trains(run))
    assert len(family) > 1
    house.set_state(run, "CANCELLING", "Cancelling")
    until(lambda: not any(one.is_running() and one.status() != "zombie" for one in family), 30)
    until(lambda: house.state(run) == "CANCELLED", 30)
    assert checkpoints(house)
    assert house.entries(run)[-1]["state"] == "interrupted"
    until(lambda: slots(house) == 0, 30)
    again = house.begin(TRAINING, *LONG)
    assert house.ends(again) == "COMPLETED", house.log
    assert house.entries(again)[-1]["stages"]["pretrain"]["why"] == "an interrupted run left finished work"


def test_a_run_that_is_killed_is_taken_up_by_itself(house: House) -> None:
    run = house.begin(TRAINING, *LONG, "pretrain.seed=1")
    house.dies_in_training(run)
    heard(house, "Crashed")
    until(lambda: house.state(run) not in ("RUNNING", "CRASHED"), 180)
    assert house.ends(run) == "COMPLETED", house.log
    assert house.ask(f"flow_runs/{run}")["run_count"] == 2
    until(lambda: slots(house) == 0, 120)  # the lease of the one that died ends


def test_a_worker_that_is_told_to_stop_leaves_its_run_in_the_queue(house: House) -> None:
    run = house.begin(TRAINING, *LONG, "pretrain.seed=2")
    house.trains(run)
    house.stop_worker(60)
    waiting = house.ask(f"flow_runs/{run}")
    assert (waiting["state_type"], waiting["state_name"]) == ("SCHEDULED", "AwaitingRetry"), house.log
    assert checkpoints(house)
    house.start_worker()
    assert house.ends(run) == "COMPLETED", house.log


def test_a_run_whose_worker_died_goes_on_and_can_be_cancelled(house: House) -> None:
    longer = [setting.replace("600", "60000") for setting in LONG]
    run = house.begin(TRAINING, *longer, "pretrain.seed=3")
    family = house.family(house.trains(run))
    house.kill_worker(runs=False)
    house.start_worker()
    time.sleep(5)
    assert house.state(run) == "RUNNING" and all(one.is_running() for one in family)
    house.set_state(run, "CANCELLING", "Cancelling")
    until(lambda: not any(one.is_running() and one.status() != "zombie" for one in family), 180)
    until(lambda: house.state(run) == "CANCELLED", 120)


def test_after_a_power_cut_the_server_notices_and_the_next_worker_goes_on(house: House) -> None:
    run = house.begin(TRAINING, *LONG, "pretrain.seed=4")
    house.trains(run)
    house.kill_worker()
    until(lambda: house.state(run) == "CRASHED", 300)
    heard(house, "Crashed", "no heartbeat")
    house.start_worker()
    until(lambda: house.state(run) != "CRASHED", 120)
    assert house.ends(run) == "COMPLETED", house.log


def test_a_promotion_is_told(house: House) -> None:
    for seed in (8, 9):
        assert house.ends(house.begin(TRAINING, f"pretrain.seed={seed}")) == "COMPLETED"
    for number in (1, 2):  # one of them is not the champion
        house.maskmill("promote", f"tiny/{number}", "--force", "--reason", "its letters are nicer")
    heard(house, "champion of tiny is version", "its letters are nicer")
