"""What MLflow is told while a flow runs: one run per flow run, a child per stage. The flow goes on, come what may.

    Tracker, StageRun (here)     say things: a line appended to a file below <home>/outbox, never a call of a server
    Sender (sender)              a thread that takes them from there to MLflow, now, or later, or in a later process

So nobody waits for a server, and what one that is away was not told is on the disk until the next run tells it: the
curve, parameters, tags, inputs and how each stage ended. Pictures and cards are named there, and taken from the store.
"""

import fcntl
import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

from .artifacts import Manifest
from .delivery import Delivery
from .errors import InterruptedRun, UsageError, without_secrets
from .journal import SPOOL
from .outbox import FOLDER, Entry, Outbox
from .progress import say
from .sender import Sender
from .spool import record_of
from .system_metrics import Sampler

if TYPE_CHECKING:
    from mlflow import MlflowClient

Record = Mapping[str, Any]
"""A point of the training curve: {"step": int, "timestamp_ms": int, "metrics": {name: float}}."""

WAIT = 5.0
"""Seconds to wait for the last words of a stage or a run to arrive."""
LONGEST = 500
"""Characters of a parameter's value."""
SHOWN = (".png", "report.json", "report.html", "card.json", "card.html", "model/README.md")
"""How the names of files end that a stage's run shows as its artifacts."""
PROFILE = ("documents_kept", "characters_kept", "bytes_kept")
"""Counts that MLflow shows beside a dataset."""
CURVE_POINTS = 500
"""Points of a training that a run shows which only reused it: enough for a chart, few enough to be stored each time."""
LISTED = 20
"""Entries of a list, such as the sources, that become parameters of their own; a longer list is one."""
NO_PICKLE = "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"


def tracking_uri(home: Path) -> str:
    """MLFLOW_TRACKING_URI where it is set, else a SQLite database in the home folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{database(home)}"


def database(home: Path) -> Path:
    """The embedded database."""
    return home.resolve() / "mlflow.db"


def artifact_root(home: Path) -> Path:
    """Where files lie that belong to a database without a server, unless MLFLOW_DEFAULT_ARTIFACT_ROOT names a place."""
    return home.resolve() / "mlartifacts"


def is_embedded(home: Path) -> bool:
    """Is MLflow a database in the home folder, and no server?"""
    return tracking_uri(home) == f"sqlite:///{database(home)}"


def _is_server(home: Path) -> bool:
    """Is it a server, which says itself where files lie, and no database?"""
    return tracking_uri(home).partition(":")[0].partition("+")[0] not in ("sqlite", "postgresql", "mysql", "mssql")


def exists(home: Path) -> bool:
    """Is there anything to ask? False saves the seconds in which MLflow would make an empty database."""
    return bool(os.environ.get("MLFLOW_TRACKING_URI")) or database(home).exists()


def connect(home: Path, uri: str | None = None) -> "MlflowClient":
    """A client for this home; makes the embedded database where there is none (6 s, once).

    uri     another address than the one that is set
    """
    os.environ[NO_PICKLE] = "false"  # MLflow's default is to unpickle what a model's folder says
    for name, value in (
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2"),  # the default blocks for four minutes where a server is down
        ("MLFLOW_HTTP_REQUEST_TIMEOUT", "60"),  # seconds, each of these times; the default is 120
        ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"),
    ):
        os.environ.setdefault(name, value)
    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("mlflow.store", "urllib3.connectionpool"):  # what they log is raised too, and said by us in a sentence
        logging.getLogger(name).setLevel(logging.CRITICAL)
    client = mlflow.MlflowClient(tracking_uri=uri or tracking_uri(home))
    if uri is None and is_embedded(home):
        with locked(home, "mlflow.lock"):  # two first runs at once would make the tables twice
            if not database(home).exists():
                say("MLflow: making its database, once")
                client.search_experiments(max_results=1)
    return client


@contextmanager
def locked(home: Path, name: str) -> Iterator[None]:
    """One process at a time on this host, by flock: gone with its holder, also after kill -9."""
    home.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(home / name, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def experiment_id(client: "MlflowClient", home: Path, name: str) -> str:
    """The experiment of that name, made where there is none. Raises UsageError where it was deleted."""
    from mlflow.exceptions import MlflowException

    def found() -> str | None:
        experiment = client.get_experiment_by_name(name)
        if experiment and experiment.lifecycle_stage == "deleted":
            raise UsageError(f"The MLflow experiment {name!r} was deleted; restore it, or take another name.")
        return experiment.experiment_id if experiment else None

    if (known := found()) is not None:
        return known
    # Without a server MLflow would take ./mlruns, wherever that is at the moment.
    place = None if _is_server(home) else os.environ.get("MLFLOW_DEFAULT_ARTIFACT_ROOT") or artifact_root(home).as_uri()
    try:
        return client.create_experiment(
            name, artifact_location=place, tags={"mlflow.experimentKind": "custom_model_development"}
        )
    except MlflowException:  # another process was faster
        if (known := found()) is None:
            raise
        return known


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested mapping as parameters: {"pretrain": {"width": 128}} -> {"pretrain.width": "128"}. Shows no secrets."""
    items: dict[str, str] = {}
    for name, inner in value.items():
        if (
            isinstance(inner, list | tuple)
            and 0 < len(inner) <= LISTED
            and all(isinstance(it, Mapping) for it in inner)
        ):
            inner = {str(number): it for number, it in enumerate(inner)}
        if isinstance(inner, Mapping):
            items |= flat(inner, f"{prefix}{name}.")
        else:
            text = inner if isinstance(inner, str) else json.dumps(inner, ensure_ascii=False, default=str)
            text = without_secrets(text)
            items[prefix + name] = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    return items


