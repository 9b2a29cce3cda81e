"""Named sizes: they are encoders, and their parameters are counted right. pytest tests/tasks/test_sizes.py"""

import pytest

from tasks import flops, sizes
from tasks.errors import UsageError
from tasks.sizes import DIMENSIONS, SIZES, dimensions


def parameters(sizes, vocabulary):
    from tasks.encoder import EncoderConfig

    return flops.parameters(EncoderConfig(vocabulary_size=vocabulary, length=8, **sizes))


@pytest.mark.parametrize("name", SIZES)
def test_a_size_is_an_encoder_and_its_parameters_are_counted_right(name):
    import torch

    from tasks.encoder import EncoderConfig, MaskedLanguageModel

    found = dimensions(name, {})
    with torch.device("meta"):
        model = MaskedLanguageModel(EncoderConfig(vocabulary_size=1234, length=64, **found))
    assert sum(one.numel() for one in model.parameters()) == parameters(found, 1234)
    assert found["width"] == 64 * found["heads"]


def test_the_published_sizes_have_about_their_published_parameters():
    assert round(parameters(dimensions("base", {}), 50368) / 1e6) == 150  # ModernBERT-base: 149M
    assert round(parameters(dimensions("large", {}), 50368) / 1e6) == 396  # ModernBERT-large: 395M


def test_sizes_grow():
    counts = [parameters(dimensions(name, {}), 8192) for name in SIZES]
    assert counts == sorted(set(counts))


@pytest.mark.parametrize("name", SIZES)
def test_a_size_and_its_dimensions_written_out_are_the_same(name):
    written = dict(zip(DIMENSIONS, SIZES[name], strict=True))
    zeros = dict.fromkeys(DIMENSIONS, 0)
    assert dimensions(name, zeros) == dimensions(name, {}) == dimensions("mini", written) == written


def test_each_dimension_can_be_set_by_itself_among_other_settings():
    assert dimensions("small", {"layers": 3, "width": 0, "steps": 7}) == dimensions("small", {}) | {"layers": 3}


@pytest.mark.parametrize(
    ("size", "overrides", "said"),
    [
        ("medum", {}, r"pretrain.size: there is no size 'medum'. Did you mean medium\? Sizes here: tiny, mini"),
        ("12x768", {}, r"pretrain.size: there is no size '12x768'. Sizes here: tiny"),
        ("tiny", {"layers": -1}, "pretrain.layers is -1; use 1 or more, or 0 for that of the size tiny"),
        ("tiny", {"heads": 5}, "pretrain.width is 128 for 5 heads; use a multiple of 2 . heads, 10"),
    ],
)
def test_what_is_no_size_is_refused(size, overrides, said):
    with pytest.raises(UsageError, match=said):
        dimensions(size, overrides)


def test_the_default_of_before_there_were_names_has_one():
    assert sizes.SIZES["mini"] == (4, 128, 2, 256)
