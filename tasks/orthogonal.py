"""Orthogonalisation for Muon: a matrix -> its approximate U V^T, by Newton-Schulz (Jordan et al. 2024).

Nearly all of an optimizer step is these products, so their arrangement matters. The bits are those of
`torch.optim.Muon` with one thread (a test compares them), for any number of threads here.

- On a CPU whole batches of matrices go to threads that use one thread each inside an operation, since a short product
  that two threads share waits for the slower one. A step at 6 x 256 on two idle cores: 96 ms by the library, 84 in
  batched products, 80 this way; beside busy neighbours 2855, 864 and 181 ms of CPU time.
- Matrices of one shape are taken together up to `BATCH` elements, which stay in a core's cache: 29 of 128 x 128 and
  128 x 256 take 8.4 ms, one by one 19.4 ms; 24 of 256 x 256 at once took 8 % longer than in fours.
- x x^T and its polynomial are symmetric. From a side of `STRIPES_FROM` on only the blocks up to the diagonal are
  computed, and mirrored. Of the time whole products take: 0.84 at 512 x 512, 0.82 at 768 x 768, 0.81 at 1152 x 768,
  0.78 at 1024 x 2624 in stripes of 128 (192 and 256 rows: equal to 2 % more); 0.98 at 384, 1.19 at 256.

Suffixes: N matrices of one shape, R rows, C columns, D the shorter of the two.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any, TypeVar

import torch
from torch import Tensor

BATCH = {"cpu": 1 << 18, "cuda": 1 << 25}
"""Elements orthogonalised together, at most, unless one matrix is larger."""
STRIPES_FROM = 512
"""On a CPU: shorter side of a matrix from which symmetric products are computed in stripes."""
STRIPE = 128
"""Rows of a stripe."""

Work = TypeVar("Work")
Result = TypeVar("Result")


def batches(matrices: Sequence[Tensor]) -> list[list[int]]:
    """Numbers of the matrices that are taken together: of one shape, at most `BATCH` elements, the dearest first.

    A function of shapes, order and kind of device alone: the same on every rank, for any number of ranks and threads.
    """
    by_shape: dict[torch.Size, list[int]] = defaultdict(list)
    for number, matrix in enumerate(matrices):
        by_shape[matrix.shape].append(number)
    found = []
    for shape, numbers in by_shape.items():
        size = max(1, BATCH.get(matrices[numbers[0]].device.type, BATCH["cuda"]) // max(1, shape.numel()))
        found += [numbers[at : at + size] for at in range(0, len(numbers), size)]
    return sorted(found, key=lambda numbers: (-len(numbers) * products(matrices[numbers[0]].shape), numbers))


def products(shape: torch.Size) -> int:
    """Multiplications of one iteration on a matrix (R, C): what it costs, up to a factor."""
    short, long = sorted(shape)
    return short * short * (2 * long + short)


def orthogonalise(x_NRC: Tensor, group: dict[str, Any]) -> Tensor:
    """(N, R, C) -> approximate U V^T of each, bfloat16: x <- a x + (b A + c A A) x with A = x x^T, `ns_steps` times.

    `group` is a parameter group of `torch.optim.Muon`: ns_coefficients, eps, ns_steps.
    """
    a, b, c = group["ns_coefficients"]
    x = x_NRC.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=group["eps"])
    one_by_one = x.device.type == "cpu" and x.shape[1] >= STRIPES_FROM
    iterate = _striped if one_by_one else _batched
    for _ in range(group["ns_steps"]):
        x = iterate(x, a, b, c)
    return x.mT if tall else x


def _batched(x: Tensor, a: float, b: float, c: float) -> Tensor:
    gram = x @ x.mT
    return torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)


def _striped(x: Tensor, a: float, b: float, c: float) -> Tensor:
    found = []
    for x_DC in x:
        gram_DD = symmetric(x_DC, x_DC.T)
        found.append(torch.addmm(x_DC, symmetric(gram_DD, gram_DD, gram_DD, b, c), x_DC, beta=a))
    return torch.stack(found) if len(found) > 1 else found[0][None]


def symmetric(x: Tensor, y: Tensor, plus_DD: Tensor | None = None, beta: float = 1.0, alpha: float = 1.0) -> Tensor:
    """alpha x y + beta plus (D, D), known to be symmetric: stripes of rows up to the diagonal, and their image."""
    product_DD = x.new_empty(len(x), len(x))
    for at in range(0, len(x), STRIPE):
        to = min(at + STRIPE, len(x))
        stripe = product_DD[at:to, :to]
        if plus_DD is None:
            torch.mm(x[at:to], y[:, :to], out=stripe)
        else:
            torch.addmm(plus_DD[at:to, :to], x[at:to], y[:, :to], beta=beta, alpha=alpha, out=stripe)
        product_DD[:at, at:to] = stripe[:, :at].T
    return product_DD


def spread(work: Callable[[Work], Result], pieces: Sequence[Work], device: torch.device) -> list[Result]:
    """`work` on every piece, results in order: on a CPU over as many threads as torch may use, one inside each."""
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    if threads == 1 or len(pieces) < 2:
        return [work(piece) for piece in pieces]
    return list(_workers(threads).map(work, pieces))


@functools.cache
def _workers(threads: int) -> ThreadPoolExecutor:
    """Threads for which torch uses no further threads; what the caller has set for itself is left as it is."""
    started = Barrier(threads)

    def alone() -> None:
        torch.get_num_threads()  # a thread takes the common setting at its first use, and would do so later otherwise
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(threads, "muon")
    for future in [pool.submit(alone) for _ in range(threads)]:
        future.result()
    torch.set_num_threads(threads)  # what threads yet to come will take
    return pool
