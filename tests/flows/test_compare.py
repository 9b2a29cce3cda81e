"""Any models, asked the same, side by side. pytest tests/flows/test_compare.py"""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from flows import cli, compare, contenders, recipes
from tasks import corpus, report, versions
from tasks.artifacts import Built, Manifest, Store, Workspace
from tasks.cloze_file import ClozeConfig
from tasks.errors import DataError, UsageError
from tasks.evaluate_config import EvaluateConfig
from tasks.examples import ClassificationConfig, FineTuning
from tasks.pairs_file import MinimalPairsConfig
from tasks.passages import PseudoLikelihoodConfig
from tasks.results import BASELINE
from tests.tasks import small_model

GOOD, BAD = "the cat sat on the mat", "the cat mat on the sat"


class House:
    """A store with two models, a third in the registry's way, and evaluation sets."""

    def __init__(self, root: Path) -> None:
        self.root, self.home = root, root / "home"
        self.store = Store(self.home / "store")
        made = small_model.corpus(self.store)
        self.vocabulary = small_model.vocabulary(self.store, made)
        self.shards = small_model.shards(self.store, self.vocabulary)
        for number, name in enumerate(("first", "second", "third")):
            (root / name).symlink_to(self.weights(number).path("model/config.json").parent)
        pairs = [{"sentence_good": f"{GOOD} {n}", "sentence_bad": f"{BAD} {n}", "UID": f"p{n % 2}"} for n in range(6)]
        self.write("pairs.jsonl", pairs)
        self.write("cloze.jsonl", [{"text": "the cat [MASK] on the mat", "answers": ["sat"]}])
        texts = [{"text": f"the {animal} sat {n}", "label": animal} for n in range(20) for animal in ("cat", "dog")]
        self.write("classes.jsonl", texts)
        self.recipe = replace(
            recipes.load("tiny", [str(root / "texts")]), name="mine", evaluate=self.settings(MinimalPairsConfig)
        )

    def weights(self, seed: int) -> Manifest:
        return small_model.pretrain(self.store, self.vocabulary, self.shards, seed=seed, noise=0.1)

    def write(self, name: str, rows: list[dict[str, Any]]) -> None:
        (self.root / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def settings(self, *kinds: type) -> EvaluateConfig:
        sets: dict[str, Any] = {
            "minimal_pairs": MinimalPairsConfig("pairs", (str(self.root / "pairs.jsonl"),)),
            "cloze": ClozeConfig("cloze", str(self.root / "cloze.jsonl")),
            "classification": ClassificationConfig(
                "animals", str(self.root / "classes.jsonl"), fine_tuning=FineTuning(enabled=False)
            ),
        }
        chosen = {key: (one,) for key, one in sets.items() if isinstance(one, kinds)}
        passages = PseudoLikelihoodConfig(passages=4, passage_bytes=32)
        return EvaluateConfig(sentences=("the cat [MASK] on",), pseudo_likelihood=passages, threads=1, **chosen)

    def corpus(self) -> Manifest:
        """What the recipe's corpus stage would make."""

        def build(workspace: Workspace) -> Built:
            texts = [f"{GOOD} {n}, and the dog sat on the log." for n in range(8)]
            splits = ["train"] * 4 + ["test"] * 4
            table = pa.table({"text": pa.array(texts, pa.large_string()), "split": pa.array(splits, pa.string())})
            pq.write_table(table, workspace.folder / "documents-00000.parquet")
            return Built({"documents_train": 4, "documents_test": 4}, {})

        return self.store.make(corpus.identity(self.recipe.corpus, self.store.root), build)[0]

    def compare(self, *names: str, **changes: Any) -> report.Report:
        specs = [str(self.root / name) for name in names]
        recipe = replace(self.recipe, **changes)
        return compare.compare(specs, recipe, self.home, self.store, "maskmill compare")


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("A text of a few words. " * 10)
    return House(tmp_path)


def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Labels of the models that are opened from now on."""
    labels: list[str] = []
    original = compare._opener

    def opener(models: Any, device: str) -> Any:
        opened = original(models, device)

        def said(label: str) -> Any:
            labels.append(label)
            return opened(label)

        return said

    monkeypatch.setattr(compare, "_opener", opener)
    return labels


def test_two_models_stand_side_by_side_on_every_set(house):
    found = house.compare(
        "first", "second", evaluate=house.settings(MinimalPairsConfig, ClozeConfig, ClassificationConfig)
    )
    assert [one.kind for one in found.outcomes] == ["minimal_pairs", "cloze", "classification"]
    for one in found.outcomes:
        assert {"first", "second"} <= one.figures[one.main].keys()
    untrained = {label for label in found.outcomes[2].figures[found.outcomes[2].main] if "untrained" in label}
    assert untrained == {"baseline_untrained_first", "baseline_untrained_second"}
    assert found.models[0].facts["parameters"] == found.models[1].facts["parameters"]
    assert [one["text"] for one in found.predictions["first"]] == ["the cat [MASK] on"]
    assert len(found.predictions["second"][0]["masks"][0]) == 5
    page = report.page(found)
    assert "Comparison of first and second" in page and "maskmill compare" in page
    assert any("Masked cross-entropy is left out" in remark for remark in found.remarks)


def test_bits_per_byte_and_exposure_are_measured_where_the_corpus_is_in_the_store(house):
    before = house.compare("first", "second")
    assert any("Bits per byte and exposure are not measured" in remark for remark in before.remarks)
    house.corpus()
    found = house.compare("first", "second")
    assert [one.kind for one in found.outcomes] == ["pseudo_likelihood", "minimal_pairs"]
    assert found.outcomes[0].figures["bits_per_byte"]["first"].n > 0
    assert found.outcomes[1].exposure is not None and not any("Bits per byte and" in one for one in found.remarks)


def test_what_is_finished_is_not_asked_again(house, monkeypatch):
    house.corpus()
    first = house.compare("first", "second")
    labels = asked(monkeypatch)
    again = house.compare("first", "second")
    assert not labels and report.page(again) == report.page(first)
    house.compare("second", "third")
    assert set(labels) == {"third"}
    labels.clear()
    house.write("pairs.jsonl", [{"sentence_good": GOOD, "sentence_bad": BAD}])
    changed = house.compare("first", "second")
    assert set(labels) == {"first", "second"} and changed.outcomes[1].counts["pairs"] == 1


def test_a_comparison_that_was_stopped_goes_on(house, monkeypatch):
    from tasks.minimal_pairs import MinimalPairs

    score, done = MinimalPairs.score, []

    def stop(self: Any, subject: Any, advance: Any) -> Any:
        if done:
            raise KeyboardInterrupt
        done.append(subject.label)
        return score(self, subject, advance)

    monkeypatch.setattr(MinimalPairs, "score", stop)
    with pytest.raises(KeyboardInterrupt):
        house.compare("first", "second")
    monkeypatch.setattr(MinimalPairs, "score", score)
    labels = asked(monkeypatch)
    house.compare("first", "second")
    assert set(labels) == {"second"} and done == ["first"]


def test_the_order_of_the_models_changes_no_figure(house):
    one, other = house.compare("first", "second"), house.compare("second", "first")
    assert dict(one.outcomes[0].figures["accuracy"]) == dict(other.outcomes[0].figures["accuracy"])


def test_one_model_is_a_report_of_its_own(house):
    found = house.compare("first")
    assert found.title == "first" and 'class="tiles sets"' in report.page(found)


def test_a_recipe_without_a_corpus_and_without_sets_has_nothing_to_ask(house):
    with pytest.raises(UsageError, match="no evaluation sets to ask"):
        house.compare("first", evaluate=house.settings())


# What MODEL means.


def test_a_folder_is_a_model_also_that_of_a_stage(house):
    stage = house.weights(0).folder
    one, other = (contenders.find([str(path)], house.home, house.store)[0] for path in (stage, house.root / "first"))
    assert one.digest == other.digest and one.folder.name == "model"


def test_the_same_model_twice_is_refused(house):
    with pytest.raises(UsageError, match="are the same model"):
        house.compare("first", "first")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("texts", "holds no config.json"),
        ("./nowhere", "There is no folder"),
        ("nobody/nothing", "the hub does not give it"),
        ("nothing", "no folder here, no model of the registry"),
        ("nothing/3", "There is no registry"),
        ("nothing@champion", "There is no registry"),
        ("what is this?", "the hub does not give it"),
    ],
)
def test_what_is_no_model_is_said_in_a_sentence(house, monkeypatch, spec, message):
    monkeypatch.chdir(house.root)
    with pytest.raises(UsageError, match=re.escape(message)):
        contenders.find([spec], house.home, house.store)


def test_labels_are_short_and_told_apart():
    assert contenders._apart(["a/b/mine", "bert-base-uncased", "x/3"]) == ["mine", "bert-base-uncased", "x/3"]
    assert contenders._apart(["a/b/mine", "c/d/mine"]) == ["a/b/mine", "c/d/mine"]
    assert contenders._apart(["x/y/test", f"q/r/{BASELINE}x"]) == ["./test", f"./{BASELINE}x"]


@pytest.mark.slow
def test_a_registered_name_is_its_champion_in_the_store_or_brought_from_the_registry(house):
    from tasks.registry import RegisterConfig, register

    made = [house.store.folders(stage)[0].name for stage in ("corpus", "vocabulary")]
    assert made
    weights = house.weights(0)
    evaluated = small_model.evaluate(house.store, weights, 4.0)
    parents = (small_model.corpus(house.store), house.vocabulary, house.shards, weights, evaluated)
    manifest, _ = register(RegisterConfig("mine"), *parents, house.store, home=house.home)
    for spec in ("mine", "mine@champion", "mine/1"):
        (found,) = contenders.find([spec], house.home, house.store)
        assert (found.label, found.origin) == ("mine/1", "the registry")
        assert found.folder == manifest.folder / "model"
    (brought,) = contenders.find(["mine/1"], house.home, Store(house.root / "another store"))
    assert brought.digest == found.digest and brought.folder.parent == house.home / "compare" / "models"
    (again,) = contenders.find(["mine/1"], house.home, Store(house.root / "another store"))
    assert again == brought
    with pytest.raises(UsageError, match=r"has no version 7"):
        contenders.find(["mine/7"], house.home, house.store)
    assert versions.names(house.home) == ["mine"]
    with pytest.raises(UsageError, match=r"it has mine"):
        contenders.find(["mime"], house.home, house.store)


def test_a_model_that_is_gone_is_damage(house, monkeypatch):
    version = versions.Version("mine", 1, (), {}, "")
    monkeypatch.setattr(versions, "names", lambda home: ["mine"])
    monkeypatch.setattr(versions, "find", lambda spec, home: version)
    monkeypatch.setattr(versions, "fetch", lambda version, home, target: target)
    with pytest.raises(DataError, match="holds no model"):
        contenders.find(["mine"], house.home, house.store)


# The command.


@pytest.fixture
def command(house, monkeypatch):
    monkeypatch.setenv("MASKMILL_HOME", str(house.home))
    monkeypatch.setattr(cli.environment, "settle", lambda home: None)
    monkeypatch.setattr(recipes, "load", lambda *_: house.recipe)

    def run(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(cli.terminal.app, ["compare", *arguments])
        assert result.exit_code == code, result.output
        return result.stdout if code == 0 else " ".join(result.output.split())

    return run


def test_the_command_writes_a_page_and_says_where(house, command):
    shown = command(str(house.root / "first"), str(house.root / "second"))
    assert "best baseline" in shown and "first" in shown
    file = Path(re.search(r"Report\s+(.*\.html)", shown)[1])
    assert file == house.home / "compare" / "first_second.html" and "</html>" in file.read_text()


def test_json_is_for_programs(house, command):
    out = house.root / "reports" / "mine.html"
    page = json.loads(command(str(house.root / "first"), "--json", "--out", str(out)))
    assert page["html"] == str(out) and out.exists()
    assert page["outcomes"][0]["figures"]["accuracy"]["first"]["n"] == 6


def test_errors_are_a_sentence_and_a_status(command):
    assert "There is no folder ./nowhere." in command("./nowhere", code=2)
    assert "Missing argument" in command(code=2)
