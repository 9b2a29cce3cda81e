"""What the vocabulary's card shows, as data: how a tokenizer cuts up the text of each source, and which ids it uses.

    word        a run of characters without white space
    fertility   tokens per word
    coverage    share of words that are one token, the space before the word included

Everything is counted on a sample of the train documents (excerpts.py) that the card states. How often a word is one
token, and which characters a vocabulary writes in bytes, is asked of each different word once: a word is encoded with
the space before it, so that its tokens are those that it has in the text.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import tokens
from .artifacts import Manifest
from .excerpts import Sampled, sample
from .progress import Bar, progress
from .token_texts import Texts

if TYPE_CHECKING:
    from tokenizers import Tokenizer

RARE = 100
"""An id that training meets less often is learnt badly."""
BATCH_BYTES = 256 << 10
"""Text encoded between two signs of life."""
EXAMPLES = 24
LONGEST = 20
SAMPLES = 2
"""Sentences of a source, of SHOWN sources at most."""
SHOWN = 16
SENTENCE = re.compile(r"(?<=[.!?…])\s\S[^.!?…。！？]{30,220}[.!?…]|(?<=[。！？])[^.!?…。！？]{10,120}[。！？]")
CHARACTERS = 200
"""Of a text without such a sentence. A sentence has the space before it, as in the text: its tokens are those there."""
_WORD = re.compile(r" ?\S+")


def card(folder: Path, corpus: Manifest, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The card of a vocabulary; a pure function of the files and the corpus, so it is part of the artifact.

    folder    holds tokenizer.json and token_bytes.npy
    facts     of the vocabulary's manifest
    Raises DataError where tokenizer.json is no tokenizer, or naming the corpus's file that cannot be read.
    """
    tokenizer = tokens.open_for_text(folder / "tokenizer.json")
    texts, sizes_V = Texts(tokenizer, facts), np.load(folder / "token_bytes.npy").astype(np.int64)
    sources = sample(corpus)
    pages, counts = [], np.zeros((len(sources), texts.size), np.int64)
    with progress("vocabulary card", sum(len(text) for one in sources for text in one.texts), "characters") as bar:
        for number, one in enumerate(sources):
            found, counts[number] = _source(tokenizer, texts, sizes_V, one, bar)
            pages.append(found)
        _add_words(tokenizer, texts, sources, pages, bar)
    totals = {key: sum(found[key] for found in pages) for key in (pages[0] if pages else {}) if key not in _NAMED}
    return {
        "vocabulary": _vocabulary(texts, facts),
        "settings": texts.settings(),
        "totals": totals | {"whole": all(found["whole"] for found in pages)},
        "sources": pages,
        "ids": _ids(texts, sizes_V, counts, pages),
        "samples": _samples(tokenizer, texts, sources),
    }


_NAMED = ("name", "whole")


def _vocabulary(texts: Texts, facts: Mapping[str, Any]) -> dict[str, Any]:
    special = [
        {"name": name, "id": number, "text": texts.shown(number)}
        for name, number in sorted(facts["special_ids"].items(), key=lambda one: (one[1], one[0]))
    ]
    rest = {name: value for name, value in facts.items() if name not in ("special_ids", "special_names", "ordinary")}
    return {**rest, "special": special, "ordinary": [list(one) for one in facts["ordinary"]]}


def _source(
    tokenizer: "Tokenizer", texts: Texts, sizes_V: NDArray[np.int64], one: Sampled, bar: Bar
) -> tuple[dict[str, Any], NDArray[np.int64]]:
    """The page of a source, without what is known of its words; and how often each id occurs, (V,)."""
    counts = np.zeros(texts.size, np.int64)
    size = words = 0
    for some in _batches(one.texts):
        ids, _ = tokens.encode(tokenizer, some)
        counts += np.bincount(ids, minlength=texts.size)
        size += sum(len(text.encode()) for text in some)
        words += sum(len(text.split()) for text in some)
        bar.advance(sum(map(len, some)))
    page = {
        "name": one.name,
        "whole": one.whole,
        "documents": one.taken,
        "train_documents": one.documents,
        "train_bytes": one.bytes,
        "bytes": size,
        "tokens": int(counts.sum()),
        "words": words,
        "unknown": int(counts[texts.unknown]),
        "bytes_of_tokens": int(counts @ sizes_V),
    }
    return page, counts


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    some: list[str] = []
    held = 0
    for text in texts:
        if some and held + len(text) > BATCH_BYTES:
            yield some
            some, held = [], 0
        some.append(text)
        held += len(text)
    if some:
        yield some


