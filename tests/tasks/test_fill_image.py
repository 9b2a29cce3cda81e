"""The served model of images: it is the trained network, what is hidden stays hidden, files are read as they were."""

import base64
import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException

from tasks import codebook, fill_image, patch_network
from tasks.encoder import Segments
from tasks.patches import standardised
from tests.tasks import small_image_model as small
from tests.tasks.calm_mlflow import calm as calm
from tests.tasks.served_images import IMAGES, PATCHES, forms
from tests.tasks.served_images import folders as folders
from tests.tasks.served_images import model as model
from tests.tasks.served_images import models as models


def trained(form, pixels_BHWC, hidden):
    """What encoder.py's network says at the hidden patches, with the same patches hidden in each image: (M, V or P)."""
    network = small.network(form)
    codes = np.random.default_rng(5).integers(0, 256, (small.CODES, small.PAYLOAD["bytes"]), np.uint8)
    codes[7] = codes[3]
    patches_BNP = codebook.patches_of(pixels_BHWC, small.SIDE)
    ids_BN = codebook.nearest(patches_BNP.reshape(-1, codes.shape[1]), codes).reshape(patches_BNP.shape[:2]) + 5
    ids_BN[:, hidden] = 4
    count, length = len(pixels_BHWC), PATCHES + 2
    tokens_BL, segment_ids_BL = np.zeros((count, small.LENGTH), np.int64), np.full((count, small.LENGTH), -1)
    tokens_BL[:, :length] = np.pad(ids_BN, ((0, 0), (1, 1)), constant_values=((0, 0), (2, 3)))
    segment_ids_BL[:, :length] = 0
    payload_BLP = np.zeros((count, small.LENGTH, codes.shape[1]), np.uint8)
    payload_BLP[:, 1 : length - 1] = patches_BNP
    payload_BLP[tokens_BL == 4] = 0
    masked_M = torch.from_numpy(np.flatnonzero(tokens_BL == 4))
    segments = Segments.from_ids(torch.from_numpy(segment_ids_BL), network.config.window)
    with torch.inference_mode():
        return network(torch.from_numpy(tokens_BL), segments, masked_M, torch.from_numpy(payload_BLP))


@forms
@pytest.mark.parametrize("hidden", [[0], [1, 4, 5], list(range(PATCHES))])
def test_it_computes_what_was_trained(models, form, hidden):
    served = models[form].network
    prepared = [served.prepared(one, hidden) for one in IMAGES]
    at_M = [(image, 1 + patch) for image in range(len(IMAGES)) for patch in hidden]
    with torch.inference_mode():
        h_MD = served.encode(*(torch.stack(part) for part in zip(*prepared)), at_M)
        got = served.head(h_MD)
    wanted = trained(form, IMAGES, hidden)
    assert {kind for kind, _, _ in served.layers} == {"full_attention", "sliding_attention"}
    assert small.network(form).config.window < PATCHES + 2
    assert torch.allclose(got, wanted, rtol=0, atol=1e-5)


@forms
def test_probabilities_are_those_of_the_vocabulary_or_of_a_gaussian_around_the_mean(models, form):
    answers = models[form].predict([{"image": one, "mask": [1, 4]} for one in IMAGES], {"top_k": small.CODES})
    said = trained(form, IMAGES, [1, 4])
    if form[1] == "tokens":
        p_MK = said.softmax(dim=-1)[:, 5 : 5 + small.CODES]
    else:
        centres_KP = standardised(torch.from_numpy(models[form].network.codes_KP), small.PAYLOAD)
        p_MK = (-0.5 * (centres_KP[None].double() - said[:, None].double()).square().sum(dim=-1)).softmax(dim=-1)
    ranked = [row for answer in answers for row in answer["codes"]]
    for row, p_K in zip(ranked, p_MK, strict=True):
        assert [it["probability"] for it in row] == sorted((it["probability"] for it in row), reverse=True)
        by_code = {it["code"]: it["probability"] for it in row}
        assert [by_code[code] for code in range(small.CODES)] == pytest.approx(p_K.tolist(), abs=1e-5)


