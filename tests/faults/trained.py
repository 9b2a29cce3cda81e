"""The stage pretrain on handmade shards, as a process of its own: `python -m tests.faults.trained STORE SETTINGS`.

It prints the digest of the weights, or what went wrong to stderr, and exits with the documented status. POISON in the
environment makes batches go wrong (tests/faults/poisoned_trainer.py).
"""

import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tasks import launch
from tasks.artifacts import Manifest, Store, load, verify
from tasks.errors import MaskmillError
from tasks.guards import GuardsConfig
from tasks.pretrain import PretrainConfig, pretrain
from tests.faults import runs
from tests.faults.trial import Failed
from tests.tasks import handmade

CALM: dict[str, Any] = {
    "layers": 2,
    "width": 32,
    "heads": 2,
    "intermediate": 48,
    "window": 16,
    "batch_tokens": 512,
    "micro_tokens": 256,
    "steps": 24,
    "checkpoint_every": 4,
    "validation_every": 12,
    "validation_rows": 20,
    "log_every": 1,
    "device": "cpu",
    "dtype": "float32",
    "threads": 1,
}
COST = 8.0
"""Seconds of a core that one takes; ranks take as much each."""


def start(folder: Path, settings: Mapping[str, Any], poison: Mapping[str, Any] | None = None) -> runs.Run:
    """A training in that folder's store, with settings other than CALM's."""
    words = [sys.executable, "-m", "tests.faults.trained", str(folder / "home" / "store"), json.dumps(CALM | settings)]
    return runs.start(folder / "home", words, {"POISON": json.dumps(poison) if poison else None})


def made(folder: Path) -> Manifest:
    """The weights. Raises Failed where there are none, or damaged ones."""
    folders = list((folder / "home" / "store" / "pretrain").glob("[!.]*"))
    if len(folders) != 1:
        raise Failed("different", f"{len(folders)} artifacts of pretrain")
    if findings := verify(manifest := load(folders[0])):
        raise Failed("silent", f"damaged under a final name: {findings}")
    return manifest


def weights(folder: Path, settings: Mapping[str, Any], poison: Mapping[str, Any] | None = None) -> Manifest:
    """A training to its end. Raises Failed where it has none."""
    run = start(folder, settings, poison)
    if (status := run.ended()) != 0:
        raise Failed("different", f"it ended with {status}: {run.said[-800:]}")
    runs.clean(run)
    if there := runs.litter(folder / "home"):
        raise Failed("litter", ", ".join(there))
    return made(folder)


def undisturbed(folder: Path, settings: Mapping[str, Any], poison: Mapping[str, Any] | None = None) -> str:
    """Its digest, made once below the folder of all trials."""
    name = hashlib.sha256(json.dumps([settings, poison], sort_keys=True).encode()).hexdigest()[:12]
    place = folder.parent / f"trained-{name}"
    place.mkdir(exist_ok=True)
    with open(place / "lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (said := place / "digest").exists():
            said.write_text(weights(place, settings, poison).digest)
    return said.read_text()


def main(store_path: str, settings: str) -> int:
    given = json.loads(settings)
    config = PretrainConfig(**{**given, "guards": GuardsConfig(**given.get("guards", {}))})
    store, command = Store(Path(store_path), wait=120), launch.command
    launch.POLL = 0.01
    if os.environ.get("POISON"):
        launch.command = _poisoned(command)  # type: ignore[assignment]
    try:
        manifest, _ = pretrain(config, handmade.vocabulary(store), handmade.shards(store), store)
    except MaskmillError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    print(manifest.digest)
    return 0


def _poisoned(command: Callable[..., list[str]]) -> Callable[..., list[str]]:
    def words(job: Path, config: Mapping[str, Any]) -> list[str]:
        return [word.replace("tasks.trainer", "tests.faults.poisoned_trainer") for word in command(job, config)]

    return words


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
