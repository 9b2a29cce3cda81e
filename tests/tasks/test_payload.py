"""What goes along with each token, from the shards to the loss. pytest tests/tasks/test_payload.py"""

import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from tasks import draws, image_settings, shards
from tasks.artifacts import Store
from tasks.batches import ShardReader, frozen_batch, training_batch
from tasks.codebook import nearest, patches_of, read_images
from tasks.encoder import MaskedLanguageModel, Segments, initialise
from tasks.encoder_config import PayloadConfig, config_of
from tasks.errors import UsageError
from tasks.objective import masked_loss
from tasks.optimizer import is_hidden_matrix
from tasks.patches import standardised
from tasks.rows import payload_of, read
from tasks.stock import load_stock, save_stock
from tasks.strand import Strand
from tests.tasks import bar_images, handmade


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("images"))
    documents = bar_images.corpus(store)
    words = bar_images.vocabulary(store, documents)
    return store, documents, words, bar_images.rows(store, documents, words)


def test_a_row_has_whole_images_with_the_code_and_the_pixels_of_each_patch(made):
    _, documents, words, rows = made
    codes, patch = np.load(words.path("codebook.npy")), words.facts["payload"]["patch"]
    for split in ("train", "validation", "test"):
        wanted = np.concatenate([pixels for name, pixels in read_images(documents) if name == split])
        patches = patches_of(wanted, patch)
        reader = ShardReader(rows, split, payload=True)
        ids = np.arange(reader.rows)
        tokens, payload = reader.rows_of(ids), reader.stored_payload(ids)
        lengths, _ = reader.segments_of_rows(ids)
        assert (lengths == 11).all() and len(lengths) == len(wanted), "an image was cut"
        at = tokens >= 5
        assert (payload[~at] == 0).all()
        assert (payload[at] == patches.reshape(-1, patch * patch)).all(), "images come in the order of the corpus"
        assert (tokens[at] - 5 == nearest(patches.reshape(-1, patch * patch), codes)).all()


def test_the_file_holds_them_in_one_column_and_text_has_none(made, tmp_path):
    *_, rows = made
    batch = read(rows.path("train-00000.arrow"))
    assert payload_of(batch, 24).shape == (len(batch), 24, 16)
    assert batch.schema.names == ["tokens", "sequence", "segments", "payload", "draw_0"]
    assert draws.verify_masks(rows) == [] and "words.npy" not in rows.files
    text = handmade.shards(Store(tmp_path))
    assert "payload" not in read(text.path("train-00000.arrow")).schema.names and "modality" not in text.facts


@pytest.mark.parametrize("policy", ["uniform", "block"])
def test_what_is_hidden_is_not_in_the_batch_and_stands_apart_as_a_target(made, policy):
    store, documents, words, _ = made
    rows = bar_images.rows(store, documents, words, policy=policy, draws=2)
    reader = ShardReader(rows, "train", payload=True)
    for batch in (training_batch(reader, 3, 7, seed=0), frozen_batch(reader, np.arange(5), "0.4")):
        at = batch.masked_M[: batch.count]
        whole = torch.from_numpy(reader.stored_payload(batch.sequence_ids_B)).flatten(0, 1)
        assert (batch.payload_BLP.flatten(0, 1)[at] == 0).all()
        assert (batch.payload_MP[: batch.count] == whole[at]).all() and whole[at].any()
        shown = torch.ones(len(whole), dtype=torch.bool).index_fill(0, at, False)
        assert (batch.payload_BLP.flatten(0, 1)[shown] == whole[shown]).all()
        parts = list(batch.split(2))
        assert torch.equal(torch.cat([part.payload_BLP for part in parts]), batch.payload_BLP)
        held = torch.cat([part.payload_MP[: part.count] for part in parts])
        assert torch.equal(held, batch.payload_MP[: batch.count])


def model_of(made, **asks):
    *_, rows = made
    config = asdict(replace(bar_images.TRAINING, **asks)) | {"heads": 2, "layers": 2, "width": 32}
    strand = Strand(config, [rows])
    model = MaskedLanguageModel(strand.sizes)
    initialise(model, 0, strand.counts)
    with torch.no_grad():
        for parameter in model.parameters():  # zero-initialised projections make any block pass
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    batch = frozen_batch(ShardReader(rows, "validation", payload=True), np.arange(3), "0.4")
    return strand, model, batch


