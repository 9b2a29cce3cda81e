"""No pickle is loaded, wherever a file is read: a canary in each of them would leave a file behind.

Files between processes of one run (multiprocessing, Prefect's and torch's own pipes) are not read from a disk: what
they carry was made by the same program a moment before.

python -m pytest tests/faults/test_pickles.py -m ''
"""

import ast
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows import deployments, ledger, recipes
from tasks import (
    adopted,
    checkpoint,
    digests,
    evaluate,
    launch,
    modalities,
    outbox,
    packs,
    places,
    pretrain,
    registry,
    shards,
)
from tasks.artifacts import Manifest, Store, file_digest, finished_unit, load
from tasks.errors import MaskmillError
from tasks.manifests import page, read_sealed, sealed
from tasks.spool import Spool
from tests.faults.canary import Canary, forms

ROOT = Path(__file__).parents[2]
FORBIDDEN = {"eval", "exec", "compile", "__import__"}
CALLS = (
    "torch.load(",
    "torch.save(",
    "yaml.load_all(",
    "yaml.unsafe_load(",
    "yaml.full_load(",
    "marshal.",
    "shelve.",
    "joblib.",
)
MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "imp"}


def test_the_canary_sings(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Canary(tmp_path / "canary"))).close()
    assert (tmp_path / "canary").exists()


def test_no_line_of_the_product_can_load_one() -> None:
    for path in [*(ROOT / "tasks").glob("*.py"), *(ROOT / "flows").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{path.name}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import | ast.ImportFrom):
                named = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
                assert not {one.split(".")[0] for one in named} & MODULES, where
            if not isinstance(node, ast.Call):
                continue
            call = ast.unparse(node)
            assert not (isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN), where
            assert (
                not call.startswith(CALLS) and "allow_pickle=True" not in call and "weights_only=False" not in call
            ), where
            if call.startswith("yaml.load("):
                assert call.endswith("Loader)") and path.name == "recipe_file.py", where
            assert "trust_remote_code=True" not in call, where


@dataclass
class Made:
    """A tiny store that the stages made."""

    store: Store
    recipe: Any
    stages: dict[str, Manifest]
    source: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("pickles")
    (source := folder / "source").mkdir()
    rng = np.random.default_rng(0)
    words = ["the", "cat", "sat", "on", "mat", "and", "dog", "log", "with", "his", "hat", "for", "it"]
    (source / "a.txt").write_text("\n\n".join(" ".join(rng.choice(words, 60)) + "." for _ in range(400)))
    settings = [
        "pretrain.steps=4",
        "pretrain.checkpoint_every=2",
        "corpus.limits.document_characters=300",
        "evaluate.pseudo_likelihood=null",
    ]
    recipe = recipes.load("tiny", [str(source)], settings[:3])
    store = Store(folder / "store")
    return Made(store, recipe, dict(stages(recipe, store)), source)


def stages(recipe: Any, store: Store) -> Iterator[tuple[str, Manifest]]:
    corpus = modalities.corpus(recipe.corpus, store)[0]
    yield "corpus", corpus
    words = modalities.vocabulary(recipe.vocabulary, corpus, store)[0]
    yield "vocabulary", words
    rows = shards.shards(recipe.shards, corpus, words, store)[0]
    yield "shards", rows
    weights = pretrain.pretrain(recipe.pretrain, words, rows, store)[0]
    yield "pretrain", weights
    report = evaluate.evaluate(recipe.evaluate, corpus, words, rows, weights, None, store)[0]
    yield "evaluate", report


def harmless(work: Callable[[], Any], canary: Path) -> None:
    """It may refuse as it likes, but nothing sings."""
    with suppress(Exception):
        work()
    assert not canary.exists()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["corpus", "vocabulary", "shards", "pretrain", "evaluate"])
