"""The Prefect server runs with the libraries that are installed: fastapi 0.151 and later break it."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flows import ui
from tasks.errors import DataError

ROOT = Path(__file__).parents[2]


def ask(url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as reply:
        return json.load(reply)


def test_a_server_whose_database_is_damaged_says_which(tmp_path: Path) -> None:
    words = [sys.executable, "-c", "print('sqlite3.DatabaseError: file is not a database'); raise SystemExit(3)"]
    at, log = f"{ui.HOST}:{ui.free_port(0)}", tmp_path / "logs" / "prefect-server.log"
    server = ui.launch("Prefect", at, "/api/health", words, log, os.environ, tmp_path)
    with pytest.raises(DataError, match=r"/prefect/prefect\.db, is damaged: sqlite3\.DatabaseError: file is not"):
        server.wait()


def test_the_server_answers_also_to_empty_fields(prefect_server: str) -> None:
    assert ui.answers(f"{prefect_server}/health")
    assert isinstance(ask(f"{prefect_server}/flow_runs/filter", {"flows": None, "limit": 5}), list)


def test_the_server_sends_no_statistics_home(prefect_server: str) -> None:
    settings = ask(f"{prefect_server}/admin/settings")
    assert settings["server"]["analytics_enabled"] is False


def test_a_port_that_is_taken_is_replaced(prefect_server: str) -> None:
    taken = int(prefect_server.rsplit(":", 1)[1].split("/")[0])
    assert ui.free_port(taken) != taken


@pytest.mark.slow
def test_the_server_dies_with_a_killed_run(tmp_path: Path) -> None:
    program = """
import sys, time
from pathlib import Path
from flows import environment, ui
home = Path(sys.argv[1]); home.mkdir(); environment.settle(home)
with ui.prefect_api(home):
    print(ui.os.environ["PREFECT_API_URL"], flush=True); time.sleep(60)
"""
    words = [sys.executable, "-c", program, str(tmp_path / "home")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    url = process.stdout.readline().strip()
    assert ui.answers(f"{url}/health")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for _ in range(100):
        if not ui.answers(f"{url}/health"):
            return
        ui.time.sleep(0.1)
    raise AssertionError("the server outlived its maskmill")


@pytest.mark.slow
def test_ui_starts_both_servers_prints_their_addresses_and_stops_them(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    environment["MASKMILL_HOME"] = str(tmp_path / "home")
    (tmp_path / "home").mkdir()
    words = [sys.executable, "-m", "flows.cli", "ui", "--prefect-port", "0", "--mlflow-port", "0"]
    # A suite that runs in the background has SIGINT ignored, and children inherit that.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, preexec_fn=heed)
    assert process.stdout
    try:
        addresses = dict(process.stdout.readline().split(maxsplit=1) for _ in range(2))
        assert "workflowType=machine_learning" in addresses["MLflow"]
        assert all(ui.answers(address.split("#")[0].strip()) for address in addresses.values())
        assert ui.running(tmp_path / "home")
    finally:
        process.send_signal(signal.SIGINT)
        try:
            status = process.wait(30)
        finally:
            process.kill()
    assert status == 0
    assert not any(ui.answers(address.split("#")[0].strip()) for address in addresses.values())
    assert ui.running(tmp_path / "home") is None


@pytest.mark.slow
def test_a_run_outlives_its_server_which_hears_of_it_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    port = ui.free_port(0)
    server = ui.start_prefect(tmp_path, port).wait()
    (tmp_path / "texts").mkdir()
    for number in range(60):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"cat {number} sat on the mats, the dog on others. " * 8)
    variables = os.environ | {"MASKMILL_HOME": str(tmp_path / "home"), "PREFECT_API_URL": f"{server.address}/api"}
    settings = ["--set", "pretrain.steps=600", "--set", "pretrain.checkpoint_every=20"]
    words = [sys.executable, "-m", "flows.cli", "run", "tiny", "--source", str(tmp_path / "texts"), *settings]
    with subprocess.Popen(words, cwd=ROOT, env=variables, text=True, stderr=subprocess.PIPE) as run:
        while not list((tmp_path / "home").glob("store/pretrain/.*.partial/.scratch/checkpoints/*")):
            assert run.poll() is None, run.communicate()[1]
            time.sleep(0.1)
        os.killpg(server.process.pid, signal.SIGKILL)
        _, said = run.communicate(timeout=300)
    assert run.returncode == 0, said
    assert "The run is complete, but its Prefect server is away" in said
    server = ui.start_prefect(tmp_path, port).wait()
    try:
        words = [sys.executable, "-m", "flows.cli", "doctor", "--json"]
        done = subprocess.run(words, cwd=ROOT, env=variables, capture_output=True, text=True, check=True)
        (found,) = json.loads(done.stdout)
        assert found["mended"] and found["what"] == "was RUNNING at the server, but has completed: completed"
    finally:
        server.stop()


@pytest.mark.slow
def test_a_slot_is_free_again_although_its_server_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
    from prefect.settings import PREFECT_API_URL, temporary_settings

    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    port = ui.free_port(0)
    server = ui.start_prefect(tmp_path, port)
    try:
        url = server.wait().address + "/api"
        with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as client:
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name="one", limit=1))
            client.increment_concurrency_slots_with_lease(["one"], 1, "concurrency", lease_duration=60)
            assert client.read_global_concurrency_limit_by_name("one").active_slots == 1
            os.killpg(server.process.pid, signal.SIGKILL)
            server.process.wait()
            server = ui.start_prefect(tmp_path, port)
            server.wait()
            for _ in range(150):
                if client.read_global_concurrency_limit_by_name("one").active_slots == 0:
                    return
                ui.time.sleep(1)
            raise AssertionError("the slot is still taken")
    finally:
        server.stop()
