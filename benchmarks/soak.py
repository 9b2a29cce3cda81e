"""Does anything grow when 200 small runs are made one after the other on the same servers? Run by hand, an hour.

    python benchmarks/soak.py                             200 runs; a table, samples.jsonl and soak.png in --out
    python benchmarks/soak.py --runs 20 --json            for programs
    python benchmarks/soak.py --read OUT/samples.jsonl    the table of an earlier soak, or of one that is under way

As users do it: `maskmill ui` (Prefect's and MLflow's server), `maskmill deploy`, `maskmill worker`, and a flow run of
the deployment after the other. A deployment, because that has one more process that stays: the worker. Each run has a
seed of its own, so that it trains, evaluates and registers a version; corpus, vocabulary and shards are reused.

After each run is looked at
    of each server and of the worker, with all their processes: resident memory, open files, threads, processes
    processes of the home that belong to none of them; flocks held on its files; slots taken of the training limit
    POSIX semaphores and shared memory of the machine, other programs' included (/dev/shm)
    bytes on disk of each part of the home, and files of the store
    seconds of the run, and of that in its flow

Slopes are those of the means of ten runs each, without the first tenth (warm-up), with the 95 % interval of Student's
t: single samples follow from each other and would make it too narrow. Memory and handles are flat where the interval
holds 0, or where 200 runs add less than 5 % of what is there. Disk may grow, by what a run adds as artifacts, rows and
words of logs; how much is said. At the end nine of ten versions are deleted and `maskmill gc` is asked for their room.
"""

import argparse
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
MILL = (sys.executable, "-m", "flows.cli")
SMALL = ("pretrain.steps=6", "pretrain.checkpoint_every=3", "evaluate.pseudo_likelihood.passages=4")
DEPLOYMENT = """
pull: null
deployments:
  - name: soak
    entrypoint: flows/mlm.py:maskmill
    work_pool: {name: maskmill}
"""
OVER = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
PATIENCE = 600.0
"""Seconds that a run may take."""
SETTLED = 20.0
"""Seconds that its process may take to end then."""
BLOCK = 10
"""Runs whose mean is one point of a slope."""
SLACK = 0.05
"""Share of the level that the runs of a soak may add without being called growth."""
PROCESSES = ("prefect", "mlflow", "worker")
FLAT = tuple(f"{name} {what}" for name in PROCESSES for what in ("rss", "files", "threads", "processes"))
FLAT += ("left processes", "locks", "slots", "seconds")


