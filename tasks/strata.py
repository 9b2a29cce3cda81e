"""Classes of masked tokens, for tables: how frequent a token is, which part of a word, where it stands, whose text.

    tenths of the tokens   ids in order of their counts in the train split, cut where another tenth of its running
                           tokens is full; an id belongs where its middle lies, so a class may be a little more or less
    part of the word       a whole word, the beginning of one, or what follows; words as words.py has them
    place                  distance from the beginning of the segment, in classes of doubling width
    source                 of the document, where the corpus says it

Suffixes: R rows, L positions, M masked positions, S segments, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from .arrays import values
from .artifacts import Manifest
from .errors import DataError
from .excerpts import source_of
from .rows import read
from .words import word_begins

TENTHS = 10
PLACES = 8
PARTS = ("whole word", "beginning of a word", "inside or end of a word")


class Places(NamedTuple):
    """Masked positions of some rows."""

    tokens_RL: NDArray[Any]
    """Token ids, nothing hidden."""
    at_M: NDArray[np.int64]
    """Flat indices into R·L."""
    segment_M: NDArray[np.int64]
    """Number of the segment, among those of all rows that are scored."""
    place_M: NDArray[np.int64]
    """Place in the segment: 1 is the token after [CLS]."""


@dataclass(frozen=True)
class Stratum:
    """A way to put masked tokens into classes."""

    title: str
    """"by frequency"."""
    axis: str
    """What the classes are."""
    rows: tuple[str, ...]
    """A name for each class."""
    classes: Callable[[Places], NDArray[np.int64]]
    """The class of each masked position (M,)."""


def equal_masses(counts: NDArray[np.int64], parts: int) -> NDArray[np.int64]:
    """Which of `parts` about equal shares of Σ counts each entry belongs to, in order: where its middle lies."""
    total = max(1, int(counts.sum()))
    middle = 2 * (np.cumsum(counts) - counts) + counts
    return np.minimum(parts * middle // (2 * total), parts - 1).astype(np.int64)


def tenths(counts_V: NDArray[np.int64]) -> NDArray[np.int64]:
    """The tenth of the train split's running tokens that each id belongs to, 0 the most frequent (V,)."""
    order = np.argsort(-counts_V, kind="stable")
    tenth_V = np.empty(len(counts_V), np.int64)
    tenth_V[order] = equal_masses(counts_V[order], TENTHS)
    return tenth_V


def by_frequency(counts_V: NDArray[np.int64]) -> Stratum:
    """Tenths of the train split's running tokens; the last one has the ids that do not occur there as well."""
    tenth_V = tenths(counts_V)
    ids = np.bincount(tenth_V[counts_V > 0], minlength=TENTHS)
    mass = np.bincount(tenth_V, weights=counts_V, minlength=TENTHS) / max(1, int(counts_V.sum()))
    ends = {0: ", the most frequent", TENTHS - 1: ", the rarest"}
    rows = [
        f"{number + 1}{ends.get(number, '')}: {ids[number]:,} {'id' if ids[number] == 1 else 'ids'}, "
        f"{100 * mass[number]:.0f}\u00a0% of the tokens"
        for number in range(TENTHS)
    ]
    return Stratum(
        "by frequency", "tenth of the train split's tokens", tuple(rows), lambda places: tenth_V[_targets(places)]
    )


def by_part_of_word(words_V: NDArray[np.uint8]) -> Stratum:
    """words_V: the vocabulary's table (words.py)."""

    def classes(places: Places) -> NDArray[np.int64]:
        begins = word_begins(words_V, places.tokens_RL).reshape(-1)
        first, last = begins[places.at_M], begins[places.at_M + 1]  # [SEP] follows at the latest
        return np.where(first, np.where(last, 0, 1), 2)

    return Stratum("by part of the word", "part of the word", PARTS, classes)


def by_place(length: int) -> Stratum:
    """Distance from the segment's beginning in a row of `length`: 1, 2 to 3, 4 to 7, …; beyond 128 all together."""
    number = min(PLACES, max(1, (length - 2).bit_length()))
    rows = ["1", *(f"{1 << one} to {(2 << one) - 1}" for one in range(1, number))]
    if number == PLACES:
        rows[-1] = f"{1 << number - 1} or more"

    def classes(places: Places) -> NDArray[np.int64]:
        # exact for every place below 2^53
        return np.minimum(np.frexp(places.place_M.astype(np.float64))[1] - 1, number - 1).astype(np.int64)

    return Stratum("by place in the segment", "tokens from the segment's beginning", tuple(rows), classes)


def by_source(names: tuple[str, ...], source_S: NDArray[np.int64]) -> Stratum:
    """source_S: of each segment that is scored, the number of its source."""
    return Stratum("by source", "source", names, lambda places: source_S[places.segment_M])


def _targets(places: Places) -> NDArray[Any]:
    targets: NDArray[Any] = places.tokens_RL.reshape(-1)[places.at_M]
    return targets


def documents(shards: Manifest, split: str) -> NDArray[np.int64]:
    """Of every segment of a split, row after row, the index of its document in the split (S,)."""
    parts = [np.zeros(0, np.int64)]
    for entry in shards.facts["splits"][split]["files"]:
        column = read(shards.path(entry["name"])).column("segments")
        ends = values(column.offsets)
        parts.append(values(column.values.field("document"))[ends[0] : ends[-1]].astype(np.int64))
    return np.concatenate(parts)


def sources(corpus: Manifest, split: str) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Names, and of each document of a split (not train, whose documents have copies) the number of its source.

    Only the two small columns are read, which carry checksums of their own. Names are in the order of the corpus's
    books, or none where it does not say the source. Raises DataError naming a file that cannot be read.
    """
    books = [str(page["source"]) for page in corpus.facts.get("books", ())]
    labels: list[str] = []
    for name in sorted(name for name in corpus.files if name.endswith(".parquet")):
        path = corpus.path(name)
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                if "source" not in file.schema_arrow.names:
                    return (), np.zeros(0, np.int64)
                for batch in file.iter_batches(columns=["source", "split"]):
                    labels += batch.filter(pc.equal(batch["split"], split))["source"].to_pylist()
        except (pa.ArrowInvalid, OSError, KeyError) as error:
            why = (str(error).splitlines() or [""])[0]
            raise DataError(f"{path} cannot be read ({why}); run `maskmill verify corpus`.") from None
    known = {label: source_of(label, dict.fromkeys(books)) for label in dict.fromkeys(labels)}
    names = [*books, *sorted(set(known.values()) - set(books))]
    number = {label: names.index(source) for label, source in known.items()}
    return tuple(names), np.array([number[label] for label in labels], np.int64)
