"""Texts of a few words, and the corpus stage's settings for them. Shared by several test modules."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tasks.artifacts import Manifest
from tasks.corpus import CorpusConfig
from tasks.sources import Source
from tasks.streams import Limits

WORDS = ["the", "of", "and", "to", "in", "that", "was", "his", "he", "it", "with", "is", "for", "as", "had", "you"]


def sentences(seed: int, number: int) -> list[str]:
    random_ = random.Random(seed)
    return [" ".join(random_.choices(WORDS, k=20)) + "." for _ in range(number)]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.txt").write_text("\n\n".join(sentences(number, 60)))
    lines = [json.dumps({"text": one}) for one in sentences(99, 150)]
    lines += ["{broken", lines[0], '{"text": " "}', '{"text": "short"}']
    (folder / "records.jsonl").write_text("\n".join(lines))
    return folder


def config(*uris: object, **settings: object) -> CorpusConfig:
    limits = Limits(document_characters=400)
    return replace(CorpusConfig(tuple(Source(str(uri)) for uri in uris), limits=limits), **settings)  # type: ignore[arg-type]


def rows(manifest: Manifest) -> list[dict]:
    return pq.read_table(manifest.path("documents-00000.parquet")).to_pylist()
