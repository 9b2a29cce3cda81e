"""F12: a run in odd surroundings: clocks, languages, rights, homes, streams, limits. The same bytes, or a status.

A surrounding is a function of (folder, source) that says how the run is started there. Each is a run of its own; those
that are refused are put right, and then end in the reference.
"""

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults import runs
from tests.faults.runs import COST, ROOT
from tests.faults.trial import Failed, Outcome, Trial

CLOCK = Path(__file__).with_name("clock.c")
IN_2031 = 5 * 365 * 86400


@dataclass
class Surroundings:
    """How a run is started."""

    given: dict[str, str | None] = field(default_factory=dict)
    """Variables; None takes one away."""
    before: Callable[[], None] | None = None
    """Runs in the child before the command."""
    home: Path | None = None
    named: str = ""
    """What MASKMILL_HOME says, where that is not the home's path."""
    source: Path | str | None = None
    words: tuple[str, ...] = ()
    """In front of the command."""
    others: dict[str, Any] = field(default_factory=dict)
    """Of Popen."""
    status: tuple[int, ...] = (0,)
    mended: Callable[[], None] = lambda: None
    """Puts right what the run was refused for."""
    second: Path | None = None
    """The home then, where it is another one."""


Of = Callable[[Path, Path], Surroundings]


def variables(**given: str | None) -> Of:
    return lambda folder, source: Surroundings(given)


def before(act: Callable[[], None]) -> Of:
    return lambda folder, source: Surroundings(before=act)


def home(*parts: str) -> Of:
    return lambda folder, source: Surroundings(home=folder.joinpath(*parts))


def behind(*words: str) -> Of:
    """The command as the last words of another one."""
    return lambda folder, source: Surroundings(words=words)


# Some that take more words.


def no_home_for_mlflow(*parts: str, **given: str | None) -> Of:
    """A path that cannot be used, and is refused before anything is made there."""
    return lambda folder, source: Surroundings(
        given, home=folder.joinpath(*parts), status=(2,), second=folder / "another home"
    )


def clock(**given: str) -> Of:
    def wrong(folder: Path, source: Path) -> Surroundings:
        built = folder / "clock.so"
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", str(built), str(CLOCK)], check=True)
        return Surroundings({"LD_PRELOAD": str(built)} | given)

    return wrong


def linked(folder: Path, source: Path) -> Surroundings:
    (folder / "real").mkdir()
    (folder / "link").symlink_to("real")
    return Surroundings(home=folder / "link" / "home")


def relative(folder: Path, source: Path) -> Surroundings:
    return Surroundings(named="home", others={"cwd": folder})


def elsewhere(folder: Path, source: Path) -> Surroundings:
    """A working directory with modules of the names of ours."""
    (place := folder / "elsewhere").mkdir()
    for name in ("tasks.py", "flows.py", "torch.py", "tokenizers.py"):
        (place / name).write_text("raise SystemExit('a module of the working directory was taken')\n")
    return Surroundings({"PYTHONSAFEPATH": "1"}, others={"cwd": place})


def read_only_input(folder: Path, source: Path) -> Surroundings:
    shutil.copytree(source, folder / "texts")
    for path in [*(folder / "texts").iterdir(), folder / "texts"]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    return Surroundings(source=folder / "texts")


def no_home(folder: Path, source: Path) -> Surroundings:
    """$HOME is a file: nobody, root neither, can write below it."""
    (folder / "nobody").touch()
    return Surroundings({"HOME": str(folder / "nobody"), "XDG_CACHE_HOME": None, "XDG_CONFIG_HOME": None})


def no_temporary(folder: Path, source: Path) -> Surroundings:
    """TMPDIR is not there; the usual ones are."""
    return Surroundings({"TMPDIR": str(folder / "missing")})


def full_stdout(folder: Path, source: Path) -> Surroundings:
    return Surroundings(words=("sh", "-c", 'exec "$@" >/dev/full', "sh"), status=(0, 74))


def full_stderr(folder: Path, source: Path) -> Surroundings:
    return Surroundings(words=("sh", "-c", 'exec "$@" 2>/dev/full', "sh"), status=(0, 74))


def closed(streams: str) -> Of:
    return lambda folder, source: Surroundings(words=("sh", "-c", f'exec "$@" {streams}', "sh"))


def broken_pipe(folder: Path, source: Path) -> Surroundings:
    return Surroundings(words=("bash", "-c", 'set -o pipefail; "$@" | head -1 >/dev/null', "bash"), status=(0, 141))


def broken_errors(folder: Path, source: Path) -> Surroundings:
    return Surroundings(words=("bash", "-c", 'set -o pipefail; "$@" 2>&1 >/dev/null | head -1 >/dev/null', "bash"))


def narrow(folder: Path, source: Path) -> Surroundings:
    """A terminal one column wide."""
    return Surroundings(
        {"COLUMNS": "1", "LINES": "1", "TERM": "xterm"}, words=(sys.executable, "-m", "tests.faults.terminal")
    )


def read_only_store(folder: Path, source: Path) -> Surroundings:
    """Where the store should be there is a file: no rights are needed to be refused by it."""
    (folder / "home").mkdir()
    (folder / "home" / "store").touch()
    return Surroundings(status=(2, 73, 74), mended=lambda: (folder / "home" / "store").unlink())


