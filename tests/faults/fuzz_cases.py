"""Cases for the parsers: real examples, damaged. A case follows from (seed, parser, number) and from nothing else.

bytes       bits flipped, cut out, put in, doubled, cut off, spliced with another example, numbers overwritten
structure   where the bytes are JSON: values of other types, huge numbers, deep nesting, keys that stand twice,
            names that lead elsewhere; sealed again where the parser has a seal, so that it gets past it
drawn       where a strategy of hypothesis says what the bytes may be
"""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis.strategies import SearchStrategy

LARGEST = 1 << 20
"""Bytes of a case."""
NUMBERS = (
    0,
    1,
    -1,
    127,
    128,
    255,
    256,
    1 << 15,
    (1 << 16) - 1,
    1 << 24,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 40,
)
NUMBERS += (1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
TEXTS = (
    "",
    " ",
    "x",
    "\0",
    "\n",
    "\ud800",
    "é",
    "../../../tmp/x",
    "/etc/passwd",
    "..",
    ".",
    "a/../../b",
    "nan",
    "1e999",
)
TEXTS += (
    "a\nb",
    "\u202egpj",
    "x" * 5000,
    "\U0001f600",
    "-1",
    "true",
    "null",
    "~",
    "%s%n",
    "{0.__class__}",
    "file:///dev/zero",
)
ODD: tuple[Any, ...] = (None, True, False, 1.5, -0.0, 1e308, float("nan"), float("inf"), 10**40, -(10**400))
ODD += (*NUMBERS, *TEXTS, [], {}, [[]], [None], {"": None}, {"a": {"b": []}}, [0, "", {}], list("x" * 40))
_WORDS = ("NaN", "-Infinity", "1e400", "9" * 5000, '"\\ud800"', "{", "}", "[", "]", ",", ":", '"', "\\u0000")
_BYTES = (b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\x00" * 64, b"\r\n", b"\r", b"[" * 1500)
PIECES = (*(one.encode("utf-8", "surrogatepass") for one in (*TEXTS[1:], *_WORDS)), *_BYTES, b'{"a":' * 1500)


@dataclass(frozen=True)
class Case:
    """What a parser is given."""

    data: bytes
    origin: int | None = None
    """Number of the example of which only bits were flipped or the end is missing; None where more was done to it."""


def cases(
    seed: int,
    name: str,
    examples: Sequence[bytes],
    reseal: Callable[[Any], bytes] | None,
    form: str,
    pieces: Sequence[bytes],
    first: int,
) -> Iterator[Case]:
    """The cases from number `first` on.

    form    "bytes", "json", "lines" (of JSON): what besides bytes may be damaged
    pieces  what may be put in beside PIECES
    """
    number = first
    while True:
        yield damaged(random.Random(f"{seed} {name} {number}"), examples, reseal, form, pieces)
        number += 1


def damaged(
    rng: random.Random,
    examples: Sequence[bytes],
    reseal: Callable[[Any], bytes] | None,
    form: str,
    pieces: Sequence[bytes],
) -> Case:
    origin = rng.randrange(len(examples))
    data = examples[origin]
    way = rng.random()
    if form != "bytes" and way < 0.6:
        return Case(_structure(rng, data, reseal, form)[:LARGEST])
    if way < 0.8:
        return Case(flipped(rng, data), origin)
    for _ in range(rng.randint(1, 4)):
        data = _bytes(rng, data, examples, pieces)
    return Case(data[:LARGEST])


def flipped(rng: random.Random, data: bytes) -> bytes:
    """A bit or a few, or the end is missing."""
    if rng.random() < 0.15:
        return data[: rng.randrange(len(data) + 1)]
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _bytes(rng: random.Random, data: bytes, examples: Sequence[bytes], pieces: Sequence[bytes]) -> bytes:
    at, end = sorted((rng.randint(0, len(data)), rng.randint(0, len(data))))
    end = min(end, at + rng.choice((1, 4, 16, 64, 1024)))
    match rng.randrange(16 if pieces else 8):
        case way if way >= 8:
            return data[:at] + rng.choice(pieces) + data[end if rng.random() < 0.5 else at :]
        case 0:
            return flipped(rng, data) if data else data
        case 1:
            return data[:at] + data[end:]
        case 2:
            return data[:at] + data[at:end] * rng.choice((2, 3, 50)) + data[end:]
        case 3:
            return data[:at] + rng.choice(PIECES) + data[end if rng.random() < 0.5 else at :]
        case 4:
            width = rng.choice((1, 2, 4, 8))
            number = (rng.choice(NUMBERS) + rng.choice((0, 0, 1, -1))) % (1 << 8 * width)
            return data[:at] + number.to_bytes(width, rng.choice(("little", "big"))) + data[at + width :]
        case 5:
            other = rng.choice(examples)
            return data[:at] + other[rng.randint(0, len(other)) :]
        case 6:
            return data[:at] + rng.randbytes(end - at) + data[end:]
    return rng.randbytes(rng.randint(0, 200)) if rng.random() < 0.1 else data[:at] + bytes(end - at) + data[end:]


def _structure(rng: random.Random, data: bytes, reseal: Callable[[Any], bytes] | None, form: str) -> bytes:
    if form == "lines":
        lines = data.splitlines(keepends=True) or [b""]
        at = rng.randrange(len(lines))
        lines[at] = _structure(rng, lines[at], reseal, "json") + b"\n"
        if rng.random() < 0.2:
            lines.insert(rng.randrange(len(lines)), rng.choice(lines))
        return b"".join(lines)
    try:
        value = json.loads(data)
    except ValueError:
        return data
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        value = replaced(rng, value)
    if reseal is not None and rng.random() < 0.9:
        try:
            return reseal(value)
        except (
            ValueError,
            TypeError,
            AttributeError,
            KeyError,
            IndexError,
            OverflowError,
            RecursionError,
        ):  # no such thing can be sealed
            pass
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5, indent=rng.choice((None, 1)))
    if rng.random() < 0.2:
        text = _twice(rng, text)
    return text.encode("utf-8", "surrogatepass")


def _twice(rng: random.Random, text: str) -> str:
    """A key that stands twice, or nesting without end, where an object begins."""
    places = [at for at, character in enumerate(text) if character == "{"]
    if not places:
        return text
    at = rng.choice(places) + 1
    key = text[at:].lstrip().partition(":")[0] if text[at:].lstrip().startswith('"') else '"a"'
    inside = json.dumps(rng.choice(ODD)) if rng.random() < 0.9 else "[" * 5000 + "]" * 5000
    return f"{text[:at]}{key}: {inside}{'' if text[at:].lstrip().startswith('}') else ','}{text[at:]}"


def replaced(rng: random.Random, value: Any) -> Any:
    """One place of a value is another value, or is gone, or has another name."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        changed = dict(value)
        key = rng.choice(list(changed))
        match rng.randrange(8):
            case 0:
                del changed[key]
            case 1:
                changed[rng.choice((*TEXTS, key + "x"))] = changed.pop(key) if rng.random() < 0.5 else changed[key]
            case 2:
                changed[key] = changed[rng.choice(list(changed))]
            case _:
                changed[key] = replaced(rng, changed[key])
        return changed
    if isinstance(value, list) and value and rng.random() < 0.85:
        changed_ = list(value)
        at = rng.randrange(len(changed_))
        match rng.randrange(6):
            case 0:
                del changed_[at]
            case 1:
                changed_.insert(at, rng.choice(changed_))
            case _:
                changed_[at] = replaced(rng, changed_[at])
        return changed_
    if isinstance(value, str) and value and rng.random() < 0.3:
        at = rng.randrange(len(value))
        return value[:at] + rng.choice(TEXTS) + value[at + 1 :]
    if isinstance(value, int) and rng.random() < 0.3:
        return value + rng.choice((-1, 1, 1 << 31))
    return rng.choice(ODD)


def drawn(seed: int, strategy: SearchStrategy[bytes], number: int, take: Callable[[bytes], None]) -> None:
    """`number` examples of a strategy, one after the other to `take`, which raises nothing."""

    @seeded(seed)
    @settings(
        max_examples=number,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run(data: bytes) -> None:
        take(data[:LARGEST])

    run()
