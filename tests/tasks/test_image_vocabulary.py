"""The stage: learnt from train images only, the same for any order of them, its books balance, its card shows it.

pytest tests/tasks/test_image_vocabulary.py
"""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from tasks import codebook, codebook_card
from tasks.artifacts import Store
from tasks.errors import DataError, UsageError
from tasks.image_vocabulary import ImageVocabularyConfig, identity, vocabulary
from tests.tasks import drawn_images

MNIST = Path(__file__).parents[3] / "shared/data/images/mnist/t10k-images-idx3-ubyte.gz"
CONFIG = ImageVocabularyConfig(size=45, patch=4, epochs=2, batch=256)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


@pytest.fixture
def images():
    return drawn_images.drawn(200, 8, 12, 3)


def codes_of(manifest) -> np.ndarray:
    return np.load(manifest.path("codebook.npy"))


def test_files_facts_and_books(store, images):
    corpus = drawn_images.corpus(store, images)
    made, reused = vocabulary(CONFIG, corpus, store)
    assert not reused
    assert vocabulary(CONFIG, corpus, store) == (made, True)
    assert sorted(made.files) == ["card.html", "card.json", "codebook.npy"]
    codes, facts, counts = codes_of(made), made.facts, made.counts
    assert codes.shape == (40, 48)
    assert (facts["size"], facts["tokens"], facts["reserved"]) == (64, 45, 19)
    assert facts["ordinary"] == [[5, 45]]
    assert facts["special_ids"] == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    assert facts["special_names"]["mask"] == "[MASK]"
    assert (facts["modality"], facts["model"]) == ("images", "codebook")
    train = images[[drawn_images.split_of(number) == "train" for number in range(200)]]
    payload = facts["payload"]
    assert payload | {"mean": 0, "deviation": 0} == {
        "bytes": 48, "grid": [2, 3], "patch": 4, "channels": 3, "mean": 0, "deviation": 0,
    }  # fmt: skip
    assert payload["mean"] == pytest.approx(train.mean((0, 1, 2)), abs=1e-6)
    assert payload["deviation"] == pytest.approx(train.std((0, 1, 2)), abs=1e-6)
    assert counts["documents_in"] == counts["documents_train"] + counts["documents_held_out"] == 200
    assert counts["documents_sampled"] == counts["documents_train"] == 160
    assert counts["patches_train"] == counts["patches_sampled"] == 160 * 6
    assert json.loads(json.dumps(facts)) == facts


def test_quality_is_that_of_the_codes(store, images):
    corpus = drawn_images.corpus(store, images)
    made = vocabulary(CONFIG, corpus, store)[0]
    codes = codes_of(made)
    for split in ("train", "validation"):
        some = images[[drawn_images.split_of(number) == split for number in range(200)]]
        patches = codebook.patches_of(some, 4).reshape(-1, 48)
        found = codebook.nearest(patches, codes)
        off = patches.astype(float) - codes[found]
        share = np.bincount(found, minlength=40) / len(found)
        quality = made.facts["quality"][split]
        assert quality["patches"] == len(patches)
        assert quality["usage"] == pytest.approx((share > 0).mean(), abs=1e-6)
        assert quality["mse"] == pytest.approx((off**2).mean(), abs=1e-6)
        assert quality["psnr"] == pytest.approx(10 * np.log10(255**2 / (off**2).mean()), abs=1e-4)
        entropy = -(share[share > 0] * np.log(share[share > 0])).sum()
        assert quality["entropy"] == pytest.approx(entropy, abs=1e-6)
        assert quality["perplexity"] == pytest.approx(np.exp(entropy), abs=1e-3)


def test_only_train_images_reach_the_codebook(store, images):
    one = vocabulary(CONFIG, drawn_images.corpus(store, images), store)[0]
    held_out = [drawn_images.split_of(number) != "train" for number in range(200)]
    other = images.copy()
    other[held_out] = 255 - other[held_out]
    two = vocabulary(CONFIG, drawn_images.corpus(store, other), store)[0]
    assert one.digest != two.digest
    assert one.path("codebook.npy").read_bytes() == two.path("codebook.npy").read_bytes()
    assert one.facts["payload"] == two.facts["payload"]
    assert one.facts["quality"]["train"] == two.facts["quality"]["train"]
    assert one.facts["quality"]["validation"] != two.facts["quality"]["validation"]


