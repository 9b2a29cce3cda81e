"""python -m pytest tests/tasks/test_minhash.py"""

import re
from hashlib import sha256
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import minhash
from tasks.errors import UsageError
from tasks.minhash import NO_WORDS, NearDuplicates, Signer, shingles, word_hashes

WORD = re.compile(
    "[0-9A-Za-z\u0100-\u07ff\u00c0-\u00ff]+"  # of one or two bytes
    "|[^\u0000-\u07ff\u2000-\u207f\u3000-\u303f]"  # longer
)
ALPHABET = st.sampled_from("aZ9 \n.'é×«\u00a0ßя\u07ff\u0800—\u2028‟€あ。\u3040漢字ไ😀👩\u200d")
TEXTS = st.one_of(st.text(ALPHABET), st.text(st.characters(exclude_categories=["Cs"])))
FEW = Signer(NearDuplicates(words=3, bands=2, rows=2))
GOLDEN = ([59923, 57021, 39559, 39741], [17397575476299962621, 14940318036914575161], "2570d419aebfbbfe")
M64 = (1 << 64) - 1


def mixed(number: int) -> int:
    number = (number ^ number >> 32) * 0x9E3779B97F4A7C15 & M64
    return number ^ number >> 29


def plain_words(text: str) -> list[int]:
    """The definition, a byte at a time."""
    hashes = []
    for word in WORD.findall(text):
        data = re.sub("[A-Z]", lambda letter: letter[0].lower(), word).encode()
        hashes.append(mixed(sum((byte + 1) * 0x9E3779B97F4A7C15**k for k, byte in enumerate(data)) & M64))
    return hashes


def plain_shingles(words: list[int], size: int) -> list[int]:
    rows = [words[at : at + size] for at in range(len(words) - size + 1)]
    return [mixed(sum(word * 0xBF58476D1CE4E5B9 ** (k + 1) for k, word in enumerate(row)) & M64) for row in rows]


def plain_sign(signer: Signer, text: str) -> tuple[list[int], list[int]]:
    words, (bands, rows) = plain_words(text), (signer.settings.bands, signer.settings.rows)
    if not words:
        return [0xFFFF] * (bands * rows), [NO_WORDS] * bands
    numbers = [one >> 32 for one in plain_shingles(words, min(len(words), signer.settings.words))]
    pairs = list(zip(signer.factors.tolist(), signer.terms.tolist()))
    minima = [min((a * number + b) & 0xFFFFFFFF for number in numbers) for a, b in pairs]
    keys = []
    for band in range(bands):
        key = band + 1
        for one in minima[band * rows : (band + 1) * rows]:
            key = (key * 0x94D049BB133111EB + one) & M64
        keys.append(max(mixed(key), NO_WORDS + 1))
    return [one & 0xFFFF for one in minima], keys


@settings(deadline=None, max_examples=300)
@given(TEXTS)
def test_words_are_those_of_the_definition_in_one_block_or_many(text: str) -> None:
    expected = plain_words(text)
    assert word_hashes(text.encode()).tolist() == expected
    if max(map(len, WORD.findall(text)), default=0) < 15:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(minhash, "BLOCK", 64)
            many = text + " " * 70 + text + "\u2014" * 70 + text
            assert word_hashes(many.encode()).tolist() == expected * 3


@settings(deadline=None, max_examples=100)
@given(st.lists(TEXTS, max_size=12), st.integers(40, 300))
def test_signatures_are_those_of_the_definition_for_any_batches(texts: list[str], block: int) -> None:
    data = [text.encode() for text in texts]
    signatures, keys = FEW.sign(data)
    assert (signatures.dtype.str, keys.dtype.str) == ("<u2", "<u8") and keys.shape == (len(texts), 2)
    for text, signature, key in zip(texts, signatures.tolist(), keys.tolist()):
        assert (signature, key) == plain_sign(FEW, text)
    with pytest.MonkeyPatch.context() as patch:
        longest = max((len(word.encode()) for text in texts for word in WORD.findall(text)), default=0)
        patch.setattr(minhash, "BLOCK", max(block, longest + 8))
        again = FEW.sign(data)
        assert (again[0] == signatures).all() and (again[1] == keys).all()


@given(st.lists(st.integers(0, M64), max_size=20), st.integers(1, 15))
def test_shingles_are_those_of_the_definition(words: list[int], size: int) -> None:
    assert shingles(np.array(words, np.uint64), size).tolist() == plain_shingles(words, size)


