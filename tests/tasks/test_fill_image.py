"""The served model of images: it is the trained network, what is hidden stays hidden, odd requests are sentences."""

import base64
import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException
from starlette.testclient import TestClient

from flows.answering import Limits, application
from tasks import codebook, fill_image, image_front, patch_network, registry, serving, tracking, versions
from tasks.artifacts import Built, Identity, Store, verify
from tasks.card import card
from tasks.encoder import Segments
from tasks.errors import UsageError
from tasks.patches import standardised
from tasks.registry import RegisterConfig
from tests.tasks import drawn_images
from tests.tasks import small_image_model as small
from tests.tasks.test_registry import calm  # noqa: F401  (a fixture)

TASKS = Path(__file__).parents[2] / "tasks"
NAMES = ["-".join(form) for form in small.FORMS]
IMAGES = drawn_images.drawn(4, *small.SHAPE, seed=3)
PATCHES = small.GRID[0] * small.GRID[1]


def folder_of(root: Path, form: tuple[str, str]) -> Path:
    """A registered model's folder, with nothing of MLflow."""
    target = root / "-".join(form)
    registry._write_folder(target, "small", dict(zip(registry.PARENTS, small.parents(Store(root / "store"), form))))
    return target / "model"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    for form in small.FORMS:
        (root / "-".join(form)).mkdir()
    return {form: folder_of(root, form) for form in small.FORMS}


@pytest.fixture(scope="module")
def models(folders):
    return {form: fill_image.FillImage().open(folder) for form, folder in folders.items()}


@pytest.fixture(scope="module")
def model(models):
    return models["payload", "tokens"]


forms = pytest.mark.parametrize("form", small.FORMS, ids=NAMES)


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


def bomb() -> bytes:
    """A PNG that says it has 100,000 times 100,000 pixels."""
    import struct
    import zlib

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    return fill_image.PNG + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1 << 20))) + chunk(b"IEND", b"")


# What is refused.

