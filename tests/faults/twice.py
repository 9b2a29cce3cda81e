"""F10: two runs at once on one home, the second one started during each stage of the first."""

import re
import signal
import time
from functools import partial
from pathlib import Path

from tasks.artifacts import load
from tests.faults import runs
from tests.faults.runs import COST, STAGES, Moment, Run
from tests.faults.trial import Failed, Outcome, Trial

HELD = 73


def trials() -> list[Trial]:
    found = []
    for stage in STAGES:
        found.append(Trial("F10", stage, "the second one does not wait", 2 * COST, partial(refused, stage)))
        found.append(Trial("F10", stage, "the second one waits", 2 * COST, partial(waits, stage)))
    found.append(Trial("F10", "start", "both at the same instant", 2 * COST, partial(waits, "")))
    for stage in ("corpus", "vocabulary", "shards"):
        found.append(Trial("F10", stage, "another recipe with the same stages", 2 * COST, partial(shared, stage)))
    found.append(Trial("F10", "register", "both register at once", 3 * COST, partial(register_twice, False)))
    found.append(Trial("F10", "register", "both register again at once", 3 * COST, partial(register_twice, True)))
    return found


def refused(stage: str, folder: Path) -> Outcome:
    """The first one is held in a stage; the second one, which may not wait, ends with 73 and names it."""
    known, home = runs.reference(folder), folder / "home"
    first = runs.start(home, runs.command(known.source))
    if not Moment(stage, 0.0).wait(first, known.usual):
        raise Failed("undocumented", f"the harness: the first run ended: {first.said[-500:]}")
    _await_lock(first, stage)
    first.signal(signal.SIGSTOP)
    try:
        second = runs.start(home, runs.command(known.source, "--wait", "0"))
        status = second.process.wait(runs.LIMIT)
    except Exception:
        first.end()
        raise
    finally:
        first.signal(signal.SIGCONT)
    runs.settled(first, known.digests)
    runs.clean(second)
    holder = f"process {first.process.pid} on"
    if status == 0:  # the first one had not taken the lock yet, or had let go of it
        return Outcome("withstood", note="nothing was held at that instant")
    if status != HELD or holder not in second.said:
        raise Failed("undocumented", f"the second run ended with {status}: {second.said[-600:]}")
    return Outcome("refused", note=second.said.strip().splitlines()[-1][:200])


def _await_lock(run: Run, stage: str) -> None:
    """Until it makes the stage; also where it is past that."""
    holder = f"process {run.process.pid} on"
    while run.process.poll() is None:
        held = [path.read_text() for path in (run.home / "store" / ".locks").glob(f"{stage}-*")]
        if any(holder in one for one in held) or time.monotonic() > run.began + runs.LIMIT:
            return
        time.sleep(0.001)


def waits(stage: str, folder: Path) -> Outcome:
    """Both end well, and each artifact has one maker."""
    known, home = runs.reference(folder), folder / "home"
    first = runs.start(home, runs.command(known.source))
    if stage and not Moment(stage, 0.0).wait(first, known.usual):
        raise Failed("undocumented", f"the harness: the first run ended: {first.said[-500:]}")
    second = runs.start(home, runs.command(known.source))
    _both(first, second)
    runs.left(home, known.digests)
    made = [_made(first), _made(second)]
    if sorted(made[0] + made[1]) != sorted(STAGES):
        raise Failed("different", f"makers: {made}")
    return Outcome("withstood", note=f"the second one made {', '.join(made[1]) or 'nothing'}")


def shared(stage: str, folder: Path) -> Outcome:
    """Another recipe that has the same corpus, vocabulary and shards, and then goes a way of its own."""
    known, home = runs.reference(folder), folder / "home"
    first = runs.start(home, runs.command(known.source))
    if not Moment(stage, 0.0).wait(first, known.usual):
        raise Failed("undocumented", f"the harness: the first run ended: {first.said[-500:]}")
    other = ("--set", "pretrain.steps=10", "--set", "register.name=other")
    second = runs.start(home, runs.command(known.source, *other))
    _both(first, second)
    made = [_made(first), _made(second)]
    if sorted(made[0] + made[1]) != sorted([*STAGES, *STAGES[3:]]):
        raise Failed("different", f"makers: {made}")
    found = runs.whole(home)
    for name, digest in known.digests.items():
        if not any(load(home / path).digest == digest for path in found if path.startswith(f"store/{name}/")):
            raise Failed("different", f"{name} of the first recipe is another one")
    if (count := (runs.versions(home), runs.versions(home, "other"))) != (1, 1):
        raise Failed("different", f"versions: {count}")
    if there := runs.litter(home):
        raise Failed("litter", ", ".join(there))
    return Outcome("withstood", note=f"the second one made {', '.join(made[1])}")


def register_twice(forced: bool, folder: Path) -> Outcome:
    """Two runs come to the last stage together. forced: both are to make it again, and it was made before."""
    known, home = runs.reference(folder), folder / "home"
    run = runs.start(home, runs.command(known.source))
    if forced:
        runs.settled(run, known.digests)
    else:
        Moment("register", 0.0).wait(run, known.usual)
        run.signal(signal.SIGKILL)
        run.ended()
    words = runs.command(known.source, *(("--from", "register") if forced else ()))
    both = [runs.start(home, words), runs.start(home, words)]
    _both(*both)
    runs.left(home, known.digests)
    return Outcome("withstood" if forced else "recovered", note=f"makers: {[_made(one) for one in both]}")


def _both(*of: Run) -> None:
    """They end well, within the time of one. Raises Failed."""
    deadline = time.monotonic() + runs.LIMIT
    try:
        while any(one.process.poll() is None for one in of):
            if time.monotonic() > deadline:
                raise Failed("hang", "; ".join(one.said[-300:] for one in of))
            time.sleep(0.05)
    finally:
        for one in of:
            if one.process.poll() is None:
                one.end()
    for one in of:
        runs.clean(one)
        if one.ended() != 0:
            raise Failed("different", f"it ended with {one.process.returncode}: {one.said[-800:]}")


def _made(run: Run) -> list[str]:
    return re.findall(r"^(\w+) +made in ", run.said, re.MULTILINE)
