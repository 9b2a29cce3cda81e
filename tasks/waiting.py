"""Requests of many callers wait in a line; one thread answers what has gathered there, together.

A model is fastest with several texts at a time, and a second thread would only take its cores away. Nobody waits for
company: an idle thread takes a request the moment it comes, and those that come meanwhile are the next batch. Only
after a batch of several it gives those it answered a tenth of that batch's time to ask again: otherwise the first of
them would go alone, each time, and the others after it.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import Condition, Thread
from typing import Generic, TypeVar

Question = TypeVar("Question")
Answer = TypeVar("Answer")
LONGEST_PAUSE = 0.01
"""Seconds."""


class FullError(Exception):
    """The line is as long as it may be; come again later."""


class Line(Generic[Question, Answer]):
    """A line and its thread. Used in a `with`: leaving it answers who stands there still, then ends."""

    def __init__(
        self, answers: Callable[[Sequence[Question]], Sequence[Answer]], at_once: int = 64, longest: int = 1024
    ) -> None:
        """
        answers     one answer a question, in order; called by this line's thread only
        at_once     questions in a batch; a request with more of them goes alone
        longest     questions that may wait
        """
        self._answers, self._at_once, self._longest = answers, at_once, longest
        self._waiting: deque[tuple[Sequence[Question], Future[Sequence[Answer]]]] = deque()
        self._changed = Condition()
        self._open = False
        self._expected, self._pause = 0, 0.0
        """Requests that may come again at once, and the seconds that they have."""
        self._thread = Thread(target=self._work, name="model", daemon=True)

    def ask(self, questions: Sequence[Question]) -> "Future[Sequence[Answer]]":
        """The answers, later. What is cancelled before it is begun is not computed. Raises FullError, also where the
        line is not open."""
        future: Future[Sequence[Answer]] = Future()
        with self._changed:
            standing = sum(len(other) for other, _ in self._waiting)
            if not self._open or (standing and standing + len(questions) > self._longest):
                raise FullError
            self._waiting.append((questions, future))
            self._changed.notify()
        return future

    def __enter__(self) -> "Line[Question, Answer]":
        self._open = True
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._open = False
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._take():
            if batch := [one for one in batch if one[1].set_running_or_notify_cancel()]:
                begin = time.monotonic()
                self._answer(batch)
                self._expected = len(batch) if len(batch) > 1 else 0
                self._pause = min(LONGEST_PAUSE, (time.monotonic() - begin) / 10)

    def _take(self) -> list[tuple[Sequence[Question], "Future[Sequence[Answer]]"]]:
        """The first requests of the line, as many as fit into a batch; waits for one. None when all is over."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._waiting) >= self._expected or not self._open, self._pause)
            self._changed.wait_for(lambda: self._waiting or not self._open)
            batch: list[tuple[Sequence[Question], Future[Sequence[Answer]]]] = []
            size = 0
            while self._waiting and (not batch or size + len(self._waiting[0][0]) <= self._at_once):
                batch.append(self._waiting.popleft())
                size += len(batch[-1][0])
            return batch

    def _answer(self, batch: Sequence[tuple[Sequence[Question], "Future[Sequence[Answer]]"]]) -> None:
        try:
            found = list(self._answers([question for questions, _ in batch for question in questions]))
        except Exception as error:
            if len(batch) == 1:
                batch[0][1].set_exception(error)
            else:  # nobody pays for what another one asked
                for one in batch:
                    self._answer([one])
            return
        at = 0
        for questions, future in batch:
            future.set_result(found[at : at + len(questions)])
            at += len(questions)
