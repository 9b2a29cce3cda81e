"""Engines: what turns text into token ids. `tokenizers` is the reference; a fast one is used only where it is equal.

gigatoken (the optional extra maskmill[fast]) knows byte-level BPE and BPE with byte fallback, and is some fifty times
as fast (words it has met before: eighty). No version of it is trusted: a gate compares its ids with the reference's on
a sample of documents and on odd strings, for the very vocabulary that is to be used. So the bytes of shards never
depend on the engine.

It is handed the bytes of tokenizer.json, never a name, which it would look up on the hub; and the same pieces as the
reference, since the cuts in a text without spaces are part of what its encoding is.
"""

import json
import os
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import DataError, UsageError, panics_as_errors
from .tokens import encode, open_for_text, pieces, places

REFERENCE, FAST = "tokenizers", "gigatoken"

FRESH_TOKENS = 16 << 20
"""After so many tokens gigatoken is opened anew (about 70 MB of English): it keeps every word that it has met.

Measured with 0.10.0: 20 to 30 bytes per token of text in which every word is a new one, so 0.4 GB at the worst, and
20 MB after as much English. (Over 400 MB of such text it then stays at 0.36 GB on one thread; on two, the allocator's
arenas add up to 0.7 GB.) Opening a vocabulary of 32768 takes 0.07 s, encoding so much English 0.4 s of one core.
"""
SAMPLED = 64
"""Texts that the gate compares at a time."""