BLACK = np.zeros(small.SHAPE, np.uint8)
BAD = {
    "no list": ("image", {}, "The input must be a list of images"),
    "no mask": ([BLACK], {}, "Image 0 has no hidden patch"),
    "an empty mask": ([{"image": BLACK, "mask": []}], {}, "Image 0 has no hidden patch"),
    "nothing": ([None], {"rate": "0.5"}, "Image 0 is no image"),
    "a number": ([3], {"rate": "0.5"}, "Image 0 is no image"),
    "an object of something else": ([{"picture": BLACK}], {}, "Image 0 must have image"),
    "more keys": ([{"image": BLACK, "mask": [0], "rate": 1}], {}, "and nothing else"),
    "no base64": (["é" * 50], {"rate": "0.5"}, "is text, but not base64"),
    "base64 of something": ([base64.b64encode(b"GIF89a").decode()], {"rate": "0.5"}, "neither PNG nor JPEG"),
    "no bytes": ([b""], {"rate": "0.5"}, "neither PNG nor JPEG"),
    "another size": ([drawn_images.drawn(1, 16, 16, 3)[0]], {"rate": "0.5"}, "has 16×16 pixels, but the model was tra"),
    "turned": ([small.png(drawn_images.drawn(1, 12, 8, 3)[0])], {"rate": "0.5"}, "has 8×12 pixels, .* on 12×8"),
    "a bomb": ([bomb()], {"rate": "0.5"}, "has 100000×100000 pixels, but|cannot be decoded"),
    "too many bytes": (
        [small.png(IMAGES[0]) + bytes(5 << 20)],
        {"rate": "0.5"},
        "more than 4,194,304; send it without",
    ),
    "ragged": ([[[1, 2], [3]]], {"rate": "0.5"}, "Image 0 is no image"),
    "deep": ([[[[[[[[1]]]]]]]], {"rate": "0.5"}, "Image 0 is no image"),
    "two channels": ([BLACK[:, :, :2]], {"rate": "0.5"}, "Image 0 is no image"),
    "not a number": ([[[float("nan")] * 12] * 8], {"rate": "0.5"}, "Image 0 is no image"),
    "halves": ([BLACK + 0.5], {"rate": "0.5"}, "Image 0 is no image"),
    "booleans": ([BLACK > 1], {"rate": "0.5"}, "Image 0 is no image"),
    "objects": ([np.full((8, 12), None)], {"rate": "0.5"}, "Image 0 is no image"),
    "negative": ([BLACK.astype(int) - 1], {"rate": "0.5"}, "below 0 or above 255"),
    "too bright": ([[[[256] * 3] * 12] * 8], {"rate": "0.5"}, "below 0 or above 255"),
    "astronomic": ([[[[10**40] * 3] * 12] * 8], {"rate": "0.5"}, "Image 0 is no image"),
    "a mask below 0": ([{"image": BLACK, "mask": [-1]}], {}, "patches have numbers from 0 to 5"),
    "a mask above all": ([{"image": BLACK, "mask": [6]}], {}, "patches have numbers from 0 to 5"),
    "a mask of truths": ([{"image": BLACK, "mask": [True]}], {}, "patches have numbers from 0 to 5"),
    "a mask of words": ([{"image": BLACK, "mask": ["0"]}], {}, "patches have numbers from 0 to 5"),
    "a mask of no number": ([{"image": BLACK, "mask": [float("nan")]}], {}, "a mask with nan"),
    "a mask twice": ([{"image": BLACK, "mask": [1, 1]}], {}, "names a patch twice"),
    "a word for a mask": ([{"image": BLACK, "mask": "all"}], {}, "a mask that is no list"),
    "a huge mask": ([{"image": BLACK, "mask": np.zeros((9000, 9000), bool)}], {}, "a mask that is no list"),
    "a mask of pixels": ([{"image": BLACK, "mask": [[True] * 12] * 8}], {}, "2 rows of 3 booleans"),
    "a mask of numbers": ([{"image": BLACK, "mask": [[0, 1, 0]] * 2}], {}, "something else than booleans"),
    "a ragged mask": ([{"image": BLACK, "mask": [[True, True, False], [True]]}], {}, "a mask of another shape"),
    "no rate": ([BLACK], {"rate": "much"}, "rate is 'much'; it must be"),
    "all of it": ([BLACK], {"rate": "1"}, "between 0 and 1"),
    "none of it": ([BLACK], {"rate": "0.1"}, "hides none of 6 patches"),
    "an endless rate": ([BLACK], {"rate": "1e-999999999"}, "rate is|hides none"),
    "no number for a rate": ([BLACK], {"rate": float("nan")}, "rate is nan"),
    "a list for a rate": ([BLACK], {"rate": [1]}, "rate is"),
    "a seed below 0": ([BLACK], {"seed": -1}, "seed is -1"),
    "no code": ([BLACK], {"top_k": 0}, "top_k is 0; it must be a whole number from 1 to 11"),
    "more codes than there are": ([BLACK], {"top_k": 12}, "from 1 to 11"),
    "a truth for a number": ([BLACK], {"top_k": True}, "top_k is True"),
    "another output": ([BLACK], {"output": ["fill-image"]}, "it must be fill-image or embedding"),
    "another picture": ([BLACK], {"picture": "gif"}, "it must be array or png"),
    "another parameter": ([BLACK], {"topk": 3}, "Unknown parameter 'topk'"),
    "parameters without names": ([BLACK], [3], "must be given by name"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_answered_is_refused_in_one_sentence(model, name):
    images, params, says = BAD[name]
    with pytest.raises(MlflowException, match=says) as raised:
        model.answers(model.questions(images, params))
    assert raised.value.error_code == "INVALID_PARAMETER_VALUE"
    assert "\n" not in raised.value.message and len(raised.value.message) < 300


def test_the_number_of_candidates_has_an_end(model, monkeypatch):
    monkeypatch.setattr(fill_image, "MOST_CANDIDATES", 10)
    with pytest.raises(MlflowException, match="15 candidates, more than 10; lower top_k"):
        model.predict([{"image": BLACK, "mask": [0, 1, 2]}])


odd = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8)
    | st.sampled_from([small.png(BLACK), base64.b64encode(small.png(BLACK)).decode(), BLACK, BLACK.tolist(), [0, 2]]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["image", "mask", "x"]), inner, max_size=3)
        | st.fixed_dictionaries({"image": inner, "mask": inner})
    ),
    max_leaves=12,
)
parameters = st.none() | st.dictionaries(st.sampled_from([*fill_image.PARAMETERS, "x"]), odd, max_size=2)


@settings(deadline=None, max_examples=100)
@given(st.lists(odd, max_size=3) | odd, parameters)
def test_an_odd_request_is_answered_or_refused_and_never_breaks_anything(model, images, params):
    try:
        answers = model.answers(model.questions(images, params))
    except MlflowException as error:
        assert error.error_code == "INVALID_PARAMETER_VALUE"
        assert "\n" not in error.message and len(error.message) < 400
    else:
        assert len(answers) == len(images) and json.dumps(answers)


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=200), st.sampled_from([fill_image.PNG, fill_image.JPEG]), st.integers(0, 69))
def test_bytes_that_only_begin_like_an_image_are_refused(model, data, start, cut):
    for some in (start + data, small.png(BLACK)[:cut] + data):
        with pytest.raises(MlflowException, match=r"^Image 0 "):
            model.questions([some], {"rate": "0.5"})


