"""What a person sees while a stage works: a live bar on a terminal, a line now and then elsewhere. To stderr."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context

EVERY = 10.0
"""Seconds between two lines where there is no terminal."""


LOOK = 5.0
"""Seconds between two calls of who watches, and before the first one."""
_hushed = False
_watcher: "Callable[[Bar], None] | None" = None


def hush() -> None:
    """Say nothing from now on: of several processes that do the same, one speaks."""
    global _hushed
    _hushed = True


@contextmanager
def watched(watcher: "Callable[[Bar], None]") -> Iterator[None]:
    """Calls somebody with the bar now and then, for the time of the block; it must not wait for anything.

    In the block's context, whichever thread moves the bar: tokenizers takes its texts from threads of its own.
    """
    global _watcher
    context = copy_context()
    _watcher = lambda bar: context.copy().run(watcher, bar)  # noqa: E731  (a copy: two threads may be at it at once)
    try:
        yield
    finally:
        _watcher = None


CONTROL = {code: f"\\x{code:02x}" for code in (*range(9), *range(11, 32), *range(127, 160))}
CONTROL |= {code: f"\\u{code:04x}" for code in (0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))}
"""Characters by which the name of a file could move a terminal's cursor, or show itself backwards."""


def say(line: str) -> None:
    """One plain line to stderr."""
    line = line.translate(CONTROL)
    if _live is not None:
        _live.print(line)
    else:
        _print(line)


def _print(line: str) -> None:
    """A full disk, or a pipe that nobody reads, is no reason to end a run of hours: the words are lost then."""
    if _hushed:
        return
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stderr.fileno())  # what is left in the buffer would fail again, at the very end
        os.close(nowhere)


class Bar:
    """How far a stage is. `advance` and `note` cost microseconds, so call them freely."""

    def __init__(self, label: str, total: float | None, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done, self.text = 0.0, ""
        self.started = self.told = self.looked = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.started

    def advance(self, amount: float = 1) -> None:
        """Adds to what is done, in units of the bar."""
        self.done += amount
        self._seen()

    def note(self, text: str) -> None:
        """A short remark behind the bar, such as the loss."""
        self.text = text
        self._seen()

    def _seen(self) -> None:
        self._show()
        if _watcher is not None and time.monotonic() - self.looked >= LOOK:
            self.looked = time.monotonic()
            _watcher(self)

    def print(self, line: str) -> None:
        _print(line)

    def line(self) -> str:
        """The state in words: done, rate, time left."""
        seconds = max(time.monotonic() - self.started, 1e-9)
        rate = self.done / seconds
        parts = [f"{self.done:,.0f}" + (f" of {self.total:,.0f}" if self.total else "") + f" {self.unit}"]
        parts.append(f"{rate:,.0f}/s")
        if self.total and rate > 0:
            parts.append(f"{clock((self.total - self.done) / rate)} left")
        return f"{self.label}: " + ", ".join([*parts, *([self.text] if self.text else [])])

    def _show(self) -> None:
        if time.monotonic() - self.told >= EVERY:
            self.told = time.monotonic()
            self.print(self.line())


class _LiveBar(Bar):
    """The same on a terminal, through rich."""

    def __init__(self, label: str, total: float | None, unit: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        super().__init__(label, total, unit)
        self.live = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            TextColumn("·"),
            TimeRemainingColumn(compact=True),
            console=Console(stderr=True),
            transient=True,
        )
        self.task = self.live.add_task(label, total=total, state="")
        self.live.start()

    def print(self, line: str) -> None:
        self.live.console.print(line, highlight=False, markup=False)

    def _show(self) -> None:
        now = time.monotonic()
        if now - self.told < 0.1:
            return
        self.told = now
        rate = self.done / max(now - self.started, 1e-9)
        state = f"{self.done:,.0f} {self.unit} · {rate:,.0f}/s" + (f" · {self.text}" if self.text else "")
        self.live.update(self.task, completed=self.done, state=state)

    def close(self) -> None:
        self.live.stop()


_live: Bar | None = None


@contextmanager
def progress(label: str, total: float | None = None, unit: str = "") -> Iterator[Bar]:
    """A bar for the time of the block; ends in one line that says how much was done in how long."""
    global _live
    bar = (
        _LiveBar(label, total, unit)
        if sys.stderr.isatty() and _live is None and not _hushed
        else Bar(label, total, unit)
    )
    _live = bar
    try:
        yield bar
    finally:
        _live = None
        if isinstance(bar, _LiveBar):
            bar.close()
    done = f"{bar.done:,.1f}" if bar.done < 100 and bar.done % 1 else f"{bar.done:,.0f}"
    say(f"{label}: {done} {unit} in {clock(time.monotonic() - bar.started)}".rstrip())


def clock(seconds: float) -> str:
    """Seconds as a person says them: 7.5 s, 42 s, 3:07 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