def test_the_embedding_is_the_equation_position_by_position(made):
    strand, model, batch = model_of(made)
    facts, part = strand.sizes.payload, model.encoder.payload
    segments = Segments.from_ids(batch.segment_ids_BL, 128)
    rows = model.encoder.embedding(batch.tokens_BL)
    shown = model.encoder.shown(rows, batch.tokens_BL, segments, batch.payload_BLP)
    height, width = facts["grid"]
    for row, column in np.ndindex(*batch.tokens_BL.shape):
        token, place = int(batch.tokens_BL[row, column]), int(segments.positions_BL[row, column]) - 1
        wanted = model.encoder.embedding.weight[token]
        if token not in (0, 2, 3):
            if token != 4:
                x = (batch.payload_BLP[row, column].float() - facts["mean"][0]) / facts["deviation"][0]
                wanted = part.projection.weight @ x + part.projection.bias
            wanted = wanted + part.rows.weight[place // width] + part.columns.weight[place % width]
        torch.testing.assert_close(shown[row, column], wanted)
    assert height * width == 9


@pytest.mark.parametrize("asks", [{}, {"target": "payload"}, {"input": "tokens", "target": "payload"}])
def test_a_model_folder_comes_back_with_the_same_answers(made, tmp_path, asks):
    strand, model, batch = model_of(made, **asks)
    save_stock(model, tmp_path)
    again = load_stock(tmp_path)
    assert again.config == config_of(vars(model.config)) == strand.sizes
    segments = Segments.from_ids(batch.segment_ids_BL, 128)
    given = batch.tokens_BL, segments, batch.masked_M, batch.payload_BLP
    model.eval()
    torch.testing.assert_close(again(*given), model(*given))


def test_the_loss_of_pixels_is_that_of_gaussians_of_deviation_one(made):
    strand, model, batch = model_of(made, target="payload")
    (*given,) = strand.given(batch, torch.device("cpu"))
    loss = masked_loss(model, *given)
    segments = Segments.from_ids(batch.segment_ids_BL, 128)
    mean = model(batch.tokens_BL, segments, batch.masked_M, batch.payload_BLP)[: batch.count]
    x = standardised(batch.payload_MP[: batch.count], strand.sizes.payload)
    wanted = -Normal(mean, 1.0).log_prob(x).sum()
    torch.testing.assert_close(loss.sum_nll, wanted)
    assert math.isclose(strand.level, 0.5 * 16 * (1 + math.log(2 * math.pi)))
    loss.sum_nll.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_an_untrained_model_of_pixels_is_as_good_as_the_mean(made):
    *_, rows = made
    strand = Strand(asdict(replace(bar_images.TRAINING, target="payload")), [rows])
    model = MaskedLanguageModel(strand.sizes)
    initialise(model, 0, strand.counts)
    batch = training_batch(strand.reader, 0, 32, 0)
    loss = masked_loss(model, *strand.given(batch, torch.device("cpu"))).sum_nll / batch.count
    assert abs(float(loss.detach()) - strand.level) < 0.1 * strand.level


def test_pixels_of_hidden_patches_have_no_part_in_what_is_said_of_them(made):
    strand, model, batch = model_of(made)
    given = strand.given(batch, torch.device("cpu"))
    before = masked_loss(model, *given).sum_nll
    noisy = batch.payload_BLP.flatten(0, 1).clone()
    noisy[batch.masked_M[: batch.count]] = 200
    other = replace(batch, payload_BLP=noisy.view_as(batch.payload_BLP))
    assert torch.equal(masked_loss(model, *strand.given(other, torch.device("cpu"))).sum_nll, before)
    visible = batch.payload_BLP.clone()
    visible[0, 1:3] ^= 255
    other = replace(batch, payload_BLP=visible)
    assert not torch.equal(masked_loss(model, *strand.given(other, torch.device("cpu"))).sum_nll, before)


def test_muon_takes_no_embedding_and_no_means(made):
    _, model, _ = model_of(made, target="payload")
    names = {name for name, one in model.named_parameters() if one.ndim == 2 and not is_hidden_matrix(name, one)}
    assert names == {
        "encoder.embedding.weight", "encoder.payload.projection.weight", "encoder.payload.rows.weight",
        "encoder.payload.columns.weight", "prediction.mean.weight",
    }  # fmt: skip


def test_shards_of_text_have_nothing_to_show(tmp_path):
    rows = handmade.shards(Store(tmp_path))
    with pytest.raises(UsageError, match=r"pretrain\.input is payload .* the shards carry nothing but tokens"):
        Strand(asdict(bar_images.TRAINING), [rows])
    with pytest.raises(UsageError, match="carry nothing"):
        PayloadConfig(64, 32, 2, 32, 2, 64, input="payload")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"length": 8, "rate": "0.5"}, r"shards\.length is 8, and a document has 9 tokens that must not be cut"),
        ({"packing": "best-fit"}, r"shards\.packing is best-fit, which may cut a document"),
        ({"policy": "checkers"}, r"shards\.policy is 'checkers'"),
    ],
)
def test_settings_that_would_cut_an_image_are_refused(made, settings, said):
    store, documents, words, _ = made
    with pytest.raises(UsageError, match=said):
        bar_images.rows(store, documents, words, **settings)


def test_blocks_are_refused_for_text_before_anything_is_made(tmp_path):
    from tests.tasks import small_model

    store = Store(tmp_path)
    documents = small_model.corpus(store)
    with pytest.raises(UsageError, match=r"shards\.policy is block, and the tokens of these documents lie in no grid"):
        config = shards.ShardsConfig(length=32, policy="block")
        shards.shards(config, documents, small_model.vocabulary(store, documents), store)


def test_the_settings_of_images_have_other_defaults_and_the_same_keys():
    assert set(asdict(image_settings.ImageShardsConfig())) == set(asdict(shards.ShardsConfig()))
