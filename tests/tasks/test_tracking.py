"""What MLflow is told: everything, once, sooner or later; and nobody waits for it. Against the real thing."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from flows import ui
from tasks import lineage, sender, tracking, versions
from tasks.artifacts import Built, Identity, Store
from tasks.errors import InterruptedRun, MaskmillError, UsageError
from tasks.outbox import Outbox, heads
from tests.tasks import small_model

ROOT = Path(__file__).parents[2]
CALM = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "false",
}


@pytest.fixture(scope="module", autouse=True)
def calm():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CALM.items():
            patch.setenv(name, value)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setattr(sender, "EVERY", 0.02)
        yield


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """A database with MLflow's tables and nothing in them: making it takes seconds."""
    home = tmp_path_factory.mktemp("tables")
    tracking.connect(home)
    return tracking.database(home)


@pytest.fixture
def home(tmp_path, tables):
    (tmp_path / "home").mkdir()
    shutil.copyfile(tables, tracking.database(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def client(home):
    """Reads the database itself, also while no server does."""
    return tracking.connect(home)


def points(first, last, at=0):
    return [
        {"step": step, "timestamp_ms": 1_700_000_000_000 + step + at, "metrics": {"train/loss": 5 - step / 100}}
        for step in range(first, last)
    ]


def stage_run(client, run, stage="pretrain"):
    """The only MLflow run of a stage of a run."""
    experiments = [one.experiment_id for one in client.search_experiments()]
    (parent,) = client.search_runs(experiments, f"tags.`maskmill.run` = '{run}'")
    query = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}' and tags.stage = '{stage}'"
    (found,) = client.search_runs(experiments, query)
    return found


def history(client, run):
    """Steps of the loss, in their order."""
    found = client.get_metric_history(stage_run(client, run).info.run_id, "train/loss")
    return sorted(point.step for point in found)


def left(home):
    """Names of what lies in the outbox."""
    return sorted(path.name for path in (home / "outbox").iterdir())


def test_a_run_has_a_child_per_stage_with_parameters_inputs_and_figures(home, client, tmp_path):
    store = Store(tmp_path / "store")
    vocabulary = small_model.vocabulary(store, small_model.corpus(store))
    shards = small_model.shards(store, vocabulary)
    weights = small_model.pretrain(store, vocabulary, shards, seed=0, noise=0.1)
    report = small_model.evaluate(store, weights, 4.0)
    parameters = {"pretrain": {"width": 32, "rates": [0.1]}, "long": "x" * 900}
    tracker = tracking.Tracker(home, "told", "run-1", "tiny", {"prefect.flow_run_id": "f"}, parameters)
    with tracker.stage("evaluate", {"rates": ["0.15"]}) as run:
        run.record(report, True, {"shards": shards, "pretrain": weights})
    tracker.metrics({"test": 4.0, "bad": float("inf")})
    tracker.end()
    parent, child = client.get_run(tracker.run_id), client.get_run(run.run_id)
    assert parent.info.status == child.info.status == "FINISHED"
    assert parent.data.params["pretrain.width"] == "32" and len(parent.data.params["long"]) == 500
    assert parent.data.tags["prefect.flow_run_id"] == "f" and parent.data.metrics == {"test": 4.0}
    assert child.data.tags["mlflow.parentRunId"] == tracker.run_id and child.data.params == {"rates": '["0.15"]'}
    assert {name: child.data.tags[name] for name in ("stage", "key", "digest", "reused")} == {
        "stage": "evaluate",
        "key": report.key,
        "digest": report.digest,
        "reused": "true",
    }
    assert child.data.metrics["test/rate_0.3/masked_cross_entropy"] == 4.0 and child.data.metrics["counts/rows"] == 16
    inputs = {one.dataset.name: one.dataset.digest for one in child.inputs.dataset_inputs}
    assert inputs == {"shards": shards.digest[:32], "pretrain": weights.digest[:32]}
    assert {file.path for file in client.list_artifacts(run.run_id)} == {"report.json", "curve.png"}
    assert not left(home)


def test_a_resumed_run_goes_on_in_the_same_run_without_repeated_steps(home, client):
    def attempt(shipments):
        tracker = tracking.Tracker(home, "told", "run-2", "tiny")
        with tracker.stage("pretrain") as run:
            for records in shipments:
                run.ship(records)
        tracker.end()
        return tracker.run_id, run.run_id

    before = attempt([points(1, 5), points(5, 9)])
    # After a kill the trainer goes back to its checkpoint: steps 6 to 8 come again, later and with other timestamps.
    assert attempt([points(1, 6), points(6, 12, at=5000)]) == before
    assert attempt([points(1, 6), points(6, 10, at=9000), points(10, 14, at=9000)]) == before
    found = client.get_metric_history(before[1], "train/loss")
    assert sorted(point.step for point in found) == list(range(1, 14))
    assert all(point.timestamp == 1_700_000_000_000 + point.step for point in found if point.step < 9)


def test_a_validation_point_of_a_step_that_was_shipped_is_not_lost(home, client):
    tracker = tracking.Tracker(home, "told", "run-3", "tiny")
    with tracker.stage("pretrain") as run:
        run.ship(points(1, 5))
        assert tracker.flush(60)
        run.ship([{"step": 4, "timestamp_ms": 1, "metrics": {"validation/masked_cross_entropy": 3.0}}])
    tracker.end()
    assert client.get_run(run.run_id).data.metrics["validation/masked_cross_entropy"] == 3.0


def test_more_points_than_mlflow_takes_at_once_arrive(home, client):
    tracker = tracking.Tracker(home, "told", "run-4", "tiny")
    with tracker.stage("pretrain") as run:
        run.ship(points(0, 2500))
    assert tracker.flush(60)
    assert history(client, "run-4") == list(range(2500))
    tracker.end()


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("no"), "FAILED"), (InterruptedRun("stop"), "KILLED"), (KeyboardInterrupt(), "KILLED")],
)
def test_how_a_stage_ended_is_told(home, client, error, status):
    tracker = tracking.Tracker(home, "told", "run", "tiny")
    with pytest.raises(type(error)), tracker.stage("pretrain") as run:
        raise error
    tracker.end(status)
    assert client.get_run(run.run_id).info.status == client.get_run(tracker.run_id).info.status == status
    assert type(error).__name__ in client.get_run(run.run_id).data.tags["error"]