@forms
def test_the_picture_shows_what_is_visible_as_it_is_and_fills_in_the_rest(models, form):
    hidden = [1, 4]
    answers = models[form].predict([{"image": one, "mask": hidden} for one in IMAGES])
    pictures = np.array([answer["picture"] for answer in answers])
    assert pictures.shape == IMAGES.shape and pictures.min() >= 0 and pictures.max() <= 255
    shown, before = (codebook.patches_of(one.astype(np.uint8), small.SIDE) for one in (pictures, IMAGES))
    visible = [at for at in range(PATCHES) if at not in hidden]
    assert (shown[:, visible] == before[:, visible]).all()
    if form[1] == "tokens":
        first = [[row[0]["code"] for row in answer["codes"]] for answer in answers]
        assert (shown[:, hidden] == models[form].network.codes_KP[first]).all()
    else:
        mean, deviation = (np.tile(small.PAYLOAD[name], small.SIDE**2) for name in ("mean", "deviation"))
        said = trained(form, IMAGES, hidden).numpy() * np.maximum(deviation, 1) + mean
        assert np.abs(shown[:, hidden].reshape(said.shape) - said.clip(0, 255)).max() <= 0.501
    for answer in answers:
        assert (answer["grid"], answer["hidden"]) == (list(small.GRID), hidden)


@forms
@pytest.mark.parametrize("output", ["fill-image", "embedding"])
def test_what_is_hidden_makes_no_difference_whatever_it_is(models, form, output):
    hidden = [0, 3, 5]
    rng = np.random.default_rng(1)
    before = models[form].predict([{"image": IMAGES[0], "mask": hidden}], {"output": output})
    for fill in (0, 255, None):
        patches_BNP = codebook.patches_of(IMAGES[:1], small.SIDE).copy()
        new = rng.integers(0, 256, (len(hidden), patches_BNP.shape[2])) if fill is None else fill
        patches_BNP[0, hidden] = new
        other = codebook.pixels_of(patches_BNP, small.GRID, small.SIDE, 3)[0]
        assert models[form].predict([{"image": other, "mask": hidden}], {"output": output}) == before


@forms
@pytest.mark.parametrize("output", ["fill-image", "embedding"])
def test_an_image_is_answered_the_same_alone_and_among_others(models, form, output, monkeypatch):
    images = [{"image": one, "mask": mask} for one, mask in zip(IMAGES, ([0], [1, 2], [5], [0, 1, 2, 3, 4, 5]))]
    params = {"output": output, "picture": "png", "top_k": small.CODES}
    alone = [models[form].predict([one], params)[0] for one in images]
    for positions in (fill_image.POSITIONS, 3 * (PATCHES + 2)):
        monkeypatch.setattr(fill_image, "POSITIONS", positions)
        for got, wanted in zip(models[form].predict(images, params), alone, strict=True):
            if output == "embedding":
                assert got == pytest.approx(wanted, abs=1e-5) and len(got) == 32
                continue
            assert {**got, "codes": 0} == {**wanted, "codes": 0}
            for one, other in zip(got["codes"], wanted["codes"], strict=True):
                assert [it["probability"] for it in one] == pytest.approx([it["probability"] for it in other], abs=1e-5)
    assert models[form].predict([]) == []


def test_every_form_of_an_image_says_the_same(model):
    image = IMAGES[0]
    asked = [small.png(image), bytearray(small.png(image)), base64.b64encode(small.png(image)).decode()]
    asked += [base64.encodebytes(small.png(image)).decode(), image, image.astype(np.int64), image.tolist()]
    answers = model.predict([{"image": one, "mask": [2]} for one in asked])
    assert all(answer == answers[0] for answer in answers)
    assert model.predict(asked[:1], {"output": "embedding"})[0] == pytest.approx(
        model.predict([{"image": asked[-1]}], {"output": "embedding"})[0]
    )


def test_a_picture_comes_as_numbers_or_as_png(model):
    from PIL import Image

    (numbers,) = model.predict([{"image": IMAGES[0], "mask": [2]}])
    (encoded,) = model.predict([{"image": IMAGES[0], "mask": [2]}], {"picture": "png"})
    opened = Image.open(io.BytesIO(base64.b64decode(encoded["picture"])))
    assert np.asarray(opened).tolist() == numbers["picture"]


