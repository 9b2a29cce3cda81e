"""Equations (3) to (5): summed at 𝓜 only, however the batch is cut, and spare slots are as if not there."""

import dataclasses
import math
import shutil
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tasks import objective, optimizer
from tasks.encoder import EncoderConfig, MaskedLanguageModel, Segments, initialise
from tasks.objective import Loss, Objective

CONFIG = EncoderConfig(vocabulary_size=301, length=24, layers=2, width=32, heads=2, intermediate=48, window=8)
ROWS, LENGTH = 6, 24


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_model() -> MaskedLanguageModel:
    model = MaskedLanguageModel(CONFIG)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model


def hidden() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Corrupted tokens, segment numbers, flat positions and targets: 0 to 9 hidden a row, so that counts are uneven."""
    generator = torch.Generator().manual_seed(2)
    tokens_BL = torch.randint(5, CONFIG.vocabulary_size, (ROWS, LENGTH), generator=generator)
    ids_BL = torch.where(torch.arange(LENGTH) < 15, 0, 1).expand(ROWS, LENGTH).contiguous()
    counts = (0, 9, 1, 4, 2, 7)
    chosen = [
        torch.randperm(LENGTH, generator=generator)[:n].sort().values + row * LENGTH for row, n in enumerate(counts)
    ]
    masked_M = torch.cat(chosen)
    targets_M = tokens_BL.flatten()[masked_M]
    tokens_BL = tokens_BL.flatten().index_fill(0, masked_M, CONFIG.mask_id).view(ROWS, LENGTH)
    return tokens_BL, ids_BL, masked_M, targets_M


def loss_of(
    model: MaskedLanguageModel,
    tokens_BL: Tensor,
    ids_BL: Tensor,
    masked: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
) -> Loss:
    weights = torch.ones(len(masked)) if weights is None else weights
    return Objective(model)(tokens_BL, Segments.from_ids(ids_BL, CONFIG.window), masked, targets, weights)


def gradients(model: MaskedLanguageModel) -> list[Tensor]:
    found = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    assert all(gradient is not None and gradient.any() for gradient in found)
    return [gradient for gradient in found if gradient is not None]


def apart(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest relative difference of a gradient."""
    return max(float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True))


def dense_loss(
    model: MaskedLanguageModel, tokens_BL: Tensor, ids_BL: Tensor, masked: Tensor, targets: Tensor
) -> tuple[Tensor, int]:
    """The usual form: logits at every position, labels with a sentinel."""
    labels = torch.full((ROWS * LENGTH,), -100).index_copy(0, masked, targets)
    logits = model.head(model.encoder(tokens_BL, Segments.from_ids(ids_BL, CONFIG.window))).flatten(0, 1)
    return F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum"), int((logits.argmax(-1) == labels).sum())


@pytest.mark.parametrize("way", ["by hand", "modules"])
@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_loss_and_gradient_at_the_masked_positions_are_the_dense_ones(
    chunk: int, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objective, "FEWEST_SLOTS", 5)
    monkeypatch.setitem(objective.CHUNK, "cpu", chunk)
    monkeypatch.setitem(objective.HELD, "cpu", chunk)
    model, batch = random_model(), hidden()
    model.encoder.compiled = way == "modules"
    dense, correct = dense_loss(model, *batch)
    dense.backward()
    expected = gradients(model)
    loss = loss_of(model, *batch)
    (loss.sum_nll * 1.0).backward()
    assert math.isclose(float(loss.sum_nll.detach()), float(dense.detach()), rel_tol=1e-6)
    assert int(loss.correct) == correct
    assert apart(gradients(model), expected) < 1e-5


def test_gradients_of_the_objective_are_those_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(3)
    h, e, b = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((5, 4), (7, 4), (7,)))
    targets, weights = torch.tensor([0, 6, 3, 3, 1]), torch.tensor([1.0, 1, 0, 1, 1], dtype=torch.float64)

    def summed(h: Tensor, e: Tensor, b: Tensor) -> Tensor:
        return (F.cross_entropy(h @ e.T + b, targets, reduction="none") * weights).sum()

    ours = [t.float().requires_grad_() for t in (h, e, b)]
    nll, _ = objective.SummedCrossEntropy.apply(*ours, targets, weights.float(), True)
    (3 * nll).backward()
    exact = torch.autograd.functional.jacobian(summed, (h, e, b))
    for mine, true in zip(ours, exact, strict=True):
        assert mine.grad is not None
        assert torch.allclose(mine.grad.double(), 3 * true, atol=1e-5)


def test_micro_batches_with_uneven_counts_add_up_to_the_big_batch() -> None:
    model, (tokens_BL, ids_BL, masked, targets) = random_model(), hidden()
    (loss_of(model, tokens_BL, ids_BL, masked, targets).sum_nll / len(masked)).backward()
    whole = gradients(model)
    for first, end in ((0, 1), (1, 2), (2, 6)):  # of 0, 9 and 14 hidden positions
        here = (masked >= first * LENGTH) & (masked < end * LENGTH)
        part = loss_of(model, tokens_BL[first:end], ids_BL[first:end], masked[here] - first * LENGTH, targets[here])
        (part.sum_nll / len(masked)).backward()
    assert apart(gradients(model), whole) < 1e-5


