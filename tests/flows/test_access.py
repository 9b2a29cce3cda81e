"""The servers of `maskmill ui` are for this machine, or for whoever has the passwords."""

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from flows.access import LOOPBACK, MLFLOW, PREFECT, SHORTEST, Access, names
from tasks.errors import UsageError
from tests import servers

PASSWORD = "a long enough password"
BOTH = {PREFECT: f"mill:{PASSWORD}", MLFLOW: PASSWORD}
NEIGHBOUR = "127.0.0.2"
"""Of this machine, but not the usual address: treated like any other, and yet nobody else gets in."""


@pytest.fixture(autouse=True)
def no_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (PREFECT, MLFLOW, "MLFLOW_FLASK_SERVER_SECRET_KEY", "PREFECT_UI_API_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", NEIGHBOUR, "192.168.1.2", "mill.example.org", ""])
def test_without_passwords_only_this_machine(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for given in ({}, {PREFECT: BOTH[PREFECT]}, {MLFLOW: BOTH[MLFLOW]}, {PREFECT: "", MLFLOW: ""}):
        for name in BOTH:
            monkeypatch.setenv(name, given.get(name, ""))
        with pytest.raises(UsageError) as caught:
            Access(host)
        assert [name for name in BOTH if name in str(caught.value)] == [name for name in BOTH if not given.get(name)]
        assert PASSWORD not in str(caught.value)
    for loopback in LOOPBACK:
        Access(loopback)


@pytest.mark.parametrize("name, value", [(PREFECT, "mill"), (PREFECT, "mill:"), (MLFLOW, "x" * (SHORTEST - 1))])
def test_a_password_that_the_server_would_not_take(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=name):
        Access()


def test_mlflow_asks_for_the_password_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words, settings = Access().mlflow(5000, tmp_path)
    assert "basic-auth" not in words and "--allowed-hosts" not in words and settings == {}
    monkeypatch.setenv(MLFLOW, PASSWORD)
    words, settings = Access().mlflow(5000, tmp_path)
    assert words[-2:] == ["--app-name", "basic-auth"] and PASSWORD not in " ".join(words)
    assert Path(settings["MLFLOW_AUTH_CONFIG_PATH"]).read_text().startswith("[mlflow]")
    key = settings["MLFLOW_FLASK_SERVER_SECRET_KEY"]
    assert len(key) == 64 and key != Access().mlflow(5000, tmp_path)[1]["MLFLOW_FLASK_SERVER_SECRET_KEY"]


def test_names_and_origins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert names("127.0.0.1") == () and names("0.0.0.0", "a.example, b.example") == ("a.example", "b.example")
    assert NEIGHBOUR in names(NEIGHBOUR) and "0.0.0.0" not in names("0.0.0.0")
    for name, value in BOTH.items():
        monkeypatch.setenv(name, value)
    access = Access("0.0.0.0", ("a.example",))
    assert (access.near, access.shown) == ("127.0.0.1", "a.example")
    words, _ = access.mlflow(5000, tmp_path)
    assert "a.example,a.example:*,127.0.0.1,127.0.0.1:*,localhost,localhost:*" in words and "*" not in words
    origins = access.prefect(4200)["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"].split(",")
    assert {"https://a.example", "http://a.example:4200", "http://127.0.0.1:4200"} <= set(
        origins
    ) and "*" not in origins


def test_the_command_says_it_in_a_sentence(tmp_path: Path) -> None:
    done = maskmill(tmp_path, "ui", "--host", "0.0.0.0")
    assert done.returncode == 2 and done.stdout == "", done
    assert done.stderr.count("\n") == 1 and PREFECT in done.stderr and MLFLOW in done.stderr
    assert not (tmp_path / "logs").exists()


# For real.


def maskmill(home: Path, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    own = servers.calm({"MASKMILL_HOME": str(home), **environment})
    whole = [sys.executable, "-m", "flows.cli", *words]
    return subprocess.run(whole, cwd=servers.ROOT, env=own, capture_output=True, text=True, check=False)


@contextmanager
def ui(home: Path, **environment: str) -> Iterator[tuple[str, str]]:
    """maskmill ui; addresses of Prefect and MLflow as this machine has them."""
    words = ["ui", "--host", NEIGHBOUR, "--allowed-hosts", "mill.example.org"]
    words += ["--prefect-port", "0", "--mlflow-port", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", *words],
        cwd=servers.ROOT,
        env=servers.calm({"MASKMILL_HOME": str(home), **environment}),
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout
    try:
        shown = [process.stdout.readline().split()[1] for _ in range(2)]
        assert all(address.startswith("http://mill.example.org:") for address in shown)
        at = [address.split("#")[0].rstrip("/").replace("mill.example.org", NEIGHBOUR) for address in shown]
        yield at[0], at[1]
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        finally:
            process.kill()


def status(url: str, user: str = "", password: str = "", **headers: str) -> int:
    request = urllib.request.Request(url, headers=headers)
    if user:
        request.add_header("Authorization", f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.slow
def test_both_servers_ask_for_their_passwords(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "texts").mkdir()
    for number in range(200):
        words = [f"word{(number * 7 + at * at) % 31} of the {at % 5} files" for at in range(12)]
        (tmp_path / "texts" / f"{number}.txt").write_text(" ".join(words) + f" and text {number}.")
    run = ("run", "tiny", "--source", str(tmp_path / "texts"))
    with ui(home, **BOTH) as (prefect, mlflow):
        api, runs = f"{prefect}/api/admin/version", f"{mlflow}/api/2.0/mlflow/experiments/search?max_results=1"
        for url, user in ((api, "mill"), (runs, "admin")):
            assert [status(url), status(url, user, "wrong"), status(url, user, PASSWORD)] == [401, 401, 200], url
        assert status(runs, "admin", PASSWORD, Host="evil.example") == 403
        assert status(runs, "admin", PASSWORD, Host="mill.example.org:5000") == 200
        request = urllib.request.Request(f"{prefect}/api/health", headers={"Origin": "http://evil.example"})
        with urllib.request.urlopen(request, timeout=30) as reply:
            assert "Access-Control-Allow-Origin" not in reply.headers

        refused = maskmill(home, *run)
        assert refused.returncode == 2 and "set PREFECT_API_AUTH_STRING" in refused.stderr, refused.stderr
        # The same variables as for `maskmill ui`, and MLflow's for its client: the run goes through both servers.
        own = {"MLFLOW_TRACKING_URI": mlflow, "MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": PASSWORD}
        done = maskmill(home, *run, **BOTH, **own)
        assert done.returncode == 0 and "tiny version 1" in done.stdout, done.stderr
        assert "cannot show" not in done.stderr and "MLflow" not in done.stderr.replace("MLflow: making", ""), (
            done.stderr
        )
        (entry,) = json.loads(maskmill(home, "runs", "--json").stdout)
        assert status(f"{prefect}/api/flow_runs/{entry['flow_run_id']}", "mill", PASSWORD) == 200

    other = maskmill(home, "ui", "--prefect-port", "0", "--mlflow-port", "0", **{**BOTH, MLFLOW: PASSWORD + "!"})
    assert other.returncode == 2 and "another password" in other.stderr and PASSWORD not in other.stderr, other.stderr
    assert not (home / "ui.json").exists()
