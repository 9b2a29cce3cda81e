"""The whole flow on a few images that are drawn here, against a real Prefect server and the embedded registry."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.tasks.bar_images import bars

ROOT = Path(__file__).parents[2]
STAGES = ["corpus", "vocabulary", "shards", "pretrain", "evaluate", "register"]
SMALL = (
    "vocabulary.size=64", "shards.length=24", "shards.draws=2", "pretrain.layers=2", "pretrain.width=32",
    "pretrain.heads=2", "pretrain.intermediate=64", "pretrain.batch_tokens=960", "pretrain.steps=40",
    "pretrain.threads=1", "pretrain.tokens=1000", "evaluate.threads=1", "evaluate.rates=[]", "evaluate.pictures=3",
    "evaluate.probe={seeds: 3, neighbours: 5}",
)  # fmt: skip


class Mill:
    def __init__(self, folder: Path, api: str) -> None:
        self.folder, self.home, self.api = folder, folder / "home", api
        for number, (image, label) in enumerate(zip(*bars(240, channels=3))):
            (folder / "images" / label).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / "images" / label / f"{number}.png")
        (folder / "images" / "lies" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more than this")

    def __call__(self, *arguments: str, code: int = 0) -> str:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
        environment = kept | {"MASKMILL_HOME": str(self.home), "PREFECT_API_URL": self.api}
        words = [sys.executable, "-m", "flows.cli", *arguments]
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr and "Prefect cannot show" not in done.stderr, done.stderr
        return done.stdout

    def run(self, recipe: str, *settings: str) -> str:
        return self("run", recipe, *(word for one in (*SMALL, *settings) for word in ("--set", one)))

    def last(self) -> dict[str, Any]:
        entry: dict[str, Any] = json.loads(self("runs", "--json"))[0]
        return entry

    def facts(self, stage: str) -> dict[str, Any]:
        """Of the newest artifact of a stage."""
        newest = max((self.home / "store" / stage).glob("*/manifest.json"), key=lambda path: path.stat().st_mtime)
        page: dict[str, Any] = json.loads(newest.read_bytes())
        return page | {"folder": newest.parent}


@pytest.fixture(scope="module")
def mill(tmp_path_factory: pytest.TempPathFactory, prefect_server: str) -> Mill:
    return Mill(tmp_path_factory.mktemp("mill"), prefect_server)


def test_from_images_to_a_registered_model_that_fills_them_in(mill: Mill) -> None:
    source = f"corpus.sources=[{{uri: {mill.folder / 'images'}}}]"
    said = mill.run("images", source)
    assert "Registered    images version 1" in said and "text" not in said.lower(), said
    assert list(mill.last()["stages"]) == STAGES
    corpus, report = mill.facts("corpus"), mill.facts("evaluate")
    assert corpus["counts"]["documents_in"] == 241, "the broken one is counted"
    assert corpus["counts"]["documents_kept"] == 240 and corpus["facts"]["labels"] == ["lies", "stands"]
    metrics = report["facts"]["metrics"]
    loss = {label: metrics[f"{label}/rate_0.4/masked_cross_entropy"] for label in ("test", "baseline_unigram")}
    assert loss["test"] < loss["baseline_unigram"]
    assert (report["folder"] / "pictures.png").exists()
    again = mill.run("images", source)
    assert "Registered    images version 1" in again
    assert {it["state"] for it in mill.last()["stages"].values()} == {"reused"}

    picture, mask = mill.folder / "images" / "lies", "0,1,2"
    image = next(path for path in sorted(picture.glob("*.png")) if path.name != "broken.png")
    out = mill.folder / "filled.png"
    said = mill("predict", str(image), "--model", "images", "--mask", mask, "--out", str(out))
    assert np.asarray(Image.open(out)).shape == (12, 12, 3) and said
    mill("compare", "images/1", str(mill.facts("pretrain")["folder"] / "model"), code=2)  # its sets are of text


@pytest.mark.slow
@pytest.mark.parametrize("asks", [("tokens", "tokens"), ("payload", "payload"), ("tokens", "payload")])
def test_every_form_of_input_and_target_comes_to_a_registered_model(mill: Mill, asks: tuple[str, str]) -> None:
    source = f"corpus.sources=[{{uri: {mill.folder / 'images'}}}]"
    form = (f"pretrain.input={asks[0]}", f"pretrain.target={asks[1]}", f"register.name=of-{'-'.join(asks)}")
    said = mill.run("images", source, *form, "shards.policy=block")
    assert f"Registered    of-{'-'.join(asks)} version 1" in said
    assert mill.facts("shards")["config"]["policy"] == "block"
    assert mill("verify")


@pytest.mark.slow
def test_text_and_images_in_one_encoder_come_to_two_registered_models(mill: Mill) -> None:
    texts = mill.folder / "texts"
    texts.mkdir()
    for number in range(200):
        words = [f"word{(number * 7 + at * at) % 31} of the {at % 5} files" for at in range(12)]
        (texts / f"{number}.txt").write_text(" ".join(words) + f" and text {number}.")
    settings = (
        f"corpus.sources=[{{uri: {texts}}}]", f"beside.corpus.sources=[{{uri: {mill.folder / 'images'}}}]",
        "vocabulary.size=384", "shards.length=32", "beside.shards.length=24", "beside.vocabulary.size=64",
        "pretrain.beside.batch_tokens=480", "evaluate.pseudo_likelihood={passages: 4, passage_bytes: 24}",
        "beside.evaluate.threads=1", "beside.evaluate.pictures=2",
    )  # fmt: skip
    few = tuple(one for one in SMALL if not one.startswith(("evaluate.pictures", "evaluate.probe", "shards.draws")))
    words = [word for one in (*few, *settings) for word in ("--set", one)]
    mill("run", "mixed", *words)
    parts = mill.last()["stages"]
    assert {"pretrain text alone", "pretrain images alone", "evaluate images", "register images"} <= parts.keys()
    report = mill.facts("evaluate")
    assert {name.partition("/")[0] for name in report["facts"]["metrics"]} >= {"test", "alone", "baseline_untrained"}
    names = {json.loads(one.read_bytes())["facts"]["model"] for one in mill.home.glob("store/register/*/manifest.json")}
    assert names >= {"mixed", "mixed-images"}
    again = mill("run", "mixed", *words)
    assert {it["state"] for it in mill.last()["stages"].values()} == {"reused"} and again
