import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from flows import runners
from tasks.artifacts import digest_of
from tasks.errors import UsageError

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, os, sys
from pathlib import Path
from flows import environment
environment.settle(environment.home())
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
import psutil
from flows import mlm, runners
from tasks import artifacts, corpus, shards, units, vocabulary
from tasks.errors import MaskmillError
from tasks.parallel import in_order

corpus.SMALL_BYTES, shards.SMALL_BYTES, units.UNIT_FILES = 0, 0, 2

def outcome(work, jobs, pool):
    try:
        return list(in_order(jobs, work, pool))
    except MaskmillError as error:
        return [type(error).__name__, str(error)]

@task(name="corpus", task_run_name="corpus", cache_policy=NO_CACHE, persist_result=False)
def stage(*, pool):
    found = {"workers": pool.workers if pool else 0}
    found["results"] = outcome(artifacts.digest_of, [{"number": n} for n in range(7)], pool)
    found["raised"] = outcome(artifacts.load, [Path("/no/such/artifact")], pool)
    found["corpus"], found["shards"] = {}, {}
    for workers in (pool, None):
        store = artifacts.Store(Path(sys.argv[2]).with_name("store-pool" if workers else "store"))
        config = corpus.CorpusConfig((corpus.Source(sys.argv[3]),), limits=corpus.Limits(document_characters=400))
        text, _ = corpus.corpus(config, store, workers)
        words, _ = vocabulary.vocabulary(vocabulary.VocabularyConfig(size=320), text, store)
        rows, _ = shards.shards(shards.ShardsConfig(length=64), text, words, store, workers)
        found["corpus"][store.root.name], found["shards"][store.root.name] = text.digest, rows.digest
    found["killed"] = outcome(os._exit, [9], pool) if pool else None
    return found

@flow(persist_result=False)
def one(name):
    with runners.pool(name) as pool:
        state = stage(pool=pool, return_state=True)
        return state.result()

if __name__ == "__main__":
    found = one(sys.argv[1])
    mlm.deliver()
    left = [child.cmdline() for child in psutil.Process().children(recursive=True)]
    found["left"] = [words for words in left if "resource_tracker" not in " ".join(words)]
    Path(sys.argv[2]).write_text(json.dumps(found))
"""


def clean(home: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "DASK_", "RAY_"))}
    return kept | {"MASKMILL_HOME": str(home)}


def run(name: str, folder: Path, api: str) -> dict[str, Any]:
    (folder / "program.py").write_text(PROGRAM)
    (folder / "tmp").mkdir()
    variables = clean(folder / "home") | {"PREFECT_API_URL": api, "TMPDIR": str(folder / "tmp")}
    variables["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    (folder / "text").mkdir()
    for number in range(9):
        text = "\n\n".join(f"Document {number} says {n * n} in paragraph {n}, and more. " * 4 for n in range(30))
        (folder / "text" / f"{number}.txt").write_text(text)
    words = [sys.executable, str(folder / "program.py"), name, str(folder / "found.json"), str(folder / "text")]
    done = subprocess.run(words, cwd=folder, env=variables, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


def states(api: str, name: str) -> dict[str, str]:
    body = json.dumps({"task_runs": {"name": {"like_": name}}}).encode()
    request = urllib.request.Request(f"{api}/task_runs/filter", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as reply:
        return {run["name"]: run["state_name"] for run in json.load(reply) if run["flow_run_id"]}


RESULTS = [[{"number": number}, digest_of({"number": number})] for number in range(7)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dask", "ray"])
def test_a_cluster_gives_the_same_results_in_order_and_leaves_nothing(
    name: str, tmp_path: Path, prefect_server: str
) -> None:
    before = set(Path("/tmp").glob(f"maskmill-{name}-*"))
    found = run(name, tmp_path, prefect_server)
    assert found["workers"] >= 1
    assert found["results"] == RESULTS
    assert found["raised"][0] == "DataError" and "/no/such/artifact" in found["raised"][1]
    assert found["killed"][0] == "MemoryExhausted" and "killed" in found["killed"][1]
    for made in ("corpus", "shards"):
        assert found[made]["store"] == found[made]["store-pool"]
    assert found["left"] == []
    assert {path.name for path in tmp_path.iterdir()} - {"text", "store", "store-pool"} <= {
        "program.py",
        "found.json",
        "home",
        "tmp",
        "__pycache__",
    }
    assert not list((tmp_path / "tmp").glob("maskmill-*"))
    assert not set(Path("/tmp").glob(f"maskmill-{name}-*")) - before
    seen = states(prefect_server, "digest of")
    assert {f"digest of {number}": "Completed" for number in range(1, 8)}.items() <= seen.items()
    for work in ("make rows", "make shard"):
        assert set(states(prefect_server, work).values()) == {"Completed"}


def test_the_processes_of_the_stage_need_no_pool() -> None:
    with runners.pool("processes") as pool:
        assert pool is None


def test_a_cluster_is_started_by_its_first_job_only(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    monkeypatch.setattr(runners, "check", lambda name: None)
    monkeypatch.setattr(runners, "_dask", lambda stack: (started.append("dask"), 3))
    with runners.pool("dask") as pool:
        assert pool is not None and started == []
        assert pool.workers == 3 and pool.workers == 3
    assert started == ["dask"]


@pytest.mark.parametrize(("name", "package"), [("dask", "prefect_dask"), ("ray", "ray")])
def test_a_missing_package_is_named_with_its_remedy(name: Any, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runners, "find_spec", lambda wanted: None if wanted == package else object())
    with pytest.raises(UsageError) as caught:
        runners.check(name)
    assert str(caught.value) == f"runner: {name} needs {package}; pip install 'maskmill[{name}]'."
    runners.check("processes")


def test_a_cluster_that_is_away_is_named_with_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(stack: object) -> None:
        raise OSError("Timed out trying to connect")

    monkeypatch.setattr(runners, "check", lambda name: None)
    monkeypatch.setattr(runners, "_dask", fail)
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "tcp://far:8786")
    with runners.pool("dask") as pool, pytest.raises(UsageError) as caught:
        assert pool is not None
        pool.submit(digest_of, {})
    assert "no cluster at tcp://far:8786 (DASK_SCHEDULER_ADDRESS): Timed out" in str(caught.value)


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_ray_cluster_that_is_away_is_noticed_at_once(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("prefect_ray", reason="Ray is not installed: pip install 'maskmill[ray]'")
    monkeypatch.setenv("RAY_ADDRESS", f"{scheme}127.0.0.1:9")
    with runners.pool("ray") as pool, pytest.raises(UsageError, match=r"no cluster at .*127.0.0.1:9 \(RAY_ADDRESS\)"):
        assert pool is not None
        pool.submit(digest_of, {})


def test_a_unit_is_called_like_its_work() -> None:
    assert runners._called(runners.partial(digest_of, 1)) == "digest of"
