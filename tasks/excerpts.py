"""A sample of the train documents, by source: small enough to measure in a second, stated, and the same for any order
of files. The hash that is a document's id picks it, so neither files nor row groups nor a seed take part.

Two passes. The first reads ids and sources only and keeps, of each source, the documents with the smallest hashes; the
second reads the row groups in which those lie.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from .artifacts import Manifest
from .errors import DataError

SOURCE_BYTES = 1_000_000
"""Text of a source, at most."""
ALL_BYTES = 4_000_000
"""Text of all sources together, at most: many sources have less each."""
DOCUMENTS = 2000
"""Documents of a source, at most: they lie far apart, and each may cost the reading of a row group."""
ONLY = "corpus"
"""Name of the one source of a corpus that names none."""
_ROW = np.dtype([("hash", "<u8"), ("size", "<i8"), ("file", "<i4"), ("group", "<i4"), ("row", "<i8")])
"""A document: its hash, about how long it is (the mean of its row group, in bytes), and where it lies."""


@dataclass
class Sampled:
    """What the sample has of one source."""

    name: str
    documents: int = 0
    """In the train split, each as often as its weight says."""
    bytes: int = 0
    """Of their text; where the sample is not all of it, about: as long as those in the sample."""
    taken: int = 0
    """Documents in the sample."""
    whole: bool = True
    """The sample is all there is."""
    texts: list[str] = field(default_factory=list)
    """Ordered by hash; the last one may be cut."""
    labels: list[str] = field(default_factory=list)
    """Of each text: source and path of its file, "" where the corpus does not say."""
    found: NDArray[Any] = field(default_factory=lambda: np.zeros(0, _ROW), repr=False)
    rows: int = 0


def sample(corpus: Manifest) -> list[Sampled]:
    """The sample, in the order of the corpus's books; a source without a train document has no texts.

    Raises DataError naming the file that cannot be read.
    """
    books = [str(page["source"]) for page in corpus.facts.get("books", ())]
    sources = {name: Sampled(name) for name in books}
    names = sorted(name for name in corpus.files if name.endswith(".parquet"))
    paths = [corpus.whole(name) for name in names]
    for number, path in enumerate(paths):
        with _opened(path) as file:
            _survey(file, number, sources)
    budget = min(SOURCE_BYTES, ALL_BYTES // max(1, sum(one.rows > 0 for one in sources.values())))
    for one in sources.values():
        # Twice as much as needed: sizes are known by their means only.
        one.found = one.found[: 1 + int(np.searchsorted(np.cumsum(one.found["size"]), 2 * budget))]
    for one, texts in zip(sources.values(), _read(paths, list(sources.values()))):
        _take(one, texts, budget)
    # Those of no book come in the order of the files: by name instead.
    return [*map(sources.__getitem__, books), *(sources[name] for name in sorted(set(sources) - set(books)))]


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            yield file
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, KeyError, ValueError) as error:
        why = (str(error).splitlines() or [""])[0]
        raise DataError(f"{path} cannot be read ({why}); run `maskmill verify corpus`.") from None


def _survey(file: pq.ParquetFile, number: int, sources: dict[str, Sampled]) -> None:
    """Puts the train documents of a file into the lists of their sources, as far as their hashes are small."""
    there = set(file.schema_arrow.names)
    columns = [name for name in ("id", "source", "split", "copies") if name in there]
    place = file.schema_arrow.names.index("text")
    for group in range(file.num_row_groups):
        about = file.metadata.row_group(group)
        # A corpus written by hand may have no ids; then the hash is one of the text.
        table = file.read_row_group(group, columns if "id" in there else [*columns, "text"])
        train = np.flatnonzero(pc.equal(table["split"], "train").to_numpy(zero_copy_only=False))
        some = table.take(train)
        rows = np.zeros(len(train), _ROW)
        rows["hash"] = _hashes(some)
        rows["size"] = about.column(place).total_uncompressed_size // max(1, about.num_rows)
        rows["file"], rows["group"], rows["row"] = number, group, train
        copies = some["copies"].to_numpy() if "copies" in columns else np.ones(len(train), np.int64)
        for name, of in _by_source(some, sources):
            one = sources.setdefault(name, Sampled(name))
            one.rows += len(of)
            one.documents += int(copies[of].sum())
            both = np.concatenate([one.found, rows[of]])
            one.found = both[np.lexsort((both["size"], both["hash"]))[:DOCUMENTS]]


def _hashes(table: pa.Table) -> NDArray[np.uint64]:
    """(N,): the low half of the ids, which are 32 hex digits."""
    if "id" in table.column_names:
        digits = "".join(table["id"].to_pylist())
        halves = np.frombuffer(bytes.fromhex(digits), ">u8").reshape(-1, 2)
        if len(halves) != len(table):
            raise pa.ArrowInvalid("a document's id is not 32 hex digits")
        return halves[:, 1].astype(np.uint64)
    return np.array(
        [int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") for text in table["text"].to_pylist()],
        np.uint64,
    )


def _by_source(table: pa.Table, sources: Mapping[str, Sampled]) -> Iterator[tuple[str, NDArray[np.intp]]]:
    """(name, rows) of each source that has some."""
    if "source" not in table.column_names:
        if len(table):
            yield (next(iter(sources)) if len(sources) == 1 else ONLY), np.arange(len(table))
        return
    labels = table["source"].combine_chunks().dictionary_encode()
    names = [source_of(label, sources) for label in labels.dictionary.to_pylist()]
    codes = labels.indices.to_numpy()
    for name in dict.fromkeys(names):
        yield name, np.flatnonzero(np.array([one == name for one in names])[codes])


def source_of(label: str, names: Mapping[str, Any]) -> str:
    """The source of a file's label, which is name/path: the longest known name, else the first component."""
    parts = label.split("/")
    known = ("/".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((name for name in known if name in names), parts[0])


def _read(paths: list[Path], sources: list[Sampled]) -> list[list[tuple[str, str]]]:
    """Of each source (text, label) of what was found, in its order."""
    texts: list[list[tuple[str, str]]] = [[("", "")] * len(one.found) for one in sources]
    wanted: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for code, one in enumerate(sources):
        for at, found in enumerate(one.found):
            wanted.setdefault((int(found["file"]), int(found["group"])), []).append((code, at, int(found["row"])))
    for number, path in enumerate(paths):
        with _opened(path) as file:
            columns = [name for name in ("text", "source") if name in file.schema_arrow.names]
            for group in sorted(group for which, group in wanted if which == number):
                rows = wanted[number, group]
                table = file.read_row_group(group, columns).take([row for _, _, row in rows])
                table["text"].validate(full=True)
                if table["text"].null_count:
                    raise pa.ArrowInvalid("a document is null")
                labels = table["source"].to_pylist() if "source" in columns else [""] * len(rows)
                for (code, at, _), text, label in zip(rows, table["text"].to_pylist(), labels):
                    texts[code][at] = text, label
    return texts


def _take(one: Sampled, texts: list[tuple[str, str]], budget: int) -> None:
    """As many documents as the budget has room for; of the last one as much as there is room for."""
    left, size = budget, 0
    one.whole = len(texts) == one.rows
    for text, label in texts:
        if left <= 0:
            one.whole = False
            break
        length = len(text.encode())
        if length > left:
            text, one.whole = _cut(text, left), False
        if text or not length:
            one.texts.append(text)
            one.labels.append(label)
            one.taken += 1
            size += length
        left -= length
    one.bytes = one.documents * size // one.taken if one.taken else 0


def _cut(text: str, size: int) -> str:
    """At most so many bytes of a text, up to a white space where there is one near."""
    some = text[:size].encode()[:size].decode(errors="ignore")
    at = max(some.rfind(" "), some.rfind("\n"))
    return some[:at] if at > len(some) - 200 and at > 0 else some
