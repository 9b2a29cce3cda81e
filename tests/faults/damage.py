"""F9: a stored file is damaged: a bit flipped, an end cut off, a block of zeros, other bytes, nothing, gone.

finished     any file of a finished run, in the store and in MLflow's folder; with the stages after it there, which are
             reused, or gone, so that they are made from what is damaged
unfinished   any file of what a killed stage goes on from: units, checkpoints, packs

The same command ends in the artifacts of an undisturbed run, or refuses by name (65) and the next one does. What no run
reads is found by `maskmill verify`, and made again after it. Nothing damaged is ever used without a word.
"""

import random
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from tests.faults import mill, stand
from tests.faults.calls import same
from tests.faults.injector import Order
from tests.faults.stand import Done, Stand
from tests.faults.trial import Failed, Outcome, Trial

TIMES = 25
"""Trials at a place."""
DATABASE = "mlflow.db"
Damage = Callable[[bytes, random.Random], bytes | None]


def flip(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(8 * len(data))
    return data[: at // 8] + bytes([data[at // 8] ^ 1 << at % 8]) + data[at // 8 + 1 :]


def cut(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


def zeros(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] + bytes(min(512, len(data) - at)) + data[at + 512 :]


def others(data: bytes, chance: random.Random) -> bytes:
    return chance.randbytes(len(data))


def longer(data: bytes, chance: random.Random) -> bytes:
    return data + chance.randbytes(chance.randint(1, 64))


def empty(data: bytes, chance: random.Random) -> bytes:
    return b""


def gone(data: bytes, chance: random.Random) -> None:
    return None


KINDS: dict[str, Damage] = {one.__name__: one for one in (flip, cut, zeros, others, longer, empty, gone)}
WEIGHTS = (8, 3, 3, 2, 2, 1, 3)


PLACES = [f"finished {stage}" for stage in (*mill.STAGES, "packs", "mlflow", "database")]
PLACES += [f"unfinished {stage}" for stage in mill.STAGES[:5]]


def trials(of: str = "texts", places: Sequence[str] = PLACES) -> list[Trial]:
    """TIMES at each place."""
    found = []
    for place in places:
        for seed in range(TIMES):
            run = partial(_run, place=place, seed=seed, of=of)
            found.append(
                Trial("F9", mill.place(place, of), f"seed {seed}", 6.0 if place.startswith("finished") else 4.0, run)
            )
    return found


def _run(_: Path, place: str, seed: int, mutant: str | None = None, of: str = "texts") -> Outcome:
    state, what = place.split()
    chance, there = random.Random(f"{place} {seed}"), stand.here(of)
    if state == "unfinished":
        return _unfinished(there, what, chance, mutant)
    there.finished()
    path, kind = _damaged(there, what, chance)
    said = f"{kind} of {path.relative_to(there.home)}"
    if what in mill.STAGES and chance.random() < 0.5:
        said += ", later stages gone"
        for later in mill.STAGES[mill.STAGES.index(what) + 1 :]:
            shutil.rmtree(there.home / "store" / later)
    first = there.run("register", mutant=mutant)
    _check_refusal(first, path, said)
    if what == "database" and first.status:
        path.unlink(missing_ok=True)  # what its message asks for
    return _mended(there, first, said, mutant)


def _mended(there: Stand, first: Done, said: str, mutant: str | None) -> Outcome:
    """Runs, verifies, runs again: what an undisturbed run makes, and nothing damaged is left."""
    if first.status == 0:
        _compare(there, first, said)
    else:
        _compare(there, there.run("register", mutant=mutant), said)
    found = there.ask("verify", mutant=mutant)
    last = there.run("register", mutant=mutant)
    try:
        same(there, "register", last)
    except Failed as error:
        raise Failed("silent" if error.fault == "different" else error.fault, f"{said}: {error.what}") from None
    return Outcome("recovered" if first.status or found.answer else "withstood", note=said)


def _compare(there: Stand, done: Done, said: str) -> None:
    if done.status:
        raise Failed("different", f"{said}: the next run ended with status {done.status}: {done.said[-1000:]}")
    expected = there.reference["digests"]
    if differing := {name for name, digest in done.answer.items() if digest != expected[name]}:
        raise Failed("silent", f"{said}: other digests: {sorted(differing)}")


def _check_refusal(first: Done, path: Path, said: str) -> None:
    if first.status not in (0, 65):
        raise Failed("undocumented", f"{said}: status {first.status}: {first.said[-1200:]}")
    if first.status and not any(one.name in first.said for one in (path, path.parent)):
        raise Failed("undocumented", f"{said}: names no file: {first.said[-800:]}")


def _damaged(there: Stand, what: str, chance: random.Random) -> tuple[Path, str]:
    """Damages a file; which, and how."""
    home = there.home
    if what == "database":
        files = list(home.rglob(DATABASE))
    elif what == "mlflow":
        files = [path for path in home.rglob("*") if "store" not in path.relative_to(home).parts and path.is_file()]
        files = [path for path in files if not path.name.startswith(DATABASE) and ".lock" not in path.name]
    elif what == "packs":
        files = [path for path in (home / "store/corpus/.packs").rglob("*") if path.is_file() and path.name != ".lock"]
    else:
        files = [path for path in (home / "store" / what).glob("[!.]*/**/*") if path.is_file()]
    return _damage(chance.choice(sorted(files)), chance)


def _damage(path: Path, chance: random.Random) -> tuple[Path, str]:
    data = path.read_bytes()
    (kind,) = chance.choices(list(KINDS), WEIGHTS)
    changed = KINDS[kind](data, chance) if data else b"?"
    if changed is None:
        path.unlink()
    else:
        path.write_bytes(changed)
    return path, kind


def _unfinished(there: Stand, stage: str, chance: random.Random, mutant: str | None) -> Outcome:
    """The stage is killed at some call, and then one of the files that it goes on from is damaged."""
    there.before(stage)
    number = len(there.calls[stage])
    there.before(stage)
    at = chance.randint(number // 4, number - 1)
    there.run(stage, Order("kill", at), mutant=mutant)
    folders = [*(there.home / "store" / stage).glob(".*.partial"), *(there.home / "store" / stage).glob(".packs")]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    if not files:
        files = [path for path in (there.home / "store" / stage).rglob("*") if path.is_file()]
    if not files:
        _compare(there, there.run(stage, mutant=mutant), f"killed at call {at}")
        return Outcome("recovered", note="it was killed before its first file")
    path, kind = _damage(chance.choice(sorted(files)), chance)
    said = f"killed at call {at}, then {kind} of {path.relative_to(there.home)}"
    second = there.run(stage, mutant=mutant)
    _check_refusal(second, path, said)
    if second.status:
        second = there.run(stage, mutant=mutant)
    _compare(there, second, said)
    if not path.is_relative_to(there.home / "store" / "corpus" / ".packs") and path.exists():
        there.ask("verify", mutant=mutant)
        second = there.run(stage, mutant=mutant)
    try:
        same(there, stage, second)
    except Failed as error:
        raise Failed(error.fault, f"{said}: {error.what}") from None
    return Outcome("recovered", note=said)