@pytest.mark.parametrize("sample", [100, 1_000_000])
def test_the_order_the_files_and_the_row_groups_of_a_corpus_do_not_matter(store, images, sample, monkeypatch):
    config = ImageVocabularyConfig(size=45, patch=4, epochs=2, batch=256, sample=sample)
    made = vocabulary(config, drawn_images.corpus(store, images), store)[0]
    order = np.random.default_rng(0).permutation(200).tolist()
    monkeypatch.setattr(codebook, "BATCH_BYTES", 3000)
    other = vocabulary(config, drawn_images.corpus(store, images, files=3, group=7, order=order), store)[0]
    assert made.path("codebook.npy").read_bytes() == other.path("codebook.npy").read_bytes()
    assert made.facts == other.facts
    assert made.counts == other.counts
    assert made.counts["documents_sampled"] == min(160, sample // 6)
    assert made.facts["sample"]["whole"] == (sample > 1000)


def test_the_same_corpus_gives_the_same_bytes(tmp_path, images):
    made = []
    for folder in ("a", "b"):
        store = Store(tmp_path / folder)
        made.append(vocabulary(CONFIG, drawn_images.corpus(store, images), store)[0])
    assert made[0].digest == made[1].digest


def test_a_corpus_with_few_different_patches_gives_a_smaller_codebook_and_says_so(store, capfd):
    flat = np.repeat(np.arange(30, dtype=np.uint8), 64).reshape(30, 8, 8, 1)
    made = vocabulary(ImageVocabularyConfig(size=1024), drawn_images.corpus(store, flat), store)[0]
    assert codes_of(made).shape == (24, 16)
    assert (made.facts["size"], made.facts["tokens"], made.facts["asked"]) == (64, 29, 1024)
    assert "24 codes instead of 1,019" in capfd.readouterr().err
    quality = made.facts["quality"]["train"]
    assert (quality["mse"], quality["psnr"], quality["usage"]) == (0, None, 1)
    assert "has no more than 24 different patches" in made.path("card.html").read_text()


def test_images_of_one_colour_have_a_deviation_that_can_be_divided_by(store):
    made = vocabulary(
        ImageVocabularyConfig(size=64), drawn_images.corpus(store, np.full((20, 8, 8, 1), 7, np.uint8)), store
    )[0]
    assert (made.facts["payload"]["mean"], made.facts["payload"]["deviation"]) == ([7.0], [1.0])
    assert made.facts["quality"]["train"]["entropy"] == 0


def test_without_validation_images_the_card_says_so(store):
    images = drawn_images.drawn(40)
    made = vocabulary(CONFIG, drawn_images.corpus(store, images, ["train"] * 40), store)[0]
    assert made.facts["quality"]["validation"]["mse"] is None
    page = made.path("card.html").read_text()
    assert "No image is in the validation split" in page
    assert "images of the train split" in page


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"size": 5}, "vocabulary.size is 5"),
        ({"size": 1 << 23}, "vocabulary.size is 8,388,608"),
        ({"patch": 0}, "vocabulary.patch is 0"),
        ({"sample": 0}, "vocabulary.sample is 0"),
        ({"epochs": 0}, "vocabulary.epochs is 0"),
        ({"batch": -1}, "vocabulary.batch is -1"),
    ],
)
def test_settings_that_make_no_sense_are_usage_errors(settings, said):
    with pytest.raises(UsageError, match=said):
        ImageVocabularyConfig(**settings)


