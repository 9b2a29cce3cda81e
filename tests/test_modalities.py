"""The seam between what a document is and all the rest. pytest tests/test_modalities.py

A third modality is one reader, one vocabulary, one embedding, and what is asked of its models: an entry of
tasks/modalities.py and the modules that it names. Everything below does not change for it.
"""

import ast
import re
from dataclasses import fields
from pathlib import Path

import pytest

from flows import parts, recipe, recipes
from tasks import modalities, shards, vocabulary
from tasks.artifacts import Store
from tasks.errors import UsageError
from tasks.pretrain import identity
from tasks.pretrain_config import PretrainConfig
from tests.tasks import small_model

ROOT = Path(__file__).parents[1]
SHARED = {
    "tasks": [
        "artifacts",
        "manifests",
        "units",
        "arrays",
        "digests",
        "parallel",
        "remote_store",
        "retention",
        "lineage",
        "keys",
        "masking",
        "masking_torch",
        "rectangles",
        "spans",
        "encoding",
        "packing",
        "rows",
        "draws",
        "shards",
        "shards_config",
        "batches",
        "encoder_config",
        "encoder",
        "attention",
        "sublayers",
        "tiles",
        "objective",
        "optimizer",
        "orthogonal",
        "gradients",
        "sharding",
        "ranks",
        "strand",
        "training",
        "trainer",
        "looping",
        "timeline",
        "stretches",
        "pace",
        "rates",
        "choices",
        "points",
        "journal",
        "spool",
        "checkpoint",
        "keeper",
        "tensor_file",
        "guards",
        "meter",
        "flops",
        "stock",
        "pretrain",
        "pretrain_config",
        "evaluate",
        "intrinsic",
        "scoring",
        "calibration",
        "bootstrap",
        "battery",
        "registry",
        "versions",
        "board",
        "contest",
        "promotion",
        "tracking",
        "outbox",
        "sender",
        "delivery",
    ],
    "flows": [
        "mlm",
        "parts",
        "plan",
        "chain",
        "recipe",
        "ledger",
        "preempted",
        "doctor",
        "worker",
        "notices",
        "slots",
        "runners",
        "faults",
        "sweep",
    ],
}
"""Package -> modules that serve every modality."""
OF_A_MODALITY = re.compile(r"(?<![a-z])(texts?|words?|images?|pixels?|patch(es)?)(?![a-z])", re.IGNORECASE)
WRITTEN = {"whole-word", "cuts_at_word", "tie_word_embeddings", "words.npy", "changes_text", "texts"}
"""Names in files that were there before: of a policy, of a count in manifests, of a key of transformers' config; of a
task, what it has that may stand in the train split, too."""
OF_PYTHON = {"read_text", "write_text", "text", "Text", "rich.text", "TEXT", "log_text", "Image", "image", "_image"}
"""Words of Python, rich and MLflow, and the name for text, which is what a manifest without a modality is of; the image
of a checkpoint in memory."""
PEOPLE = {"words", "word", "_words", "flows.recipe_words"}
"""How variables for the words of a message or a command are called; and vocabularies in the flow."""


def said(path):
    """Identifiers and strings of a module, without docstrings: those that speak of a modality."""
    tree = ast.parse(path.read_text())
    docs = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in docs:
            continue
        for name in ("id", "attr", "name", "arg", "asname", "value", "module"):
            value = getattr(node, name, None)
            if isinstance(value, str):
                found.append(value)
    spaced = {one: re.sub(r"([a-z])([A-Z])", r"\1 \2", one).replace("_", " ") for one in found}
    return {one for one, apart in spaced.items() if OF_A_MODALITY.search(apart)} - WRITTEN - OF_PYTHON - PEOPLE


@pytest.mark.parametrize(("package", "name"), [(package, name) for package in SHARED for name in SHARED[package]])
def test_a_shared_module_does_not_speak_of_what_its_documents_are(package, name):
    assert said(ROOT / package / f"{name}.py") == set()


def owned():
    """Modules that the table names."""
    for one in modalities.MODALITIES.values():
        named = [one.corpus, one.vocabulary, one.groups, one.tokens, one.agenda, one.embedding, one.front]
        yield from filter(None, named)
        yield from (place.partition(":")[0] for place in one.settings.values())


@pytest.mark.parametrize("name", SHARED["tasks"])
def test_a_shared_module_imports_none_of_a_modality(name):
    imported = {
        node.module or alias.name
        for node in ast.walk(ast.parse((ROOT / "tasks" / f"{name}.py").read_text()))
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    }
    assert not imported & set(owned())


def test_every_modality_has_the_same_parts():
    for name, one in modalities.MODALITIES.items():
        for part in filter(None, [one.corpus, one.vocabulary]):
            assert callable(getattr(modalities.module(part), part.rpartition("_")[2])), (name, part)
            assert callable(modalities.module(part).identity)
        for asked in (
            "subject",
            "scorer",
            "untrained",
            "baselines",
            "strata",
            "tasks_of",
            "seen",
            "predictions",
            "pictures",
        ):
            assert callable(getattr(modalities.module(one.agenda), asked)), (name, asked)
        for asked in ("settle", "open_encoder"):
            assert callable(getattr(modalities.module(one.tokens), asked)), (name, asked)
        assert list(parts.INPUTS) == [field.name for field in fields(recipe.kind(name)) if field.name in parts.INPUTS]