def test_a_sweep_that_goes_on_is_none_of_the_earlier_runs_that_wait(home, client, capsys):
    around = tracking.Tracker(home, "told", "sweep", "tiny")
    inside = tracking.Tracker(home, "told", "run-7", "tiny")
    inside.end()
    assert "wait in" not in capsys.readouterr().err
    around.end()
    assert not left(home)


def test_what_mlflow_refuses_for_ever_does_not_block_the_rest(home, client, capsys):
    tracker = tracking.Tracker(home, "told", "run-6", "tiny", parameters={"seed": 1})
    tracker.tags({"bad\nname": "x"})
    tracker.metrics({"test": 1.0})
    tracker.end()
    assert client.get_run(tracker.run_id).data.metrics == {"test": 1.0}
    assert "1 entries were refused" in capsys.readouterr().err
    assert [name.rpartition(".")[2] for name in left(home)] == ["refused"]


def test_mlflow_is_as_the_delivery_takes_it_to_be(home, client):
    """Equal points are one; the last step is there with the points; a run is found again, the oldest first."""
    from mlflow.entities import Metric

    experiment = tracking.experiment_id(client, home, "told")
    old, new = (client.create_run(experiment, at, {"maskmill.run": "x"}).info.run_id for at in (1000, 2000))
    batch = [Metric("a", 1 / step, 100 + step, step) for step in (1, 2, 3)]
    for _ in range(2):
        client.log_batch(old, batch)
    client.log_batch(old, [*batch[1:], Metric("a", 0.25, 104, 4), Metric("b", 0.1, 101, 1)])
    order = ["attributes.start_time ASC"]
    found = client.search_runs([experiment], "tags.`maskmill.run` = 'x'", order_by=order)
    assert [run.info.run_id for run in found] == [old, new]
    assert {(point.key, point.step, point.value) for point in found[0].data.to_proto().metrics} == {
        ("a", 4, 0.25),
        ("b", 1, 0.1),
    }
    assert [point.step for point in client.get_metric_history(old, "a")] == [1, 2, 3, 4]


