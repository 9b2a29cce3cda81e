"""Models of images under evaluation: baselines by hand, pixels as codes, pictures, the whole report."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from tasks import evidence, gate, image_agenda, image_baselines, image_pictures, image_subject, intrinsic, overlap
from tasks.artifacts import Store
from tasks.batches import ShardReader, frozen_batch
from tasks.codebook import nearest, patches_of
from tasks.errors import UsageError
from tasks.evaluate import evaluate
from tasks.image_settings import ImageEvaluateConfig, ProbeConfig
from tasks.patches import standardised
from tasks.report import Examined, Report, page
from tasks.results import CHAMPION, MODEL, NEIGHBOUR, PLACE, UNIGRAM, UNTRAINED
from tasks.strata import Places
from tests.tasks import drawn_images, made_outcomes, small_images

STEPS = 120
FORMS = [("payload", "tokens"), ("tokens", "tokens"), ("payload", "payload")]
ORDINARY = [[5, 7]]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Store, corpus, codebook, shards."""
    store = Store(tmp_path_factory.mktemp("images"))
    corpus = small_images.corpus(store)
    words = small_images.codebook(store, corpus)
    return store, corpus, words, small_images.shards(store, corpus, words)


def examined(made, steps, see="payload", ask="tokens"):
    store, _, words, rows = made
    weights = small_images.pretrain(store, words, rows, steps, see, ask)
    return image_agenda.subject(weights, words, MODEL, "cpu", np.load(rows.path("unigrams.npy")))


def batch_of(rows, number=6):
    reader = ShardReader(rows, "test", payload=True)
    batch = frozen_batch(reader, np.arange(number), reader.rate)
    return batch, (batch.tokens_BL, batch.segment_ids_BL, batch.masked_M[: batch.count])


def images_by_hand(corpus, words, split):
    """Ids of the patches of each image (X, h, w)."""
    codes_KP = np.load(words.path("codebook.npy"))
    images, _ = small_images.bars(200)
    of_split = images[[drawn_images.split_of(number) == split for number in range(200)]]
    patches = patches_of(of_split, small_images.PATCH)
    return 5 + nearest(patches.reshape(-1, codes_KP.shape[1]), codes_KP).reshape(-1, *small_images.GRID)


# Baselines.


def test_place_and_neighbour_are_what_counting_by_hand_gives(made):
    _, corpus, words, rows = made
    scorers, remark = image_agenda.baselines(rows, ORDINARY)
    train_XHW = images_by_hand(corpus, words, "train")
    counts = np.array([(train_XHW == one).sum() for one in range(64)])
    unigram = np.array([(counts[one] + 1) / (counts.sum() + 2) if one in (5, 6) else 0 for one in range(64)])
    batch, given = batch_of(rows)
    tokens, segments = batch.tokens_BL.numpy(), batch.segment_ids_BL.numpy()
    place_MV, neighbour_MV = (scorers[label](*given).double().exp().numpy() for label in (PLACE, NEIGHBOUR))
    height, width = small_images.GRID
    pairs = ((train_XHW[:, :, :-1], train_XHW[:, :, 1:]), (train_XHW[:, :-1], train_XHW[:, 1:]))
    whole = [(int((first == second).sum()) + 1) / (first.size + 2) for first, second in pairs]

    def rate(way, after, code):
        """How often a patch is equal to a neighbour of this code that comes before (after) it."""
        there = pairs[way][after] == code
        return ((pairs[way][0] == pairs[way][1])[there].sum() + whole[way]) / (there.sum() + 1)

    for number, at in enumerate(batch.masked_M[: batch.count].tolist()):
        row, column = divmod(at, rows.facts["length"])
        begin = int(np.flatnonzero(segments[row] == segments[row, column])[0])
        assert tokens[row, begin] == 2
        y, x = divmod(column - begin - 1, width)
        here = np.array([(train_XHW[:, y, x] == one).sum() for one in (5, 6)])
        assert place_MV[number, 5:7] == pytest.approx((here + 1) / (here.sum() + 2), rel=1e-5)
        expected = unigram
        for dy, dx in ((0, -1), (-1, 0), (0, 1), (1, 0)):
            code = tokens[row, column + dy * width + dx]
            if 0 <= y + dy < height and 0 <= x + dx < width and code != 4:
                equal = rate(abs(dy), dy + dx > 0, code)
                expected = (1 - equal) * unigram / (1 - unigram[code])
                expected[code] = equal
                break
        assert neighbour_MV[number] == pytest.approx(expected, rel=1e-5, abs=1e-12)
    assert f"{100 * whole[0]:.0f}\u00a0% across" in remark and "160 images" in remark


