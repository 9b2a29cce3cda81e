"""F7 and F8: of two ranks one is killed or stopped; the number of ranks changes from start to start."""

import json
import os
import random
import signal
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

from tests.faults import runs, trained
from tests.faults.trial import Failed, Outcome, Trial

TIMEOUT = 15.0
"""pretrain.rank_timeout of these trials: seconds until a rank that says nothing is taken for lost."""
PATIENCE = 60.0
"""Seconds that torchrun and two starts of Python may take beside the timeout, on a busy machine."""
TWO = {"devices": "2", "rank_timeout": TIMEOUT, "steps": 60}
EXACT = {"reduction": "exact", "logical_shards": 4, "micro_tokens": 0, "steps": 60}
CHANGES = (("2", "1", "2"), ("1", "2", "1"), ("2", "2", "1"), ("4", "1", "2"), ("1", "4", "2"), ("2", "1", "4"))


def trials() -> list[Trial]:
    seeded, found = random.Random(7), []
    for kind in (signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP):
        for rank in (0, 1):
            for reduction in ("fast", "exact"):
                step = seeded.randrange(0, 56)
                work = partial(lost, kind, rank, reduction, step)
                found.append(
                    Trial("F7", "pretrain", f"{kind.name} rank {rank} step {step} {reduction}", 5 * trained.COST, work)
                )
    for worlds in CHANGES:
        stops = sorted(seeded.sample(range(2, 55), len(worlds) - 1))
        for kind in (signal.SIGTERM, signal.SIGKILL):
            detail = f"{' to '.join(worlds)} ranks, {kind.name} after steps {stops}"
            found.append(Trial("F8", "pretrain", detail, 6 * trained.COST, partial(changed, worlds, stops, kind)))
    return found


def lost(kind: signal.Signals, rank: int, reduction: str, step: int, folder: Path) -> Outcome:
    """One of two ranks is lost in a step: the others notice, all start again, nothing differs."""
    settings = TWO | (EXACT if reduction == "exact" else {})
    expected = trained.undisturbed(folder, settings)
    run = trained.start(folder, settings)
    _await_step(run, step)
    reached, kept = _reached(run.home), runs.checkpoints(run.home)
    victim, began = _rank(run.home, rank), time.monotonic()
    if not victim:
        run.end()
        raise Failed("undocumented", f"the harness: no rank {rank}: {run.said[-500:]}")
    with suppress(ProcessLookupError):
        os.kill(victim, kind)
    while Path(f"/proc/{victim}").exists() and run.process.poll() is None:
        if time.monotonic() - began > TIMEOUT + PATIENCE:
            run.end()
            raise Failed("hang", f"rank {rank} is still there {time.monotonic() - began:.0f} s after {kind.name}")
        time.sleep(0.02)
    gone = time.monotonic() - began
    if (status := run.ended()) != 0:
        raise Failed("different", f"it ended with {status}: {run.said[-800:]}")
    runs.clean(run)
    manifest = trained.made(folder)
    if manifest.digest != expected:
        raise Failed("different", "other weights than those of an undisturbed run")
    measured = manifest.measured()
    again = reached - max(measured["resumed_at_steps"], default=max(kept, default=0))
    seconds = again * measured["training_seconds"] / settings["steps"]
    return Outcome("withstood", seconds, f"{again} steps again; it was gone after {gone:.1f} s")


def changed(worlds: tuple[str, ...], stops: list[int], kind: signal.Signals, folder: Path) -> Outcome:
    """Interrupted, and started again with another number of ranks: the bits of one rank."""
    expected = trained.undisturbed(folder, EXACT)
    for devices, stop in zip(worlds, [*stops, None]):
        run = trained.start(folder, EXACT | {"devices": devices, "rank_timeout": TIMEOUT})
        if stop is None:
            break
        _await_step(run, stop)
        run.signal(kind)
        status = run.ended()
        if status not in ((75, 0) if kind == signal.SIGTERM else (-signal.SIGKILL, 0)):
            raise Failed("undocumented", f"{kind.name} with {devices} ranks: status {status}: {run.said[-800:]}")
        runs.clean(run)
    if (status := run.ended()) != 0:
        raise Failed("different", f"it ended with {status}: {run.said[-800:]}")
    manifest = trained.made(folder)
    if manifest.digest != expected:
        raise Failed("different", "other weights than those of one rank")
    ranks = manifest.measured()["ranks"]
    return Outcome("recovered", note=f"ranks {ranks}")


def _reached(home: Path) -> int:
    """The last step in the spool."""
    last = -1
    for path in (home / "store").glob("pretrain/.*.partial/measured.metrics.jsonl"):
        for line in path.read_bytes().splitlines():
            with suppress(ValueError, KeyError):
                last = int(json.loads(line)["step"])
    return last


def _await_step(run: runs.Run, step: int) -> None:
    """Until this run trains, and has come to that step; also where it has ended."""
    deadline = time.monotonic() + runs.LIMIT
    while not (_reached(run.home) >= step and _trainers(run.home)) and run.process.poll() is None:
        if time.monotonic() > deadline:
            run.end()
            raise Failed("hang", f"step {step} never came: {run.said[-400:]}")
        time.sleep(0.003)
    time.sleep(0.05)  # who starts a trainer hears signals for it a moment later


def _trainers(home: Path) -> dict[int, str]:
    """Training processes -> their rank, "" for one without peers."""
    found = {}
    for process in runs.processes(home):
        with suppress(OSError):
            words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
            variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
            if b"tasks.trainer" in words and b"tasks.elastic" not in words:
                ranks = [one[5:].decode() for one in variables if one.startswith(b"RANK=")]
                found[process] = "".join(ranks)
    return found


def _rank(home: Path, rank: int) -> int:
    """The process that is that rank; 0 for none."""
    return next((process for process, of in _trainers(home).items() if of == str(rank)), 0)
