"""Who is champion, where several promotions may run at once and nothing can be compared and swapped.

MLflow can read an alias and set it, but not set it only if it still is what was read. On one host, and on one
PostgreSQL, a lock keeps promotions apart (promotion.py). Between hosts that share a server there is none, so a
promotion that has set the alias looks again, at the champion and at everyone who stood for it, until what stands is
what the rule says.

Why that ends with the right one. A version stands for champion (`stand`) before its promotion looks for the first
time, and still does when it has won; a promotion ends only after a look at which nobody who stands beats the champion.
Let w be the last time that the alias is set, by P, to A.

    P looks after w. It ends there, since w was the last: so nobody who stood by then beats A.
    Who stands only after that look has its first look after w, too. It sees A, sets nothing, and so does not beat A.

Hence nobody who stood beats A. And there is a last time: no promotion sets the same version over the same champion
twice. It does so only once where the rule is one order, as it is on one test set; where each is better on its own test
set, the two could replace each other for ever, and whoever comes last stays.

What has lost is told so, or it would stand for ever; what was killed on the way stands until it runs
again. A person may move the alias by hand, to a version that does not stand: who has won before is passed over then,
so that the choice is not undone. No promotion does that: it sets the alias to who stands, and a version has won only
when its own promotion has ended.
"""

from typing import Protocol


class Board(Protocol):
    """The registry, as far as a contest sees it; versions are numbers."""

    def champion(self) -> int | None:
        """Who holds the alias."""

    def standing(self) -> dict[int, bool]:
        """Who stands for champion, and whether it has won: its promotion has ended, and it was champion then."""

    def stand(self, version: int) -> None:
        """Its evidence is in place; it may be looked at."""

    def beats(self, version: int, champion: int | None) -> bool:
        """Does the rule prefer it?"""

    def crown(self, version: int, champion: int | None, before: int | None) -> None:
        """Writes down why, then sets the alias."""

    def won(self, version: int) -> None:
        """It is champion, and its promotion has ended."""

    def lost(self, version: int, champion: int | None) -> None:
        """It stood in vain: stands no more."""

    def replaced(self, version: int, champion: int | None) -> None:
        """It was champion: stands no more."""


def contend(board: Board, mine: int) -> int | None:
    """Lets a version stand for champion. Returns who is champion in the end.

    The module says why the better of two that run at once always is.
    """
    board.stand(mine)
    before, standing = board.champion(), board.standing()
    passed_over = set()
    if before is not None and before not in standing:  # set by hand: by the rule it would not be champion
        passed_over = {version for version, won in standing.items() if won}
    crowned: set[tuple[int, int | None]] = set()
    while True:
        champion, standing = board.champion(), board.standing()
        others = (standing.keys() - passed_over) | {mine}
        best = champion
        for version in sorted(others):
            if version != best and board.beats(version, best):
                best = version
        if best is None or best == champion or (best, champion) in crowned:
            break
        crowned.add((best, champion))
        board.crown(best, champion, before)
    gone = {version for version, won in standing.items() if won} | ({before} if before is not None else set())
    if champion == mine:
        board.won(mine)
        champion = board.champion()  # if another has followed since, it may not have seen that this one had won
        gone.add(mine)
    else:
        board.lost(mine, champion)
        gone.discard(mine)
    for version in sorted(gone - {champion}):
        board.replaced(version, champion)
    return champion
