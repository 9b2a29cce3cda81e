"""Whoever watches a training waits for no server: MLflow has its outbox, and Prefect's picture a thread of its own."""

import asyncio
import threading
import time
from contextlib import nullcontext
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import pytest

from flows import chain, plan, recipes
from tasks import progress
from tasks.errors import InterruptedRun, NumericError, UsageError

WHOSE: ContextVar[str] = ContextVar("whose")


class Prefect:
    """Its two functions; they hang while they are not let go."""

    def __init__(self) -> None:
        self.let_go, self.asked = threading.Event(), threading.Event()
        self.drawn: list[tuple[float, str, str]] = []
        self.made = 0

    def create(self, progress: float, **_: Any) -> str:
        self.asked.set()
        assert self.let_go.wait(60)
        self.made += 1
        return "picture"

    def update(self, picture: str, progress: float, description: str) -> None:
        self.drawn.append((progress, description, WHOSE.get("nobody's")))


@pytest.fixture
def prefect(monkeypatch: pytest.MonkeyPatch) -> Prefect:
    prefect = Prefect()
    monkeypatch.setattr(chain, "create_progress_artifact", prefect.create)
    monkeypatch.setattr(chain, "update_progress_artifact", prefect.update)
    monkeypatch.setattr(chain, "DRAW_EVERY", 0.0)
    monkeypatch.setattr(chain, "PATIENCE", 0.05)
    return prefect


@pytest.fixture
def mill() -> chain.Chain:
    recipe = recipes.load("tiny", [], ["pretrain.steps=100"])
    told: Any = SimpleNamespace(flush=lambda: True)
    mill = chain.Chain(recipe, SimpleNamespace(), SimpleNamespace(), told)  # type: ignore[arg-type]
    mill.stage_run = SimpleNamespace(ship=lambda records: shipped.extend(records))  # type: ignore[assignment]
    shipped: list[Any] = []
    mill.shipped = shipped  # type: ignore[attr-defined]
    return mill


def record(step: int) -> dict[str, Any]:
    pace = {"train/tokens_per_second": 2000.0, "train/seconds_left": 3.0 * (100 - step)}
    return {"step": step, "timestamp_ms": 1, "metrics": {"train/loss": 1.5, "train/progress": step / 100} | pace}


def test_a_prefect_that_hangs_holds_up_nobody_and_shows_the_next_picture(mill: Any, prefect: Prefect) -> None:
    for step in range(1, 50):
        mill.metrics([record(step)])
    assert prefect.asked.wait(60) and len(mill.shipped) == 49 and not prefect.drawn
    mill._trained()  # gives up waiting
    assert not prefect.drawn
    prefect.let_go.set()
    mill._artist.join(60)
    mill.metrics([record(80)])
    mill._artist.join(60)
    assert [progress for progress, *_ in prefect.drawn] == [1.0, 80.0] and prefect.made == 1


def test_the_last_picture_shows_the_last_step_and_belongs_to_the_run(mill: Any, prefect: Prefect) -> None:
    prefect.let_go.set()
    chain.PATIENCE = 60.0
    WHOSE.set("the run's")
    for step in (10, 60, 100):
        mill.metrics([record(step)])
    mill._trained()
    assert (60.0, "step 60, loss 1.500, 2,000 tokens/s, 2:00 min left", "the run's") in prefect.drawn
    assert prefect.drawn[-1] == (100.0, "step 100, loss 1.500", "the run's")


