"""The bigram baseline against its definition. pytest tests/tasks/test_bigram.py"""

from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest
import torch

from tasks import bigram, scoring
from tasks.artifacts import Store
from tasks.batches import ShardReader
from tasks.bigram import Pairs, bigram_scorer, count
from tests.tasks import handmade

SIZE = 61
UNIFORM = np.r_[np.zeros(5), np.full(SIZE - 5, 1 / (SIZE - 5))]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return handmade.shards(Store(tmp_path_factory.mktemp("store")), policy="uniform")


@pytest.fixture(scope="module")
def pairs(shards):
    return count(ShardReader(shards, "train"), SIZE)


def plain_counts(reader: ShardReader) -> dict[int, Counter]:
    """The same with plain loops over segments."""
    found: dict[int, Counter] = defaultdict(Counter)
    lengths, offsets = reader.segments_of_rows(np.arange(reader.rows))
    for row in range(reader.rows):
        tokens, at = reader.rows_of(np.array([row]))[0].tolist(), 0
        for length in lengths[offsets[row] : offsets[row + 1]].tolist():
            segment = tokens[at : at + length]
            for left, right in pairwise(segment[:-1]):
                found[left][right] += 1
            at += length
    return found


def table(pairs: Pairs) -> dict[int, Counter]:
    left = np.repeat(np.arange(len(pairs.first_V) - 1), np.diff(pairs.first_V)).tolist()
    found: dict[int, Counter] = defaultdict(Counter)
    for one, right, number in zip(left, pairs.right_P.tolist(), pairs.count_P.tolist()):
        found[one][right] = number
    return found


def ask(pairs: Pairs, unigram_V: np.ndarray, left: list[int]) -> tuple[np.ndarray, ...]:
    """p(w | c), its rank and the first one's p, for each left neighbour c and each w: (contexts, V)."""
    tokens_BL = torch.tensor([[one, 4] for one in left]).repeat_interleave(SIZE, dim=0)
    masked_M = torch.arange(1, 2 * len(tokens_BL), 2)
    said = bigram_scorer(pairs, unigram_V)(tokens_BL, torch.zeros_like(tokens_BL), masked_M)
    found = scoring.answers(said, torch.arange(SIZE).repeat(len(left)))
    shaped = (one.reshape(len(left), SIZE) for one in (np.exp(-found.nll_M), found.rank_M, found.sure_M))
    return tuple(shaped)


def some_pairs(seed: int) -> Pairs:
    """Counts of made-up contexts, some of which were never seen."""
    generator = np.random.default_rng(seed)
    counts_VV = generator.poisson(generator.random((SIZE, 1)) ** 2, (SIZE, SIZE)) * generator.integers(1, 4)
    counts_VV[:, :5] = counts_VV[4] = 0
    left, right = np.nonzero(counts_VV)
    return Pairs(np.searchsorted(left, np.arange(SIZE + 1)), right, counts_VV[left, right], int(counts_VV.sum()))


def test_pairs_are_those_within_segments_and_no_special_token_follows(shards, pairs):
    reader = ShardReader(shards, "train")
    expected = plain_counts(reader)
    assert table(pairs) == expected
    assert pairs.tokens == sum(sum(some.values()) for some in expected.values())
    assert pairs.tokens == shards.facts["splits"]["train"]["tokens"]
    assert pairs.right_P.min() >= 5 and 2 in expected and 3 not in expected


def test_the_probabilities_are_interpolated_witten_bell(pairs):
    generator = np.random.default_rng(1)
    unigram_V = generator.random(SIZE)
    unigram_V /= unigram_V.sum()
    counts, left = table(pairs), [2, 7, 30, 60, 4]
    for one, row in zip(left, ask(pairs, unigram_V, left)[0]):
        total, kinds = sum(counts[one].values()), len(counts[one])
        expected = [
            (counts[one][word] + kinds * unigram_V[word]) / (total + kinds) if total else unigram_V[word]
            for word in range(SIZE)
        ]
        assert row == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_they_sum_to_one_in_every_context(seed):
    assert ask(some_pairs(seed), UNIFORM, list(range(SIZE)))[0].sum(axis=1) == pytest.approx(np.ones(SIZE), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["uniform", "random", "few"])
def test_ranks_are_those_of_all_tokens_sorted(seed, kind):
    generator = np.random.default_rng(seed)
    unigram_V = UNIFORM * {"uniform": 1, "random": generator.random(SIZE), "few": generator.integers(0, 3, SIZE)}[kind]
    p, rank, sure = ask(some_pairs(seed), unigram_V / unigram_V.sum(), list(range(SIZE)))
    for row, ranks, first in zip(p, rank, sure):
        order = sorted(range(SIZE), key=lambda word: (-row[word], word))
        expected = np.empty(SIZE, np.int64)
        expected[order] = np.arange(SIZE)
        assert (np.minimum(ranks, scoring.TOP) == np.minimum(expected, scoring.TOP)).all()
        assert first == pytest.approx(row.max(), rel=1e-12)


def test_pairs_of_nothing_leave_the_unigram():
    nothing = Pairs(np.zeros(SIZE + 1, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64), 0)
    assert ask(nothing, UNIFORM, [7])[0][0] == pytest.approx(UNIFORM, rel=1e-12)


def test_behind_a_hidden_neighbour_the_unigram_is_left(pairs):
    unigram_V = scoring.unigram(np.arange(SIZE), [[5, SIZE]])
    mask = handmade.SPECIAL_IDS["mask"]
    assert ask(pairs, unigram_V, [mask])[0][0] == pytest.approx(unigram_V, rel=1e-12)


def test_how_much_is_counted_at_a_time_does_not_matter(shards, pairs, monkeypatch):
    monkeypatch.setattr(bigram, "AT_ONCE", 7 * 32)
    reader = ShardReader(shards, "train")
    for size in (SIZE, 1 << 17):  # keys of 32 and of 64 bits
        some = count(reader, size)
        assert (some.right_P == pairs.right_P).all() and (some.count_P == pairs.count_P).all()
        assert (some.first_V[:SIZE] == pairs.first_V[:SIZE]).all() and some.first_V[-1] == len(pairs.right_P)


def test_of_a_large_split_every_so_many_rows_are_counted(shards, pairs):
    reader = ShardReader(shards, "train")
    some = count(reader, SIZE, most=reader.rows * reader.length // 3)
    assert some.every == 3 and 0.2 < some.tokens / pairs.tokens < 0.5


def test_it_beats_the_unigram_where_tokens_follow_from_each_other(shards, pairs):
    counts_V, ordinary = np.load(shards.path("unigrams.npy")), [[5, SIZE]]
    scorers = {
        "unigram": scoring.unigram_scorer(counts_V, ordinary),
        "bigram": bigram_scorer(pairs, scoring.unigram(counts_V, ordinary)),
    }
    reader = ShardReader(shards, "test")
    batches = scoring.frozen_batches(reader, np.arange(reader.rows), "0.3", 8)
    found = {name: one.metrics() for name, one in scoring.score(scorers, batches, lambda _: None).items()}
    assert found["bigram"]["masked_cross_entropy"] < found["unigram"]["masked_cross_entropy"] - 0.5
    assert found["bigram"]["top1_accuracy"] > 0.3
