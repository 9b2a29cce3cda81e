"""F14: Prefect's server or MLflow's store is away, locked, killed or talks nonsense, in the middle of a run.

Each trial is the command of a user in a process of its own, against real servers. It finishes, or ends with a
documented status and one sentence, in a bounded time; the same command again ends in the artifacts of an undisturbed
run, one registered version, and MLflow's curve whole, no step twice.
"""

import ctypes
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from random import Random

from flows import ui
from flows.ledger import STAGES
from tests.faults import outage as stands
from tests.faults.gateway import REPLIES, Gateway
from tests.faults.outage import BOUND, DOCUMENTED, LONG, QUICK, Run, Stand
from tests.faults.trial import Failed, Outcome, Trial

LASTS = {"corpus": 0.2, "vocabulary": 0.3, "shards": 0.3, "pretrain": 3.0, "evaluate": 2.0, "register": 1.5}
"""Seconds of a stage, about: the moment of a fault is drawn from them."""
BACK = 6.0
"""Seconds until a server that went away is back, where it comes back during the run."""
SERVERS = ("prefect", "mlflow")
NEW = {2} | DOCUMENTED
"""A run may also be refused for a server that is away before it begins."""


def moment(stage: str, seed: str) -> float:
    return round(Random(seed).uniform(0, LASTS[stage]), 3)


@contextmanager
def running(stand: Stand, words: tuple[str, ...] = ("-c", QUICK), **others: Callable[[], object]) -> Iterator[Run]:
    run = stand.run(words, **others)
    try:
        yield run
    finally:
        run.stopped()


def _outcome(stand: Stand, status: int, run: Run) -> Outcome:
    """Of a run that ended with the status, and whose servers are well again."""
    seconds = time.monotonic() - run.began
    lost = stand.recovers()
    return Outcome("recovered" if status else "withstood", lost, f"status {status} after {seconds:.0f} s")


# The process of a server: killed, stopped for good, stopped for a while.


