"""The encoder is transformers' ModernBERT: logits parity in all that could differ, and mutants that must fail.

The only module of the suite's torch core that imports transformers (seconds).
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tasks import attention, encoder, stock, tiles
from tasks.encoder import EncoderConfig, MaskedLanguageModel, Segments, initialise, unigram_bias
from tasks.errors import DataError, UsageError
from tasks.pretrain_config import PretrainConfig
from tasks.sizes import DIMENSIONS
from tasks.stock import encoder_config, from_stock, load_stock, save_stock, stock_config, to_stock

LENGTH = 40
CONFIG = EncoderConfig(
    vocabulary_size=97, length=64, layers=4, width=32, heads=2, intermediate=48, global_every=3, window=8
)
CLOSE = 2e-5


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_model(config: EncoderConfig = CONFIG) -> MaskedLanguageModel:
    """Every parameter random: zero projections and unit norms would hide what is wrong."""
    model = MaskedLanguageModel(config).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stock")
    save_stock(random_model(), folder)
    return folder


@pytest.fixture(scope="module")
def stock_model(folder: Path) -> torch.nn.Module:
    from transformers import AutoModelForMaskedLM

    model, info = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), f"every key is taken and none is left over: {info}"
    return model.eval()


def padded() -> tuple[Tensor, Tensor]:
    """Tokens and segment numbers of rows that hold one text each, of 40, 29 and 11 tokens."""
    tokens_BL = torch.randint(5, 97, (3, LENGTH), generator=torch.Generator().manual_seed(2))
    lengths = torch.tensor([LENGTH, 29, 11])
    return tokens_BL, torch.where(torch.arange(LENGTH) < lengths[:, None], 0, -1)


def packed() -> tuple[Tensor, Tensor]:
    """The same kind of row with several texts; the first is longer than twice the window."""
    tokens_BL = torch.randint(5, 97, (2, LENGTH), generator=torch.Generator().manual_seed(3))
    ids = [[0] * 21 + [1] * 12 + [2] * 4 + [-1] * 3, [0] * 3 + [1] * 30 + [2] * 7]
    return tokens_BL, torch.tensor(ids)


@torch.no_grad()
def ours(model: MaskedLanguageModel, tokens_BL: Tensor, segment_ids_BL: Tensor, window: int = CONFIG.window) -> Tensor:
    logits: Tensor = model.head(model.encoder(tokens_BL, Segments.from_ids(segment_ids_BL, window)))
    return logits


@torch.no_grad()
def theirs(model: torch.nn.Module, tokens_BL: Tensor, segment_ids_BL: Tensor) -> Tensor:
    """Stock logits of each segment alone, put where the segment is in its row; NaN on padding."""
    logits = torch.full((*tokens_BL.shape, CONFIG.vocabulary_size), torch.nan)
    for row, ids in enumerate(segment_ids_BL):
        for number in ids[ids >= 0].unique():
            at = ids == number
            logits[row, at] = model(input_ids=tokens_BL[row, at][None]).logits[0]
    return logits


def difference(a: Tensor, b: Tensor, segment_ids_BL: Tensor) -> float:
    return float((a - b)[segment_ids_BL >= 0].abs().max())


def test_logits_are_those_of_stock_modernbert_on_a_padded_batch(stock_model: torch.nn.Module) -> None:
    tokens_BL, ids_BL = padded()
    with torch.no_grad():
        expected = stock_model(input_ids=tokens_BL, attention_mask=(ids_BL >= 0).long()).logits
    assert expected[ids_BL >= 0].std() > 0.3, "the logits differ enough for a comparison to mean something"
    assert difference(ours(random_model(), tokens_BL, ids_BL), expected, ids_BL) < CLOSE


def test_a_packed_row_gives_each_segment_the_stock_logits_of_that_segment_alone(stock_model: torch.nn.Module) -> None:
    tokens_BL, ids_BL = packed()
    logits = ours(random_model(), tokens_BL, ids_BL)
    assert torch.isfinite(logits).all(), "padding sees itself and gives no NaN"
    assert difference(logits, theirs(stock_model, tokens_BL, ids_BL), ids_BL) < CLOSE


@pytest.mark.parametrize("way", ["by hand", "modules"])
def test_long_rows_in_pieces_and_bands_have_the_stock_logits(way: str, tmp_path: Path) -> None:
    from transformers import AutoModelForMaskedLM

    config = dataclasses.replace(CONFIG, length=640, window=64, rope_global=5000.0, rope_local=100.0, norm_eps=1e-3)
    save_stock(random_model(config), tmp_path)
    theirs_model = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    tokens_BL = torch.randint(5, 97, (1, 640), generator=torch.Generator().manual_seed(4))
    ids_BL = torch.tensor([[0] * 430 + [1] * 150 + [2] * 50 + [-1] * 10])
    model = load_stock(tmp_path)
    model.encoder.compiled = way == "modules"
    logits = ours(model, tokens_BL, ids_BL, config.window)
    assert difference(logits, theirs(theirs_model, tokens_BL, ids_BL), ids_BL) < 2 * CLOSE


def swapped_thetas(model: MaskedLanguageModel, _: Tensor) -> tuple[MaskedLanguageModel, int | None]:
    rope = {"rope_global": CONFIG.rope_local, "rope_local": CONFIG.rope_global}
    return from_stock(to_stock(model), dataclasses.replace(CONFIG, **rope)), None


def wider_window(model: MaskedLanguageModel, _: Tensor) -> tuple[MaskedLanguageModel, int | None]:
    return model, CONFIG.window + 2


def swapped_gate_and_up(model: MaskedLanguageModel, _: Tensor) -> tuple[MaskedLanguageModel, int | None]:
    state = to_stock(model)
    state |= {name: torch.cat(t.chunk(2)[::-1]) for name, t in state.items() if name.endswith("Wi.weight")}
    return from_stock(state, CONFIG), None


def swapped_query_and_value(model: MaskedLanguageModel, _: Tensor) -> tuple[MaskedLanguageModel, int | None]:
    state = to_stock(model)
    state |= {name: torch.cat(t.chunk(3)[::-1]) for name, t in state.items() if name.endswith("Wqkv.weight")}
    return from_stock(state, CONFIG), None


def other_global_layers(model: MaskedLanguageModel, _: Tensor) -> tuple[MaskedLanguageModel, int | None]:
    return from_stock(to_stock(model), dataclasses.replace(CONFIG, global_every=2)), None


def attention_across_segments(model: MaskedLanguageModel, ids_BL: Tensor) -> tuple[MaskedLanguageModel, int | None]:
    ids_BL.clamp_(max=0)
    return model, None


MUTANTS = [
    swapped_thetas,
    wider_window,
    swapped_gate_and_up,
    swapped_query_and_value,
    other_global_layers,
    attention_across_segments,
]


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mutant_does_not_pass_for_the_stock_model(mutant, stock_model: torch.nn.Module) -> None:
    tokens_BL, ids_BL = packed()
    expected, kept = theirs(stock_model, tokens_BL, ids_BL), ids_BL.clone()
    model, window = mutant(random_model(), ids_BL)
    assert difference(ours(model, tokens_BL, ids_BL, window or CONFIG.window), expected, kept) > 100 * CLOSE


def test_saving_gives_the_same_bytes_and_loading_the_same_bits(folder: Path, tmp_path: Path) -> None:
    loaded = load_stock(folder)
    assert loaded.config == CONFIG
    for (name, a), (_, b) in zip(loaded.named_parameters(), random_model().named_parameters(), strict=True):
        assert torch.equal(a, b), name
    save_stock(loaded, tmp_path)
    for name in (stock.CONFIG_FILE, stock.WEIGHTS_FILE):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_the_saved_config_names_every_special_id(stock_model: torch.nn.Module) -> None:
    config = stock_model.config
    ids = (config.pad_token_id, config.unk_token_id, config.cls_token_id, config.sep_token_id, config.mask_token_id)
    assert ids == (0, 1, 2, 3, 4)
    assert (config.bos_token_id, config.eos_token_id) == (2, 3)


def test_what_does_not_fit_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="norm_bias"):
        encoder_config(stock_config(CONFIG) | {"norm_bias": True})
    with pytest.raises(DataError, match="local_attention"):
        encoder_config({key: value for key, value in stock_config(CONFIG).items() if key != "local_attention"})
    with pytest.raises(DataError, match="Wo"):
        from_stock({name: t for name, t in to_stock(random_model()).items() if "layers.2.attn.Wo" not in name}, CONFIG)
    with pytest.raises(DataError, match="tok_embeddings"):
        from_stock(to_stock(random_model()), dataclasses.replace(CONFIG, vocabulary_size=96))
    (tmp_path / stock.CONFIG_FILE).write_text(json.dumps(stock_config(CONFIG)))
    (tmp_path / stock.WEIGHTS_FILE).write_bytes((folder / stock.WEIGHTS_FILE).read_bytes()[:-9])
    with pytest.raises(DataError):
        load_stock(tmp_path)
    with pytest.raises(UsageError, match="heads"):
        dataclasses.replace(CONFIG, heads=3)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("size", [1 << 40, 1 << 62, -1, 0, 32.5, float("inf"), "64", None, [64]])
@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size"])
def test_a_size_that_no_model_has_is_refused_before_it_takes_memory(
    folder: Path, tmp_path: Path, key: str, size: object
) -> None:
    (tmp_path / stock.CONFIG_FILE).write_text(json.dumps(stock_config(CONFIG) | {key: size}))
    (tmp_path / stock.WEIGHTS_FILE).write_bytes((folder / stock.WEIGHTS_FILE).read_bytes())
    with pytest.raises((DataError, UsageError)) as found:
        load_stock(tmp_path)
    assert "\n" not in str(found.value)


def test_every_number_of_a_recipe_comes_back_from_the_stock_config() -> None:
    config = dataclasses.replace(
        CONFIG, rope_global=1e6, rope_local=500.0, norm_eps=1e-6, dropout=0.1, global_every=2, window=16
    )
    assert encoder_config(stock_config(config)) == config
    assert {name: value for name, value in stock_config(config).items() if "dropout" in name} == {
        "attention_dropout": 0.1,
        "embedding_dropout": 0.1,
        "mlp_dropout": 0.1,
    }
    with pytest.raises(DataError, match="embedding_dropout"):
        encoder_config(stock_config(config) | {"embedding_dropout": 0.0})
    for name, wrong in (("rope_local", 1.0), ("norm_eps", 0.0), ("dropout", 1.0)):
        with pytest.raises(UsageError, match=name):
            dataclasses.replace(CONFIG, **{name: wrong})


def with_gradients(model: MaskedLanguageModel, masked_M: Tensor | None) -> list[Tensor]:
    """Hidden states of packed rows and the gradients of every parameter of the encoder."""
    tokens_BL, ids_BL = packed()
    model.zero_grad()
    h = model.encoder(tokens_BL, Segments.from_ids(ids_BL, CONFIG.window), masked_M)
    if masked_M is None:
        h = h[ids_BL >= 0]
    generator = torch.Generator().manual_seed(6)
    (h * torch.randn(h.shape, generator=generator, dtype=h.dtype)).sum().backward()
    return [h.detach(), *(one.grad for one in model.encoder.parameters())]


MASKED = torch.tensor([3, 4, 30, 41, 41, 79])  # one twice


@pytest.mark.parametrize("masked_M", [None, MASKED])
@pytest.mark.parametrize("long", [False, True])
def test_gradients_written_by_hand_are_those_of_the_modules(
    masked_M: Tensor | None, long: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if long:
        monkeypatch.setattr(tiles, "ROWS_LENGTH", 0)
        monkeypatch.setattr(tiles, "BANDS_LENGTH", 0)
    model = random_model().double()
    found = with_gradients(model, masked_M)
    model.encoder.compiled = True
    for a, b in zip(found, with_gradients(model, masked_M), strict=True):
        assert float((a - b).norm() / b.norm()) < 1e-6  # cos and sin are in float32


def test_the_states_asked_for_are_those_of_all() -> None:
    model, (tokens_BL, ids_BL) = random_model(), packed()
    segments = Segments.from_ids(ids_BL, CONFIG.window)
    with torch.no_grad():
        whole = model.encoder(tokens_BL, segments).flatten(0, 1)[MASKED]
        assert torch.allclose(model.encoder(tokens_BL, segments, MASKED), whole, atol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("masked_M", [None, MASKED])
def test_computing_blocks_again_changes_no_bit_of_a_gradient(dropout: float, masked_M: Tensor | None) -> None:
    model = random_model(dataclasses.replace(CONFIG, dropout=dropout)).train()
    found = []
    for recompute in (False, True):
        model.encoder.recompute = recompute
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16):
            found.append(with_gradients(model, masked_M))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_dropout_acts_in_training_only_and_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(dataclasses.replace(CONFIG, dropout=0.2))
    tokens_BL, ids_BL = packed()
    assert torch.equal(ours(model, tokens_BL, ids_BL), ours(random_model(), tokens_BL, ids_BL))
    places: list[float] = []
    monkeypatch.setattr(encoder.F, "dropout", lambda x, p, training: places.append(p * training) or x)
    monkeypatch.setattr(attention.Dropout, "draw", lambda self, weights: places.append(self.rate))
    ours(model.train(), tokens_BL, ids_BL)
    assert places == [0.2] * (1 + 3 * CONFIG.layers), "the embedding; weights, output and mlp of every layer"


def test_initial_weights_are_a_function_of_the_seed_alone() -> None:
    first, again, other = (MaskedLanguageModel(CONFIG) for _ in range(3))
    initialise(first, 5)
    torch.rand(3)  # the global generator plays no part
    initialise(again, 5)
    initialise(other, 6)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.encoder.embedding.weight, other.encoder.embedding.weight)
    zero = [name for name, p in first.named_parameters() if not p.any() and name != "prediction.bias"]
    assert zero == [f"encoder.layers.{i}.{p}.weight" for i in range(4) for p in ("attention.output", "mlp.down")]


def test_the_decoder_bias_is_the_log_of_the_smoothed_frequencies() -> None:
    bias = unigram_bias(np.array([0, 0, 3, 5]), 4)
    assert torch.allclose(bias.exp(), torch.tensor([1, 1, 4, 6]) / 12)
    with pytest.raises(DataError):
        unigram_bias(np.zeros(3, dtype=np.int64), 4)


@torch.no_grad()
def test_bfloat16_autocast_stays_near_float32() -> None:
    tokens_BL, ids_BL = packed()
    exact = ours(random_model(), tokens_BL, ids_BL)
    with torch.autocast("cpu", torch.bfloat16):
        near = ours(random_model(), tokens_BL, ids_BL).float()
    assert (near - exact).norm() < 0.03 * exact.norm()


def test_what_a_model_leaves_out_is_as_in_the_settings_of_pretrain():
    mine = {one.name: one.default for one in dataclasses.fields(EncoderConfig)}
    settings = {one.name: one.default for one in dataclasses.fields(PretrainConfig) if one.name in mine}
    sizes = dict.fromkeys(DIMENSIONS, dataclasses.MISSING)  # those of no size in particular
    assert {name: mine[name] for name in settings} == settings | sizes and len(settings) == 10
