"""The two web servers: Prefect's and MLflow's. Also the Prefect server that a lone `run` brings.

Each is a process of its own with its words in <home>/logs, so that this process stays small and the terminal readable.
"""

import ctypes
import fcntl
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from flows.access import HOST, Access, enter_mlflow, enter_prefect
from tasks import tracking
from tasks.artifacts import write_atomic
from tasks.errors import NO_MEMORY, DataError, MaskmillError, MemoryExhausted, UsageError, without_secrets
from tasks.manifests import json_of
from tasks.progress import progress, say
from tasks.versions import DAMAGED

EMBEDDED = "MASKMILL_PREFECT_EMBEDDED"
"""Name in the environment: set where Prefect's server ends with this process, and its pages with it."""
DATABASES = {"Prefect": "prefect/prefect.db", "MLflow": "mlflow.db"}
"""Of its home, where no other is set."""
PATIENCE = 180.0
"""Seconds a server may take to boot: 5 to 20 on an idle machine, much longer on a busy one."""


@dataclass
class Server:
    """A web server that this process started."""

    name: str
    address: str
    """As this machine reaches it."""
    health: str
    """Path that answers 200 once it is up."""
    process: subprocess.Popen[bytes]
    log: Path

    def wait(self) -> "Server":
        """Returns once it is up. Raises MaskmillError naming its log when it dies or takes too long."""
        deadline = time.monotonic() + PATIENCE
        while not answers(self.address + self.health):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise self._silent()
            time.sleep(0.1)
        return self

    def _silent(self) -> MaskmillError:
        said = self.log.read_text(errors="replace").splitlines()
        if damaged := next((line for line in said if any(sign in line for sign in DAMAGED)), ""):
            return DataError(
                f"The database of the {self.name} server, {self.log.parents[1] / DATABASES[self.name]}, is damaged: "
                f"{damaged[:200]}; put a copy of it back, or move it away and start again: no artifact is in it."
            )
        if any(word in line.lower() for line in said for word in NO_MEMORY):
            return MemoryExhausted(
                f"The {self.name} server got no more memory or threads, so it did not start; run again when more are "
                f"free. Its last words are in {self.log}."
            )
        return MaskmillError(f"The {self.name} server did not start; its last words are in {self.log}.")

    def stop(self) -> None:
        """Ends it and its children, gently first."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(self.process.pid, number)
                self.process.wait(5)
                return


def answers(url: str) -> bool:
    """Does a server answer there with 200?"""
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return reply.status == 200
    except (OSError, ValueError, http.client.HTTPException):  # nobody, or somebody who does not speak HTTP
        return False


def free_port(wanted: int, host: str = HOST) -> int:
    """The wanted port of this machine, or any free one where it is taken. Raises UsageError for a foreign host."""
    for port in (wanted, 0):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return probe.getsockname()[1]
    raise UsageError(f"{host} is no address of this machine, or none of its ports is free.")


def die_with_parent(number: int = signal.SIGTERM) -> None:
    """Runs in the child: the kernel sends it the signal where its maskmill was killed with -9 (on Linux)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, number)


def _start(home: Path, name: str, at: str, health: str, words: list[str], extra: dict[str, str]) -> Server:
    given = {key: value for key, value in os.environ.items() if key != "PREFECT_API_URL"} | extra
    log = home / "logs" / f"{name.lower()}-server.log"
    return launch(name, at, health, [sys.executable, "-P", *words], log, given, home)


def launch(
    name: str, at: str, health: str, words: list[str], log: Path, given: Mapping[str, str], folder: Path
) -> Server:
    """A server of the command in the folder, with its words in the log. It ends with this process.

    given       its environment
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as out:
        # A session of its own: Ctrl-C must reach maskmill first, which then still has a server to say goodbye to.
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=given,
            start_new_session=True,
            preexec_fn=die_with_parent,
            cwd=folder,
        )
    return Server(name, f"http://{at}", health, process, log)


def start_prefect(home: Path, port: int, access: Access | None = None) -> Server:
    """Prefect's server with its UI and scheduler."""
    access = access or Access()
    words = [str(Path(__file__).with_name("prefect_server.py")), "server", "start"]
    words += ["--host", access.host, "--port", str(port)]
    return _start(home, "Prefect", f"{access.near}:{port}", "/api/health", words, access.prefect(port))


def start_embedded_prefect(home: Path) -> Server:
    """The server as Prefect itself starts it for a process without one: no UI, no scheduler."""
    port = free_port(0)
    words = ["-m", "uvicorn", "--factory", "prefect.server.api.server:create_app", "--host", HOST, "--port", str(port)]
    words += ["--log-level", "error", "--lifespan", "on"]
    extra = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
    return _start(home, "Prefect", f"{HOST}:{port}", "/api/health", words, extra)


