"""From the outbox to MLflow: an entry as a call, which may be made twice. What arrives twice is stored once.

How that comes about:

    runs are found by their tags before they are made
    MLflow commits the points of a call together with the last step of each metric, and is asked for these steps when a
    run is opened: points up to there are left out (tags of the same call are another transaction: they prove nothing)
    a call whose answer was lost is made again with the same points, and MLflow stores equal points once
"""

import errno
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from .errors import UsageError
from .outbox import Entry

if TYPE_CHECKING:
    from mlflow import MlflowClient

AT_ONCE = 1000
"""Metrics in one call; MLflow takes no more."""
REFUSED = {"INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST"}
"""What MLflow says to a request that will not become right by waiting."""
WRONG = (UsageError, TypeError, ValueError, KeyError, AttributeError, FileNotFoundError)
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
"""What the system says where the place of the artifacts cannot be written to."""


class Delivery:
    """The entries of one outbox as calls of MLflow. Each may be made twice."""

    def __init__(self, client: "MlflowClient", experiment_id: Callable[[str], str], head: Entry) -> None:
        self.client, self.head, self._experiment_id = client, head, experiment_id
        self.runs: dict[str, str] = {}
        """Stage -> id of its MLflow run; "" is the run of the flow."""
        self._known: dict[str, dict[str, tuple[int, float]]] = {}
        """Stage -> metric -> step and value of the last point that MLflow has."""
        self._started: dict[str, int] = {}
        """Stage -> when its run began, in milliseconds since 1970: system metrics count their seconds from there."""
        self.experiment = ""
        """Id of the experiment; "" as long as nothing was sent."""

    def send(self, entries: Sequence[Entry]) -> None:
        """One entry, or metrics of one stage in the order of their steps. Raises what MLflow raises."""
        first, stage = entries[0], entries[0]["stage"]
        match first["do"]:
            case "open":
                self._open(stage, first)
            case "metrics":
                self._metrics(stage, entries)
            case "parameters":
                self._parameters(stage, first["values"])
            case "tags":
                self._tags(stage, first["values"])
            case "made":
                self._tags(stage, {"reused": "false"})
            case "reused":
                self._reused(stage, first["key"])
            case "inputs":
                self._inputs(stage, first)
            case "file":
                self.client.log_artifact(self.run(stage), first["path"])
            case "end":
                self.client.set_terminated(self.run(stage), first["status"], first["at"])
            case other:
                raise ValueError(f"An outbox says {other!r}, which this version does not know.")

    def run(self, stage: str) -> str:
        """Id of the MLflow run, found by its tags, made where there is none."""
        if stage not in self.runs:
            self._find(stage, {})
        return self.runs[stage]

    def _open(self, stage: str, entry: Entry) -> None:
        if self._find(stage, entry):
            self.client.update_run(self.runs[stage], status="RUNNING")

    def _find(self, stage: str, entry: Entry) -> bool:
        """Was it there?"""
        self.experiment = self.experiment or self._experiment_id(self.head["experiment"])
        key = {"mlflow.parentRunId": self.run(""), "stage": stage} if stage else {"maskmill.run": self.head["run"]}
        query = " and ".join(f"tags.`{tag}` = '{value}'" for tag, value in key.items())
        order = ["attributes.start_time ASC"]
        found = self.client.search_runs([self.experiment], query, max_results=1, order_by=order)
        if found:
            points = found[0].data.to_proto().metrics
            self._known[stage] = {point.key: (point.step, point.value) for point in points}
            self.runs[stage], self._started[stage] = found[0].info.run_id, found[0].info.start_time
            if entry and "error" in found[0].data.tags:  # an earlier attempt's
                self.client.delete_tag(self.runs[stage], "error")
            return True
        tags, name = ({}, stage) if stage else (self.head["tags"], self.head["name"])
        above = {} if stage else self._sweep()
        made = self.client.create_run(self.experiment, entry.get("at"), {**tags, **key, **above}, name)
        self._known[stage], self.runs[stage], self._started[stage] = {}, made.info.run_id, made.info.start_time
        return False

    def _sweep(self) -> dict[str, str]:
        """The tag that puts a run below that of its sweep; MLflow may not know that yet: then it is made here."""
        if not (whose := self.head.get("within")):
            return {}
        found = self.client.search_runs([self.experiment], f"tags.`maskmill.run` = '{whose}'", max_results=1)
        above = found[0] if found else self.client.create_run(self.experiment, None, {"maskmill.run": whose}, "sweep")
        return {"mlflow.parentRunId": above.info.run_id}

    def _reused(self, stage: str, key: str) -> None:
        """Tags the run with the one that made the artifact, where that is known; this one itself made it, maybe, in an
        earlier attempt."""
        everywhere = [one.experiment_id for one in self.client.search_experiments()]
        query = f"tags.key = '{key}' and tags.reused = 'false'"
        found = self.client.search_runs(everywhere, query, max_results=100, order_by=["attributes.start_time DESC"])
        makers = [run.info.run_id for run in found]
        if self.run(stage) not in makers:
            self._tags(stage, {"reused": "true"} | ({"made_by": makers[0]} if makers else {}))

    def _metrics(self, stage: str, entries: Sequence[Entry]) -> None:
        from mlflow.entities import Metric

        run = self.run(stage)
        known, points = dict(self._known[stage]), []
        for entry in entries:
            step, at = entry["step"], entry["timestamp_ms"]
            if step is None:
                step = max(0, (at - self._started[stage]) // 1000)
            for name, value in entry["metrics"].items():
                if _is_new(known.get(name), step, value):
                    points.append(Metric(name, float(value), at, step))
                    known[name] = (step, value)
        for start in range(0, len(points), AT_ONCE):
            self.client.log_batch(run, points[start : start + AT_ONCE])
        self._known[stage] = known

    def _parameters(self, stage: str, values: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        given = [Param(name, value) for name, value in values.items()]
        for start in range(0, len(given), 100):
            self.client.log_batch(self.run(stage), params=given[start : start + 100])

    def _tags(self, stage: str, values: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self.client.log_batch(self.run(stage), tags=[RunTag(name, value) for name, value in values.items()])

    def _inputs(self, stage: str, entry: Entry) -> None:
        from mlflow.data.sources import LocalArtifactDatasetSource  # type: ignore[attr-defined]
        from mlflow.entities import Dataset, DatasetInput, InputTag

        datasets = []
        for name, digest, folder, profile in entry["datasets"]:
            source = LocalArtifactDatasetSource(folder)
            # MLflow's column holds 36 characters; the whole digest goes into a tag.
            kind, place = source._get_source_type(), source.to_json()
            dataset = Dataset(name, digest[:32], kind, place, profile=json.dumps(profile) if profile else None)
            tags = [InputTag("mlflow.data.context", entry["context"]), InputTag("digest", digest)]
            datasets.append(DatasetInput(dataset, tags))
        self.client.log_inputs(self.run(stage), datasets)


def _is_new(last: tuple[int, float] | None, step: int, value: float) -> bool:
    """Figures have step 0 and may change; points of a curve come in the order of their steps."""
    return last is None or step > last[0] or (step == last[0] == 0 and value != last[1])


def will_not_pass(error: Exception) -> bool:
    """Is it the request that is wrong, and not the moment?"""
    if isinstance(error, json.JSONDecodeError):  # a gateway's own words
        return False
    if isinstance(error, OSError) and error.errno in DENIED:
        return True
    return getattr(error, "error_code", None) in REFUSED or isinstance(error, WRONG)


def login_refused(error: Exception) -> str:
    """What is wrong with the user, in words; "" where that is not what is wrong."""
    code = getattr(error, "error_code", None)
    if code == "UNAUTHENTICATED" or " failed with error code 401 " in str(error):
        return "does not let you in; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    return "does not allow this user to do that; ask who runs it" if code == "PERMISSION_DENIED" else ""
