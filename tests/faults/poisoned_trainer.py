"""A training process some of whose batches are poisoned: `python -m tests.faults.poisoned_trainer JOB.json`.

POISON in the environment is JSON: the "steps", what their losses are multiplied by ("by": nan, inf or a number), and,
for one rank only, which "rank".
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from tasks import trainer


def _times(loss: Any, by: float) -> Any:
    return loss._replace(sum_nll=loss.sum_nll * by)


def poison(steps: list[int], by: str, rank: int | None = None) -> None:
    """From now on the losses of these steps go wrong, and their gradients with them."""
    from tasks.gradients import Gradients

    of, backward = Gradients.of, Gradients._backward
    at = [0]

    def counted(self: Gradients, number: int, *arguments: Any) -> Any:
        at[0] = number + 1
        return of(self, number, *arguments)

    def poisoned(self: Gradients, *arguments: Any) -> Any:
        if at[0] not in steps or rank not in (None, self.ranks.rank):
            return backward(self, *arguments)
        loss = self.loss
        self.loss = lambda *given: _times(loss(*given), float(by))
        try:
            return backward(self, *arguments)
        finally:
            self.loss = loss

    Gradients.of = counted  # type: ignore[method-assign]
    Gradients._backward = poisoned  # type: ignore[method-assign]


def main() -> int:
    run = trainer.run

    def patched(job: dict[str, Any], several: bool) -> dict[str, Any] | None:
        poison(**json.loads(os.environ["POISON"]))
        return run(job, several)

    trainer.run = patched
    return trainer.main(Path(sys.argv[1]))


if __name__ == "__main__":
    sys.exit(main())
