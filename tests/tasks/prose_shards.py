"""Shards of a little prose and some odd texts, as the stages make them. Shared by several test modules."""

from pydoc_data.topics import topics

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks import rows
from tasks.artifacts import Built, Identity, Manifest, Store, Workspace
from tasks.shards import ShardsConfig, shards
from tasks.vocabulary import VocabularyConfig, vocabulary

CONFIG = ShardsConfig(length=64, rate="0.29", draws=2, seed=3, block_bytes=60_000, shard_bytes=120_000, workers=1)
PROSE = [str(text) for _, text in sorted(topics.items())]
ODD = [
    "",
    "a",
    "[CLS][SEP][MASK]",
    "[MASK] and [CLS] are [SEP] written [PAD] here [UNK]",
    "\n",
    "é" * 300,
    "one two three",
]
TEXTS = {"train": PROSE[:45] + ODD, "validation": PROSE[45:52], "test": [*PROSE[52:58], "b"]}


def make_corpus(store: Store, texts: dict[str, list[str]], group: int = 7) -> Manifest:
    """A corpus written by hand, its splits interleaved, in two files."""
    documents = [(text, split) for split, some in texts.items() for text in some]
    documents = [documents[at] for at in np.random.default_rng(0).permutation(len(documents))]

    def build(workspace: Workspace) -> Built:
        for number, some in enumerate((documents[:20], documents[20:])):
            columns = {
                "text": pa.array([text for text, _ in some], pa.large_string()),
                "split": pa.array([split for _, split in some], pa.string()),
            }
            path = workspace.folder / f"documents-{number:05d}.parquet"
            pq.write_table(pa.table(columns), path, row_group_size=group, write_page_checksum=True)
        return Built({f"documents_{split}": len(some) for split, some in texts.items()}, {"documents": documents})

    return store.make(Identity("corpus", 1, {"texts": documents, "group": group}, {}), build)[0]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def corpus(store) -> Manifest:
    return make_corpus(store, TEXTS)


@pytest.fixture(scope="module")
def words(store, corpus) -> Manifest:
    return vocabulary(VocabularyConfig(size=1024), corpus, store)[0]


@pytest.fixture(scope="module")
def made(store, corpus, words) -> Manifest:
    return shards(CONFIG, corpus, words, store)[0]


def batches(manifest: Manifest, split: str) -> list[pa.RecordBatch]:
    return [rows.read(manifest.path(entry["name"])) for entry in manifest.facts["splits"][split]["files"]]


def segments(batch: pa.RecordBatch) -> list[list[dict[str, int]]]:
    return batch.column("segments").to_pylist()