def limited(kind: int, most: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(kind, (most, most))


def few_processes(number: int) -> Of:
    """Processes and threads. As a user whom that limit binds, which it does not root, with root's rights on files."""
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    user += ["--inh-caps=-all,+dac_override", "--ambient-caps=-all,+dac_override", "prlimit", f"--nproc={number}"]
    return lambda folder, source: Surroundings(words=tuple(user), status=(0, 1, 71))  # 1: C++ aborts without a thread


def one_core() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


SURROUNDINGS: dict[str, Of] = {
    "clock in 2031": clock(CLOCK_SHIFT=str(IN_2031)),
    "clock in 1999": clock(CLOCK_SHIFT=str(-IN_2031 * 5)),
    "clock set back 40 s every 4 s": clock(CLOCK_STEP="40", CLOCK_EVERY="4"),
    "clock set back a day every 7 s": clock(CLOCK_STEP="86400", CLOCK_EVERY="7"),
    "TZ=Pacific/Kiritimati": variables(TZ="Pacific/Kiritimati"),
    "TZ=nonsense": variables(TZ=":no/such/zone"),
    "LANG=C": variables(LANG="C", LC_ALL=None, PYTHONUTF8=None),
    "LC_ALL=C": variables(LC_ALL="C", LANG=None),
    "LC_ALL=C without UTF-8": variables(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"),
    "LC_ALL=POSIX, ASCII streams": variables(LC_ALL="POSIX", PYTHONIOENCODING="ascii", PYTHONUTF8="0"),
    "LANG=tr_TR.UTF-8": variables(LANG="tr_TR.UTF-8", LC_ALL="tr_TR.UTF-8"),
    "umask 077": before(lambda: void(os.umask(0o077))),
    "umask 000": before(lambda: void(os.umask(0))),
    "home with spaces": home("my home", "of  mask mill"),
    "home not in ASCII": home("Häuser ☕ и 中文"),
    "home with signs": home("a'b\"c&d;e[f]{g}$HOME*+=,@~!(h)"),
    "home with a question mark": no_home_for_mlflow("what?home=this"),
    "home with an escape": no_home_for_mlflow("100%20home"),
    "home not in the encoding": no_home_for_mlflow("Häuser ☕", LC_ALL="POSIX", PYTHONUTF8="0"),
    "home very long": home(*("x" * 110,) * 3, "home"),
    "home too long": no_home_for_mlflow(*("x" * 100,) * 5),
    "home behind a link": linked,
    "home relative": relative,
    "PYTHONHASHSEED=0": variables(PYTHONHASHSEED="0"),
    "PYTHONHASHSEED=4294967295": variables(PYTHONHASHSEED="4294967295"),
    "input read-only": read_only_input,
    "no HOME": variables(HOME=None, XDG_CACHE_HOME=None),
    "HOME not writable": no_home,
    "TMPDIR missing": no_temporary,
    "stdin closed": closed("<&-"),
    "stdout closed": closed(">&-"),
    "stderr closed": closed("2>&-"),
    "all streams closed": closed("<&- >&- 2>&-"),
    "stdout to a full disk": full_stdout,
    "stderr to a full disk": full_stderr,
    "stdout into head -1": broken_pipe,
    "stderr into head -1": broken_errors,
    "terminal of one column": narrow,
    "64 open files": before(limited(resource.RLIMIT_NOFILE, 64)),
    **{f"{number} processes": few_processes(number) for number in (6, 12, 18, 24, 32)},
    "stack of 1 MiB": before(limited(resource.RLIMIT_STACK, 2**20)),
    "no core dumps": before(limited(resource.RLIMIT_CORE, 0)),
    "PYTHONOPTIMIZE=2": variables(PYTHONOPTIMIZE="2"),
    "PYTHONDEVMODE=1": variables(PYTHONDEVMODE="1"),
    "PYTHONWARNINGS=error": variables(PYTHONWARNINGS="error::SyntaxWarning"),
    "PYTHONDONTWRITEBYTECODE": variables(PYTHONDONTWRITEBYTECODE="1", PYTHONPYCACHEPREFIX="/proc/none"),
    "another working directory": elsewhere,
    "one core": before(one_core),
    "nice 19": before(lambda: void(os.nice(19))),
    "SIGHUP ignored": behind("nohup"),
    "store not writable": read_only_store,
}


def void(_: object) -> None:
    pass


def trials() -> list[Trial]:
    return [Trial("F12", "run", name, COST, partial(surrounded, name)) for name in SURROUNDINGS]


def surrounded(name: str, folder: Path) -> Outcome:
    if "clock" in name and not shutil.which("cc"):
        return Outcome("withstood", note="skipped: there is no cc to build the clock with")
    if "processes" in name and (os.geteuid() or not shutil.which("setpriv")):
        return Outcome("withstood", note="skipped: only root can be another user, with setpriv")
    known = runs.reference(folder)
    here = SURROUNDINGS[name](folder, known.source)
    place = here.home or folder / "home"
    words = [*here.words, *runs.command(here.source or known.source)]
    run = runs.start(place, words, here.given, here.before, here.named, **here.others)
    status = run.ended()
    runs.clean(run)
    if status not in here.status:
        raise Failed("undocumented", f"status {status}: {run.said[-1500:]} {run.told[-500:]}")
    if status == 0:
        runs.left(place, known.digests)
        _readable(place)
        return Outcome("withstood")
    here.mended()
    runs.again(here.second or place, runs.command(known.source), known.digests)
    return Outcome("recovered", note=f"status {status}: {run.said.strip().splitlines()[-1][:200] if run.said else ''}")


def _readable(place: Path) -> None:
    """What follows from the run can be asked for in ordinary surroundings. Raises Failed."""
    words = [sys.executable, "-m", "flows.cli", "runs", "--json"]
    done = subprocess.run(
        words,
        cwd=ROOT,
        env=runs.environment(place, {}),
        capture_output=True,
        text=True,
        timeout=runs.LIMIT,
        check=False,
    )
    if done.returncode or '"state": "completed"' not in done.stdout:
        raise Failed(
            "undocumented", f"`maskmill runs` ends with {done.returncode}: {done.stdout[-300:]} {done.stderr[-500:]}"
        )
