"""What the ids of a tokenizer stand for, so that a person can read it: white space, bytes and controls are visible."""

import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .spellings import is_byte_level, spellings

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LONG = 48
"""Characters of a token that are shown; four times as many bytes."""
_VISIBLE = {" ": "␣", "\n": "↵", "\t": "⇥", "\x7f": "␡"}


def visible(text: str) -> str:
    """A text on which everything can be seen: white space, controls, what turns the direction, a lone accent."""
    shown = "".join(_VISIBLE.get(one) or _visible(one) for one in text)
    return "◌" + shown if shown and unicodedata.category(shown[0])[0] == "M" else shown


def _visible(one: str) -> str:
    if one < " ":
        return chr(0x2400 + ord(one))
    # C: control, format, unassigned, private; Z: separators
    return f"⟨{ord(one):04X}⟩" if unicodedata.category(one)[0] in "CZ" else one


def of_bytes(data: bytes) -> str:
    """Bytes as visible text, those that are no whole character as ⟨hexadecimal⟩."""
    return "".join(_decoded(data))


def _decoded(data: bytes) -> Iterator[str]:
    while data:
        try:
            yield visible(data.decode())
            return
        except UnicodeDecodeError as error:
            yield visible(data[: error.start].decode())
            yield from (f"⟨{byte:02X}⟩" for byte in data[error.start : error.end])
            data = data[error.end :]


class Texts:
    """The ids of one tokenizer; facts are those of the vocabulary's manifest."""

    def __init__(self, tokenizer: "Tokenizer", facts: Mapping[str, Any]) -> None:
        self.size, self.unknown = int(facts["size"]), int(facts["special_ids"]["unk"])
        spans = [np.arange(first, end, dtype=np.int64) for first, end in facts["ordinary"]]
        self.ordinary = np.concatenate([np.zeros(0, np.int64), *spans])
        """Ids that a text can have."""
        self.spelled = spellings(tokenizer)
        self._names = [tokenizer.id_to_token(number) or "" for number in range(self.size)]
        self._page = json.loads(tokenizer.to_str())
        byte_level = is_byte_level(self._page)
        self._inside_V = np.array([_is_part(one.text[:1]) for one in self.spelled], np.bool_)
        self._part_V = np.array([_is_part(one.text) for one in self.spelled], np.bool_)
        """An id that begins inside a character; one that is inside a character from its first byte to its last."""
        self._byte_V = np.array([not byte_level and self._is_byte(number) for number in range(self.size)], np.bool_)
        """A byte below 128 as the fallback of a model that has characters: a whole character, and no token of it."""

    def _is_byte(self, number: int) -> bool:
        text = self.spelled[number].text
        return self._names[number].startswith("<0x") and len(text) == 1 and text < b"\x80"

    def shown(self, number: int) -> str:
        """An id as a short readable text; of a long one the beginning, and how long it is."""
        one, name = self.spelled[number], self._names[number]
        if one.text and not (one.follows or one.ends):
            rest = f"… ({len(one.text):,} bytes)" if len(one.text) > 4 * LONG else ""
            return of_bytes(one.text[: 4 * LONG]) + rest
        return visible(name[:LONG]) + (f"… ({len(name):,} characters)" if len(name) > LONG else "")

    def kind(self, number: int) -> str:
        """ "unknown"; "bytes" where the id is no whole characters; or ""."""
        if number == self.unknown:
            return "unknown"
        try:
            self.spelled[number].text.decode()
        except UnicodeDecodeError:
            return "bytes"
        return "bytes" if self._byte_V[number] else "word" if self.spelled[number].leads else ""

    def is_single(self, number: int) -> bool:
        """One byte or one character: it is there so that every text has an encoding."""
        text = self.spelled[number].text
        return len(text) <= 1 or len(text.decode(errors="replace").removeprefix(" ")) <= 1

    def broken(self, ids: NDArray[np.int32], word_of: NDArray[np.int64], words: Sequence[str]) -> NDArray[np.int64]:
        """(N,) characters of each word that no token holds whole: written in bytes, or part of an [UNK].

        ids        (T,) tokens of all words, end to end
        word_of    (T,) the word of each
        """
        # A character in three tokens breaks at two of them: it is counted at the first.
        again = np.zeros(len(ids), np.bool_)
        again[1:] = self._part_V[ids[:-1]]
        at = (self._inside_V[ids] & ~again) | self._byte_V[ids]
        found = np.bincount(word_of[at], minlength=len(words)).astype(np.int64)
        unknown = ids == self.unknown
        for word in np.unique(word_of[unknown]).tolist():
            mine = ids[np.searchsorted(word_of, word) : np.searchsorted(word_of, word, side="right")]
            length = len(words[word].removeprefix(" "))
            known = sum(len(self.spelled[one].text.decode(errors="ignore").strip()) for one in mine.tolist())
            # A normalizer may have changed how many there are: at least one for each [UNK].
            found[word] = min(length, found[word] + max(length - known, int((mine == self.unknown).sum())))
        return found

    def settings(self) -> dict[str, Any]:
        """How the tokenizer is put together, as tokenizer.json says."""
        model = {name: value for name, value in self._page["model"].items() if isinstance(value, str | int | float)}
        parts = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
        return {f"model.{name}": value for name, value in sorted(model.items())} | {
            part: _described(self._page[part]) for part in parts if self._page.get(part)
        }


def _is_part(data: bytes) -> bool:
    """Bytes that go on with a character, and no others."""
    return bool(data) and all(0x80 <= byte < 0xC0 for byte in data)


def _described(component: Mapping[str, Any]) -> list[str]:
    """Type(setting=value, …) of a component, of those in it where it is a sequence."""
    for name in ("normalizers", "pretokenizers", "processors", "decoders"):
        if isinstance(component.get(name), list):
            return [line for one in component[name] for line in _described(one)]
    values = {name: value for name, value in component.items() if name != "type"}
    said = ", ".join(f"{name}={_short(value)}" for name, value in values.items())
    return [f"{component.get('type', '?')}({said})"]


def _short(value: Any) -> str:
    said = json.dumps(value, ensure_ascii=False)
    return said if len(said) <= 80 else said[:80] + "…"