def test_in_place_of_each_file_of_an_artifact(made: Made, stage: str, tmp_path: Path) -> None:
    """Also where the manifest says that these are the right bytes."""
    manifest, canary = made.stages[stage], tmp_path / "canary"
    for number, (name, form) in enumerate((name, form) for name in manifest.files for form in ("bare", "npy", "torch")):
        shutil.copytree(made.store.root, root := tmp_path / f"store{number}", symlinks=True)
        folder = root / stage / manifest.key
        (folder / name).write_bytes(data := forms(canary)[form])
        (folder / f"beside.{form}").write_bytes(data)
        page_ = read_sealed(folder / "manifest.json")
        page_["files"][name] = {"bytes": len(data), "sha256": file_digest(folder / name)}
        (folder / "manifest.json").write_bytes(page(sealed(page_)))
        harmless(lambda: consumers(made, stage, Store(root), folder), canary)  # noqa: B023
        shutil.rmtree(root)


def consumers(made: Made, stage: str, store: Store, folder: Path) -> None:
    """What reads a stage's artifact, on the forged one."""
    forged = made.stages | {stage: _forged(folder)}
    corpus, words, rows, weights, _ = (forged[name] for name in made.stages)
    work: dict[str, list[Callable[[], Any]]] = {
        "corpus": [
            lambda: modalities.vocabulary(made.recipe.vocabulary, corpus, store),
            lambda: shards.shards(made.recipe.shards, corpus, words, store),
        ],
        "vocabulary": [
            lambda: shards.shards(made.recipe.shards, corpus, words, store),
            lambda: pretrain.pretrain(made.recipe.pretrain, words, rows, store),
        ],
        "shards": [
            lambda: reader(rows),
            lambda: evaluate.evaluate(made.recipe.evaluate, corpus, words, rows, weights, None, store),
        ],
        "pretrain": [
            lambda: evaluate.evaluate(made.recipe.evaluate, corpus, words, rows, weights, None, store),
            lambda: model(folder),
        ],
        "evaluate": [
            lambda: scores(folder),
            lambda: registry._write_folder(
                store.root / "registered", "m", dict(zip(registry.PARENTS, forged.values(), strict=False))
            ),
        ],
    }
    for one in work[stage]:
        with suppress(Exception):
            one()


def _forged(folder: Path) -> Manifest:
    """As `load`, without the digest that no longer follows."""
    from tasks.manifests import FileEntry, Identity

    value = read_sealed(folder / "manifest.json")
    files = {name: FileEntry(**entry) for name, entry in value["files"].items()}
    identity = Identity(value["stage"], value["version"], value["config"], value["inputs"])
    return Manifest(identity, files, value["counts"], value["facts"], value["libraries"], value["digest"], folder)


def reader(rows: Manifest) -> None:
    from tasks.batches import ShardReader

    for split in ("train", "validation", "test"):
        ShardReader(rows, split)


def model(folder: Path) -> None:
    from tasks.stock import load_stock

    load_stock(folder / "model")


def scores(folder: Path) -> None:
    from tasks import evidence

    evidence.read(folder / evidence.FILE)


@pytest.mark.slow
def test_in_place_of_everything_that_a_killed_run_left(made: Made, tmp_path: Path) -> None:
    """Checkpoints, journals, packs, receipts, outboxes, the ledger, remembered digests."""
    canary = tmp_path / "canary"
    for form, data in forms(canary).items():
        home = tmp_path / form.replace(", ", "-")
        for name in (
            "runs/1.json",
            "outbox/1.jsonl",
            "measured.metrics.jsonl",
            "digests.json",
            places.PLACES,
            "outcome.json",
        ):
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_bytes(data)
        for name in (
            "step-000000001.json",
            "step-000000001.safetensors",
            "pack-1.receipt.json",
            "pack-1/sizes.npy",
            "pack-1/texts.arrow",
        ):
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_bytes(data)
        about = {
            "step": 2,
            "regular": True,
            "state": {},
            "bytes": len(data),
            "sha256": file_digest(home / "digests.json"),
        }
        (home / "step-000000002.safetensors").write_bytes(data)
        (home / "step-000000002.json").write_bytes(page(sealed(about)))
        for work in readers_of(home, made):
            harmless(work, canary)


