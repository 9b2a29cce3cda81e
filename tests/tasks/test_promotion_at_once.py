"""Promotion by two processes at once, of one machine and of two hosts: the better version is champion."""

import multiprocessing
import os
import time
from contextlib import contextmanager, nullcontext

import pytest

from tasks import board, promotion
from tasks.board import Board
from tasks.promotion import promote
from tests.tasks.calm_mlflow import calm as calm
from tests.tasks.shelf import Shelf
from tests.tasks.shelf import answers as answers
from tests.tasks.shelf import shelf as shelf


def _stand(home, spec, uri, meet, wait_for, done, locked):
    """A promotion in a process of its own. Without a lock it decides, meets the other, sets the alias, last if told."""
    if uri:
        os.environ["MLFLOW_TRACKING_URI"] = uri
    board.smoke = lambda spec, home, modality: ""
    move, moves = Board._move, []

    def slowly(self, version, before):
        moves.append(version)
        if len(moves) == 1:
            meet.wait(120)
            if wait_for:
                assert wait_for.wait(120)
        move(self, version, before)

    if not locked:
        promotion.alone = lambda home: nullcontext()
        Board._move = slowly
    promote(spec, home)
    done.set()


def _two_at_once(homes, name, specs, uri=None, locked=True, last=None):
    start = multiprocessing.get_context("spawn")
    meet, done = start.Barrier(2), [start.Event(), start.Event()]
    runs = [
        start.Process(
            target=_stand,
            args=(homes[k], specs[k], uri, meet, done[1 - k] if last == k else None, done[k], locked),
        )
        for k in range(2)
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join(300)
    assert [run.exitcode for run in runs] == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("last", [None, 0, 1])
def test_of_two_promotions_at_once_the_better_one_is_champion(shelf, last):
    """With the lock; and without it, where both decide on the same champion and either is the last to set the alias."""
    name = f"two-{last}"
    promote(f"{name}/{shelf.add(name, 5.0)}", shelf.home)
    specs = [f"{name}/{shelf.add(name, nats)}" for nats in (4.0, 3.0)]
    _two_at_once([shelf.home] * 2, name, specs, locked=last is None, last=last)
    assert shelf.aliases(name)["champion"] == 3
    assert [shelf.tags(name, number)["gate"] == "champion" for number in (1, 2, 3)] == [False, False, True]


@contextmanager
def _postgres():
    servers = pytest.importorskip("tests.servers")
    with servers.postgres() as server:
        yield server.uri


@pytest.mark.slow
def test_two_hosts_that_share_a_postgresql_keep_promotions_apart(tmp_path, monkeypatch):
    with _postgres() as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        homes = [tmp_path / "one", tmp_path / "two"]  # each with a flock of its own
        for home in homes:
            home.mkdir()
        start = multiprocessing.get_context("spawn")
        inside, waiting = start.Event(), start.Event()
        holder = start.Process(target=_hold, args=(homes[0], uri, inside, 300))
        other = start.Process(target=_hold, args=(homes[1], uri, waiting, 0))
        holder.start()
        assert inside.wait(120)
        other.start()
        assert not waiting.wait(10), "two promotions at once"
        holder.kill()  # a lock is gone with its holder
        assert waiting.wait(120)
        other.join(60)
        shelf = Shelf(homes[0])
        promote(f"shared/{shelf.add('shared', 5.0)}", shelf.home)
        specs = [f"shared/{shelf.add('shared', nats)}" for nats in (3.0, 4.0)]
        _two_at_once(homes, "shared", specs, uri)
        assert shelf.aliases("shared")["champion"] == 2


def _hold(home, uri, inside, seconds):
    os.environ["MLFLOW_TRACKING_URI"] = uri
    with promotion.alone(home):
        inside.set()
        time.sleep(seconds)
