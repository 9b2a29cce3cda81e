"""What does it cost that Prefect, the ledger and MLflow stand around the stages? Run by hand, on a quiet machine.

    python benchmarks/orchestration.py                    all parts, 5 rounds
    python benchmarks/orchestration.py --only help run    some of them

help     `maskmill --help`, beside an interpreter that does nothing. The aim: at most 1 s.
run      `maskmill run` with all up to date and a server running, beside the imports of Prefect and of MLflow. The aim:
         at most 3 s more than the first. And a second flow run in the same process: in its six stages, all reused,
         nothing is done but orchestration. The aim: at most 150 ms a stage.
boot     the same without a server: the embedded one boots first.
files    10,000 small source files: plan with nothing known of them, data (each read, its documents accounted for), plan
         once more. The aim for a plan: at most 10 s.

Cases take turns; medians.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from flows import environment, ui

ROOT = Path(__file__).parents[1]
PARTS = ("help", "run", "boot", "files")
FILES = 10_000
PREFECT = (
    "from prefect import flow, task, get_client, runtime; from prefect.events.worker import EventsWorker; "
    "from prefect.logging.handlers import APILogWorker; import prefect.artifacts, prefect.cache_policies"
)
TWICE = """
import sys, time
from flows import mlm
sys.stdout, spent = sys.stderr, 0.0

def timed(call):
    def run(*given, **named):
        global spent
        began = time.perf_counter()
        try:
            return call(*given, **named)
        finally:
            spent += time.perf_counter() - began
    return run

for name in ("ingest", "learn", "shard", "train", "score", "publish"):
    setattr(mlm, name, timed(getattr(mlm, name)))
for _ in range(2):
    spent, began = 0.0, time.perf_counter()
    mlm.maskmill("tiny", [sys.argv[1]])
    seconds = time.perf_counter() - began
print(seconds, spent, file=sys.__stdout__)
"""
MLFLOW = "import mlflow, mlflow.artifacts, mlflow.store.tracking.sqlalchemy_store"
MILL = (sys.executable, "-m", "flows.cli")


def command(words: tuple[str, ...], variables: dict[str, str]) -> Callable[[], float]:
    """Seconds that a process takes; fails where it fails."""

    def run() -> float:
        began = time.perf_counter()
        done = subprocess.run(words, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - began
        if done.returncode:
            raise SystemExit(f"{' '.join(words)} ended with status {done.returncode}: {done.stderr[-2000:]}")
        return seconds

    return run


def second(source: str, variables: dict[str, str], stages: list[float]) -> Callable[[], float]:
    """Seconds of the second flow run of a process; those in its stages are added to the list."""
    words = [sys.executable, "-c", TWICE, source]

    def run() -> float:
        kept = os.environ | variables
        done = subprocess.run(words, cwd=ROOT, env=kept, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
        seconds, within = map(float, done.stdout.split())
        stages.append(within)
        return seconds

    return run


def rounds(cases: dict[str, Callable[[], float]], count: int) -> dict[str, float]:
    found: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(count):
        for name, run in cases.items():
            found[name].append(run())
    for name, seconds in found.items():
        print(f"{name:44} {median(seconds):7.2f} s   ({min(seconds):.2f} to {max(seconds):.2f})", flush=True)
    return {name: median(seconds) for name, seconds in found.items()}


def of_help(home: Path, count: int) -> None:
    bare = command((sys.executable, "-c", "pass"), {})
    rounds({"python -c pass": bare, "maskmill --help": command((*MILL, "--help"), {"MASKMILL_HOME": str(home)})}, count)


def of_runs(home: Path, count: int, boot: bool) -> None:
    texts = home / "texts"
    texts.mkdir(parents=True)
    for number in range(200):
        (texts / f"{number}.txt").write_text(f"The {number}th text says that {number % 7} cats sit on mats. " * 5)
    variables = {"MASKMILL_HOME": str(home / "home")}
    words = (*MILL, "run", "tiny", "--source", str(texts))
    if boot:
        command(words, variables)()
        rounds({"maskmill run, all reused, no server": command(words, variables)}, count)
        return
    environment.settle(home / "home")
    server = ui.start_prefect(home / "home", ui.free_port(0)).wait()
    try:
        variables["PREFECT_API_URL"] = f"{server.address}/api"
        command(words, variables)()
        name, imports, again = "maskmill run, all reused", "the imports of Prefect", "a second flow run in one process"
        cases = {imports: command((sys.executable, "-c", PREFECT), variables), name: command(words, variables)}
        cases |= {"the imports of MLflow": command((sys.executable, "-c", MLFLOW), variables)}
        stages: list[float] = []
        found = rounds(cases | {again: second(str(texts), variables, stages)}, count)
        print(f"a run beyond the imports of Prefect: {found[name] - found[imports]:.2f} s")
        within = median(stages)
        print(f"a second run: {within / 6 * 1e3:.0f} ms a stage, {found[again] - within:.2f} s around them")
    finally:
        server.stop()


def of_files(home: Path) -> None:
    texts = home / "texts"
    for number in range(FILES):
        folder = texts / f"{number % 100:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.txt").write_text(f"File {number} tells of {number * 7919 % 10_007} mats and of cats. " * 4)
    variables = {"MASKMILL_HOME": str(home / "home")}
    given = ("tiny", "--source", str(texts))
    plan = command((*MILL, "plan", *given), variables)
    print(f"plan, {FILES:,} files, nothing known {plan():20.2f} s")
    print(f"data, the embedded server's boot included {command((*MILL, 'data', *given), variables)():10.2f} s")
    print(f"plan once more {plan():42.2f} s")
    (manifest,) = (home / "home" / "store" / "corpus").glob("[!.]*/manifest.json")
    print("counts: " + json.dumps(json.loads(manifest.read_bytes())["counts"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(PARTS), choices=PARTS)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for part in given.only:
            home = Path(folder) / part
            print(f"\n{part}")
            if part == "help":
                of_help(home, given.rounds)
            elif part == "files":
                of_files(home)
            else:
                of_runs(home, given.rounds, part == "boot")


if __name__ == "__main__":
    main()