def test_what_does_not_fit_the_images_is_a_usage_error(store):
    corpus = drawn_images.corpus(store, drawn_images.drawn(20))
    with pytest.raises(UsageError, match=r"side 3 does not divide images of 8 × 8 pixels"):
        vocabulary(ImageVocabularyConfig(patch=3), corpus, store)
    with pytest.raises(UsageError, match=r"one image has 4 patches; use 4 or more"):
        vocabulary(ImageVocabularyConfig(sample=3), corpus, store)
    empty = drawn_images.corpus(store, drawn_images.drawn(20), ["test"] * 20)
    with pytest.raises(UsageError, match="no image in its train split"):
        vocabulary(ImageVocabularyConfig(), empty, store)


def test_a_manifest_that_counts_other_images_is_found_out(store):
    corpus = drawn_images.corpus(store, drawn_images.drawn(20))
    lying = drawn_images.Manifest(**vars(corpus) | {"counts": corpus.counts | {"documents_test": 7}})
    with pytest.raises(DataError, match="maskmill verify corpus"):
        vocabulary(CONFIG, lying, store)


def test_every_setting_is_part_of_the_identity():
    keys = {identity(ImageVocabularyConfig(), "a").key, identity(ImageVocabularyConfig(), "b").key}
    for other in ({"size": 64}, {"patch": 2}, {"seed": 1}, {"sample": 5}, {"epochs": 1}, {"batch": 1}):
        keys.add(identity(ImageVocabularyConfig(**other), "a").key)
    assert len(keys) == 8


def test_the_card_shows_every_code_and_loads_nothing(store, images):
    made = vocabulary(CONFIG, drawn_images.corpus(store, images), store)[0]
    page, card = made.path("card.html").read_text(), json.loads(made.path("card.json").read_text())
    assert sum(card["counts"]["train"]) == 160 * 6
    assert sum(card["counts"]["validation"]) == 20 * 6
    for code, number in enumerate(card["counts"]["train"]):
        assert f'title="id {5 + code}: {number:,} times in training"' in page
    assert page.count("data:image/png;base64,") == 2
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert "40 codes" in codebook_card.markdown(card)


def test_the_pictures_of_the_card_are_the_codes_and_the_images():
    import base64
    import io
    import re

    from PIL import Image

    codes = np.unique(np.random.default_rng(0).integers(0, 256, (7, 12), np.uint8), axis=0)
    counts = {"train": [3, 0, 1, 1, 1, 1, 1], "validation": [1, 0, 0, 0, 0, 0, 0]}
    quality = {name: codebook_card.quality(np.array(some), 10, 12) for name, some in counts.items()}
    facts = {
        "tokens": 12, "asked": 12, "size": 64, "ordinary": [[5, 12]], "quality": quality,
        "payload": {"patch": 2, "channels": 3, "grid": [1, 2]}, "sample": {"patches": 8, "whole": True},
    }  # fmt: skip
    card = codebook_card.card(facts, {"height": 2, "width": 4, "channels": 3}, {}, counts)
    assert card["dead"] == [6]
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    page = codebook_card.render(card, codes, [(image, 255 - image)])
    pictures = [np.array(Image.open(io.BytesIO(base64.b64decode(one)))) for one in re.findall(r"base64,([^)]+)", page)]
    pair, pictures = pictures[0], pictures[1:]
    assert pictures[0].shape == (6, 6, 3)  # 3 × 3 places
    for code in range(7):
        row, column = divmod(code, 3)
        square = pictures[0][2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert (square.ravel() == codes[code]).all()
    assert (pair == np.concatenate([image, 255 - image])).all()
    assert "1 of 7 codes are dead" in page


@pytest.mark.slow
@pytest.mark.skipif(not MNIST.exists(), reason="needs shared/data/images/mnist")
def test_handwritten_digits_use_all_codes_and_lose_little(store):
    digits = np.frombuffer(gzip.decompress(MNIST.read_bytes()), np.uint8, offset=16).reshape(-1, 28, 28, 1)
    made = vocabulary(ImageVocabularyConfig(), drawn_images.corpus(store, digits, group=1000), store)[0]
    quality = made.facts["quality"]
    assert quality["train"]["usage"] == 1
    assert quality["validation"]["usage"] > 0.98
    assert quality["validation"]["psnr"] > 24
    assert made.facts["payload"]["grid"] == [7, 7]
