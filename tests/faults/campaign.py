"""Plans trials, runs them, and says what came of them.

python -m tests.faults                              everything, for hours
python -m tests.faults --minutes 8 --seed 3         a seeded choice that takes about so long
python -m tests.faults --only 'F3 shards fail'      what begins so
python -m tests.faults --log hours.jsonl            may be stopped, and goes on with what is not in there
"""

import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.faults import stand
from tests.faults.trial import Failed, Trial

MODULES = (
    *("calls", "power", "damage", "images"),  # of single stages, a second each
    *("signals", "ranks", "twice", "numbers", "surroundings", "hostile", "away"),  # of whole runs
)
"""The families of trials."""
SHARE = 0.75
"""Of the given time that the costs of the chosen trials may add up to: the stands take the rest."""

EVERY = 20.0
"""Seconds between two lines about how far it is."""


@dataclass
class Tally:
    """What came of the trials of a family."""

    injected: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    lost: float = 0.0
    """Seconds, the most."""


@dataclass
class Report:
    """What came of a campaign."""

    families: dict[str, Tally] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0
    """Of the trials, added up."""

    def add(self, line: dict[str, Any]) -> None:
        """A line of the log."""
        tally = self.families.setdefault(line["trial"].split()[0], Tally())
        tally.injected += 1
        tally.verdicts[line["verdict"]] += 1
        tally.lost = max(tally.lost, line["lost"])
        self.seconds += line["seconds"]
        if line["failed"]:
            self.failures.append(f"{line['trial']}: {line['failed']}")

    @property
    def total(self) -> Tally:
        whole = Tally()
        for tally in self.families.values():
            whole.injected += tally.injected
            whole.verdicts.update(tally.verdicts)
            whole.lost = max(whole.lost, tally.lost)
        return whole

    def rows(self) -> list[list[str]]:
        """The table, a row for each family and one for all."""
        rows = [["", "injected", "recovered", "withstood", "refused", "silent", "hangs", "other", "worst lost"]]
        ordered = sorted(self.families.items(), key=lambda item: int(item[0][1:]))
        for name, tally in [*ordered, ("all", self.total)]:
            seen = tally.verdicts
            good = [seen[verdict] for verdict in ("recovered", "withstood", "refused")]
            other = tally.injected - sum(good) - seen["silent"] - seen["hang"]
            numbers = [tally.injected, *good, seen["silent"], seen["hang"], other]
            rows.append([name, *map(str, numbers), f"{tally.lost:.1f} s"])
        return rows

    def page(self) -> dict[str, Any]:
        families = {
            name: {"injected": one.injected, "lost": one.lost, **one.verdicts} for name, one in self.families.items()
        }
        return {"families": families, "failures": self.failures, "seconds": self.seconds}


def planned(modules: Sequence[str] = MODULES) -> list[Trial]:
    """Every trial there is."""
    found: list[Trial] = []
    for name in modules:
        found += import_module(f"tests.faults.{name}").trials()
    return found


def chosen(trials: Sequence[Trial], seconds: float | None, seed: int, only: Iterable[str] = ()) -> list[Trial]:
    """Those whose names begin with one of `only`; of these, a seeded choice whose costs add up to `seconds`.

    The choice goes round the families and their places, so that a minute sees a bit of everything that fits into it.
    """
    only = tuple(only)
    left = [trial for trial in trials if not only or trial.name.startswith(only)]
    if seconds is None:
        return left
    shuffled = random.Random(seed).sample(left, len(left))
    groups: dict[tuple[str, str], list[Trial]] = {}
    for trial in shuffled:
        groups.setdefault((trial.family, trial.place), []).append(trial)
    picked: list[Trial] = []
    while groups:
        for key, group in list(groups.items()):
            trial = group.pop()
            if trial.cost <= seconds:
                picked.append(trial)
                seconds -= trial.cost
            if not group:
                del groups[key]
    return picked


def passed(log: Path) -> dict[str, dict[str, Any]]:
    """Lines of a log by trial: those that found nothing. A last line that was cut off is none."""
    found = {}
    for text in log.read_text().splitlines() if log.exists() else []:
        with suppress(json.JSONDecodeError):
            line = json.loads(text)
            found[line["trial"]] = line
    return {name: line for name, line in found.items() if not line["failed"]}


def run(
    trials: Sequence[Trial],
    folder: Path,
    workers: int = 1,
    tell: Callable[[str], None] = lambda line: None,
    log: Path | None = None,
) -> Report:
    """Runs trials, each in a fresh folder. Each thread has stands of its own.

    log: gets a line for each trial as it ends. A trial that passed there is counted and not run again.
    """
    report, lock, started = Report(), threading.Lock(), time.monotonic()
    told, before = [started], passed(log) if log else {}
    for line in (before[trial.name] for trial in trials if trial.name in before):
        report.add(line)

    def one(numbered: tuple[int, Trial]) -> None:
        number, trial = numbered
        outcome, failed, began = None, None, time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f"trial-{number}-", dir=folder, ignore_cleanup_errors=True) as place:
            try:
                stand.at(folder)
                outcome = trial.run(Path(place))
            except Failed as error:
                failed = error
            except Exception as error:
                failed = Failed("undocumented", f"the harness: {type(error).__name__}: {error}")
        verdict = outcome.verdict if outcome else failed.fault if failed else "?"
        line = {"trial": trial.name, "verdict": verdict, "lost": outcome.lost if outcome else 0.0}
        line |= {"seconds": round(time.monotonic() - began, 2), "failed": str(failed) if failed else None}
        with lock:
            report.add(line)
            if log:
                with log.open("a") as file:
                    file.write("\n" + json.dumps(line))  # a line that was cut off costs only itself
            done = sum(tally.injected for tally in report.families.values())
            if failed:
                tell(f"FAILED {trial.name}: {failed}")
            elif time.monotonic() - told[-1] > EVERY:
                told.append(time.monotonic())
                tell(f"{done:,} of {len(trials):,} after {(told[-1] - started) / 60:.1f} min")

    left = [(number, trial) for number, trial in enumerate(trials) if trial.name not in before]
    if workers == 1:  # in this thread, which may have a stand
        for numbered in left:
            one(numbered)
    else:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(one, left))
    return report


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows)


def write(report: Report, path: Path) -> None:
    path.write_text(json.dumps(report.page(), indent=1) + "\n")
