"""Everything that is read from a disk or a network, given what nobody would write.

    python -m tests.faults.fuzz [--cases 100000] [--seed N] [--only NAME …] [--json FILE] [--again NAME FILE]

Of a parser nothing may come out but its result or a documented error (tasks/errors.py; of a server an answer 4xx of one
sentence): no other exception, no end of the process, no case that takes PATIENCE seconds, none that takes MEMORY. Where
a seal or a digest covers the bytes, damage that is accepted is `silent`, and as bad.

Cases run in forked processes, a batch at a time, so that the end of one is a finding about a case and not the end of
the run. A finding's bytes are kept in a file; --again gives them to the parser once more, in this very process.
"""

import argparse
import faulthandler
import itertools
import json
import mmap
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis.strategies import SearchStrategy

from tasks.errors import MaskmillError
from tests.faults.fuzz_cases import LARGEST, Case, cases, drawn

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch comes: its threads do not survive a fork
BATCH = 2000
PATIENCE = 20.0
"""Seconds of a case, on a machine that does other things as well."""
DRAWN = 4
"""One batch of so many is drawn by a strategy, where a parser has one: that takes some times as long."""
MEMORY = 1 << 30
"""Bytes that a batch may take beside what was there before."""
FATAL = 5
"""Of a parser so often ended or hung, the rest is not tried."""
LABELS = ("accepted", "rejected", "UsageError", "DataError", "MlflowException", "400", "413", "4xx", "other refusal")
FINDINGS = ("crash", "silent", "memory", "abort", "hang")


class Silent(AssertionError):
    """Damage that was taken for good."""


@dataclass(frozen=True)
class Parser:
    """What is fuzzed."""

    examples: Sequence[bytes]
    """Whole ones: each is accepted."""
    read: Callable[[Case], str | None]
    """Reads a case. Returns one of LABELS (None: accepted) or raises a documented error; or Silent."""
    form: str = "bytes"
    """"bytes", "json" or "lines": see fuzz_cases."""
    reseal: Callable[[Any], bytes] | None = None
    """JSON value -> bytes with a seal that fits."""
    strategy: SearchStrategy[bytes] | None = None
    """Draws some batches."""
    pieces: Sequence[bytes] = ()
    """What its bytes may be damaged with."""
    refusals: tuple[type[BaseException], ...] = ()
    """Documented beside MaskmillError."""


Build = Callable[[Path], Parser]
"""Given an empty folder of its own."""


@dataclass
class Finding:
    """A case that went wrong."""

    parser: str
    kind: str
    what: str
    data: bytes

    @property
    def same(self) -> tuple[str, str]:
        """Findings with the same one are told once."""
        return self.kind, self.what


@dataclass
class Tally:
    """What came out of a parser's cases."""

    parser: str
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    """The first of each kind."""
    seconds: float = 0.0
    slowest: float = 0.0
    """Seconds of the slowest case."""
    memory: int = 0
    """Bytes by which the peak of a batch lay above its beginning, at most."""

    @property
    def cases(self) -> int:
        return self.outcomes.total()

    @property
    def wrong(self) -> int:
        return sum(self.outcomes[name] for name in FINDINGS)

    def as_json(self) -> dict[str, Any]:
        found = [{"kind": one.kind, "what": one.what, "bytes": len(one.data)} for one in self.findings]
        figures = {"seconds": round(self.seconds, 1), "slowest": round(self.slowest, 2), "memory": self.memory}
        return {
            "parser": self.parser,
            "cases": self.cases,
            **figures,
            "outcomes": dict(self.outcomes),
            "findings": found,
        }


def outcome(parser: Parser, case: Case) -> tuple[str, str]:
    """What became of a case, and of a finding what it is."""
    try:
        label = parser.read(case) or "accepted"
        return (label if label in LABELS else "other refusal"), ""
    except MaskmillError as error:
        name = type(error).__name__
        if not str(error).strip():
            return "crash", f"{name} from {place()} without a word"
        return (name if name in LABELS else "other refusal"), str(error)
    except parser.refusals as error:
        name = type(error).__name__
        return (name if name in LABELS else "other refusal"), ""
    except Silent as error:
        return "silent", str(error)
    except MemoryError:
        return "memory", place()
    except BaseException as error:  # a panic of Rust is no Exception
        return "crash", f"{type(error).__name__} in {place()}: {str(error)[:120]}"


