"""Text to tokens: how the corpus is read, cut into pieces and encoded. Shared by the stages that touch text.

A vocabulary is a standard `tokenizer.json`. It has two fronts, and mixing them up is the classic fault: in the corpus
the characters `[MASK]` are characters, in a prompt they are a question. So nobody opens a tokenizer but through here.
"""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from .arrays import numbers, values
from .artifacts import Manifest
from .errors import DataError, panics_as_errors
from .spans import BATCH_BYTES, SPLITS
from .spellings import METASPACE

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PIECE = 8192
"""Characters of a piece, about: a novel encoded whole takes five times as long as its pieces, and only one core."""
PIECE_LIMIT = 65536
"""A text without a space is cut here come what may: a word may be split in two, decoding stays exact."""
PIECES_AT_ONCE = 1024
"""Encoded at a time: 8 MB of a long document, for the same reason."""

_PLACES = (r"(?<=[^\W_])[ \n](?=[^\W_])", r"(?<=[^\W_]) (?=[^\W_])", r"(?<=[^\W_])\n(?=[^\W_])")
"""One space or line end between two letters or digits: of no regex of a pre-tokenizer the place to look back or ahead.
Punctuation is not one: cl100k's regex takes ".\\n" as a whole."""
SPACES_AND_LINES, SPACES = re.compile(_PLACES[0]), re.compile(_PLACES[1])
_PROBES = ("alpha", "Beta", "7", "gamma12", "\u00e9t\u00e9", "\u043c\u0438\u0440", "x", "it's")


def open_for_text(path: Path) -> "Tokenizer":
    """The tokenizer for raw text: the name of a special token in a text is encoded as the characters it is.

    That switch is not saved in tokenizer.json, hence this function. Raises DataError when the file is no tokenizer.
    """
    tokenizer = open_for_prompts(path)
    tokenizer.encode_special_tokens = True
    return tokenizer


def open_for_prompts(path: Path) -> "Tokenizer":
    """The tokenizer for what a user types: `[MASK]` is the special token and takes the space before it along.

    Its `encode` adds [CLS] and [SEP]. Raises DataError when the file is no tokenizer.
    """
    from tokenizers import Tokenizer

    try:
        with panics_as_errors():
            return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise DataError(f"{path} is not a tokenizer ({error}); run `maskmill verify vocabulary`.") from None


def places(tokenizer: "Tokenizer") -> re.Pattern[str] | None:
    """Where a long text may be cut: at the end of a match, what is left stands before the match's own space.

    None where no place is safe: the pre-tokenizer cuts at neither spaces nor lines (a model that sees a whole text as
    one word), or the tokenizer puts a space before each text, also one that begins with a space.
    """
    found = [pattern for mark, pattern in zip(" \n", _PLACES[1:]) if _is_safe(tokenizer, mark)]
    return re.compile(_PLACES[0] if len(found) == 2 else found[0]) if found else None


def _is_safe(tokenizer: "Tokenizer", mark: str) -> bool:
    """May a text be cut before this space or line end? Asked of the pre-tokenizer and tried on a few words."""
    if tokenizer.pre_tokenizer is None:
        return False
    for first, second in pairwise(_PROBES):
        whole, rest = first + mark + second, mark + second
        shown = tokenizer.normalizer.normalize_str(whole) if tokenizer.normalizer else whole
        ends = {end for _, (_, end) in tokenizer.pre_tokenizer.pre_tokenize_str(shown)}
        if shown.replace(METASPACE, " ").find(mark) not in ends:
            return False
        ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in (first, rest, whole)]
        if ids[0] + ids[1] != ids[2]:
            return False
    return True


def pieces(text: str, places: re.Pattern[str] | None = SPACES_AND_LINES) -> Iterator[str]:
    """The text in pieces whose encodings, end to end, are the encoding of the text.

    True because a piece ends between a letter or digit and the single space or line end after it, and another letter
    or digit follows: no pre-tokenizer joins what stands on the two sides, and no token depends on what stands before
    it. `places` is that pattern, for a tokenizer that puts a space in front of a text without the line end: a piece
    that begins with a space gets no other. (Past PIECE_LIMIT characters without such a place it is not true.)
    """
    at = 0
    while places and len(text) - at > PIECE:
        found = places.search(text, at + PIECE, at + PIECE_LIMIT)
        stop = found.start() if found else min(at + PIECE_LIMIT, len(text))
        yield text[at:stop]
        at = stop
    if at < len(text):
        yield text[at:]


def encode(tokenizer: "Tokenizer", texts: list[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The ordinary tokens of all texts, end to end, and how many each text has (N,). No specials are added."""
    at = places(tokenizer) if any(len(text) > PIECE for text in texts) else None
    parts = [list(pieces(text, at)) for text in texts]
    flat = [piece for some in parts for piece in some]
    ids: list[NDArray[np.int32]] = []
    for start in range(0, len(flat), PIECES_AT_ONCE):
        encodings = tokenizer.encode_batch_fast(flat[start : start + PIECES_AT_ONCE], add_special_tokens=False)
        ids += [np.array(encoding.ids, np.int32) for encoding in encodings]
    text_of = np.repeat(np.arange(len(texts)), [len(some) for some in parts])
    sizes = np.bincount(text_of, weights=[len(some) for some in ids], minlength=len(texts)).astype(np.int64)
    return np.concatenate([np.zeros(0, np.int32), *ids]), sizes


def read_texts(corpus: Manifest) -> Iterator[tuple[str, pa.Array]]:
    """(split, texts) in corpus order, megabytes at a time; a document with copies comes so often, one after the other.

    Raises DataError naming the file that cannot be read.
    """
    for split, batch in read_documents(corpus):
        yield split, batch.column("text")


def read_documents(corpus: Manifest) -> Iterator[tuple[str, pa.RecordBatch]]:
    """The same with the columns text and, where the corpus has it, id."""
    for name in sorted(name for name in corpus.files if name.endswith(".parquet")):
        path = corpus.whole(name)
        try:
            for batch in _batches(path):
                text, split = batch.column("text"), batch.column("split")
                text.validate(full=True)  # UTF-8 too: a lone surrogate can only be damage here
                if text.null_count or split.null_count:
                    raise pa.ArrowInvalid("a document is null")
                kept = batch.select([column for column in ("text", "id") if column in batch.schema.names])
                for some in _repeated(batch):
                    for label in SPLITS:
                        yield label, kept.take(some).filter(pc.equal(split.take(some), label))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, KeyError) as error:
            why = str(error).splitlines()[0]
            raise DataError(f"{path} cannot be read ({why}); run `maskmill verify corpus`.") from None


def _repeated(batch: pa.RecordBatch) -> Iterator[pa.Array]:
    """Rows of a batch, each as often as its copies say, in portions of the batch's size."""
    copies = np.ones(len(batch), np.int64)
    if "copies" in batch.schema.names:
        copies = values(batch.column("copies"))
    again = np.repeat(np.arange(len(batch)), copies)
    for start in range(0, len(again), max(len(batch), 1)):
        yield numbers(again[start : start + len(batch)])


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Row groups in batches of about BATCH_BYTES, as their mean document says; page checksums are checked."""
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        for group in range(file.num_row_groups):
            about = file.metadata.row_group(group)
            rows = max(1, BATCH_BYTES * about.num_rows // max(1, about.total_byte_size))
            names = [name for name in ("text", "split", "copies", "id") if name in file.schema_arrow.names]
            yield from file.iter_batches(rows, row_groups=[group], columns=names)
