"""The gradient of a step: micro-batches and ranks summed, divided once by the step's Σ|𝓜|.

    fast    every rank takes its part of the rows, in micro-batches; DDP or FSDP2 sum over the ranks during the backward
            pass. The order of that sum depends on the number of ranks, and so do its last bits.
    exact   S logical shards of B/S rows, each a micro-batch of one shape with a gradient of its own; rank r of n takes
            r, r + n, r + 2n, …; all gradients are gathered, n at a time, and added in the order of the shards. The bits
            are those of one rank, for every n that divides S. That costs n + 2 gradients of memory.

Both sum; DDP would take the mean, so it is given a sum of its own. The step's Σ|𝓜| is known beforehand on every rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from .batches import Batch
from .errors import UsageError
from .keys import Domain, stream
from .meter import Stopwatch
from .objective import Loss
from .ranks import Ranks
from .sharding import expect_more

Flags = Callable[[], tuple[float, ...]]
"""What this rank has to say to the others, asked as late as can be; as many numbers from every rank."""
BatchesOf = Callable[[int, int], list[Batch]]
"""(part, parts) -> what this part takes of the step, of each strand (strand.py)."""


Sums = tuple[float, ...]
"""Σ −log p, and how many predictions are right."""


@dataclass(frozen=True)
class StepSums:
    """Over all micro-batches and ranks."""

    nll: float
    """Nats."""
    nlls: tuple[float, ...]
    """Of each strand."""
    corrects: tuple[int, ...]
    """Of each strand."""
    flags: tuple[float, ...]
    """The largest of all ranks."""


class Gradients:
    """Makes the gradient of one step after the other, in the parameters' `grad`."""

    def __init__(
        self, objective: nn.Module, loss: Callable[[nn.Module, Batch], Loss], ranks: Ranks, config: Mapping[str, Any]
    ) -> None:
        """
        objective   Objective, whole or in slices (sharding.py), or what torch.compile made of it
        loss        runs it on a micro-batch, with autocast
        config      settings of pretrain

        Raises UsageError where the logical shards cannot be dealt out evenly.
        """
        self.config, self.ranks, self.loss = config, ranks, loss
        self.exact: bool = config["reduction"] == "exact"
        if self.exact and config["logical_shards"] % ranks.count:
            raise UsageError(
                f"pretrain.logical_shards is {config['logical_shards']}, and there are {ranks.count} ranks; use a "
                "number of ranks that divides it (pretrain.devices, pretrain.nodes)."
            )
        self.parameters = [one for one in objective.parameters() if one.requires_grad]
        self.plain = objective
        """Knows nothing of other ranks, unless it is sliced."""
        self.sliced = any(isinstance(module, FSDPModule) for module in objective.modules())
        self.objective = objective if self.exact or self.sliced else summed_over_ranks(objective, ranks)

    def of(self, step: int, batches_of: BatchesOf, count: int, flags: Flags, watch: Stopwatch) -> StepSums:
        """The gradient of a step whose Σ|𝓜| is `count`; the sums of its losses; what every rank's flags come to."""
        part = self._exact if self.exact else self._fast
        sums = part(step, batches_of, max(count, 1), watch)
        nlls, corrects = zip(*(one for of_part in sums for one in of_part), strict=True)
        strands = len(sums[0])
        with watch("communication"):
            own = flags()
            said = self.ranks.numbers(*own, *nlls, *corrects)
        columns = list(zip(*said, strict=True))  # of each number, that of every rank
        most = tuple(map(max, columns[: len(own)]))
        losses, rights = columns[len(own) : len(own) + len(nlls)], columns[len(own) + len(nlls) :]
        # exact sums, so that the order, which is by rank, is no matter
        return StepSums(
            math.fsum(chain(*losses)),
            tuple(math.fsum(chain(*losses[strand::strands])) for strand in range(strands)),
            tuple(int(sum(chain(*rights[strand::strands]))) for strand in range(strands)),
            most,
        )

    def _fast(self, step: int, batches_of: BatchesOf, count: int, watch: Stopwatch) -> list[list[Sums]]:
        with watch("data"):
            batches = batches_of(self.ranks.rank, self.ranks.count)
            micros = [micro for batch in batches for micro in batch.split(rows_at_a_time(self.config, batch))]
            micros = self._as_many(micros)
        sums: list[list[Tensor]] = [[] for _ in batches]
        for number, micro in enumerate(micros):
            with self._accumulating(more=number < len(micros) - 1):
                seed_dropout(self.config, step, self.ranks.rank, number)
                sums[micro.strand].append(self._backward(micro, count, watch))
        return [[tuple(torch.stack(some).sum(dim=0).tolist()) for some in sums]]

    def _as_many(self, micros: list[Batch]) -> list[Batch]:
        """As many on every rank, where the model is sliced: each forward gathers slices from all ranks, and one rank
        may have a row more than another. What is added weighs nothing.
        """
        if not self.sliced or self.ranks.count == 1:
            return micros
        most = int(max(said[0] for said in self.ranks.numbers(len(micros))))
        last = micros[-1]
        nothing = replace(last, weights_M=torch.zeros_like(last.weights_M), count=0, tokens=0)
        return micros + [nothing] * (most - len(micros))

    def _exact(self, step: int, batches_of: BatchesOf, count: int, watch: Stopwatch) -> list[list[Sums]]:
        total: Tensor | None = None
        sums: list[list[Tensor]] = []
        shards = self.config["logical_shards"]
        for shard in range(self.ranks.rank, shards, self.ranks.count):
            with watch("data"):
                batches = batches_of(shard, shards)
            self._forget()
            sums.append([])
            for batch in batches:
                seed_dropout(self.config, step, shard, batch.strand)
                sums[-1].append(self._backward(batch, count, watch))
            with watch("communication"):
                for part in self.ranks.gather(self._flat()):
                    total = part.clone() if total is None else total.add_(part)
        assert total is not None
        self._unfold(total)
        return [[tuple(one) for one in of_shard] for of_shard in torch.stack(list(map(torch.stack, sums))).tolist()]

    def _backward(self, micro: Batch, count: int, watch: Stopwatch) -> Tensor:
        """Adds a micro-batch's gradient; its nll and correct predictions, float64 (2,)."""
        with watch("forward"):
            loss = self.loss(self.objective, micro)
        with watch("backward"):
            torch.autograd.backward(loss.sum_nll / count)
        return torch.stack((loss.sum_nll.detach().double(), loss.correct.double()))

    def _accumulating(self, more: bool) -> AbstractContextManager[Any]:
        """Gradients are exchanged once a step, with its last micro-batch."""
        expect_more(self.objective, more)
        if isinstance(self.objective, DistributedDataParallel) and more:
            return self.objective.no_sync()
        return nullcontext()

    def _forget(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def _flat(self) -> Tensor:
        zeros = (torch.zeros_like(one) if one.grad is None else one.grad for one in self.parameters)
        return torch.cat([gradient.reshape(-1) for gradient in zeros])

    def _unfold(self, total: Tensor) -> None:
        sizes = [parameter.numel() for parameter in self.parameters]
        for parameter, piece in zip(self.parameters, torch.split(total, sizes), strict=True):
            parameter.grad = piece.view_as(parameter)


def summed_over_ranks(objective: nn.Module, ranks: Ranks) -> nn.Module:
    """DDP with a sum in place of its mean; the module itself where there is one rank."""
    if ranks.count == 1:
        return objective
    devices = [ranks.device] if ranks.device.type == "cuda" else None
    parallel = DistributedDataParallel(objective, device_ids=devices, gradient_as_bucket_view=True)
    parallel.register_comm_hook(None, lambda _, bucket: _sum(bucket))  # torch checks annotations, a lambda has none
    return parallel


def _sum(bucket: Any) -> torch.futures.Future[Tensor]:
    """A bucket of gradients summed over ranks; with a hook of ours, DDP divides nothing."""
    future = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
    return future.then(lambda done: done.value()[0])  # type: ignore[no-any-return]


def rows_at_a_time(config: Mapping[str, Any], batch: Batch) -> int:
    """Rows of a micro-batch; 0 for all of them."""
    positions: int = config["micro_tokens"]
    return max(1, positions // batch.tokens_BL.shape[1]) if positions else 0


def seed_dropout(config: Mapping[str, Any], step: int, part: int, micro: int) -> None:
    """Dropout is a function of (seed, step, part of the step, micro-batch): a resume has the same, and no state."""
    if config["dropout"]:
        torch.manual_seed(stream(stream(config["seed"], Domain.DROPOUT, step), Domain.DROPOUT, part << 32 | micro))
