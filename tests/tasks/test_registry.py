"""The registry: one version per model, the right champion, a model that loads anywhere."""

import json
import multiprocessing
import os
import sqlite3
import subprocess
import sys

import pytest
from sqlalchemy.exc import OperationalError

from tasks import registry, tracking, versions
from tasks.artifacts import Store, verify
from tasks.errors import DataError, DiskError, DiskFullError, MaskmillError, UnreachableError, UsageError
from tasks.registry import RegisterConfig, champion, load_model, predict, register, registered
from tests.faults.gateway import REPLIES, Gateway
from tests.tasks import small_model
from tests.tasks.calm_mlflow import CALM
from tests.tasks.calm_mlflow import calm as calm


class House:
    """A store and a registry, shared by the tests of this module: making MLflow's tables takes seconds."""

    def __init__(self, root):
        self.home = root / "a home"
        self.store = Store(root / "store")
        self.corpus = small_model.corpus(self.store)
        self.vocabulary = small_model.vocabulary(self.store, self.corpus)
        self.shards = small_model.shards(self.store, self.vocabulary)

    def weights(self, seed):
        return small_model.pretrain(self.store, self.vocabulary, self.shards, seed=seed, noise=0.1)

    def register(self, name, seed, nats, test="a" * 64, rival="", shown=None, **options):
        weights = self.weights(seed)
        report = small_model.evaluate(self.store, weights, nats, test, rival, **(shown or {}))
        parents = (self.corpus, self.vocabulary, self.shards, weights, report)
        return register(RegisterConfig(name), *parents, self.store, home=self.home, **options)

    @property
    def client(self):
        return tracking.connect(self.home)


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    return House(tmp_path_factory.mktemp("registry"))


@pytest.fixture(scope="module")
def first(house):
    manifest, reused = house.register("first", 0, 4.0, command="maskmill run quickstart")
    assert not reused
    return manifest


def test_the_first_version_is_champion_and_challenger(house, first):
    version = registered(first, house.home)
    assert (version.name, version.version) == ("first", 1)
    assert version.aliases == ("challenger", "champion")
    assert version.tags["verdict"].startswith("CHAMPION: first version, 4.000 nats")


def test_a_version_names_every_parent(house, first):
    tags = registered(first, house.home).tags
    for stage, digest in first.identity.inputs.items():
        assert tags[stage] == digest
    assert tags["register"] == first.digest
    assert tags["test"] == "a" * 64 and tags["rate"] == "0.3" and float(tags["nats"]) == 4.0


def test_the_card_is_the_description_and_begins_with_the_verdict(house, first):
    page = house.client.get_model_version("first", "1").description
    assert page.splitlines()[0] == "v1 CHAMPION: first version, 4.000 nats"
    for part in ("maskmill run quickstart", "| 0.3 | unigram | 5.600 |", "novels", first.identity.inputs["pretrain"]):
        assert part in page


def test_the_artifact_knows_no_version_run_or_address(house, first):
    version = house.client.get_model_version("first", "1")
    text = json.dumps(dict(first.facts)) + first.path("model/README.md").read_text()
    for secret in (version.run_id, version.source, str(house.home), str(house.store.root), "maskmill run"):
        assert secret not in text
    assert verify(first) == []
    assert set(first.files) == {
        "fill_mask.py",
        *(f"model/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")),
        "model/README.md",
        "model/digests.json",
    }


def test_the_same_again_makes_no_second_version(house, first):
    again, reused = house.register("first", 0, 4.0)
    assert reused and again.digest == first.digest
    assert len(house.client.search_model_versions("name = 'first'")) == 1


def test_nothing_in_the_registry_is_a_pickle(house, first):
    names = [path.name for path in tracking.artifact_root(house.home).rglob("*") if path.is_file()]
    assert "model.safetensors" in names and "fill_mask.py" in names
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".pth", ".pt", ".bin"))]