def test_the_bytes_of_text_are_those_of_before_there_were_other_modalities(tmp_path):
    """Vocabulary, shards of every policy and the key of a training, as they were made at 2bc6a18."""
    store = Store(tmp_path)
    documents = small_model.corpus(store)
    words, _ = vocabulary.vocabulary(vocabulary.VocabularyConfig(size=300), documents, store)
    assert words.digest == "a96d30c0096974774994a57bdc8e13f5e0428be14cf632eee62cf3574fd472ec"
    for digest, settings in (
        ("0114c04adefe1b8da84dd71d46f8cb953dda3cda665a2519ec3aba34df26a35c", {"policy": "uniform"}),
        (
            "d5993c47b676a10b3fc0dd6a1d8d94641851e5e0bc97ddb42b79e6362b6fb0ff",
            {"policy": "whole-word", "corruption": "80/10/10"},
        ),
        (
            "40767ff305c39531beb9d62fae1f690e171130ff170683528946d4542d7fe4cd",
            {"policy": "span", "packing": "in-order"},
        ),
    ):
        rows, _ = shards.shards(shards.ShardsConfig(length=32, draws=2, **settings), documents, words, store)
        assert rows.digest == digest, settings
    training = PretrainConfig(device="cpu", dtype="float32", threads=1)
    assert identity(training, words.digest, rows.digest).key == "4dd94a77b97b745d656e9cfee9c6d369"


def test_a_recipe_of_an_unknown_modality_says_which_there_are(tmp_path):
    (tmp_path / "mine.yaml").write_text("modality: sounds\ncorpus: {sources: [a.txt]}\n")
    with pytest.raises(UsageError, match=r"mine\.yaml: modality is 'sounds'; use text or images\."):
        recipes.load(str(tmp_path / "mine.yaml"))
    (tmp_path / "mine.yaml").write_text(
        "corpus: {sources: [a.txt]}\nbeside: {modality: images, corpus: {sources: [b]}}\n"
    )
    with pytest.raises(UsageError, match=r"pretrain\.beside\.batch_tokens is 0, and the recipe has a second modality"):
        recipes.load(str(tmp_path / "mine.yaml"))
    with pytest.raises(UsageError, match=r"unknown key beside\.shards\.patch"):
        recipes.load(str(tmp_path / "mine.yaml"), overrides=["beside.shards.patch=3"])


def test_settings_of_one_modality_are_unknown_to_the_other(tmp_path):
    (tmp_path / "mine.yaml").write_text("modality: images\ncorpus: {sources: [a]}\nvocabulary: {model: bpe}\n")
    with pytest.raises(UsageError, match=r"unknown key vocabulary\.model"):
        recipes.load(str(tmp_path / "mine.yaml"))
    with pytest.raises(UsageError, match=r"shards\.policy is whole-word, and images have no words"):
        modalities.groups("images")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("pretrain: {input: payload}", r"pretrain\.input is payload .* text has nothing but tokens"),
        ("shards: {policy: block}", r"shards\.policy is block, and tokens of text lie in no grid"),
        ("modality: images\nshards: {policy: whole-word}", r"shards\.policy is whole-word, and images have no words"),
        ('modality: images\nshards: {corruption: "80/10/10"}', r"shards\.corruption is 80/10/10, and with pretrain"),
        (
            "beside: {corpus: {sources: [b]}}\npretrain: {beside: {batch_tokens: 4096, input: tokens}}",
            r"beside\.modality is text, as",
        ),
    ],
)
def test_what_a_modality_does_not_have_is_refused_when_the_recipe_is_read(tmp_path, settings, said):
    (tmp_path / "mine.yaml").write_text(f"corpus: {{sources: [a]}}\n{settings}\n")
    with pytest.raises(UsageError, match=said):
        recipes.load(str(tmp_path / "mine.yaml"))


def test_a_mixed_recipe_is_two_strands_with_one_training(tmp_path):
    (tmp_path / "mixed.yaml").write_text(
        "corpus: {sources: [a.txt]}\n"
        "beside: {modality: images, corpus: {sources: [b]}, shards: {length: 64}}\n"
        "pretrain: {steps: 9, beside: {batch_tokens: 640, alone: true}}\n"
        "register: {name: both}\n"
    )
    mixed = recipes.load(str(tmp_path / "mixed.yaml"))
    assert mixed.beside.corpus.sources[0].uri == str(tmp_path / "b")
    assert (mixed.second.register.name, mixed.second.pretrain.input) == ("both-images", "payload")
    assert {name: part.needs for name, part in parts.parts(mixed).items()} == {
        "corpus": (),
        "vocabulary": ("corpus",),
        "shards": ("corpus", "vocabulary"),
        "corpus images": (),
        "vocabulary images": ("corpus images",),
        "shards images": ("corpus images", "vocabulary images"),
        "pretrain text alone": ("vocabulary", "shards"),
        "pretrain images alone": ("vocabulary images", "shards images"),
        "pretrain": ("vocabulary", "shards", "vocabulary images", "shards images"),
        "evaluate": ("corpus", "vocabulary", "shards", "pretrain", "pretrain text alone"),
        "register": ("corpus", "vocabulary", "shards", "pretrain", "evaluate"),
        "evaluate images": ("corpus images", "vocabulary images", "shards images", "pretrain", "pretrain images alone"),
        "register images": ("corpus images", "vocabulary images", "shards images", "pretrain", "evaluate images"),
    }
    alone = parts.parts(mixed)["pretrain images alone"].config
    assert (alone.steps, alone.batch_tokens, alone.beside.batch_tokens) == (9, 640, 0)
