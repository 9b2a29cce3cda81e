"""Batches: a pure function of (shards, seed, step). pytest tests/tasks/test_batches.py"""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import keys, masking
from tasks.artifacts import Store
from tasks.batches import ShardReader, frozen_batch, hidden_in, segments_of_step
from tasks.batches import training_batch as batch_from
from tasks.errors import DataError, UsageError
from tasks.rates import MaskRates
from tests.tasks import handmade


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return handmade.shards(Store(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def reader(manifest):
    return ShardReader(manifest, "train")


def training_batch(reader, step, rows, seed, *, rank=0, ranks=1, **rates):
    """What a rank takes of a step, where all steps have as many rows."""
    return batch_from(reader, step * rows, rows, seed, part=rank, parts=ranks, **rates)


def fields(batch):
    return [batch.tokens_BL, batch.segment_ids_BL, batch.masked_M, batch.targets_M, batch.weights_M]


def equal(one, other):
    same = all(torch.equal(a, b) for a, b in zip(fields(one), fields(other), strict=True))
    same &= np.array_equal(one.sequence_ids_B, other.sequence_ids_B)
    return same and all(getattr(one, name) == getattr(other, name) for name in ("count", "tokens", "rate", "slots"))


def hidden(batch):
    """𝓜 of a batch, bool (B, L)."""
    mask = np.zeros(batch.tokens_BL.numel(), bool)
    mask[batch.masked_M[: batch.count].numpy()] = True
    return mask.reshape(batch.tokens_BL.shape)


def stream(batch):
    """(sequence id, digest of its mask) of every row."""
    digests = [hashlib.sha256(row.tobytes()).hexdigest()[:16] for row in hidden(batch)]
    return list(zip(batch.sequence_ids_B.tolist(), digests, strict=True))


def with_files(manifest, cuts):
    """A reader of the same rows in files of other sizes, some of them empty."""
    reader = ShardReader(manifest, "train")
    reader.tokens = np.split(np.concatenate(reader.tokens), cuts)
    reader.draws = [np.split(np.concatenate(files), cuts) for files in reader.draws]
    reader.first = np.array([0, *cuts, reader.rows])
    return reader


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
    ids = np.concatenate([keys.permutation(3, 0, 96)[90:], keys.permutation(3, 1, 96)[:4]])
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


# Ranks and resumes: the stream is that of one rank that never stopped.


def reference(reader, samples, rate, seed):
    """The stream from the definition: sample g is permutation(g // rows)[g % rows] with draw g // rows."""
    found = []
    for sample in range(*samples):
        epoch, place = divmod(sample, reader.rows)
        ids = keys.permutation(seed, epoch, reader.rows)[[place]]
        lengths, offsets = reader.segments_of_rows(ids)
        mask = reader.masks.draw(epoch, ids.astype(np.uint64), lengths, offsets, reader.rows_of(ids), rate)
        found.append((int(ids[0]), hashlib.sha256(mask[0].tobytes()).hexdigest()[:16]))
    return found


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(8, 40),
    cuts=st.lists(st.integers(0, 96), max_size=6).map(sorted),
    seed=st.integers(0, 2**32),
    rate=st.sampled_from(["", "0.15", "0.5"]),
    sessions=st.lists(
        st.tuples(st.sampled_from([1, 2, 3, 4, 8]), st.integers(1, 4), st.integers(0, 3)), min_size=1, max_size=4
    ),
    skip=st.integers(0, 30),
)
def test_order_and_masks_are_those_of_one_rank_for_any_ranks_and_any_kill_and_resume(
    manifest, rows, cuts, seed, rate, sessions, skip
):
    taken, step = [], skip
    for ranks, kept, lost in sessions:  # some steps in a checkpoint, and some that a kill then loses
        reader, parts = with_files(manifest, cuts), []
        for at in range(step, step + kept + lost):
            shares = [
                training_batch(reader, at, rows, seed, rate=rate, rank=rank, ranks=ranks) for rank in range(ranks)
            ]
            sizes = [len(share.tokens_BL) for share in shares]
            assert sum(sizes) == rows and max(sizes) - min(sizes) <= 1
            parts.append([pair for share in shares for pair in stream(share)])
        taken += [pair for part in parts[:kept] for pair in part]
        step += kept
    reader = ShardReader(manifest, "train")
    assert taken == reference(reader, (skip * rows, step * rows), rate or reader.rate, seed)


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_the_ranks_of_a_step_together_are_its_batch(reader, ranks):
    whole = training_batch(reader, 9, 19, seed=3)  # across the end of an epoch
    shares = [training_batch(reader, 9, 19, seed=3, rank=rank, ranks=ranks) for rank in range(ranks)]
    for name in ("tokens_BL", "segment_ids_BL"):
        assert torch.equal(torch.cat([getattr(share, name) for share in shares]), getattr(whole, name))
    targets = [share.targets_M[: share.count] for share in shares]
    assert torch.equal(torch.cat(targets), whole.targets_M[: whole.count])
    assert (sum(s.count for s in shares), sum(s.tokens for s in shares)) == (whole.count, whole.tokens)


@pytest.mark.parametrize("rate", ["0.15", "0.3", "0.5"])
def test_what_a_step_hides_is_known_from_its_segments_alone(reader, rate):
    for step in (0, 5, 9):  # the last across the end of an epoch
        lengths = segments_of_step(reader, step * 10, 10, seed=3)
        batch = training_batch(reader, step, 10, seed=3, rate=rate)
        assert (hidden_in(lengths, rate), int((lengths - 2).sum())) == (batch.count, batch.tokens)


def test_a_step_with_fewer_rows_than_ranks_is_refused(reader):
    with pytest.raises(UsageError, match="A step of 3 rows cannot be split over 4 ranks"):
        training_batch(reader, 0, 3, seed=1, ranks=4)


# Rates: what a schedule asks of the same shards.


@pytest.mark.parametrize("policy", ["uniform", "whole-word", "span"])
def test_a_linear_run_is_nested_exact_and_never_beyond_its_slots(policy, tmp_path):
    reader = ShardReader(handmade.shards(Store(tmp_path), policy=policy), "train")
    rates, total = MaskRates("linear", ("0.5", "0.15")), 24
    slots = rates.highest(reader.rate)
    before = {}
    for step in range(total):  # 4 steps an epoch: the second epoch's masks are another draw
        rate = rates.rate_at(step, total)
        batch = training_batch(reader, step, 24, seed=1, rate=rate, slots=slots)
        lengths, offsets = reader.segments_of_rows(batch.sequence_ids_B)
        mask, ids = hidden(batch), masking.segment_ids(lengths, offsets, reader.length)
        assert len(batch.masked_M) == len(batch.weights_M) == int(masking.count(24 * 32, "0.5")) >= batch.count
        assert batch.weights_M.sum() == batch.count
        for row in range(24):
            per_segment = np.bincount(ids[row][mask[row]], minlength=offsets[row + 1] - offsets[row])
            own = lengths[offsets[row] : offsets[row + 1]] - 2
            assert np.array_equal(per_segment, masking.count(own, rate))
        same = training_batch(reader, step, 24, seed=1, rate="0.5", slots=slots)
        assert (mask <= hidden(same)).all()
        before[step // 4] = before.get(step // 4, 0) + batch.count
    assert list(before.values()) == sorted(before.values(), reverse=True)


@pytest.mark.parametrize("rows", [1, 5, 16])
def test_micro_batches_of_a_lower_rate_keep_the_slots_of_the_highest(reader, rows):
    batch = training_batch(reader, 1, 16, seed=1, rate="0.15", slots="0.5")
    for part in batch.split(rows):
        assert len(part.masked_M) == int(masking.count(part.tokens_BL.numel(), "0.5")) and part.rate == "0.15"
        assert part.weights_M.sum() == part.count
    assert sum(part.count for part in batch.split(rows)) == batch.count
    assert np.concatenate([part.sequence_ids_B for part in batch.split(rows)]).tolist() == batch.sequence_ids_B.tolist()


@pytest.mark.parametrize("policy", ["whole-word", "span"])
def test_a_draw_that_is_made_again_is_the_one_that_is_stored(policy, tmp_path):
    stored = ShardReader(handmade.shards(Store(tmp_path / "a"), policy=policy, draws=2), "train")
    made = ShardReader(handmade.shards(Store(tmp_path / "b"), policy=policy, draws=1), "train")
    for step in range(6, 12):  # the second epoch
        assert equal(training_batch(stored, step, 16, seed=1), training_batch(made, step, 16, seed=1))


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 96), max_size=9).map(sorted), ids=st.lists(st.integers(0, 95), max_size=40))
def test_rows_are_found_in_files_of_any_size(manifest, cuts, ids):
    whole = np.concatenate(ShardReader(manifest, "train").tokens)
    assert np.array_equal(with_files(manifest, cuts).rows_of(np.array(ids, np.int64)), whole[ids])
