"""MLflow as far as a delivery sees it, with its semantics: what one call commits, what is stored once, what is refused.

metrics of a call are one transaction, tags another      equal points are stored once
a call may fail before it commits, after it, or be committed later, when somebody else calls
"""

import re
from types import SimpleNamespace

from mlflow.entities import Metric, RunData, RunTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST


class Died(BaseException):
    """The process was killed here."""


class FakeMlflow:
    """The server and its client; `trouble(name)` is asked before and after each commit and may raise."""

    def __init__(self):
        self.runs = {}
        self.late = []
        self.calls = []
        self.trouble = lambda name, when: None

    def _commit(self, name, change):
        self.calls.append(name)
        if len(self.calls) % 3 == 0:
            self.catch_up()
        if self.trouble(name, "before") == "late":  # the answer is lost, and the server is slow
            self.late.append(change)
            raise ConnectionError("no answer")
        result = change()
        self.trouble(name, "after")
        return result

    def catch_up(self):
        """What was not committed at once is now."""
        while self.late:
            self.late.pop()()

    def search_experiments(self):
        return [SimpleNamespace(experiment_id="0")]

    def delete_tag(self, run_id, key):
        self._commit("tags", lambda: self.runs[run_id].tags.pop(key, None))

    def search_runs(self, experiments, query, max_results, order_by):
        wanted = dict(re.findall(r"tags\.`?([^`\s]+)`? = '([^']*)'", query))

        def found():
            return [run for run in self.runs.values() if wanted.items() <= run.tags.items()]

        return [self._seen(run) for run in self._commit("search", found)[:max_results]]

    def _seen(self, run):
        latest = {}
        for key, at, step, value in sorted(run.points, key=lambda point: (point[2], point[1], point[3])):
            latest[key] = Metric(key, value, at, step)
        data = RunData(list(latest.values()), [], [RunTag(*tag) for tag in run.tags.items()])
        return SimpleNamespace(info=SimpleNamespace(run_id=run.id, start_time=run.at), data=data)

    def create_run(self, experiment, start_time, tags, name):
        run = SimpleNamespace(id=str(len(self.runs)), tags=dict(tags), points=[], params={}, status="RUNNING", files=[])
        run.at = start_time or 0
        self._commit("create", lambda: self.runs.setdefault(run.id, run))
        return self._seen(run)

    def update_run(self, run_id, status):
        self._commit("update", lambda: setattr(self.runs[run_id], "status", status))

    def log_batch(self, run_id, metrics=(), params=(), tags=()):
        if run_id not in self.runs:
            raise MlflowException("no such run", RESOURCE_DOES_NOT_EXIST)
        run = self.runs[run_id]
        assert len(metrics) <= 1000
        if any("\n" in metric.key for metric in metrics):
            raise MlflowException("bad name", INVALID_PARAMETER_VALUE)
        new = [(metric.key, metric.timestamp, metric.step, metric.value) for metric in metrics]
        if new:
            self._commit("metrics", lambda: run.points.extend(point for point in new if point not in run.points))
        if params:
            self._commit("params", lambda: run.params.update((one.key, one.value) for one in params))
        if tags:
            self._commit("tags", lambda: run.tags.update((one.key, one.value) for one in tags))

    def log_artifact(self, run_id, path):
        self._commit("file", lambda: self.runs[run_id].files.append(path))

    def log_inputs(self, run_id, datasets):
        self._commit("inputs", lambda: None)

    def set_terminated(self, run_id, status, end_time):
        self._commit("end", lambda: setattr(self.runs[run_id], "status", status))

    def history(self, stage, key, run=None):
        """Steps of a metric as they are stored, over all runs of the stage below a run (or below any)."""
        stages = [one for one in self.runs.values() if one.tags.get("stage") == stage]
        parents = {one.id for one in self.runs.values() if run in (None, one.tags.get("maskmill.run"))}
        points = [point for one in stages if one.tags["mlflow.parentRunId"] in parents for point in one.points]
        return sorted(point[2] for point in points if point[0] == key)
