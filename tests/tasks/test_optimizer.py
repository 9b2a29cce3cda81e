"""Optimizers and schedule: who takes which parameter, the library's numbers, and state that survives bit for bit."""

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tasks.encoder import EncoderConfig, MaskedLanguageModel, initialise
from tasks.errors import DataError, UsageError
from tasks.optimizer import Muon, OptimizerConfig, Optimizers, build, schedule

CONFIG = EncoderConfig(vocabulary_size=50, length=16, layers=2, width=32, heads=2, intermediate=48)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def start(kind: str) -> tuple[MaskedLanguageModel, Optimizers]:
    model = MaskedLanguageModel(CONFIG)
    initialise(model, 0)
    return model, build(model, OptimizerConfig(kind=kind, adamw_decay=0.1))


def steps(model: MaskedLanguageModel, optimizers: Optimizers, first: int, end: int) -> None:
    """Steps with gradients that are a function of the step's number."""
    for step in range(first, end):
        generator = torch.Generator().manual_seed(step)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizers.set_lr(schedule(step, 10, 2, 5))
        optimizers.step()


def weights(model: MaskedLanguageModel) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_every_parameter_is_taken_by_one_optimizer_and_muon_takes_the_hidden_matrices() -> None:
    model, optimizers = start("muon")
    taken = {kind: [p for g in one.param_groups for p in g["params"]] for kind, one in optimizers.optimizers.items()}
    everything = taken["muon"] + taken["adamw"]
    assert len(everything) == len(set(everything)) == len(list(model.parameters()))
    names = {parameter: name for name, parameter in model.named_parameters()}
    on_adamw = {names[parameter] for parameter in taken["adamw"]}
    assert all(p.ndim == 2 for p in taken["muon"])
    assert {n for n in on_adamw if "norm" not in n} == {"encoder.embedding.weight", "prediction.bias"}


def test_batched_muon_gives_the_bits_of_the_library() -> None:
    shapes = [(32, 32), (32, 48), (48, 32), (32, 32), (48, 32), (16, 64)]
    generator = torch.Generator().manual_seed(0)
    settings = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.1, "nesterov": True}
    ours = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    theirs = [torch.nn.Parameter(one.detach().clone()) for one in ours]
    pair = Muon(ours, **settings), torch.optim.Muon(theirs, adjust_lr_fn="original", **settings)
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        for one in pair:
            one.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_state_comes_back_bit_for_bit_and_training_goes_on_as_if_undisturbed(kind: str) -> None:
    model, optimizers = start(kind)
    steps(model, optimizers, 0, 6)
    undisturbed = weights(model)

    model, optimizers = start(kind)
    steps(model, optimizers, 0, 3)
    kept = {name: tensor.clone() for name, tensor in optimizers.state_tensors().items()}
    middle = weights(model)

    model, optimizers = start(kind)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), middle, strict=True):
            parameter.copy_(value)
    optimizers.load_state_tensors(kept)
    again = optimizers.state_tensors()
    assert again.keys() == kept.keys()
    assert all(torch.equal(again[name], kept[name]) and again[name].dtype == kept[name].dtype for name in kept)
    steps(model, optimizers, 3, 6)
    assert all(torch.equal(a, b) for a, b in zip(weights(model), undisturbed, strict=True))


def test_state_of_another_model_is_refused_by_name() -> None:
    model, optimizers = start("muon")
    assert optimizers.state_tensors() == {}
    steps(model, optimizers, 0, 1)
    state = optimizers.state_tensors()
    name = "muon/encoder.layers.1.mlp.up.weight/momentum_buffer"
    for wrong in (
        {**state, name: state[name][:3]},
        {**state, name.replace("layers.1", "layers.7"): state[name]},
        {**state, "lion/encoder.layers.1.mlp.up.weight/momentum_buffer": state[name]},
        {**state, "nonsense": state[name]},
        {key: value for key, value in state.items() if key != name},
    ):
        with pytest.raises(DataError, match="checkpoint"):
            optimizers.load_state_tensors(wrong)


def test_learning_rates_are_multiplied_from_what_was_configured() -> None:
    _, optimizers = start("muon")
    for multiplier in (0.5, 0.25):
        optimizers.set_lr(multiplier)
    rates = {kind: {g["lr"] for g in one.param_groups} for kind, one in optimizers.optimizers.items()}
    assert rates == {"muon": {0.02 * 0.25}, "adamw": {3e-3 * 0.25}}


@given(st.integers(1, 300), st.integers(0, 300), st.integers(0, 300))
def test_the_schedule_lies_in_0_to_1_and_rises_then_falls(total: int, warmup: int, decay: int) -> None:
    values = [schedule(step, total, warmup, decay) for step in range(total)]
    assert all(0 < value <= 1 for value in values)
    top = values.index(max(values))
    assert values[: top + 1] == sorted(values[: top + 1])
    assert values[top:] == sorted(values[top:], reverse=True)
    if warmup + decay < total:
        assert values[warmup : total - decay] == [1.0] * (total - decay - warmup)


def test_the_schedule_falls_as_one_minus_the_root() -> None:
    assert [schedule(step, 10, 3, 3) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert [schedule(step, 10, 3, 3) for step in (6, 7, 8, 9)] == [1.0, 0.5, 1 - math.sqrt(0.5), 1 - math.sqrt(0.75)]
    with pytest.raises(UsageError):
        schedule(10, 10, 3, 3)


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(UsageError, match="lion"):
        OptimizerConfig(kind="lion")
