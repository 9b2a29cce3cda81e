"""What a step is bound by. python -m pytest tests/tasks/test_verdict.py"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.verdict import Figures, fixed_part, verdict

CONFIG = {"batch_tokens": 8192, "micro_tokens": 0, "dtype": "bfloat16", "compile": "off"}
share = st.floats(0.0, 1.0)


def figures(**measured):
    return Figures(**{"data": 0.01, "communication": 0.0, "optimizer": 0.05, "products": 0.3} | measured)


@pytest.mark.parametrize(
    ("measured", "config", "bound_by", "first"),
    [
        ({"data": 0.2}, {}, "data", "shards.draws"),
        ({"communication": 0.3}, {}, "communication", "pretrain.batch_tokens: 16384"),
        ({"communication": 0.3}, {"reduction": "exact"}, "communication", "pretrain.reduction: fast"),
        ({"communication": 0.3}, {"parallel": "fsdp"}, "communication", "pretrain.parallel: ddp"),
        ({"communication": 0.3, "data": 0.2}, {}, "data", "shards.draws"),  # twice its threshold, against 1.5 times
        ({"start": 0.5}, {}, "launch", "pretrain.compile: on"),
        ({"start": 0.5}, {"compile": "on"}, "launch", "pretrain.batch_tokens: 16384"),
        ({"start": 0.5}, {"micro_tokens": 512}, "launch", "pretrain.micro_tokens: 0"),
        ({"optimizer": 0.5}, {}, "launch", "pretrain.batch_tokens: 16384"),
        ({"products": 0.7}, {}, "compute", "pretrain.devices"),
        ({"products": 0.7}, {"dtype": "float32"}, "compute", "pretrain.dtype: bfloat16"),
        ({}, {}, "memory", "pretrain.compile: on"),
        ({}, {"compile": "on", "dtype": "float32"}, "memory", "pretrain.dtype: bfloat16"),
        ({"relative": 0.6}, {}, "memory", "pretrain.micro_tokens: 2048, rows in smaller pieces take 40% less"),
        ({"relative": 0.6}, {"micro_tokens": 1024}, "memory", "pretrain.micro_tokens: 256"),
        ({"relative": 0.6}, {"micro_tokens": 257, "compile": "on"}, "memory", "pretrain.micro_tokens: 128"),
        ({"relative": 0.6}, {"micro_tokens": 128}, "memory", "pretrain.compile: on"),  # it is one row already
        ({"relative": 0.6}, {"micro_tokens": 128, "compile": "on"}, "memory", "pretrain.threads"),
        ({"relative": 0.6}, {"devices": 8}, "memory", "pretrain.micro_tokens: 256"),  # a rank has 1024
        ({"relative": 0.6}, {"reduction": "exact", "logical_shards": 8}, "memory", "pretrain.logical_shards: 16"),
        ({"relative": 0.6}, {"reduction": "exact", "logical_shards": 64}, "memory", "pretrain.threads"),
        ({}, {"compile": "on", "recompute": True}, "memory", "pretrain.recompute: off"),
        ({}, {"compile": "on"}, "memory", "pretrain.threads"),
    ],
)
def test_the_rule_and_what_to_change_first(measured, config, bound_by, first):
    found = verdict(figures(**measured), CONFIG | config, 128)
    assert found.bound_by == bound_by
    assert found.advice[0].startswith(first)


@given(share, share, share, share, st.none() | share, st.none() | st.floats(0.0, 4.0), st.sampled_from([{}, CONFIG]))
def test_there_is_always_an_answer_and_something_to_change(data, communication, optimizer, products, a, b, config):
    found = verdict(Figures(data, communication, optimizer, products, a, b), config, 128)
    assert found.bound_by in ("data", "launch", "compute", "memory", "communication")
    assert found.why and found.advice and all(": " in one for one in found.advice)


@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.floats(0.05, 0.95))
def test_the_fixed_part_is_where_the_line_through_two_timings_begins(start, slope, fraction):
    assert fixed_part(start + slope * fraction, start + slope, fraction) == pytest.approx(start, abs=1e-9)


@given(st.floats(0.0, 9.0), st.floats(1e-6, 9.0))
def test_the_fixed_part_lies_within_the_whole_whatever_was_timed(part, whole):
    assert 0.0 <= fixed_part(part, whole, 0.25) <= whole


@given(st.integers(1, 99), st.integers(0, 99), st.integers(1, 9), st.integers(8, 512))
def test_the_advised_pieces_are_whole_rows_and_smaller_than_what_is_taken_now(rows, micro_rows, ranks, length):
    config = CONFIG | {"batch_tokens": rows * length, "micro_tokens": micro_rows * length, "devices": ranks}
    for advice in verdict(figures(relative=0.5), config, length).advice:
        if advice.startswith("pretrain.micro_tokens"):
            positions = int(advice.split(": ")[1].split(",")[0])
            assert positions % length == 0
            assert length <= positions < (micro_rows or rows / ranks) * length
