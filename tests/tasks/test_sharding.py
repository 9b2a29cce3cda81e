"""Several ranks against one device: the same weights, the same checkpoints. pytest tests/tasks/test_sharding.py"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tasks import sharding
from tasks.encoder import EncoderConfig, MaskedLanguageModel, Segments, initialise
from tasks.errors import DataError
from tasks.objective import Loss, masked_loss
from tasks.optimizer import Muon, OptimizerConfig, Optimizers, build, local
from tests.tasks import several_ranks

# Nothing divides by two ranks: vocabulary, width inside the mlp.
CONFIG = EncoderConfig(vocabulary_size=51, length=16, layers=2, width=32, heads=2, intermediate=45)
KINDS = ("adamw", "muon")
MICRO = 4
"""Micro-batches of a step; of two ranks each takes two."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Objective(nn.Module):
    def __init__(self, model: MaskedLanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, *batch: Tensor | Segments) -> Loss:
        return masked_loss(self.model, *batch)  # type: ignore[arg-type]


def start() -> Objective:
    model = MaskedLanguageModel(CONFIG)
    initialise(model, 0)
    with torch.no_grad():  # behind zeros gradients vanish, and Muon would make matrices of their rounding errors
        for block in model.encoder.layers:
            block.attention.output.weight.copy_(block.attention.query.weight.T)
            block.mlp.down.weight.copy_(block.mlp.up.weight.T)
    return Objective(model)


def optimizers_of(kind: str) -> OptimizerConfig:
    return OptimizerConfig(kind=kind, adamw_decay=0.1, muon_decay=0.1)


