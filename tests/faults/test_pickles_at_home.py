"""No pickle is loaded from a home: MLflow's store, Prefect's folder, databases, what runs left (test_pickles.py)."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import injector, outage, stand
from tests.faults.canary import forms

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stand.Stand]:
    """A home with a registered version, and a process that may be asked for it."""
    stand.at(tmp_path_factory.mktemp("registered"))
    (there := stand.here()).finished()
    yield there
    stand.leave()


FORGED = """
flavors:
  python_function:
    loader_module: mlflow.pyfunc.model
    python_model: python_model.pkl
    python_version: 3.11.7
    cloudpickle_version: 3.0.0
"""


@pytest.mark.slow
@pytest.mark.skipif(injector.compiler() is None, reason="the shim needs a C compiler")
def test_in_mlflows_store(registered: stand.Stand, tmp_path: Path) -> None:
    """In place of each file of a version, and where its MLmodel says that the model is a pickle."""
    canary = tmp_path / "canary"
    names = [path.relative_to(registered.home) for path in (registered.home / "mlartifacts").rglob("*")]
    names = [name for name in names if (registered.home / name).is_file()]
    assert len(names) > 8 and any(name.name == "MLmodel" for name in names)
    for name in names:
        for form in ("bare", "torch"):
            registered.finished()
            (registered.home / name).write_bytes(forms(canary)[form])
            registered.look()
            assert not canary.exists(), (name, form)
    registered.finished()
    for path in (registered.home / "mlartifacts").rglob("MLmodel"):
        path.write_text(FORGED)
        path.with_name("python_model.pkl").write_bytes(forms(canary)["bare"])
    loaded = registered.ask("pyfunc")
    assert loaded.status != 0 and not canary.exists(), loaded.said
    assert "pickle" in loaded.said.lower(), "MLflow was not asked to load one"


@pytest.mark.slow
def test_in_prefects_home_and_in_place_of_databases(tmp_path: Path) -> None:
    """A run does without it, or refuses it by name."""
    canary, home, data = tmp_path / "canary", tmp_path / "home", forms(tmp_path / "canary")["bare"]
    source = outage.write_texts(tmp_path / "texts")
    command = [sys.executable, "-m", "flows.cli", "run", "tiny", "--source", str(source)]
    refused = {"prefect/profiles.toml": 1, "prefect/prefect.db": 65, "mlflow.db": 65}
    for name in [*refused, "prefect/memo_store.toml", "prefect/storage/result", "runs/1.json", "outbox/1.jsonl"]:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(data)
        variables = outage.clean({"MASKMILL_HOME": str(home)})
        done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=600)
        assert not canary.exists(), name
        assert done.returncode == refused.get(name, 0), (name, done.stderr)
        assert name not in refused or Path(name).name in done.stderr or name.endswith("toml"), done.stderr
        (home / name).unlink(missing_ok=True)
