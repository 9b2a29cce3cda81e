"""python -m pytest tests/flows/test_summary.py"""

import json
from pathlib import Path
from typing import Any

import pytest

from flows import summary
from tasks import corpus_card
from tasks.artifacts import Built, Identity, Manifest, Store
from tests.tasks.test_corpus_card import card, source

ENTRY = {"state": "made", "seconds": 1.0, "why": "it is not made yet"}


def made(folder: Path, stage: str, **files: Any) -> Manifest:
    def build(workspace: Any) -> Built:
        for name, value in files.items():
            (workspace.folder / f"{name}.json").write_text(json.dumps(value))
        return Built({"documents_kept": 3}, {})

    return Store(folder).make(Identity(stage, 1, {}, {}), build)[0]


def test_prefects_artifact_of_the_corpus_is_its_card(tmp_path: Path) -> None:
    shown = card(source("novels", "<script>alert(1)</script>", too_short=4))
    text = summary.card("corpus", made(tmp_path, "corpus", card=shown), ENTRY, "tiny")
    assert corpus_card.markdown(shown) in text and "<script" not in text and "too\\_short" in text


def test_prefects_artifact_of_another_stage_is_its_counts(tmp_path: Path) -> None:
    assert "| documents_kept | 3 |" in summary.card("vocabulary", made(tmp_path, "vocabulary"), ENTRY, "tiny")


def test_prefects_artifact_says_which_shards_it_is_of(tmp_path: Path) -> None:
    splits = {"train": {"rows": 3, "tokens": 90}}
    manifest = Store(tmp_path).make(Identity("shards", 1, {}, {}), lambda _: Built({}, {"splits": splits}))[0]
    assert summary.card("shards 128", manifest, ENTRY, "tiny").startswith("**shards 128** of `tiny`: made")


@pytest.mark.parametrize(
    ("steps", "told"), [([], ""), ([14], "--set pretrain.fork={}@14"), ([7, 14], "--set pretrain.fork={}@14 (or @7)")]
)
def test_a_run_with_stable_checkpoints_says_how_to_fork_from_it(tmp_path: Path, steps: list[int], told: str) -> None:
    stable = {"stable": [{"step": step} for step in steps]}
    weights = Store(tmp_path).make(Identity("pretrain", 1, {}, {}), lambda _: Built({}, stable))[0]
    assert summary.forks(weights) == told.format(weights.key[:12])
