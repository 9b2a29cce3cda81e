"""The processes that train one model together, and what they tell each other. One process is the plain case.

torchrun starts them (launch.py) and names each by its environment. On CPUs they talk by gloo, on CUDA devices by NCCL;
what is small and lies on the host always goes by gloo. All calls but `first` are collective: every rank makes them, in
the same order.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from .errors import InterruptedRun

_turns = itertools.count()
"""Numbers the calls of `together`."""


class PeerLost(InterruptedRun):
    """Another rank is gone; torchrun starts all of them again."""


@dataclass(frozen=True)
class Ranks:
    """This process among its peers."""

    device: torch.device
    rank: int = 0
    count: int = 1
    """How many ranks there are: the world size."""

    @property
    def first(self) -> bool:
        """Is this the rank that writes and speaks?"""
        return self.rank == 0

    @classmethod
    def join(cls, kind: str, timeout: float) -> Ranks:
        """What the environment says; where torchrun started it, waits for the others.

        Args:
            kind: cpu or cuda.
            timeout: seconds that a rank waits for another before it takes it for lost.
        Raises:
            PeerLost: the others did not come.
        """
        local = int(os.environ.get("LOCAL_RANK", 0))
        device = torch.device(kind, local) if kind == "cuda" else torch.device(kind)
        if kind == "cuda":
            torch.cuda.set_device(device)
        if "WORLD_SIZE" not in os.environ:
            return cls(device)
        backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
        with _peers():
            _meet(backend, timedelta(seconds=timeout))
        return cls(device, dist.get_rank(), dist.get_world_size())

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all ranks, by rank. Equal shapes."""
        if self.count == 1:
            return [tensor]
        parts = [torch.empty_like(tensor) for _ in range(self.count)]
        with _peers():
            dist.all_gather(parts, tensor)
        return parts

    def numbers(self, *values: float) -> list[list[float]]:
        """A few numbers of each rank, by rank, exactly."""
        return [one.tolist() for one in self.gather(torch.tensor(values, dtype=torch.float64))]

    def from_first(self, value: Any) -> Any:
        """What the first rank gives, for all: JSON. (torch's own way of sending objects is pickle.)"""
        if self.count == 1:
            return value
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        size = torch.tensor([len(text)])
        with _peers():
            dist.broadcast(size, 0)
            text = text if self.first else torch.empty(int(size), dtype=torch.uint8)
            dist.broadcast(text, 0)
        return json.loads(bytes(text.numpy()))

    def wait(self) -> None:
        """Until all ranks are here."""
        self.numbers(0.0)

    def together(self, seconds: float = 20.0) -> bool:
        """Has every rank come here within so many seconds? For ranks that an error took out of a step.

        Where all failed alike they may go on. Where one did not, it waits inside a step for a gradient that will not
        come; then none of the other calls would return before the timeout. This one asks torch's store, not the peers.
        """
        if self.count == 1:
            return True
        store, deadline = dist.distributed_c10d._get_default_store(), time.monotonic() + seconds
        name = f"maskmill/together/{next(_turns)}"
        here = store.add(name, 1)
        while here < self.count and time.monotonic() < deadline:
            time.sleep(0.02)
            here = store.add(name, 0)
        return bool(here >= self.count)

    def leave(self) -> None:
        """The end of a run that went well."""
        if self.count > 1:
            dist.destroy_process_group()


def _meet(backend: str, timeout: timedelta) -> None:
    """Join the process group by torchrun's store, under a name that is new after each restart.

    torch 2.13 takes the same names again: a rank then calls at the address of the one that was lost, and fails or hangs
    until the timeout (seen in most restarts).
    """
    given = os.environ
    count = int(given["WORLD_SIZE"])
    hosts = given.get("TORCHELASTIC_USE_AGENT_STORE") != str(True) and given["RANK"] == "0"
    store = TCPStore(given["MASTER_ADDR"], int(given["MASTER_PORT"]), count, hosts, timeout)
    attempt = f"maskmill/{given.get('TORCHELASTIC_RESTART_COUNT', 0)}/{count}"
    dist.init_process_group(
        backend, store=PrefixStore(attempt, store), rank=int(given["RANK"]), world_size=count, timeout=timeout
    )


@contextmanager
def _peers() -> Iterator[None]:
    """What torch says of a lost peer, as what it is."""
    try:
        yield
    except RuntimeError as error:
        raise PeerLost(f"pretrain: another rank was lost ({str(error).splitlines()[0][:200]}).") from error


def lost_peer(error: BaseException) -> bool:
    """Does this error of a backward pass, whose collectives nobody else sees, come from a lost peer?"""
    words = ("connection closed by peer", "connection reset", "gloo", "nccl", "process group", "timed out waiting")
    return isinstance(error, PeerLost) or (
        isinstance(error, RuntimeError)
        and dist.is_initialized()
        and (isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words))
    )