def place() -> str:
    """Where in tasks/ or flows/ the exception passed last, else where it came from."""
    frames = traceback.extract_tb(sys.exc_info()[2])
    ours = [frame for frame in frames if "/tasks/" in frame.filename or "/flows/" in frame.filename]
    last = [frame for frame in ours if "/tests/" not in frame.filename and "site-packages" not in frame.filename]
    frame = (last or frames)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


class Batch:
    """What a batch and its parent share."""

    def __init__(self, size: int) -> None:
        self.shared = mmap.mmap(-1, 16 + LARGEST + size)
        self.size = size

    def begin(self, number: int, data: bytes) -> None:
        self.shared[8:16] = len(data).to_bytes(8, "little")
        self.shared[16 : 16 + len(data)] = data
        self.shared[:8] = (number + 1).to_bytes(8, "little")

    def end(self, number: int, label: str) -> None:
        self.shared[16 + LARGEST + number] = 1 + (*LABELS, *FINDINGS).index(label)

    @property
    def begun(self) -> int:
        """Cases that were begun."""
        return int.from_bytes(self.shared[:8], "little")

    @property
    def data(self) -> bytes:
        return self.shared[16 : 16 + int.from_bytes(self.shared[8:16], "little")]

    def labels(self) -> Counter[str]:
        names = (*LABELS, *FINDINGS)
        return Counter(names[one - 1] for one in self.shared[16 + LARGEST :] if one)


def _child(parser: Parser, source: Callable[[Callable[[Case], None]], None], batch: Batch, out: Path) -> None:
    """Runs the cases of a batch. What it found goes into a file, what is printed nowhere."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
    number, slowest = 0, 0.0
    told: set[str] = set()
    with open(out, "w") as file:

        def take(case: Case) -> None:
            nonlocal number, slowest
            if number == batch.size:
                return
            batch.begin(number, case.data)
            started = time.perf_counter()
            label, what = outcome(parser, case)
            slowest = max(slowest, time.perf_counter() - started)
            batch.end(number, label)
            number += 1
            if label in FINDINGS and what not in told:
                told.add(what)
                file.write(json.dumps([label, what, case.data.hex()]) + "\n")
                file.flush()

        source(take)
        more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before
        file.write(json.dumps([number, slowest, more]) + "\n")


def _forked(work: Callable[[], None], log: Path) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        with open(log, "wb") as file:
            for descriptor in (1, 2):
                os.dup2(file.fileno(), descriptor)
        os.setsid()
        faulthandler.disable()  # of pytest: it would print a page for each abort
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # as the command does
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _await(child: int, batch: Batch) -> tuple[int, bool]:
    """Status of a batch, and whether it was ended by us because a case took too long."""
    seen, since = -1, time.monotonic()
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status, False
        if batch.begun != seen:
            seen, since = batch.begun, time.monotonic()
        elif time.monotonic() - since > PATIENCE + (60 if seen == 0 else 0):
            os.kill(child, signal.SIGKILL)
            return os.waitpid(child, 0)[1], True
        time.sleep(0.01)


def fuzz(name: str, parser: Parser, number: int, seed: int, folder: Path, size: int = BATCH) -> Tally:
    """Gives a parser that many cases."""
    tally, done, fatal, rounds, started = Tally(name), 0, 0, 0, time.monotonic()
    while done < number and fatal < FATAL:
        some = min(size, number - done)
        batch, out, log = Batch(some), folder / "batch.jsonl", folder / "batch.log"
        source = _source(name, parser, seed, done, some, rounds)
        child = _forked(lambda: _child(parser, source, batch, out), log)  # noqa: B023  (runs before the next)
        status, hung = _await(child, batch)
        tally.outcomes += batch.labels()
        lines = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
        for line in lines:
            if isinstance(line[0], str):
                _tell(tally, Finding(name, line[0], line[1], bytes.fromhex(line[2])))
            else:
                tally.slowest, tally.memory = max(tally.slowest, line[1]), max(tally.memory, line[2])
        if status:
            words = log.read_bytes()[-300:].decode(errors="replace").strip().replace("\n", " | ")
            kind, what = ("hang", f"{PATIENCE:.0f} s") if hung else ("abort", f"status {status}: {words}")
            if not batch.begun:
                raise RuntimeError(f"{name}: a batch could not begin: {words}")
            tally.outcomes[kind] += 1
            _tell(tally, Finding(name, kind, what, batch.data))
            fatal += 1
        done += max(batch.begun, 1)
        rounds += 1
        if sys.stderr.isatty():
            print(f"\r{name}: {done:,}   \r", end="", file=sys.stderr, flush=True)
    tally.seconds = time.monotonic() - started
    return tally


def _source(
    name: str, parser: Parser, seed: int, first: int, some: int, rounds: int
) -> Callable[[Callable[[Case], None]], None]:
    """Hands on the cases of a batch."""

    def own(take: Callable[[Case], None]) -> None:
        how = parser.reseal, parser.form, parser.pieces
        for case in itertools.islice(cases(seed, name, parser.examples, *how, first), some):
            take(case)

    if parser.strategy is None or rounds % DRAWN:
        return own
    strategy = parser.strategy
    return lambda take: drawn(seed * 1_000_003 + first, strategy, some, lambda data: take(Case(data)))


def _tell(tally: Tally, finding: Finding) -> None:
    if finding.same not in {one.same for one in tally.findings}:
        tally.findings.append(finding)


@contextmanager
def workplace() -> Iterator[Path]:
    """A folder in memory, where the system has one: forcing a file to a disk a hundred thousand times is no test."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


