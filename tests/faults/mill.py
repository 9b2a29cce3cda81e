"""The tiny pipeline without Prefect: its six stages as plain functions, one after the other, in this process.

A home holds what `maskmill run tiny` would leave there: the same stages, settings and store, so the same digests.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from flows import environment, recipes
from tasks import artifacts
from tasks.artifacts import Manifest, Store
from tests.tasks.bar_images import bars
from tests.tasks.made_images import encoded, idx, tar

STAGES = ("corpus", "vocabulary", "shards", "pretrain", "evaluate", "register")
TRAINING = ("corpus.workers=1", "pretrain.steps=12", "pretrain.checkpoint_every=4", "pretrain.validation_every=6")
RECIPES = {
    "texts": ("tiny", TRAINING),
    "images": (
        "images",
        (
            *TRAINING, "vocabulary.size=32", "shards.length=24", "shards.draws=2", "pretrain.layers=1",
            "pretrain.width=16", "pretrain.heads=2", "pretrain.intermediate=32", "pretrain.batch_tokens=480",
            "pretrain.tokens=1000", "pretrain.threads=1", "evaluate.threads=1", "evaluate.rates=[]",
            "evaluate.pictures=3", "evaluate.probe={seeds: 3, neighbours: 5}", "register.name=tiny",
        ),
    ),
}  # fmt: skip
"""Modality -> recipe, and what is different from it: what a sweep over every system call costs."""
LITTER = re.compile(r"\.tmp$|\.partial$|\.old|\.fetch$|\.quarantined$")


def texts(folder: Path) -> Path:
    """A small corpus of made texts: 180 documents in three files, and a line that is none."""
    folder.mkdir(parents=True)
    for file in range(3):
        lines = []
        for number in range(file, 180, 3):
            sentences = []
            for line in range(6):
                animal = ("cat", "dog", "rat", "hen", "owl", "fox")[(number * 5 + line * 7) % 6]
                place = ("mat", "roof", "fence", "road", "river")[(number + line * line) % 5]
                sentences.append(f"The {animal} number {number * (line + 1)} sat on the {place} and saw {line} others.")
            lines.append(json.dumps({"text": " ".join(sentences)}))
        lines.insert(20, '{"text": "cut off')
        (folder / f"texts-{file}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def images(folder: Path) -> Path:
    """A small corpus of drawn images of two labels: a folder of 80 files, a tar of 20 and an IDX file of 20, and a file
    that is none."""
    folder.mkdir(parents=True)
    pictures, labels = bars(120)
    for number, (picture, label) in enumerate(zip(pictures[:80], labels)):
        (folder / label).mkdir(exist_ok=True)
        (folder / label / f"{number:03}.png").write_bytes(encoded(picture))
    (folder / labels[0] / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more than this")
    packed = {f"{labels[80 + at]}/{at}.png": encoded(picture) for at, picture in enumerate(pictures[80:100])}
    (folder / "packed.tar").write_bytes(tar(packed))
    (folder / "more-images-idx3-ubyte").write_bytes(idx(pictures[100:, :, :, 0]))
    return folder


def place(name: str, of: str) -> str:
    """A stage, or what is stored of it, as a trial is named."""
    return name if of == "texts" else f"{name} of {of}"


def settle(home: Path) -> None:
    """The variables of a run in that home."""
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "PREFECT_", "MASKMILL_"))]:
        del os.environ[name]
    os.environ["MASKMILL_HOME"] = str(home)
    os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
    environment.settle(home)


def run(home: Path, source: Path, until: str = "register", wait: float = 600.0) -> dict[str, Manifest]:
    """The stages up to one; what is finished is reused. Manifests by stage.

    source      its name is the modality
    """
    from tasks import evaluate, modalities, pretrain, registry, shards

    settle(home)
    name, settings = RECIPES[source.name]
    recipe = recipes.load(name, [str(source)], list(settings))
    store = Store(environment.store_root(home), wait)
    made: dict[str, Manifest] = {}

    def judged() -> tuple[Manifest, bool]:
        rival = registry.champion(recipe.register.name, store, made["pretrain"].digest)
        return evaluate.evaluate(recipe.evaluate, *made.values(), rival, store)

    steps: tuple[Callable[[], tuple[Manifest, bool]], ...] = (
        lambda: modalities.corpus(recipe.corpus, store),
        lambda: modalities.vocabulary(recipe.vocabulary, made["corpus"], store),
        lambda: shards.shards(recipe.shards, made["corpus"], made["vocabulary"], store),
        lambda: pretrain.pretrain(recipe.pretrain, made["vocabulary"], made["shards"], store),
        judged,
        lambda: registry.register(recipe.register, *made.values(), store),
    )
    for stage, step in zip(STAGES, steps, strict=True):
        made[stage] = step()[0]
        if stage == until:
            break
    return made


# What is to be true of a home, whoever wrote there and was stopped.


def broken(home: Path) -> list[str]:
    """Findings on what has a final name: a folder that has one holds a whole artifact, byte for byte."""
    findings = []
    for stage in STAGES:
        for folder in Store(home / "store").folders(stage):
            try:
                findings += artifacts.verify(artifacts.load(folder))
            except Exception as error:
                findings.append(f"{folder.relative_to(home)}: {error}")
    return findings


def on_disk(home: Path, stage: str) -> list[str]:
    """Digests of the stage's artifacts."""
    return [artifacts.load(folder).digest for folder in Store(home / "store").folders(stage)]


def litter(home: Path, partial: bool = True) -> list[str]:
    """Temporary names in the home. partial: also what a stopped stage goes on from."""
    found = []
    for path in (home / "store").rglob("*"):
        if LITTER.search(path.name) and (partial or not path.name.endswith(".partial")):
            found.append(str(path.relative_to(home)))
    return found


def units(home: Path) -> set[str]:
    """Receipts of finished units in unfinished work: none of them is to be made twice."""
    paths = (home / "store").glob("*/.*.partial/.scratch/**/*.json")
    return {str(path) for path in paths if ".receipt." in path.name or re.fullmatch(r"step-\d+\.json", path.name)}


def digests(made: dict[str, Manifest]) -> dict[str, str]:
    return {stage: manifest.digest for stage, manifest in made.items()}


def versions(home: Path) -> list[dict[str, Any]]:
    """What the registry says: the tags of each version, its aliases, and whether it loads."""
    from tasks import serving, tracking

    settle(home)
    client = tracking.connect(home)
    found: list[dict[str, Any]] = []
    for version in client.search_model_versions("name='tiny'"):
        aliases = client.get_model_version("tiny", version.version).aliases
        tags = {name: version.tags.get(name, "") for name in ("weights", "settled", *STAGES[:5])}
        try:
            serving.load(f"tiny/{version.version}", home)
            whole = True
        except Exception as error:
            whole = f"{type(error).__name__}: {error}"
        found.append({"version": int(version.version), "aliases": sorted(aliases), "loads": whole, **tags})
    return sorted(found, key=lambda one: one["version"])


def processes_of(session: int) -> Iterator[int]:
    """Processes of a session that are still there."""
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with suppress(OSError, ValueError):
                fields = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session and fields[0] != "Z":
                    yield int(entry)
