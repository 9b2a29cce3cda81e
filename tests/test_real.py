"""PostgreSQL and an object store, for real: from `maskmill run` to a model that loads.

essential   the registry straight on a database and a bucket
slow        the whole flow against the server as deployments/mlflow starts it
"""

import json
import subprocess
import sys
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from flows import environment
from tasks import registry, versions
from tasks.artifacts import Manifest, Store
from tasks.errors import MaskmillError, UsageError
from tasks.registry import RegisterConfig
from tests import servers
from tests.tasks import small_model


def test_the_registry_on_postgresql_and_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with servers.postgres() as database, servers.s3() as bucket:
        environment = {"MLFLOW_TRACKING_URI": database.uri, "MLFLOW_DEFAULT_ARTIFACT_ROOT": bucket.bucket}
        for name, value in servers.calm(environment | bucket.environment).items():
            monkeypatch.setenv(name, value)
        store = Store(tmp_path / "store")
        parents = made_in(store)
        manifest, reused = registry.register(RegisterConfig("small"), *parents, store, home=tmp_path / "home")
        assert not reused
        again = registry.register(RegisterConfig("small"), *parents, store, home=tmp_path / "home")
        assert again == (manifest, True)

        version = registry.registered(manifest, tmp_path / "home")
        assert version and version.aliases == ("challenger", "champion")
        (found,) = registry.predict("the cat [MASK] on", "small@champion", home=tmp_path / "home")
        assert len(found) == 5 and found[0]["probability"] > 0
        loads_in_transformers(versions.fetch(version, tmp_path / "home", tmp_path / "fetched"))
        names = bucket.names()
        assert any(name.endswith("/model.safetensors") for name in names)
        assert not (tmp_path / "home" / "mlartifacts").exists() and not Path("mlruns").exists()


def made_in(store: Store) -> list[Manifest]:
    """The manifests that a version is registered from."""
    corpus = small_model.corpus(store)
    vocabulary = small_model.vocabulary(store, corpus)
    shards = small_model.shards(store, vocabulary)
    weights = small_model.pretrain(store, vocabulary, shards, seed=0, noise=0.1)
    return [corpus, vocabulary, shards, weights, small_model.evaluate(store, weights, 4.0, "a" * 64)]


def loads_in_transformers(folder: Path) -> None:
    from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

    model, tokenizer = AutoModelForMaskedLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    (found, *_) = pipeline("fill-mask", model=model, tokenizer=tokenizer)("the [MASK] cat")
    assert 0 < found["score"] <= 1


# The whole.


