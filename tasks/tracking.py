"""What MLflow is told while a flow runs: one run per flow run, a child per stage. The flow goes on, come what may.

Everything to be said is put into an outbox and sent in order. Where sending fails (a server that is away, a locked
database), one warning line is printed, the outbox is kept, and later calls try again; so nothing is lost while a server
restarts, and training never waits for one that is gone. What was sent twice is stored once: runs are found by their
tags, metrics carry the timestamps of the training process, and a stage's run remembers the last step of each metric.
"""

import fcntl
import json
import logging
import math
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

from .artifacts import Manifest
from .errors import InterruptedRun, UsageError
from .progress import say

if TYPE_CHECKING:
    from mlflow import MlflowClient

PATIENCE = 30.0
"""Seconds to leave a server alone after a failure."""
AT_ONCE = 800
"""Metrics in one call; MLflow takes 1000."""
LONGEST = 500
"""Characters of a parameter's value."""
REFUSED = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST"}
"""What MLflow says to a request that will not become right by waiting."""
SHOWN = (".png", "report.json", "card.json", "card.html")
"""How the names of files end that a stage's run shows as its artifacts."""
PROFILE = ("documents_kept", "characters_kept", "bytes_kept")
"""Counts that MLflow shows beside a dataset."""
NO_PICKLE = "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"


def tracking_uri(home: Path) -> str:
    """MLFLOW_TRACKING_URI where it is set, else a SQLite database in the home folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{database(home)}"


def without_secrets(text: str) -> str:
    """A text whose addresses show no user and password."""
    return re.sub(r"://[^/@\s]*@", "://…@", text)


def database(home: Path) -> Path:
    """The embedded database."""
    return home.resolve() / "mlflow.db"


def artifact_root(home: Path) -> Path:
    """Where models and pictures lie when the database is the embedded one; a server has a place of its own."""
    return home.resolve() / "mlartifacts"


def exists(home: Path) -> bool:
    """Is there anything to ask? False saves the seconds in which MLflow would make an empty database."""
    return bool(os.environ.get("MLFLOW_TRACKING_URI")) or database(home).exists()


def connect(home: Path) -> "MlflowClient":
    """A client for this home; makes the embedded database where there is none (6 s, once)."""
    os.environ[NO_PICKLE] = "false"  # MLflow's default is to unpickle what a model's folder says
    for name, value in (
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2"),  # the default blocks for four minutes where a server is down
        ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"),
    ):
        os.environ.setdefault(name, value)
    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("mlflow.store", "urllib3.connectionpool"):  # what they log is raised too, and said by us in a sentence
        logging.getLogger(name).setLevel(logging.CRITICAL)
    uri = tracking_uri(home)
    client = mlflow.MlflowClient(tracking_uri=uri)
    if uri == f"sqlite:///{database(home)}" and not database(home).exists():
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
    embedded = tracking_uri(home) == f"sqlite:///{database(home)}"
    place = artifact_root(home).as_uri() if embedded else None
    try:
        return client.create_experiment(
            name, artifact_location=place, tags={"mlflow.experimentKind": "custom_model_development"}
        )
    except MlflowException:  # another process was faster
        if (known := found()) is None:
            raise
        return known


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested mapping as parameters: {"pretrain": {"width": 128}} -> {"pretrain.width": "128"}."""
    items: dict[str, str] = {}
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            items |= flat(inner, f"{prefix}{name}.")
        else:
            text = inner if isinstance(inner, str) else json.dumps(inner, ensure_ascii=False, default=str)
            items[prefix + name] = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    return items