def test_codes_are_those_of_the_codebook_stage(model):
    """Also where a code is there twice, and where two are equally far away."""
    codes_KP = np.array([[0, 0], [4, 0], [4, 0], [2, 2], [255, 255]], np.uint8)
    patches_XP = np.array([[a, b] for a in range(6) for b in range(6)], np.uint8)
    assert (patch_network.nearest(patches_XP, codes_KP) == codebook.nearest(patches_XP, codes_KP)).all()
    tokens_L, patches_NP = model.network.prepared(IMAGES[1], [])
    assert (patches_NP.numpy() == codebook.patches_of(IMAGES[1:2], small.SIDE)[0]).all()
    assert (tokens_L[1:-1].numpy() - 5 == codebook.nearest(patches_NP.numpy(), model.network.codes_KP)).all()
    assert (model.network.picture(patches_NP) == IMAGES[1]).all()


# Masks.


def test_a_mask_lists_patches_or_says_of_each_whether_it_is_hidden():
    grid = np.array([[False, True, False], [True, False, True]])
    for mask in ([5, 1, 3], np.array([1, 3, 5]), grid, grid.tolist()):
        assert fill_image.hidden_by(mask, small.GRID, "Image 0") == [1, 3, 5]
    assert fill_image.hidden_by([], small.GRID, "") == fill_image.hidden_by((grid & False), small.GRID, "") == []


@given(st.integers(1, 10_000), st.integers(0, 2**63 - 1), st.integers(2, 300))
def test_a_rate_hides_exactly_its_share_and_a_lower_one_fewer_of_the_same(share, seed, patches):
    rate = f"{share / 10_001:.4f}"
    number = patches * int(rate.replace(".", "")) // 10_000
    if not number:
        return
    found = fill_image.drawn(rate, seed, patches)
    assert len(found) == len(set(found)) == number and found == sorted(found)
    assert found == fill_image.drawn(float(rate), seed, patches)
    if half := number // 2:
        assert set(fill_image.drawn(f"{half}/{patches}", seed, patches)) < set(found)


def test_a_rate_is_for_images_without_a_mask_of_their_own(model):
    asked = [small.png(IMAGES[0]), {"image": IMAGES[0]}, {"image": IMAGES[0], "mask": [2]}]
    hidden = [answer["hidden"] for answer in model.predict(asked, {"rate": "0.5", "seed": 3})]
    assert hidden[0] == hidden[1] and len(hidden[0]) == 3 and hidden[2] == [2]
    assert len({tuple(model.predict(asked[:1], {"rate": "0.5", "seed": s})[0]["hidden"]) for s in range(8)}) > 2


# Files of images.


def files() -> dict[str, bytes]:
    """A small picture in the modes that PNG and JPEG know."""
    from PIL import Image

    image = Image.fromarray(IMAGES[2])
    clear = image.copy()
    clear.putalpha(Image.fromarray(np.arange(96, dtype=np.uint8).reshape(8, 12) * 2))
    wide = Image.fromarray(np.arange(96, dtype=np.uint16).reshape(8, 12) * 683)
    turned = image.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6

    def written(one, kind="PNG", **options):
        file = io.BytesIO()
        one.save(file, kind, **options)
        return file.getvalue()

    modes = {mode: image.convert(mode) for mode in ("1", "L", "P", "RGB")} | {"RGBA": clear, "LA": clear.convert("LA")}
    found = {mode: written(one) for mode, one in modes.items()} | {"I;16": written(wide)}
    found |= {"palette with one clear colour": written(image.convert("P"), transparency=3)}
    found |= {f"JPEG {mode}": written(image.convert(mode), "JPEG") for mode in ("L", "RGB", "CMYK")}
    found |= {"progressive": written(image, "JPEG", progressive=True)}
    return found | {f"turned {kind}": written(turned, kind, exif=exif) for kind in ("PNG", "JPEG")}


@pytest.mark.parametrize("channels", [1, 3])
def test_a_file_is_decoded_as_the_corpus_decodes_it(channels):
    decoding = pytest.importorskip("tasks.image_decoding")
    shape = decoding.Shape(8, 12, channels)
    for name, data in files().items():
        wanted, _ = decoding.fit(decoding.decode(data, decoding.ImageLimits())[0], shape)
        assert (fill_image.pixels_of(data, (8, 12, channels), name) == wanted).all(), name


def test_a_damaged_file_is_refused(model):
    whole = small.png(IMAGES[0])
    for at in range(8, len(whole)):
        broken = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        with pytest.raises(MlflowException, match="Image 0 "):
            model.predict([{"image": broken, "mask": [0]}])
    for end in range(len(whole) - 1):
        with pytest.raises(MlflowException, match="Image 0 "):
            model.predict([{"image": whole[:end], "mask": [0]}])
