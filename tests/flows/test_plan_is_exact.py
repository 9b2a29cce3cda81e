"""What `maskmill plan` predicts is what a run then does: after any change of settings and text, and any damage."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flows.ledger import STAGES

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, os, sys
from pathlib import Path
from flows import environment, terminal
sys.stdout = open(os.devnull, "w")
from flows import mlm, plan, recipes

for line in sys.stdin:
    home, source, given, first = json.loads(line)
    os.environ["MASKMILL_HOME"] = home
    recipe = recipes.load("tiny", [source], given)
    predicted = plan.plan(recipe, terminal.store(Path(home), first), Path(home))
    done = mlm.maskmill("tiny", [source], given, first or "nothing")
    both = {v.stage: v.action for v in predicted}, {name: it["state"] for name, it in done.stages.items()}
    print(json.dumps(both), file=sys.__stdout__, flush=True)
"""
SETTINGS = {
    "vocabulary.size": ("384", "320"),
    "shards.rate": ("15%", "30%"),
    "pretrain.steps": ("3", "4"),
    "pretrain.lengths": ("{}", "{lengths: [16], at: [0.5]}"),
    "evaluate.max_rows": ("4", "8"),
    "register.tolerance": ("0.01", "0.02"),
}
OPERATION = st.one_of(
    st.tuples(st.just("set"), st.sampled_from(sorted(SETTINGS)), st.sampled_from([0, 1])),
    st.tuples(st.just("remove"), st.sampled_from(STAGES), st.booleans()),
    st.tuples(st.just("damage"), st.sampled_from(STAGES), st.booleans()),
    st.tuples(st.just("text"), st.integers(0, 3), st.integers(0, 2)),
    st.tuples(st.just("from"), st.sampled_from(STAGES), st.none()),
)


class Mill:
    """A process that plans and runs, and the folders that it is told of."""

    def __init__(self, folder: Path, api: str) -> None:
        self.folder, self.api, self.examples = folder, api, 0
        self.start()

    def start(self) -> None:
        environment = os.environ | {"MASKMILL_HOME": str(self.folder / "none"), "PREFECT_API_URL": self.api}
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            cwd=ROOT,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=open(self.folder / "log", "w"),  # noqa: SIM115  (the child's)
        )

    def ask(self, home: Path, given: dict[str, str], first: str | None) -> tuple[dict[str, str], dict[str, str]]:
        """What was predicted for each part, and what was done."""
        if self.process.poll() is not None:  # an example broke it
            self.start()
        assert self.process.stdin and self.process.stdout
        words = [str(home), str(home.parent / "texts"), [f"{key}={value}" for key, value in given.items()], first]
        print(json.dumps(words), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        assert line, (self.folder / "log").read_text()[-3000:]
        predicted, done = json.loads(line)
        return predicted, done


@pytest.fixture(scope="module")
def mill(tmp_path_factory: pytest.TempPathFactory, prefect_server: str) -> Iterator[Mill]:
    mill = Mill(tmp_path_factory.mktemp("mill"), prefect_server)
    write(mill.folder / "first" / "texts", 0, 0)
    yield mill
    mill.process.kill()
    mill.process.wait()


def write(texts: Path, changed: int, how: int) -> None:
    texts.mkdir(parents=True, exist_ok=True)
    for number in range(60):
        words = " ".join(f"the {one} sat on the {number % 7} mats" for one in ("cat", "dog", "rat", "hen"))
        more = how if number == changed else 0
        (texts / f"{number}.txt").write_text(f"{words} number {number} and {more} more. " * 6)


def spoil(home: Path, stage: str, whole: bool, remove: bool) -> None:
    """Removes the newest artifact of a stage or its manifest (whole: all of it), or cuts one of its files."""
    folders = sorted((home / "store" / stage).glob("[!.]*"), key=lambda path: path.stat().st_mtime)
    if not folders:
        return
    if remove and whole:
        shutil.rmtree(folders[-1])
    elif remove:
        (folders[-1] / "manifest.json").unlink(missing_ok=True)
    else:
        files = sorted(path for path in folders[-1].rglob("*") if path.is_file() and path.suffix != ".json")
        path = files[0] if whole or not (folders[-1] / "manifest.json").exists() else folders[-1] / "manifest.json"
        path.write_bytes(path.read_bytes()[: max(path.stat().st_size // 2, 1)])


EXPECTED = {"reuse": "reused", "run": "made", "resume": "made"}


@pytest.mark.slow
@settings(max_examples=12, suppress_health_check=list(HealthCheck), derandomize=True)
@given(operations=st.lists(OPERATION, min_size=1, max_size=4))
def test_what_a_plan_predicts_is_what_a_run_does(mill: Mill, operations: list[Any]) -> None:
    start = mill.folder / "first"
    given_first = {key: values[0] for key, values in SETTINGS.items()}
    if not (start / "home").exists():
        assert set(mill.ask(start / "home", given_first, None)[1].values()) == {"made"}
    mill.examples += 1
    place = mill.folder / str(mill.examples)  # not the last one's: the process holds its database open
    shutil.copytree(start, place, symlinks=True)
    wanted = dict(given_first)
    for kind, what, how in operations:
        first = None
        if kind == "set":
            wanted[what] = SETTINGS[what][how]
        elif kind == "text":
            write(place / "texts", what, how)
        elif kind == "from":
            first = what
        else:
            spoil(place / "home", what, how, kind == "remove")
        predicted, done = mill.ask(place / "home", wanted, first)
        assert {name: EXPECTED[action] for name, action in predicted.items()} == done, (kind, what, how)