def start_mlflow(home: Path, port: int, access: Access | None = None) -> Server:
    """MLflow's server with one worker. Without its job runner, which would add seven processes and 700 MB."""
    access = access or Access()
    words, settings = access.mlflow(port, home)
    words = ["-m", "mlflow", "server", "--port", str(port), "--workers", "1", *words]
    words += ["--artifacts-destination", str(tracking.artifact_root(home))]
    settings |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    # Not a word of the command, which every user of the machine can read: it may hold a password.
    settings |= {"MLFLOW_BACKEND_STORE_URI": tracking.tracking_uri(home)}
    return _start(home, "MLflow", f"{access.near}:{port}", "/health", words, settings)


def running(home: Path) -> dict[str, str] | None:
    """Addresses of the `maskmill ui` that is up, {"prefect", "mlflow"}, or None."""
    try:
        addresses = json_of((home / "ui.json").read_bytes())
        found = {name: str(addresses[name]) for name in ("prefect", "mlflow")}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if answers(found["prefect"] + "/api/health") else None


def reach(home: Path) -> str:
    """The address of the Prefect API: PREFECT_API_URL, or that of `maskmill ui`; set for what this process starts.

    Raises UsageError where none answers: a deployment needs a server that stays.
    """
    if not os.environ.get("PREFECT_API_URL"):
        addresses = running(home)
        if addresses is None:
            raise UsageError("Schedules need a server that stays: start `maskmill ui`, or set PREFECT_API_URL.")
        os.environ["PREFECT_API_URL"] = addresses["prefect"] + "/api"
    url = os.environ["PREFECT_API_URL"].rstrip("/")
    if not answers(f"{url}/health"):
        raise UsageError(f"No Prefect server answers at {url}; start it, or unset PREFECT_API_URL.")
    return url


def reachable(home: Path) -> bool:
    """Is there a server? It is set for this process then."""
    try:
        return bool(reach(home))
    except UsageError:
        return False


@contextmanager
def prefect_api(home: Path) -> Iterator[None]:
    """A Prefect server for the time of the block, in PREFECT_API_URL. To be entered before Prefect is imported.

    The one that PREFECT_API_URL names, else the one of `maskmill ui`, else one that lives as long as the block.
    Raises UsageError when the named one does not answer, or wants another password.
    """
    (home / "prefect").mkdir(parents=True, exist_ok=True)  # Prefect makes no parents, and warns
    if url := os.environ.get("PREFECT_API_URL"):
        if not answers(f"{url.rstrip('/')}/health"):
            where = without_secrets(url)
            raise UsageError(
                f"No Prefect server answers at {where} (PREFECT_API_URL); start it, or unset the variable."
            )
        enter_prefect(url)
        yield
        return
    if addresses := running(home):
        os.environ["PREFECT_API_URL"] = addresses["prefect"] + "/api"
        enter_prefect(os.environ["PREFECT_API_URL"])
        yield
        return
    with open(home / "prefect" / "boot.lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two servers must not create the same database at once
        say("Starting Prefect's embedded server (5 to 20 seconds; `maskmill ui` in another terminal saves the wait) …")
        server = start_embedded_prefect(home)
        try:
            server.wait()
        except BaseException:
            server.stop()
            raise
    os.environ["PREFECT_API_URL"], os.environ[EMBEDDED] = server.address + "/api", "1"
    try:
        enter_prefect(os.environ["PREFECT_API_URL"])
        yield
    finally:
        server.stop()


def serve(home: Path, prefect_port: int = 4200, mlflow_port: int = 5000, access: Access | None = None) -> None:
    """Both servers until Ctrl-C; their addresses on stdout, and in <home>/ui.json for `maskmill run`."""
    access = access or Access()
    if addresses := running(home):
        show(addresses)
        say("Both are already up, started by another `maskmill ui`.")
        return
    first, second = free_port(prefect_port, access.host), free_port(mlflow_port, access.host)
    servers = [start_prefect(home, first, access), start_mlflow(home, second, access)]
    try:
        with progress("starting", total=2, unit="servers") as bar:
            for server in servers:
                server.wait()
                bar.advance()
        enter_mlflow(servers[1].address)
        addresses = {"prefect": servers[0].address, "mlflow": servers[1].address}
        write_atomic(home / "ui.json", json.dumps(addresses | {"pid": str(os.getpid())}).encode())
        show({name: address.replace(access.near, access.shown) for name, address in addresses.items()})
        say("Ctrl-C stops both.")
        while all(server.process.poll() is None for server in servers):
            time.sleep(0.5)
        dead = next(server for server in servers if server.process.poll() is not None)
        raise MaskmillError(f"The {dead.name} server stopped; its last words are in {dead.log}.")
    except KeyboardInterrupt:
        say("Stopped.")
    finally:
        (home / "ui.json").unlink(missing_ok=True)
        for server in servers:
            server.stop()


def show(addresses: dict[str, str]) -> None:
    print(f"Prefect  {addresses['prefect']}")
    # Without workflowType MLflow opens in its GenAI mode, whose sidebar has no model registry.
    print(f"MLflow   {addresses['mlflow']}/#/models?workflowType=machine_learning", flush=True)
