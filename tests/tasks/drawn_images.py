"""Images that the tests draw themselves, and corpora of them as the image corpus stage makes them."""

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.artifacts import Built, Identity, Manifest, Store, Workspace

SPLITS = ("train", "validation", "test")


def drawn(number: int, height: int = 8, width: int = 8, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Discs of some brightness on a darker ground, with a little noise: uint8 (B, H, W, C)."""
    rng = np.random.default_rng([seed, height, width, channels])
    rows, columns = np.mgrid[:height, :width]
    at = rng.uniform(0, (height, width), (number, 2))
    off = (rows - at[:, :1, None]) ** 2 + (columns - at[:, 1:, None]) ** 2
    disc = off < rng.uniform(1, height * width / 4, (number, 1, 1))
    light = rng.integers(100, 250, (number, 1, 1, channels))
    noise = rng.integers(0, 6, (number, height, width, channels))
    return (disc[..., None] * light + noise).astype(np.uint8)


def split_of(number: int) -> str:
    """Of 10 images, the first 8 are in train."""
    return ("train", "train", "train", "train", "train", "train", "train", "train", "validation", "test")[number % 10]


def corpus(
    store: Store,
    images: np.ndarray,
    splits: Sequence[str] | None = None,
    *,
    labels: Sequence[str | None] | None = None,
    files: int = 2,
    group: int = 50,
    order: Sequence[int] | None = None,
) -> Manifest:
    """A corpus of images (B, H, W, C). `order`: in which they are written."""
    number = len(images)
    splits = list(splits or map(split_of, range(number)))
    labels = list(labels or [None] * number)
    order = list(range(number) if order is None else order)

    def build(workspace: Workspace) -> Built:
        for part, rows in enumerate(np.array_split(np.array(order, np.int64), files)):
            chosen = [images[row].tobytes() for row in rows]
            columns = {
                "id": pa.array([hashlib.sha256(one).hexdigest()[:32] for one in chosen], pa.string()),
                "pixels": pa.array(chosen, pa.binary()),
                "label": pa.array([labels[row] for row in rows], pa.string()),
                "source": pa.array([f"made#{row}" for row in rows], pa.string()),
                "offset": pa.array([0] * len(rows), pa.int64()),
                "split": pa.array([splits[row] for row in rows], pa.string()),
            }
            path = workspace.folder / f"documents-{part:05d}.parquet"
            pq.write_table(pa.table(columns), path, compression="zstd", row_group_size=group, write_page_checksum=True)
        counts = {f"documents_{split}": splits.count(split) for split in SPLITS}
        image = dict(zip(("height", "width", "channels"), images.shape[1:]))
        facts = {"modality": "images", "image": image, "labels": sorted({one for one in labels if one}), "sources": []}
        counts |= {"documents_in": number, "documents_kept": number, "bytes_kept": images.nbytes, "copies": 0}
        return Built(counts, facts)

    digest = hashlib.sha256(images.tobytes()).hexdigest()
    settings = {"made": digest, "splits": splits, "labels": labels, "files": files, "group": group, "order": order}
    return store.make(Identity("corpus", 1, settings, {}), build)[0]
