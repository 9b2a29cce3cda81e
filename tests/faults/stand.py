"""Where trials of single stages are made: a home before each stage, what an undisturbed run makes, a zygote.

Each thread of a campaign has a stand of its own, below one folder: paths of a home stand in MLflow's database, so a
trial's home is always the same folder, and is filled from a copy.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.faults import injector, mill
from tests.faults.injector import ROOT, Order, Seen
from tests.faults.trial import Failed

LIMIT = 90.0
"""Seconds that a stage may take; a second or two are usual."""
_threads = threading.local()


@dataclass(frozen=True)
class Done:
    """How a call in a fork ended."""

    status: int
    """Exit status, or minus the number of a signal."""
    seconds: float
    said: str
    """What it wrote to the terminal."""
    answer: Any
    seen: Seen | None
    order: Path | None


class Stand:
    """A zygote and its folder. of: the modality, "texts" or "images"."""

    def __init__(self, folder: Path, of: str) -> None:
        self.folder, self.home = folder, folder / "home"
        folder.mkdir(parents=True)
        self.source = (mill.images if of == "images" else mill.texts)(folder / of)
        words = [sys.executable, "-m", "tests.faults.zygote", of]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
        kept |= {"LD_PRELOAD": str(injector.compiled(folder)), "OMP_NUM_THREADS": "1", "FAULTS_CONTROL": ""}
        kept |= {"MASKMILL_HOME": str(self.home), "TMPDIR": str(folder)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._zygote = subprocess.Popen(words, cwd=ROOT, env=kept, text=True, **pipes)
        self._number = 0
        self.recorded: dict[str, list[injector.Call]] = {}
        """Calls of a stage with their data (power.py)."""
        self.states: set[str] = set()
        """Digests of the homes that were gone on from."""
        self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._zygote.stdout
        line = self._zygote.stdout.readline()
        assert line, "the zygote is gone"
        return json.loads(line)

    def close(self) -> None:
        assert self._zygote.stdin
        self._zygote.stdin.close()
        self._zygote.wait()

    def ask(self, call: str, order: Order | None = None, limit: float = LIMIT, **more: Any) -> Done:
        """A call in a fork (zygote.CALLS). Raises Failed where it does not end."""
        self._number += 1
        said = self.folder / f"said-{self._number % 8}"
        path = self.folder / f"order-{self._number % 8}" if order else None
        if order and path:
            path.with_suffix(".log").unlink(missing_ok=True)
            injector.write_order(path, self.home, order)
        request = {name: more.pop(name) for name in ("mutant", "real") if name in more}
        request |= {"call": call, "arguments": {"home": str(self.home), **more}, "said": str(said), "limit": limit}
        assert self._zygote.stdin
        self._zygote.stdin.write(json.dumps(request | {"order": str(path) if path else None}) + "\n")
        self._zygote.stdin.flush()
        told = self._answer()
        text = said.read_text(errors="replace")
        if told["late"]:
            raise Failed("hang", f"no end after {limit:.0f} s: {text[-500:]}")
        seen = injector.read_seen(path) if path else None
        return Done(told["status"], told["seconds"], text, told["answer"], seen, path)

    def run(self, until: str, order: Order | None = None, **more: Any) -> Done:
        return self.ask("run", order, source=str(self.source), until=until, **more)

    def look(self) -> dict[str, Any]:
        """What is broken, and the registry's versions."""
        done = self.ask("look")
        assert done.status == 0, done.said
        return done.answer

    # Homes.

    def _fill(self, name: str) -> None:
        shutil.rmtree(self.home, ignore_errors=True)
        shutil.copytree(self.folder / name, self.home)

    def before(self, stage: str) -> None:
        """The home as it is before that stage."""
        _ = self.reference
        self._fill(f"before-{stage}")

    def finished(self) -> None:
        """The home after a run."""
        _ = self.reference
        self._fill("finished")

    @cached_property
    def reference(self) -> dict[str, Any]:
        """What an undisturbed run makes: digests by stage, versions; the same twice, or no trial means anything."""
        found = []
        for again in (False, True):
            shutil.rmtree(self.home, ignore_errors=True)
            self.home.mkdir()
            self.ask("connect")
            for stage in mill.STAGES:
                if not again:
                    shutil.copytree(self.home, self.folder / f"before-{stage}")
                done = self.run(stage, real=not again)
                assert done.status == 0, done.said
            found.append({"digests": done.answer, **self.look()})
            assert not found[-1]["broken"] and not mill.litter(self.home), (found, mill.litter(self.home))
        assert found[0] == found[1], f"two undisturbed runs differ: {found}"
        shutil.copytree(self.home, self.folder / "finished")
        return found[0]

    @cached_property
    def calls(self) -> dict[str, list[str]]:
        """The system calls that each stage makes: operations in their order."""
        found = {}
        for stage in mill.STAGES:
            self.before(stage)
            done = self.run(stage, Order(log=1))
            assert done.status == 0 and done.order and done.seen
            found[stage] = [call.operation for call in injector.calls(done.order)]
            assert len(found[stage]) == done.seen.calls
        return found


def at(folder: Path) -> None:
    """Below which this thread's stands are made when they are asked for."""
    _threads.folder, _threads.stands = folder, getattr(_threads, "stands", {})


def here(of: str = "texts") -> Stand:
    """This thread's stand of a modality."""
    number, stands = 0, _threads.stands
    while of not in stands:
        with suppress(FileExistsError):  # another thread's
            stands[of] = Stand(_threads.folder / f"stand-{of}-{number}", of)
        number += 1
    return stands[of]


def leave() -> None:
    """This thread's stands are closed; the next ones are others."""
    for one in _threads.stands.values():
        one.close()
    del _threads.stands
