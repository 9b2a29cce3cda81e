"""What MLflow is told where its server refuses, hangs, is away or dies: all of it later, and nobody waits for it."""

import errno
import os
import signal
import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from flows import ui
from tasks import lineage, tracking, versions
from tasks.errors import MaskmillError, UsageError
from tasks.outbox import heads
from tests.tasks.calm_mlflow import calm as calm
from tests.tasks.mlflow_home import client as client
from tests.tasks.mlflow_home import history, killed, left, points, stage_run
from tests.tasks.mlflow_home import home as home
from tests.tasks.mlflow_home import prompt as prompt
from tests.tasks.mlflow_home import tables as tables


@contextmanager
def refusing(status):
    """A server that answers everything with this status."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"no")

        do_POST = do_GET

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://name:secret@127.0.0.1:{server.server_port}"
        server.shutdown()


def test_artifacts_that_cannot_be_written_are_one_sentence(tmp_path):
    words = r"artifacts cannot be written to \(/place: Read-only file system\)"
    with pytest.raises(UsageError, match=words), versions.explained(tmp_path):
        raise OSError(errno.EROFS, "Read-only file system", "/place")


@pytest.mark.parametrize(("status", "words"), [(401, "does not let you in"), (403, "does not allow this")])
def test_a_wrong_password_is_one_sentence_and_nothing_is_lost(tmp_path, monkeypatch, capsys, status, words):
    with refusing(status) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        tracker = tracking.Tracker(tmp_path, "told", "run", "tiny")
        with tracker.stage("pretrain") as run:
            run.ship(points(1, 5))
        tracker.end()
        said = capsys.readouterr().err
        assert said.count(words) == 1 and "the run goes on" in said and "secret" not in said
        ((path, _),) = heads(tmp_path / "outbox")
        assert path.read_text().count("train/loss") == 4
        with pytest.raises(MaskmillError, match=words):
            lineage.every(tmp_path)


def test_a_server_that_never_answers_holds_up_nobody(tmp_path, monkeypatch, capsys):
    """Everything below returns while the first request is still waiting for its answer."""
    monkeypatch.setattr(tracking, "WAIT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://name:secret@127.0.0.1:{hanging.getsockname()[1]}")
        tracker = tracking.Tracker(tmp_path, "told", "run", "tiny")
        with hanging.accept()[0] as asked, tracker.stage("pretrain") as run:
            assert b"/api/2.0/mlflow/experiments/get-by-name" in asked.recv(10_000)
            for number in range(500):
                run.ship(points(number, number + 1))
            assert not tracker.flush(0.05) and run.run_id is None
        tracker.end()
    assert f"MLflow: 506 entries of this run wait in {tmp_path / 'outbox'}" in (said := capsys.readouterr().err)
    assert "secret" not in said + "".join(map(Path.read_text, (tmp_path / "outbox").iterdir()))


def test_a_server_that_is_away_costs_a_line_and_what_is_said_is_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://name:secret@127.0.0.1:9")
    tracker = tracking.Tracker(tmp_path, "told", "run", "tiny")
    with tracker.stage("pretrain") as run:
        for number in range(200):
            run.ship(points(number, number + 1))
    tracker.end()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "the run goes on" in said[0] and "206 entries of this run wait" in said[1]
    assert "secret" not in "".join(said)


@pytest.mark.slow
def test_a_chain_of_kills_of_one_run_and_two_resumes(home, client):
    for attempt, (last, acknowledgements) in enumerate([(9, 5), (9, 7), (14, 9), (14, 99)]):
        killed(home, last, attempt * 5000, acknowledgements)
    tracker = tracking.Tracker(home, "told", "run-7", "tiny")
    with tracker.stage("pretrain") as run:
        run.ship(points(1, 20, at=90_000))
    tracker.end()
    assert history(client, "run-7") == list(range(1, 20)) and not left(home)


class Server:
    """`mlflow server` on the database of a home, which can be killed and started again at the same address."""

    def __init__(self, home, patch):
        self.home, self.patch, self.port = home, patch, ui.free_port(0)
        self.start()

    def start(self):
        self.patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        self.server = ui.start_mlflow(self.home, self.port).wait()
        self.patch.setenv("MLFLOW_TRACKING_URI", self.server.address)

    def kill(self):
        os.killpg(self.server.process.pid, signal.SIGKILL)
        self.server.process.wait()


@contextmanager
def served(home):
    with pytest.MonkeyPatch.context() as patch:
        server = Server(home, patch)
        try:
            yield server
        finally:
            server.kill()


@pytest.mark.slow
def test_a_server_that_was_away_during_a_training_and_at_its_end_has_all_of_it_later_once(home, client, capsys):
    with served(home) as server:
        tracker = tracking.Tracker(home, "told", "run-8", "tiny", {"recipe": "tiny"}, {"seed": 1})
        with tracker.stage("pretrain", {"width": 8}) as run:
            run.ship(points(1, 5))
            assert tracker.flush(60) and history(client, "run-8") == [1, 2, 3, 4]
            server.kill()
            run.ship(points(5, 9))
            assert not tracker.flush(60)
            run.ship(points(9, 12))
        unopened = tracking.Tracker(home, "told", "run-9", "tiny", {"recipe": "tiny"})
        with unopened.stage("pretrain") as run:
            run.ship(points(1, 4))
        tracker.end()
        unopened.end("FAILED")
        assert len(left(home)) == 2 and "1 earlier runs wait" in capsys.readouterr().err
        server.start()
        tracking.Tracker(home, "told", "anything", "tiny").end()
        assert not left(home)
    assert history(client, "run-8") == list(range(1, 12)) and history(client, "run-9") == [1, 2, 3]
    assert stage_run(client, "run-8").info.status == stage_run(client, "run-9").info.status == "FINISHED"
    assert stage_run(client, "run-8").data.params == {"width": "8"}
    times = client.get_metric_history(stage_run(client, "run-9").info.run_id, "train/loss")
    assert [point.timestamp - point.step for point in times] == [1_700_000_000_000] * 3


@pytest.mark.slow
def test_a_server_that_is_killed_again_and_again_while_it_is_told(home, client):
    """Whether or not it had committed what it was told when it died."""
    with served(home) as server:
        tracker = tracking.Tracker(home, "told", "run", "tiny")
        with tracker.stage("pretrain") as run:
            for times in range(3):
                for step in range(400 * times, 400 * times + 400):
                    run.ship(points(step, step + 1))
                    time.sleep(0.001)
                    if step % 400 == 250:
                        server.kill()
                server.start()
                assert tracker.flush(60)
        tracker.end()
        assert not left(home)
    assert history(client, "run") == list(range(1200))