def test_where_every_neighbour_is_hidden_the_unigram_answers():
    counted = image_baselines.Counted(np.zeros((4, 8), np.int64), np.full((4, 8), 0.9), (0.9, 0.8), 1)
    unigram_V = np.array([0, 0, 0, 0, 0, 0.5, 0.25, 0.25])
    tokens = torch.tensor([[2, 4, 4, 4, 4, 3]])
    said = image_baselines.neighbour_scorer(counted, (2, 2), unigram_V, 4)(
        tokens, torch.zeros_like(tokens), torch.arange(1, 5)
    )
    assert torch.allclose(said.exp(), torch.from_numpy(unigram_V).float())


def test_baselines_are_distributions_over_the_codes(made):
    _, given = batch_of(made[3])
    for said in image_agenda.baselines(made[3], ORDINARY)[0].values():
        p_MV = said(*given).double().exp()
        assert torch.allclose(p_MV.sum(1), torch.ones(len(p_MV), dtype=torch.float64), atol=1e-6)
        assert not p_MV[:, :5].any() and not p_MV[:, 7:].any()


# Models.


def test_a_model_asked_for_pixels_says_the_code_nearest_to_its_mean(made):
    model = examined(made, 20, ask="payload")
    batch, given = batch_of(made[3])
    with torch.inference_mode():
        logits_MV = image_agenda.scorer(model)(*given, batch.payload_BLP)
        mean_MP = model.means()(*given, batch.payload_BLP)
    codes_KP = standardised(torch.from_numpy(model.codebook_KP), model.payload)
    squares = (mean_MP[:, None] - codes_KP).square().sum(2)
    assert torch.equal(logits_MV.argmax(1) - 5, squares.argmin(1))
    assert torch.allclose(logits_MV.softmax(1)[:, 5:7], (-squares / 2).softmax(1), atol=1e-5)
    assert torch.allclose(logits_MV.softmax(1).sum(1), torch.ones(batch.count)) and logits_MV[:, 7:].isinf().all()
    assert "asked for pixels" in image_agenda.remarks(model)[0]


@pytest.mark.parametrize(("see", "ask"), FORMS)
def test_states_of_an_image_do_not_depend_on_its_company(made, monkeypatch, see, ask):
    model = examined(made, 20, see, ask)
    images = small_images.bars(9, seed=3)[0]
    together = model.states(images)
    monkeypatch.setattr(image_subject, "POSITIONS", 2 * (model.patches + 2))
    assert np.allclose(model.states(images), together, atol=1e-5) and together.shape == (9, 32)
    assert not np.allclose(model.untrained(0).states(images), together, atol=1e-2)
    for wrong in (images[:, :9], np.repeat(images, 3, axis=3)):
        with pytest.raises(UsageError, match="images of"):
            model.states(wrong)


def test_a_model_of_another_codebook_is_refused(made):
    model = examined(made, 0)
    for codes, payload in (
        (np.zeros((100, 9), np.uint8), model.payload),
        (model.codebook_KP, model.payload | {"mean": [1.0]}),
    ):
        with pytest.raises(UsageError, match="codebook"):
            image_subject.ImageSubject(model.model, codes, payload, "x")


def test_scores_do_not_depend_on_the_size_of_a_batch(made):
    _, corpus, _, rows = made
    model, reader = examined(made, 20), ShardReader(rows, "test", payload=True)
    counts_V = np.load(rows.path("unigrams.npy"))
    scorers = {MODEL: image_agenda.scorer(model)} | image_agenda.baselines(rows, ORDINARY)[0]
    asked = intrinsic.asked(reader, rows, np.arange(reader.rows), image_agenda.strata(reader, counts_V), corpus)
    found = [intrinsic.outcomes(asked, ["0.4"], scorers, size, lambda rows: None)[0] for size in (1, 64)]
    for name, by_label in found[0].figures.items():
        for label, figure in by_label.items():
            assert figure.value == pytest.approx(found[1].figures[name][label].value, abs=1e-5), (name, label)