def spooled(store, name="measured.metrics.jsonl"):
    """A pretrain artifact with a spool of 2,000 points, every hundredth of them validated."""

    def build(work):
        lines = points(1, 2001)
        for line in lines[99::100]:
            line["metrics"]["validation/masked_cross_entropy"] = 3.0
        (work.folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"torn')
        return Built({"steps": 2000}, {})

    return store.make(Identity("pretrain", 1, {}, {}), build)[0]


def test_a_run_that_reuses_a_training_shows_its_curve_and_names_its_run(home, client, tmp_path):
    weights, runs = spooled(Store(tmp_path / "store")), []
    for name, reused in (("maker", False), ("user", True)):
        tracker = tracking.Tracker(home, name, name, name)
        with tracker.stage("pretrain") as run:
            run.record(weights, reused)
        tracker.made("pretrain", weights)
        assert tracker.flush(60)
        tracker.end()
        runs.append((tracker.run_id, run.run_id))
    parent, reused = (client.get_run(one) for one in runs[1])
    assert reused.data.tags["made_by"] == runs[0][1] and reused.data.tags["reused"] == "true"
    assert parent.data.tags["key.pretrain"] == weights.key and parent.data.tags["digest.pretrain"] == weights.digest
    steps = history(client, "user")
    assert 500 <= len(steps) <= 521 and steps[0] == 1 and steps[-1] == 2000
    validated = client.get_metric_history(runs[1][1], "validation/masked_cross_entropy")
    assert [point.step for point in validated] == list(range(100, 2001, 100))


def test_the_whole_run_shows_what_it_trained_on(home, client, tmp_path):
    store = Store(tmp_path / "store")
    corpus = small_model.corpus(store)
    vocabulary = small_model.vocabulary(store, corpus)
    tracker = tracking.Tracker(home, "told", "inputs", "tiny")
    for part, made in (
        ("corpus", corpus),
        ("vocabulary", vocabulary),
        ("shards 32", small_model.shards(store, vocabulary)),
    ):
        tracker.made(part, made)
    tracker.end()
    inputs = client.get_run(tracker.run_id).inputs.dataset_inputs
    assert {one.dataset.name for one in inputs} == {"corpus", "vocabulary", "shards_32"}
    assert corpus.digest in {tag.value for one in inputs for tag in one.tags}


def test_the_machine_s_load_is_told_of_the_stage_at_work(home, client, monkeypatch):
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    tracker = tracking.Tracker(home, "told", "load", "tiny")
    with tracker.stage("corpus") as run:
        time.sleep(0.5)
    tracker.end()
    names = set(client.get_run(run.run_id).data.metrics)
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= names
    assert not client.get_run(tracker.run_id).data.metrics


@pytest.mark.parametrize("name", ['it\'s a "name" / with: odd; `characters`', "größe 日本語 🙂", "a\\b%c?d#e"])
def test_an_experiment_may_be_called_anything(home, client, name):
    for _ in range(2):
        tracker = tracking.Tracker(home, name, "odd", "tiny", {"recipe": name})
        with tracker.stage("corpus"):
            pass
        tracker.end()
        assert client.get_run(tracker.run_id).info.status == "FINISHED" and not left(home)
    assert client.get_experiment_by_name(name)


def test_no_secret_of_an_address_is_told(home, client):
    recipe = {"corpus": {"sources": ({"uri": "https://me:canary@host/x?token=canary"}, {"uri": "s3://bucket/x"})}}
    tracker = tracking.Tracker(home, "told", "secrets", "tiny", {"command": "run --source http://u:canary@h/"}, recipe)
    with pytest.raises(ValueError), tracker.stage("corpus") as run:
        raise ValueError("https://me:canary@host/x?sig=canary cannot be read")
    tracker.end("FAILED")
    parent = client.get_run(tracker.run_id)
    assert parent.data.params["corpus.sources.1.uri"] == "s3://bucket/x"
    assert "canary" not in str(parent.data.to_dictionary()) + str(client.get_run(run.run_id).data.to_dictionary())


def test_versions_are_listed_with_tags_and_aliases_also_beside_a_server(home, client, monkeypatch):
    client.create_registered_model("mine")
    for number in (1, 2):
        client.create_model_version("mine", f"s3://somewhere/{number}", tags={"corpus": str(number) * 64})
    client.set_registered_model_alias("mine", "champion", "2")
    client.create_model_version("mine", "s3://somewhere/3")
    client.delete_model_version("mine", "3")
    found = {(one.version, one.aliases, one.tags.get("corpus")) for one in lineage.every(home)}
    assert found == {(1, (), "1" * 64), (2, ("champion",), "2" * 64)}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(MaskmillError, match="does not answer"):
        lineage.every(home)


# Where something is away, hangs or dies.


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


def test_what_was_said_while_mlflow_was_away_arrives_later_in_the_same_run(home, client, monkeypatch, capsys):
    away, connect = threading.Event(), tracking.connect
    away.set()

    def answers(home):
        if away.is_set():
            raise ConnectionError("away")
        return connect(home)

    monkeypatch.setattr(tracking, "connect", answers)
    tracker = tracking.Tracker(home, "told", "run-5", "tiny")
    with tracker.stage("pretrain") as run:
        run.ship(points(1, 5))
        assert not tracker.flush(60)
        away.clear()
        run.ship(points(5, 7))
    tracker.end()
    assert history(client, "run-5") == list(range(1, 7)) and not left(home)
    said = capsys.readouterr().err
    assert said.count("the run goes on") == said.count("answers again") == 1


@pytest.mark.parametrize("full", [True, False])
def test_a_disk_that_is_full_is_no_end_of_a_run(home, client, monkeypatch, capsys, full):
    def no_room(*_):
        raise OSError(28, "No space left on device")

    if full:
        monkeypatch.setattr(Outbox, "create", no_room)
    tracker = tracking.Tracker(home, "told", "run", "tiny")
    with tracker.stage("pretrain") as run:
        if not full:
            with monkeypatch.context() as patch:
                patch.setattr(os, "pwrite", no_room)
                run.ship(points(1, 5))
        run.ship(points(5, 9))
    tracker.end()
    assert "No space left on device" in capsys.readouterr().err
    assert full or history(client, "run") == list(range(1, 9))


DYING = """
import os, signal, sys
from pathlib import Path
from tasks import outbox, sender, tracking
from tests.tasks.test_tracking import points

home, last, at, acknowledgements, run = Path(sys.argv[1]), *map(int, sys.argv[2:5]), sys.argv[5]
acknowledge = outbox.Outbox.acknowledge

def dying(self, lines):
    global acknowledgements
    acknowledgements -= 1
    if acknowledgements < 0:
        os.kill(os.getpid(), signal.SIGKILL)  # MLflow has it, and nobody remembers
    acknowledge(self, lines)

outbox.Outbox.acknowledge = dying
sender.EVERY = 0.02
tracker = tracking.Tracker(home, "told", run, "tiny")
with tracker.stage("pretrain") as stage:
    for step in range(1, last):
        stage.ship(points(step, step + 1, at))
        tracker.flush(60)
os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(home, last, at, acknowledgements, run="run-7"):
    """A process that tells steps up to `last`, and dies, at the latest before it says how the run ended."""
    words = [sys.executable, "-c", DYING, str(home), *map(str, (last, at, acknowledgements)), run]
    assert subprocess.run(words, cwd=ROOT, check=False).returncode == -signal.SIGKILL


def test_a_killed_process_leaves_nothing_undone_and_nothing_twice(home, client):
    killed(home, 8, 0, 6)
    tracker = tracking.Tracker(home, "told", "another", "tiny")
    tracker.end()
    assert history(client, "run-7") == list(range(1, len(history(client, "run-7")) + 1)) != []
    assert stage_run(client, "run-7").info.status == "KILLED" and not left(home)


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


def test_heads_name_their_run(home):
    tracker = tracking.Tracker(home, "told", "run", "tiny", {"command": "maskmill run tiny"})
    ((_, head),) = heads(home / "outbox")
    assert head["run"] == "run" and head["address"] == "" and json.dumps(head["tags"]).count("maskmill") == 1
    tracker.end()
