"""The vocabulary's card as a page: is this tokenizer one for this text? One HTML file that loads nothing; Markdown.

How many bytes a token carries and how many tokens a word takes, in each source; what is unknown or written in bytes;
which ids are long, rare or never used; and sentences as the tokenizer cuts them. The data: vocabulary_findings.py.

Texts and tokens come from somebody's data: they are escaped, and the page forbids scripts and loading anything.
The same card gives the same bytes: both pages are part of the artifact or made from it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from math import log
from typing import Any

from .sheet import (
    CUT_STYLE,
    bars,
    bytes_of,
    columns,
    in_html,
    in_markdown,
    name_of,
    page,
    section,
    share,
    short,
    table_in_markdown,
)
from .vocabulary_findings import card
from .vocabulary_remarks import per, remarks, untrained

__all__ = ["card", "markdown", "render"]

LISTED = 20
"""Sources in Markdown and in the charts."""
TOLD = 8
"""Sentences in Markdown."""
WIDEST = 24
"""Columns of the picture of lengths; longer tokens share the last one."""


def render(card: Mapping[str, Any]) -> str:
    """The page, as one HTML file."""
    parts = [
        _head(card),
        _remarks(card),
        section("The text, cut up", _samples(card["samples"])),
        section("By source", _sources(card)),
        section("What became of the ids", _ids(card)),
        '<div class="columns">',
        section("How long tokens are", _lengths(card["ids"]["lengths"])),
        section("How often tokens occur", _ranks(card)),
        section("The longest tokens", _longest(card["ids"]["longest"])),
        section("Tokens hardly seen", _hardly(card["ids"])),
        "</div>",
        section("Special ids", _special(card["vocabulary"])),
        section("Settings", _settings(card)),
    ]
    return page("\n".join(filter(None, parts)), "Vocabulary card", CUT_STYLE)


def _head(card: Mapping[str, Any]) -> str:
    vocabulary, totals = card["vocabulary"], card["totals"]
    tiles = [
        (f"{vocabulary['size']:,}", f"ids, {in_html(_kind(vocabulary))}"),
        (per(totals, "bytes", "tokens"), "bytes per token"),
        (per(totals, "tokens", "words"), "tokens per word"),
        (share(totals.get("words_of_one_token", 0), totals.get("words", 0)), "of the words are one token"),
        (share(totals.get("unknown", 0), totals.get("tokens", 0)), "of the tokens are unknown"),
        (share(totals.get("characters_broken", 0), totals.get("characters", 0)), "of the characters have no token"),
    ]
    shown = "".join(f"<div><b>{number}</b><span>{what}</span></div>" for number, what in tiles)
    return (
        f'<h1>Vocabulary card</h1>\n<div class="tiles">{shown}</div>\n<p class="notes">{_sample(card)}{_lost(card)}</p>'
    )


def _kind(vocabulary: Mapping[str, Any]) -> str:
    """What a person calls the model."""
    return str(vocabulary.get("kind") or vocabulary["model"])


def _sample(card: Mapping[str, Any]) -> str:
    """What the figures are measured on."""
    totals = card["totals"]
    documents, size = totals.get("documents", 0), bytes_of(totals.get("bytes", 0))
    if totals["whole"]:
        return (
            f"Measured on the whole train split: {documents:,} documents, {size}, {totals.get('tokens', 0):,} tokens."
        )
    return (
        f"Measured on {documents:,} train documents that the hash in their id picks: {size} of about "
        f"{bytes_of(totals['train_bytes'])}, {totals['tokens']:,} tokens; the same amount of every source that has so "
        "much. A word is a run of characters without white space."
    )


def _lost(card: Mapping[str, Any]) -> str:
    """Of a tokenizer that drops white space or changes text: how much of the text its tokens stand for."""
    totals = card["totals"]
    if totals.get("bytes_of_tokens", 0) >= totals.get("bytes", 0):
        return ""
    said = share(totals["bytes_of_tokens"], totals["bytes"])
    return f" The tokens stand for {said} of its bytes: this tokenizer drops or changes the rest."


def _remarks(card: Mapping[str, Any]) -> str:
    found = remarks(card)
    if not found:
        return '<p class="calm">Nothing stands out. Read the sentences all the same.</p>'
    return section("Look at this first", "<ul>" + "".join(f"<li>{in_html(remark)}</li>" for remark in found) + "</ul>")


def _samples(samples: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for one in samples:
        spans = "".join(
            f'<span class="t{number % 4} {in_html(kind)}" title="{token}">{in_html(text)}</span>'
            for number, (token, text, kind) in enumerate(one["tokens"])
        )
        size = len(one["tokens"])
        said = f"{name_of(one['file'] or one['source'])} · {size:,} token{'' if size == 1 else 's'}"
        lines.append(f'<figure><div class="cut" dir="auto">{spans}</div><figcaption>{said}</figcaption></figure>')
    legend = (
        "<p>A colour is a token. ␣ space, ↵ end of line, ⟨ ⟩ bytes of a character or a character without a shape.</p>"
    )
    return legend + "\n".join(lines) if lines else ""


def _sources(card: Mapping[str, Any]) -> str:
    there = [one for one in card["sources"] if one["tokens"]]
    shown = there[:LISTED]
    blocks = "".join(
        f"<div><h4>{title}</h4>"
        + bars((name_of(one["name"]), one[above] / max(1, one[below]), per(one, above, below), "kept") for one in shown)
        + "</div>"
        for title, above, below in (("Bytes per token", "bytes", "tokens"), ("Tokens per word", "tokens", "words"))
    )
    rest = f"<p>and {len(there) - LISTED} more sources; the table has them.</p>" if len(there) > LISTED else ""
    head = "".join(f"<th>{title}</th>" for title in _HEAD)
    rows = "".join(
        f"<tr><th>{name_of(one['name'])}</th>{''.join(f'<td>{cell}</td>' for cell in _cells(one))}</tr>"
        for one in card["sources"]
    )
    table = f'<div class="wide"><table><tr>{head}</tr>{rows}</table></div>' if rows else ""
    return f'<div class="columns">{blocks}</div>{rest}{table}' if shown else table


_HEAD = (
    "source",
    "measured",
    "of about",
    "bytes per token",
    "tokens per word",
    "words of one token",
    "characters without a token",
    "unknown",
)


def _cells(one: Mapping[str, Any]) -> list[str]:
    return [
        bytes_of(one["bytes"]),
        bytes_of(one["train_bytes"]),
        per(one, "bytes", "tokens"),
        per(one, "tokens", "words"),
        share(one["words_of_one_token"], one["words"]),
        share(one["characters_broken"], one["characters"]),
        share(one["unknown"], one["tokens"]),
    ]


def _ids(card: Mapping[str, Any]) -> str:
    ids, vocabulary = card["ids"], card["vocabulary"]
    below = ids["rare_below"]
    other = vocabulary["size"] - ids["ordinary"]
    parts = [
        ("kept", f"{below} times or more in training", ids["ordinary"] - ids["unused"] - ids["rare"]),
        ("copies", f"less often than {below} times", ids["rare"]),
        ("damaged", "not in the sample", ids["unused"] - ids["unused_single"]),
        ("left_out", "not in the sample, single bytes and characters", ids["unused_single"]),
        ("cleaned", "special, reserved, or no part of text", other),
    ]
    parts = [part for part in parts if part[2]]
    bar = "".join(
        f'<i class="{kind}" style="flex:{number} 1 0" title="{said}: {number:,}"></i>' for kind, said, number in parts
    )
    legend = "".join(
        f'<li><i class="{kind}"></i>{said} <b>{number:,}</b> {share(number, vocabulary["size"])}</li>'
        for kind, said, number in parts
    )
    told = ", ".join(f"{said} {number:,}" for _, said, number in parts)
    how = "" if card["totals"]["whole"] else " How often training meets an id is reckoned from the sample, by source."
    return (
        f'<div class="fates" role="img" aria-label="{told}">{bar}</div><ul class="legend">{legend}</ul>'
        f"<p>In the sample itself {ids['rare_in_sample']:,} ids occur, but less often than {below} times.{how}</p>"
    )


def _lengths(lengths: Sequence[Sequence[int]]) -> str:
    """Columns, one for each length in bytes."""
    if not lengths:
        return ""
    last = min(WIDEST, lengths[-1][0])
    of = {size: [0, 0] for size in range(lengths[0][0], last + 1)}
    for size, ids, occurrences in lengths:
        one = of[min(size, last)]
        one[0], one[1] = one[0] + ids, one[1] + occurrences
    most = max(ids for ids, _ in of.values())
    more = lengths[-1][0] > last
    shown = columns(
        (
            (f"{size}{'+' if more and size == last else ''}" if size % 4 == 0 or size == 1 else ""),
            ids / most,
            f"{size}{' or more' if more and size == last else ''} bytes: {ids:,} ids, {occurrences:,}× in the sample",
            "kept",
        )
        for size, (ids, occurrences) in of.items()
    )
    return shown + f"<p>bytes of text an id stands for; the longest {lengths[-1][0]:,}</p>"


def _ranks(card: Mapping[str, Any]) -> str:
    """Columns at ranks that grow by √2; heights are logarithms as well, so that Zipf's law is a straight line."""
    ranks, half = card["ids"]["ranks"], card["ids"]["half"]
    most = max((count for _, count in ranks), default=0)
    if not most:
        return ""
    shown = columns(
        (
            short(rank) if rank.bit_count() == 1 and rank.bit_length() % 2 else "",
            log(1 + count) / log(1 + most),
            f"the token of rank {rank:,} occurs {count:,} times",
            "kept",
        )
        for rank, count in ranks
    )
    return (
        f"{shown}<p>tokens by rank; heights by the logarithm, from {most:,} times downwards. Half of the text is the "
        f"{half:,} most frequent of them.</p>"
    )


