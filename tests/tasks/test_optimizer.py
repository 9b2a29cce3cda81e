"""Optimizers: who takes which parameter, the library's numbers, and state that survives bit for bit."""

import math
from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tasks import orthogonal
from tasks.encoder import EncoderConfig, MaskedLanguageModel, initialise
from tasks.errors import DataError, UsageError
from tasks.optimizer import Muon, OptimizerConfig, Optimizers, build

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
        optimizers.set_lr((step + 1) / 10)
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


def muon_pair(ours: list[nn.Parameter], theirs: list[nn.Parameter], steps: int = 3, **settings: Any) -> None:
    """Steps of our Muon and of the library's, with the same gradients."""
    generator = torch.Generator().manual_seed(1)
    pair = Muon(ours, **settings), torch.optim.Muon(theirs, **settings)
    for _ in range(steps):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        for one in pair:
            one.step()


def two_of(shapes: list[tuple[int, int]]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(shape, generator=generator) for shape in shapes]
    return [nn.Parameter(one.clone()) for one in drawn], [nn.Parameter(one.clone()) for one in drawn]


@pytest.mark.parametrize("adjustment", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov_momentum", [0.95, 0.0])
def test_our_muon_gives_the_bits_of_the_library(adjustment: str, nesterov_momentum: float) -> None:
    ours, theirs = two_of([(32, 32), (32, 48), (48, 32), (32, 32), (48, 32), (16, 64)])
    muon_pair(ours, theirs, lr=0.02, momentum=nesterov_momentum, weight_decay=0.1, adjust_lr_fn=adjustment)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_muon_of_large_matrices_is_the_librarys_to_a_rounding() -> None:
    # in stripes, the last of them incomplete; bit-equal where it was measured, but a CPU may choose kernels by shape
    ours, theirs = two_of([(530, 530), (530, 560), (560, 530)])
    before = [one.detach().clone() for one in theirs]
    muon_pair(ours, theirs, steps=1, lr=0.02, weight_decay=0.0)
    with torch.no_grad():
        for a, b, origin in zip(ours, theirs, before, strict=True):
            assert float((a - b).norm() / (b - origin).norm()) < 1e-2


def test_the_bits_of_muon_do_not_depend_on_the_number_of_threads() -> None:
    alone, shared = two_of([(256, 256)] * 5 + [(40, 64)] * 3 + [(64, 40)])
    generator = torch.Generator().manual_seed(2)
    gradients = [torch.randn(one.shape, generator=generator) for one in alone]
    for threads, parameters in ((1, alone), (2, shared)):
        torch.set_num_threads(threads)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        Muon(parameters, lr=0.02).step()
        assert torch.get_num_threads() == threads
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))


@given(st.lists(st.sampled_from([(8, 8), (300, 400), (8, 16), (1 << 10, 1 << 9)]), max_size=12))
def test_batches_hold_every_matrix_once_and_one_shape_each(shapes: list[tuple[int, int]]) -> None:
    matrices = [torch.empty(shape, device="meta") for shape in shapes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(orthogonal.BATCH, "meta", 1 << 18)
        found = orthogonal.batches(matrices)
    assert sorted(number for batch in found for number in batch) == list(range(len(shapes)))
    for batch in found:
        assert len({shapes[number] for number in batch}) == 1
        assert len(batch) == 1 or sum(matrices[number].numel() for number in batch) <= 1 << 18
    costs = [len(batch) * orthogonal.products(matrices[batch[0]].shape) for batch in found]
    assert costs == sorted(costs, reverse=True)


def test_clipping_scales_all_gradients_by_one_factor_and_returns_the_norm_before() -> None:
    model, optimizers = start("muon")
    parameters = list(model.parameters())[:-1]  # the last has no gradient
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 0.5)
    before = math.sqrt(sum(parameter.numel() for parameter in parameters)) / 2
    assert float(optimizers.clip(2 * before)) == pytest.approx(before)
    assert all(float(parameter.grad.max()) == 0.5 for parameter in parameters if parameter.grad is not None)
    assert float(optimizers.clip(before / 4)) == pytest.approx(before)
    assert all(float(p.grad.max()) == pytest.approx(0.125) for p in parameters if p.grad is not None)
    cast(Tensor, parameters[0].grad)[0, 0] = math.nan
    assert math.isnan(optimizers.clip(1.0))


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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kind", "lion"),
        ("adjust_lr_fn", "none"),
        ("muon_momentum", 1.0),
        ("adamw_beta2", -0.1),
        ("adamw_decay", -1.0),
        ("muon_rate", math.nan),
    ],
)
def test_a_setting_outside_its_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"{name}.*{value}"):
        OptimizerConfig(**{name: value})


def test_settings_reach_the_optimizers() -> None:
    config = OptimizerConfig(
        adjust_lr_fn="match_rms_adamw",
        muon_momentum=0.9,
        muon_decay=0.3,
        adamw_beta1=0.8,
        adamw_beta2=0.7,
        adamw_decay=0.2,
    )
    optimizers = build(MaskedLanguageModel(CONFIG), config).optimizers
    (muon,), (matrices, vectors) = optimizers["muon"].param_groups, optimizers["adamw"].param_groups
    assert (muon["adjust_lr_fn"], muon["momentum"], muon["weight_decay"]) == ("match_rms_adamw", 0.9, 0.3)
    assert [(g["betas"], g["weight_decay"], g["fused"]) for g in (matrices, vectors)] == [
        ((0.8, 0.7), 0.2, True),
        ((0.8, 0.7), 0.0, True),
    ]
