"""What the gate reads of an evaluation: scores.arrow, an uncompressed Arrow file, a row for each thing that was asked.

    kind  group  name  n  test  champion

A row is a document (masked tokens, nats), a class of tokens (the same) or a passage (bytes, bits); columns are the
model and, where it was asked, the champion. Documents go by their id, which is a digest of their text, passages by one
of theirs: so two versions are compared long afterwards, on a machine that has neither store. What the scores are of
(weights, vocabulary, test set) stands in the schema.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .arrays import numbers, strings, values
from .artifacts import Manifest, canonical
from .cleaning import document_id
from .errors import DataError
from .gate import Evidence, Sums
from .manifests import json_of
from .results import CHAMPION, MODEL, Units

FILE = "scores.arrow"
ABOUT = b"about"
"""Key in the schema's metadata: {"test", "rate", "copies", "models": {label: {"pretrain", "vocabulary", …}}}."""
LABELS = (MODEL, CHAMPION)
SCHEMA = pa.schema(
    [("kind", pa.string()), ("group", pa.string()), ("name", pa.string()), ("n", pa.int64())]
    + [(label, pa.float64()) for label in LABELS]
)


def document_ids(corpus: Manifest, split: str) -> tuple[str, ...]:
    """Ids of the documents of a split (not train, whose documents have copies), in their order.

    Raises DataError naming a file that cannot be read.
    """
    found: list[str] = []
    for name in sorted(name for name in corpus.files if name.endswith(".parquet")):
        path = corpus.path(name)
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                column = "id" if "id" in file.schema_arrow.names else "text"
                for batch in file.iter_batches(columns=[column, "split"]):
                    found += ids_of(batch.filter(pc.equal(batch["split"], split)))
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            why = (str(error).splitlines() or [""])[0]
            raise DataError(f"{path} cannot be read ({why}); run `maskmill verify corpus`.") from None
    return tuple(found)


def ids_of(documents: pa.RecordBatch) -> list[str]:
    """The ids of documents, computed from their texts where the corpus has no column of them."""
    if "id" in documents.schema.names:
        return [str(one) for one in documents.column("id").to_pylist()]
    return [document_id(text.encode()).hex() for text in documents.column("text").to_pylist()]


def write(path: Path, units: Sequence[Units], about: Mapping[str, Any]) -> None:
    """Same units, same bytes. A model that was not asked a kind of thing has NaN there."""
    schema = SCHEMA.with_metadata({ABOUT: canonical(about)})
    batches = [
        pa.record_batch(
            [
                *(_column(some) for some in ((one.kind,) * len(one.n), one.groups, one.names)),
                numbers(one.n.astype(np.int64)),
                *(numbers(one.sums.get(label, np.full(len(one.n), np.nan))) for label in LABELS),
            ],
            schema=schema,
        )
        for one in units
    ]
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _column(texts: Sequence[str]) -> pa.Array:
    encoded = [text.encode() for text in texts]
    return strings(b"".join(encoded), np.array([len(one) for one in encoded], np.int64))


def read_units(path: Path) -> tuple[tuple[Units, ...], dict[str, Any]]:
    """The inverse of `write`; a label without a score is left out. Raises DataError where the file is none of ours."""
    try:
        with pa.OSFile(str(path)) as file, pa.ipc.open_file(file) as reader:
            if not reader.schema.equals(SCHEMA):
                raise ValueError(f"its columns are {', '.join(reader.schema.names)}")
            about = json_of((reader.schema.metadata or {})[ABOUT])
            found = [_units(reader.get_batch(number)) for number in range(reader.num_record_batches)]
    except (pa.ArrowException, OSError, KeyError, ValueError, IndexError, TypeError, AttributeError) as error:
        why = (str(error).splitlines() or [""])[0]
        raise DataError(f"{path} cannot be read as scores ({why}).") from None
    return tuple(found), about


def _check(about: Any) -> None:
    """What scores are of. Raises KeyError, TypeError or AttributeError where that is not what `write` is told."""
    texts = [about["test"], about["rate"]]
    for label, of in about["models"].items():
        texts += [label, of["pretrain"], of["vocabulary"]]
        if not isinstance(of["changes_text"], bool):
            raise TypeError("changes_text is no truth value")
    copies = dict(about["copies"])
    texts += [copies.get("unknown") or "", *copies.get("examples", ())]
    numbers = [copies.get(name, 0) for name in ("equal", "near")]
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(number, int) for number in numbers):
        raise TypeError("another type")


def _units(batch: pa.RecordBatch) -> Units:
    batch.validate(full=True)  # one bit in the offsets of a text aborts the process that looks at it
    sums = {label: values(batch.column(label)).copy() for label in LABELS}
    return Units(
        kind=str(batch.column("kind")[0].as_py()) if len(batch) else "",
        groups=tuple(batch.column("group").to_pylist()),
        names=tuple(batch.column("name").to_pylist()),
        n=values(batch.column("n")).copy(),
        sums={label: some for label, some in sums.items() if not np.isnan(some).all()},
    )


def read(path: Path) -> dict[str, Evidence]:
    """Evidence of the model, and of the champion beside it, by label. Raises DataError."""
    units, about = read_units(path)
    try:
        _check(about)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} cannot be read as scores (what they are of: {error}).") from None
    by_kind = {one.kind: one for one in units}

    def sums(kind: str, label: str) -> Sums:
        one = by_kind.get(kind)
        if one is None or label not in one.sums:
            return Sums((), (), np.zeros(0, np.int64), np.zeros(0))
        return Sums(one.groups, one.names, one.n, one.sums[label])

    return {
        label: Evidence(
            pretrain=of["pretrain"],
            vocabulary=of["vocabulary"],
            test=about["test"],
            rate=about["rate"],
            documents=sums("document", label),
            classes=sums("class", label),
            passages=sums("passage", label),
            changes_text=of["changes_text"],
            copies=about["copies"] if label == MODEL else {},
        )
        for label, of in about["models"].items()
    }