def _longest(longest: Sequence[Mapping[str, Any]]) -> str:
    return _listed((one["text"], f"{one['bytes']:,} bytes · {one['count']:,}×") for one in longest)


def _hardly(ids: Mapping[str, Any]) -> str:
    blocks = []
    if ids["unused_examples"]:
        shown = _listed((one["text"], "") for one in ids["unused_examples"])
        blocks.append(f"<h4>not in the sample, of {ids['unused'] - ids['unused_single']:,}</h4>{shown}")
    if ids["rare_examples"]:
        shown = _listed((one["text"], f"{one['count']:,}×") for one in ids["rare_examples"])
        title = f"less often than {ids['rare_below']} times in training, of {ids['rare']:,}; × in the sample"
        blocks.append(f"<h4>{title}</h4>{shown}")
    return "".join(blocks) or "<p>None.</p>"


def _listed(rows: Iterable[tuple[str, str]]) -> str:
    lines = "".join(
        f"<li><span>{in_html(text)}</span>{f'<small>{in_html(said)}</small>' if said else ''}</li>"
        for text, said in rows
    )
    return f'<ul class="ids">{lines}</ul>' if lines else ""


def _special(vocabulary: Mapping[str, Any]) -> str:
    rows = _listed((one["text"], f"{one['name']}, id {one['id']:,}") for one in vocabulary["special"])
    spans = ", ".join(f"{first:,} to {end - 1:,}" for first, end in vocabulary["ordinary"] if end > first)
    reserved = f"{vocabulary['reserved']:,} ids are reserved. " if vocabulary.get("reserved") else ""
    return f"{rows}<p>{reserved}Ids of text: {spans or 'none'}.</p>"