# Classes of patches.


def test_each_patch_is_of_one_class_and_the_commonest_code_is_alone(made):
    reader = ShardReader(made[3], "test", payload=True)
    counts_V = np.zeros(64, np.int64)
    counts_V[5:25] = [1000, *range(100, 119)]
    tokens_RL = np.arange(64)[None].repeat(2, 0)
    at_M = np.arange(5, 21)
    places = Places(tokens_RL, at_M, np.zeros(16, np.int64), np.arange(1, 17))
    commonest, frequency, ring = image_agenda.strata(reader, counts_V)
    for one in (commonest, frequency, ring):
        assert ((one.classes(places) >= 0) & (one.classes(places) < len(one.rows))).all()
    assert commonest.classes(places).tolist() == [0, *[1] * 15]
    assert "commonest code, 33" in commonest.rows[0] and "67" in commonest.rows[1]
    assert all(" 0 codes" not in row for row in frequency.rows) and "1 code," in frequency.rows[0]
    edge = [min(y, x, 3 - y, 3 - x) for y in range(4) for x in range(4)]
    assert ring.classes(places).tolist() == edge and ring.rows == ("at the border", "1 patch inside")


# Pictures.


@pytest.mark.parametrize(("see", "ask"), [FORMS[0], FORMS[2]])
def test_pictures_hide_what_the_model_does_not_see_and_change_nothing_else(made, see, ask):
    _, _, words, rows = made
    model, reader = examined(made, 20, see, ask), ShardReader(rows, "test", payload=True)
    chosen = image_pictures.spread(len(reader.segment_lengths), 5)
    shown = image_pictures.filled_in(model, reader, chosen)
    images, _ = small_images.bars(200)
    of_test = images[[drawn_images.split_of(number) == "test" for number in range(200)]]
    order = intrinsic.documents(rows, "test")[chosen]
    assert np.array_equal(shown.original, of_test[order])
    hidden_EN, filled_EN, original_EN, codes_EN = (
        patches_of(some, small_images.PATCH) for some in (shown.hidden, shown.filled, shown.original, shown.codes)
    )
    grey = (hidden_EN == image_pictures.GREY).all(2)
    assert (grey.sum(1) == int(16 * 0.4)).all()
    assert np.array_equal(hidden_EN[~grey], original_EN[~grey])
    assert np.array_equal(filled_EN[~grey], original_EN[~grey])
    codes_KP = np.load(words.path("codebook.npy"))
    assert np.array_equal(codes_EN.reshape(-1, 9), codes_KP[nearest(original_EN.reshape(-1, 9), codes_KP)])
    if ask == "tokens":
        assert {row.tobytes() for row in filled_EN[grey]} <= {row.tobytes() for row in codes_KP}


def test_pictures_are_the_same_bytes_again_and_none_where_none_are_wanted(made, tmp_path):
    model = examined(made, 20)
    ((caption, png),) = image_pictures.pictures(3, model, made[3], tmp_path).items()
    assert png == image_pictures.pictures(3, model, made[3], tmp_path)[caption]
    assert png[:4] == b"\x89PNG" and (tmp_path / "pictures.png").read_bytes() == png
    assert caption.startswith("3 images of the test split") and "40\u00a0%" in caption
    assert image_pictures.pictures(0, model, made[3], tmp_path) == {}
    assert image_pictures.pictures(10**6, model, made[3], tmp_path).popitem()[0].startswith("20 images")


def test_a_report_shows_pictures_without_loading_anything_and_is_as_it_was_without_them():
    plain = Report("A", [Examined(MODEL, "this model")], [made_outcomes.pairs({MODEL: 0.7, UNTRAINED: 0.5}, 3)])
    before, after = page(plain), page(dataclasses.replace(plain, pictures={'<b>"seen"': b"\x89PNG"}))
    assert "<img" not in before and "img-src" not in before
    assert "img-src data:" in after and 'src="data:image/png;base64,iVBORw=="' in after
    assert "<b>&quot;seen" not in after and "&lt;b&gt;&quot;seen&quot;" in after and after.count("src=") == 1


