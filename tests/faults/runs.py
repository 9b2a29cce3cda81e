"""Whole runs, as a user starts them: the command, a home of its own, Prefect's embedded server, and what they leave.

start      the command in a session of its own       until      starts one, and waits for a moment of it (Moment)
ended      waits for its end, or calls it a hang      again      the same command ends in the reference, or Failed
"""

import fcntl
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tasks.artifacts import load, verify
from tests.faults.trial import Failed

ROOT = Path(__file__).parents[2]
STAGES = ("corpus", "vocabulary", "shards", "pretrain", "evaluate", "register")
SPEECHES = ROOT.parent / "shared" / "data" / "corpus" / "speeches"
LIMIT = 600.0
"""Seconds that a run may take: 20 on a quiet core."""
GONE = 20.0
"""Seconds after which no process of a run may be left."""
LITTER = ("*.tmp", ".*.partial", ".*.old-*", ".*.fetch")
COST = 30.0
"""Seconds of a core that a run takes."""


def texts(folder: Path) -> Path:
    """A dozen texts: speeches, or made ones where these are not there."""
    folder.mkdir(parents=True)
    for number, path in enumerate(sorted(SPEECHES.rglob("*.txt"))[:12]):
        (folder / f"{number:02d}.txt").write_bytes(path.read_bytes())
    for number in range(0 if list(folder.iterdir()) else 12):
        animals = ("cat", "dog", "rat", "hen", "owl", "fox", "cow")
        paragraphs = [
            " ".join(
                f"The {animals[(number + place * line) % 7]} of house {number * place} has {line} friends."
                for line in range(1, 12)
            )
            for place in range(1, 9)
        ]
        (folder / f"{number:02d}.txt").write_text("\n\n".join(paragraphs) + "\n")
    return folder


# A run.


@dataclass
class Run:
    """A command that was started."""

    home: Path
    process: subprocess.Popen[bytes]
    errors: Path
    output: Path
    began: float

    @property
    def said(self) -> str:
        """On stderr, so far."""
        return self.errors.read_text(errors="replace") if self.errors.exists() else ""

    @property
    def told(self) -> str:
        """On stdout, so far."""
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def signal(self, number: int, group: bool = True) -> None:
        """To its process group, or to the command alone."""
        with suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.process.pid, number)

    def ended(self, limit: float = LIMIT) -> int:
        """Its exit status. Raises Failed where it does not end in so many seconds, or leaves processes."""
        try:
            status = self.process.wait(limit)
        except subprocess.TimeoutExpired:
            said = self.said[-400:]
            self.end()
            raise Failed("hang", f"no end after {limit:.0f} s; it said: {said}") from None
        deadline = time.monotonic() + GONE
        while left := processes(self.home):
            if time.monotonic() > deadline:
                self.end()
                raise Failed("litter", f"processes that stay: {left}")
            time.sleep(0.1)
        return status

    def end(self) -> None:
        """Kills what is left of it, by number."""
        for process in {self.process.pid, *processes(self.home)}:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.process.wait()


