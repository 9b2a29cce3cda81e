"""The thread that takes what an outbox holds to MLflow; nobody waits for it for longer than they choose to.

So that nothing is told twice, whatever is killed (see delivery.py for how a single call may be made twice):

    an outbox is forced to the disk before anything of it is sent: it knows all that MLflow may have
    attempts of one run are delivered one after the other, oldest first
"""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from .delivery import AT_ONCE, Delivery, login_refused, will_not_pass
from .errors import without_secrets
from .outbox import Entry, Line, Outbox, batches, heads
from .progress import say

EVERY = 2.0
"""Seconds between two deliveries."""
LONGEST_PAUSE = 60.0
"""Seconds that a server is left alone at most; the pause begins at EVERY and doubles with each failure."""


class Sender:
    """The thread. It delivers an outbox of this process, and what earlier processes left in the same folder."""

    def __init__(self, outbox: Outbox, delivery_for: Callable[[Entry], Delivery], where: str) -> None:
        """
        delivery_for  connects, for the outbox with that head; called in this thread, and again after each failure
        where         the address in words, without secrets
        """
        self.outbox, self._delivery_for, self.where = outbox, delivery_for, where
        self.ids: dict[str, str] = {}
        """Stage -> id of its MLflow run, as far as known."""
        self.experiment = ""
        """Id of the experiment, as soon as it is known."""
        self.refused = 0
        """Entries that MLflow will never take."""
        self.left: set[Path] = set()
        """Outboxes of earlier runs that are not delivered."""
        self._delivery: Delivery | None = None
        self._away, self._told = False, False
        self._begun = self._done = 0
        self._not_before = 0.0
        self._wake, self._changed, self._stopped = threading.Event(), threading.Condition(), False

    def start(self) -> None:
        # A daemon: a process that ends does not wait for a server that hangs, and all that is unsent is on the disk.
        threading.Thread(target=self._run, name="mlflow", daemon=True).start()

    def stop(self) -> None:
        """After the call that is under way, if one is."""
        self._stopped = True
        self._wake.set()

    def flush(self, seconds: float, everything: bool = False) -> bool:
        """Deliver now; back when all that was said is delivered, when that failed, or after so many seconds.

        everything  wait for what earlier runs left, too
        """
        with self._changed:
            begun, end = self._begun, self.outbox.end
            self._wake.set()
            self._changed.wait_for(
                lambda: self._done > begun or (not everything and self.outbox.sent >= end), timeout=seconds
            )
            return self.outbox.sent >= end

    def _run(self) -> None:
        pause = EVERY
        while not self._stopped:
            with self._changed:
                self._begun += 1
            fine = self.round()
            with self._changed:
                self._done = self._begun
                self._changed.notify_all()
            pause = EVERY if fine else min(2 * pause, LONGEST_PAUSE)
            self._wake.wait(pause)
            self._wake.clear()
        self.outbox.close()

    def round(self) -> bool:
        """Delivers all there is, this run's first; False where this run's has to wait."""
        try:
            found = [(path, head) for path, head in heads(self.outbox.path.parent) if self._is_ours(path, head)]
            self.left = {path for path, _ in found}
            run, name = self.outbox.head["run"], self.outbox.path.name
            before = [path for path, head in found if head["run"] == run and path.name < name]
            if not all(map(self._take, before)):  # an earlier attempt of this run comes before it
                return False
            self._own()
        except Exception as error:  # whatever it is, a run is worth more than its record
            self._delivery = None  # what it knew may have changed by the time that the server is back
            self._warn(error)
            return False
        if self._away and not self._stopped:
            self._away = False
            say(f"MLflow at {self.where} answers again")
        self._earlier()
        return True

    def _earlier(self) -> None:
        """What earlier runs left. Trouble with that is none of this run's."""
        if time.monotonic() < self._not_before:
            return
        try:
            for path in sorted(self.left):
                if not self._take(path):  # who has it is alive, the sweep around this run, say
                    self.left.discard(path)
        except Exception:
            self._not_before = time.monotonic() + LONGEST_PAUSE

    def _is_ours(self, path: Path, head: Entry) -> bool:
        return path != self.outbox.path and head.get("address") == self.outbox.head["address"]

    def _own(self) -> None:
        if not self.outbox.waiting:
            return
        self._delivery = self._delivery or self._delivery_for(self.outbox.head)
        self._deliver(self.outbox, self._delivery)
        if not self.outbox.running and not self.outbox.waiting:
            self.outbox.remove(kept=self.refused > 0)

    def _take(self, path: Path) -> bool:
        """Delivers what an earlier run left; False where a living process has it."""
        outbox = Outbox.take(path)
        if outbox is None:
            if path.exists():
                return False
            self.left.discard(path)
            return True
        refused = self.refused
        try:
            self._deliver(_ended(outbox), self._delivery_for(outbox.head))
            if not outbox.waiting:
                outbox.remove(kept=self.refused > refused)
                self.left.discard(path)
        finally:
            outbox.close()
        return True

    def _deliver(self, outbox: Outbox, delivery: Delivery) -> None:
        while not self._stopped and (lines := outbox.entries):
            outbox.sync()
            for batch in batches(lines, AT_ONCE):
                if self._stopped:
                    return
                self._send(delivery, batch)
                with suppress(OSError):  # a full disk: it will be sent again, and stored once
                    outbox.acknowledge(batch)
                if outbox is self.outbox:
                    self.ids |= delivery.runs
                    self.experiment = delivery.experiment
                    with self._changed:
                        self._changed.notify_all()

    def _send(self, delivery: Delivery, batch: Sequence[Line]) -> None:
        try:
            delivery.send([line.entry for line in batch])
        except Exception as error:
            if not will_not_pass(error):
                raise
            if len(batch) > 1:  # one bad entry does not take the others with it
                for line in batch:
                    self._send(delivery, [line])
                return
            self.refused += 1
            self._warn(error, refused=True)

    def _warn(self, error: Exception, refused: bool = False) -> None:
        if refused and not self._told:
            self._told = True
            say(f"MLflow at {self.where} does not take everything ({_said(error)}); the run goes on")
        if not refused and not self._away:
            self._away = True
            what = login_refused(error) or f"cannot be reached ({_said(error)})"
            say(f"MLflow at {self.where} {what}; the run goes on, and tells it later")


def _ended(outbox: Outbox) -> Outbox:
    """An outbox whose process died ends when that last wrote."""
    at = int(outbox.path.stat().st_mtime * 1000)
    for stage in reversed(list(outbox.running)):
        outbox.append({"do": "end", "stage": stage, "status": "KILLED", "at": at})
    return outbox


def _said(error: Exception) -> str:
    return without_secrets((str(error).splitlines() or [type(error).__name__])[0][:200])
