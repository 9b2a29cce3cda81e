"""What the vocabulary's card says in words: what a person should look at, and may want to make otherwise.

A card (vocabulary_findings.py) is data; a remark is one sentence about it that may change what its reader does next.
"""

from collections.abc import Mapping
from typing import Any

from .sheet import share

UNUSED = 10
"""Per cent of the ids of text that no text has: a smaller vocabulary would do."""
HARDLY = 25
"""Per cent of them that training meets too seldom. The last ids of a vocabulary are always rare."""
ENOUGH_PER_ID = 100
"""Tokens in the sample for each id, before what is not in the sample is said to be unused."""
ENOUGH_WORDS = 1000
"""Words of a source before it is compared with another."""
LONG = 64
"""Bytes of a token that is no word of any language."""
SHOWN = 40
NAMED = 3


def per(one: Mapping[str, Any], above: str, below: str) -> str:
    """A ratio of two of a page's figures, such as bytes per token."""
    return f"{one[above] / one[below]:.2f}" if one.get(below) else "–"


def untrained(card: Mapping[str, Any]) -> int:
    """Ids of text that training meets less often than `rare_below` times, as the sample has it."""
    return int(card["ids"]["unused"] + card["ids"]["rare"])


def remarks(card: Mapping[str, Any]) -> list[str]:
    """What a person should look at first, in plain sentences; an empty list where nothing stands out."""
    found = [_too_small(card), _unknown(card), *_fertility(card), _in_bytes(card), *_ids(card), _long(card)]
    empty = [one["name"] for one in card["sources"] if not one["tokens"]]
    if empty:
        found.append(f"Nothing of {_named(empty)} is in the train split.")
    return [remark for remark in found if remark]


def _named(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _too_small(card: Mapping[str, Any]) -> str:
    vocabulary = card["vocabulary"]
    asked, size, reserved = vocabulary.get("asked", 0), vocabulary["size"], vocabulary.get("reserved", 0)
    if vocabulary.get("source") != "learnt" or size >= asked:  # V is padded: fewer than 64 missing ids are not seen
        return ""
    return (
        f"The corpus is too small for {asked:,} tokens: it gives {size - reserved:,}, and has no more pieces that "
        "occur often enough."
    )


def _unknown(card: Mapping[str, Any]) -> str:
    above = [one for one in card["sources"] if 1000 * one["unknown"] > one["tokens"]]
    if not above:
        return ""
    worst = max(above, key=lambda one: one["unknown"] / one["tokens"])
    return (
        f"{share(worst['unknown'], worst['tokens'])} of the tokens of {worst['name']} are unknown"
        + (
            f", and more than 0.1 % in {_named([one['name'] for one in above if one is not worst])}"
            if above[1:]
            else ""
        )
        + ": that text is lost; a model with bytes (bpe, or unigram) has no unknown token."
    )


def _fertility(card: Mapping[str, Any]) -> list[str]:
    there = [one for one in card["sources"] if one["words"] >= ENOUGH_WORDS and one["tokens"]]
    if not there:
        return []
    best = min(there, key=lambda one: one["tokens"] / one["words"])
    twice = [one for one in there if one["tokens"] * best["words"] >= 2 * best["tokens"] * one["words"]]
    return [
        f"A word of {one['name']} takes {per(one, 'tokens', 'words')} tokens, one of {best['name']} "
        f"{per(best, 'tokens', 'words')}: the vocabulary is made for other text than {one['name']}."
        for one in sorted(twice, key=lambda one: -one["tokens"] / one["words"])[:NAMED]
    ]


def _in_bytes(card: Mapping[str, Any]) -> str:
    broken = [one["name"] for one in card["sources"] if 20 * one["characters_broken"] > one["characters"]]
    return f"More than 5 % of the characters of {_named(broken)} have no token of their own." if broken else ""


def _ids(card: Mapping[str, Any]) -> list[str]:
    ids, totals = card["ids"], card["totals"]
    ordinary, unused = ids["ordinary"], ids["unused"] - ids["unused_single"]
    enough = totals["whole"] or totals.get("tokens", 0) >= ENOUGH_PER_ID * card["vocabulary"]["size"]
    if enough and 100 * unused > UNUSED * ordinary:
        what = "train split" if totals["whole"] else "sample"
        return [
            f"{share(unused, ordinary)} of the ids of text are never used in the {what}: a smaller vocabulary would do."
        ]
    hardly = untrained(card) - card["ids"]["unused_single"]  # bytes: a smaller vocabulary has them, too
    if totals.get("tokens") and 100 * hardly > HARDLY * ordinary:
        return [
            f"Training meets {share(hardly, ordinary)} of the ids of text less often than {ids['rare_below']} "
            "times and will learn them badly: use a smaller vocabulary, or more text."
        ]
    return []


def _long(card: Mapping[str, Any]) -> str:
    longest = [one for one in card["ids"]["longest"] if one["bytes"] > LONG]
    if not longest:
        return ""
    shown = longest[0]["text"][:SHOWN] + ("…" if len(longest[0]["text"]) > SHOWN else "")
    return f"The longest token has {longest[0]['bytes']:,} bytes, {shown} : is that text, or boilerplate?"
