"""Requests in a line: everybody gets their own answers, together where they waited, nobody waits for company."""

import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from tasks import waiting
from tasks.waiting import FullError, Line


class Slow:
    """Doubles numbers, not before the gate is open; remembers its batches."""

    def __init__(self):
        self.gate, self.begun, self.batches = threading.Event(), threading.Event(), []

    def __call__(self, questions):
        self.begun.set()
        assert self.gate.wait(10)
        self.batches.append(list(questions))
        if 13 in questions:
            raise ValueError("13")
        return [2 * question for question in questions]


@pytest.fixture
def slow():
    return Slow()


def standing(line, slow, *requests):
    """Futures of requests that wait behind a first one, which the thread has taken."""
    first = line.ask([0])
    assert slow.begun.wait(10)
    return [first, *(line.ask(request) for request in requests)]


def test_everybody_gets_their_own_answers_from_many_threads():
    line = Line(lambda questions: [2 * question for question in questions], at_once=7)
    with line, ThreadPoolExecutor(16) as pool:
        requests = [list(range(number, number + number % 5)) for number in range(300)]
        found = pool.map(lambda request: list(line.ask(request).result(10)), requests)
        assert list(found) == [[2 * question for question in request] for request in requests]


def test_who_waits_is_answered_together_and_who_is_alone_at_once(slow):
    with Line(slow, at_once=4) as line:
        futures = standing(line, slow, [1], [2, 3], [4], [5, 6, 7, 8, 9], [10])
        slow.gate.set()
        assert [future.result(10) for future in futures] == [[0], [2], [4, 6], [8], [10, 12, 14, 16, 18], [20]]
    assert slow.batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8, 9], [10]]


def test_a_line_has_an_end_and_a_large_request_may_go_where_nobody_waits(slow):
    with Line(slow, longest=3) as line:
        standing(line, slow, [1, 2], [3])
        with pytest.raises(FullError):
            line.ask([4])
        slow.gate.set()
    with Line(lambda questions: questions, longest=3) as line:
        assert list(line.ask([1] * 9).result(10)) == [1] * 9


def test_what_was_cancelled_is_not_computed(slow):
    with Line(slow) as line:
        _, gone, other = standing(line, slow, [1], [2])
        assert gone.cancel()
        slow.gate.set()
        assert other.result(10) == [4]
        with pytest.raises(CancelledError):
            gone.result()
    assert slow.batches == [[0], [2]]


def test_a_request_that_fails_costs_the_others_nothing(slow):
    with Line(slow) as line:
        _, one, bad, other = standing(line, slow, [1], [13], [2])
        slow.gate.set()
        assert one.result(10) == [2] and other.result(10) == [4]
        with pytest.raises(ValueError, match="13"):
            bad.result(10)


def test_closing_answers_who_stands_there_and_takes_nobody_else(slow):
    with Line(slow) as line:
        futures = standing(line, slow, [1], [2])
        slow.gate.set()
    assert [future.result(0) for future in futures] == [[0], [2], [4]]
    with pytest.raises(FullError):
        line.ask([3])


def test_callers_who_ask_again_at_once_stay_together():
    """Without the pause after a batch, one of eight would go alone again and again."""
    batches = []

    def answers(questions):
        batches.append(len(questions))
        time.sleep(0.03)
        return questions

    with Line(answers) as line, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda caller: [line.ask([caller]).result(10) for _ in range(10)], range(8)))
    assert sum(batches) == 80 and len(batches) < 20


def test_who_is_alone_waits_for_nobody():
    with Line(lambda questions: questions) as line:
        begin = time.monotonic()
        for number in range(200):
            line.ask([number]).result(10)
    assert time.monotonic() - begin < 200 * waiting.LONGEST_PAUSE