def test_a_prefect_that_fails_is_mentioned_once(
    mill: Any, prefect: Prefect, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(chain, "create_progress_artifact", lambda *_, **__: 1 / 0)
    for step in range(3):
        mill.metrics([record(step)])
        mill._artist.join(60)
    assert capsys.readouterr().err.count("Prefect cannot show all of this run (ZeroDivisionError") == 1


def test_a_prefect_that_was_away_is_left_alone_for_a_while(
    mill: Any, prefect: Prefect, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(chain, "create_progress_artifact", lambda *_, **__: asked.append(1) or 1 / 0)
    for rest, times in ((60.0, 1), (60.0, 1), (0.0, 2), (0.0, 3)):
        monkeypatch.setattr(chain, "REST", rest)
        if rest == 0.0:
            mill._asked_again = 0.0
        mill.metrics([record(1)])
        mill._artist.join(60)
        assert len(asked) == times


def test_the_last_words_to_a_prefect_that_is_away_take_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect itself goes on with each of them at the end of the process, for as long as it takes."""
    from flows import mlm

    monkeypatch.setattr(mlm, "DELIVERY", 0.05)
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    asked = asyncio.run_coroutine_threadsafe(begun(), loop).result(60)
    service = SimpleNamespace(_loop=loop, _task=asked)
    worker = SimpleNamespace(_instances={1: service}, drain_all=lambda timeout: time.sleep(timeout))
    monkeypatch.setattr(mlm, "EventsWorker", worker)
    monkeypatch.setattr(mlm, "APILogWorker", worker)
    mlm.deliver()
    while not asked.cancelled():
        time.sleep(0.01)
    loop.call_soon_threadsafe(loop.stop)


async def begun() -> "asyncio.Task[None]":
    return asyncio.get_running_loop().create_task(asyncio.sleep(3600))


@pytest.fixture
def staged(mill: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """One whose stage pretrain can be entered without a store."""
    verdict = SimpleNamespace(action="reuse", why="", key="k")
    monkeypatch.setattr(plan, "identity_of", lambda *_, **__: SimpleNamespace(key="k", inputs={}))
    monkeypatch.setattr(plan, "judge", lambda *_: verdict)
    mill.recorder.stage = lambda *_, **__: None
    run = mill.stage_run
    mill.tracker.stage = lambda *_: nullcontext(run)
    return mill


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (InterruptedRun("stopped by SIGTERM after step 63"), "interrupted: stopped by SIGTERM after step 63"),
        (
            NumericError("step 64 has loss nan\nsee http://me:word@host"),
            "failed: step 64 has loss nan see http://…@host",
        ),
        (KeyboardInterrupt(), "interrupted: KeyboardInterrupt"),
    ],
)
def test_the_last_picture_of_a_training_that_ends_early_says_where_and_why(
    staged: Any, prefect: Prefect, error: BaseException, said: str
) -> None:
    prefect.let_go.set()
    chain.PATIENCE = 60.0
    with pytest.raises(type(error)) as caught, staged.stage("pretrain", staged.recipe.pretrain):
        for step in (10, 60):
            staged.metrics([record(step)])
        raise error
    assert caught.value is error
    assert prefect.drawn[-1][:2] == (60.0, f"step 60, loss 1.500; {said}")


def test_a_stage_with_a_bar_has_a_picture_of_its_own(
    staged: Any, prefect: Prefect, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefect.let_go.set()
    chain.PATIENCE = 60.0
    monkeypatch.setattr(progress, "LOOK", 0.0)
    WHOSE.set("the run's")
    with pytest.raises(UsageError), staged.stage("corpus", staged.recipe.corpus):
        with progress.progress("corpus", 8, "MB") as bar:
            bar.advance(2)
            staged._artist.join(60)
            bar.advance(4)
            staged._artist.join(60)
            threads = [threading.Thread(target=bar.advance, args=(1,)) for _ in range(2)]  # of a library in Rust
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        raise UsageError("no more")
    assert (prefect.drawn[0][0], prefect.drawn[0][1].partition(", ")[0]) == (25.0, "corpus: 2 of 8 MB")
    assert {whose for _, _, whose in prefect.drawn} == {"the run's"}
    assert prefect.drawn[-1][0] == 100.0 and prefect.drawn[-1][1].endswith("; failed: no more")


def test_a_training_that_fails_waits_for_no_prefect_and_its_error_stays(staged: Any, prefect: Prefect) -> None:
    began = time.monotonic()
    with pytest.raises(NumericError, match="the first"), staged.stage("pretrain", staged.recipe.pretrain):
        staged.metrics([record(10)])
        raise NumericError("the first")
    assert time.monotonic() - began < 5
    prefect.let_go.set()
    staged._artist.join(60)
    staged._draw_last = lambda end: 1 / 0
    with pytest.raises(NumericError, match="the second"), staged.stage("pretrain", staged.recipe.pretrain):
        staged.metrics([record(20)])
        raise NumericError("the second")


def test_a_flow_refuses_before_its_first_stage_what_training_would_refuse(mill: Any) -> None:
    recipe = recipes.load("tiny", [], ["pretrain.stable_checkpoints=20"])
    with pytest.raises(UsageError, match="the stable phase has 13 steps"):
        chain.Chain(recipe, mill.store, mill.recorder, mill.tracker)


def test_a_stopped_run_goes_on_wherever_its_artifacts_travel() -> None:
    plain, shared = recipes.load("tiny"), recipes.load("tiny", [], ["remote=s3://bucket/folder"])
    other = recipes.load("tiny", [], ["pretrain.steps=21"])
    assert plain.settings == shared.settings != other.settings