class Tracker:
    """The run of a flow. No method raises; none waits for a server but `flush` and `end`, and these not long."""

    def __init__(
        self,
        home: Path,
        experiment: str,
        run: str,
        name: str,
        tags: Mapping[str, str] | None = None,
        parameters: Mapping[str, Any] | None = None,
        within: str = "",
    ) -> None:
        """
        run         what a repeated attempt of the same flow run has in common; its MLflow run is found by it
        name        how the run is called in the UI
        tags        such as prefect.flow_run_id, git.commit
        parameters  the recipe, nested
        within      `run` of a sweep that this run is a part of
        """
        self.home = home
        self._unsaid: list[Entry] = []
        self._lock, self._warned = RLock(), False
        self._sender: Sender | None = None
        self._stage = ""
        """The one that is at work."""
        self._sampler = Sampler(self._sample)
        where = without_secrets(tracking_uri(home))
        head = {"do": "open", "stage": "", "at": _now(), "experiment": experiment, "name": name, "run": run}
        tags = _shown(tags or {})
        head |= {"tags": tags, "address": "" if is_embedded(home) else where, "within": within}
        try:
            outbox = Outbox.create(home / FOLDER, head)
        except OSError as error:
            say(f"MLflow is told nothing of this run, {home / FOLDER} cannot be written to: {error.strerror}")
            return
        # The libraries are imported here, and the embedded database is made: two threads that import the same things
        # for the first time can get in each other's way. Whatever is wrong, the sender will find it out, too.
        with suppress(Exception):
            connect(home)
            self._sampler.start(tracking_uri(home))
        self._sender = Sender(outbox, self._begin, where)
        if tags:  # once more: a run that goes on has those of its last attempt
            self.tags(tags)
        self.tell({"do": "parameters", "stage": "", "values": flat(parameters or {})})
        self._sender.start()

    def _begin(self, head: Entry) -> Delivery:
        client = connect(self.home)
        return Delivery(client, lambda name: experiment_id(client, self.home, name), head)

    @property
    def run_id(self) -> str:
        """Id of the MLflow run; "" as long as MLflow was not reached."""
        return self.id_of("")

    @property
    def page(self) -> str:
        """Address of the run's page where MLflow is a server; "" otherwise, and as long as it was not reached."""
        where = without_secrets(tracking_uri(self.home)).rstrip("/")
        experiment = self._sender.experiment if self._sender else ""
        known = where.startswith("http") and experiment and self.run_id
        return f"{where}/#/experiments/{experiment}/runs/{self.run_id}" if known else ""

    def id_of(self, stage: str) -> str:
        """Id of the MLflow run of a stage; "" as long as MLflow was not reached."""
        return self._sender.ids.get(stage, "") if self._sender else ""

    def stage(self, stage: str, parameters: Mapping[str, Any] | None = None) -> "StageRun":
        """The run of a stage, below this one; use it in a `with`, which sets its status."""
        return StageRun(self, stage, flat(parameters or {}))

    def metrics(self, values: Mapping[str, float]) -> None:
        """Figures of the whole run, such as the test scores: what the table of runs shows."""
        self.tell(_figures("", values))

    def made(self, part: str, manifest: Manifest) -> None:
        """An artifact of the run: its key and digest as tags; corpus, vocabulary and shards as what it trains on, too,
        which is the column Dataset of the table of runs."""
        name = part.replace(" ", "_")
        self.tags({f"key.{name}": manifest.key, f"digest.{name}": manifest.digest})
        if manifest.stage in ("corpus", "vocabulary", "shards"):
            self.tell(_inputs("", {name: manifest}, "train"))

    def tags(self, values: Mapping[str, str]) -> None:
        """Tags of the whole run."""
        self.tell({"do": "tags", "stage": "", "values": _shown(values)})

    def flush(self, seconds: float = WAIT) -> bool:
        """Wait, but not longer than that, until MLflow knows all that was said. Does it?"""
        return self._sender is not None and self._sender.flush(seconds)

    def end(self, status: str = "FINISHED") -> None:
        """FINISHED, FAILED or KILLED. What cannot be told now is kept, and said to be."""
        self._sampler.stop()
        self.tell({"do": "end", "stage": "", "status": status, "at": _now()})
        if self._sender is None:
            return
        self._sender.flush(WAIT, everything=True)
        self._sender.stop()
        outbox, refused, earlier = self._sender.outbox, self._sender.refused, len(self._sender.left)
        if refused:
            say(f"MLflow: {refused} entries were refused; they are kept in {outbox.path.parent}/*.refused")
        if outbox.waiting or earlier:
            what = f"{outbox.waiting} entries of this run" + (f" and {earlier} earlier runs" if earlier else "")
            say(f"MLflow: {what} wait in {outbox.path.parent}; the next `maskmill run` delivers them")
        if self._unsaid:
            say(f"MLflow: {len(self._unsaid)} entries are lost, {outbox.path} cannot be written to")

    def _sample(self, values: Mapping[str, float]) -> None:
        """Of the machine, for the stage at work. Steps are seconds of its run (delivery.py), also after a resume."""
        with self._lock:
            if self._stage:
                self.tell({**_figures(self._stage, values), "step": None})

    def tell(self, *entries: Entry) -> None:
        """Append to the outbox; on a full disk they are kept in memory until the next time."""
        if self._sender is None:
            return
        with self._lock:
            self._unsaid += entries
            try:
                self._sender.outbox.append(*self._unsaid)
                self._unsaid = []
            except OSError as error:
                if not self._warned:
                    say(f"MLflow is told later, {self._sender.outbox.path} cannot be written to: {error.strerror}")
                self._warned = True


