"""A corpus of a little prose, written by hand. Shared by several test modules."""

from pydoc_data.topics import topics

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.artifacts import Built, Identity, Manifest, Store, Workspace

TEXTS = [str(text) for _, text in sorted(topics.items())][:40]


def make_corpus(store: Store, texts: list[str], split: str = "train") -> Manifest:
    """A corpus written by hand: the stages meet through manifests only."""
    splits = {"train": 0, "validation": 0, "test": 0} | {split: len(texts)}

    def build(workspace: Workspace) -> Built:
        column = pa.array(texts, pa.large_string())
        table = pa.table({"text": column, "split": pa.array([split] * len(texts), pa.string())})
        path = workspace.folder / "documents-00000.parquet"
        pq.write_table(table, path, compression="zstd", write_page_checksum=True)
        return Built({f"documents_{name}": count for name, count in splits.items()}, {})

    return store.make(Identity("corpus", 1, {"texts": texts, "split": split}, {}), build)[0]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))
