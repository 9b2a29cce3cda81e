"""Champion only through the gate: what the rule (gate.py) and the contest (contest.py) are to MLflow.

    evidence    scores.arrow of the evaluation, beside the model among the version's artifacts
    decision    tags, first line of the page, gate_report.json of the version's run; also of a version that is refused
    alias       last: whoever follows one finds a complete version. The champion before becomes `previous`

A person may overrule the gate (`promote` with force) and take a promotion back (`rollback`); both are written down like
a decision of the gate (board.py).

One promotion at a time: by flock on one host, by an advisory lock where the registry is a PostgreSQL. Elsewhere several
may run at once, and contest.py says why that ends well.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import gate, tracking
from .board import GATE, PERSON, WON, Board, attach
from .errors import UsageError
from .gate import Decision
from .manifests import fsync
from .progress import say
from .versions import PREVIOUS, Version, check_name, explained, find, home_of

LOCK = 0x6D61736B6D696C6C
"""Of PostgreSQL: "maskmill" in ASCII."""
Rescore = Callable[[Version, Version], Path]
"""(challenger, champion) -> scores.arrow of both on the challenger's test set."""


@contextmanager
def alone(home: Path) -> Iterator[None]:
    """One promotion at a time on this host, and among all that use the same PostgreSQL. Gone with its holder.

    What was decided is on the disk then. SQLite commits by removing its journal, and leaves that removal to the system
    (PRAGMA synchronous is FULL, not EXTRA): after a power cut the journal would be there again, and undo the last step.
    """
    with tracking.locked(home, "promotion.lock"), _advisory(tracking.tracking_uri(home)):
        yield
        if tracking.is_embedded(home):
            fsync(tracking.database(home).parent)


@contextmanager
def _advisory(uri: str) -> Iterator[None]:
    """pg_advisory_lock in a session of its own, which takes it along when it ends, however that is."""
    if not uri.startswith("postgres"):
        yield
        return
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.pool.NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as session:
        if not session.scalar(sqlalchemy.text(f"SELECT pg_try_advisory_lock({LOCK})")):
            say("another promotion is being decided; waiting for it")
            session.execute(sqlalchemy.text(f"SELECT pg_advisory_lock({LOCK})"))
        yield


@dataclass(frozen=True)
class Promotion:
    """What became of it."""

    version: Version
    decision: Decision
    champion: int | None
    """Who is champion now."""
    before: int | None = None
    by: str = GATE
    why: str = ""
    """A person's reason."""

    @property
    def promoted(self) -> bool:
        return self.champion == self.version.version

    def as_json(self) -> dict[str, Any]:
        numbers = {"version": self.version.version, "champion": self.champion, "before": self.before}
        who = {"model": self.version.name, "promoted": self.promoted, "by": self.by, "why": self.why}
        return who | numbers | {"decision": self.decision.as_json()}


def promote(
    spec: str, home: Path | None = None, force: bool = False, why: str = "", rescore: Rescore | None = None
) -> Promotion:
    """Lets a version stand for champion.

    force       it becomes champion whatever the gate says
    why         a person's reason; needed with force
    rescore     scores both models on the challenger's test set, where the registry does not have that
    Raises UsageError for a version that does not exist, and what `rescore` raises.
    """
    if force and not why.strip():
        raise UsageError("--force needs --reason: it is written down on the version.")
    home = home_of(home)
    version = find(spec, home)
    with explained(home):
        board = Board(tracking.connect(home), home, version.name)
        number, before = version.version, board.champion()
        if before == number:
            said = Decision(True, WON, "it is champion already", rule=board.rule(version))
            return Promotion(board.version(number), said, number, number, why=why)
        if rescore and before and not force and (gap := board.decision(number, before)).kind == gate.NOT_COMPARED:
            try:  # outside the lock, since it may take long; what is found is the registry's from then on
                attach(board.client, version, rescore(version, board.version(before)))
            except UsageError as error:
                raise UsageError(f"{version.name} version {number}: {gap.reason}. {error}") from None
            board = Board(board.client, home, version.name)
        with alone(home):
            before = board.champion()
            said = board.force(number, why) if force else board.enter(number)
            by = PERSON if force else GATE
            return Promotion(board.version(number), said, board.champion(), before, by, why)


def rollback(name: str, home: Path | None = None, why: str = "") -> Promotion:
    """Makes the champion before the champion again; `previous` then is the one before that, if it is known.

    Raises UsageError where there is none.
    """
    home = home_of(home)
    check_name(name)
    find(name, home)
    with explained(home), alone(home):
        board = Board(tracking.connect(home), home, name)
        now, before = board.champion(), board.aliased(PREVIOUS)
        if now is None or before is None or now == before:
            raise UsageError(
                f"{name} has no champion before version {now}; promote the one you want with --force --reason."
            )
        said = board.roll_back(now, before, why)
        return Promotion(board.version(before), said, board.champion(), now, PERSON, why)