class Place:
    """A server of a trial, by its name; the other one is never disturbed."""

    def __init__(self, which: str, folder: Path) -> None:
        self.which, self.folder, self.port = which, folder / "server", ui.free_port(0)
        self.folder.mkdir()
        self.start()

    def start(self) -> None:
        self.server = (stands.prefect if self.which == "prefect" else stands.mlflow)(self.folder, self.port)

    def signal(self, number: int) -> None:
        os.killpg(self.server.process.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.server.process.wait()

    def stand(self, folder: Path, address: str = "") -> Stand:
        """A home whose runs reach the server at this address, its own where none is given."""
        address = address or self.server.address
        if self.which == "prefect":
            return Stand(folder, f"{address}/api")
        return Stand(folder, stands.calm_prefect(), address, self.folder / "mlflow.db")


def killed(which: str, stage: str, back: bool, seed: str, folder: Path) -> Outcome:
    """SIGKILL of the server in the stage; it is there again when the run has ended, or in the middle of it."""
    place = Place(which, folder)
    try:
        stand = place.stand(folder)
        with running(stand) as run:
            run.reaches(stage, moment(stage, seed))
            place.kill()
            if back:
                time.sleep(BACK)
                place.start()
            status = run.ends(DOCUMENTED)
        if not back:
            place.start()
        return _outcome(stand, status, run)
    finally:
        place.server.stop()


def stopped(which: str, stage: str, back: bool, seed: str, folder: Path) -> Outcome:
    """SIGSTOP of the server in the stage: it takes connections and never answers. SIGCONT after the run, or in it."""
    place = Place(which, folder)
    try:
        stand = place.stand(folder)
        with running(stand) as run:
            run.reaches(stage, moment(stage, seed))
            place.signal(signal.SIGSTOP)
            if back:
                time.sleep(BACK)
                place.signal(signal.SIGCONT)
            status = run.ends(DOCUMENTED, stands.BOUND if back else stands.HANGING)
        place.signal(signal.SIGCONT)
        return _outcome(stand, status, run)
    finally:
        place.signal(signal.SIGCONT)
        place.server.stop()


# What it says.


def turned(which: str, stage: str, way: str, seed: str, folder: Path) -> Outcome:
    """A gateway before the server, which goes another way in the stage, or before the run begins ("start")."""
    place = Place(which, folder)
    try:
        with Gateway(place.port) as gateway:
            stand = place.stand(folder, gateway.address)
            if stage == "start":
                gateway.turn(way)
            with running(stand) as run:
                if stage != "start":
                    run.reaches(stage, moment(stage, seed))
                    gateway.turn(way)
                seconds = stands.HANGING if way == "hangs" else stands.BOUND
                status = run.ends(NEW if stage == "start" else DOCUMENTED, seconds)
            gateway.turn("passes")
            return _outcome(stand, status, run)
    finally:
        place.server.stop()


def never(which: str, folder: Path) -> Outcome:
    """A port that nobody listens at: refused before anything is made, by the name of the variable."""
    port = ui.free_port(0)
    address = f"http://{ui.HOST}:{port}"
    api, tracking = (f"{address}/api", "") if which == "prefect" else (stands.calm_prefect(), address)
    stand = Stand(folder, api, tracking)
    with running(stand, LONG) as run:
        run.ends({2}, 60)
    name = "PREFECT_API_URL" if which == "prefect" else "MLFLOW_TRACKING_URI"
    assert name in run.said and not (stand.home / "store" / "corpus").exists(), run.said
    calm = Stand(folder, stands.calm_prefect())
    return _outcome(calm, 2, run)


def webhook(folder: Path) -> Outcome:
    """Nobody listens where the server tells of runs that ended badly: neither it nor a run minds."""
    place = Place("prefect", folder)
    try:
        stand = place.stand(folder)
        stand.variables["MASKMILL_WEBHOOK"] = f"http://{ui.HOST}:{ui.free_port(0)}/hook"
        words = [sys.executable, *LONG, "deploy"]
        subprocess.run(words, cwd=stands.ROOT, env=stand.variables, check=True, capture_output=True, timeout=BOUND)
        with running(stand) as run:
            run.reaches("pretrain", 1.0)
            run.process.terminate()
            status = run.ends({75})
        found = _outcome(stand, status, run)
        if not ui.answers(f"{place.server.address}/api/health"):
            raise Failed("undocumented", "the server went away with its webhook")
        return found
    finally:
        place.server.stop()


# The database of a home without servers.


def locked(stage: str, seconds: float, seed: str, folder: Path) -> Outcome:
    """Another connection holds the database in the stage, for so long, or as long as the run lasts."""
    stand = Stand(folder, stands.calm_prefect())
    with running(stand) as run:
        run.reaches(stage, moment(stage, seed))
        with closing(sqlite3.connect(stand.database, timeout=30, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            if seconds:
                time.sleep(seconds)
                other.execute("ROLLBACK")
            status = run.ends(DOCUMENTED)
    return _outcome(stand, status, run)


def read_only(first: bool, folder: Path) -> Outcome:
    """The database may be read only, from the beginning of a run on; first: of the first run, where it is empty."""
    stand = Stand(folder, stands.calm_prefect())
    if first:
        from tasks import tracking

        stand.home.mkdir()
        tracking.connect(stand.home)
    else:
        with running(stand) as run:
            run.reaches("evaluate", 0.0)
            os.killpg(run.process.pid, signal.SIGKILL)
    stand.database.chmod(0o444)
    try:
        with running(stand, preexec=_no_override) as run:
            status = run.ends(NEW)
        assert str(stand.database) in run.said, run.said
    finally:
        stand.database.chmod(0o644)
    return _outcome(stand, status, run)


def _no_override() -> None:
    """Root, too, may then do what the permissions of a file say and no more."""
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, capability)


# All of them.


def trials() -> list[Trial]:
    """For each server and stage: killed and stopped, for good and for a while; then what it says; then the database."""
    found = []

    def add(place: str, detail: str, cost: float, run: Callable[[Path], Outcome]) -> None:
        found.append(Trial("F14", place, detail, cost, run))

    for which in SERVERS:
        for stage in STAGES:
            for how in (killed, stopped):
                for back in (False, True):
                    detail = f"{which} {how.__name__}, {'back in the run' if back else 'back after the run'}"
                    seed = f"{stage} {detail}"
                    add(stage, detail, 70 if back or how is killed else 400, partial(how, which, stage, back, seed))
        for stage in ("start", "pretrain", "register"):
            for way in REPLIES:
                detail = f"{which} {way}"
                add(
                    stage,
                    detail,
                    400 if way == "hangs" else 70,
                    partial(turned, which, stage, way, f"{stage} {detail}"),
                )
        add("start", f"{which} never started", 40, partial(never, which))
    add("pretrain", "webhook away", 90, webhook)
    for stage in STAGES:
        for seconds in (3.0, 12.0, 0.0):
            detail = f"database locked {f'for {seconds:g} s' if seconds else 'for ever'}"
            add(stage, detail, 60, partial(locked, stage, seconds, f"{stage} {detail}"))
    add("start", "database read-only, empty", 50, partial(read_only, True))
    add("start", "database read-only, a run in it", 60, partial(read_only, False))
    return found
