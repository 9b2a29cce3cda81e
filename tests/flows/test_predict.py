"""maskmill predict: which version answers is said, beside the answer and not in it."""

import json

import pytest
from typer.testing import CliRunner

from flows import cli
from tasks import serving, versions

MASKS = [[{"token": " cat", "probability": 0.5}, {"token": " dog", "probability": 0.25}]]
SERVED = serving.Served(versions.Version("first", 3, ("champion",), {}, ""), "d" * 64, None)


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What was asked; the answers are made up."""
    calls = []

    def ask(text, spec, params):
        calls.append((text, spec, params))
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