class Stand:
    """A home with its texts, servers and worker."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        (folder / "texts").mkdir(parents=True)
        for number in range(60):
            text = " ".join(f"the {one} sat on the {number % 7} mats" for one in ("cat", "dog", "rat", "hen"))
            (folder / "texts" / f"{number}.txt").write_text(f"{text} number {number}. " * 6)
        (folder / "prefect.yaml").write_text(DEPLOYMENT)
        strange = ("PREFECT_", "MLFLOW_", "MASKMILL_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(strange)}
        kept |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PREFECT_WORKER_QUERY_SECONDS": "2"}
        self.variables = kept | {"MASKMILL_HOME": str(self.home)}
        self.services: dict[str, psutil.Process] = {}

    @contextmanager
    def open(self) -> Iterator["Stand"]:
        started: list[subprocess.Popen[bytes]] = []
        try:
            started.append(self._start("ui"))
            self._until(lambda: (self.home / "ui.json").exists(), started[0])
            addresses = json.loads((self.home / "ui.json").read_bytes())
            self.variables |= {"PREFECT_API_URL": addresses["prefect"] + "/api"}
            self.variables |= {"MLFLOW_TRACKING_URI": addresses["mlflow"]}
            self.maskmill("deploy", str(self.folder / "prefect.yaml"))
            started.append(self._start("worker"))
            servers = psutil.Process(started[0].pid).children()
            for server in servers:
                self.services["mlflow" if "mlflow" in server.cmdline() else "prefect"] = server
            self.services["worker"] = psutil.Process(started[1].pid)
            os.environ.update(self.variables)
            yield self
        finally:
            for process in reversed(started):
                process.send_signal(signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(60)
                process.kill()

    def _start(self, command: str) -> "subprocess.Popen[bytes]":
        with open(self.folder / f"{command}.log", "wb") as log:
            return subprocess.Popen(
                (*MILL, command), cwd=ROOT, env=self.variables, stdout=log, stderr=log, start_new_session=True
            )

    def _until(self, what: Any, process: "subprocess.Popen[bytes]") -> None:
        end = time.monotonic() + PATIENCE
        while not what():
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"the servers did not start; their words are in {self.folder}")
            time.sleep(0.2)

    def maskmill(self, *words: str) -> str:
        done = subprocess.run((*MILL, *words), cwd=ROOT, env=self.variables, capture_output=True, text=True, check=True)
        return done.stdout

    def run(self, client: Any, deployment: Any, seed: int) -> tuple[str, float]:
        """One flow run: the state that it ends in, and seconds from the wish to the end."""
        settings = [*SMALL, f"pretrain.seed={seed}"]
        parameters = {"recipe": "tiny", "source": [str(self.folder / "texts")], "set": settings}
        began, since = time.monotonic(), time.time()
        run = client.create_flow_run_from_deployment(deployment, parameters=parameters).id
        while time.monotonic() - began < PATIENCE:
            state = client.read_flow_run(run).state
            if state is not None and state.type.value in OVER:
                seconds = time.monotonic() - began
                self._settled(since)
                return state.type.value, seconds
            time.sleep(0.5)
        return "HANGS", time.monotonic() - began

    def _settled(self, since: float) -> None:
        """Waits a little for the processes that were begun since then; what does not end is counted."""
        end = time.monotonic() + SETTLED
        while time.monotonic() < end:
            with suppress(psutil.Error):
                children = self.services["worker"].children(recursive=True)
                if not [one for one in children if one.create_time() > since]:
                    return
            time.sleep(0.2)

    def sample(self, client: Any) -> dict[str, float]:
        """What is there between two runs."""
        found: dict[str, float] = {}
        ours = {os.getpid()}
        for name, service in self.services.items():
            family = [service, *service.children(recursive=True)]
            ours |= {one.pid for one in [*family, *service.parents()]}
            figures = [_looked_at(one) for one in family]
            for at, what in enumerate(("rss", "files", "threads")):
                found[f"{name} {what}"] = sum(one[at] for one in figures)
            found[f"{name} processes"] = len(family)
        found["left processes"] = sum(one.pid not in ours and self._is_ours(one) for one in psutil.process_iter())
        found["locks"] = self._locks()
        found["slots"] = client.read_global_concurrency_limit_by_name("maskmill-training").active_slots
        found["semaphores"] = len(list(Path("/dev/shm").glob("*")))
        return found | self._disk()

    def _is_ours(self, process: psutil.Process) -> bool:
        with suppress(psutil.Error):
            return process.environ().get("MASKMILL_HOME") == str(self.home)
        return False

    def _locks(self) -> int:
        """flocks on files of the home, of processes that are none of the servers."""
        inodes = {path.stat().st_ino for path in self.home.rglob("*") if path.is_file() and path.suffix != ".db"}
        lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
        return sum(line[1] == "FLOCK" and int(line[5].rsplit(":", 1)[1]) in inodes for line in lines)

    def _disk(self) -> dict[str, float]:
        sizes: dict[str, float] = {}
        for part in self.home.iterdir():
            with suppress(OSError):
                files = [path for path in (part.rglob("*") if part.is_dir() else [part]) if path.is_file()]
                sizes[f"disk {part.name}"] = sum(path.stat().st_size for path in files)
                if part.name == "store":
                    sizes["files in store"] = len(files)
        return sizes

    def rows(self) -> dict[str, int]:
        """Rows of each table of the two databases, where there are some."""
        found = {}
        for path in (self.home / "mlflow.db", self.home / "prefect" / "prefect.db"):
            with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
                names = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
                for (name,) in names:
                    (many,) = database.execute(f'SELECT count(*) FROM "{name}"').fetchone()
                    found |= {f"{path.stem} {name}": many} if many > 10 else {}
        return found

    def given_back(self) -> dict[str, Any]:
        """Nine of ten versions are deleted, as a user does; what of the store can go then, and what is left of it."""
        import mlflow

        before = self._disk()["disk store"]
        client = mlflow.MlflowClient(self.variables["MLFLOW_TRACKING_URI"])
        versions = [one for one in client.search_model_versions("name = 'tiny'") if int(one.version) % 10]
        champion = client.get_model_version_by_alias("tiny", "champion").version
        gone = [one for one in versions if one.version != champion]
        for version in gone:
            client.delete_model_version("tiny", version.version)
        page = json.loads(self.maskmill("gc", "--delete", "--keep-days", "0", "--json"))
        after = self._disk()["disk store"]
        return {"versions deleted": len(gone), "before": before, "gc": page["bytes"], "after": after}


def _looked_at(process: psutil.Process) -> tuple[int, int, int]:
    """Resident bytes, open files, threads."""
    with suppress(psutil.Error):
        return process.memory_info().rss, process.num_fds(), process.num_threads()
    return 0, 0, 0


def soak(stand: Stand, runs: int, out: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All samples, and what was seen at the end."""
    samples: list[dict[str, Any]] = []
    with stand.open():
        from prefect import get_client  # noqa: TID251  (as a user's program would)

        with get_client(sync_client=True) as client, open(out / "samples.jsonl", "w") as file:
            deployment = client.read_deployment_by_name("maskmill/soak").id
            for number in range(runs):
                state, seconds = stand.run(client, deployment, number)
                samples.append({"run": number, "state": state, "seconds": seconds} | stand.sample(client))
                print(json.dumps(samples[-1]), file=file, flush=True)
        return samples, {"rows": stand.rows(), "given back": stand.given_back()}


