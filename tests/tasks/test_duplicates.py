"""python -m pytest tests/tasks/test_duplicates.py"""

import random
from collections import Counter
from hashlib import sha256
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tasks import duplicates
from tasks.duplicates import DUPLICATE, KEPT, NEAR_DUPLICATE, NEAR_HELDOUT, Clusters
from tasks.minhash import NO_WORDS, NearDuplicates, Signer

ROOT = Path(__file__).parents[2]
NOVELS = ROOT.parent / "shared" / "data" / "corpus" / "novels"
SMALL = NearDuplicates(words=2, bands=4, rows=2, similarity="0.5")
OTHER = 77
"""A verdict of somebody else."""
MEMORY = 1 << 30


class Corpus:
    """Columns of texts, or of made-up keys, held in memory."""

    def __init__(self, ids: NDArray[np.uint64], bands: NDArray[np.uint64], signatures: NDArray[np.uint16]) -> None:
        self._ids, self._bands, self._signatures = ids, bands, signatures

    @staticmethod
    def of(texts: list[str], settings: NearDuplicates = SMALL) -> "Corpus":
        digests = b"".join(sha256(text.encode()).digest()[:16] for text in texts)
        signatures, bands = Signer(settings).sign([text.encode() for text in texts])
        return Corpus(np.frombuffer(digests, ">u8").reshape(-1, 2).astype(np.uint64), bands, signatures)

    def __len__(self) -> int:
        return len(self._ids)

    def ids(self, start: int, stop: int) -> NDArray[np.uint64]:
        assert 0 <= start < stop <= len(self)
        return self._ids[start:stop]

    def band(self, j: int, start: int, stop: int) -> NDArray[np.uint64]:
        assert 0 <= start < stop <= len(self)
        return self._bands[start:stop, j]

    def signatures(self, rows: NDArray[np.int64]) -> NDArray[np.uint16]:
        assert rows.dtype == np.int64
        return self._signatures[rows]

    def are_near(self, one: int, two: int, settings: NearDuplicates) -> bool:
        """The definition: a key in common, and enough equal minima."""
        keys = (self._bands[one] == self._bands[two]) & (self._bands[one] != NO_WORDS)
        equal = int((self._signatures[one] == self._signatures[two]).sum())
        return bool(keys.any()) and equal >= settings.least_equal