class TextEncoder(Protocol):
    """Turns raw text into ids; the names of special tokens in it are characters like others."""

    name: str
    version: str

    def encode(self, texts: list[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The ordinary tokens of all texts, end to end, and how many each text has (N,). No specials are added.

        Raises DataError where the library fails.
        """


class FastFails(DataError):
    """Of the fast engine itself, not of the file or the texts: a reason to do without it."""


class Reference:
    """`tokenizers`, as the rest of the house uses it."""

    name = REFERENCE

    def __init__(self, path: Path) -> None:
        import tokenizers

        self.version = tokenizers.__version__
        self._tokenizer = open_for_text(path)

    def encode(self, texts: list[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        return encode(self._tokenizer, texts)


class Fast:
    """gigatoken. Threads of its own, but none in a worker process, nor where TOKENIZERS_PARALLELISM is "false"."""

    name = FAST

    def __init__(self, path: Path) -> None:
        from importlib.metadata import version

        self._page = without_specials(_page(path))
        self._places = places(open_for_text(path))
        self.version = _guarded(lambda: version(FAST), "is not installed properly")
        self._lock = threading.Lock()
        self._open()

    def _open(self) -> None:
        """Under the lock, but for the first time."""

        def opened() -> Any:
            from gigatoken import Tokenizer

            return Tokenizer.from_json(self._page)

        self._tokenizer: Any = _guarded(opened, "cannot open this vocabulary")
        self._met = 0

    def encode(self, texts: list[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        with self._lock:
            if self._met >= FRESH_TOKENS:
                self._open()
            tokenizer = self._tokenizer
        parts = [list(pieces(text, self._places)) for text in texts]
        threads = False if os.environ.get("TOKENIZERS_PARALLELISM", "").lower() in ("false", "0") else None
        flat = [piece for some in parts for piece in some]
        # an awkward array: its content and offsets are taken as they lie, without a copy or a loop. It is a list where
        # awkward cannot be imported (PYTHONDEVMODE=1 and awkward 2.14, for one).
        layout = _guarded(lambda: tokenizer.encode_batch(flat, parallel=threads).layout, "cannot encode a text")
        offsets = np.asarray(layout.offsets.data, np.int64)
        tokens = np.asarray(layout.content.data)[offsets[0] : offsets[-1]].view(np.int32)
        with self._lock:
            self._met += len(tokens)
        ends = np.cumsum([0, *map(len, parts)])
        return tokens, np.diff(offsets[ends])


def without_specials(page: dict[str, Any]) -> bytes:
    """tokenizer.json such that special tokens are no more than ids: their names in a text are characters.

    Added tokens that are not special stay: `encode_special_tokens` of `tokenizers` goes on finding those, too.
    """
    added = [token for token in page.get("added_tokens") or [] if not token.get("special")]
    return json.dumps({**page, "added_tokens": added, "post_processor": None}, ensure_ascii=False).encode()


def open_engine(name: str, path: Path) -> TextEncoder:
    """The engine with this tokenizer.json, opened once per process.

    Raises UsageError for an unknown or missing engine, DataError for a file that it cannot read.
    """
    if name not in (REFERENCE, FAST):
        raise UsageError(f"There is no engine {name!r}; use {REFERENCE} or {FAST}.")
    if name == FAST and not installed():
        raise UsageError(f"The engine {FAST} is not installed; pip install 'maskmill[fast]', or use {REFERENCE}.")
    try:
        state = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); run `maskmill verify vocabulary`.") from None
    return _opened(name, path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=4)
def _opened(name: str, path: Path, changed: int, size: int) -> TextEncoder:
    return Fast(path) if name == FAST else Reference(path)


def installed() -> bool:
    """Is gigatoken here?"""
    return find_spec(FAST) is not None


def choose(path: Path, texts: Iterable[str]) -> tuple[str, str]:
    """(name of the engine for this tokenizer.json, why: a sentence).

    `texts` is the sample of documents that is compared; some megabytes take `tokenizers` a second. Raises DataError
    when the file is no tokenizer.
    """
    if not installed():
        return REFERENCE, f"{FAST} is not installed (pip install 'maskmill[fast]')."
    page = _page(path)
    model = (page.get("model") or {}).get("type", "BPE")
    if model != "BPE":
        return REFERENCE, f"The model is {model}, and {FAST} knows BPE alone."
    reference = open_engine(REFERENCE, path)
    names = [str(token["content"]) for token in page.get("added_tokens") or []]
    try:
        fast = open_engine(FAST, path)
        differs = check_parity(fast, reference, odd_texts(names)) or check_parity(fast, reference, texts)
    except FastFails as error:
        return REFERENCE, str(error)
    versions = f"{FAST} {fast.version}", f"{REFERENCE} {reference.version}"
    if differs:
        return REFERENCE, f"{versions[0]} differs from {versions[1]}: {differs}."
    return FAST, f"{versions[0]} gives the ids of {versions[1]} on a sample of documents and on odd strings."


def check_parity(engine: TextEncoder, reference: TextEncoder, texts: Iterable[str]) -> str:
    """The first difference between the ids of two engines, "" where there is none. Texts are read some at a time."""
    rest = iter(texts)
    while some := list(islice(rest, SAMPLED)):
        (ours, sizes), (theirs, wanted) = engine.encode(some), reference.encode(some)
        if np.array_equal(sizes, wanted) and np.array_equal(ours, theirs):
            continue
        pairs = zip(some, _each(ours, sizes), _each(theirs, wanted), strict=True)
        for text, mine, its in pairs:
            if not np.array_equal(mine, its):
                return _difference(text, mine, its)
        return "its ids and its counts do not belong together"
    return ""


def _each(tokens: NDArray[np.int32], sizes: NDArray[np.int64]) -> list[NDArray[np.int32]]:
    return np.split(tokens, np.cumsum(sizes)[:-1])


def _difference(text: str, mine: NDArray[np.int32], its: NDArray[np.int32]) -> str:
    most = min(len(mine), len(its))
    unequal = np.flatnonzero(mine[:most] != its[:most])
    at = int(unequal[0]) if len(unequal) else most
    shown = ascii(text if len(text) <= 40 else text[:37] + "...")
    return f"of {shown}, token {at} is {_id(mine, at)} instead of {_id(its, at)}"


def _id(tokens: NDArray[np.int32], at: int) -> str:
    return str(tokens[at]) if at < len(tokens) else "missing"


_WRITINGS = (
    "The quick brown fox, don't you'll we'RE I'M it's 'tis '' `` “so” ‘so’ – — … ¿qué? ¡no!",
    "Ünïcödé naïve ﬁ ﬂ Ⅷ ² ½ ℌ ﷺ ａｂｃ ß ẞ İ ı ſ ŉ Å Å Ω Ω K K",
    "e\u0301 a\u030a\u0323 \u0301 n\u0303\u0303\u0303 q\u0307\u0323 \u0f71\u0f72 \u1100\u1161\u11a8 각 한국어 \u20dd",
    "\u202eabc\u202c \u200f\u200e\u2066x\u2069 \ufeffBOM \u00ad \u200b\u200c\u200d \u2028 \u2029 \u0085 \u180e",
    "مرحبا بالعالم ١٢٣ ۱۲۳ لاإله שלום עולם אָלֶף हिन्दी क्षत्रिय १२३ ไทยภาษาไทยไม่มีช่องว่าง ๑๒๓ မြန်မာ",
    "日本語のテキスト、漢字かな交じり文。中文没有空格！한글 𠀋𠮷𪚥 ﾊﾝｶｸ ゛゜",
    "👩‍👩‍👧‍👦 👍🏽 🇩🇪🇫🇷 🏳️‍🌈 ❤️ 1️⃣ \u200d👩\u200d \ufe0f 🏽 \U0001f1e9 \U000e0067 \U0010ffff \uffff \ufffd \ue000",
    "1 12 123 1234 12345678901234567890 1,234.56 1e-9 0x1F 3rd 2nd x1y2z3 ٣٫١٤ ²³ ①② Ⅳ ½",
    "def f(x):\n\treturn {'a': [1,2,3]}  # ok\r\n<html>&nbsp;</html>\\n\\\\ https://a.b/c?d=e&f=g#h a_b__c --x=1 !=/==",
    "MiXeD CaSe camelCase HTTPServer snake_case UPPER lower Αβγ ДЕЁж ԱԲ აბ Ꭰꭰ",
    "\x00a\x00\x00 \x01\x02\x1b[0m\x7f \x80\x9f\xa0\xa0 x\xa0y \u3000x\u3000\u3000 \u2003y \u1680 \u205f",
)
"""Marks, joiners, scripts with and without spaces, compatibility characters, digits, code, control characters."""


def odd_texts(names: Iterable[str]) -> Iterator[str]:
    """What a pre-tokenizer or a byte alphabet may stumble over; `names` are those of the added tokens."""
    yield from ("", " ", "\n", "\r\n", "\t", "\x00", "a", "é", "'", "\u0301")
    yield from map(chr, range(1, 0x250))
    yield "".join(map(chr, range(0x250)))
    for name in names:
        yield from (name, f" {name} ", f"a{name}b", f"a  {name}\n{name}", name * 3, name.lower(), name[:-1], name[1:])
    for text in _WRITINGS:
        yield from (text, f" {text}", f"{text} ", text * 2, text[::-1], text.upper(), text.lower(), "  ".join(text))
    for space in (" ", "\n", "\t", "\r\n", "\xa0", "\u3000", " \n", "\n\n  ", "\t "):
        for count in (2, 3, 7, 64, 1000):
            yield from (space * count, f"a{space * count}b", f"{space * count}b", f"a.{space * count}")
    for letter in ("a", "ab", "é", "漢", "1", "-", "👩\u200d", "\u0301", "aB1-", "Hello,"):
        yield letter * 300
    yield from ("x " + "ab" * 50_000, "漢é" * 12_000, ("word " * 2000 + "\r\n") * 3)
    yield from _mixtures(500)


def _mixtures(count: int) -> Iterator[str]:
    """Strings of characters drawn from everywhere, each from a stream of its own: always the same."""
    known = "".join(_WRITINGS) + " \n\r\t'" * 8
    for number in range(count):
        draw = random.Random(f"odd text {number}")
        length = draw.randrange(1, 80)
        anywhere = [chr(draw.choice((draw.randrange(0xD800), draw.randrange(0xE000, 0x110000)))) for _ in range(length)]
        share = draw.random()
        yield "".join(draw.choice(known) if draw.random() < share else anywhere[at] for at in range(length))


def _page(path: Path) -> dict[str, Any]:
    """tokenizer.json. Raises DataError when it is none."""
    try:
        page = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(page, dict):
            raise ValueError("no object")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a tokenizer ({error}); run `maskmill verify vocabulary`.") from None
    return page


def _guarded(work: Callable[[], Any], what: str) -> Any:
    """Its result. Raises DataError for whatever gigatoken raises, a panic too."""
    try:
        with panics_as_errors():
            return work()
    except MemoryError:
        raise
    except Exception as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FastFails(f"{FAST} {what} ({why}), so {REFERENCE} is used.") from None
