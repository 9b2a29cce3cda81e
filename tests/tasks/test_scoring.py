"""What is read off logits: losses, ranks, confidence. pytest tests/tasks/test_scoring.py"""

import math

import numpy as np
import pytest
import torch

from tasks import scoring
from tasks.batches import ShardReader
from tasks.scoring import (
    TOP,
    answers,
    constant_scorer,
    frozen_batches,
    model_scorer,
    score,
    target_ranks,
    unigram_scorer,
    untrained_model,
    untrained_scorer,
)
from tests.tasks import handmade

SIZES = {"vocabulary_size": 61, "length": 32, "layers": 3, "width": 32, "heads": 2, "intermediate": 48}


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    from tasks.artifacts import Store

    return ShardReader(handmade.shards(Store(tmp_path_factory.mktemp("store"))), "test")


def random(rows: int, size: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, size, generator=generator) * 4, torch.randint(size, (rows,), generator=generator)


def slow_rank(logits: torch.Tensor, target: int) -> int:
    order = sorted(range(len(logits)), key=lambda number: (-float(logits[number]), number))
    return order.index(target)


def test_uniform_logits_score_exactly_ln_v(reader):
    def uniform(tokens_BL, segment_ids_BL, masked_M):
        return torch.zeros(len(masked_M), 61)

    scorers = {"uniform": uniform, "constant": constant_scorer(torch.zeros(61))}
    for tally in score(scorers, frozen_batches(reader, np.arange(reader.rows), "0.15", 8), lambda _: None).values():
        assert tally.masked > 0
        assert tally.metrics()["masked_cross_entropy"] == pytest.approx(math.log(61), abs=1e-12)
        assert tally.metrics()["perplexity"] == pytest.approx(61, rel=1e-12)


@pytest.mark.parametrize("size", [8, 61, 4096])
def test_answers_are_those_of_a_softmax_and_a_sort(size):
    logits, targets = random(9000 // size, size)
    found = answers(logits, targets)
    p = logits.double().softmax(dim=1)
    assert found.nll_M == pytest.approx(-p[torch.arange(len(p)), targets].log().numpy(), abs=1e-5)
    assert found.sure_M == pytest.approx(p.amax(dim=1).numpy(), abs=1e-6)
    assert found.rank_M.tolist() == [slow_rank(row, int(target)) for row, target in zip(logits, targets)]


def test_ranks_break_ties_by_the_lower_id_and_are_exact_below_the_top():
    logits = torch.tensor([[1.0, 2.0, 2.0, 0.0], [3.0, 1.0, 1.0, 1.0]])
    assert target_ranks(logits, torch.tensor([2, 3])).tolist() == [1, 3]
    assert target_ranks(logits, logits.argmax(dim=1)).tolist() == [0, 0]
    tied, targets = random(300, 61)
    tied = tied.round()
    expected = np.array([slow_rank(row, int(target)) for row, target in zip(tied, targets)])
    assert (target_ranks(tied, targets) == expected).all()
    rough = answers(tied, targets).rank_M
    assert ((rough < TOP) == (expected < TOP)).all() and (rough[rough < TOP] == expected[rough < TOP]).all()


def test_how_much_is_read_at_a_time_does_not_matter(monkeypatch):
    logits, targets = random(100, 61)
    whole = answers(logits, targets)
    monkeypatch.setattr(scoring, "AT_ONCE", 200)
    parts = answers(logits, targets)
    assert (parts.nll_M == whole.nll_M).all() and (parts.rank_M == whole.rank_M).all()
    assert len(answers(logits[:0], targets[:0]).nll_M) == 0


def test_one_answer_for_all_is_read_as_if_it_were_written_out():
    logits, targets = random(1, 61)[0].round(), random(80, 61)[1]
    once, often = answers(logits.expand(80, -1), targets), answers(logits.repeat(80, 1), targets)
    assert once.nll_M == pytest.approx(often.nll_M, abs=1e-6) and once.sure_M == pytest.approx(often.sure_M, abs=1e-6)
    assert ((once.rank_M == often.rank_M) | (often.rank_M >= TOP)).all()


def test_the_untrained_model_says_the_same_at_every_mask(reader):
    """So that it need not be computed anew for every row."""
    counts = np.random.default_rng(0).integers(0, 1000, 61)
    whole = model_scorer(untrained_model(SIZES, 5, counts, "cpu"))
    scorers = {"once": untrained_scorer(SIZES, 5, counts, "cpu"), "whole": whole}
    tallies = score(scorers, frozen_batches(reader, np.arange(reader.rows), "0.5", 8), lambda _: None)
    assert tallies["once"].metrics() == pytest.approx(tallies["whole"].metrics(), rel=1e-6)
    batch = next(frozen_batches(reader, np.arange(8), "0.3", 8))
    asked = batch.tokens_BL, batch.segment_ids_BL, batch.masked_M[: batch.count]
    with torch.inference_mode():
        assert torch.allclose(scorers["once"](*asked), whole(*asked), atol=1e-5)


def test_the_unigram_scorer_never_names_a_special_token():
    logits = unigram_scorer(np.array([0, 0, 0, 0, 0, 3, 0]), [[5, 7]])(None, None, torch.zeros(2))
    assert torch.isinf(logits[:, :5]).all() and logits[0, 5:].exp().tolist() == pytest.approx([0.8, 0.2])
