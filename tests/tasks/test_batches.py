"""Batches: a pure function of (shards, seed, step). pytest tests/tasks/test_batches.py"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import masking
from tasks.artifacts import Store
from tasks.batches import ShardReader, choose_torch, frozen_batch, keys_torch, training_batch
from tasks.errors import DataError
from tests.tasks import handmade


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return handmade.shards(Store(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def reader(manifest):
    return ShardReader(manifest, "train")


def fields(batch):
    return [batch.tokens_BL, batch.segment_ids_BL, batch.masked_M, batch.targets_M, batch.weights_M]


def equal(one, other):
    same = all(torch.equal(a, b) for a, b in zip(fields(one), fields(other), strict=True))
    return same and (one.count, one.tokens, one.rate) == (other.count, other.tokens, other.rate)


def test_a_batch_is_the_same_for_a_fresh_reader_and_in_any_order_of_asking(manifest, reader):
    forwards = [training_batch(reader, step, 10, seed=1) for step in range(25)]
    fresh = ShardReader(manifest, "train")
    for step in reversed(range(25)):
        assert equal(training_batch(fresh, step, 10, seed=1), forwards[step])


def test_the_order_does_not_depend_on_the_rows_of_a_step(reader):
    one, two = (training_batch(reader, step, 8, seed=1) for step in (2, 3))
    both = training_batch(reader, 1, 16, seed=1)
    assert torch.equal(both.tokens_BL, torch.cat((one.tokens_BL, two.tokens_BL)))


def test_an_epoch_shows_every_row_once_and_the_next_one_another_draw_of_it(reader):
    def shown(epoch):
        batches = [training_batch(reader, epoch * 6 + step, 16, seed=1) for step in range(6)]
        hidden = [
            torch.zeros(16 * reader.length, dtype=torch.bool).index_fill(0, b.masked_M[: b.count], True)
            for b in batches
        ]
        tokens = torch.cat(
            [b.tokens_BL.flatten().index_copy(0, b.masked_M[: b.count], b.targets_M[: b.count]) for b in batches]
        )
        rows = list(map(tuple, tokens.reshape(-1, reader.length).tolist()))
        return dict(zip(rows, torch.cat(hidden).reshape(-1, reader.length).tolist(), strict=True)), rows

    (first, order), (second, other_order) = shown(0), shown(1)
    stored = {tuple(row) for file in reader.tokens for row in file.tolist()}
    assert set(first) == set(second) == stored
    assert order != other_order
    assert all(first[row] != second[row] for row in stored if sum(first[row]) > 1)


def test_a_batch_across_the_end_of_an_epoch_takes_each_row_with_its_own_draw(reader):
    batch = training_batch(reader, 9, 10, seed=3)  # samples 90..99 of rows of 96
    ids = np.concatenate([masking.permutation(3, 0, 96)[90:], masking.permutation(3, 1, 96)[:4]])
    lengths, offsets = reader.segments_of_rows(ids)
    expected = np.concatenate(
        [
            masking.draw(7, epoch, ids, lengths, offsets, 32, "0.3")[part]
            for epoch, part in ((0, slice(6)), (1, slice(6, 10)))
        ]
    )
    assert np.array_equal(batch.masked_M[: batch.count].numpy(), np.flatnonzero(expected))


def test_stored_draws_are_read_and_the_others_made_by_the_same_rule(manifest, tmp_path):
    without = ShardReader(handmade.shards(Store(tmp_path), draws=1), "train")
    with_two = ShardReader(manifest, "train")
    assert with_two.stored_draw(1, np.arange(3)) is not None
    assert without.stored_draw(1, np.arange(3)) is None
    for step in range(20):  # three epochs: stored in both, stored in one, made in both
        assert equal(training_batch(without, step, 16, seed=1), training_batch(with_two, step, 16, seed=1))


def test_stored_bits_win_over_the_rule_so_that_they_are_evidence(manifest):
    reader = ShardReader(manifest, "train")
    reader.draws[0] = [np.zeros_like(bits) for bits in reader.draws[0]]
    assert training_batch(reader, 0, 8, seed=1).count == 0


def test_slots_are_the_capacity_targets_are_the_hidden_tokens_and_spare_slots_weigh_nothing(reader):
    for step in range(6):
        batch = training_batch(reader, step, 16, seed=1)
        assert len(batch.masked_M) == len(batch.targets_M) == int(masking.count(16 * 32, "0.3"))
        assert batch.weights_M.sum() == batch.count == (batch.tokens_BL == 4).sum()
        assert (batch.tokens_BL.flatten()[batch.masked_M[: batch.count]] == 4).all()
        assert (batch.targets_M[: batch.count] >= 5).all()
        assert batch.tokens == int((batch.tokens_BL >= 4).sum())


@pytest.mark.parametrize("rows", [1, 3, 5, 16, 99, 0])
def test_micro_batches_together_are_the_batch(reader, rows):
    batch = training_batch(reader, 1, 16, seed=1)
    parts = list(batch.split(rows))
    assert sum(part.count for part in parts) == batch.count
    assert sum(part.tokens for part in parts) == batch.tokens
    assert torch.equal(torch.cat([part.tokens_BL for part in parts]), batch.tokens_BL)
    at, masked, targets = 0, [], []
    for part in parts:
        assert (
            len(part.masked_M) == int(masking.count(part.tokens_BL.numel(), "0.3"))
            and part.weights_M.sum() == part.count
        )
        masked.append(part.masked_M[: part.count] + at)
        targets.append(part.targets_M[: part.count])
        at += part.tokens_BL.numel()
    assert torch.equal(torch.cat(masked), batch.masked_M[: batch.count])
    assert torch.equal(torch.cat(targets), batch.targets_M[: batch.count])


def test_frozen_masks_are_nested_and_do_not_depend_on_the_seed_of_training(manifest, tmp_path):
    reader = ShardReader(manifest, "validation")
    ids = np.arange(reader.rows)
    low, high = frozen_batch(reader, ids, "0.15"), frozen_batch(reader, ids, "0.3")
    assert low.count and set(low.masked_M[: low.count].tolist()) < set(high.masked_M[: high.count].tolist())
    other = ShardReader(handmade.shards(Store(tmp_path), seed=99, draws=1), "validation")
    assert equal(frozen_batch(other, ids, "0.3"), high)


def test_the_80_10_10_rule_is_for_training_and_leaves_the_targets(tmp_path):
    manifest = handmade.shards(Store(tmp_path), corruption="80/10/10")
    reader = ShardReader(manifest, "train")
    batch = training_batch(reader, 0, 96, seed=1)
    shown = batch.tokens_BL.flatten()[batch.masked_M[: batch.count]]
    assert 0.7 < float((shown == 4).float().mean()) < 0.9
    assert (shown >= 4).all() and (batch.targets_M[: batch.count] >= 5).all()
    frozen = frozen_batch(ShardReader(manifest, "validation"), np.arange(8), "0.3")
    assert (frozen.tokens_BL.flatten()[frozen.masked_M[: frozen.count]] == 4).all()


def test_a_flipped_bit_in_a_shard_is_found_when_it_is_opened(tmp_path):
    manifest = handmade.shards(Store(tmp_path))
    path = manifest.path("train-00001.arrow")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    ShardReader(manifest, "validation")
    with pytest.raises(DataError, match=r"train-00001\.arrow is damaged"):
        ShardReader(manifest, "train")


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**63 - 1),
    draw=st.integers(0, 10_000),
    domain=st.sampled_from(list(masking.Domain)),
    first=st.one_of(st.integers(0, 1000), st.integers(2**40, 2**62)),
    length=st.sampled_from([8, 64, 512]),
)
def test_keys_in_torch_are_those_of_numpy_bit_for_bit(seed, draw, domain, first, length):
    ids = np.arange(first, first + 5)
    theirs = masking.keys(seed, domain, draw, ids, length)
    ours = keys_torch(seed, domain, draw, torch.from_numpy(ids), length)
    assert np.array_equal(ours.numpy().view(np.uint64), theirs)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    rate=st.sampled_from(["0.15", "0.29", "0.3", "0.5", "0.99"]),
    length=st.sampled_from([16, 64, 128]),
    cuts=st.lists(st.sets(st.integers(1, 7), max_size=4), min_size=1, max_size=5),
)
def test_the_choice_in_torch_is_that_of_numpy_bit_for_bit(seed, rate, length, cuts):
    rows = [np.diff([0, *(cut * length // 8 for cut in sorted(cut)), length]) for cut in cuts]
    lengths, offsets = np.concatenate(rows), np.cumsum([0, *map(len, rows)])
    ids = np.arange(len(rows))
    theirs = masking.draw(seed, 0, ids, lengths, offsets, length, rate)
    keys_RL = keys_torch(seed, masking.Domain.CHOICE, 0, torch.from_numpy(ids), length)
    assert np.array_equal(choose_torch(keys_RL, lengths, offsets, rate).numpy(), theirs)


def test_ties_and_keys_above_two_to_the_63_are_ordered_as_in_numpy():
    keys_RL = np.array([[0, 2**64 - 1, 2**63, 2**63 - 1, 2**63, 5 << 40, 5 << 40, 0]], dtype=np.uint64)
    lengths, offsets = np.array([8]), np.array([0, 1])
    for rate in ("0.2", "0.34", "0.5", "0.67", "0.84"):
        theirs = masking.choose(keys_RL, lengths, offsets, rate)
        ours = choose_torch(torch.from_numpy(keys_RL.view(np.int64)), lengths, offsets, rate)
        assert np.array_equal(ours.numpy(), theirs)
