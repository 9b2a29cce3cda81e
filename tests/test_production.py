"""The production stack as deployments/production/start starts it: schedule, run, stop, power cut, registry, restore."""

import json
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from deployments.postgres import cluster
from tests import servers
from tests.servers import loaded, variables

ROOT = Path(__file__).parents[1]
FILES = ROOT / "deployments"
SERVICES: dict[str, Any] = yaml.safe_load((FILES / "compose.yaml").read_text())["services"]
DOCUMENT = (ROOT / "docs" / "production.md").read_text()
LONG = ["pretrain.steps=1500", "pretrain.checkpoint_every=1000000"]


def documented(heading: str) -> str:
    """The commands below a heading of docs/production.md."""
    section = DOCUMENT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return "\n".join(re.findall(r"```bash\n(.*?)```", section, re.S))


def until(what: Callable[[], Any], seconds: float, why: Callable[[], str] = str) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, f"it did not come to that: {why()}"
        time.sleep(0.2)
    return found


class Production:
    """The stack in a folder, started and stopped as a user would."""

    def __init__(self, folder: Path) -> None:
        self.outside, self.folder = folder, folder / "stack"
        self.home = self.folder / "home"
        names = loaded().PORTS
        self.ports = dict(zip(names, servers.ports(len(names)), strict=True))
        own = {name: str(port) for name, port in self.ports.items()}
        own |= {"PREFECT_WORKER_QUERY_SECONDS": "2", "PREFECT_WORKER_PREFETCH_SECONDS": "2", "OMP_NUM_THREADS": "1"}
        self.environment = servers.calm() | own
        self.api = f"http://{servers.HOST}:{self.ports['PREFECT_SERVER_API_PORT']}/api"
        self.mlflow = f"http://{servers.HOST}:{self.ports['MLFLOW_PORT']}"
        self.process: subprocess.Popen[str] | None = None
        (folder / "texts").mkdir()
        for number in range(60):
            text = " ".join(f"the {one} sat on the {number % 7} mats" for one in ("cat", "dog", "rat", "hen"))
            (folder / "texts" / f"{number}.txt").write_text(f"{text} number {number}. " * 6)

    def start(self, *options: str) -> None:
        words = [sys.executable, str(FILES / "production" / "start"), str(self.folder), *options]
        with open(self.outside / "start.log", "a") as log:
            self.process = subprocess.Popen(
                words, cwd=self.outside, env=self.environment, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self.process.stdout
        wanted = "PostgreSQL" if options else "Passwords"
        said = ""
        while wanted not in said:
            line = self.process.stdout.readline()
            assert line, self.words()
            said += line

    def stop(self) -> None:
        """As systemctl stop does."""
        assert self.process
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(200) == 0, self.words()
        self.process = None

    def power_cut(self) -> None:
        """kill -9 of everything, PostgreSQL included."""
        assert self.process
        roots = [psutil.Process(self.process.pid)]
        with suppress(OSError, psutil.NoSuchProcess):
            roots.append(psutil.Process(int((self.folder / "postgres" / "postmaster.pid").read_text().split()[0])))
        victims = [one for root in roots for one in (root, *root.children(recursive=True))]
        for victim in victims:
            with suppress(psutil.NoSuchProcess):
                victim.kill()
        self.process.wait()
        psutil.wait_procs(victims, 10)
        self.process = None

    def close(self) -> None:
        if self.process and self.process.poll() is None:
            self.power_cut()

    def words(self) -> str:
        """What was said last, for a failure."""
        logs = [self.outside / "start.log", *(self.folder / "logs").glob("*.log")]
        return "\n".join(f"== {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in logs if log.exists())

    @property
    def secrets(self) -> dict[str, str]:
        return variables(self.folder / "secrets.env")

    def shell(self, commands: str, **more: str) -> "subprocess.CompletedProcess[str]":
        """Commands of the documentation, with the files that it names."""
        begin = "set -euo pipefail; set -a; . ./database.env; . ./worker.env; set +a\n"
        done = subprocess.run(
            ["bash", "-c", f"cd {self.folder}\n{begin}cd {ROOT}\n{commands}"],
            env=self.environment | more,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def maskmill(self, *words: str) -> str:
        return self.shell(f"{sys.executable} -m flows.cli {' '.join(words)}").stdout

    def status(self, url: str, word: str = "") -> int:
        """HTTP's word for a request by user:password."""
        request = urllib.request.Request(url)
        if word:
            request.add_header("Authorization", f"Basic {b64encode(word.encode()).decode()}")
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                return int(reply.status)
        except urllib.error.HTTPError as error:
            return error.code

    def ask(self, url: str, body: dict[str, Any] | None = None) -> Any:
        """A question to Prefect's API (a path) or MLflow's (an address), as a page of theirs would put it."""
        word = self.secrets["PREFECT_SERVER_API_AUTH_STRING"]
        headers = {"Content-Type": "application/json"}
        if url.startswith("http"):
            word = f"admin:{self.secrets['MLFLOW_AUTH_ADMIN_PASSWORD']}"
        elif body is not None:
            headers |= {"Prefect-Csrf-Token": self.ask("csrf-token?client=t")["token"], "Prefect-Csrf-Client": "t"}
        headers["Authorization"] = f"Basic {b64encode(word.encode()).decode()}"
        where = url if url.startswith("http") else f"{self.api}/{url}"
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(where, data, headers), timeout=60) as reply:
            return json.load(reply)

    def begin(self) -> str:
        known = self.ask("deployments/name/maskmill/weekly-pretraining")
        parameters = {"recipe": "tiny", "source": [str(self.outside / "texts")], "set": LONG}
        return str(self.ask(f"deployments/{known['id']}/create_flow_run", {"parameters": parameters})["id"])

    def state(self, run: str) -> str:
        return str(self.ask(f"flow_runs/{run}")["state_type"])

    def trained(self) -> int:
        """Lines of metrics that the training under way has written."""
        spools = list((self.home / "store").glob("pretrain/.*.partial/**/measured.metrics.jsonl"))
        return sum(len(spool.read_bytes().splitlines()) for spool in spools)

    def ends(self, run: str) -> bool:
        """Is the run over? The doctor comes by as its timer would have it, only more often."""
        time.sleep(10)
        if (state := self.state(run)) == "CRASHED":
            self.maskmill("doctor", "--rerun")
        return state in ("COMPLETED", "FAILED")


@pytest.fixture
def production() -> Iterator[Production]:
    if cluster.binaries("pg_trgm") is None:
        pytest.skip("there is no PostgreSQL with pg_trgm here: apt-get install postgresql")
    # Where PostgreSQL's user may pass through.
    folder = Path(tempfile.mkdtemp(prefix="maskmill-production-"))
    folder.chmod(0o711)
    made = Production(folder)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_from_a_schedule_over_a_stop_and_a_power_cut_to_the_registry_and_back_from_a_backup(
    production: Production,
) -> None:
    production.start()
    asks_for_passwords(production)
    begun = production.begin()
    why = production.words

    # Stopped in the middle, as for a reboot: the training writes a checkpoint although none is due.
    until(lambda: production.trained() > 5, 300, why)
    production.stop()
    assert "stopped by SIGTERM after step" in (production.folder / "logs" / "worker.log").read_text(), why()

    # It goes on by itself; then the power goes. PostgreSQL recovers, and the doctor sends the run back.
    production.start()
    seen = production.trained()
    until(lambda: production.trained() > seen + 3, 300, why)
    production.power_cut()
    production.start()
    until(lambda: production.ends(begun), 500, why)
    is_there(production, begun)

    backup = production.outside / "backup"
    backup.mkdir()
    places = {"BACKUP": str(backup), "ARTIFACTS": str(production.folder / "mlflow")}
    production.shell(documented("Backup"), **places)
    production.stop()
    for name in ("postgres", "mlflow", "home", "prefect"):
        shutil.rmtree(production.folder / name)
    production.start("--database")
    production.shell(documented("Restore"), **places)
    of = "set -a; . {}/{}.env; set +a\n{}"
    for server in ("prefect", "mlflow"):
        commands = "\n".join(line for line in documented("Upgrade").splitlines() if f"/{server}/start" in line)
        production.shell(of.format(production.folder, server, commands))
    production.stop()
    production.start()
    is_there(production, begun)
    production.stop()


def asks_for_passwords(production: Production) -> None:
    """And keeps its own where only its user reads them; and the schedules are there."""
    for name in ("secrets.env", "worker.env", "database.env", "prefect.env", "mlflow.env"):
        assert stat.S_IMODE((production.folder / name).stat().st_mode) == 0o600, name
    known = production.secrets
    runs = f"{production.mlflow}/api/2.0/mlflow/experiments/search?max_results=1"
    for url, user, word in (
        (f"{production.api}/admin/version", "mill", known["PREFECT_SERVER_API_AUTH_STRING"]),
        (runs, "admin", f"admin:{known['MLFLOW_AUTH_ADMIN_PASSWORD']}"),
    ):
        assert [production.status(url), production.status(url, f"{user}:wrong"), production.status(url, word)] == [
            401,
            401,
            200,
        ], url
    port = production.ports["PREFECT_WORKER_WEBSERVER_PORT"]
    for url in (f"{production.api}/health", f"{production.mlflow}/health", f"http://{servers.HOST}:{port}/health"):
        assert production.status(url) == 200
    for name in ("prefect", "mlflow", "worker"):  # the containers' own health checks
        words = [word.replace("$$", "$") for word in SERVICES[name]["healthcheck"]["test"][1:]]
        usual = re.search(r":(\d+)/", words[-1])
        assert usual
        mine = {"4200": "PREFECT_SERVER_API_PORT", "5000": "MLFLOW_PORT", "8080": "PREFECT_WORKER_WEBSERVER_PORT"}
        words[-1] = words[-1].replace(usual[1], str(production.ports[mine[usual[1]]]))
        subprocess.run([sys.executable, *words[1:]], check=True)
    listed = production.ask("deployments/filter", {})
    assert {one["name"] for one in listed} == {"nightly-data", "weekly-pretraining", "champion-on-new-data"}
    assert all(one["schedules"][0]["active"] for one in listed)
    assert "maskmill-zombies" in {one["name"] for one in production.ask("automations/filter", {})}
    # A schedule has made its next runs.
    until(lambda: production.ask("flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}), 120)


def is_there(production: Production, run: str) -> None:
    """The run in Prefect with its stages, the version in MLflow with its aliases and files, the store whole."""
    assert production.state(run) == "COMPLETED"
    tasks = production.ask("task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
    assert {one["name"].partition("-")[0] for one in tasks} >= {"corpus", "pretrain", "register"}
    found = production.ask(f"{production.mlflow}/api/2.0/mlflow/registered-models/get?name=tiny")["registered_model"]
    assert {one["alias"]: one["version"] for one in found["aliases"]} == {"challenger": "1", "champion": "1"}
    assert json.loads(production.maskmill("predict", "'the [MASK] sat'", "--json", "--model", "tiny/1"))["masks"]
    production.maskmill("verify")
    production.maskmill("lineage", "tiny/1", "--verify")