def _settings(card: Mapping[str, Any]) -> str:
    facts = {
        name: value for name, value in card["vocabulary"].items() if name not in ("special", "ordinary", "reserved")
    }
    rows = "".join(
        f"<tr><th>{in_html(name)}</th><td>{in_html(json.dumps(value, ensure_ascii=False))}</td></tr>"
        for name, value in [*sorted(facts.items()), *sorted(card["settings"].items())]
    )
    return f"<details><summary>{len(facts) + len(card['settings'])} settings</summary><table>{rows}</table></details>"


def markdown(card: Mapping[str, Any]) -> str:
    """The same in short, for places that show Markdown; of bounded length however many sources there are."""
    totals, ids, vocabulary = card["totals"], card["ids"], card["vocabulary"]
    lines = [
        f"**{vocabulary['size']:,} ids** ({in_markdown(_kind(vocabulary))}), **{per(totals, 'bytes', 'tokens')} "
        f"bytes per token**, {per(totals, 'tokens', 'words')} tokens per word, "
        f"{share(totals.get('words_of_one_token', 0), totals.get('words', 0))} of the words are one token, "
        f"{share(totals.get('unknown', 0), totals.get('tokens', 0))} unknown",
        "",
        _sample(card) + _lost(card),
        "",
        *(f"- {in_markdown(remark)}" for remark in remarks(card)[:LISTED]),
        "",
        *table_in_markdown(_HEAD, [[in_markdown(one["name"]), *_cells(one)] for one in card["sources"][:LISTED]]),
    ]
    if len(card["sources"]) > LISTED:
        lines.append(f"and {len(card['sources']) - LISTED} more sources\n")
    hardly = untrained(card)
    lines += [
        f"{hardly:,} of {ids['ordinary']:,} ids of text occur less often than {ids['rare_below']} times in training, "
        f"{ids['unused']:,} of them never in the sample.",
        "",
    ]
    if ids["longest"]:
        lines += ["Longest: " + " ".join(f"“{in_markdown(one['text'])}”" for one in ids["longest"][:LISTED]), ""]
    for one in card["samples"][:TOLD]:
        cut = " ¦ ".join(in_markdown(text) for _, text, _ in one["tokens"])
        lines.append(f"> {cut} ({in_markdown(one['file'] or one['source'])})\n")
    return "\n".join(lines)