# The folder.


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "codebook.npy", "payload.json"])
def test_a_file_that_is_not_the_registered_one_is_refused_by_name(folders, tmp_path, name):
    for path in folders["payload", "tokens"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    data = bytearray((tmp_path / name).read_bytes())
    data[-1] ^= 1
    (tmp_path / name).write_bytes(data)
    with pytest.raises(MlflowException, match=f"{name} is not the file that was registered"):
        fill_image.FillImage().open(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(MlflowException, match=f"{name} of the registered model is missing"):
        fill_image.FillImage().open(tmp_path)
    digests = json.loads((tmp_path / "digests.json").read_bytes())
    del digests["sha256"][name]
    (tmp_path / "digests.json").write_text(json.dumps(digests))
    with pytest.raises(MlflowException, match=f"does not name {re.escape(name)}"):
        fill_image.FillImage().open(tmp_path)


def test_a_codebook_that_is_a_pickle_is_not_read(folders, tmp_path):
    for path in folders["payload", "tokens"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    np.save(tmp_path / "codebook.npy", np.array([{}], object), allow_pickle=True)
    digests = json.loads((tmp_path / "digests.json").read_bytes())
    digests["sha256"]["codebook.npy"] = hashlib.sha256((tmp_path / "codebook.npy").read_bytes()).hexdigest()
    (tmp_path / "digests.json").write_text(json.dumps(digests))
    with pytest.raises(MlflowException, match="allow_pickle=False"):
        fill_image.FillImage().open(tmp_path)


def test_outside_of_the_project_it_takes_the_network_that_lies_in_the_folder(folders, model):
    """As MLflow loads it: by its path, in no package."""
    spec = importlib.util.spec_from_file_location("served", TASKS / "fill_image.py")
    alone = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(alone)
    served = alone.FillImage()
    served.load_context(SimpleNamespace(artifacts={"model": str(folders["payload", "tokens"])}))
    assert type(served.network).__module__ == "patch_network" != type(model.network).__module__
    asked = [{"image": small.png(IMAGES[0]), "mask": [2]}]
    assert served.predict(asked) == model.predict(asked)
    for name in ("fill_image.py", "patch_network.py"):
        found = set(re.findall(r"^\s*(?:from|import) ([.\w]+)", (TASKS / name).read_text(), re.M))
        assert not {one for one in found if one.startswith((".", "tasks", "transformers", "tokenizers"))} - {"."}


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page, re.S)


def run_block(code: str, folder: Path, monkeypatch, capsys) -> str:
    """What a user would see who types it in that folder."""
    (folder / "picture.png").write_bytes(small.png(IMAGES[0]))
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    sys.modules.pop("patch_network", None)
    exec(compile(code, "block", "exec"), {"__name__": "block"})
    sys.modules.pop("patch_network", None)
    return capsys.readouterr().out


@forms
def test_what_the_card_says_of_loading_it_by_itself_is_true(folders, models, form, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(folders[form], tmp_path / "model")
    page = (folder / "README.md").read_text()
    told = run_block(blocks(page)[1], folder, monkeypatch, capsys)
    (answer,) = models[form].predict([{"image": small.png(IMAGES[0]), "mask": [0, 1]}], {"top_k": 3, "picture": "png"})
    assert str(answer["codes"][0][0]["code"]) in told
    from PIL import Image

    ours = Image.open(io.BytesIO(base64.b64decode(answer["picture"])))
    assert (np.asarray(Image.open(folder / "filled.png")) == np.asarray(ours)).all()
    assert ("AutoModelForMaskedLM" in page) == (form == ("tokens", "tokens"))


def test_the_readme_loads_it_as_the_card_does():
    readme = (TASKS.parent / "README.md").read_text()
    for told in (image_front.LOADED, image_front.STOCK):
        assert blocks(told)[0].replace("MODE", "L") in readme


@pytest.mark.slow
def test_what_the_card_says_of_transformers_is_true(folders, models, tmp_path, monkeypatch, capsys):
    form = "tokens", "tokens"
    folder = shutil.copytree(folders[form], tmp_path / "model")
    told = run_block(blocks((folder / "README.md").read_text())[2], folder, monkeypatch, capsys)
    (answer,) = models[form].predict([{"image": small.png(IMAGES[0]), "mask": [0, 1]}], {"top_k": 3})
    codes = re.search(r"indices=tensor\((\[.*?\]\])\)", told.replace("\n", " "))[1]
    assert json.loads(codes) == [[it["code"] for it in row] for row in answer["codes"]]


def test_the_card_says_what_the_images_were_and_nothing_of_texts(tmp_path):
    for form in small.FORMS:
        page = card("small", dict(zip(registry.PARENTS, small.parents(Store(tmp_path / "store"), form))))
        for part in ("RGB images of 12×8 pixels", "2×3 patches of 4×4", "`disc`, `ring`", "11 codes", "21.2 dB"):
            assert part in page
        words = {"tokens": "codes", "payload": "pixels"}
        assert f"input: {words[form[0]]} of visible patches; target: {words[form[1]]} of hidden ones" in page
        assert not re.search(r"\btexts?\b|tokenizer|word|sentence|\[MASK\]\.", page, re.I)


# The registry.


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A registry with a model of images."""
    root = tmp_path_factory.mktemp("registry")
    store = Store(root / "store")
    made, _ = registry.register(RegisterConfig("pictures"), *small.parents(store), store, home=root / "home")
    return SimpleNamespace(home=root / "home", made=made, client=tracking.connect(root / "home"))


@pytest.fixture(scope="module")
def pyfunc(house):
    return versions.load_model("pictures", house.home)


@pytest.mark.slow
def test_a_model_of_images_is_registered_with_its_pictures(house):
    version = house.client.get_model_version("pictures", "1")
    assert version.tags["modality"] == "images" and version.tags["verdict"].startswith("CHAMPION: first version")
    assert house.client.get_registered_model("pictures").description == "Fills in hidden patches of an image."
    logged = {one.path for one in house.client.list_logged_model_artifacts(version.source.removeprefix("models:/"))}
    assert "pictures.png" in logged
    assert "pictures.png" in {one.path for one in house.client.list_artifacts(version.run_id)}
    shown = "![As they are, hidden, filled in](model-versions/get-artifact?path=pictures.png&name=pictures&version=1)"
    assert shown in version.description.splitlines()
    assert verify(house.made) == []
    names = {path.name for path in tracking.artifact_root(house.home).rglob("*") if path.is_file()}
    assert {"codebook.npy", "payload.json", "patch_network.py", "fill_image.py"} <= names
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".pth", ".pt", ".bin"))]


@pytest.mark.slow
def test_the_signature_has_every_parameter_and_an_example(pyfunc):
    parameters = {it.name: it.default for it in pyfunc.metadata.get_params_schema().params}
    assert parameters == fill_image.PARAMETERS == image_front.example(None, SimpleNamespace(facts=FACTS))[1]
    assert "probability" in str(pyfunc.metadata.get_output_schema())
    assert np.array(pyfunc.input_example[0]["image"]).shape == small.SHAPE


FACTS = {"payload": small.PAYLOAD}


@pytest.mark.slow
def test_predict_gives_the_answer_of_the_pyfunc(house, pyfunc):
    asked = {"image": small.png(IMAGES[0]), "mask": [2, 3]}
    served, answer = serving.ask(asked, None, {"top_k": 3}, house.home, "images")
    assert served.page()["model"] == "pictures" and served.modality == "images"
    assert answer == pyfunc.predict([asked], params={"top_k": 3})[0]


@pytest.mark.slow
def test_a_text_for_a_model_of_images_is_wrong_use(house):
    with pytest.raises(UsageError, match=r"pictures version 1 .* is a model of images; give it the path of a PNG"):
        serving.ask("a [MASK]", "pictures", {}, house.home)
    with pytest.raises(UsageError, match=r"^The image has 16×16 pixels, but the model was trained on 12×8"):
        image = small.png(drawn_images.drawn(1, 16, 16, 3)[0])
        serving.ask({"image": image, "mask": [1]}, "pictures", {}, house.home, "images")


def server(kind, request, model):
    """Ours, or what `mlflow models serve` runs, and the model that it asks."""
    if kind == "maskmill serve":
        return TestClient(application(model, {}, Limits(inputs=3, body=200_000)), "http://localhost"), model
    from mlflow.pyfunc import scoring_server

    pyfunc = request.getfixturevalue("pyfunc")
    return TestClient(scoring_server.init(pyfunc)), pyfunc


@pytest.mark.parametrize("kind", ["maskmill serve", pytest.param("mlflow models serve", marks=pytest.mark.slow)])
def test_both_servers_answer_and_refuse(kind, request, model, monkeypatch):
    if kind.startswith("mlflow"):  # it leaves a mark in the environment
        monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
    text = base64.b64encode(small.png(IMAGES[0])).decode()
    asked = [{"image": text, "mask": [2]}, {"image": IMAGES[1].tolist(), "mask": [[False, True, False]] * 2}]
    served, asks = server(kind, request, model)
    with served as client:
        for params in ({"top_k": 2}, {"picture": "png"}, {"output": "embedding"}):
            reply = client.post("/invocations", json={"inputs": asked, "params": params})
            assert reply.status_code == 200, reply.text
            assert reply.json() == {"predictions": asks.predict(asked, params=params)}
        reply = client.post("/invocations", json={"inputs": [text], "params": {"rate": "0.5"}})
        assert reply.json()["predictions"][0]["hidden"] == fill_image.drawn("0.5", 0, PATCHES)
        for inputs, params, says in (
            ([{"image": text}], {}, "has no hidden patch"),
            ([{"image": text, "mask": [-1]}], {}, "patches have numbers from 0 to 5"),
            ([[[1, 2], [3]]], {"rate": "0.5"}, "is no image"),
            ([text[:-9]], {"rate": "0.5"}, "Image 0"),
        ):
            reply = client.post("/invocations", json={"inputs": inputs, "params": params})
            assert reply.status_code == 400 and says in reply.json()["message"], reply.text
        if kind == "maskmill serve":
            reply = client.post("/invocations", json={"inputs": [text] * 4})
            assert reply.json()["message"] == "The request has 4 inputs, more than 3; send fewer at a time."
            assert client.post("/invocations", json={"inputs": [text * 1000]}).status_code == 413


@pytest.mark.slow
def test_it_loads_where_the_project_is_not(house, pyfunc, tmp_path):
    """mlflow.pyfunc, in a process that cannot see the project, pickle forbidden."""
    (tmp_path / "picture.png").write_bytes(small.png(IMAGES[0]))
    code = """
import importlib.util, json, mlflow
assert importlib.util.find_spec("tasks") is None, "the project is visible"
model = mlflow.pyfunc.load_model("models:/pictures@champion")
image = {"image": open("picture.png", "rb").read(), "mask": [0, 1]}
print(json.dumps(model.predict([image], params={"top_k": 3})))
"""
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    environment = {
        name: os.environ[name] for name in ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION")
    }
    environment |= {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": packages}
    environment |= {"MLFLOW_TRACKING_URI": tracking.tracking_uri(house.home)}
    command = [sys.executable, "-P", "-S", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    asked = [{"image": (tmp_path / "picture.png").read_bytes(), "mask": [0, 1]}]
    assert json.loads(done.stdout) == pyfunc.predict(asked, params={"top_k": 3})


def test_of_a_model_of_two_modalities_that_of_the_vocabulary_is_registered(tmp_path):
    store = Store(tmp_path / "store")
    parents = dict(zip(registry.PARENTS, small.parents(store)))
    trained, words = parents["pretrain"], parents["vocabulary"]

    def build(workspace):
        for name in ("config.json", "model.safetensors", "codebook.npy"):
            (workspace.folder / "beside").mkdir(exist_ok=True)
            (workspace.folder / "beside" / name).write_bytes(trained.path(f"model/{name}").read_bytes())
        (workspace.folder / "model").mkdir()
        (workspace.folder / "model" / "tokenizer.json").write_text("{}")
        return Built({}, {**trained.facts, "model": {}, "beside": trained.facts["model"]})

    inputs = {"vocabulary": "0" * 64, "beside_vocabulary": words.digest}
    both = store.make(Identity("pretrain", 1, {"two": True}, inputs), build)[0]
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder, weights in zip(folders, (trained, both)):
        folder.mkdir()
        registry._write_folder(folder, "small", parents | {"pretrain": weights})
    for name in ("digests.json", "model.safetensors"):
        assert len({(folder / "model" / name).read_bytes() for folder in folders}) == 1
    assert not (folders[1] / "model" / "tokenizer.json").exists()
    assert "input: pixels of visible patches" in (folders[1] / "model" / "README.md").read_text()


@pytest.mark.slow
def test_a_person_sees_the_pictures_on_the_page_of_the_version(house, monkeypatch):
    from flows import ui
    from tests import test_browser

    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    with test_browser.chromium() as driver:
        started = ui.start_mlflow(house.home, ui.free_port(0))
        try:
            page = test_browser.Page(driver, started.wait().address)
            page.open("models/pictures/versions/1")
            seen = "return [...document.querySelectorAll('img')].filter(one => one.src.includes('pictures.png'))"
            seen += ".map(one => one.naturalWidth)"
            page.until(lambda: driver.execute_script(seen) == [small.SHAPE[1]], lambda: driver.execute_script(seen))
        finally:
            started.stop()
