"""A registered version is asked: which one answered, what is refused and when, and MLflow's own server beside it."""

import hashlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tasks import serving, tracking, versions
from tasks.errors import DataError, UsageError
from tests.tasks.test_registry import House, calm  # noqa: F401  (a fixture)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    house = House(tmp_path_factory.mktemp("serving"))
    house.register("first", 0, 4.0)
    return house


@pytest.fixture(scope="module")
def tampered(house):
    """A version of its own, and the folder in which the registry keeps its model."""
    house.register("tampered", 1, 4.0)
    logged = house.client.get_model_version("tampered", "1").source.removeprefix("models:/")
    (weights,) = tracking.artifact_root(house.home).rglob(f"{logged}/**/model.safetensors")
    return weights.parent


@pytest.fixture(scope="module")
def pyfunc(house):
    return versions.load_model("first", house.home)


def test_the_answer_comes_with_the_version_that_gave_it(house, pyfunc, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    served, masks = serving.ask("the [MASK] sat", None, {"top_k": 3}, house.home)
    tag = house.client.get_model_version("first", "1").tags["weights"]
    page = {"model": "first", "version": 1, "aliases": ["challenger", "champion"], "weights": tag}
    assert served.page() == page and str(served) == "first version 1 @challenger @champion"
    assert list(tmp_path.iterdir()) == []  # nothing of the model is left lying about
    assert masks == pyfunc.predict(["the [MASK] sat"], params={"top_k": 3})[0]
    _, vector = serving.ask("the cat sat", "first/1", {"output": "embedding"}, house.home)
    assert vector == pyfunc.predict(["the cat sat"], params={"output": "embedding"})[0] and len(vector) == 32


def test_the_signature_has_every_parameter_and_an_example(pyfunc):
    parameters = {it.name: it.default for it in pyfunc.metadata.get_params_schema().params}
    assert parameters == {"top_k": 5, "targets": "", "output": "fill-mask"}
    assert "probability" in str(pyfunc.metadata.get_output_schema())
    assert pyfunc.input_example == ["the cat [MASK] on the mat"]


def test_a_text_without_a_mask_is_refused_before_anything_is_loaded(tmp_path):
    code = (
        "import sys\nfrom tasks import serving\nfrom tasks.errors import UsageError\n"
        "try:\n    serving.ask('no mask', 'first')\nexcept UsageError as error:\n    print(error)\n"
        "print({'mlflow', 'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["The text holds no [MASK]; put one where a token is to be filled in.", "set()"]


def test_what_cannot_be_asked_is_wrong_use(house):
    for text, params, says in (
        ("a <b>", {}, r"The text holds no \[MASK\]"),
        ("[MASK]", {"top_k": 0}, "top_k is 0"),
        ("", {"output": "embedding"}, "The text holds no token"),
        ("[MASK] \ud800", {}, "The text has half of a surrogate pair"),
    ):
        with pytest.raises(UsageError, match=says):
            serving.ask(text, "first", params, house.home)


@pytest.mark.slow
def test_nothing_of_transformers_is_imported_to_answer(house):
    code = (
        "import sys, pathlib\nfrom tasks import serving\n"
        "print(serving.ask('a [MASK]', 'first', {}, pathlib.Path(sys.argv[1]))[0])\n"
        "print({'transformers', 'sklearn', 'datasets'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, house.home], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["first version 1 @challenger @champion", "set()"], done.stderr


def test_a_version_or_an_alias_that_is_gone_is_answered_with_what_is_there(house):
    house.register("going", 2, 4.0)
    house.register("going", 3, 5.0)
    house.client.delete_model_version("going", "1")  # by hand, and with it its alias
    with pytest.raises(UsageError, match="going has no @champion; it has @challenger and versions 2"):
        serving.load("going", house.home)
    with pytest.raises(UsageError, match="going has no version 1; it has 2"):
        serving.load("going/1", house.home)
    assert serving.load("going@challenger", house.home).version.version == 2


def test_files_that_are_not_the_registered_ones_are_refused_by_name(house, tampered):
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        whole = (tampered / name).read_bytes()
        (tampered / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(DataError, match=rf"tampered version 1 .*{name} is not the file that was registered"):
            serving.load("tampered", house.home)
        (tampered / name).unlink()
        with pytest.raises(DataError, match=rf"tampered version 1 .*{name} of the registered model is missing"):
            serving.load("tampered", house.home)
        (tampered / name).write_bytes(whole)
    serving.load("tampered", house.home)


def test_digests_that_were_changed_with_the_files_are_found_out_by_the_tag(house, tampered):
    digests, config = (tampered / "digests.json").read_bytes(), (tampered / "config.json").read_bytes()
    (tampered / "config.json").write_bytes(config + b"\n")
    page = json.loads(digests)
    page["sha256"]["config.json"] = hashlib.sha256(config + b"\n").hexdigest()
    (tampered / "digests.json").write_text(json.dumps(page))
    with pytest.raises(DataError, match="tampered version 1 is not the model that was registered"):
        serving.load("tampered", house.home)
    (tampered / "config.json").write_bytes(config)
    (tampered / "digests.json").write_bytes(digests)


@pytest.fixture(scope="module")
def mlflows_server(pyfunc):
    """What `mlflow models serve` runs, without its process."""
    from mlflow.pyfunc import scoring_server
    from starlette.testclient import TestClient

    with pytest.MonkeyPatch.context() as patch:  # it leaves a mark in the environment
        patch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
        with TestClient(scoring_server.init(pyfunc)) as client:
            yield client


def test_mlflows_own_server_gives_the_same_answers(mlflows_server, pyfunc):
    for params in ({"top_k": 2}, {"targets": "the on"}, {"output": "embedding"}):
        reply = mlflows_server.post("/invocations", json={"inputs": ["the [MASK] sat"], "params": params})
        assert reply.status_code == 200
        assert reply.json() == {"predictions": pyfunc.predict(["the [MASK] sat"], params=params)}


@pytest.mark.parametrize(
    ("text", "params", "says"),
    [
        ("none", {}, "Text 0 holds no [MASK]; put one where a token is to be filled in."),
        ("[MASK] " * 10_000, {}, "Text 0 has 10,000 masks, more than 1,000; ask about fewer at a time."),
        ("[MASK]" + "x" * 1_000_000, {}, "Text 0 has 1,000,006 characters, more than 200,000; cut it."),
        ("a [MASK]", {"top_k": 0}, "top_k is 0; it must be a whole number from 1 to 281, the size of the vocabulary."),
        ("a [MASK]", {"output": "x"}, "output is 'x'; it must be fill-mask or embedding."),
        ("a [MASK] \ud800", {}, "Text 0 has half of a surrogate pair at character 9; give whole characters."),
    ],
)
def test_mlflows_own_server_refuses_with_the_same_sentences(mlflows_server, text, params, says):
    body = json.dumps({"inputs": [text], "params": params})
    reply = mlflows_server.post("/invocations", content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == 400 and reply.json()["message"].endswith(says)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["maskmill serve", "mlflow models serve"])
def test_the_real_commands_answer_over_http(house, command):
    from tests.flows.test_serve import post

    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # MLflow starts uvicorn by its name
    environment = os.environ | {"PATH": path}
    environment |= {
        "MASKMILL_HOME": str(house.home),
        "MLFLOW_TRACKING_URI": tracking.tracking_uri(house.home),
    }
    words = [sys.executable, "-m", "flows.cli", "serve", "first", "--port", "5947", "--threads", "1"]
    if command.startswith("mlflow"):
        words = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/first@champion", "--port", "5947"]
        words += ["--env-manager", "local", "--host", "127.0.0.1"]
    process = subprocess.Popen(words, cwd=ROOT, env=environment, start_new_session=True)
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen("http://127.0.0.1:5947/ping", timeout=2).close()
                break
            except OSError:
                assert process.poll() is None
                time.sleep(0.4)
        found = post(5947, {"inputs": ["the [MASK] sat"], "params": {"top_k": 2}})
        assert found == {"predictions": [serving.predict("the [MASK] sat", "first", 2, house.home)]}
    finally:
        os.killpg(process.pid, 15)
        assert process.wait(60) == 0 or command.startswith("mlflow")
