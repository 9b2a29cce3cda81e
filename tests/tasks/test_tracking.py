"""What MLflow is told: everything, once, sooner or later, also by processes that die. Against the real thing."""

import json
import os
import threading
import time

import pytest

from tasks import lineage, tracking
from tasks.artifacts import Built, Identity, Store
from tasks.errors import InterruptedRun, MaskmillError
from tasks.outbox import Outbox, heads
from tests.tasks import small_model
from tests.tasks.calm_mlflow import calm as calm
from tests.tasks.mlflow_home import client as client
from tests.tasks.mlflow_home import history, killed, left, points, stage_run
from tests.tasks.mlflow_home import home as home
from tests.tasks.mlflow_home import prompt as prompt
from tests.tasks.mlflow_home import tables as tables


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


def test_heads_name_their_run(home):
    tracker = tracking.Tracker(home, "told", "run", "tiny", {"command": "maskmill run tiny"})
    ((_, head),) = heads(home / "outbox")
    assert head["run"] == "run" and head["address"] == "" and json.dumps(head["tags"]).count("maskmill") == 1
    tracker.end()


# Where something is away, hangs or dies.


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


def test_a_killed_process_leaves_nothing_undone_and_nothing_twice(home, client):
    killed(home, 8, 0, 6)
    tracker = tracking.Tracker(home, "told", "another", "tiny")
    tracker.end()
    assert history(client, "run-7") == list(range(1, len(history(client, "run-7")) + 1)) != []
    assert stage_run(client, "run-7").info.status == "KILLED" and not left(home)
