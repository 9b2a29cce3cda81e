"""Training on several ranks with the model in slices (FSDP2), and Muon's work dealt out to them.

    shard            the rows of every parameter, gradient and moment over the ranks, block by block
    build_sharded    the optimizers of a sharded model
    build_dealt      the optimizers of a model that every rank holds whole (DDP)
    whole_tensors    what a checkpoint holds: whole tensors under the model's names, whatever the world was

Gradients are summed over the ranks, never averaged: the loss is divided by the step's Σ|𝓜| before its backward.
Muon orthogonalises whole matrices: each batch of them belongs to one rank, which gets the directions' rows from all
ranks (bfloat16, as the iteration takes them) and sends the rows of its result back. Batches do not depend on the number
of ranks, so neither do the bits of what a rank computes; only sums over ranks differ from one device's.

Suffixes: N matrices of one shape, R rows, C columns.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from .errors import DataError
from .optimizer import Muon, OptimizerConfig, Optimizers, build, local, move
from .orthogonal import batches, orthogonalise, products, spread

Dealt = list[list[list[int]]]
"""For each rank its batches, each the numbers of the matrices in it."""


def shard(objective: nn.Module, blocks: Iterable[nn.Module], kind: str) -> None:
    """Slice the parameters of `objective` over all ranks of the process group, in place.

    Args:
        objective: whole, on the host, filled with the same values on every rank; its forward makes the loss.
        blocks: modules inside it whose parameters are gathered together (and freed again before the next); all other
            parameters, the tied embedding too, belong to the root and stay gathered from forward to backward.
        kind: of device, "cpu" (gloo) or "cuda" (NCCL).
    Build the optimizers afterwards: the parameters are other objects. Under autocast weights stay float32, are
    gathered and reduced in float32, and are rounded where they are used, as on one device.
    """
    mesh = init_device_mesh(kind, (dist.get_world_size(),))
    for module in (*blocks, objective):
        sliced = fully_shard(module, mesh=mesh)
        sliced.set_gradient_divide_factor(1.0)  # a sum; the default is a mean
        sliced.set_force_sum_reduction_for_comms(True)  # else a factor is an operation that only NCCL knows
    objective.register_forward_pre_hook(_forget_casts)


def _forget_casts(*_: object) -> None:
    """Autocast keeps its casts of parameters until its context ends; gradients through those of an earlier forward are
    lost (seen with two micro-batches in one context: half of the gradient of some matrices was missing).
    """
    torch.clear_autocast_cache()


def expect_more(objective: nn.Module, more: bool) -> None:
    """Before each micro-batch: whether others of the same step follow. Ranks exchange gradients after the last only.

    Until then every rank holds its own gradients whole.
    """
    if isinstance(objective, FSDPModule):
        objective.set_requires_gradient_sync(not more)
        objective.set_is_last_backward(not more)


def whole_tensors(named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Copies of whole tensors on the host of rank 0, and nothing on the others. Every rank must call it."""
    found = {}
    for name, tensor in named:
        one = tensor.detach()
        whole = one.full_tensor() if isinstance(one, DTensor) else one  # so one tensor at a time is whole on a device
        if dist.get_rank() == 0:
            found[name] = whole.to("cpu", copy=True)
    return found


def named_slices(model: nn.Module, objective: nn.Module) -> list[tuple[str, Tensor]]:
    """The parameters of `model` inside a sharded objective, as slices: also after a forward without a backward."""
    for module in objective.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    return list(model.named_parameters())


@torch.no_grad()
def load_parameters(parameters: Iterable[tuple[str, Tensor]], tensors: Mapping[str, Tensor]) -> None:
    """Whole tensors -> parameters of any kind, bit for bit; every rank reads the same tensors and takes its slice.

    Raises DataError where a name or a shape does not fit.
    """
    for name, parameter in parameters:
        if name not in tensors or tensors[name].shape != parameter.shape:
            raise DataError(f"parameter {name} is not in the checkpoint as {tuple(parameter.shape)}: train again.")
        local(parameter).copy_(part(tensors[name], parameter))


def part(whole: Tensor, parameter: Tensor) -> Tensor:
    """What this rank holds of a whole tensor that is laid out as a parameter is; sharing its memory."""
    return whole[rows_of(dist.get_rank(), len(whole))] if isinstance(parameter, DTensor) and whole.ndim else whole


class ShardedOptimizers(Optimizers):
    """The optimizers of a sharded model."""

    def state_tensors(self) -> dict[str, Tensor]:
        """As for one device: whole tensors on the host of rank 0, and nothing on the others. Every rank must call."""
        return whole_tensors(super().state_tensors().items())

    def placed(self, value: Tensor, parameter: Tensor) -> Tensor:
        """A copy of this rank's slice of a whole piece of state, where its parameter is."""
        if not value.ndim:
            return super().placed(value, parameter)
        placed = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False)
        local(placed).copy_(part(value, parameter))
        return placed


class DealtMuon(Muon):
    """Muon where every rank holds all parameters, with equal gradients: each rank orthogonalises its share of them.

    Two ranks of one thread on one machine, gloo, a step: 152 -> 104 ms at 6 x 256, 1356 -> 779 ms at 3 x 768.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient; the bits of `Muon`. Every rank must call it."""
        for group in self.param_groups:
            if held := self.held(group):
                directions = [self.direction(parameter, group) for parameter in held]
                dealt = deal(held)
                x = [torch.stack([directions[number] for number in batch]) for batch in dealt[dist.get_rank()]]
                updates = spread(functools.partial(orthogonalise, group=group), x, held[0].device)
                for number, update in to_everyone(updates, dealt, held).items():
                    move(held[number], update, held[number].shape, group)


