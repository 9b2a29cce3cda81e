"""Delivered once: whatever fails or dies between two steps of a delivery, and however often a run begins again."""

import random
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.errors import UsageError
from tests.tasks.fake_mlflow import Died, FakeMlflow
from tests.tasks.flow_attempts import Attempt, spool


def troubled(dice, often):
    """Failures of each kind, where the dice say so; some of them end the process."""

    def trouble(name, when):
        if dice.random() >= often:
            return None
        kind = dice.choice(["down", "down", "late", "died"])
        if kind == "died":
            raise Died
        if kind == "late" and when == "before" and name == "metrics":
            return "late"
        raise ConnectionError("down")

    return trouble


def lived(server, folder, dice, run, lines, often):
    """An attempt that tells the lines of its spool, and may be killed anywhere."""
    server.trouble = troubled(dice, often)
    attempt = Attempt(server, folder, run)
    try:
        attempt.open()
        rest = list(lines)
        while rest:
            many = dice.randint(1, 7)
            attempt.tell(*rest[:many])
            del rest[:many]
            if dice.random() < 0.7:
                attempt.sender.round()
        if dice.random() < 0.5:
            attempt.end()
            attempt.sender.round()
    except Died:
        pass
    server.trouble = lambda name, when: None
    attempt.die()


@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 10**9), often=st.sampled_from([0.05, 0.2, 0.6]), same=st.booleans())
def test_every_point_is_stored_once_whatever_dies_and_however_often(tmp_path_factory, seed, often, same):
    folder, dice, server = tmp_path_factory.mktemp("outbox"), random.Random(seed), FakeMlflow()
    lines, told = [], {}
    for attempt in range(dice.randint(1, 5)):
        lines = lines[: dice.randint(0, len(lines))]  # what the checkpoint that it resumes from knew of
        lines += spool(len(lines) + 1, len(lines) + 1 + dice.randint(0, 12), attempt)
        run = "r" if same else f"r{attempt}"
        lived(server, folder, dice, run, lines, often)
        told[run] = lines
    last = Attempt(server, folder, "r" if same else "last")
    last.open()
    last.tell(*spool(1, 70, 9))
    last.end()
    assert last.sender.round() and not list(folder.iterdir())
    last.die()
    server.catch_up()
    for run in told.keys() | {last.outbox.head["run"]}:
        for key, every in (("loss", 1), ("valid", 5)):
            steps = server.history("pretrain", key, run)
            assert steps == list(range(every, len(steps) * every + 1, every)), (run, key)
    assert len(server.history("pretrain", "loss", last.outbox.head["run"])) == 69
    assert {run.status for run in server.runs.values()} <= {"FINISHED", "KILLED"}
    assert len(server.runs) <= 2 * (len(told) + (not same))


