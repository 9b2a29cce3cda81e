"""What a step needs, counted by hand, by torch, and by brute force. python -m pytest tests/tasks/test_flops.py"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from tasks import flops
from tasks.encoder import EncoderConfig, MaskedLanguageModel, Segments

CONFIG = EncoderConfig(
    vocabulary_size=61, length=32, layers=5, width=24, heads=2, intermediate=40, global_every=3, window=8
)
lengths = st.lists(st.integers(1, 40), min_size=1, max_size=8)


@given(lengths, st.integers(1, 50))
def test_pairs_are_those_that_the_masks_of_the_encoder_allow(lengths, window):
    ids_BL = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)[None])
    segments = Segments.from_ids(ids_BL, window)
    assert flops.pairs(lengths) == int(segments.mask_B1LL(True).sum())
    assert flops.pairs(lengths, window) == int(segments.mask_B1LL(False).sum())


@given(st.lists(st.lists(st.integers(1, 5), min_size=0, max_size=4), min_size=1, max_size=4))
def test_lengths_come_back_from_segment_numbers_and_padding_is_left_out(rows):
    ids_BL = np.full((len(rows), 21), -1)
    for row, one in zip(ids_BL, rows, strict=True):
        row[: sum(one)] = np.repeat(np.arange(len(one)), one)
    assert flops.segment_lengths(ids_BL).tolist() == [length for one in rows for length in one]


@given(lengths, lengths, st.integers(0, 100), st.integers(0, 100))
def test_two_batches_need_what_each_needs(first, second, masked, other):
    together = flops.step_flops(CONFIG, first + second, masked + other)
    alone = flops.step_flops(CONFIG, first, masked), flops.step_flops(CONFIG, second, other)
    assert together.total == sum(one.total for one in alone) and together.attention == sum(x.attention for x in alone)
    assert together.total == together.blocks + together.attention + together.head == flops.as_dict(together)["total"]


@pytest.mark.parametrize("layers", [1, 3, 5])
def test_torch_counts_the_same_on_one_segment_a_row(layers):
    # One segment as long as the row, and a window that covers it: then what is computed is what is needed.
    config = EncoderConfig(
        vocabulary_size=61, length=32, layers=layers, width=24, heads=2, intermediate=40, global_every=3, window=64
    )
    model = MaskedLanguageModel(config)
    tokens_BL, masked_M = torch.randint(5, 61, (3, 32)), torch.arange(0, 96, 5)
    segments = Segments.from_ids(torch.zeros(3, 32, dtype=torch.int64), config.window)
    with FlopCounterMode(display=False) as counter:
        logits_MV = model(tokens_BL, segments, masked_M)
        forward = counter.get_total_flops()
        F.cross_entropy(logits_MV, tokens_BL.flatten()[masked_M], reduction="sum").backward()
    needed = flops.step_flops(config, [32, 32, 32], len(masked_M))
    assert needed.total == 3 * forward == counter.get_total_flops()


@pytest.mark.parametrize("layers", [1, 5])
def test_parameters_are_those_of_the_model(layers):
    config = EncoderConfig(vocabulary_size=61, length=32, layers=layers, width=24, heads=2, intermediate=40)
    assert flops.parameters(config) == sum(one.numel() for one in MaskedLanguageModel(config).parameters())


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 50))
def test_the_products_add_up_to_what_is_needed(length, segments, masked):
    # Of equal lengths, in global layers: then no mean is rounded.
    config = EncoderConfig(vocabulary_size=61, length=40, layers=3, width=24, heads=2, intermediate=40, global_every=1)
    needed = flops.step_flops(config, [length] * segments, masked)
    products = flops.products(config, [length] * segments, masked)
    for part in ("blocks", "attention", "head"):
        assert sum(one.flops for one in products if one.part == part) == getattr(needed, part)


def test_local_attention_is_close_to_what_is_needed_and_an_empty_batch_needs_nothing():
    needed = flops.step_flops(CONFIG, [30, 18, 7, 40], 20)
    products = sum(one.flops for one in flops.products(CONFIG, [30, 18, 7, 40], 20))
    assert products == pytest.approx(needed.total, rel=0.05)
    assert flops.products(CONFIG, [], 0) == [] and flops.step_flops(CONFIG, [], 0).total == 0


def test_muon_adds_three_products_for_each_matrix_and_iteration():
    added = flops.products(CONFIG, [30], 5, muon_steps=5)[len(flops.products(CONFIG, [30], 5)) :]
    assert {one.part for one in added} == {"optimizer"} and not any(one.gradients for one in added)
    square = 21 * 3 * 24**3  # four matrices a layer, and the head's
    oblong = 15 * (2 * 24 * 40 * 24 + 24**3)
    assert sum(one.flops for one in added) == 2 * 5 * (square + oblong)