def readers_of(home: Path, made: Made) -> tuple[Callable[[], Any], ...]:
    return (
        lambda: ledger.read(home),
        lambda: [outbox.Outbox.take(path) for path, _ in outbox.heads(home / "outbox")],
        lambda: outbox.Outbox.take(home / "outbox" / "1.jsonl"),
        lambda: Spool(home / "measured.metrics.jsonl", lambda records: None).ship(),
        lambda: digests.Memory(home).digests([made.source / "a.txt"]),
        lambda: places.files(home, hashed=True),
        lambda: launch.outcome(home, 0),
        lambda: checkpoint.load_stable(home / "step-000000001.safetensors"),
        lambda: checkpoint.load_stable(home / "step-000000002.safetensors"),
        lambda: checkpoint.newest(home, lambda state: None),
        lambda: finished_unit(home, "pack-1"),
        lambda: packs.index(home),
        lambda: packs.column(home, "pack-1", "sizes"),
        lambda: packs.texts(home, "pack-1", 0, 1),
        lambda: load(home),
    )


SUFFIXES = [
    ".txt",
    ".md",
    ".html",
    ".jsonl",
    ".ndjson",
    ".csv",
    ".tsv",
    ".parquet",
    ".arrow",
    ".gz",
    ".txt.gz",
    ".jsonl.zst",
    ".txt.bz2",
    ".txt.xz",
    ".pkl",
    ".pickle",
    ".npy",
    ".npz",
    ".pt",
    ".pth",
    ".bin",
    ".ckpt",
    ".safetensors",
    ".tar",
    ".zip",
]


@pytest.mark.slow
def test_as_a_source_an_evaluation_set_a_tokenizer_or_a_recipe(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for form, data in forms(canary).items():
        (folder := tmp_path / form.replace(", ", "-")).mkdir()
        for suffix in SUFFIXES:
            (folder / f"a{suffix}").write_bytes(data)
        for name in (
            "tokenizer.json",
            "tokenizer_config.json",
            "state.json",
            "dataset_info.json",
            "recipe.yaml",
            "prefect.yaml",
        ):
            (folder / name).write_bytes(data)
        store = Store(folder / "store")
        for suffix in SUFFIXES:
            source = str(folder / f"a{suffix}")
            harmless(lambda: modalities.corpus(recipes.load("tiny", [source]).corpus, store), canary)  # noqa: B023
        for recipe in ("tiny", "images"):
            for source in (str(folder), f"hf:{folder}"):
                harmless(lambda: modalities.corpus(recipes.load(recipe, [source]).corpus, store), canary)  # noqa: B023
        harmless(lambda: adopted.adopt(adopted.find(str(folder))), canary)
        harmless(lambda: recipes.load(str(folder / "recipe.yaml")), canary)
        harmless(lambda: deployments.check(folder / "prefect.yaml"), canary)


@pytest.mark.slow
def test_in_the_folder_of_a_registered_model(tmp_path: Path) -> None:
    """Also beside its files, under the names that libraries look for."""
    from tasks import serving
    from tests.faults.fuzz_served import digested, image_folder, text_folder

    canary = tmp_path / "canary"
    for build in (text_folder, image_folder):
        (root := tmp_path / build.__name__).mkdir()
        place = build(root)
        for name in ("pytorch_model.bin", "python_model.pkl", "model.pkl", "training_args.bin", "optimizer.pt"):
            (place / name).write_bytes(forms(canary)["torch"])
        digested(place)
        serving.opened(place, "it is whole")
        assert not canary.exists()
        for path in sorted(path for path in place.iterdir() if path.is_file()):
            whole = path.read_bytes()
            for data in forms(canary).values():
                path.write_bytes(data)
                if path.name != "digests.json":
                    digested(place)
                harmless(lambda: serving.opened(place, "it is not"), canary)  # noqa: B023
            path.write_bytes(whole)
        digested(place)


@pytest.mark.slow
def test_a_pickle_is_refused_in_documented_words(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(forms(tmp_path / "canary")["bare"])
    with pytest.raises(MaskmillError, match="invalid_utf8"):
        modalities.corpus(recipes.load("tiny", [str(tmp_path / "a.jsonl")]).corpus, Store(tmp_path / "store"))