def slope(values: list[float]) -> tuple[float, float]:
    """Growth a run, and half the width of its 95 % interval; of the means of BLOCK runs each."""
    from scipy import stats

    means = [sum(values[at : at + BLOCK]) / BLOCK for at in range(0, len(values) - BLOCK + 1, BLOCK)]
    if len(means) < 3:
        return 0.0, float("inf")
    fit = stats.linregress([BLOCK * at for at in range(len(means))], means)
    return float(fit.slope), float(fit.stderr * stats.t.ppf(0.975, len(means) - 2))


def table(samples: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each figure: medians of the first, a middle and the last tenth, slope with interval, whether it grows."""
    tenth, found = max(1, len(samples) // 10), {}
    for name in [name for name in samples[-1] if name not in ("run", "state")]:
        values = [float(sample.get(name, 0)) for sample in samples]
        middle = values[len(values) // 2 - tenth // 2 :][:tenth]
        each, half = slope(values[tenth:])
        added = 200 * each
        grows = each - half > 0 and added > SLACK * abs(median(values))
        first, last = median(values[:tenth]), median(values[-tenth:])
        found[name] = {"first": first, "middle": median(middle), "last": last, "slope": each, "half": half}
        found[name]["grows"] = grows if name in FLAT and half < float("inf") else None  # None: too few runs to say
    return found


def show(figures: dict[str, dict[str, Any]], samples: list[dict[str, Any]]) -> None:
    failed = [sample["run"] for sample in samples if sample["state"] != "COMPLETED"]
    print(f"{len(samples)} runs, {len(failed)} not completed{': ' if failed else ''}{failed or ''}\n")
    print(f"{'':<24}{'first':>12}{'middle':>12}{'last':>12}{'a run':>12}{'±':>10}")
    for name, row in figures.items():
        scale = 1e6 if name.endswith(" rss") or name.startswith("disk") else 1.0
        cells = [row[part] / scale for part in ("first", "middle", "last")]
        said = {True: "  GROWS", False: "  flat", None: ""}[row["grows"]]
        line = f"{name + (' MB' if scale > 1 else ''):<24}" + "".join(f"{cell:>12,.2f}" for cell in cells)
        print(f"{line}{row['slope'] / scale:>12.4f}{row['half'] / scale:>10.4f}{said}")


def draw(samples: list[dict[str, Any]], path: Path) -> None:
    """Memory, open files, disk and seconds by run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = {
        "resident memory, MB": [f"{name} rss" for name in PROCESSES],
        "open files": [f"{name} files" for name in PROCESSES],
        "disk, MB": [name for name in samples[-1] if name.startswith("disk") and samples[-1][name] > 1e5],
        "seconds of a run": ["seconds"],
    }
    figure, places = pyplot.subplots(2, 2, figsize=(11, 7), constrained_layout=True)
    for place, (title, names) in zip(places.flat, groups.items(), strict=True):
        scale = 1e6 if title.endswith("MB") else 1.0
        for name in names:
            place.plot([sample.get(name, 0) / scale for sample in samples], label=name)
        place.set_title(title)
        place.set_ylim(bottom=0)
        place.legend(fontsize=7)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--out", type=Path, help="folder of the samples and the picture (default: a new one)")
    parser.add_argument("--read", type=Path, metavar="SAMPLES", help="only reports on an earlier soak's samples")
    parser.add_argument("--json", action="store_true", help="for programs")
    given = parser.parse_args()
    out = given.read.parent if given.read else given.out or Path(tempfile.mkdtemp(prefix="maskmill-soak-"))
    out.mkdir(parents=True, exist_ok=True)
    end: dict[str, Any] = {}
    if given.read:
        samples = [json.loads(line) for line in given.read.read_text().splitlines()]
    else:
        with tempfile.TemporaryDirectory(prefix="maskmill-soak-") as folder:
            samples, end = soak(Stand(Path(folder)), given.runs, out)
        (out / "end.json").write_text(json.dumps(end, indent=1))
    figures = table(samples)
    draw(samples, out / "soak.png")
    if given.json:
        print(json.dumps({"runs": len(samples), "figures": figures, "end": end}, indent=2))
    else:
        show(figures, samples)
        print(f"\n{json.dumps(end, indent=1)}\nSamples and picture: {out}")
    if any(row["grows"] for row in figures.values()) or any(one["state"] != "COMPLETED" for one in samples):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