def parsers() -> dict[str, Build]:
    """Every parser by its name."""
    from tests.faults import fuzz_inputs, fuzz_models, fuzz_served, fuzz_sources, fuzz_state, fuzz_stored

    found: dict[str, Build] = {}
    for module in (fuzz_stored, fuzz_state, fuzz_inputs, fuzz_sources, fuzz_served, fuzz_models):
        found |= module.PARSERS
    return found


def run(name: str, build: Build, number: int, seed: int) -> Tally:
    """Fuzzes one parser. Raises AssertionError where it does not accept its own examples."""
    with workplace() as folder:
        (place := folder / "parser").mkdir()
        parser = build(place)
        for data in parser.examples:
            label, what = outcome(parser, Case(data))
            assert label in ("accepted", "rejected"), (
                f"{name} does not take its own example: {label} {what} {data[:200]!r}"
            )
        return fuzz(name, parser, number, seed, folder)


def row(tally: Tally) -> str:
    outcomes = ", ".join(f"{label} {tally.outcomes[label]:,}" for label in LABELS if tally.outcomes[label])
    figures = f"{tally.seconds:7.0f} s  slowest {tally.slowest:5.2f} s  {tally.memory >> 20:4d} MB"
    wrong = (
        ", ".join(f"{label} {tally.outcomes[label]:,}" for label in FINDINGS if tally.outcomes[label]) or "crashes 0"
    )
    return f"{tally.parser:<22} {tally.cases:>9,}  {figures}  {wrong}; {outcomes}"


def main(words: Sequence[str] | None = None) -> int:
    arguments = argparse.ArgumentParser(prog="python -m tests.faults.fuzz")
    arguments.add_argument("--cases", type=int, default=100_000, help="of each parser")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--only", nargs="*", help="names of parsers")
    arguments.add_argument("--json", type=Path)
    arguments.add_argument("--keep", type=Path, help="folder for the bytes of findings")
    arguments.add_argument("--again", nargs=2, metavar=("NAME", "FILE"), help="one case, in this process")
    given = arguments.parse_args(words)
    known = parsers()
    if given.again:
        with workplace() as folder:
            parser = known[given.again[0]](folder)
            print(parser.read(Case(Path(given.again[1]).read_bytes())) or "accepted")
        return 0
    names = given.only or list(known)
    if unknown := [name for name in names if name not in known]:
        arguments.error(f"no parser {unknown[0]}; there are {', '.join(known)}")
    tallies = []
    for name in names:
        tallies.append(tally := run(name, known[name], given.cases, given.seed))
        print(row(tally), flush=True)
        _show(tally, given)
    if given.json:
        given.json.write_text(json.dumps([tally.as_json() for tally in tallies], indent=1))
    total = sum(tally.cases for tally in tallies)
    print(f"{total:,} cases of {len(tallies)} parsers, {sum(tally.wrong for tally in tallies):,} of them wrong")
    return int(any(tally.wrong for tally in tallies))


def _show(tally: Tally, given: argparse.Namespace) -> None:
    keep = given.keep or Path(tempfile.gettempdir()) / "fuzz-findings"
    for finding in tally.findings:
        keep.mkdir(parents=True, exist_ok=True)
        path = keep / f"{tally.parser}-{len(list(keep.glob(f'{tally.parser}-*')))}"
        path.write_bytes(finding.data)
        print(f"    {finding.kind}: {finding.what}")
        print(f"        python -m tests.faults.fuzz --again {tally.parser} {path}", flush=True)


if __name__ == "__main__":
    from tests.faults import fuzz  # by its name: what parsers raise is then what is caught

    sys.exit(fuzz.main())