@pytest.mark.parametrize("autocast", [False, True])
def test_spare_slots_change_neither_loss_nor_any_bit_of_a_gradient(autocast: bool) -> None:
    model, (tokens_BL, ids_BL, masked, targets) = random_model(), hidden()
    count, capacity = len(masked), ROWS * LENGTH * 3 // 10
    weights = (torch.arange(capacity) < count).float()
    found = []
    for spare in (0, 17, ROWS * LENGTH - 1):
        slots = F.pad(masked, (0, capacity - count), value=spare), F.pad(targets, (0, capacity - count), value=spare)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = loss_of(model, tokens_BL, ids_BL, *slots, weights)
        loss.sum_nll.backward()
        found.append((float(loss.sum_nll.detach()), float(loss.correct), gradients(model)))
    for nll, correct, gradient in found[1:]:
        assert (nll, correct) == found[0][:2]
        assert all(torch.equal(a, b) for a, b in zip(gradient, found[0][2], strict=True))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        alone = loss_of(model, tokens_BL, ids_BL, masked, targets)
    alone.sum_nll.backward()
    assert math.isclose(float(alone.sum_nll.detach()), found[0][0], rel_tol=1e-6)
    assert apart(gradients(model), found[0][2]) < (1e-2 if autocast else 1e-6)


def test_a_target_of_no_probability_has_a_large_loss_and_not_an_infinite_one() -> None:
    h, e = torch.tensor([[300.0, 0.0]]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    ones = torch.ones(1)
    nll, correct = objective.SummedCrossEntropy.apply(h, e, torch.zeros(2), torch.tensor([1]), ones, False)
    assert (float(nll), float(correct)) == (600.0, 0.0)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
def test_the_compiled_objective_is_the_objective_in_one_graph() -> None:
    model, (tokens_BL, ids_BL, masked, targets) = random_model(), hidden()
    given = tokens_BL, Segments.from_ids(ids_BL, CONFIG.window), masked, targets, torch.ones(len(masked))
    loss = Objective(model)(*given)
    loss.sum_nll.backward()
    expected = gradients(model)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = objective.compile_objective(Objective(model))
    for _ in range(2):
        again = compiled(*given)
        again.sum_nll.backward()
        assert math.isclose(float(again.sum_nll.detach()), float(loss.sum_nll.detach()), rel_tol=1e-6)
        assert apart(gradients(model), expected) < 1e-5
    assert not torch._dynamo.utils.counters["graph_break"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_the_objective_is_not_compiled_where_shapes_change_with_the_batch() -> None:
    one = Objective(MaskedLanguageModel(dataclasses.replace(CONFIG, length=512)))
    assert objective.compile_objective(one) is one


def test_nothing_hidden_is_a_loss_of_zero_and_not_a_nan() -> None:
    model, (tokens_BL, ids_BL, masked, targets) = random_model(), hidden()
    loss = loss_of(model, tokens_BL, ids_BL, masked[:0], targets[:0])
    loss.sum_nll.backward()
    assert (float(loss.sum_nll.detach()), float(loss.correct)) == (0.0, 0.0)
    assert not any(p.grad is not None and p.grad.any() for p in model.parameters())


def test_the_same_step_gives_the_same_bits() -> None:
    found = []
    for _ in range(2):
        model = random_model()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, *hidden())
        loss.sum_nll.backward()
        found.append(gradients(model))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_autocast_keeps_the_loss_in_float32() -> None:
    model, batch = random_model(), hidden()
    with torch.no_grad():
        exact = loss_of(model, *batch).sum_nll
        with torch.autocast("cpu", torch.bfloat16):
            near = loss_of(model, *batch).sum_nll
    assert near.dtype == torch.float32
    assert math.isclose(float(near), float(exact), rel_tol=0.01)


def test_the_first_loss_is_log_v_and_with_the_bias_the_unigram_cross_entropy() -> None:
    counts = np.zeros(CONFIG.vocabulary_size, dtype=np.int64)
    counts[5:] = 100_000 / np.arange(1, CONFIG.vocabulary_size - 4)  # Zipf
    share = torch.from_numpy(counts / counts.sum())
    generator = torch.Generator().manual_seed(4)
    tokens_BL = torch.multinomial(share, 400 * LENGTH, replacement=True, generator=generator).view(400, LENGTH)
    ids_BL, masked = torch.zeros_like(tokens_BL), torch.arange(0, 400 * LENGTH, 3)
    targets = tokens_BL.flatten()[masked]
    corrupted = tokens_BL.flatten().index_fill(0, masked, CONFIG.mask_id).view_as(tokens_BL)
    entropy = float(-(share[5:] * share[5:].log()).sum())
    for known, expected in ((None, math.log(CONFIG.vocabulary_size)), (counts, entropy)):
        model = MaskedLanguageModel(CONFIG)
        initialise(model, 0, known)
        with torch.no_grad():
            first = float(loss_of(model, corrupted, ids_BL, masked, targets).sum_nll) / len(masked)
        assert math.isclose(first, expected, rel_tol=0.02)


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_a_tiny_batch_overfits(kind: str) -> None:
    model, batch = MaskedLanguageModel(CONFIG), hidden()
    initialise(model, 0)
    optimizers = optimizer.build(model, optimizer.OptimizerConfig(kind=kind))
    for _ in range(250):
        optimizers.zero_grad()
        loss = loss_of(model, *batch)
        (loss.sum_nll / len(batch[2])).backward()
        optimizers.step()
    assert float(loss.sum_nll.detach()) / len(batch[2]) < 0.1
    assert int(loss.correct) == len(batch[2])
