"""What of a run is sent to MLflow, when, and in how many calls."""

import threading

from tasks import sender
from tests.tasks.fake_mlflow import FakeMlflow
from tests.tasks.flow_attempts import Attempt, spool


def test_a_figure_is_told_again_only_when_it_has_changed(tmp_path):
    server = FakeMlflow()
    for at, value in enumerate((1.0, 1.0, 2.0, 2.0)):
        attempt = Attempt(server, tmp_path)
        attempt.open()
        attempt.tell({"step": 0, "timestamp_ms": at, "metrics": {"rows": value}})
        attempt.end()
        assert attempt.sender.round()
        attempt.die()
    assert sorted(point[3] for point in server.runs["1"].points) == [1.0, 2.0]


def test_points_go_in_calls_of_a_thousand(tmp_path):
    server = FakeMlflow()
    attempt = Attempt(server, tmp_path)
    attempt.open()
    attempt.tell(*spool(1, 2501, 0))
    attempt.outbox.append({"do": "metrics", "stage": "pretrain", "step": 0, "timestamp_ms": 1, "metrics": _many(1500)})
    assert attempt.sender.round()
    assert server.history("pretrain", "loss") == list(range(1, 2501))
    assert server.calls.count("metrics") == 5
    attempt.die()


def _many(count):
    return {f"count {number}": 1.0 for number in range(count)}


def test_nothing_is_sent_that_the_disk_may_not_have(tmp_path, monkeypatch):
    """What MLflow knows of a run and its outbox does not would come again after a power cut, with another time."""
    synced = []
    server = FakeMlflow()
    attempt = Attempt(server, tmp_path)
    sync = attempt.outbox.sync
    monkeypatch.setattr(attempt.outbox, "sync", lambda: (sync(), synced.append(attempt.outbox.end)))
    server.trouble = lambda name, when: synced[-1] >= attempt.outbox.end or 1 / 0
    attempt.open()
    for record in spool(1, 9, 0):
        attempt.tell(record)
        assert attempt.sender.round()
    assert server.history("pretrain", "loss") == list(range(1, 9))
    attempt.die()


def test_the_pause_grows_while_the_server_is_away_and_a_flush_does_not_wait_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sender, "EVERY", 0.001)
    server = FakeMlflow()
    attempt = Attempt(server, tmp_path)
    server.trouble = lambda name, when: (_ for _ in ()).throw(ConnectionError("down"))
    pauses, wait, enough = [], attempt.sender._wake.wait, threading.Event()

    def waited(seconds):
        pauses.append(seconds)
        if len(pauses) <= 8:
            return wait(0)
        enough.set()
        return wait(60)

    monkeypatch.setattr(attempt.sender._wake, "wait", waited)
    attempt.sender.start()
    assert enough.wait(60)
    assert pauses[:8] == [0.002 * 2**n for n in range(8)]
    server.trouble = lambda name, when: None
    assert attempt.sender.flush(60)
    attempt.sender.stop()


def sample(at, value):
    return {"step": None, "timestamp_ms": at, "metrics": {"system/cpu": value}}


def test_the_machine_s_load_goes_on_in_a_resumed_run_by_the_second(tmp_path):
    server = FakeMlflow()
    for first in (0, 60_000):
        attempt = Attempt(server, tmp_path)
        attempt.open()  # at 2 ms
        attempt.tell(*(sample(at + 2, at) for at in range(first, first + 50_000, 10_000)))
        assert attempt.sender.round()
        attempt.die()
    assert server.history("pretrain", "system/cpu") == [0, 10, 20, 30, 40, 60, 70, 80, 90, 100]


def test_what_is_reused_names_the_run_that_made_it_unless_that_is_this_one(tmp_path):
    def told(run, *does):
        attempt = Attempt(server, tmp_path, run)
        attempt.open()
        attempt.outbox.append({"do": "tags", "stage": "pretrain", "values": {"key": "k"}})
        attempt.outbox.append(*({"do": do, "stage": "pretrain", "key": "k"} for do in does))
        attempt.end()
        assert attempt.sender.round()
        attempt.die()
        parent = next(one.id for one in server.runs.values() if one.tags.get("maskmill.run") == run)
        (stage,) = (one for one in server.runs.values() if one.tags.get("mlflow.parentRunId") == parent)
        return stage

    server = FakeMlflow()
    assert told("early", "reused").tags["reused"] == "true" and "made_by" not in server.runs["1"].tags
    maker = told("maker", "made")
    assert maker.tags["reused"] == "false"
    assert told("late", "reused").tags["made_by"] == maker.id
    assert told("maker", "reused").tags["reused"] == "false" and "made_by" not in maker.tags


def test_a_run_that_goes_on_has_the_error_of_its_last_attempt_only(tmp_path):
    server = FakeMlflow()
    attempt = Attempt(server, tmp_path)
    attempt.open()
    attempt.outbox.append({"do": "tags", "stage": "pretrain", "values": {"error": "KeyboardInterrupt"}})
    attempt.end("KILLED")
    assert attempt.sender.round() and server.runs["1"].tags["error"]
    attempt.die()
    attempt = Attempt(server, tmp_path)
    attempt.open()
    attempt.end()
    assert attempt.sender.round() and "error" not in server.runs["1"].tags
    attempt.die()


def test_an_artifact_store_that_cannot_be_written_to_costs_its_files_only(tmp_path, capsys):
    server = FakeMlflow()
    server.trouble = lambda name, when: (_ for _ in ()).throw(PermissionError(13, "denied")) if name == "file" else None
    attempt = Attempt(server, tmp_path)
    attempt.open()
    attempt.outbox.append({"do": "file", "stage": "pretrain", "path": "card.html"})
    attempt.tell(*spool(1, 4, 0))
    attempt.end()
    assert attempt.sender.round() and server.history("pretrain", "loss") == [1, 2, 3]
    (kept,) = tmp_path.glob("*.refused")
    assert "card.html" in kept.read_text() and "does not take everything ([Errno 13]" in capsys.readouterr().err
    attempt.die()
