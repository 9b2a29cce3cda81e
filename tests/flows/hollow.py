"""A recipe, and artifacts under the identities of its stages with next to nothing in them. For several test modules."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows import forks, plan, recipes
from flows.plan import Verdict
from flows.recipes import Recipe
from tasks.artifacts import Built, Manifest, Store, Workspace

STAGES = list(plan.INPUTS)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("A text of a few words.")
    return recipes.load("tiny", sources=[str(tmp_path / "texts")])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def make(recipe: Recipe, store: Store, stages: list[str] | None = None, stable: list[int] | None = None) -> Manifest:
    """Artifacts under the identities of the real stages, with a small file in place of their contents. The last one."""
    digests: dict[str, str] = {}
    forked = forks.find(recipe.pretrain.fork, store)
    for name, part in plan.parts(recipe).items():
        if name not in (stages or plan.parts(recipe)):
            continue
        identity = plan.identity_of(part, digests, store, fork=forked)
        facts: dict[str, Any] = {
            "length": getattr(part.config, "length", 0),
            "splits": {"train": {"rows": 96, "tokens": 96 * 28}},
        }
        facts["stable"] = [
            {"step": step, "positions": step * 512, "tokens": step * 448, "samples": {}} for step in stable or []
        ]

        def build(workspace: Workspace, key: str = identity.key, facts: dict[str, Any] = facts) -> Built:
            (workspace.folder / "data").write_text(key)
            return Built({}, facts)

        manifest = store.make(identity, build)[0]
        digests[name] = manifest.digest
    return manifest


def actions(verdicts: list[Verdict]) -> list[str]:
    return [verdict.action for verdict in verdicts]


def damage(store: Store, stage: str) -> Path:
    (folder,) = store.folders(stage)
    path = folder / "data"
    path.write_text("x")
    return path


def forked(recipe: Recipe, fork: str) -> Recipe:
    return replace(recipe, pretrain=replace(recipe.pretrain, fork=fork, steps=40))