# The whole evaluation.


def settings(**changed):
    probe = ProbeConfig(train=100, seeds=3, neighbours=5)
    return ImageEvaluateConfig(**{"threads": 1, "rates": ("0.4",), "pictures": 3, "probe": probe} | changed)


@pytest.fixture(scope="module")
def learnt(made):
    """The report of a model that learnt, beside one that did not."""
    store, corpus, words, rows = made
    weights, before = (small_images.pretrain(store, words, rows, steps) for steps in (STEPS, 0))
    return evaluate(settings(), corpus, words, rows, weights, before, store)[0]


def test_a_model_that_learnt_beats_its_baselines_and_the_untrained_probe(learnt):
    metrics = learnt.facts["metrics"]
    loss = metrics["test/rate_0.4/masked_cross_entropy"]
    for label in (UNIGRAM, PLACE, NEIGHBOUR, UNTRAINED, CHAMPION):
        assert loss < metrics[f"{label}/rate_0.4/masked_cross_entropy"] - 0.1, label
    (task,) = learnt.facts["tasks"]
    figures = task["figures"]["probe_accuracy"]
    assert figures["test"]["low"] > figures["baseline_untrained"]["high"] and figures["test"]["value"] > 0.95
    assert any("beats that of the untrained encoder by" in remark for remark in task["remarks"])


def test_the_report_speaks_of_images_and_holds_the_table_without_the_background(learnt):
    text = learnt.path("report.html").read_text()
    assert "data:image/png;base64," in text and "other images of the same kind" in text
    assert "all other codes" in text
    assert "texts" not in text and "words" not in text.replace("13 words", "")
    (rate,) = [one for one in json.loads(learnt.path("report.json").read_text())["outcomes"] if "rate" in one["task"]]
    first = next(table for table in rate["tables"] if table["title"].startswith("top-1"))
    assert len(first["rows"]) == 2 and first["columns"]["test"][1]["value"] > 0.5
    assert learnt.path("pictures.png").exists()


def test_the_gate_compares_models_of_images_by_image_and_by_class(learnt):
    found = evidence.read(learnt.path(evidence.FILE))
    decision = gate.decide(found[MODEL], found[CHAMPION], gate.Rule(class_tokens=20))
    assert decision.promoted and decision.units == 20 and len(decision.parts) == len(found[MODEL].classes.n) > 4
    assert not gate.decide(found[CHAMPION], found[MODEL], gate.Rule()).promoted


def test_a_model_that_continues_on_other_images_may_not_have_seen_the_test_split(made, tmp_path):
    _, corpus, _, _ = made
    images, _ = small_images.bars(200)
    turned = drawn_images.corpus(Store(tmp_path), images, ["test" if one % 10 < 8 else "train" for one in range(200)])
    assert overlap.copies(corpus, []) == {"equal": 0, "near": 0, "examples": [], "measured": []}
    assert overlap.copies(corpus, [turned])["equal"] == 20
    assert overlap.copies(corpus, [turned])["measured"] == [turned.digest]


@pytest.mark.slow
@pytest.mark.parametrize(("see", "ask"), FORMS[1:])
def test_every_form_of_model_is_evaluated(made, see, ask):
    store, corpus, words, rows = made
    weights = small_images.pretrain(store, words, rows, 3 * STEPS, see, ask)
    report, _ = evaluate(settings(), corpus, words, rows, weights, None, store)
    metrics = report.facts["metrics"]
    loss = metrics["test/rate_0.4/masked_cross_entropy"]
    assert loss < metrics["baseline_unigram/rate_0.4/masked_cross_entropy"]
    said = "density that the model gives" in report.path("report.html").read_text()
    assert said == (ask == "payload")


def test_images_without_labels_leave_the_probe_out_with_a_reason(tmp_path):
    store = Store(tmp_path)
    corpus = small_images.corpus(store, labelled=False)
    words = small_images.codebook(store, corpus)
    rows = small_images.shards(store, corpus, words)
    weights = small_images.pretrain(store, words, rows, 0)
    report, _ = evaluate(settings(), corpus, words, rows, weights, None, store)
    assert report.facts["tasks"] == []
    assert report.facts["left_out"] == ["probe is left out. The images of the corpus have no labels."]
