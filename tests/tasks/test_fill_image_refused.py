"""The served model of images: what it cannot answer is refused in a sentence, and so are files that were changed."""

import base64
import hashlib
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException

from tasks import fill_image
from tests.tasks import drawn_images
from tests.tasks import small_image_model as small
from tests.tasks.calm_mlflow import calm as calm
from tests.tasks.served_images import IMAGES
from tests.tasks.served_images import folders as folders
from tests.tasks.served_images import model as model
from tests.tasks.served_images import models as models


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
