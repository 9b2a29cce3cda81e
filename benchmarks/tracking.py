"""What does telling MLflow cost? Run by hand, on a quiet machine.

    python benchmarks/tracking.py                     both parts, with SQLite and with a server of its own
    python benchmarks/tracking.py --only logging --steps 2000

logging         a step of 150 ms of matrix products on one thread and 8 metrics every 10 steps, with a tracker and
                without, in alternation. The aim: less than 1 % of the step. The CPU time of the process counts the
                sender's thread, too; a flow's training is a process of its own, which pays none of it.
registration    a version of a folder with 100 MB (log_model, version, tags, aliases) beside a plain copy + sha256 +
                fsync of the same files. The aim: less than 3 times as long.
"""

import argparse
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np

from tasks import tracking

STEP = 0.15
"""Seconds of a step, about."""
EVERY = 10
NAMES = [f"train/metric_{number}" for number in range(8)]


@contextmanager
def address(home: Path, kind: str) -> Iterator[None]:
    """Where MLflow is for the time of the block: the embedded database, or a server on one of its own."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    if kind == "sqlite":
        yield
        return
    from flows import ui

    place = home / "server"
    place.mkdir(parents=True)
    server = ui.start_mlflow(place, ui.free_port(0)).wait()
    os.environ["MLFLOW_TRACKING_URI"] = server.address
    try:
        yield
    finally:
        os.environ.pop("MLFLOW_TRACKING_URI")
        server.stop()


def step_of(seconds: float) -> Callable[[], None]:
    """A step that takes so long, on one thread."""
    a = np.random.default_rng(0).random((512, 512), np.float32)
    began = time.perf_counter()
    for _ in range(20):
        a @ a
    times = max(1, round(seconds / ((time.perf_counter() - began) / 20)))

    def step() -> None:
        for _ in range(times):
            a @ a

    return step


def loop(step: Callable[[], None], steps: int, ship: Callable[[int], None]) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds of the whole process, wall seconds inside `ship`."""
    inside, wall, cpu = 0.0, time.perf_counter(), time.process_time()
    for number in range(1, steps + 1):
        step()
        if number % EVERY == 0:
            began = time.perf_counter()
            ship(number)
            inside += time.perf_counter() - began
    return time.perf_counter() - wall, time.process_time() - cpu, inside


def logging(home: Path, kind: str, steps: int, rounds: int) -> None:
    step, ratios, cpus, calls = step_of(STEP), [], [], []
    with address(home, kind):
        tracking.connect(home)
        for number in range(rounds):
            plain = loop(step, steps, lambda _: None)
            tracker = tracking.Tracker(home, "benchmark", f"run-{kind}-{number}", "benchmark")
            with tracker.stage("pretrain") as run:
                tracker.flush(60)  # opening a run is none of a step's costs

                def ship(at: int, run: tracking.StageRun = run) -> None:
                    metrics = dict.fromkeys(NAMES, 1.0 / at)
                    run.ship([{"step": at, "timestamp_ms": int(time.time() * 1000), "metrics": metrics}])

                told = loop(step, steps, ship)
            tracker.end()
            ratios.append(told[0] / plain[0])
            cpus.append(told[1] / plain[1])
            calls.append(told[2] / told[0])
    print(
        f"logging, {kind}: the loop takes {median(ratios):.4f} times as long ({min(ratios):.4f} to {max(ratios):.4f}), "
        f"CPU {median(cpus):.4f}; inside the call {median(calls):.5%} of the loop"
    )


def copied(folder: Path, target: Path) -> float:
    began = time.perf_counter()
    shutil.copytree(folder, target)
    for path in target.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                hashlib.file_digest(file, "sha256")
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
    return time.perf_counter() - began


def registration(home: Path, kind: str, megabytes: int, rounds: int) -> None:
    """A small model that really loads, with a file beside it that makes up the size: MLflow copies it all the same."""
    from tasks import registry
    from tasks.artifacts import Store
    from tests.tasks import small_model

    store, ratios, seconds = Store(home / "store"), [], []
    corpus = small_model.corpus(store)
    vocabulary = small_model.vocabulary(store, corpus)
    shards = small_model.shards(store, vocabulary)
    with address(home, kind):
        tracking.connect(home)
        for number in range(rounds + 1):  # the first imports the libraries
            weights = small_model.pretrain(store, vocabulary, shards, seed=number, noise=0.1)
            report = small_model.evaluate(store, weights, 4.0 - number / 10)
            parents = dict(zip(registry.PARENTS, (corpus, vocabulary, shards, weights, report)))
            config = registry.RegisterConfig(f"benchmark-{kind}")

            def build(work, parents=parents, config=config):  # type: ignore[no-untyped-def]
                digest = registry._write_folder(work.folder, config.name, parents)
                (work.folder / "model" / "ballast.bin").write_bytes(os.urandom(megabytes << 20))
                return registry.Built({"parameters": 1}, {"model": config.name, "weights": digest})

            digests = [one.digest for one in parents.values()]
            manifest, _ = store.make(registry.identity(config, *digests), build)
            began = time.perf_counter()
            registry.register(config, corpus, vocabulary, shards, weights, report, store, home=home)
            took = time.perf_counter() - began
            plain = copied(manifest.folder, home / f"copy-{number}")
            shutil.rmtree(home / f"copy-{number}")
            if number:
                ratios.append(took / plain)
                seconds.append((took, plain))
    each = ", ".join(f"{took:.2f} and {plain:.2f} s" for took, plain in seconds)
    print(f"registration, {kind}, {megabytes} MB: {median(ratios):.2f} times a copy + hash ({each})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["logging", "registration"])
    parser.add_argument("--where", choices=["sqlite", "server"])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=100)
    given = parser.parse_args()
    for kind in [given.where] if given.where else ["sqlite", "server"]:
        for what in [given.only] if given.only else ["logging", "registration"]:
            with tempfile.TemporaryDirectory() as folder:
                if what == "logging":
                    logging(Path(folder), kind, given.steps, given.rounds)
                else:
                    registration(Path(folder), kind, given.megabytes, given.rounds)


if __name__ == "__main__":
    main()