def test_better_becomes_champion_worse_and_incomparable_do_not(house):
    def champions():
        return {v.version: v.aliases for v in (registered(manifest, house.home) for manifest in made)}

    made = [house.register("ladder", 0, 4.0)[0]]
    made.append(house.register("ladder", 1, 4.5)[0])
    assert champions() == {1: ("champion",), 2: ("challenger",)}
    tags = registered(made[1], house.home).tags
    assert tags["verdict"].startswith("not better: 4.500 nats, 0.500 above version 1 (95 % interval 0.4")
    assert tags["against"] == "version 1" and float(tags["against_nats"]) == 4.0
    assert tags["delta"] == "+0.500 nats" and tags["gate"] == "not better"
    made.append(house.register("ladder", 2, 3.5)[0])
    assert champions() == {1: ("previous",), 2: (), 3: ("challenger", "champion")}
    assert registered(made[0], house.home).tags["verdict"].startswith("was CHAMPION until v3: first version, 4.000")
    made.append(house.register("ladder", 3, 1.0, test="b" * 64)[0])
    assert champions() == {1: ("previous",), 2: (), 3: ("champion",), 4: ("challenger",)}
    assert "another test set" in registered(made[3], house.home).tags["verdict"]

    # The same weights with another report: no new version, a new verdict.
    again, reused = house.register("ladder", 1, 3.0)
    assert not reused
    assert registered(again, house.home).version == 2
    assert registered(again, house.home).aliases == ("challenger", "champion")


def test_a_version_deleted_by_hand_is_registered_again(house):
    manifest, _ = house.register("lost", 0, 4.0)
    house.client.delete_model_version("lost", "1")
    assert registered(manifest, house.home) is None
    again, reused = house.register("lost", 0, 4.0)
    assert not reused and again.digest == manifest.digest
    assert registered(again, house.home).version == 2
    assert registered(again, house.home).aliases == ("challenger", "champion")


def test_a_registration_that_was_killed_before_its_alias_is_completed(house, monkeypatch):
    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("mlflow.MlflowClient.set_registered_model_alias", killed)
        house.register("killed", 0, 4.0)
    version = house.client.get_model_version("killed", "1")
    assert version.tags["verdict"] and not version.aliases  # tags and card first, alias last
    manifest, reused = house.register("killed", 0, 4.0)
    assert not reused
    assert registered(manifest, house.home).version == 1
    assert registered(manifest, house.home).aliases == ("challenger", "champion")


def test_an_alias_that_a_person_moved_stays_where_it_is(house):
    house.register("moved", 0, 4.0)
    house.register("moved", 1, 3.0)
    house.client.set_registered_model_alias("moved", "champion", "1")
    _, reused = house.register("moved", 1, 3.0)
    assert reused
    assert int(house.client.get_registered_model("moved").aliases["champion"]) == 1


def _register(root, seed, nats):
    House(root).register("race", seed, nats)


@pytest.mark.slow
def test_of_two_registrations_at_once_the_better_one_is_champion(house):
    start = multiprocessing.get_context("spawn")
    root = house.store.root.parent
    house.register("race", 0, 5.0)
    runs = [start.Process(target=_register, args=(root, seed, nats)) for seed, nats in ((1, 4.0), (2, 3.0))]
    for run in runs:
        run.start()
    for run in runs:
        run.join(120)
    assert [run.exitcode for run in runs] == [0, 0]
    best = house.client.get_registered_model("race").aliases["champion"]
    assert float(house.client.get_model_version("race", best).tags["nats"]) == 3.0


def test_the_champion_is_what_the_next_one_has_to_beat(house):
    house.register("rivals", 0, 4.0)
    one, two = house.weights(0), house.weights(1)
    assert champion("rivals", house.store, None, house.home).digest == one.digest
    assert champion("rivals", house.store, two.digest, house.home).digest == one.digest
    assert champion("rivals", house.store, one.digest, house.home) is None  # it met nobody when it was registered
    house.register("rivals", 1, 3.0, rival=one.digest)
    assert champion("rivals", house.store, None, house.home).digest == two.digest
    assert champion("rivals", house.store, two.digest, house.home).digest == one.digest  # as it was then
    assert champion("rivals", Store(house.home / "empty"), None, house.home) is None
    assert champion("nobody", house.store, None, house.home) is None