def split_of(corpus: Corpus) -> NDArray[np.uint8]:
    """As of the real ones: a function of the id. Many are held out, so that it matters."""
    return np.where(corpus._ids[:, 0] % 4 == 0, corpus._ids[:, 0] // 4 % 2 + 1, 0).astype(np.uint8)


def decide(
    corpus: Corpus, some: NearDuplicates = SMALL, memory: int = MEMORY, verdict: NDArray[np.uint8] | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Clusters]:
    verdict = np.zeros(len(corpus), np.uint8) if verdict is None else verdict
    split = split_of(corpus)
    duplicates.exact(corpus, verdict, memory)
    return verdict, split, duplicates.near(corpus, verdict, split, some, memory)


WORDS = st.lists(st.sampled_from("abcdefgh"), min_size=0, max_size=7)


@st.composite
def corpora(draw: st.DrawFn) -> list[str]:
    """Texts of a few words; some are edits of others (and edits of edits, which bridge), some are equal."""
    texts = draw(st.lists(WORDS, min_size=1, max_size=12))
    for _ in range(draw(st.integers(0, 15))):
        text = list(draw(st.sampled_from(texts)))
        at = draw(st.integers(0, len(text)))
        text[at : at + draw(st.integers(0, 1))] = [draw(st.sampled_from("abcdefgh"))]
        texts.append(text)
    return [" ".join(text) for text in texts]


@settings(deadline=None, max_examples=300)
@given(corpora())
def test_no_two_documents_that_stay_are_copies(texts: list[str]) -> None:
    corpus = Corpus.of(texts)
    verdict, split, clusters = decide(corpus)
    kept = np.flatnonzero(verdict == KEPT).tolist()
    assert (
        {texts[one] for one, what in enumerate(verdict) if what == KEPT}
        <= set(texts)
        == {texts[one] for one, what in enumerate(verdict) if what != DUPLICATE}
    )
    for one, two in combinations(kept, 2):
        assert texts[one] != texts[two] and not corpus.are_near(one, two, SMALL)
    goes = np.isin(verdict, (NEAR_DUPLICATE, NEAR_HELDOUT))
    assert clusters.documents - clusters.number == goes.sum() and clusters.passed_over == 0
    assert sum(size * number for size, number in clusters.sizes.items()) == clusters.documents
    assert not (split[verdict == NEAR_HELDOUT] > 0).any()


@settings(deadline=None, max_examples=200)
@given(corpora())
def test_of_a_cluster_one_stays_and_what_is_held_out_comes_first(texts: list[str]) -> None:
    corpus = Corpus.of(texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "LARGEST", 1000)
        verdict, split, clusters = decide(corpus)
    seen: list[int] = []
    for first, *others in (one.tolist() for one in clusters.largest):
        seen += [first, *others]
        order = [(split[one] == 0, *corpus._ids[one].tolist()) for one in (first, *others)]
        assert min(order) == order[0] and verdict[first] == KEPT
        for one in others:
            assert verdict[one] == (NEAR_HELDOUT if split[first] and not split[one] else NEAR_DUPLICATE)
            assert any(corpus.are_near(one, two, SMALL) for two in (first, *others) if one != two)
    assert len(seen) == len(set(seen)) == clusters.documents
    sizes = [len(one) for one in clusters.largest]
    assert sizes == sorted(sizes, reverse=True) and Counter(sizes) == clusters.sizes


@settings(deadline=None, max_examples=200)
@given(corpora(), st.randoms(use_true_random=False), st.integers(64, 3000), st.integers(1, 9), st.integers(1, 9))
def test_neither_order_nor_memory_matters(
    texts: list[str], source: random.Random, memory: int, chunk: int, pairs: int
) -> None:
    whole, other = Corpus.of(texts), source.sample(texts, len(texts))
    verdict, _, clusters = decide(whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "CHUNK", chunk)
        patch.setattr(duplicates, "PAIRS", pairs)
        again, _, same = decide(whole, memory=memory)
        moved, _, alike = decide(Corpus.of(other), memory=memory)
    assert again.tolist() == verdict.tolist() and same.sizes == alike.sizes == clusters.sizes
    assert [one.tolist() for one in same.largest] == [one.tolist() for one in clusters.largest]
    assert sorted(zip(texts, verdict.tolist())) == sorted(zip(other, moved.tolist()))


@settings(deadline=None, max_examples=200)
@given(corpora(), corpora(), st.randoms(use_true_random=False))
def test_more_documents_may_drop_one_but_move_none(one: list[str], two: list[str], source: random.Random) -> None:
    """Also those that bridge: a train document between one that is held out and one of train, and so on."""
    both = source.sample([*one, *two], len(one) + len(two))
    before, after = ({}, {})
    for texts, found in ((one, before), (both, after)):
        corpus = Corpus.of(texts)
        verdict, split, _ = decide(corpus)
        found.update({texts[n]: int(split[n]) for n in np.flatnonzero(verdict == KEPT)})
        heldout = [n for n in range(len(texts)) if verdict[n] == KEPT and split[n]]
        train = [n for n in range(len(texts)) if verdict[n] == KEPT and not split[n]]
        assert not any(corpus.are_near(a, b, SMALL) for a in heldout for b in train)
    assert all(after[text] == split for text, split in before.items() if text in after)
    for split in (True, False):  # a document only goes where another one came that is (no less) held out
        gone = {text for text in before if text not in after and bool(before[text]) is split}
        assert not gone or {text for text in after if after[text] or not split} - set(before)


@settings(deadline=None)
@given(corpora(), st.data())
def test_what_others_decided_is_left_alone_and_does_not_count(texts: list[str], data: st.DataObject) -> None:
    others = data.draw(st.lists(st.booleans(), min_size=len(texts), max_size=len(texts)))
    verdict, _, _ = decide(Corpus.of(texts), verdict=np.array(others, np.uint8) * np.uint8(OTHER))
    assert ((verdict == OTHER) == others).all()
    alone = [text for text, other in zip(texts, others) if not other]
    if alone:
        assert verdict[~np.array(others)].tolist() == decide(Corpus.of(alone))[0].tolist()


def test_the_first_of_equal_documents_stays_and_texts_without_words_are_like_none() -> None:
    verdict, _, _ = decide(Corpus.of(["a b c", "…", "!", "a b c", "…"]))
    assert verdict.tolist() == [KEPT, KEPT, KEPT, DUPLICATE, DUPLICATE]
    assert decide(Corpus.of([]))[2] == Clusters(0, 0, {})


def test_ids_that_share_a_half_are_different() -> None:
    ids = np.array([[1, 2], [1, 3], [2, 2], [1, 2]], np.uint64)
    corpus = Corpus(ids, np.zeros((4, 1), np.uint64), np.zeros((4, 1), np.uint16))
    verdict = np.zeros(4, np.uint8)
    duplicates.exact(corpus, verdict, 1)
    assert verdict.tolist() == [KEPT, KEPT, KEPT, DUPLICATE]


def bridge(splits: list[int], keys: list[list[int]]) -> list[int]:
    """Verdicts on documents 0, 1, … by id, near copies where they share a key."""
    number = len(splits)
    ids = np.array([[0, one] for one in range(number)], np.uint64)
    corpus = Corpus(ids, np.array(keys, np.uint64), np.zeros((number, 2), np.uint16))
    verdict = np.zeros(number, np.uint8)
    some = NearDuplicates(bands=2, rows=1, similarity="1")
    duplicates.near(corpus, verdict, np.array(splits, np.uint8), some, MEMORY)
    return verdict.tolist()


def test_bridges() -> None:
    """A ~ B ~ C, but not A ~ C: A and B share a key of band 0, B and C one of band 1."""
    keys = [[1, 11], [1, 12], [3, 12]]
    assert bridge([0, 0, 0], keys) == [KEPT, NEAR_DUPLICATE, KEPT]
    assert bridge([0, 1, 0], keys) == [NEAR_HELDOUT, KEPT, NEAR_HELDOUT]
    assert bridge([1, 0, 0], keys) == [KEPT, NEAR_HELDOUT, KEPT]
    assert bridge([0, 0, 2], keys) == [KEPT, NEAR_DUPLICATE, KEPT]  # it goes for A before it could go for C
    assert bridge([1, 0, 2], keys) == [KEPT, NEAR_HELDOUT, KEPT]
    assert bridge([1, 2, 0], keys) == [KEPT, NEAR_DUPLICATE, KEPT]
    assert bridge([2, 2, 1], [[1, 11], [1, 12], [1, 13]]) == [KEPT, NEAR_DUPLICATE, NEAR_DUPLICATE]


def test_a_bucket_of_documents_all_unlike_each_other_is_left_after_some_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "ROUNDS", 3)
    number = 10
    ids = np.array([[0, one] for one in range(number)], np.uint64)
    signatures = np.array([[one, one] for one in range(number)], np.uint16)
    signatures[9] = signatures[1]  # found in round 2
    signatures[8] = signatures[7]  # not found
    corpus = Corpus(ids, np.ones((number, 1), np.uint64), signatures)
    verdict = np.zeros(number, np.uint8)
    clusters = duplicates.near(corpus, verdict, verdict.copy(), NearDuplicates(bands=1, rows=2), MEMORY)
    assert verdict.tolist() == [KEPT] * 9 + [NEAR_DUPLICATE] and clusters.passed_over == 6
    assert clusters.sizes == {2: 1} and [one.tolist() for one in clusters.largest] == [[1, 9]]


