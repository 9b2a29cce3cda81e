"""What each token id writes: bytes of text, or nothing. For byte-level and other BPE, WordPiece and Unigram alike.

`tokenizers` has no such question: `decode` of one id drops a space here and gives U+FFFD there. So it is read from the
tokenizer's own JSON, which says how the model spells.
"""

import json
import re
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tokenizers import Tokenizer

METASPACE = "\u2581"
"""The character that SentencePiece writes for a space."""
_FREE = re.compile(r"\[unused\d+\]")
"""What BERT calls its reserved ids; no text gives them, since brackets are words of their own."""
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Spelling(NamedTuple):
    """What an id writes."""

    text: bytes
    """Bytes of text; may begin or end inside a character. Empty for special and reserved ids and for [UNK]."""
    role: str = "text"
    """text; unknown ([UNK], or what a model calls so); special (reserved ids as well)."""
    follows: bool = False
    """Goes on with the word before it, as the model says (`##ing`)."""
    leads: bool = False
    """Begins a word, as the model says (WordPiece: whatever is no `##`)."""
    ends: bool = False
    """Ends a word, as the model says (`ing</w>`)."""


def spellings(tokenizer: "Tokenizer") -> list[Spelling]:
    """(V,) the spelling of each id; an id without a token is special."""
    whole = json.loads(tokenizer.to_str())
    model = whole["model"]
    added = {entry["id"]: entry for entry in whole["added_tokens"]}
    unknown = _unknown_id(tokenizer, model)
    byte_level, metaspace = is_byte_level(whole), METASPACE if has_metaspace(whole) else ""
    found = []
    for number in range(tokenizer.get_vocab_size()):
        token = tokenizer.id_to_token(number)
        entry = added.get(number)
        if number == unknown:
            found.append(Spelling(b"", "unknown", leads=True))
        elif token is None or (entry and entry["special"]) or (model["type"] == "WordPiece" and _FREE.fullmatch(token)):
            found.append(Spelling(b"", "special"))
        elif entry:
            found.append(Spelling(token.encode()))
        elif byte_level:
            found.append(Spelling(_from_alphabet(token)))
        else:
            found.append(_plain(token, model, metaspace))
    return found


def token_bytes(of: list[Spelling]) -> NDArray[np.int32]:
    """(V,) bytes of text that each id stands for: `##ing` 3, `▁the` 4, `<0xE2>` 1, special, reserved and [UNK] 0."""
    return np.array([len(spelling.text) for spelling in of], np.int32)


def components(whole: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Normalizers, pre-tokenizers and decoders of a tokenizer.json, sequences taken apart."""
    found, waiting = [], [whole.get(part) for part in ("normalizer", "pre_tokenizer", "decoder")]
    while waiting:
        part = waiting.pop(0)
        if isinstance(part, dict):
            found.append(part)
            for key in ("normalizers", "pretokenizers", "decoders"):
                waiting += part.get(key) or []
    return found


def is_byte_level(whole: dict[str, Any]) -> bool:
    """Are the tokens written in the alphabet of GPT-2, one character a byte?"""
    return any(part["type"] == "ByteLevel" and part is not whole.get("post_processor") for part in components(whole))


def has_metaspace(whole: dict[str, Any]) -> bool:
    """Are spaces written as ▁?"""
    written = (part.get("content") == METASPACE for part in components(whole) if part["type"] == "Replace")
    return any(part["type"] == "Metaspace" for part in components(whole)) or any(written)


def _unknown_id(tokenizer: "Tokenizer", model: dict[str, Any]) -> int | None:
    if model.get("unk_id") is not None:
        return int(model["unk_id"])
    name = model.get("unk_token")
    return tokenizer.token_to_id(name) if name else None


def _plain(token: str, model: dict[str, Any], metaspace: str) -> Spelling:
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    follows, ends = bool(prefix) and token.startswith(prefix), bool(suffix) and token.endswith(suffix)
    if (found := _BYTE.fullmatch(token)) and model.get("byte_fallback"):
        return Spelling(bytes.fromhex(found[1]))
    token = token[len(prefix) if follows else 0 : -len(suffix) if ends else None]
    leads = model["type"] in ("WordPiece", "WordLevel") and not follows
    text = token.replace(metaspace, " ") if metaspace else token
    return Spelling(text.encode(), follows=follows, leads=leads, ends=ends)


def _from_alphabet(token: str) -> bytes:
    alphabet = byte_alphabet()
    try:
        return bytes(alphabet[character] for character in token)
    except KeyError:  # a token that no text can give
        return token.encode()


@cache
def byte_alphabet() -> dict[str, int]:
    """Character -> byte of GPT-2's alphabet: printable bytes as themselves, the others from U+0100 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}
