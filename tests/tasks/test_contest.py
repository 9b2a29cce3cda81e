"""Promotions that run at once, step by step in every order: the better one is champion. pytest"""

import itertools
import random
import threading

import pytest

from tasks.contest import contend


class Registry:
    """What MLflow can do: read and set, nothing in between. The smaller a version's loss, the better it is."""

    def __init__(self, losses, champion=None, tags=None):
        self.losses, self.alias, self.tags = losses, champion, dict(tags or {})

    def beats(self, version, champion):
        return champion is None or self.losses[version] < self.losses[champion]


class Board:
    """A promotion's view of the registry; every step of it waits until it is its turn."""

    def __init__(self, registry, turn):
        self.registry, self.turn, self.crowned = registry, turn, []

    def champion(self):
        self.turn()
        return self.registry.alias

    def standing(self):
        self.turn()
        return {version: tag == "champion" for version, tag in self.registry.tags.items() if tag}

    def stand(self, version):
        self.turn()
        self.registry.tags[version] = "contender"

    def beats(self, version, champion):
        return self.registry.beats(version, champion)

    def crown(self, version, champion, before):
        self.turn()
        self.registry.alias = version
        self.crowned.append((version, champion))

    def won(self, version):
        self.turn()
        self.registry.tags[version] = "champion"

    def lost(self, version, champion):
        self.turn()
        self.registry.tags[version] = ""

    replaced = lost


class Turns:
    """Lets threads go on one step at a time, as an order of names says; when it is at its end, whoever is left."""

    def __init__(self, names, order):
        self.condition, self.order, self.alive = threading.Condition(), list(order), set(names)
        self.waiting = set()

    def _next(self):
        while self.order and self.order[0] not in self.alive:
            self.order.pop(0)
        return self.order[0] if self.order else min(self.alive, default=None)

    def take(self, name):
        with self.condition:
            self.waiting.add(name)
            self.condition.notify_all()
            self.condition.wait_for(lambda: self._next() == name and self.alive <= self.waiting)
            self.waiting.discard(name)
            if self.order:
                self.order.pop(0)

    def done(self, name):
        with self.condition:
            self.alive.discard(name)
            self.waiting.discard(name)
            self.condition.notify_all()


def together(registry, versions, order):
    """Runs a promotion of each version; their steps come in the order of `order`."""
    turns, boards = Turns(versions, order), []

    def run(version):
        boards.append(Board(registry, lambda: turns.take(version)))
        board = boards[-1]
        try:
            contend(board, version)
        finally:
            turns.done(version)

    threads = [threading.Thread(target=run, args=(version,)) for version in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    return boards


STEPS = 12
"""Of a promotion, at most: stand, two looks, crown, a third look, and how it ended."""


def orders():
    """One promotion is held up at any step, until the other one has come to any step; and every fine mixture."""
    for one, other in ((2, 3), (3, 2)):
        for steps, within in itertools.product(range(STEPS), range(1, STEPS + 1)):
            yield [one] * steps + [other] * within + [one] * STEPS + [other] * STEPS
    for bits in itertools.product((2, 3), repeat=9):
        yield [who for who in bits for _ in range(2)]


@pytest.mark.parametrize("better", [2, 3])
@pytest.mark.parametrize("before", [None, 1])
def test_whatever_the_order_of_steps_the_better_of_two_is_champion(before, better):
    for order in orders():
        registry = Registry({1: 9.0, better: 1.0, 5 - better: 2.0}, before, {1: "champion"} if before else {})
        together(registry, (2, 3), order)
        assert registry.alias == better, order
        assert [version for version, tag in registry.tags.items() if tag] == [better], order


@pytest.mark.parametrize("seed", range(40))
def test_of_four_promotions_in_any_order_the_best_is_champion_and_only_it_says_so(seed):
    draw = random.Random(seed)
    versions = (2, 3, 4, 5)
    losses = {1: 9.0} | dict(zip(versions, draw.sample([1.0, 2.0, 3.0, 10.0], 4), strict=True))
    order = [draw.choice(versions) for _ in range(60)]
    registry = Registry(losses, 1, {1: "champion"})
    together(registry, versions, order)
    best = min(losses, key=losses.get)
    assert registry.alias == best
    assert [version for version, tag in registry.tags.items() if tag] == [best]


def alone(registry, version):
    board = Board(registry, lambda: None)
    return contend(board, version), board.crowned


def test_one_after_the_other_each_is_compared_with_the_champion_of_then():
    registry = Registry({1: 4.0, 2: 5.0, 3: 3.0})
    assert alone(registry, 1) == (1, [(1, None)])
    assert alone(registry, 2) == (1, [])
    assert alone(registry, 3) == (3, [(3, 1)])
    assert registry.tags == {1: "", 2: "", 3: "champion"}


def test_a_champion_that_a_person_chose_is_not_undone_by_who_was_champion_before():
    registry = Registry({1: 4.0, 2: 1.0, 3: 3.0, 4: 5.0}, champion=1, tags={1: "", 2: "champion"})
    assert alone(registry, 4) == (1, [])  # 2 would beat it, but somebody moved the alias away from 2
    registry = Registry({1: 4.0, 2: 1.0, 3: 3.0}, champion=1, tags={1: "", 2: "champion"})
    assert alone(registry, 3) == (3, [(3, 1)])


def test_who_was_killed_on_the_way_is_still_looked_at():
    registry = Registry({1: 4.0, 2: 1.0, 3: 3.0}, champion=1, tags={1: "champion", 2: "contender"})
    assert alone(registry, 3)[0] == 2


class Circle(Registry):
    """Each is better on a test set of its own."""

    def beats(self, version, champion):
        return version != champion


def test_a_rule_that_goes_round_in_a_circle_comes_to_an_end():
    for order in ([2, 3] * 40, [3, 2] * 40, [2, 2, 2, 3, 3, 3] * 12):
        registry = Circle({1: 1.0, 2: 1.0, 3: 1.0}, 1, {1: "champion"})
        together(registry, (2, 3), order)
        assert registry.alias in (2, 3)
