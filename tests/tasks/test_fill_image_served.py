"""The served model of images where others load it: as its card says, from the registry, behind both servers."""

import base64
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
from starlette.testclient import TestClient

from flows.answering import Limits, application
from tasks import fill_image, image_front, registry, serving, tracking, versions
from tasks.artifacts import Built, Identity, Store, verify
from tasks.card import card
from tasks.errors import UsageError
from tasks.registry import RegisterConfig
from tests.tasks import drawn_images
from tests.tasks import small_image_model as small
from tests.tasks.calm_mlflow import calm as calm
from tests.tasks.served_images import IMAGES, PATCHES, forms
from tests.tasks.served_images import folders as folders
from tests.tasks.served_images import model as model
from tests.tasks.served_images import models as models

TASKS = Path(__file__).parents[2] / "tasks"


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
    environment |= {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # as here: digits depend on it
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
