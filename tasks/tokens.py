"""Text to tokens: how the corpus is read, cut into pieces and encoded. Shared by the stages that touch text.

A vocabulary is a standard `tokenizer.json`. It has two fronts, and mixing them up is the classic fault: in the corpus
the characters `[MASK]` are characters, in a prompt they are a question. So nobody opens a tokenizer but through here.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from .artifacts import Manifest
from .errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL_IDS = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
"""Ids of the special tokens of every vocabulary made here; the ordinary tokens follow them."""

SPLITS = ("train", "validation", "test")

PIECE = 8192
"""Characters of a piece, about: a novel encoded whole takes five times as long as its pieces, and only one core."""
PIECE_LIMIT = 65536
"""A text without a space is cut here come what may: a word may be split in two, decoding stays exact."""
BATCH_BYTES = 4 << 20
"""Text read or encoded at a time; an encoder's results take some 40 bytes per token."""

_SPACE_AFTER_CHARACTER = re.compile(r"(?<=\S)[ \n]")


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
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise DataError(f"{path} is not a tokenizer ({error}); run `maskmill verify vocabulary`.") from None


def word_begins(tokenizer: "Tokenizer") -> NDArray[np.bool_]:
    """(V,) for each token id, whether a word may begin with it.

    In byte-level BPE a word carries its space in front, so a token of bare letters goes on with a word. The alphabet
    writes the bytes 0 to 32 as Ā to Ġ, printable ones as themselves. Punctuation begins a word (not the apostrophe of
    "don't"), and so do the lead bytes E2 to E9 (â to é): general punctuation, kana, Chinese, which have no spaces.
    """
    heads = [str(tokenizer.id_to_token(number))[0] for number in range(tokenizer.get_vocab_size())]
    punctuation = '!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~'
    return np.array(["Ā" <= head <= "Ġ" or "â" <= head <= "é" or head in punctuation for head in heads])


def pieces(text: str) -> Iterator[str]:
    """The text in pieces whose encodings, end to end, are the encoding of the text.

    True because a piece ends between a character and the white space after it: the pre-tokenizer never joins the two,
    and no token depends on what stands before it. (Past PIECE_LIMIT characters without such a place it is not.)
    """
    at = 0
    while len(text) - at > PIECE:
        found = _SPACE_AFTER_CHARACTER.search(text, at + PIECE, at + PIECE_LIMIT)
        stop = found.start() if found else min(at + PIECE_LIMIT, len(text))
        yield text[at:stop]
        at = stop
    if at < len(text):
        yield text[at:]


def encode(tokenizer: "Tokenizer", texts: list[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The ordinary tokens of all texts, end to end, and how many each text has (N,). No specials are added."""
    parts = [list(pieces(text)) for text in texts]
    encodings = tokenizer.encode_batch_fast([piece for some in parts for piece in some], add_special_tokens=False)
    ids = [np.array(encoding.ids, np.int32) for encoding in encodings]
    text_of = np.repeat(np.arange(len(texts)), [len(some) for some in parts])
    sizes = np.bincount(text_of, weights=[len(some) for some in ids], minlength=len(texts)).astype(np.int64)
    return np.concatenate([np.zeros(0, np.int32), *ids]), sizes


class Block(NamedTuple):
    """A run of documents of one split that is encoded and packed by itself."""

    split: str
    number: int
    """Counts the blocks of the split."""
    first: int
    """Index, in the split, of the first document."""
    texts: list[pa.Array]
    """The documents in corpus order; still in Arrow's memory, so that a finished block costs nothing to skip."""

    def __len__(self) -> int:
        return sum(len(part) for part in self.texts)

    def batches(self) -> Iterator[list[str]]:
        """The documents as strings, BATCH_BYTES at a time (a longer document alone)."""
        for part in self.texts:
            for some in _runs(part, BATCH_BYTES):
                yield some.to_pylist()


def blocks(corpus: Manifest, bytes_each: int) -> Iterator[Block]:
    """The corpus in blocks of about `bytes_each` of text (more where a document is longer), in corpus order.

    Where a block ends depends on the texts only, never on files, row groups or batches. Raises DataError naming the
    file that cannot be read.
    """
    waiting: dict[str, list[pa.Array]] = {split: [] for split in SPLITS}
    held = dict.fromkeys(SPLITS, 0)
    number, first = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0)

    def take(split: str) -> Block:
        block = Block(split, number[split], first[split], waiting[split])
        number[split], first[split] = number[split] + 1, first[split] + len(block)
        waiting[split], held[split] = [], 0
        return block

    for split, texts in read_texts(corpus):
        rest = texts
        while len(rest):
            ends = np.cumsum(pc.binary_length(rest).to_numpy(zero_copy_only=False))
            count = 1 + int(np.searchsorted(ends, bytes_each - held[split]))
            waiting[split].append(rest[:count])
            if count > len(rest):
                held[split] += int(ends[-1])
                break
            yield take(split)
            rest = rest[count:]
    for split in SPLITS:
        if waiting[split]:
            yield take(split)


def texts_of(corpus: Manifest, split: str) -> int:
    """How many texts `read_texts` yields of a split: a train document counts as often as its source's weight says."""
    return corpus.counts[f"documents_{split}"] + (corpus.counts.get("copies", 0) if split == "train" else 0)


def read_texts(corpus: Manifest) -> Iterator[tuple[str, pa.Array]]:
    """(split, texts) in corpus order, megabytes at a time; a document with copies comes so often, one after the other.

    Raises DataError naming the file that cannot be read.
    """
    for name in sorted(name for name in corpus.files if name.endswith(".parquet")):
        path = corpus.whole(name)
        try:
            for batch in _batches(path):
                text, split = batch.column("text"), batch.column("split")
                text.validate(full=True)  # UTF-8 too: a lone surrogate can only be damage here
                if text.null_count or split.null_count:
                    raise pa.ArrowInvalid("a document is null")
                for some in _repeated(batch):
                    for label in SPLITS:
                        yield label, text.take(some).filter(pc.equal(split.take(some), label))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, KeyError) as error:
            why = str(error).splitlines()[0]
            raise DataError(f"{path} cannot be read ({why}); run `maskmill verify corpus`.") from None


def _repeated(batch: pa.RecordBatch) -> Iterator[pa.Array]:
    """Rows of a batch, each as often as its copies say, in portions of the batch's size."""
    copies = np.ones(len(batch), np.int64)
    if "copies" in batch.schema.names:
        copies = batch.column("copies").to_numpy()
    again = np.repeat(np.arange(len(batch)), copies)
    for start in range(0, len(again), max(len(batch), 1)):
        yield pa.array(again[start : start + len(batch)])


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Row groups in batches of about BATCH_BYTES, as their mean document says; page checksums are checked."""
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        for group in range(file.num_row_groups):
            about = file.metadata.row_group(group)
            rows = max(1, BATCH_BYTES * about.num_rows // max(1, about.total_byte_size))
            names = [name for name in ("text", "split", "copies") if name in file.schema_arrow.names]
            yield from file.iter_batches(rows, row_groups=[group], columns=names)


def _runs(texts: pa.Array, bytes_each: int) -> Iterator[pa.Array]:
    while len(texts):
        ends = np.cumsum(pc.binary_length(texts).to_numpy(zero_copy_only=False))
        count = max(1, int(np.searchsorted(ends, bytes_each, side="right")))
        yield texts[:count]
        texts = texts[count:]
