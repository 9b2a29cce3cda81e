"""A home folder with a Prefect server, a worker and a webhook, all real, for tests of what runs by itself."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
DATA, TRAINING, NEWS = (
    "maskmill-data/nightly-data",
    "maskmill/weekly-pretraining",
    "maskmill-examine/champion-on-new-data",
)
LONG = ("pretrain.steps=600", "pretrain.checkpoint_every=20")
"""Settings of a training that lasts long enough to be killed."""
OVER = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def until(what: Callable[[], Any], seconds: float) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.2)
    return found


class House:
    """A home folder with texts, and what was done in it."""

    def __init__(self, folder: Path, api: str, webhook: str, heard: list[str]) -> None:
        self.folder, self.home, self.api, self.heard = folder, folder / "home", api, heard
        (folder / "texts").mkdir()
        for number in range(60):
            text = " ".join(f"the {one} sat on the {number % 7} mats" for one in ("cat", "dog", "rat", "hen"))
            (folder / "texts" / f"{number}.txt").write_text(f"{text} number {number}. " * 6)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
        self.environment = kept | {"MASKMILL_HOME": str(self.home), "PREFECT_API_URL": api, "MASKMILL_WEBHOOK": webhook}
        self.environment |= {"PREFECT_WORKER_QUERY_SECONDS": "2", "PREFECT_WORKER_PREFETCH_SECONDS": "2"}
        self.worker: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        """The worker's last words."""
        return (self.folder / "worker.log").read_text(errors="replace")[-4000:]

    def maskmill(self, *words: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "flows.cli", *words]
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    # The worker

    def start_worker(self, bare: bool = False) -> None:
        """bare: Prefect's own, which does not take up crashed runs by itself."""
        command = [sys.executable, "-m", "flows.cli", "worker"]
        if bare:
            command = [sys.executable, "-P", "-m", "prefect", "worker", "start", "--pool", "maskmill"]
        with open(self.folder / "worker.log", "ab") as log:
            self.worker = subprocess.Popen(  # not in the checkout: a worker may be started anywhere
                command,
                cwd=self.folder,
                env=self.environment | {"PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill_worker(self, runs: bool = True) -> None:
        """The worker and, as a power cut would, all that it started; runs: or without the runs, which go on."""
        if self.worker is None:
            return
        worker = psutil.Process(self.worker.pid)
        own = [one for one in (worker, *worker.children()) if "worker" in one.cmdline()]  # maskmill's and Prefect's
        for one in [*own, *worker.children(recursive=True)] if runs else own:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        self.worker.wait()
        self.worker = None

    def stop_worker(self, seconds: float) -> None:
        """As systemd does, which tells the worker alone."""
        assert self.worker
        self.worker.terminate()
        self.worker.wait(seconds)
        self.worker = None

    # Runs

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """As the UI does, which brings along a token for each request that changes something."""
        headers = {"Content-Type": "application/json"}
        if body is not None:
            token = self.ask("csrf-token?client=test")["token"]
            headers |= {"Prefect-Csrf-Token": token, "Prefect-Csrf-Client": "test"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.api}/{path}", data, headers)
        for _ in range(10):
            try:
                with urllib.request.urlopen(request, timeout=30) as reply:
                    return json.load(reply)
            except urllib.error.HTTPError as error:  # its database is busy; Prefect's client comes again, too
                if error.code != 503:
                    raise
                time.sleep(1)
        raise AssertionError(f"{path}: the server stays busy")

    def begin(self, deployment: str, *settings: str, **others: Any) -> str:
        flow, name = deployment.split("/")
        known = self.ask(f"deployments/name/{flow}/{name}")
        parameters = {"recipe": "tiny", "source": [str(self.folder / "texts")], "set": list(settings)} | others
        return self.ask(f"deployments/{known['id']}/create_flow_run", {"parameters": parameters})["id"]

    def set_state(self, run: str, kind: str, name: str) -> None:
        """What a button of the UI does."""
        self.ask(f"flow_runs/{run}/set_state", {"state": {"type": kind, "name": name}})

    def state(self, run: str) -> str:
        return self.ask(f"flow_runs/{run}")["state_type"]

    def ends(self, run: str) -> str:
        """How the run ends."""
        until(lambda: self.state(run) in OVER, 240)
        return self.state(run)

    def entries(self, run: str) -> list[dict[str, Any]]:
        """What the ledger has of the attempts of a run, oldest first."""
        found = [json.loads(path.read_bytes()) for path in sorted((self.home / "runs").glob("*.json"))]
        return [entry for entry in found if entry["flow_run_id"] == run]

    def stages(self, run: str) -> dict[str, str]:
        """What the last attempt of a run did."""
        return {name: stage["state"] for name, stage in self.entries(run)[-1]["stages"].items()}

    def trains(self, run: str) -> int:
        """Waits until a run has a checkpoint; the id of its process."""

        def process() -> int | None:
            for entry in [entry for entry in self.entries(run) if entry["state"] == "running"]:
                key = entry["stages"].get("pretrain", {}).get("key", "none")
                if list((self.home / "store").glob(f"pretrain/.{key}.partial/.scratch/checkpoints/*")):
                    return int(entry["id"].rsplit("-", 1)[1])
            return None

        return int(until(process, 240))

    def family(self, pid: int) -> list[psutil.Process]:
        """A run's process and those that it started."""
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]

    def dies_in_training(self, run: str) -> None:
        """kill -9 of the process of the run once a checkpoint is there."""
        os.kill(self.trains(run), signal.SIGKILL)


@contextmanager
def opened(folder: Path, api: str) -> Iterator[House]:
    """A house with its deployments, its worker and somebody who hears what the webhook is told."""
    heard: list[str] = []

    class Ear(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Ear) as ear:
        Thread(target=ear.serve_forever, daemon=True).start()
        house = House(folder, api, f"http://127.0.0.1:{ear.server_address[1]}/hook", heard)
        shown = house.maskmill("deploy")
        assert all(f"deployed      {name.split('/')[1]}" in shown for name in (DATA, TRAINING, NEWS))
        house.start_worker()
        try:
            yield house
        finally:
            house.kill_worker()
            ear.shutdown()
