"""A training process that fails in the middle of a step: `python -m tests.tasks.failing_trainer JOB.json`, for tests.

FAIL in the environment is JSON: which "rank" fails, at which "step", and with what: the name of an "error", or "kill".
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tasks import trainer


def error_of(name: str) -> Exception:
    import torch

    known = {
        "TypeError": TypeError("a bug of ours"),
        "memory": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        "device": torch.AcceleratorError("CUDA error: unspecified launch failure\nand more"),
        "compiler": torch._dynamo.exc.TorchRuntimeError("no code for this operation"),
    }
    return known[name]


def fail(rank: int, step: int, error: str) -> None:
    """From now on a backward pass of that rank and step fails: the others are then waiting for its gradient."""
    from tasks.gradients import Gradients

    of, backward = Gradients.of, Gradients._backward
    at = [0]

    def counted(self: Gradients, number: int, *arguments: Any) -> Any:
        at[0] = number + 1
        return of(self, number, *arguments)

    def failing(self: Gradients, *arguments: Any) -> Any:
        if (self.ranks.rank, at[0]) == (rank, step):
            print(f"fails at {time.time()}", file=sys.stderr, flush=True)
            if error == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise error_of(error)
        return backward(self, *arguments)

    Gradients.of = counted  # type: ignore[method-assign]
    Gradients._backward = failing  # type: ignore[method-assign]


def main() -> int:
    run = trainer.run

    def patched(job: dict[str, Any], several: bool) -> dict[str, Any] | None:
        fail(**json.loads(os.environ["FAIL"]))
        return run(job, several)

    trainer.run = patched
    return trainer.main(Path(sys.argv[1]))


if __name__ == "__main__":
    sys.exit(main())