# Planted pairs


def shingle_set(text: str, words: int) -> set[tuple[str, ...]]:
    """By another definition of words, which is the same for these texts."""
    row = "".join(letter if letter.isascii() and letter.isalnum() else " " for letter in text.lower()).split()
    return {tuple(row[at : at + words]) for at in range(len(row) - words + 1)}


def jaccard(one: set, two: set) -> float:
    return len(one & two) / len(one | two)


def edited(text: str, share: float, source: random.Random, vocabulary: list[str]) -> str:
    """Another text in any case."""
    words = text.split(" ")
    for at in source.sample(range(len(words)), max(1, round(share * source.uniform(0.5, 1.5) * len(words)))):
        words[at] = source.choice(vocabulary) + "x"
    return " ".join(words)


@pytest.mark.skipif(not NOVELS.exists(), reason="needs shared/data/corpus/novels")
def test_recall_and_precision_on_planted_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    """Documents of real novels, and copies with words replaced so that J is about 0.95 … 0.5."""
    source, near = random.Random(3), NearDuplicates()
    text = "".join(
        path.read_text(encoding="utf-8").replace("\n", " ").encode("ascii", "ignore").decode()
        for path in sorted(NOVELS.glob("*.txt"))[:12]
    )
    texts = [text[at : at + 4096] for at in range(0, len(text) - 4096, 4096)][:1500]
    vocabulary = text[:200_000].split()
    shares = (0.004, 0.009, 0.015, 0.023, 0.04, 0.07)
    copies = [edited(one, shares[n % len(shares)], source, vocabulary) for n, one in enumerate(texts)]
    corpus = Corpus.of(texts + copies, near)
    verdict, _, clusters = decide(corpus, near)
    goes = (verdict == NEAR_DUPLICATE) | (verdict == NEAR_HELDOUT)
    number = len(texts)
    exact = [jaccard(shingle_set(a, 5), shingle_set(b, 5)) for a, b in zip(texts, copies)]
    found = [bool(goes[n] or goes[n + number]) for n in range(number)]
    with capsys.disabled():
        print(f"\n  near copies planted in {2 * number} documents, found at a Jaccard similarity of")
        for low, high in ((0.9, 1.01), (0.85, 0.9), (0.8, 0.85), (0.75, 0.8), (0.7, 0.75), (0.5, 0.7), (0, 0.5)):
            some = [hit for hit, value in zip(found, exact) if low <= value < high]
            print(f"    {low:.2f} to {high:.2f}: {sum(some)} of {len(some)}")
    similar = [hit for hit, value in zip(found, exact) if value >= 0.9]
    assert len(similar) > 200 and sum(similar) / len(similar) >= 0.99
    good = sum(value >= 0.7 for hit, value in zip(found, exact) if hit)
    assert good / sum(found) >= 0.99 and goes.sum() == sum(found) == clusters.number
    assert not any(hit for hit, value in zip(found, exact) if value < 0.6)