def micro_batch(step: int, number: int) -> tuple[tuple[Tensor, Segments, Tensor, Tensor, Tensor], int]:
    """One of a step's micro-batches and its |𝓜|: uneven, and none in those of the second rank at step 1."""
    generator = torch.Generator().manual_seed(100 * step + number)
    tokens_BL = torch.randint(5, 51, (3, 16), generator=generator)
    count = 0 if step == 1 and number >= MICRO // 2 else 2 + 3 * number
    masked_M = torch.randperm(48, generator=generator)[:12]
    weights_M = (torch.arange(12) < count).float()
    segments = Segments.from_ids(torch.arange(16).expand(3, 16) // 9, CONFIG.window)
    return (tokens_BL, segments, masked_M, tokens_BL.flatten()[masked_M], weights_M), count


def take_step(objective: Objective, optimizers: Optimizers, step: int, mine: range, limit: float = 0.5) -> float:
    optimizers.zero_grad()
    count = sum(micro_batch(step, number)[1] for number in range(MICRO))
    for number in mine:
        sharding.expect_more(objective, number != mine[-1])
        torch.autograd.backward(objective(*micro_batch(step, number)[0]).sum_nll / count)
    norm = float(optimizers.clip(limit))
    optimizers.step()
    return norm


def on_one_device(kind: str) -> tuple[Objective, Optimizers]:
    objective = start()
    return objective, build(objective.model, optimizers_of(kind))


def kept(objective: Objective, optimizers: Optimizers) -> dict[str, Tensor]:
    """A checkpoint, by the names of the model: on rank 0 only where there are several."""
    named = dict(objective.model.named_parameters())
    if dist.is_initialized():
        named = sharding.whole_tensors(sharding.named_slices(objective.model, objective))  # type: ignore[assignment]
    tensors = {f"model/{name}": value.detach().clone() for name, value in named.items()}
    return tensors | {f"optimizer/{name}": value.clone() for name, value in optimizers.state_tensors().items()}


def go_on(objective: Objective, optimizers: Optimizers, tensors: dict[str, Tensor]) -> None:
    parts = {
        part: {name.removeprefix(part): tensor for name, tensor in tensors.items() if name.startswith(part)}
        for part in ("model/", "optimizer/")
    }
    sharding.load_parameters(sharding.named_slices(objective.model, objective), parts["model/"])
    optimizers.load_state_tensors(parts["optimizer/"])


# What the ranks do: once for the whole file.


def sharded(kind: str) -> tuple[Objective, Optimizers]:
    objective = start()
    sharding.shard(objective, objective.model.encoder.layers, "cpu")
    return objective, sharding.build_sharded(objective.model, optimizers_of(kind))


def scenes(folder: Path) -> None:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    mine = range(MICRO)[rank * MICRO // ranks : (rank + 1) * MICRO // ranks]

    def keep(name: str, tensors: dict[str, Tensor]) -> None:
        assert bool(tensors) == (rank == 0)
        if rank == 0:
            save_file(tensors, folder / f"{name}-{ranks}.safetensors")

    for kind in KINDS:
        objective, optimizers = sharded(kind)
        keep(f"{kind}-initial", kept(objective, optimizers))
        norms = [take_step(objective, optimizers, step, mine) for step in range(2)]
        keep(f"{kind}-middle", kept(objective, optimizers) | ({"norms": torch.tensor(norms)} if rank == 0 else {}))
        for step in range(2, 4):
            take_step(objective, optimizers, step, mine)
        with torch.no_grad():  # a look at the validation set, which leaves the root's parameters whole
            objective(*micro_batch(9, 3)[0])
        keep(f"{kind}-end", kept(objective, optimizers))

        objective, optimizers = sharded(kind)
        go_on(objective, optimizers, load_file(folder / f"{kind}-one.safetensors"))
        keep(f"{kind}-copied", kept(objective, optimizers))
        for step in range(2, 4):
            take_step(objective, optimizers, step, mine)
        keep(f"{kind}-resumed", kept(objective, optimizers))
    for dtype in (torch.float32, torch.bfloat16):
        parts_add_up(mine, dtype)
    muon_of_ranks_is_muon()


def parts_add_up(mine: range, dtype: torch.dtype) -> None:
    """Gradients before clipping are the sum over all micro-batches, and stay at home until the last."""
    objective, _ = sharded("adamw")
    alone, _ = on_one_device("adamw")
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        for number in mine:
            assert all(parameter.grad is None for _, parameter in sharding.named_slices(objective.model, objective))
            sharding.expect_more(objective, number != mine[-1])
            torch.autograd.backward(objective(*micro_batch(0, number)[0]).sum_nll)
        for number in range(MICRO):
            torch.autograd.backward(alone(*micro_batch(0, number)[0]).sum_nll)
    for (name, part), whole in zip(objective.model.named_parameters(), alone.model.parameters(), strict=True):
        assert isinstance(part.grad, sharding.DTensor) and local(part).numel() < whole.numel()
        torch.testing.assert_close(part.grad.full_tensor(), whole.grad, rtol=1e-4, atol=1e-5, msg=name)


class Matrices(nn.Module):
    def __init__(self, drawn: list[Tensor]) -> None:
        super().__init__()
        self.of = nn.ParameterList(nn.Parameter(one.clone()) for one in drawn)


def muon_of_ranks_is_muon() -> None:
    """Bit for bit, whoever orthogonalised, given equal gradients: also with fewer batches or rows than ranks."""
    for shapes in ([(32, 32), (45, 32), (32, 45), (32, 32), (700, 520)], [(9, 5)], [(1, 7)]):
        generator = torch.Generator().manual_seed(1)
        drawn = [torch.randn(shape, generator=generator) for shape in shapes]
        alone, dealt, sliced = (Matrices(drawn) for _ in range(3))
        sharding.shard(sliced, [], "cpu")
        optimizers = Muon(alone.parameters()), sharding.DealtMuon(dealt.parameters()), sharding.ShardedMuon(sliced.of)
        for _ in range(2):
            for one, two, three in zip(alone.of, dealt.of, sliced.of, strict=True):
                one.grad = torch.randn(one.shape, generator=generator)
                two.grad = one.grad.clone()
                three.grad = torch.zeros_like(three)
                local(three.grad).copy_(sharding.part(one.grad, three))
            for optimizer in optimizers:
                optimizer.step()
        for one, two, three in zip(alone.of, dealt.of, sliced.of, strict=True):
            assert torch.equal(one, two) and torch.equal(one, three.full_tensor())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of checkpoints: of one device after two steps, and of two ranks."""
    made = tmp_path_factory.mktemp("ranks")
    torch.set_num_threads(1)
    for kind in KINDS:
        objective, optimizers = on_one_device(kind)
        for step in range(2):
            take_step(objective, optimizers, step, range(MICRO))
        save_file(kept(objective, optimizers), made / f"{kind}-one.safetensors")
    several_ranks.run(scenes, made)
    return made


def differences(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """By name the relative distance; the names must be the same."""
    assert found.keys() == expected.keys()
    assert all(found[name].shape == expected[name].shape for name in expected)
    return {n: float((found[n] - expected[n]).norm() / expected[n].norm().clamp(min=1e-6)) for n in expected}


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_begin_and_train_as_one_device_does(folder: Path, kind: str) -> None:
    # step 1 has no masked token on the second rank; clipping is at work in every step
    objective, optimizers = on_one_device(kind)
    initial = load_file(folder / f"{kind}-initial-2.safetensors")
    assert all(torch.equal(initial[name], value) for name, value in kept(objective, optimizers).items())
    norms = [take_step(objective, optimizers, step, range(MICRO)) for step in range(2)]
    middle = load_file(folder / f"{kind}-middle-2.safetensors")
    assert min(norms) > 0.5
    assert middle.pop("norms").tolist() == pytest.approx(norms, rel=1e-4)
    # Muon rounds to bfloat16 (2 ** -8): the last bit of a sum over ranks may turn one rounding; AdamW does not
    assert max(differences(middle, kept(objective, optimizers)).values()) < (1e-5 if kind == "adamw" else 3e-2)
    for step in range(2, 4):
        take_step(objective, optimizers, step, range(MICRO))
    end = load_file(folder / f"{kind}-end-2.safetensors")
    found = differences(end, kept(objective, optimizers))
    assert max(found.values()) < (1e-5 if kind == "adamw" else 3e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_is_the_same_whoever_reads_it(folder: Path, kind: str) -> None:
    one, copied = (load_file(folder / f"{kind}-{name}.safetensors") for name in ("one", "copied-2"))
    assert one.keys() == copied.keys()
    assert all(torch.equal(one[name], copied[name]) and one[name].dtype == copied[name].dtype for name in one)

    objective, optimizers = on_one_device(kind)
    undisturbed, resumed = (load_file(folder / f"{kind}-{name}-2.safetensors") for name in ("end", "resumed"))
    middle = load_file(folder / f"{kind}-middle-2.safetensors")
    go_on(objective, optimizers, {name: tensor for name, tensor in middle.items() if name != "norms"})
    for step in range(2, 4):
        take_step(objective, optimizers, step, range(MICRO))
    for found in (kept(objective, optimizers), resumed):
        assert max(differences(found, undisturbed).values()) < (1e-5 if kind == "adamw" else 3e-2)


def test_a_checkpoint_of_another_model_is_refused(folder: Path) -> None:
    objective, _ = on_one_device("adamw")
    named = list(objective.model.named_parameters())
    tensors = {name: parameter.detach().clone() for name, parameter in named}
    for wrong in (
        {**tensors, "prediction.bias": torch.zeros(50)},
        {n: t for n, t in tensors.items() if n != named[3][0]},
    ):
        with pytest.raises(DataError, match="checkpoint"):
            sharding.load_parameters(named, wrong)