class StageRun:
    """The run of a stage. No method raises or waits."""

    def __init__(self, tracker: Tracker, stage: str, parameters: Mapping[str, str]) -> None:
        self.tracker, self.stage = tracker, stage
        tracker.tell(
            {"do": "open", "stage": stage, "at": _now()},
            {"do": "parameters", "stage": stage, "values": dict(parameters)},
        )

    @property
    def run_id(self) -> str | None:
        """Id of the MLflow run; None as long as MLflow was not reached."""
        return self.tracker.id_of(self.stage) or None

    def __enter__(self) -> "StageRun":
        self.tracker._stage = self.stage
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        with self.tracker._lock:
            self.tracker._stage = ""
        interrupted = isinstance(error, InterruptedRun) or (error is not None and not isinstance(error, Exception))
        status = "FINISHED" if error is None else "KILLED" if interrupted else "FAILED"
        if error is not None:
            text = without_secrets(f"{type(error).__name__}: {error}")[:1000]
            self.tracker.tell({"do": "tags", "stage": self.stage, "values": {"error": text}})
        self.tracker.tell({"do": "end", "stage": self.stage, "status": status, "at": _now()})

    def ship(self, records: Sequence[Record]) -> None:
        """Points of the training curve. What MLflow has already is left out later."""
        points = [{**record, "metrics": _finite(record["metrics"])} for record in records]
        self.tracker.tell(*({"do": "metrics", "stage": self.stage, **point} for point in points if point["metrics"]))

    def record(self, manifest: Manifest, reused: bool, inputs: Mapping[str, Manifest] | None = None) -> None:
        """What the stage made or found: tags, books, figures, and what it was made from, with digests.

        Of what it found, the run that made it becomes a tag, and the training curve is shown here, too: who compares
        runs in a chart misses no line.
        """
        tags = {"key": manifest.key, "digest": manifest.digest}
        figures = {f"counts/{name}": float(value) for name, value in manifest.counts.items()}
        figures |= {f"measured/{name}": value for name, value in manifest.measured().items() if _is_number(value)}
        figures |= manifest.facts.get("metrics", {})
        self.tracker.tell(_figures(self.stage, figures), {"do": "tags", "stage": self.stage, "values": tags})
        self.tracker.tell({"do": "reused" if reused else "made", "stage": self.stage, "key": manifest.key})
        if reused:
            self.ship(_thinned(manifest.folder / SPOOL))
        if inputs:
            self.tracker.tell(_inputs(self.stage, inputs, self.stage))
        shown = [str(manifest.path(name)) for name in manifest.files if name.endswith(SHOWN)]
        self.tracker.tell(*({"do": "file", "stage": self.stage, "path": path} for path in shown))


