"""A profile of a run made by hand: every figure is there and adds up. python -m pytest tests/tasks/test_profiling.py"""

import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from tasks import flops, meter, profiling
from tasks.encoder import EncoderConfig, MaskedLanguageModel, Segments, initialise
from tasks.meter import PARTS, Stopwatch
from tasks.profiling import PROFILED, WARMUP, profile

LENGTH, ROWS = 16, 8


class Rows:
    """Rows of two segments, specials and padding, every fourth position hidden."""

    def __init__(self, rows):
        ids_L = torch.tensor([0] * 9 + [1] * 5 + [-1] * 2)
        self.tokens_BL = torch.randint(5, 40, (rows, LENGTH))
        self.segment_ids_BL = ids_L.expand(rows, LENGTH)
        self.masked_M = torch.arange(1, rows * LENGTH, 4)
        self.count, self.tokens = len(self.masked_M), rows * 10

    def split(self, rows):
        size = len(self.tokens_BL)
        for first in range(0, size, rows or size):
            yield Rows(min(rows or size, size - first))


class Run:
    """A training run as `profile` asks for it."""

    def __init__(self, **config):
        self.config = {"dtype": "float32", "optimizer": "muon", "micro_tokens": 0, "batch_tokens": 128} | config
        self.device, self.watch = torch.device("cpu"), Stopwatch("cpu")
        self.sizes = EncoderConfig(vocabulary_size=40, length=LENGTH, layers=2, width=16, heads=2, intermediate=24)
        self.model = MaskedLanguageModel(self.sizes)
        initialise(self.model, 0)
        self.batch, self.tokens, self.steps = None, 0, 0
        self.seen = []

    def take_step(self):
        with self.watch("data"):
            self.batch = Rows(ROWS)
        for micro in self.batch.split(self.config["micro_tokens"] // LENGTH):
            with self.watch("forward"):
                loss = self.loss(micro)
            with self.watch("backward"):
                loss.sum_nll.backward()
        with self.watch("optimizer"), torch.no_grad():
            for parameter in self.model.parameters():
                parameter -= 1e-4 * parameter.grad
                parameter.grad = None
        self.tokens += self.batch.tokens
        self.steps += 1

    def loss(self, batch):
        self.seen.append(len(batch.tokens_BL))
        logits_MV = self.model(batch.tokens_BL, Segments.from_ids(batch.segment_ids_BL, 128), batch.masked_M)
        targets_M = batch.tokens_BL.flatten()[batch.masked_M]
        return SimpleNamespace(sum_nll=F.cross_entropy(logits_MV, targets_M, reduction="sum"))


@pytest.fixture(autouse=True)
def small_peak(monkeypatch):
    """One thread, too: two that wait for each other are slow on a busy machine."""
    monkeypatch.setattr(meter, "SIDES", {"cpu": (64, 128)})
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_profile_is_json_and_its_figures_add_up(capsys):
    run = Run()
    found = profile(run, steps=4)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert run.steps == WARMUP + 4 + PROFILED
    assert set(found["shares"]) == {*PARTS, "other"} and sum(found["shares"].values()) == pytest.approx(1.0)
    assert found["shares"]["communication"] == 0 and found["shares"]["backward"] > 0
    assert found["parameters"] == sum(one.numel() for one in run.model.parameters())
    assert found["tokens_per_second"] == pytest.approx(10 * ROWS / found["step_seconds"])
    assert found["flops"] == flops.as_dict(flops.step_flops(run.sizes, [9, 5] * ROWS, 32))
    assert found["mfu"] == pytest.approx(found["flops"]["total"] / found["step_seconds"] / found["matmul_peak_flops"])
    assert 0 < found["products"]["share"] <= 1 and 0 < found["products"]["at_best_share"] <= 1
    assert 0 <= found["waiting_for_core_share"] < 1
    assert found["bound_by"] in ("data", "launch", "compute", "memory", "communication")
    assert found["why"] and found["advice"]
    assert "profile" in capsys.readouterr().err


def test_positions_are_tokens_specials_and_padding():
    positions = profile(Run(), steps=1)["positions"]
    assert positions["per_step"] == ROWS * LENGTH and positions["masked"] == 32
    assert positions["tokens"] + positions["specials"] + positions["padding"] == pytest.approx(1.0)
    assert positions["tokens"] == 10 / 16 and positions["padding"] == pytest.approx(2 / 16)


@pytest.mark.parametrize(("micro_tokens", "whole", "part"), [(0, 8, 2), (64, 4, 1), (16, 1, 1)])
def test_the_probe_takes_a_part_of_a_micro_batch_as_the_step_does(micro_tokens, whole, part):
    run = Run(micro_tokens=micro_tokens)
    run.take_step()
    run.seen.clear()
    assert all(seconds > 0 for seconds in profiling._probe(run))
    assert run.seen == [part, whole] * (profiling.PROBES + 1)
    assert all(parameter.grad is None for parameter in run.model.parameters())


@pytest.mark.parametrize(("micro_tokens", "expected"), [(0, 3.0), (64, 3.0), (16, 3.0 / 4)])
def test_the_probe_scales_what_cannot_be_parted_evenly(micro_tokens, expected, monkeypatch):
    # One row has no part: it was timed whole, and a quarter of that stands for the quarter, with nothing fixed.
    monkeypatch.setattr(meter, "timed", lambda call, device: 3.0)
    run = Run(micro_tokens=micro_tokens)
    run.take_step()
    assert profiling._probe(run) == (pytest.approx(expected), 3.0)


def test_products_are_told_from_other_operations():
    for name in ("mm", "bmm", "addmm", "baddbmm", "_scaled_mm", "_scaled_dot_product_flash_attention_for_cpu"):
        assert profiling.PRODUCT.match(f"aten::{name}"), name
    for name in ("mul", "matmul", "linear", "add", "softmax", "copy_", "addcmul_"):  # matmul and linear call mm
        assert not profiling.PRODUCT.match(f"aten::{name}"), name
