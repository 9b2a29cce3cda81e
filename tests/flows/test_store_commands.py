"""maskmill lineage and maskmill gc: what a person sees, the exit status, and that gc removes nothing it should not."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows import cli, ledger
from tasks import lineage, versions
from tasks.artifacts import Built, Identity, Manifest, Store
from tasks.errors import MaskmillError, UsageError
from tasks.versions import Version

OLD = time.time() - 100 * 86400
runner = CliRunner()


class House:
    """A home with two models, one of them registered, and a registry that is a list."""

    def __init__(self, home: Path) -> None:
        self.home, self.store = home, Store(home / "store")
        self.corpus = self.make("corpus", 0, {"novels": "c" * 64})
        self.vocabulary = self.make("vocabulary", 0, {"corpus": self.corpus.digest})
        both = {"corpus": self.corpus.digest, "vocabulary": self.vocabulary.digest}
        self.shards = self.make("shards", 0, both)
        self.pretrain, self.spare = (self.make("pretrain", number, {"shards": self.shards.digest}) for number in (0, 1))
        every = both | {"shards": self.shards.digest, "pretrain": self.pretrain.digest}
        self.evaluate = self.make("evaluate", 0, every)
        self.register = self.make("register", 0, every | {"evaluate": self.evaluate.digest})
        tags = every | {"evaluate": self.evaluate.digest, "register": self.register.digest, "verdict": "CHAMPION: 3.1"}
        self.version = Version("mine", 1, ("champion",), tags, "models:/m-1")

    def make(self, stage: str, number: int, inputs: dict[str, str]) -> Manifest:
        def build(work: Any) -> Built:
            (work.folder / "data").write_bytes(b"x" * 1000)
            return Built({}, {})

        manifest = self.store.make(Identity(stage, 1, {"n": number}, inputs), build)[0]
        os.utime(manifest.folder / "manifest.json", (OLD, OLD))
        return manifest


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    monkeypatch.setenv("MASKMILL_HOME", str(tmp_path))
    monkeypatch.setattr(cli.environment, "settle", lambda home: None)
    house = House(tmp_path)
    monkeypatch.setattr(lineage, "every", lambda home: [house.version])
    monkeypatch.setattr(versions, "find", lambda spec, home: house.version)
    return house


def said(code: int, *arguments: str) -> str:
    result = runner.invoke(cli.terminal.app, list(arguments))
    assert result.exit_code == code, result.output
    return result.output


def test_lineage_is_a_tree_down_to_the_sources(house: House) -> None:
    lines = said(0, "lineage", "mine").splitlines()
    assert lines[0].startswith("mine version 1 @champion") and "CHAMPION: 3.1" in lines[0]
    assert [line.split()[1] for line in lines[1:7]] == [
        "register", "evaluate", "pretrain", "shards", "vocabulary", "corpus",
    ]  # fmt: skip
    assert "novels" in lines[7] and lines[-1].startswith("All 6 artifacts are there and whole.")
    page = json.loads(said(0, "lineage", "mine", "--json"))
    assert page["verdict"] == "whole" and page["artifacts"][0]["folder"] == str(house.register.folder)


def test_lineage_says_what_is_gone_and_fails_for_what_is_damaged(house: House) -> None:
    house.store.folder(house.shards.identity).rename(house.home / "away")
    output = said(0, "lineage", "mine")
    assert "1 of 6 artifacts are gone" in output
    (house.evaluate.folder / "data").write_bytes(b"short")
    output = said(65, "lineage", "mine")
    assert "Damaged: 1." in output and str(house.evaluate.folder / "data") in output
    assert json.loads(said(65, "lineage", "mine", "--json"))["verdict"] == "damaged"


def test_gc_shows_first_and_removes_what_nobody_needs_when_it_is_told_to(house: House) -> None:
    output = said(0, "gc")
    assert "maskmill gc --delete removes them" in output and house.spare.folder.exists()
    page = json.loads(said(0, "gc", "--json"))
    assert [one["path"] for one in page["spare"]] == [str(house.spare.folder)] and not page["removed"]
    assert page["bytes"] >= 1000 and page["kept"]["pretrain"]["artifacts"] == 1
    assert "1 removed" in said(0, "gc", "--delete") and not house.spare.folder.exists()
    assert house.pretrain.folder.exists() and "Everything is needed" in said(0, "gc")


def test_gc_keeps_what_a_recent_or_a_running_run_needs(house: House) -> None:
    with ledger.record(house.home, "tiny", "maskmill run tiny") as recorder:
        recorder.stage("pretrain", "running", key=house.spare.key)
        assert "Everything is needed" in said(0, "gc", "--keep-days", "0", "--delete")
        recorder.stage("pretrain", "made")
    assert "Everything is needed" in said(0, "gc", "--delete")
    assert "1 removed" in said(0, "gc", "--keep-days", "0", "--delete")


@pytest.mark.parametrize("error", [MaskmillError("The registry at x does not answer."), UsageError("It was deleted.")])
def test_gc_removes_nothing_where_the_registry_cannot_be_asked(
    house: House, monkeypatch: pytest.MonkeyPatch, error: MaskmillError
) -> None:
    def away(home: Path) -> list[Version]:
        raise error

    monkeypatch.setattr(lineage, "every", away)
    output = said(error.exit_code, "gc", "--delete")
    assert f"{error} Nothing was removed" in " ".join(output.split()) and house.spare.folder.exists()


def test_gc_asks_a_server_and_the_embedded_registry_of_the_home(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lineage.addresses(house.home) == []
    (house.home / "mlflow.db").touch()
    embedded = f"sqlite:///{house.home / 'mlflow.db'}"
    assert lineage.addresses(house.home) == [embedded]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert lineage.addresses(house.home) == ["http://127.0.0.1:9", embedded]