def test_no_registry_is_no_champion_and_makes_no_database(tmp_path, house):
    assert champion("any", house.store, None, tmp_path) is None
    with pytest.raises(UsageError, match="maskmill run quickstart"):
        predict("a [MASK]", home=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_predict_fills_every_mask(house, first):
    masks = predict("the [MASK] sat on the [MASK]", "first", 3, house.home)
    assert [len(ranked) for ranked in masks] == [3, 3]
    assert masks == predict("the [MASK] sat on the [MASK]", "first@challenger", 3, house.home)
    assert masks == predict("the [MASK] sat on the [MASK]", "first/1", 3, house.home)
    assert [it["token"] for it in predict("the [MASK]", "first", home=house.home, targets="on")[0]] == [" on"]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("first@prod", "no @prod; it has @challenger, @champion and versions 1"),
        ("first/7", "no version 7; it has 1"),
        ("nowhere", "no model 'nowhere'; there are .*first"),
        ("first/x", "write NAME, NAME@ALIAS or NAME/VERSION"),
        ("first@champion/1", "NAME@ALIAS"),
        ("../etc", "cannot be the name"),
        ("a b", "cannot be the name"),
        ("first@a;b", "cannot be an alias"),
    ],
)
def test_a_model_that_is_not_there_is_answered_with_what_is(house, first, spec, says):
    with pytest.raises(UsageError, match=says):
        load_model(spec, house.home)


def test_without_a_name_and_with_many_models_one_is_asked_for(house, first):
    house.client.create_registered_model("another")
    with pytest.raises(UsageError, match="Which model"):
        load_model(None, house.home)


@pytest.mark.parametrize(
    ("text", "top", "says"),
    [("nothing", 5, "The text holds no"), ("[MASK] " + "x" * 60, 5, "The text has"), ("[MASK]", 0, "top_k is 0")],
)
def test_a_text_that_cannot_be_answered_is_wrong_use(house, first, text, top, says):
    with pytest.raises(UsageError, match=says):
        predict(text, "first", top, house.home)


@pytest.mark.parametrize("name", ["", "a/b", "a'b", "-x", "a b", "x" * 101, "é"])
def test_a_name_that_addresses_cannot_carry_is_refused(name):
    with pytest.raises(UsageError, match="cannot be the name"):
        RegisterConfig(name)


def test_a_tampered_weight_is_refused_by_name(house):
    manifest, _ = house.register("tampered", 0, 4.0)
    logged = house.client.get_model_version("tampered", "1").source.removeprefix("models:/")
    (weights,) = tracking.artifact_root(house.home).rglob(f"{logged}/**/model.safetensors")
    data = bytearray(weights.read_bytes())
    data[-7] ^= 1
    weights.write_bytes(data)
    with pytest.raises(DataError, match=r"tampered version 1 .*model\.safetensors is not the file"):
        load_model("tampered", house.home)
    assert verify(manifest) == []


