"""Stopwatch, peak and floor add up; no test asks how long. python -m pytest tests/tasks/test_meter.py"""

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks import meter
from tasks.flops import Product
from tasks.meter import PARTS, Stopwatch, floor_seconds, matmul_peak, mfu, peak_memory, shares

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves when it is told to."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(meter.time, "perf_counter", lambda: Clock.now)
    return Clock


def test_parts_add_up_also_where_one_is_inside_another(clock):
    watch = Stopwatch()
    for _ in range(2):
        with watch("backward"):
            clock.now += 1
            with watch("communication"):
                clock.now += 2
            clock.now += 4
        clock.now += 8  # nobody's
        with watch("data"):
            clock.now += 16
    assert watch.read() == {"backward": 10, "communication": 4, "data": 32}
    assert watch.read() == {}


def test_on_a_device_the_marks_are_events_that_only_a_reading_waits_for(clock, monkeypatch):
    waited = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = clock.now

        def elapsed_time(self, end):
            return 1000 * (end.at - self.at)

        def synchronize(self):
            waited.append(self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    watch = Stopwatch("cuda")
    with watch("backward"):
        clock.now += 1
        with watch("communication"):
            clock.now += 2
        clock.now += 4
    clock.now += 8
    assert waited == []
    assert watch.read() == {"backward": 5, "communication": 2}
    assert waited == [107.0]
    assert watch.read() == {} and waited == [107.0]


def test_a_part_that_fails_is_closed(clock):
    watch = Stopwatch()
    with pytest.raises(ValueError), watch("forward"), watch("communication"):
        clock.now += 1
        raise ValueError
    clock.now += 1
    assert watch.read() == {"forward": 0, "communication": 1}


def test_shares_of_a_reading(clock):
    watch = Stopwatch()
    with watch("forward"):
        clock.now += 3
    assert watch.shares(4.0) == dict.fromkeys(PARTS, 0.0) | {"forward": 0.75, "other": 0.25}


@given(st.dictionaries(st.sampled_from([*PARTS, "check"]), st.floats(0.0, 1e6)), st.floats(0.0, 1e6))
def test_shares_are_of_one_whole(seconds, total):
    found = shares(seconds, total)
    assert set(found) == {*PARTS, *seconds, "other"} and all(0.0 <= share <= 1.0 for share in found.values())
    assert sum(found.values()) == pytest.approx(1.0)


def test_the_peak_is_a_speed_and_is_measured_once(monkeypatch):
    monkeypatch.setattr(meter, "SIDES", {"cpu": (64, 128)})
    peak = matmul_peak("cpu", torch.float32, -1)
    assert peak > 0 and matmul_peak("cpu", torch.float32, -1) == peak
    assert mfu(peak, 2.0, peak) == 0.5 and mfu(1.0, 1.0, 0.0) == 0.0


def test_the_floor_counts_every_product_with_its_gradients(monkeypatch):
    # With a clock of one second for each operation the floor is a number of operations.
    def seconds(x, y, device, repeats):
        batch, m, k, n = (len(x), *x.shape[-2:], y.shape[-1])
        return 2.0 * batch * m * k * n

    monkeypatch.setattr(meter, "_fastest", seconds)
    monkeypatch.setattr(meter, "LARGEST", 64)  # so that some are timed in part
    products = [
        Product("blocks", 3, 1, 40, 4, 6),
        Product("attention", 2, 12, 5, 4, 5),
        Product("optimizer", 5, 7, 4, 8, 4, gradients=False),
        Product("head", 1, 1, 0, 4, 9),
    ]
    assert floor_seconds(products, CPU, torch.float32) == pytest.approx(sum(one.flops for one in products))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_floor_is_measured(dtype):
    assert floor_seconds([Product("attention", 2, 6, 8, 4, 8)], CPU, dtype, repeats=1) > 0


def test_memory_is_counted_in_bytes():
    # Between a MB and a TB: not in kB, not in pages.
    assert 1 << 22 < peak_memory(CPU) < 1 << 42


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_device_is_timed_by_its_own_clock():
    watch = Stopwatch("cuda")
    x = torch.ones(2048, 2048, device="cuda")
    with watch("forward"):
        for _ in range(50):
            x = x @ x / 2048
        with watch("communication"):
            torch.cuda._sleep(1_000_000)
    began = time.perf_counter()
    seconds = watch.read()
    assert set(seconds) == {"forward", "communication"} and min(seconds.values()) > 0
    assert watch.read() == {} and time.perf_counter() > began
    assert matmul_peak("cuda", torch.bfloat16) > 0 and peak_memory(torch.device("cuda")) > 0
