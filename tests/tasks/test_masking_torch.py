"""Masks in torch are those of numpy, bit for bit. pytest tests/tasks/test_masking_torch.py"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import keys, masking
from tasks.masking_torch import choose_torch, draw_torch, keys_torch

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
POLICIES = [masking.Policy(), masking.Policy("whole-word"), *(masking.Policy("span", span) for span in (1, 3, 10))]


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**63 - 1),
    draw=st.integers(0, 10_000),
    domain=st.sampled_from(list(keys.Domain)),
    first=st.one_of(st.integers(0, 1000), st.integers(2**40, 2**62)),
    length=st.sampled_from([8, 64, 512]),
)
def test_keys_in_torch_are_those_of_numpy_bit_for_bit(device, seed, draw, domain, first, length):
    ids = np.arange(first, first + 5)
    theirs = keys.keys(seed, domain, draw, ids, length)
    ours = keys_torch(seed, domain, draw, torch.from_numpy(ids).to(device), length)
    assert np.array_equal(ours.cpu().numpy().view(np.uint64), theirs)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: f"{policy.name}-{policy.span}")
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    number=st.integers(0, 20),
    rate=st.sampled_from(["0.01", "0.15", "0.29", "0.3", "0.5", "0.99"]),
    length=st.sampled_from([16, 64, 128]),
    cuts=st.lists(st.sets(st.integers(2, 15), max_size=6), min_size=1, max_size=5),
    padding=st.integers(0, 3),
)
def test_a_draw_in_torch_is_that_of_numpy_bit_for_bit(device, policy, seed, number, rate, length, cuts, padding):
    rows = [np.diff([0, *(cut * length // 16 for cut in sorted(cut)), length]) for cut in cuts]
    rows = [[*lengths[:-1], max(lengths[-1] - padding, 2)] for lengths in rows if lengths.min() >= 2]
    lengths, offsets = np.concatenate([[], *rows]).astype(np.int64), np.cumsum([0, *map(len, rows)])
    ids = np.arange(len(rows)) * 1_000_003 + 5
    begins_RL = np.random.default_rng(seed).random((len(rows), length)) < 0.4
    theirs = masking.draw(seed, number, ids, lengths, offsets, length, rate, policy, begins_RL.copy())
    on_device = torch.from_numpy(ids).to(device), torch.from_numpy(begins_RL).to(device)
    ours = draw_torch(seed, number, on_device[0], lengths, offsets, length, rate, policy, on_device[1])
    assert np.array_equal(ours.cpu().numpy(), theirs)


def test_ties_and_keys_above_two_to_the_63_are_in_the_order_of_unsigned_numbers():
    keys = [0, 2**64 - 1, 2**63, 2**63 - 1, 2**63, 5 << 40, 5 << 40, 0]
    order = sorted(range(1, 7), key=lambda at: (keys[at], at))  # its [CLS] and its [SEP] never count
    keys_RL = torch.from_numpy(np.array([keys], np.uint64).view(np.int64))
    for hidden, rate in enumerate(("0.1", "0.2", "0.34", "0.5", "0.67", "0.84")):
        chosen = choose_torch(keys_RL, np.array([8]), np.array([0, 1]), rate)
        assert sorted(order[:hidden]) == chosen[0].nonzero()[:, 0].tolist()


def test_keys_that_differ_in_their_last_bit_only_are_told_apart():
    keys = [0, *(2**63 + 6 - at for at in range(6)), 0]
    keys_RL = torch.from_numpy(np.array([keys], np.uint64).view(np.int64))
    assert choose_torch(keys_RL, np.array([8]), np.array([0, 1]), "0.5")[0].nonzero()[:, 0].tolist() == [4, 5, 6]
