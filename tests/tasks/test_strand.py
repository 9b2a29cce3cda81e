"""Two modalities in one encoder: one objective, one gradient, one checkpoint. pytest tests/tasks/test_strand.py"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks import looping, modalities, pretrain
from tasks.artifacts import Store
from tasks.batches import hidden_in, segments_of_step
from tasks.encoder import MaskedLanguageModel, initialise
from tasks.errors import UsageError
from tasks.objective import masked_loss
from tasks.pretrain import job_of
from tasks.pretrain_config import BesideConfig
from tasks.ranks import Ranks
from tasks.stock import load_stock
from tasks.strand import Strand
from tasks.training import Training
from tests.tasks import bar_images, handmade
from tests.tasks.here_training import _one_thread as _one_thread

MIXED = replace(
    bar_images.TRAINING,
    input="tokens",
    batch_tokens=256,
    steps=4,
    beside=BesideConfig(batch_tokens=240),
    micro_tokens=0,
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Vocabulary and shards of text, then of images."""
    store = Store(tmp_path_factory.mktemp("store"))
    images = bar_images.corpus(store)
    words = bar_images.vocabulary(store, images)
    return handmade.vocabulary(store), handmade.shards(store), words, bar_images.rows(store, images, words)


def fresh(inputs, folder, config=MIXED):
    vocabulary, rows, words, images = inputs
    work = Path(folder, "work")
    (work / ".scratch").mkdir(parents=True, exist_ok=True)
    job = job_of(config, vocabulary, [rows], work, work / ".scratch", None, (words, images))
    return Training(job, Ranks(torch.device("cpu")))


def parameters(run):
    return {name: value.detach().clone() for name, value in run.model.named_parameters()}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("changes", [{}, {"micro_tokens": 64}, {"reduction": "exact", "logical_shards": 2}])
def test_the_gradient_is_that_of_both_losses_over_the_masked_tokens_of_both(inputs, tmp_path, changes):
    config = replace(MIXED, **changes)
    run = fresh(inputs, tmp_path, config)
    run.begin()
    run.optimizers.step = lambda: None
    run.take_step()
    model = MaskedLanguageModel(*(strand.sizes for strand in run.strands))
    initialise(model, config.seed, *(strand.counts for strand in run.strands))
    first, second = run.strands
    lengths = segments_of_step(first.reader, 0, 8, config.seed), second.lengths_of(0, config.seed)
    count = sum(hidden_in(some, one.reader.rate) for some, one in zip(lengths, run.strands))
    batches = run.batch, second.batch(0, config.seed, 0, 1)
    if config.reduction == "exact":  # run.batch is the last shard's
        batches = (*fresh_batches(first, config), second.batch(0, config.seed, 0, 1))
    for batch in batches:
        of = model.beside if batch.strand else model
        given = run.strands[batch.strand].given(batch, torch.device("cpu"))
        (masked_loss(of, *given[:6]).sum_nll / count).backward()
    norm = torch.nn.utils.get_total_norm([one.grad for one in model.parameters()])
    scale = min(1.0, config.clip / (float(norm) + 1e-6))
    for (name, mine), (other, its) in zip(run.model.named_parameters(), model.named_parameters(), strict=True):
        assert name == other
        torch.testing.assert_close(mine.grad, its.grad * scale, atol=1e-6, rtol=1e-4)


def fresh_batches(strand, config):
    from tasks.batches import training_batch

    return (training_batch(strand.reader, 0, 8, config.seed),)


def test_the_blocks_are_shared_and_nothing_else_is(inputs, tmp_path):
    model = fresh(inputs, tmp_path).model
    names = [name for name, _ in model.named_parameters()]
    own = {name.removeprefix("beside.").split(".")[1] for name in names if name.startswith("beside.")}
    assert model.beside.encoder.layers is model.encoder.layers
    assert own == {"embedding", "payload", "embedding_norm", "dense", "norm", "bias"} and len(names) == len(set(names))