def environment(home: Path | str, given: Mapping[str, str | None]) -> dict[str, str]:
    """The variables of a run. given: others; None takes one away."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_", "MASKMILL"))
    }
    kept |= {"MASKMILL_HOME": str(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for name, value in given.items():
        kept.pop(name, None)
        if value is not None:
            kept[name] = value
    return kept


def command(source: Path | str, *more: str) -> list[str]:
    return [sys.executable, "-m", "flows.cli", "run", "tiny", "--source", str(source), *more]


def start(
    home: Path,
    words: list[str],
    given: Mapping[str, str | None] | None = None,
    before: Callable[[], None] | None = None,
    named: str = "",
    **others: Any,
) -> Run:
    """Starts it in a session, so a process group, of its own.

    Args:
        given: variables of its environment; see `environment`.
        before: runs in the child, before the command.
        named: as what MASKMILL_HOME names the home, where that is not its path.
        others: of Popen: stdin, stdout, stderr, cwd.
    """
    home.parent.mkdir(parents=True, exist_ok=True)
    number = len(list(home.parent.glob("said-*.err")))
    errors, output = (home.parent / f"said-{number}.{kind}" for kind in ("err", "out"))
    with open(errors, "wb") as err, open(output, "wb") as out:
        streams = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": err, "cwd": ROOT} | others
        process = subprocess.Popen(
            words,
            env=environment(named or home, given or {}),
            start_new_session=True,
            preexec_fn=partial(_as_from_a_terminal, before),
            **streams,
        )
    return Run(home, process, errors, output, time.monotonic())


def _as_from_a_terminal(before: Callable[[], None] | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job ignores it, and all that it starts do
    if before:
        before()


def processes(home: Path) -> list[int]:
    """What runs with that home."""
    found, wanted = [], f"MASKMILL_HOME={home}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if wanted in (folder / "environ").read_bytes().split(b"\0") and int(folder.name) != os.getpid():
                found.append(int(folder.name))
    return found


# A moment of a run.


def stages(home: Path) -> dict[str, dict[str, Any]]:
    """What the newest entry of the ledger says of each stage."""
    for path in sorted((home / "runs").glob("*.json"), reverse=True)[:1]:
        with suppress(OSError, ValueError):
            return dict(json.loads(path.read_bytes())["stages"])
    return {}


def checkpoints(home: Path) -> list[int]:
    """Steps of the checkpoints that an unfinished training has."""
    paths = (home / "store").glob("pretrain/.*.partial/.scratch/checkpoints/step-*.json")
    return sorted(int(path.stem[5:]) for path in paths)


@dataclass(frozen=True)
class Moment:
    """A place in a run, and how far behind its begin."""

    place: str
    """start, a stage, "after STAGE", training (between checkpoints), end."""
    share: float
    """Of the usual time of that place; of training: of its 20 steps."""

    def __str__(self) -> str:
        return f"{self.place} {self.share:.3f}"

    def wait(self, run: Run, usual: Mapping[str, float]) -> bool:
        """Until then. False where the run was over before."""
        while not self._has_begun(run):
            if run.process.poll() is not None:
                return False
            if time.monotonic() > run.began + LIMIT:
                run.end()
                raise Failed("hang", f"{self.place} never began; it said: {run.said[-400:]}")
            time.sleep(0.002)
        if not self.place.startswith("after") and self.place != "training":
            with suppress(subprocess.TimeoutExpired):
                run.process.wait(self.share * usual[self.place])
        return run.process.poll() is None

    def _has_begun(self, run: Run) -> bool:
        if self.place == "start":
            return True
        seen = stages(run.home)
        if self.place.startswith("after "):
            return seen.get(self.place.removeprefix("after "), {}).get("state") == "made"
        if self.place == "end":
            return seen.get("register", {}).get("state") == "made"
        if self.place == "training":
            kept = checkpoints(run.home)
            return bool(kept and kept[-1] >= 20 * self.share - 5) or "evaluate" in seen
        return self.place in seen


# What a run leaves.


def digests(home: Path) -> dict[str, str]:
    """Stage -> digest of its artifact, which is whole. Raises Failed."""
    found = {}
    for stage in STAGES:
        folders = [path for path in (home / "store" / stage).glob("[!.]*") if path.is_dir()]
        if len(folders) != 1:
            raise Failed("different", f"{len(folders)} artifacts of {stage}")
        if findings := verify(manifest := load(folders[0])):
            raise Failed("silent", f"damaged under a final name: {findings}")
        found[stage] = manifest.digest
    return found


def whole(home: Path) -> dict[str, tuple[int, int]]:
    """Artifacts that are there, each with what would change if it were made again. Raises Failed for a damaged one."""
    found = {}
    for manifest in (home / "store").glob("*/[!.]*/manifest.json"):
        if findings := verify(load(manifest.parent)):
            raise Failed("silent", f"damaged under a final name: {findings}")
        about = manifest.stat()
        found[manifest.parent.relative_to(home).as_posix()] = about.st_ino, about.st_mtime_ns
    return found


def versions(home: Path, name: str = "tiny") -> int:
    """How many are registered."""
    with closing(sqlite3.connect(f"file:{home}/mlflow.db?mode=ro", uri=True)) as database:
        return int(database.execute("select count(*) from model_versions where name = ?", (name,)).fetchone()[0])


def litter(home: Path) -> list[str]:
    return sorted(str(path.relative_to(home)) for kind in LITTER for path in home.rglob(kind))


def last_unit(home: Path) -> float:
    """When the last finished unit of work came to the disk, in seconds since 1970; 0 for none."""
    kinds = ("*/[!.]*/manifest.json", "*/.*.partial/.scratch/**/*.json")
    times = [0.0]
    for path in (path for kind in kinds for path in (home / "store").glob(kind)):
        with suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times)


def clean(run: Run) -> None:
    """Raises Failed where a user would see a traceback, or an internal error."""
    for sign in ("Traceback (most recent", "Internal error", "Exception ignored"):
        if sign in run.said:
            raise Failed("undocumented", f"it said: …{run.said[max(0, run.said.find(sign) - 300) :][:1500]}")


def settled(run: Run, reference: Mapping[str, str], limit: float = LIMIT) -> None:
    """The run ends well, with the artifacts of the reference and nothing else. Raises Failed."""
    status = run.ended(limit)
    if status != 0:
        raise Failed("different", f"it ended with {status}: {run.said[-600:]}")
    clean(run)
    left(run.home, reference)


def left(home: Path, reference: Mapping[str, str]) -> None:
    """The home has what the reference has, one version, and no litter. Raises Failed."""
    if (found := digests(home)) != dict(reference):
        raise Failed("different", f"other artifacts: {[stage for stage in STAGES if found[stage] != reference[stage]]}")
    if (count := versions(home)) != 1:
        raise Failed("different", f"{count} versions are registered")
    if there := litter(home):
        raise Failed("litter", ", ".join(there))


def again(
    home: Path, words: list[str], reference: Mapping[str, str], given: Mapping[str, str | None] | None = None
) -> None:
    """The same command ends in the reference, and makes nothing again that was finished. Raises Failed."""
    had, kept = whole(home), checkpoints(home)
    settled(start(home, words), reference)
    if made := [name for name, about in whole(home).items() if had.get(name, about) != about]:
        raise Failed("lost", f"made again: {made}")
    if kept and not [name for name in had if name.startswith("store/pretrain/")]:
        (page,) = (home / "store").glob("pretrain/[!.]*/measured.json")
        resumed = json.loads(page.read_bytes())["resumed_at_steps"]
        if kept[-1] and resumed[-1:] != [kept[-1]]:
            raise Failed("lost", f"the training went on at {resumed}, and had checkpoints {kept}")


# The reference.


@dataclass(frozen=True)
class Reference:
    """What an undisturbed run makes, and how long it usually takes."""

    source: Path
    digests: dict[str, str]
    usual: dict[str, float]
    """Seconds of each place of a Moment."""


def reference(folder: Path) -> Reference:
    """Of two runs, made once below the folder of all trials; asserts that they agree."""
    place = folder.parent / "undisturbed"
    place.mkdir(exist_ok=True)
    with open(place / "lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (page := place / "reference.json").exists():
            source = place / "texts"
            found = [
                _undisturbed(place / name, texts(source) if name == "first" else source) for name in ("first", "second")
            ]
            assert found[0]["digests"] == found[1]["digests"], f"two undisturbed runs differ: {found}"
            usual = {name: min(one["usual"][name] for one in found) for name in found[0]["usual"]}
            page.write_text(json.dumps({"digests": found[0]["digests"], "usual": usual}))
    return Reference(place / "texts", **json.loads(page.read_bytes()))


def until(moment: Moment, folder: Path) -> tuple[Reference, Run | None]:
    """A run in a home of its own, at that moment; None where it was over before, and ended well."""
    known = reference(folder)
    run = start(folder / "home", command(known.source))
    if moment.wait(run, known.usual):
        return known, run
    settled(run, known.digests)
    return known, None


def _undisturbed(folder: Path, source: Path) -> dict[str, Any]:
    home = folder / "home"
    run = start(home, command(source))
    began = time.time()
    status = run.ended()
    assert status == 0, run.said
    made = digests(home)
    left(home, made)
    entry = json.loads(next((home / "runs").glob("*.json")).read_bytes())
    usual = {stage: about["seconds"] for stage, about in entry["stages"].items()}
    usual |= {"start": entry["started"] - began, "end": time.monotonic() - run.began - (entry["ended"] - began)}
    return {"digests": made, "usual": usual}
