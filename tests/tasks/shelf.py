"""A registry whose versions have evidence and no weights. Shared by several test modules."""

from pathlib import Path

import pytest

from tasks import board, tracking, versions
from tasks.board import attach
from tasks.results import CHAMPION, MODEL
from tests.tasks import small_model


@pytest.fixture(autouse=True)
def answers(monkeypatch):
    """Every model answers: none of these versions has weights."""
    monkeypatch.setattr(board, "smoke", lambda spec, home, modality: "")


class Shelf:
    """A registry whose versions have evidence and no weights: these are made in no time."""

    def __init__(self, home: Path):
        self.home = home
        self.client = tracking.connect(home)
        known = self.client.get_experiment_by_name("shelf")
        place = tracking.artifact_root(home).as_uri()
        self.experiment = known.experiment_id if known else self.client.create_experiment("shelf", place)

    def add(self, name, nats, test="a" * 64, rival=None, in_run=True, **shown):
        """A version of that masked cross-entropy; without nats one of a time when there was no gate."""
        run = self.client.create_run(self.experiment).info.run_id if in_run else None
        logged = self.client.create_logged_model(self.experiment, source_run_id=run)
        self.client.finalize_logged_model(logged.model_id, "READY")
        if not versions.known_model(self.client, name):
            self.client.create_registered_model(name)
        with versions.fluent(self.home):
            made = self.client.create_model_version(
                name, f"models:/{logged.model_id}", run_id=run, model_id=logged.model_id
            )
        number = int(made.version)
        self.client.set_model_version_tag(name, str(number), "pretrain", f"{name}-{number}")
        self.client.update_model_version(name, str(number), description=f"v{number} new\n\n# The card\n")
        if nats is not None:
            both = {MODEL: nats} | ({CHAMPION: rival[1]} if rival else {})
            of = {MODEL: f"{name}-{number}"} | ({CHAMPION: f"{name}-{rival[0]}"} if rival else {})
            scores = self.home / "scores.arrow"
            small_model.scored(scores, both, of, test, **shown)
            attach(self.client, versions.version_of(self.client, made), scores)
        return number

    def tags(self, name, number):
        return dict(self.client.get_model_version(name, str(number)).tags)

    def first_line(self, name, number):
        return self.client.get_model_version(name, str(number)).description.splitlines()[0]

    def aliases(self, name):
        return {alias: int(number) for alias, number in self.client.get_registered_model(name).aliases.items()}

    def report(self, name, number):
        run = self.client.get_model_version(name, str(number)).run_id
        with versions.fluent(self.home) as mlflow:
            return mlflow.artifacts.load_dict(f"runs:/{run}/gate_report.json")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    return Shelf(tmp_path_factory.mktemp("shelf"))
