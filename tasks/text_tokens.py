"""Documents of text as tokens, for the shards: by an engine, of which some ids of every span are compared."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from . import engines
from .encoding import Differs, Encoded
from .engines import REFERENCE, TextEncoder, check_parity, open_engine
from .spans import Span, in_batches, read_span

PARITY_BYTES = 256 << 10
"""Text that a fast engine is tried on before it is used."""
CHECKED_BYTES = 2048
"""Text of each span, and split, that a fast engine's ids are compared on: some 3 % of its time."""


def settle(path: Path, found: Sequence[Span]) -> tuple[str, str]:
    """The engine that these spans are encoded by with this tokenizer.json, and why; "" where there is no choice."""
    engine, why = engines.choose(path, _beginning(found))
    return engine, why if engines.installed() else ""


def _beginning(found: Sequence[Span]) -> Iterator[str]:
    """Documents from the beginning of the corpus, PARITY_BYTES of them."""
    held = 0
    for parts in read_span(found[0]).values() if engines.installed() and found else ():
        for text in (text for some in in_batches(parts) for text in some.to_pylist()):
            if held > PARITY_BYTES:
                return
            held += len(text)
            yield text[:PARITY_BYTES]


def open_encoder(name: str, path: Path, alone: bool) -> Callable[[list[pa.Array]], Encoded]:
    """What encodes the documents of a span that are of one split.

    alone       whether it is the only job that is worked here: else threads of its own would be in the way

    It raises Differs where the engine is not equal to the reference.
    """
    if not alone:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    engine = open_engine(name, path)
    return lambda parts: _encode(engine, path, parts)


def _encode(engine: TextEncoder, path: Path, parts: list[pa.Array]) -> Encoded:
    tokens, sizes = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
    try:
        for number, batch in enumerate(in_batches(parts)):
            some = batch.to_pylist()
            if engine.name != REFERENCE and number == 0:
                differs = check_parity(engine, open_engine(REFERENCE, path), _sample(some))
                if differs:
                    raise Differs(f"{engine.name} {engine.version} differs from {REFERENCE}: {differs}.")
            ids, of_each = engine.encode(some)
            tokens.append(ids)
            sizes.append(of_each)
    except engines.FastFails as error:
        raise Differs(str(error)) from error
    return Encoded(np.concatenate(tokens), np.concatenate(sizes))


def _sample(texts: list[str]) -> list[str]:
    """Some of the texts, evenly spread: as many as are about CHECKED_BYTES, but each one's beginning only."""
    step = max(1, len(texts) // 8)
    return [text[: CHECKED_BYTES // 8] for text in texts[::step]]