def test_a_run_that_goes_on_from_a_checkpoint_ends_in_the_same_bytes(inputs, tmp_path):
    whole = fresh(inputs, tmp_path / "whole")
    whole.begin()
    for _ in range(4):
        whole.take_step()
    broken = fresh(inputs, tmp_path / "broken")
    broken.begin()
    for _ in range(2):
        broken.take_step()
    broken.checkpoint()
    broken.keeper.wait()
    again = fresh(inputs, tmp_path / "broken")
    again.begin()
    assert again.step == 2
    for _ in range(2):
        again.take_step()
    assert same(parameters(whole), parameters(again))
    assert whole.points.sums == again.points.sums and min(again.points.sums.masked) > 0


def test_each_modality_gets_a_model_folder_that_says_what_the_training_model_does(inputs, tmp_path):
    run = fresh(inputs, tmp_path)
    run.begin()
    run.take_step()
    looping._record(run, 0.0, _Bar())
    looping.finish(run, run.weights())
    point = json.loads(run.journal.curve.read_bytes().splitlines()[-1])
    assert {"train/loss", "train/loss_text", "train/loss_images", "train/accuracy_images"} <= point.keys()
    for folder, strand, model in (
        (modalities.MODEL, run.strands[0], run.model),
        (modalities.BESIDE, run.strands[1], run.model.beside),
    ):
        batch = strand.validation[0]
        given = strand.given(batch, torch.device("cpu"))[:6]
        with torch.no_grad():
            saved = masked_loss(load_stock(run.folder / folder), *given).sum_nll
            torch.testing.assert_close(saved, masked_loss(model.eval(), *given).sum_nll)
    assert (run.folder / "beside" / "codebook.npy").exists() and (run.folder / "model" / "tokenizer.json").exists()


class _Bar:
    def note(self, text):
        pass


def test_the_images_of_a_step_depend_on_its_number_only(inputs):
    *_, images = inputs
    strand = Strand(bar_images.TRAINING.__dict__ | {"batch_tokens": 240, "isolate": True}, [images], 1)
    seen = [strand.batch(step, 5, 0, 1).sequence_ids_B for step in range(40)]
    assert all(len(ids) == 10 for ids in seen)
    epochs = np.concatenate(seen)[: strand.reader.rows * 2].reshape(2, -1)
    assert all(sorted(epoch) == list(range(strand.reader.rows)) for epoch in epochs)
    halves = [strand.batch(3, 5, part, 2).sequence_ids_B for part in range(2)]
    assert list(np.concatenate(halves)) == list(seen[3])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"devices": "2"}, r"pretrain\.beside: several ranks train on two modalities with pretrain\.reduction: exact"),
        ({"steps": 0, "beside": BesideConfig(240, alone=True)}, r"pretrain\.beside\.alone: what is trained alone"),
        ({"fork": "1234"}, r"pretrain\.fork: a run on two modalities cannot be forked"),
    ],
)
def test_what_two_modalities_cannot_do_is_refused(changes, said):
    with pytest.raises(UsageError, match=said):
        pretrain.refuse(replace(MIXED, **changes), 32)


def test_both_vocabularies_may_read_with_the_weights_and_no_third(inputs, tmp_path):
    from tasks.artifacts import Built, Identity, Workspace, check_parent

    vocabulary, rows, words, images = inputs
    this = pretrain.identity(MIXED, vocabulary.digest, rows.digest, (), None, (words.digest, images.digest))

    def build(work: Workspace) -> Built:
        return Built({}, {})

    store = Store(tmp_path)
    made, _ = store.make(Identity(this.stage, this.version, this.config, this.inputs), build)
    for one, folder in ((vocabulary, "model"), (words, "beside")):
        check_parent("evaluate", made, one)
        assert modalities.face(made, one.digest) == folder
    with pytest.raises(UsageError, match="was made with the vocabulary"):
        check_parent("evaluate", made, handmade_other(store))


def handmade_other(store):
    from tasks.artifacts import Built, Identity

    return store.make(Identity("vocabulary", 1, {"other": 1}, {}), lambda work: Built({}, {}))[0]
