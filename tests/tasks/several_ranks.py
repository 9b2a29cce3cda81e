"""Processes that train together, for tests: gloo on the loopback interface, one thread each."""

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing


def run(work: Callable[[Path], None], folder: Path, ranks: int = 2) -> None:
    """`work(folder)` on each of the ranks of a process group; what one of them raises is raised here, with its trace.

    `work` stands at the top of a module; it asks torch.distributed which rank it is, and leaves results in the folder.
    A rank that waits for another one longer than a minute raises. Starting takes about 3 s of each core.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.multiprocessing.spawn(_rank, (ranks, str(folder), work), nprocs=ranks)  # type: ignore[no-untyped-call]


def _rank(rank: int, ranks: int, folder: str, work: Callable[[Path], None]) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    store = f"file://{folder}/rendezvous-{ranks}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks, timeout=timedelta(minutes=1))
    work(Path(folder))
    dist.barrier()  # nobody leaves while another one still reads from it
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # on a busy machine a thread of gloo was once seen to abort an interpreter that was shutting down