def _add_words(
    tokenizer: "Tokenizer", texts: Texts, sources: Sequence[Sampled], pages: Sequence[dict[str, Any]], bar: Bar
) -> None:
    """Adds to each page what is known of its words: how many are one token, how many characters are not whole."""
    number: dict[str, int] = {}
    of: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    for one in sources:
        counted = Counter[str]()
        for text in one.texts:
            counted.update(_WORD.findall(text))
        found = [number.setdefault(word, len(number)) for word in counted]
        of.append((np.array(found, np.int64), np.array(list(counted.values()), np.int64)))
    words = list(number)
    single, broken = np.zeros(len(words), np.bool_), np.zeros(len(words), np.int64)
    first = 0
    for some in _batches(words):
        bar.note(f"{first:,} of {len(words):,} different words")
        ids, sizes = tokens.encode(tokenizer, some)
        rows = slice(first, first + len(some))
        single[rows] = (sizes == 1) & ~np.isin(np.arange(len(some)), _word_of(sizes)[ids == texts.unknown])
        broken[rows] = texts.broken(ids, _word_of(sizes), some)
        first += len(some)
    length = np.array([len(word.removeprefix(" ")) for word in words], np.int64)
    for page, (keys, counts) in zip(pages, of):
        page["different_words"] = len(keys)
        page["words_of_one_token"] = int(counts @ single[keys])
        page["characters"] = int(counts @ length[keys])
        page["characters_broken"] = int(counts @ broken[keys])


def _word_of(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.repeat(np.arange(len(sizes)), sizes)


def _ids(
    texts: Texts, sizes_V: NDArray[np.int64], counts: NDArray[np.int64], pages: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """How long the ids are, how often they occur, and which hardly do."""
    ordinary, seen_V = texts.ordinary, counts.sum(0)
    # In all of the train split, as the sample has it: a source counts by its text, not by what was taken of it.
    factors = [page["train_bytes"] / page["bytes"] if page["bytes"] else 0.0 for page in pages]
    training_V = sum((factor * one for factor, one in zip(factors, counts)), np.zeros(texts.size))
    seen, training = seen_V[ordinary], training_V[ordinary]
    unused, rare = ordinary[seen == 0], ordinary[(seen > 0) & (training < RARE)]
    single = np.array([texts.is_single(int(one)) for one in unused], np.bool_)

    def told(ids: NDArray[np.int64]) -> list[dict[str, Any]]:
        return [{"id": one, "text": texts.shown(one), "count": int(seen_V[one])} for one in ids.tolist()]

    longest = ordinary[np.lexsort((ordinary, -sizes_V[ordinary]))[:LONGEST]]
    sizes = sizes_V[ordinary]
    lengths = [[int(one), int((sizes == one).sum()), int(seen[sizes == one].sum())] for one in np.unique(sizes)]
    ranked = np.sort(seen_V)[::-1]
    ranks = sorted({int(2 ** (half / 2)) for half in range(2 * max(1, len(ordinary)).bit_length())})
    so_far = np.cumsum(ranked)
    return {
        "ordinary": len(ordinary),
        "rare_below": RARE,
        "unused": len(unused),
        "unused_single": int(single.sum()),
        "unused_examples": told(_spread(unused[~single])),
        "rare": len(rare),
        "rare_in_sample": int(((seen > 0) & (seen < RARE)).sum()),
        "rare_examples": told(_spread(rare)),
        "longest": [{**one, "bytes": int(sizes_V[one["id"]])} for one in told(longest)],
        "lengths": lengths,
        "ranks": [[rank, int(ranked[rank - 1])] for rank in ranks if rank <= len(ordinary)],
        "half": int(np.searchsorted(2 * so_far, so_far[-1])) + 1 if so_far[-1] else 0,
    }


def _spread(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """EXAMPLES of them, from the first to the last."""
    return ids[np.unique(np.linspace(0, len(ids) - 1, EXAMPLES).astype(np.int64))] if len(ids) else ids


@dataclass(frozen=True)
class _Sentence:
    source: str
    label: str
    text: str


def _samples(tokenizer: "Tokenizer", texts: Texts, sources: Sequence[Sampled]) -> list[dict[str, Any]]:
    """Sentences as the tokenizer cuts them: (id, text, kind) of each token; kind as in Texts.kind."""
    chosen = []
    for one in [one for one in sources if one.texts][:SHOWN]:
        for text, label in list(zip(one.texts, one.labels))[:SAMPLES]:
            found = SENTENCE.search(text, len(text) // 3) or SENTENCE.search(text)
            chosen.append(_Sentence(one.name, label, found[0] if found else text[:CHARACTERS]))
    ids, sizes = tokens.encode(tokenizer, [one.text for one in chosen])
    parts = np.split(ids, np.cumsum(sizes)[:-1])
    return [
        {
            "source": one.source,
            "file": one.label,
            "tokens": [[number, texts.shown(number), texts.kind(number)] for number in part.tolist()],
        }
        for one, part in zip(chosen, parts)
    ]
