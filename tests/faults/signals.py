"""F5 and F6: a run is killed, or asked to stop, at seeded moments of all its stages and between them."""

import random
import re
import signal
import time
from functools import partial
from pathlib import Path

from tests.faults import runs
from tests.faults.runs import COST, STAGES, Moment
from tests.faults.trial import Failed, Outcome, Trial

KILLS, STOPS = 50, 24
PROMPT = 30.0
"""Seconds in which a run that was asked to stop is over."""
AFTER = tuple(f"after {stage}" for stage in STAGES)
PLACES = ("pretrain", "training", "evaluate", "register", "start", "corpus", "training", "vocabulary", "shards", "end")
"""Turn by turn; every third moment is between two stages."""


def moments(count: int, seed: int) -> list[Moment]:
    """Spread over all places; each at a seeded time of it."""
    seeded, found = random.Random(seed), []
    for number in range(count):
        turn = number - number // 3 - 1 if number % 3 else number // 3
        places = PLACES if number % 3 else AFTER
        found.append(Moment(places[turn % len(places)], round(seeded.uniform(0.02, 1.1), 3)))
    return found


def trials() -> list[Trial]:
    found = [
        Trial("F5", one.place, f"SIGKILL {one.share}", 2 * COST, partial(killed, one)) for one in moments(KILLS, 5)
    ]
    seeded, kinds = random.Random(66), (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    for one in moments(STOPS, 6):
        kind, group = seeded.choice(kinds), seeded.random() < 0.5
        words = f"{kind.name} to the {'group' if group else 'command'} {one.share}"
        found.append(Trial("F6", one.place, words, 2 * COST, partial(stopped, one, kind, group)))
    return found


def killed(moment: Moment, folder: Path) -> Outcome:
    """kill -9 of the process group."""
    known, run = runs.until(moment, folder)
    if not run:
        return Outcome("withstood", note="it was over before")
    lost = _since_the_last_unit(run)
    run.signal(signal.SIGKILL)
    if (status := run.ended()) not in (0, -signal.SIGKILL):
        raise Failed("undocumented", f"killed, and ended with {status}")
    runs.again(run.home, runs.command(known.source), known.digests)
    return Outcome("recovered", lost)


def stopped(moment: Moment, number: signal.Signals, group: bool, folder: Path) -> Outcome:
    """A request to stop: 75 within seconds, not a step lost, and not a word too much."""
    known, run = runs.until(moment, folder)
    if not run:
        return Outcome("withstood", note="it was over before")
    lost, began = _since_the_last_unit(run), time.monotonic()
    run.signal(number, group)
    status = run.ended(PROMPT + runs.GONE)
    took = time.monotonic() - began
    runs.clean(run)
    if status == -number and not run.said:  # nothing had begun: the interpreter was starting
        runs.again(run.home, runs.command(known.source), known.digests)
        return Outcome("recovered", note="before its first word")
    if status not in (0, 75):
        raise Failed("undocumented", f"{number.name}: status {status}: {run.said[-800:]}")
    if took > PROMPT:
        raise Failed("hang", f"{number.name}: it took {took:.0f} s")
    kept = re.search(r"stopped by SIG\w+ after step (\d+) of", run.said)
    if kept and runs.checkpoints(run.home)[-1:] != [int(kept[1])]:
        raise Failed("lost", f"it stopped after step {kept[1]}, and has checkpoints {runs.checkpoints(run.home)}")
    runs.again(run.home, runs.command(known.source), known.digests)
    if status == 0:
        return Outcome("withstood", note="it came to its end")
    return Outcome("recovered", 0.0 if kept else lost, f"{took:.1f} s")


def _since_the_last_unit(run: runs.Run) -> float:
    """Seconds of work that a stop now throws away, at most."""
    last = runs.last_unit(run.home)
    started = [path.stat().st_mtime for path in (run.home / "runs").glob("*.lock")]
    return time.time() - max(last, *started) if started else 0.0
