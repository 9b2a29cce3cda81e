"""The optimizers.

Muon (Jordan et al. 2024; Liu et al. 2025, arXiv 2502.16982) on every matrix inside the blocks and the head's dense
matrix; AdamW (Loshchilov and Hutter 2019) on the embedding (tied to the decoder), the norms and the decoder bias.
Or AdamW on all.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from .errors import DataError, UsageError
from .orthogonal import batches, orthogonalise, spread


@dataclass(frozen=True)
class OptimizerConfig:
    kind: str = "muon"
    """"muon" (with AdamW on what is not a hidden matrix) or "adamw"."""
    muon_rate: float = 0.02
    """Learning rate of Muon, before the adjustment to the matrix's shape."""
    adjust_lr_fn: str = "original"
    """Muon's rate per matrix, as the library names it. "original": times sqrt(max(1, rows / columns)) (Jordan et al.
    2024). "match_rms_adamw": times 0.2 sqrt(max(rows, columns)), so that AdamW's rate and decay fit (Liu et al. 2025).
    """
    muon_momentum: float = 0.95
    """Nesterov momentum of Muon."""
    muon_decay: float = 0.01
    """Decoupled weight decay of Muon: each step multiplies a matrix by 1 - rate * decay, the rate not adjusted."""
    adamw_rate: float = 3e-3
    """Learning rate of AdamW."""
    adamw_beta1: float = 0.9
    """Decay of AdamW's first moment."""
    adamw_beta2: float = 0.95
    """Decay of AdamW's second moment."""
    adamw_eps: float = 1e-8
    """Added to the root of AdamW's second moment."""
    adamw_decay: float = 0.0
    """Decoupled weight decay of AdamW, on matrices only."""

    def __post_init__(self) -> None:
        for name, value, known in (
            ("kind", self.kind, ("muon", "adamw")),
            ("adjust_lr_fn", self.adjust_lr_fn, ("original", "match_rms_adamw")),
        ):
            if value not in known:
                raise UsageError(f'optimizer {name} "{value}" is unknown: choose "{known[0]}" or "{known[1]}".')
        for name in ("muon_momentum", "adamw_beta1", "adamw_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"optimizer {name} {getattr(self, name)} is not in [0, 1): correct the recipe.")
        for name in ("muon_rate", "muon_decay", "adamw_rate", "adamw_eps", "adamw_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"optimizer {name} {getattr(self, name)} is not 0 or more: correct the recipe.")


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon takes it: a matrix that maps hidden states to hidden states, so neither embedding nor means."""
    outside = ("encoder.embedding.", "encoder.payload.", "prediction.mean.")
    return parameter.ndim == 2 and not name.removeprefix("beside.").startswith(outside)


class Muon(torch.optim.Muon):
    """`torch.optim.Muon` with its products arranged otherwise (`orthogonal`): the same bits (a test compares them)."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            held = self.held(group)
            if held:
                work = functools.partial(self._update, group)
                spread(work, [[held[number] for number in batch] for batch in batches(held)], held[0].device)

    @torch.no_grad()  # a thread's own setting
    def _update(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        directions_NRC = torch.stack([self.direction(parameter, group) for parameter in parameters])
        for parameter, update_RC in zip(parameters, orthogonalise(directions_NRC, group), strict=True):
            move(parameter, update_RC, parameter.shape, group)

    def held(self, group: dict[str, Any]) -> list[Tensor]:
        """The parameters of a group that have a gradient, each with its momentum, at first 0."""
        found = [parameter for parameter in group["params"] if parameter.grad is not None]
        for parameter in found:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter.grad)
        return found

    def direction(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        """Nesterov momentum, in bfloat16: m <- mu m + (1 - mu) g, then (1 - mu) g + mu m."""
        gradient, momentum = local(cast(Tensor, parameter.grad)), local(self.state[parameter]["momentum_buffer"])
        return gradient.lerp(momentum.lerp_(gradient, 1 - group["momentum"]), group["momentum"]).bfloat16()


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, sharing its memory; any other tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def move(parameter: Tensor, update: Tensor, shape: torch.Size, group: dict[str, Any]) -> None:
    """w <- (1 - rate * decay) w - adjusted rate * update, for a matrix of `shape` or some of its rows."""
    rows, columns = shape
    if group["adjust_lr_fn"] == "match_rms_adamw":
        rate = group["lr"] * (0.2 * math.sqrt(max(rows, columns)))
    else:
        rate = group["lr"] * math.sqrt(max(1.0, rows / columns))
    parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-rate)


class Optimizers:
    """The optimizers of one model, stepped together. State is named tensors, so that a checkpoint needs no pickle."""

    def __init__(self, model: nn.Module, optimizers: dict[str, torch.optim.Optimizer]) -> None:
        self.optimizers = optimizers
        self._names = {parameter: name for name, parameter in model.named_parameters()}
        self._rates = {name: [group["lr"] for group in one.param_groups] for name, one in optimizers.items()}

    def step(self) -> None:
        """One step of each."""
        for optimizer in self.optimizers.values():
            optimizer.step()

    def clip(self, limit: float) -> Tensor:
        """Scale all gradients by min(1, limit / (norm + 1e-6)); returns their common norm before that, a scalar.

        Both take 1 to 2 ms at 6 x 256 and 25 ms at 12 x 768, 0.1 % of a step: not worth folding into the updates.
        """
        gradients = [parameter.grad for parameter in self._names if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        torch.nn.utils.clip_grads_with_norm_(self._names, limit, norm)
        return norm

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)

    def set_lr(self, multiplier: float) -> None:
        """Every learning rate = its configured value times `multiplier` (of the timeline)."""
        for name, optimizer in self.optimizers.items():
            for group, rate in zip(optimizer.param_groups, self._rates[name], strict=True):
                group["lr"] = rate * multiplier

    def state_tensors(self) -> dict[str, Tensor]:
        """All state, as "optimizer/parameter/slot" -> tensor (not copied). Empty before the first step."""
        return {
            f"{kind}/{self._names[parameter]}/{slot}": value
            for kind, optimizer in self.optimizers.items()
            for group in optimizer.param_groups
            for parameter in group["params"]
            for slot, value in sorted(optimizer.state.get(parameter, {}).items())
        }

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `state_tensors` gave, bit for bit. DataError where a name or shape does not fit the model."""
        parameters = {name: parameter for parameter, name in self._names.items()}
        for optimizer in self.optimizers.values():
            optimizer.state.clear()
        for path, value in tensors.items():
            kind, _, rest = path.partition("/")
            name, _, slot = rest.partition("/")
            parameter = parameters.get(name)
            if kind not in self.optimizers or parameter is None or (value.ndim and value.shape != parameter.shape):
                raise DataError(f"optimizer state {path} does not fit this model: remove the checkpoint, train again.")
            self.optimizers[kind].state[parameter][slot] = self.placed(value, parameter)
        held = {parameter for optimizer in self.optimizers.values() for parameter in optimizer.state}
        if tensors and (lost := [name for name, parameter in parameters.items() if parameter not in held]):
            raise DataError(f"optimizer state of {lost[0]} is missing: remove the checkpoint, train again.")

    def placed(self, value: Tensor, parameter: Tensor) -> Tensor:
        """A copy of a piece of state, where its parameter is."""
        return value.detach().clone().to(parameter.device)


def build(
    model: nn.Module, config: OptimizerConfig, matrices: type[Muon] = Muon, together: type[Optimizers] = Optimizers
) -> Optimizers:
    """The optimizers of `model`; every parameter belongs to exactly one. Other classes serve several ranks."""
    named = list(model.named_parameters())
    hidden = [p for name, p in named if config.kind == "muon" and is_hidden_matrix(name, p)]
    taken = set(hidden)
    rest = [p for _, p in named if p not in taken]
    optimizers: dict[str, torch.optim.Optimizer] = {}
    if hidden:
        optimizers["muon"] = matrices(
            hidden,
            lr=config.muon_rate,
            momentum=config.muon_momentum,
            weight_decay=config.muon_decay,
            nesterov=True,
            adjust_lr_fn=config.adjust_lr_fn,
        )
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.adamw_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizers["adamw"] = torch.optim.AdamW(
        groups, lr=config.adamw_rate, betas=(config.adamw_beta1, config.adamw_beta2), eps=config.adamw_eps, fused=True
    )
    return together(model, optimizers)