@dataclass(frozen=True)
class Stack:
    """PostgreSQL, an object store and MLflow's server in production, and a home with a run of the tiny recipe."""

    address: str
    database: servers.Postgres
    bucket: servers.S3
    home: Path
    texts: Path
    api: str

    def environment(self, password: str = servers.PASSWORD, **more: str) -> dict[str, str]:
        own = {"MASKMILL_HOME": str(self.home), "PREFECT_API_URL": self.api, "MLFLOW_TRACKING_URI": self.address}
        own |= {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": password}
        return servers.calm(own | more)

    def __call__(self, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        words = [sys.executable, "-m", "flows.cli", *arguments]
        return subprocess.run(
            words, cwd=servers.ROOT, env=self.environment(**environment), capture_output=True, text=True, check=False
        )

    def run(self, **environment: str) -> "subprocess.CompletedProcess[str]":
        return self("run", "tiny", "--source", str(self.texts), **environment)

    def status(self, path: str, password: str | None = None, host: str | None = None) -> int:
        """HTTP's word for a request of MLflow's."""
        request = urllib.request.Request(f"{self.address}{path}")
        if password is not None:
            request.add_header("Authorization", f"Basic {b64encode(f'admin:{password}'.encode()).decode()}")
        if host:
            request.add_header("Host", host)
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                return int(reply.status)
        except urllib.error.HTTPError as error:
            return error.code


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, prefect_server: str) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    (folder / "texts").mkdir()
    for number in range(200):
        words = [f"word{(number * 7 + at * at) % 31} of the {at % 5} files" for at in range(12)]
        (folder / "texts" / f"{number}.txt").write_text(" ".join(words) + f" and text {number}.")
    with (
        servers.postgres() as database,
        servers.s3() as bucket,
        servers.production(folder, database, bucket) as address,
    ):
        yield Stack(address, database, bucket, folder / "home", folder / "texts", prefect_server)


EXPERIMENTS = "/api/2.0/mlflow/experiments/search?max_results=1"


@pytest.mark.slow
def test_the_server_in_production_asks_for_the_password(stack: Stack) -> None:
    assert stack.status("/health") == 200
    for path in (EXPERIMENTS, "/", "/ajax-api/2.0/mlflow/registered-models/search"):
        assert [stack.status(path), stack.status(path, "wrong"), stack.status(path, "")] == [401, 401, 401], path
    assert stack.status(EXPERIMENTS, servers.PASSWORD) == 200


@pytest.mark.slow
def test_the_server_in_production_answers_to_its_names_only(stack: Stack) -> None:
    assert stack.status(EXPERIMENTS, servers.PASSWORD, "mlflow.example.org") == 200
    for host in ("evil.example", "mlflow.example.org.evil.example", "10.0.0.1"):
        assert stack.status(EXPERIMENTS, servers.PASSWORD, host) == 403, host


@pytest.mark.slow
def test_a_run_with_the_wrong_password_stops_before_it_begins(stack: Stack) -> None:
    done = stack.run(password="xylograph")
    assert done.returncode == 2, done.stderr
    assert "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in done.stderr and "xylograph" not in done.stderr
    assert not (stack.home / "store" / "corpus").exists()


@pytest.mark.slow
def test_the_wrong_password_of_a_database_is_said_at_once(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", replace(stack.database, password="xylograph").uri)
    with pytest.raises(UsageError, match='password authentication failed for user "mlflow"') as caught:
        environment.check_mlflow()
    assert "xylograph" not in str(caught.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", stack.database.uri)
    environment.check_mlflow()


@pytest.mark.slow
def test_a_store_that_cannot_be_written_to(stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3
    from mlflow.store.artifact import s3_artifact_repo

    own = {"MLFLOW_TRACKING_URI": stack.database.uri, "MLFLOW_DEFAULT_ARTIFACT_ROOT": stack.bucket.bucket}
    own |= {**stack.bucket.environment, "AWS_ACCESS_KEY_ID": "reader"}
    for name, value in servers.calm(own).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # both remember whose key the environment held before
    s3_artifact_repo._cached_get_s3_client.cache_clear()
    store = Store(tmp_path / "store")
    with pytest.raises(MaskmillError, match=r"does not answer as it should: .*AccessDenied"):
        registry.register(RegisterConfig("unwritten"), *made_in(store), store, home=tmp_path / "home")
    assert versions.names(tmp_path / "home") == []


@pytest.mark.slow
def test_from_text_to_a_model_on_postgresql_and_s3(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = stack.run()
    assert done.returncode == 0, done.stderr
    assert "Registered    tiny version 1" in done.stdout and "MLflow" not in done.stderr, done.stderr
    assert not (stack.home / "mlflow.db").exists() and not (stack.home / "mlartifacts").exists()
    names = stack.bucket.names()
    for ending in ("/model.safetensors", "/report.html", "/card.html", "/fill_mask.py"):
        assert any(name.endswith(ending) for name in names), (ending, names)
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".pth", ".pt", ".bin"))]

    asked = stack("predict", "the [MASK] files", "--json")
    assert asked.returncode == 0 and json.loads(asked.stdout)["masks"][0][0]["token"], asked.stderr
    for name, value in stack.environment().items():
        monkeypatch.setenv(name, value)
    version = versions.find("tiny@champion", stack.home)
    loads_in_transformers(versions.fetch(version, stack.home, tmp_path))

    again = stack.run()
    assert again.returncode == 0 and "tiny version 1" in again.stdout, again.stderr
    assert [line.split()[1] for line in again.stdout.splitlines() if line.startswith("register ")] == ["reused"]