@settings(deadline=None)
@given(st.text(st.sampled_from("ab c,.é"), min_size=1))
def test_case_and_punctuation_change_nothing(text: str) -> None:
    other = text.upper().replace("É", "é").replace(" ", " — ").replace(",", "\u3002\u00ab") + "…"
    for one, two in zip(FEW.sign([text.encode()]), FEW.sign([other.encode()])):
        assert (one == two).all()


@pytest.mark.parametrize("unit", [b"x", "é".encode(), b" ", "漢".encode(), "—".encode(), b"\xff", b"\xe2"])
def test_a_text_without_any_place_to_cut_is_read_in_blocks(unit: bytes) -> None:
    data = unit * (minhash.BLOCK + 5000)
    words = len(word_hashes(data))
    assert words == {b"x": 2, "é".encode(): 3, "漢".encode(): len(data) // 3}.get(unit, words)
    assert words == 0 or unit not in (b" ", "—".encode())
    one, two = FEW.sign([data]), FEW.sign([b"a", data, b"b"])
    assert (one[0][0] == two[0][1]).all() and (one[1][0] == two[1][1]).all()


def test_the_bytes_never_change() -> None:
    """Packs of earlier runs hold them: whoever changes this has to raise corpus.VERSION."""
    texts = ["It was the best of times, it was the worst of times.", "hello", "", "子曰：學而時習之，不亦說乎？" * 3]
    signatures, keys = Signer(NearDuplicates()).sign([text.encode() for text in texts])
    assert signatures[0, :4].tolist() == GOLDEN[0] and keys[0, :2].tolist() == GOLDEN[1]
    assert sha256(signatures.tobytes() + keys.tobytes()).hexdigest()[:16] == GOLDEN[2]
    assert (keys[2] == NO_WORDS).all() and not (keys[[0, 1, 3]] == NO_WORDS).any()


def test_equal_minima_estimate_the_similarity_and_bands_find_as_stated() -> None:
    """1 - (1 - J^r)^b, for sets of 300 shingles that share a known part."""
    rng = np.random.default_rng(5)
    signer = Signer(NearDuplicates())
    for jaccard, stated in ((0.5, 0.27), (0.7, 0.92), (0.8, 0.998), (0.9, 1.0)):
        equal, found, pairs = 0.0, 0, 300
        for _ in range(pairs):
            numbers = rng.integers(0, 1 << 63, 600, dtype=np.uint64) * np.uint64(2)
            both = round(2 * 300 * jaccard / (1 + jaccard))
            minima = np.stack(
                [signer._minima(numbers[:300])[:, 0], signer._minima(numbers[300 - both : 600 - both])[:, 0]], 1
            )
            equal += (minima[:, 0] == minima[:, 1]).mean() / pairs
            keys = signer._keys(minima)
            found += bool((keys[0] == keys[1]).any())
        assert abs(equal - jaccard) < 0.02
        assert abs(found / pairs - stated) < 0.08


def test_permutations_differ_and_are_permutations() -> None:
    signer = Signer(NearDuplicates())
    assert (signer.factors & 1).all() and len(set(signer.factors.tolist())) == len(set(signer.terms.tolist())) == 120


@pytest.mark.parametrize("key, value", [*((key, 0) for key in ("words", "bands", "rows"))])
def test_settings_that_mean_nothing_are_refused(key: str, value: int) -> None:
    with pytest.raises(UsageError, match=rf"corpus\.near_duplicates\.{key} is 0; it must be from 1 to 256\."):
        NearDuplicates(**{key: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("similarity", ["0", "1.1", "-0.5", "high", "1/0", ""])
def test_a_similarity_is_a_share(similarity: str) -> None:
    with pytest.raises(UsageError, match=r"corpus\.near_duplicates\.similarity is .* above 0, at most 1"):
        NearDuplicates(similarity=similarity)


def test_a_similarity_is_exact() -> None:
    equal = [NearDuplicates(similarity=one).least_equal for one in ("0.8", "4/5", "0.8000001", "1", "1e-9")]
    assert equal == [96, 96, 97, 120, 1]
    assert all(a <= b for a, b in pairwise(NearDuplicates(similarity=f"{n}/7").least_equal for n in range(1, 8)))