class Tracker:
    """The run of a flow. No method raises."""

    def __init__(
        self,
        home: Path,
        experiment: str,
        run: str,
        name: str,
        tags: Mapping[str, str] | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        """
        run         what a repeated attempt of the same flow run has in common; its MLflow run is found by it
        name        how the run is called in the UI
        tags        such as prefect.flow_run_id, git.commit
        parameters  the recipe, nested
        """
        self.home, self.experiment = home, experiment
        self._outbox: deque[Callable[[], None]] = deque()
        self._lock = RLock()
        self._not_before, self._warned = 0.0, False
        self._client: MlflowClient | None = None
        self._experiment_id, self.run_id = "", ""
        self.lost = 0
        """Things MLflow refused."""
        tags = {"maskmill.run": run, **(tags or {})}
        self._send(lambda: self._open(tags, name, flat(parameters or {})))

    def stage(self, stage: str, parameters: Mapping[str, Any] | None = None) -> "StageRun":
        """The run of a stage, below this one; use it in a `with`, which sets its status."""
        return StageRun(self, stage, flat(parameters or {}))

    def metrics(self, values: Mapping[str, float]) -> None:
        """Figures of the whole run, such as the test scores: what the table of runs shows."""
        now = _now()
        self._send(lambda: self._log(self.run_id, _metrics(values, now, 0)))

    def corpus(self, manifest: Manifest) -> None:
        """The corpus that the whole run goes back to: the column Dataset of the table of runs."""
        self._send(lambda: self._log_inputs(self.run_id, {manifest.stage: manifest}, "train"))

    def tags(self, values: Mapping[str, str]) -> None:
        """Tags of the whole run."""
        self._send(lambda: self._log(self.run_id, [], values))

    def end(self, status: str = "FINISHED") -> None:
        """FINISHED, FAILED or KILLED; a last attempt to send what is left."""
        self._send(lambda: self.client.set_terminated(self.run_id, status), patient=False)
        if self._outbox or self.lost:
            say(f"MLflow: {len(self._outbox) + self.lost} entries could not be recorded")

    # How it is sent.

    @property
    def client(self) -> "MlflowClient":
        if self._client is None:
            self._client = connect(self.home)
        return self._client

    def _send(self, action: Callable[[], None], patient: bool = True) -> None:
        with self._lock:
            self._outbox.append(action)
            if patient and time.monotonic() < self._not_before:
                return
            while self._outbox:
                try:
                    self._outbox[0]()
                except Exception as error:  # whatever it is, a run is worth more than its record
                    self._warn(error)
                    if not _will_not_pass(error):
                        self._not_before = time.monotonic() + PATIENCE
                        return
                    self.lost += 1
                self._outbox.popleft()

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            text = (str(error).splitlines() or [type(error).__name__])[0]
            where = without_secrets(tracking_uri(self.home))
            say(f"MLflow at {where} does not take everything ({without_secrets(text[:200])}); the run goes on")
        self._warned = True

    def _open(self, tags: Mapping[str, str], name: str, parameters: Mapping[str, str]) -> None:
        self._experiment_id = experiment_id(self.client, self.home, self.experiment)
        self.run_id, _ = self._run({"maskmill.run": tags["maskmill.run"]}, tags, name)
        self._log(self.run_id, [], {}, parameters)

    def _run(self, key: Mapping[str, str], tags: Mapping[str, str], name: str) -> tuple[str, Mapping[str, str]]:
        """Id and tags of the run with these key tags, made where there is none, running again where it had ended."""
        query = " and ".join(f"tags.`{tag}` = '{value}'" for tag, value in key.items())
        found = self.client.search_runs([self._experiment_id], query, max_results=1)
        if found:
            self.client.update_run(found[0].info.run_id, status="RUNNING")
            return found[0].info.run_id, found[0].data.tags
        run = self.client.create_run(self._experiment_id, run_name=name, tags={**tags, **key})
        return run.info.run_id, {}

    def _log(
        self,
        run_id: str,
        metrics: Sequence[Any],
        tags: Mapping[str, str] | None = None,
        parameters: Mapping[str, str] | None = None,
    ) -> None:
        from mlflow.entities import Param, RunTag

        given = [Param(name, value) for name, value in (parameters or {}).items()]
        for start in range(0, len(given), 100):
            self.client.log_batch(run_id, params=given[start : start + 100])
        self.client.log_batch(run_id, metrics, tags=[RunTag(name, value) for name, value in (tags or {}).items()])

    def _log_inputs(self, run_id: str, inputs: Mapping[str, Manifest], context: str) -> None:
        from mlflow.data.sources import LocalArtifactDatasetSource  # type: ignore[attr-defined]
        from mlflow.entities import Dataset, DatasetInput, InputTag

        datasets = []
        for name, manifest in inputs.items():
            source = LocalArtifactDatasetSource(str(manifest.folder))
            profile = {key: manifest.counts[key] for key in PROFILE if key in manifest.counts}
            # MLflow's column holds 36 characters; the whole digest goes into a tag.
            kind, place = source._get_source_type(), source.to_json()
            dataset = Dataset(name, manifest.digest[:32], kind, place, profile=json.dumps(profile) if profile else None)
            tags = [InputTag("mlflow.data.context", context), InputTag("digest", manifest.digest)]
            datasets.append(DatasetInput(dataset, tags))
        self.client.log_inputs(run_id, datasets)


class StageRun:
    """The run of a stage. No method raises."""

    def __init__(self, tracker: Tracker, stage: str, parameters: Mapping[str, str]) -> None:
        self.tracker, self.stage = tracker, stage
        self._id, self._shipped = "", dict[str, int]()
        self.tracker._send(lambda: self._open(parameters))

    @property
    def run_id(self) -> str | None:
        """Id of the MLflow run; None where MLflow could not be reached."""
        return self._id or None

    def __enter__(self) -> "StageRun":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        interrupted = isinstance(error, InterruptedRun) or (error is not None and not isinstance(error, Exception))
        status = "FINISHED" if error is None else "KILLED" if interrupted else "FAILED"
        if error is not None:
            text = f"{type(error).__name__}: {error}"[:1000]
            self.tracker._send(lambda: self.tracker._log(self._id, [], {"error": text}))
        self.tracker._send(lambda: self.tracker.client.set_terminated(self._id, status))

    def ship(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Points of the training curve: {"step", "timestamp_ms", "metrics"}. What was sent before is left out."""
        kept = list(records)
        self.tracker._send(lambda: self._ship(kept))

    def record(self, manifest: Manifest, reused: bool, inputs: Mapping[str, Manifest] | None = None) -> None:
        """What the stage made or found: tags, books, figures, and what it was made from, with digests."""
        tags = {"key": manifest.key, "digest": manifest.digest, "reused": str(reused).lower()}
        figures = {f"counts/{name}": float(value) for name, value in manifest.counts.items()}
        figures |= {f"measured/{name}": value for name, value in manifest.measured().items() if _is_number(value)}
        figures |= manifest.facts.get("metrics", {})
        now = _now()
        self.tracker._send(lambda: self.tracker._log(self._id, _metrics(figures, now, 0), tags))
        if inputs:
            self.tracker._send(lambda: self.tracker._log_inputs(self._id, inputs, self.stage))
        for name in manifest.files:
            if name.endswith(SHOWN):
                self._artifact(manifest.path(name))

    def _artifact(self, path: Path) -> None:
        self.tracker._send(lambda: self.tracker.client.log_artifact(self._id, str(path)))

    def _open(self, parameters: Mapping[str, str]) -> None:
        key = {"mlflow.parentRunId": self.tracker.run_id, "stage": self.stage}
        self._id, tags = self.tracker._run(key, key, self.stage)
        self._shipped = json.loads(tags.get("shipped", "{}"))
        self.tracker._log(self._id, [], {}, parameters)

    def _ship(self, records: Sequence[Mapping[str, Any]]) -> None:
        new, shipped = [], dict(self._shipped)
        for record in records:
            metrics = {k: v for k, v in record["metrics"].items() if record["step"] > shipped.get(k, -1)}
            new += _metrics(metrics, record["timestamp_ms"], record["step"])
            shipped |= dict.fromkeys(metrics, record["step"])
            if len(new) >= AT_ONCE:
                self._deliver(new, shipped)
                new = []
        if new:
            self._deliver(new, shipped)

    def _deliver(self, metrics: list[Any], shipped: dict[str, int]) -> None:
        self.tracker._log(self._id, metrics, {"shipped": json.dumps(shipped)})
        self._shipped = dict(shipped)


def _now() -> int:
    return int(time.time() * 1000)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _metrics(values: Mapping[str, Any], timestamp_ms: int, step: int) -> list[Any]:
    """Finite values only: MLflow stores infinity as 1.8e308."""
    from mlflow.entities import Metric

    return [Metric(k, float(v), timestamp_ms, step) for k, v in values.items() if math.isfinite(v)]


def _will_not_pass(error: Exception) -> bool:
    """Is it the request that is wrong, and not the moment?"""
    code = getattr(error, "error_code", None)
    return code in REFUSED or isinstance(error, TypeError | ValueError | KeyError | AttributeError | FileNotFoundError)
