"""F1 to F4: a fault at each system call of each stage that changes something (shim.c).

F1  the power goes: SIGKILL of everything before the call, and after it; or of the one process that makes it
F2  torn write: half of it, then the power goes
F3  ENOSPC, EIO, EFBIG, once and from there on
F4  short writes and EINTR: none of anybody's business

After each fault whatever has a final name must be whole. Then the same stages run again and must end in the artifacts
of an undisturbed run, without making a finished unit twice, and leave no temporary file.
"""

import errno
import re
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults import injector, mill, stand
from tests.faults.injector import Order
from tests.faults.stand import Done, Stand
from tests.faults.trial import Failed, Outcome, Trial

COST = {"corpus": 0.8, "vocabulary": 1.0, "shards": 1.2, "pretrain": 2.5, "evaluate": 2.0, "register": 5.0}
"""Seconds of a trial: copying a home, a stage, looking at it, the stage again."""
ALL = frozenset(injector.OPERATIONS)
GROWS = ALL - {"unlink", "rmdir"}
SHOTS = (
    ("F1", Order("kill"), ALL, 1),
    ("F2", Order("tear"), frozenset({"write"}), 1),
    ("F3", Order("fail", error=errno.ENOSPC), GROWS, 1),
    ("F3", Order("fail", error=errno.ENOSPC, persistent=True), GROWS, 1),
    ("F3", Order("fail", error=errno.EIO), ALL, 1),
    ("F3", Order("fail", error=errno.EIO, persistent=True), ALL, 4),
    ("F3", Order("fail", error=errno.EFBIG, persistent=True), frozenset({"write", "truncate"}), 2),
    ("F4", Order("short", persistent=True), frozenset({"write"}), 4),
    ("F4", Order("fail", error=errno.EINTR), frozenset({"write", "create", "fsync"}), 4),
)
"""Family, what happens, at which operations, and at each so manieth call of these.

A kill after a call is a kill before the next one. Not every later call is tried where one does for its neighbours.
"""
ALONE = ("F1", Order("kill one"), ALL, 2)
"""Of two processes, pretrain's; the others have one."""
DOCUMENTED = {errno.ENOSPC: (74,), errno.EFBIG: (74,), errno.EIO: (74,)}
"""Exit statuses; 0 where the run could do without what failed."""
REGISTER_EVERY = 8
"""register: MLflow's database makes a few thousand writes; each so manieth."""
REAL_EVERY = 25
"""pretrain: each so manieth trial starts the training process as it is, imports and all."""


def trials(of: str = "texts", stages: Sequence[str] = mill.STAGES, each: int = 1) -> list[Trial]:
    """All of them. Needs a stand in this thread, which counts the calls.

    each        of all but the kills, each so manieth
    """
    found = []
    for stage in stages:
        operations = stand.here(of).calls[stage]
        for family, shot, fits, nth in (*SHOTS, *([ALONE] if stage == "pretrain" else [])):
            every = nth * (REGISTER_EVERY if stage == "register" else 1) * (1 if family == "F1" else each)
            places = [at for at, operation in enumerate(operations, 1) if operation in fits]
            for number, at in enumerate(places):
                if number % every:
                    continue
                order = Order(shot.action, at, shot.error, shot.persistent)
                real = stage == "pretrain" and number % REAL_EVERY == 0
                run = partial(_run, stage=stage, order=order, real=real, of=of)
                cost = COST[stage] + (8 if real else 0)
                found.append(Trial(family, mill.place(stage, of), f"{order}{', real' if real else ''}", cost, run))
    return found


def _run(
    _: Path, stage: str, order: Order, real: bool = False, mutant: str | None = None, of: str = "texts"
) -> Outcome:
    there = stand.here(of)
    there.before(stage)
    started = time.time()
    first = there.run(stage, order, real=real, mutant=mutant)
    ended = started + first.seconds
    units, untouched = mill.units(there.home), first.seen is not None and not first.seen.hits
    lost = ended - max([started, *(Path(unit).stat().st_mtime for unit in units)])
    check(there, stage, order, first)
    if first.status == 0:
        same(there, stage, first, _lasting(order))
        if _lasting(order):
            again(there, stage, units, real, mutant)
        return Outcome("withstood", note="not reached" if untouched else "")
    again(there, stage, units, real, mutant)
    return Outcome("recovered", max(lost, 0.0))


def check(there: Stand, stage: str, order: Order, first: Done) -> None:
    """Did it end as documented, and is all whole that has a final name?"""
    if findings := mill.broken(there.home):
        raise Failed("silent", f"after {order}: {findings}")
    if order.action == "fail" and order.error in DOCUMENTED:
        if first.status not in (0, *DOCUMENTED[order.error]):
            raise Failed("undocumented", f"status {first.status}: {first.said[-1500:]}")
        if first.status and not re.search(r"Error: .*(/|memory).*", first.said):
            raise Failed("undocumented", f"names no file: {first.said[-800:]}")
        if not _lasting(order) and (found := mill.litter(there.home, partial=False)):
            raise Failed("litter", str(found))
    elif order.error == errno.EINTR and stage == "register":  # SQLite takes it for a disk that fails
        if first.status not in (0, 74):
            raise Failed("undocumented", f"status {first.status}: {first.said[-1500:]}")
    elif order.action in ("short", "fail"):
        if first.status:
            raise Failed("undocumented", f"status {first.status}: {first.said[-1500:]}")
    elif first.status not in (0, -9, *([75] if stage == "pretrain" else [])):  # its parent may live a little longer
        raise Failed("undocumented", f"status {first.status}: {first.said[-1500:]}")
    if "Traceback" in first.said and order.action != "kill one":
        raise Failed("undocumented", first.said[-1500:])


def _lasting(order: Order) -> bool:
    """A disk that fails from there on: nothing can be removed from it either, until the next run."""
    return order.persistent and order.error == errno.EIO


def again(there: Stand, stage: str, units: set[str], real: bool = False, mutant: str | None = None) -> None:
    """The same command; ends in the same artifacts, from what was finished."""
    second = there.run(stage, Order(log=1), real=real, mutant=mutant)
    same(there, stage, second)
    assert second.order
    twice = {call.second for call in injector.calls(second.order) if call.operation == "rename"} & units
    if twice:
        raise Failed("lost", f"made again: {sorted(twice)}")


def same(there: Stand, stage: str, done: Done, lasting: bool = False) -> None:
    """Is this the end of an undisturbed run? lasting: but for temporary files."""
    if done.status:
        raise Failed("different", f"the same command ended with status {done.status}: {done.said[-1500:]}")
    expected: dict[str, Any] = there.reference["digests"]
    if differing := {name for name, digest in done.answer.items() if digest != expected[name]}:
        raise Failed("different", f"other digests: {sorted(differing)}")
    if not lasting and (found := mill.litter(there.home)):
        raise Failed("litter", str(found))
    if findings := mill.broken(there.home):
        raise Failed("silent", str(findings))
    if stage == "register" and (found := there.look()["versions"]) != there.reference["versions"]:
        raise Failed("different", f"versions: {found}")