class ShardedMuon(Muon):
    """Muon on slices of rows: whole matrices are put together on the rank that orthogonalises them."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient. Every rank must call it."""
        for group in self.param_groups:
            if held := self.held(group):
                directions = [self.direction(parameter, group) for parameter in held]
                dealt = deal(held)
                x = to_owners(directions, dealt, held)
                updates = spread(functools.partial(orthogonalise, group=group), x, directions[0].device)
                for number, update in to_holders(updates, dealt, held).items():
                    move(local(held[number]), update, held[number].shape, group)


def deal(matrices: Sequence[Tensor]) -> Dealt:
    """For each rank its batches (see `batches`), the dearest first to who has the least: equal on every rank."""
    shares: Dealt = [[] for _ in range(dist.get_world_size())]
    costs = [0] * len(shares)
    for batch in batches(matrices):
        rank = costs.index(min(costs))
        shares[rank].append(batch)
        costs[rank] += len(batch) * products(matrices[batch[0]].shape)
    return shares


def rows_of(rank: int, rows: int) -> slice:
    """The rows of a matrix that a rank holds: ⌈rows / ranks⌉ of them, less or none at the end (as Shard(0) has it)."""
    each = -(-rows // dist.get_world_size())
    return slice(min(rank * each, rows), min((rank + 1) * each, rows))


def held_by(rank: int, shape: torch.Size) -> torch.Size:
    """Shape of a rank's slice of a matrix."""
    rows = rows_of(rank, shape[0])
    return torch.Size((rows.stop - rows.start, shape[1]))


def to_everyone(updates: list[Tensor], dealt: Dealt, held: Sequence[Tensor]) -> dict[int, Tensor]:
    """The whole updates of this rank's batches -> all of them, by number of the matrix, on every rank."""
    numbers = [[number for batch in share for number in batch] for share in dealt]
    size = max(sum(held[number].numel() for number in some) for some in numbers)  # an all-gather takes equal shares
    sent = torch.cat([*(update.flatten() for update in updates), spare(held[0], size)])[:size]
    everything = spare(held[0], size * len(dealt))
    dist.all_gather_single(everything, sent)
    found: dict[int, Tensor] = {}
    for some, flat in zip(numbers, everything.view(len(dealt), size), strict=True):
        found |= cut(flat, {number: held[number].shape for number in some})
    return found


def to_owners(slices: list[Tensor], dealt: Dealt, held: Sequence[Tensor]) -> list[Tensor]:
    """Every rank's rows of all matrices -> the whole matrices of this rank's batches, each (N, R, C)."""
    here = dist.get_rank()
    mine = [number for batch in dealt[here] for number in batch]
    out = [[slices[number] for batch in share for number in batch] for share in dealt]
    shapes = [{number: held_by(rank, held[number].shape) for number in mine} for rank in range(len(dealt))]
    found = exchange(out, shapes, held[0])
    return [torch.stack([torch.cat([part[n] for part in found]) for n in batch]) for batch in dealt[here]]


def to_holders(updates: list[Tensor], dealt: Dealt, held: Sequence[Tensor]) -> dict[int, Tensor]:
    """The whole updates of this rank's batches -> this rank's rows of all updates, by number of the matrix."""
    here = dist.get_rank()
    out = [[one[rows_of(rank, len(one))] for update in updates for one in update] for rank in range(len(dealt))]
    shapes = [{n: held_by(here, held[n].shape) for batch in share for n in batch} for share in dealt]
    return {number: piece for found in exchange(out, shapes, held[0]) for number, piece in found.items()}


def exchange(out: list[list[Tensor]], shapes: list[dict[int, torch.Size]], like: Tensor) -> list[dict[int, Tensor]]:
    """bfloat16 matrices for each rank -> those that each rank has for this one, of the `shapes` by number."""
    sent = torch.cat([spare(like, 0), *(piece.flatten() for pieces in out for piece in pieces)])
    sizes = [sum(shape.numel() for shape in some.values()) for some in shapes]
    received = spare(like, sum(sizes))
    dist.all_to_all_single(received, sent, sizes, [sum(piece.numel() for piece in pieces) for pieces in out])
    flats = torch.split(received, sizes)
    return [cut(flat, some) for flat, some in zip(flats, shapes, strict=True)]


def cut(flat: Tensor, shapes: Mapping[int, torch.Size]) -> dict[int, Tensor]:
    """The beginning of a flat tensor as matrices, one after the other."""
    sizes = [shape.numel() for shape in shapes.values()]
    pieces = torch.split(flat[: sum(sizes)], sizes)
    return {number: piece.view(shape) for (number, shape), piece in zip(shapes.items(), pieces, strict=True)}


def spare(like: Tensor, size: int) -> Tensor:
    """Room for `size` elements of updates, where `like` is."""
    return torch.zeros(size, dtype=torch.bfloat16, device=like.device)


def build_sharded(model: nn.Module, config: OptimizerConfig) -> Optimizers:
    """The optimizers of a model that `shard` has sliced."""
    return build(model, config, ShardedMuon, ShardedOptimizers)


def build_dealt(model: nn.Module, config: OptimizerConfig) -> Optimizers:
    """The optimizers of a model that every rank holds whole (DDP)."""
    return build(model, config, DealtMuon)