def _thinned(spool: Path) -> list[Record]:
    """Some of a training's points, evenly, and each at which it was validated; none where there is no such file."""
    records: list[Record] = []
    with suppress(OSError), open(spool, "rb") as file:
        for line in file:
            with suppress(ValueError):
                records.append(record_of(line))
    nth = max(1, math.ceil(len(records) / CURVE_POINTS))
    validated = [any(name.startswith("validation/") for name in record["metrics"]) for record in records]
    last = len(records) - 1
    return [it for number, it in enumerate(records) if number % nth == 0 or number == last or validated[number]]


def _now() -> int:
    return int(time.time() * 1000)


def _shown(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags without the secrets of addresses in them."""
    return {name: without_secrets(value) for name, value in tags.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    """MLflow stores infinity as 1.8e308, and JSON knows neither that nor NaN."""
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}


def _figures(stage: str, values: Mapping[str, Any]) -> Entry:
    return {"do": "metrics", "stage": stage, "step": 0, "timestamp_ms": _now(), "metrics": _finite(values)}


def _inputs(stage: str, inputs: Mapping[str, Manifest], context: str) -> Entry:
    datasets = []
    for name, manifest in inputs.items():
        profile = {key: manifest.counts[key] for key in PROFILE if key in manifest.counts}
        datasets.append([name, manifest.digest, str(manifest.folder), profile])
    return {"do": "inputs", "stage": stage, "context": context, "datasets": datasets}