@pytest.mark.parametrize("before", ["metrics", "end", "create", "tags"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_process_killed_between_delivery_and_remembering_costs_nothing(tmp_path, before, when):
    """At each crash point of the run, one process dies; the next tells all of it once more."""
    server, deaths = FakeMlflow(), 0
    for crash in range(20):
        counter = [crash]

        def trouble(name, moment, counter=counter):
            if name == before and moment == when:
                counter[0] -= 1
                if counter[0] == -1:
                    raise Died

        attempt = Attempt(server, tmp_path / "outbox")
        attempt.open()
        attempt.outbox.append({"do": "tags", "stage": "pretrain", "values": {"digest": "d"}})
        for record in spool(1, 6, crash):
            attempt.tell(record)
            server.trouble = trouble
            try:
                attempt.sender.round()
            except Died:
                deaths += 1
                break
        else:
            attempt.end()
            with suppress(Died):
                attempt.sender.round()
        server.trouble = lambda name, moment: None
        attempt.die()
    last = Attempt(server, tmp_path / "outbox")
    last.open()
    last.tell(*spool(1, 6, 99))
    last.end()
    assert last.sender.round() and deaths + (before == "end") > 0
    assert server.history("pretrain", "loss") == [1, 2, 3, 4, 5] and server.history("pretrain", "valid") == [5]
    assert len(server.runs) == 2
    last.die()


def test_a_run_that_never_met_its_server_gets_its_runs_later_and_is_ended_as_killed(tmp_path):
    server = FakeMlflow()
    away = Attempt(server, tmp_path, "away")
    server.trouble = lambda name, when: (_ for _ in ()).throw(ConnectionError("down"))
    away.open()
    away.tell(*spool(1, 9, 0))
    assert not away.sender.round() and not server.runs
    away.die()
    server.trouble = lambda name, when: None
    other = Attempt(server, tmp_path, "other")
    assert other.sender.round()
    assert server.history("pretrain", "loss", "away") == list(range(1, 9))
    assert [run.status for run in server.runs.values()] == ["RUNNING", "KILLED", "KILLED"]
    assert not [path for path in tmp_path.iterdir() if path != other.outbox.path]
    other.die()


def test_this_run_is_told_before_what_earlier_runs_left_and_bears_no_trouble_of_theirs(tmp_path, capsys):
    server = FakeMlflow()
    poor = Attempt(server, tmp_path, "poor")
    poor.outbox.append({"do": "file", "stage": "", "path": "x"})
    poor.die()
    server.trouble = lambda name, when: 1 / 0 if name == "file" else None  # an error of a kind that may pass
    rich = Attempt(server, tmp_path, "rich")
    rich.open()
    rich.tell(*spool(1, 4, 0))
    assert rich.sender.round() and rich.sender.left == {poor.outbox.path}
    assert [run.tags.get("maskmill.run") for run in server.runs.values()] == ["rich", None, "poor"]
    assert capsys.readouterr().err == ""
    rich.die()


def test_another_address_and_a_living_process_are_left_alone(tmp_path):
    server = FakeMlflow()
    living, elsewhere, mine = (Attempt(server, tmp_path, name) for name in ("living", "elsewhere", "mine"))
    mine.outbox.head = {**mine.outbox.head}
    text = elsewhere.outbox.path.read_text().replace('"address":""', '"address":"http://there"')
    elsewhere.die()
    elsewhere.outbox.path.write_text(text)
    assert mine.sender.round() and mine.sender.left == set() and living.outbox.path.exists()
    assert {run.tags["maskmill.run"] for run in server.runs.values()} == {"mine"}
    assert elsewhere.outbox.path.read_text() == text
    for one in (living, mine):
        one.die()


def test_an_earlier_attempt_of_this_run_is_waited_for(tmp_path):
    server = FakeMlflow()
    first, second = Attempt(server, tmp_path), Attempt(server, tmp_path)
    assert not second.sender.round() and not server.runs
    first.die()
    assert second.sender.round() and len(server.runs) == 1
    second.die()


def test_a_bad_entry_takes_no_other_with_it_and_the_file_is_kept(tmp_path, capsys):
    server = FakeMlflow()
    attempt = Attempt(server, tmp_path)
    attempt.open()
    attempt.tell(*spool(1, 3, 0))
    attempt.tell({"step": 3, "timestamp_ms": 3, "metrics": {"bad\nname": 1.0}})
    attempt.tell(*spool(4, 6, 0))
    attempt.end()
    assert attempt.sender.round() and attempt.sender.refused == 1
    assert server.history("pretrain", "loss") == [1, 2, 4, 5]
    assert [path.suffix for path in tmp_path.iterdir()] == [".refused"]
    assert capsys.readouterr().err.count("does not take everything") == 1
    attempt.die()


def test_an_experiment_that_was_deleted_blocks_nothing_and_loses_nothing(tmp_path):
    def gone(name):
        raise UsageError("The MLflow experiment 'e' was deleted.")

    attempt = Attempt(FakeMlflow(), tmp_path, experiment=gone)
    attempt.open()
    attempt.tell(*spool(1, 9, 0))
    attempt.end()
    assert attempt.sender.round() and attempt.sender.refused == 12
    (kept,) = tmp_path.glob("*.refused")
    assert kept.read_text().count('"metrics"') == 16
    attempt.die()


def test_a_training_that_begins_again_in_the_same_process_repeats_no_step(tmp_path):
    server = FakeMlflow()
    attempt = Attempt(server, tmp_path)
    for again in range(4):
        if again != 1:
            attempt.open()
        attempt.tell(*spool(1, 4 + again, again))
        assert attempt.sender.round()
    assert server.history("pretrain", "loss") == [1, 2, 3, 4, 5, 6]
    attempt.die()


def test_a_server_that_comes_back_empty_gets_a_run_for_what_follows(tmp_path):
    server = FakeMlflow()
    attempt = Attempt(server, tmp_path)
    attempt.open()
    attempt.tell(*spool(1, 4, 0))
    assert attempt.sender.round()
    server.runs.clear()
    attempt.tell(*spool(4, 7, 0))
    assert not attempt.sender.round() and attempt.sender.round() and attempt.sender.refused == 0
    assert server.history("pretrain", "loss") == [4, 5, 6]
    attempt.die()
