"""maskmill predict: which version answers is said, beside the answer and not in it."""

import json

import pytest
from typer.testing import CliRunner

from flows import cli
from tasks import serving, versions

MASKS = [[{"token": " cat", "probability": 0.5}, {"token": " dog", "probability": 0.25}]]
FILLED = {"grid": [2, 3], "hidden": [4], "codes": [[{"code": 12, "probability": 0.5}]], "picture": "iVBORw0="}
SERVED = serving.Served(versions.Version("first", 3, ("champion",), {}, ""), "d" * 64, None)


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What was asked; the answers are made up."""
    calls = []

    def ask(what, spec, params, modality="text"):
        calls.append((what, spec, params))
        if modality == "images":
            return SERVED, [0.5, -0.25] if params["output"] == "embedding" else FILLED
        return SERVED, [0.5, -0.25] if params["output"] == "embedding" else MASKS

    monkeypatch.setenv("MASKMILL_HOME", str(tmp_path))
    monkeypatch.setattr(cli.environment, "settle", lambda home: None)
    monkeypatch.setattr(serving, "ask", ask)
    return calls


def run(*words):
    result = CliRunner().invoke(cli.terminal.app, ["predict", *words])
    assert result.exit_code == 0, result.output
    return result


def test_the_version_is_said_on_stderr(asked):
    result = run("a [MASK]", "--top", "2", "--targets", "cat dog", "--model", "first@champion")
    assert "first version 3 @champion" in result.stderr and "first" not in result.stdout
    assert "50.00%" in result.stdout and "cat" in result.stdout
    params = {"top_k": 2, "targets": "cat dog", "output": "fill-mask"}
    assert asked == [("a [MASK]", "first@champion", params)]


def test_for_programs_the_version_stands_beside_the_answer(asked):
    page = {"model": "first", "version": 3, "aliases": ["champion"], "weights": "d" * 64}
    assert json.loads(run("a [MASK]", "--json").stdout) == page | {"masks": MASKS}
    assert json.loads(run("a text", "--embedding", "--json").stdout) == page | {"embedding": [0.5, -0.25]}


def test_a_vector_is_one_line_of_numbers(asked):
    assert run("a text", "--embedding").stdout == "0.500000 -0.250000\n"


@pytest.fixture
def image(tmp_path):
    (tmp_path / "a picture.png").write_bytes(b"pixels")
    return tmp_path / "a picture.png"


def test_an_image_is_filled_in(asked, image, tmp_path):
    result = run(str(image), "--mask", "3,0-1", "--top", "2", "--out", str(tmp_path / "out.png"))
    assert "12 50.0%" in result.stdout and "first version 3 @champion" in result.stderr
    assert (tmp_path / "out.png").read_bytes() == b"\x89PNG\r"
    params = {"top_k": 2, "rate": "", "seed": 0, "output": "fill-image", "picture": "png"}
    assert asked == [({"image": b"pixels", "mask": [3, 0, 1]}, None, params)]


def test_for_programs_an_image_is_answered_whole(asked, image):
    page = {"model": "first", "version": 3, "aliases": ["champion"], "weights": "d" * 64}
    assert json.loads(run(str(image), "--rate", "0.5", "--seed", "7", "--json").stdout) == page | FILLED
    assert asked[0][0] == {"image": b"pixels"} and (asked[0][2]["rate"], asked[0][2]["seed"]) == ("0.5", 7)
    assert run(str(image), "--embedding").stdout == "0.500000 -0.250000\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere.png", "--mask", "3"], "nowhere.png: No such file"),
        (["nowhere.jpg", "--embedding"], "nowhere.jpg: No such file"),
        (["{}", "--mask", "3-"], "'3-' is no patch; write numbers such as 3,7,10-13"),
        (["{}", "--mask", "1-1000000"], "'1-1000000' is no patch"),
        (["{}", "--mask", "٣"], "is no patch"),
        (["{}", "--rate", "0.4", "--targets", "a"], "--targets ranks words of a text"),
    ],
)
def test_what_cannot_be_asked_of_an_image_is_wrong_use(asked, image, words, says):
    command = ["predict", *(word.format(image) for word in words)]
    result = CliRunner().invoke(cli.terminal.app, command)
    assert result.exit_code == 2 and says in result.stderr and not asked


def test_a_text_that_ends_like_a_picture_is_a_text(asked):
    run("open [MASK].png")
    run("how to open a.png", "--embedding")
    assert [call[0] for call in asked] == ["open [MASK].png", "how to open a.png"]