@pytest.mark.slow
def test_it_loads_where_the_project_is_not(house, first, tmp_path):
    """mlflow.pyfunc and stock transformers, in a process that cannot see the project, pickle forbidden."""
    code = """
import importlib.util, json, mlflow
assert importlib.util.find_spec("tasks") is None, "the project is visible"
model = mlflow.pyfunc.load_model("models:/first@champion")
served = model.predict(["the [MASK] sat"], params={"top_k": 2})[0][0]
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline
folder = mlflow.artifacts.download_artifacts("models:/first@champion") + "/artifacts/model"
network, tokenizer = AutoModelForMaskedLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
stock = pipeline("fill-mask", model=network, tokenizer=tokenizer)("the [MASK] sat", top_k=2)
print(json.dumps([[it["token"] for it in served], [it["token_str"] for it in stock]]))
"""
    # -S leaves the .pth files of the environment out, and with them an editable install of the project.
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    environment = CALM | {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "PYTHONPATH": packages,
        "MLFLOW_TRACKING_URI": tracking.tracking_uri(house.home),
    }
    command = [sys.executable, "-P", "-S", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    served, stock = json.loads(done.stdout)
    assert served == stock == [it["token"] for it in predict("the [MASK] sat", "first", 2, house.home)[0]]


def test_the_environment_is_left_as_it_was(house, first):
    predict("a [MASK]", "first", 1, house.home)
    assert "MLFLOW_TRACKING_URI" not in os.environ
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"


def test_a_registry_that_cannot_be_reached_is_one_sentence(monkeypatch, house):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://name:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(MaskmillError, match="does not answer") as raised:
        champion("first", house.store, None, house.home)
    assert "secret" not in str(raised.value) and "\n" not in str(raised.value)


def test_a_registry_that_another_process_keeps_busy_is_worth_another_try(house):
    busy = OperationalError("insert into tags", None, sqlite3.OperationalError("database is locked"))
    said = r"Another process keeps the registry at sqlite:.* busy; run again later"
    with pytest.raises(UnreachableError, match=said), versions.explained(house.home):
        raise busy


def test_the_stage_imports_no_mlflow_until_it_needs_it():
    code = "import sys, tasks.registry, tasks.evaluate; sys.exit(bool({'torch', 'mlflow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_key_follows_every_input():
    inputs = ("abcde", "xbcde", "axcde", "abxde", "abcxe", "abcdx")
    assert len({registry.identity(RegisterConfig(), *digests).key for digests in inputs}) == 6


AWAY = "API request to http://h/api failed with "


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (f"{AWAY}exception HTTPConnectionPool(host='h', port=9): Max retries exceeded", UnreachableError),
        (f"{AWAY}timeout exception HTTPConnectionPool: Read timed out. (read timeout=120)", UnreachableError),
        ("API request to endpoint /api failed with error code 502 != 200. Response body: '<html>'", UnreachableError),
        ("... but the response body was not in a valid JSON format. Response body: '<html>'", UnreachableError),
        ("(sqlite3.OperationalError) attempt to write a readonly database", UsageError),
        ("(sqlite3.OperationalError) database or disk is full", DiskFullError),
        ("(raised as a result of autoflush)\n(sqlite3.OperationalError) database or disk is full", DiskFullError),
        ("(sqlite3.OperationalError) disk I/O error", DiskError),
        ("(sqlite3.OperationalError) unable to open database file", DiskError),
        ("Detected out-of-date database schema (found version f, but expected d). Take a backup", UsageError),
        ("(sqlite3.DatabaseError) database disk image is malformed", DataError),
        ("(sqlite3.DatabaseError) file is not a database", DataError),
    ],
)
def test_what_mlflow_says_has_the_status_that_is_documented(said, kind, tmp_path):
    from mlflow.exceptions import MlflowException

    with pytest.raises(MaskmillError) as raised, versions.explained(tmp_path):
        raise MlflowException(said)
    assert type(raised.value) is kind


def test_a_database_that_cannot_be_opened_for_want_of_rights_is_wrong_use(tmp_path):
    from mlflow.exceptions import MlflowException

    with pytest.raises(UsageError, match="may not be written to"), versions.explained(tmp_path / "nothing here"):
        raise MlflowException("(sqlite3.OperationalError) unable to open database file")


@pytest.mark.parametrize("way", ["refuses", "noise", "hangs"])
def test_a_server_that_is_away_is_found_out_in_seconds(way, tmp_path, monkeypatch):
    """MLflow's own client waits six minutes for one that takes connections and says nothing."""
    monkeypatch.setattr(versions, "PATIENCE", 0.3)
    with Gateway(9, way) as gateway, monkeypatch.context() as patch:
        patch.setitem(REPLIES, "hangs", b"")
        patch.setenv("MLFLOW_TRACKING_URI", gateway.address.replace("://", "://me:password@"))
        with pytest.raises(UnreachableError) as raised:
            versions.reached(tmp_path)
    assert "password" not in str(raised.value)
