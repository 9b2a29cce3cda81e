import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from flows import access, environment, ui
from tasks.errors import UsageError
from tests.faults.gateway import Gateway


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    mine: dict[str, str] = {}
    monkeypatch.setattr(environment.os, "environ", mine)
    return mine


def test_no_library_reports_home(variables: dict[str, str], tmp_path: Path) -> None:
    environment.settle(tmp_path)
    environment.reach_hub(False)
    assert variables["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert variables["DO_NOT_TRACK"] == "true"
    assert variables["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert variables["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert variables["HF_HUB_OFFLINE"] == "1"
    assert variables["RAY_USAGE_STATS_ENABLED"] == "0"


def test_all_that_is_written_lies_in_one_folder(variables: dict[str, str], tmp_path: Path) -> None:
    environment.settle(tmp_path)
    assert variables["PREFECT_HOME"].startswith(str(tmp_path))
    assert variables["HF_DATASETS_CACHE"].startswith(str(tmp_path))


def test_no_pickle_is_loaded(variables: dict[str, str], tmp_path: Path) -> None:
    environment.settle(tmp_path)
    assert variables["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    assert variables["PREFECT_RESULTS_DEFAULT_SERIALIZER"] == "json"


def test_what_the_user_has_set_stays(variables: dict[str, str], tmp_path: Path) -> None:
    variables["PREFECT_LOGGING_LEVEL"] = "DEBUG"
    environment.settle(tmp_path)
    assert variables["PREFECT_LOGGING_LEVEL"] == "DEBUG"


def test_home_is_a_variable_or_a_folder_of_the_checkout(variables: dict[str, str], tmp_path: Path) -> None:
    assert environment.home() == Path(__file__).parents[2] / ".maskmill"
    variables["MASKMILL_HOME"] = str(tmp_path)
    assert environment.home() == tmp_path


@contextmanager
def server(status: int) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.mark.parametrize("status", [200, 401, 403, 404])
def test_an_mlflow_server_that_answers_is_up(variables: dict[str, str], status: int) -> None:
    with server(status) as address:
        for uri in (f"http://{address}", f"http://{address}/", f"http://me:secret@{address}/mlflow"):
            variables["MLFLOW_TRACKING_URI"] = uri
            environment.check_mlflow()


@pytest.mark.parametrize("uri", ["", "sqlite:////a/b.db", "/a/folder", "file:///a", "databricks", "databricks://me"])
def test_a_registry_without_an_address_is_not_asked(variables: dict[str, str], uri: str) -> None:
    variables["MLFLOW_TRACKING_URI"] = uri
    environment.check_mlflow()


def test_an_mlflow_server_that_is_away_is_named_without_its_password(variables: dict[str, str]) -> None:
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for scheme in ("http", "https", "postgresql", "mysql+pymysql"):
            variables["MLFLOW_TRACKING_URI"] = f"{scheme}://me:secret@{address}/db"
            with pytest.raises(UsageError, match=r"No MLflow server answers at .*MLFLOW_TRACKING_URI") as caught:
                environment.check_mlflow()
            assert address in str(caught.value) and "secret" not in str(caught.value)
    variables["MLFLOW_TRACKING_URI"] = "http://host:port"
    with pytest.raises(UsageError, match="MLFLOW_TRACKING_URI"):
        environment.check_mlflow()
    with server(503) as address, pytest.raises(UsageError, match="Service Unavailable"):
        variables["MLFLOW_TRACKING_URI"] = f"http://{address}"
        environment.check_mlflow()


def test_the_recipes_remote_comes_before_that_of_the_machine(variables: dict[str, str]) -> None:
    assert environment.remote() == environment.remote("") == ""
    variables["MASKMILL_REMOTE"] = "s3://machine/folder"
    assert environment.remote() == "s3://machine/folder"
    assert environment.remote("s3://recipe/folder") == "s3://recipe/folder"


@pytest.mark.parametrize(
    ("home", "words"),
    [
        ("/a?b", r"a path with \?"),
        ("/a%20b#c", "a path with # and %"),
        ("/h\udcc3", "PYTHONUTF8=1"),
        ("/" + "x" * 480, "a path of 481 bytes"),
        ("~nobody-of-that-name/x", "no such user"),
    ],
)
def test_a_home_that_no_address_can_hold_is_refused(variables: dict[str, str], home: str, words: str) -> None:
    variables["MASKMILL_HOME"] = home
    with pytest.raises(UsageError, match=words):
        environment.home()


def test_what_does_not_speak_http_is_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with Gateway(9, "noise") as gateway:
        assert not ui.answers(f"{gateway.address}/api/health") and not access.refuses(gateway.address)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", gateway.address)
        with pytest.raises(UsageError, match="what answers does not speak HTTP"):
            environment.check_mlflow()
