"""F11: batches whose loss is NaN, infinite or a spike; memory that does not suffice, in each stage."""

import json
import math
import random
import re
import resource
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults import runs, trained
from tests.faults.runs import COST, Moment
from tests.faults.trial import Failed, Outcome, Trial

GUARDS = {"window": 8, "patience": 1, "rollbacks": 2, "rollback_every": 5, "plateau_after": "0"}
STEPS = 24
MARGINS = (16, 24, 32, 64, 128)
"""MiB beyond what the process has when its memory is limited: too little for arrays and libraries."""
ABORTED = ("memory allocation of", "std::system_error", "std::bad_alloc")
"""What Rust and C++ say when they end a process for want of memory or threads."""
EXHAUSTED = 71


def trials() -> list[Trial]:
    seeded, found = random.Random(11), []
    for by in ("nan", "inf", "-inf"):
        for settings in (
            {},
            {"devices": "2", "rank_timeout": 60.0},
            {"reduction": "exact", "logical_shards": 4, "micro_tokens": 0},
        ):
            at = seeded.randrange(6, STEPS - 6)
            for length in (1, 2, 6):
                steps = list(range(at, at + length))
                found.append(_poisoned(steps, by, settings))
    for kind in ("report", "rollback"):
        for by in ("1000", "1e6"):
            found.append(_poisoned([seeded.randrange(10, STEPS)], by, {"on_spike": kind}))
    found.append(_poisoned([seeded.randrange(6, STEPS)], "nan", {"devices": "2", "rank_timeout": 60.0}, rank=1))
    places = ("corpus", "vocabulary", "shards", "pretrain", "training", "evaluate", "register")
    for number, place in enumerate(places * 3):
        margin = MARGINS[(number + number // len(places)) % len(MARGINS)]
        moment = Moment(place, round(seeded.uniform(0.0, 0.7), 3))
        detail = f"memory limited to {margin} MiB more at {moment.share}"
        found.append(Trial("F11", place, detail, 2 * COST, partial(without_memory, moment, margin)))
    return found


def _poisoned(steps: list[int], by: str, settings: dict[str, Any], rank: int | None = None) -> Trial:
    ranks = "".join(
        f" {name}={value}" for name, value in settings.items() if name in ("devices", "reduction", "on_spike")
    )
    detail = f"{by} in steps {steps[0]} to {steps[-1]}{ranks}{'' if rank is None else f' of rank {rank}'}"
    poison = {"steps": steps, "by": by} | ({} if rank is None else {"rank": rank})
    return Trial("F11", "pretrain", detail, 3 * trained.COST, partial(poisoned, poison, settings))


def poisoned(poison: Mapping[str, Any], given: Mapping[str, Any], folder: Path) -> Outcome:
    """The guards do what is stated, the same again; and the same where the run is killed on its way."""
    guards = GUARDS | {name: value for name, value in given.items() if name == "on_spike"}
    settings = {name: value for name, value in given.items() if name != "on_spike"} | {"guards": guards, "steps": STEPS}
    expected = stated(poison, guards)
    if expected is None:
        return _refused(poison, settings, folder)
    first = trained.weights(folder / "first", settings, poison)
    run = trained.start(folder / "second", settings, poison)
    while not runs.checkpoints(run.home) or runs.checkpoints(run.home)[-1] < poison["steps"][0] - 3:
        if run.process.poll() is not None or time.monotonic() > run.began + runs.LIMIT:
            break
        time.sleep(0.003)
    run.signal(signal.SIGKILL)
    run.ended()
    second = trained.weights(folder / "second", settings, poison)
    if first.digest != second.digest:
        raise Failed("different", "two repetitions of the same fault have different weights")
    facts = {name: about for name, about in first.facts["guards"].items() if name != "plateau"}
    if facts != expected:
        raise Failed("silent", f"the guards say {facts}, and stated is {expected}")
    for line in (first.folder / "curve.jsonl").read_text().splitlines():
        if not all(math.isfinite(value) for value in json.loads(line).values()):
            raise Failed("silent", f"the curve has {line}")
    return Outcome("withstood", note=json.dumps(facts))


def stated(poison: Mapping[str, Any], guards: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the README says of such steps; None where the run ends with status 78.

    A step that is not finite is skipped; more than `patience` in a row go back to the last checkpoint at a multiple of
    rollback_every; more than `rollbacks` of these end the run. A spike is reported, or gone back from.
    """
    steps, every = poison["steps"], guards["rollback_every"]
    counted = {"count": len(steps), "first_step": steps[0], "last_step": steps[-1]}
    back = {"to_step": (steps[0] - 1) // every * every, "from_step": steps[0]}
    facts: dict[str, Any] = {"skipped": counted, "spikes": None, "rollbacks": []}
    if math.isfinite(float(poison["by"])):
        facts["spikes"] = counted
        if guards.get("on_spike") != "rollback":
            return facts | {"skipped": None}
        return facts | {"rollbacks": [back | {"reason": "spike"}]}
    in_row = 0
    for step in steps:
        in_row += 1
        if in_row > guards["patience"]:
            if len(facts["rollbacks"]) == guards["rollbacks"]:
                return None
            to = (step - 1) // every * every
            facts["rollbacks"].append({"from_step": step, "to_step": to, "reason": "not finite"})
            in_row = 0
    return facts


def _refused(poison: Mapping[str, Any], settings: Mapping[str, Any], folder: Path) -> Outcome:
    said = []
    for _ in range(2):
        run = trained.start(folder, settings, poison)
        if (status := run.ended()) != 78:
            raise Failed("undocumented", f"status {status} where the loss is not finite: {run.said[-600:]}")
        runs.clean(run)
        said.append(run.said.strip().splitlines()[-1])
    if said[0] != said[1] or "checkpoint is step" not in said[0]:
        raise Failed("undocumented", f"it said {said}")
    return Outcome("refused", note=said[0])


# Memory.


def without_memory(moment: Moment, margin: int, folder: Path) -> Outcome:
    """From a moment on the process that works gets `margin` MiB more at most: one sentence, 71, and again with more."""
    known, run = runs.until(moment, folder)
    if not run:
        return Outcome("withstood", note="it was over before")
    limited = _limit(_worker(run, moment.place), margin)
    status = run.ended()
    runs.clean(run)
    if status == 0:
        runs.left(run.home, known.digests)
        return Outcome("withstood", note=f"{margin} MiB were enough" if limited else "it had ended")
    if status == -signal.SIGABRT and any(words in run.said for words in ABORTED):  # nobody can help it
        runs.again(run.home, runs.command(known.source), known.digests)
        return Outcome("recovered", note="a library in Rust or C++ aborted the process")
    if status != EXHAUSTED:
        raise Failed("undocumented", f"without memory: status {status}: {run.said[-1200:]}")
    runs.again(run.home, runs.command(known.source), known.digests)
    return Outcome("recovered", note=run.said.strip().splitlines()[-1][:200])


def _worker(run: runs.Run, place: str) -> int:
    """The process that does the work of a stage."""
    if place not in ("pretrain", "training"):
        return run.process.pid
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for process in runs.processes(run.home):
            with suppress(OSError):
                if b"tasks.trainer" in Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0"):
                    return process
        time.sleep(0.01)
    return 0


def _limit(process: int, margin: int) -> bool:
    try:
        size = re.search(r"VmSize:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
        assert size
        most = int(size[1]) * 1024 + margin * 2**20
        resource.prlimit(process, resource.RLIMIT_AS, (most, most))
    except (OSError, AssertionError):
        return False
    return True
