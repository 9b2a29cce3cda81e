"""The corpus card as a page: is this corpus what its owner meant? One HTML file that loads nothing, and short Markdown.

What came in and what became of it, why documents were dropped, how long they are, in which languages, what stood there
twice, and samples of the text itself; for the corpus and for each source. Bars are plain HTML with a width in per cent,
so that they need no script and no picture, follow the reader's light or dark scheme, and wrap on a narrow screen.

Every text on it comes from somebody's data. It is escaped, and the page forbids scripts and loading anything.
The same card gives the same bytes: both pages are part of the artifact or made from it.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .remarks import FATES, fate, fates, meaning, ranked, remarks, whole
from .sheet import bars, bytes_of, in_html, in_markdown, name_of, page, section, share, short, table_in_markdown

LANGUAGES = 8
REASONS = 12
OPEN = 6
"""A card with more sources shows their samples only when asked."""
QUOTED = 200
"""Characters of a sample in Markdown."""
LISTED = 20
"""Sources in Markdown."""


def render(card: Mapping[str, Any]) -> str:
    """The page, as one HTML file."""
    everything = whole(card)
    parts = [
        _head(card["totals"], everything),
        _remarks(card),
        section("Sources", _sources(card)),
        '<div class="columns">',
        section("Why documents were dropped", _reasons(everything["rejected"], everything["documents_in"])),
        section("How long documents are", _lengths(everything["lengths"])),
        section("Languages", _languages(everything)),
        section("What cleaning changed", _changed(everything)),
        "</div>",
        section("Copies", _copies(card["duplicates"])),
        section("Evaluation text", _leakage(card["leakage"])),
        section("The text itself", _samples(card["sources"])),
        section("Settings", _settings(card)),
    ]
    return page("\n".join(filter(None, parts)), "Corpus card")


def _fates(books: Mapping[str, Any], legend: bool) -> str:
    """One bar: what became of the text that came in, by bytes."""
    found = fates(books, "bytes")
    total = sum(found.values())
    segments = "".join(
        f'<i class="{name}" style="flex:{number} 1 0" title="{FATES[name]}: {bytes_of(number)}"></i>'
        for name, number in found.items()
    )
    said = ", ".join(f"{FATES[name]} {share(number, total)}" for name, number in found.items())
    bar = f'<div class="fates" role="img" aria-label="{said}">{segments}</div>'
    if not legend:
        return bar
    items = [
        f'<li><i class="{name}"></i>{FATES[name]} <b>{share(number, total)}</b> {bytes_of(number)}</li>'
        for name, number in found.items()
    ]
    return f'{bar}<ul class="legend">{"".join(items)}</ul>'


def _head(totals: Mapping[str, int], everything: Mapping[str, Any]) -> str:
    kept, came = totals["documents_kept"], totals["documents_in"]
    tiles = [
        (f"{kept:,}", f"documents, {share(kept, came)} of {came:,}"),
        (bytes_of(totals["bytes_kept"]), f"of text, {share(totals['bytes_kept'], totals['bytes_in'])} of what came in"),
        (f"{totals['characters_kept']:,}", "characters"),
    ]
    tiles += [
        (f"{totals.get(f'documents_{split}', 0):,}", f"to {use}")
        for split, use in (("train", "train on"), ("validation", "validate"), ("test", "test"))
    ]
    if totals.get("copies"):
        tiles.append((f"{totals['copies']:,}", "more in training, by weights above 1"))
    shown = "".join(f"<div><b>{number}</b><span>{what}</span></div>" for number, what in tiles)
    return f'<h1>Corpus card</h1>\n<div class="tiles">{shown}</div>\n{_fates(everything, legend=True)}'


def _remarks(card: Mapping[str, Any]) -> str:
    found = remarks(card)
    if not found:
        return '<p class="calm">Nothing stands out. Read the samples all the same.</p>'
    return section("Look at this first", "<ul>" + "".join(f"<li>{in_html(remark)}</li>" for remark in found) + "</ul>")


def _sources(card: Mapping[str, Any]) -> str:
    total = card["totals"]["bytes_kept"]
    return "\n".join(_source(source, total) for source in card["sources"])


def _source(source: Mapping[str, Any], total: int) -> str:
    kept, came = source["documents_kept"], source["documents_in"]
    files = f"{source['files']:,} file{'' if source['files'] == 1 else 's'}"
    notes = [] if source["kind"] == "files" else [source["kind"]]
    notes += [files, source["licence"] or "no licence noted"]
    notes += [f"weight {source['weight']}"] if str(source["weight"]) != "1" else []
    inner = [
        ("Why documents were dropped", _reasons(source["rejected"], came)),
        ("How long documents are", _lengths(source["lengths"])),
        ("Languages", _languages(source)),
        ("What cleaning changed", _changed(source)),
    ]
    blocks = "".join(f"<div><h4>{title}</h4>{body}</div>" for title, body in inner if body)
    return (
        f'<article><h3>{name_of(source["name"])}</h3><p class="notes">{" · ".join(name_of(note) for note in notes)}</p>'
        f"{_fates(source, legend=False)}"
        f"<p><b>{kept:,}</b> of {came:,} documents kept ({share(kept, came)}); {bytes_of(source['bytes_kept'])}, "
        f"<b>{share(source['bytes_kept'], total)}</b> of the corpus</p>"
        '<details><summary>reasons, lengths, languages</summary><div class="columns">'
        f"{blocks}</div></details></article>"
    )


def _reasons(rejected: Mapping[str, Mapping[str, int]], came: int) -> str:
    numbers = {reason: numbers["documents"] for reason, numbers in rejected.items()}
    rows = [
        (
            f"<code>{in_html(reason)}</code> {in_html(meaning(reason))}",
            number,
            f"{number:,} · {share(number, came)} · {bytes_of(rejected[reason]['bytes'])}",
            fate(reason),
        )
        for reason, number in ranked(numbers)
    ]
    rest = f"<p>and {len(rows) - REASONS} more reasons; see card.json</p>" if len(rows) > REASONS else ""
    return bars(rows[:REASONS]) + rest or "<p>None was.</p>"


def _lengths(lengths: Sequence[Sequence[int]]) -> str:
    """Columns, one for each doubling of the length; and between which lengths half of the documents lie."""
    if not lengths:
        return ""
    of = {start: documents for start, documents in lengths}  # noqa: C416
    starts = [1 << power for power in range(lengths[0][0].bit_length() - 1, lengths[-1][0].bit_length())]
    most, total = max(of.values()), sum(of.values())
    columns = "".join(
        f'<li title="{start:,} to {2 * start - 1:,} characters: {of.get(start, 0):,} documents">'
        f'<i class="kept" style="height:{100 * of.get(start, 0) / most:.2f}%"></i>'
        f"<span>{short(start) if number % (1 + len(starts) // 12) == 0 else ''}</span></li>"
        for number, start in enumerate(starts)
    )
    below, middle = 0, starts[0]
    for middle in starts:
        below += of.get(middle, 0)
        if 2 * below >= total:
            break
    return (
        f'<ul class="histogram">{columns}</ul>'
        f"<p>characters per document; the middle one has {middle:,} to {2 * middle - 1:,}</p>"
    )


def _languages(books: Mapping[str, Any]) -> str:
    found, looked = ranked(books["languages"]), books["languages_of"]
    if not found:
        return ""
    rows = [(f"<code>{in_html(code or '?')}</code>", n, f"{n:,} · {share(n, looked)}", "kept") for code, n in found]
    if len(rows) > LANGUAGES + 1:
        rest = sum(number for _, number in found[LANGUAGES:])
        said = f"{rest:,} · {share(rest, looked)}"
        rows[LANGUAGES:] = [(f"{len(found) - LANGUAGES} others", rest, said, "cleaned")]
    return bars(rows) + f"<p>as a model guesses, of {looked:,} of the kept documents</p>"


def _changed(books: Mapping[str, Any]) -> str:
    came = books["documents_in"]
    rows = [(in_html(step), n, f"{n:,} · {share(n, came)}", "filtered") for step, n in ranked(books["changed"])]
    return bars(rows) + "<p>documents that a step changed</p>" if rows else "<p>No document.</p>"


def _copies(found: Mapping[str, Any]) -> str:
    lines = [
        f"<p><b>{found['exact']:,}</b> equal to a document before, <b>{found['near']:,}</b> nearly equal to one, "
        f"<b>{found['near_heldout']:,}</b> nearly equal to a held-out one: dropped.</p>"
    ]
    if not found["enabled"]:
        return lines[0] + "<p>Near copies were not looked for (near_duplicates.enabled is false).</p>"
    lines.append(
        f"<p>Near copies: MinHash of {found['words']} words in a row, {found['bands']} bands of {found['rows']} rows, "
        f"similarity from {in_html(found['similarity'])} on. {found['clusters']:,} groups.</p>"
    )
    groups: dict[int, int] = {}
    for size, number in found["cluster_sizes"]:
        start = 1 << int(size).bit_length() - 1
        groups[start] = groups.get(start, 0) + number
    rows = [
        (
            f"{start:,}" + (f" to {2 * start - 1:,}" if start > 1 else "") + " documents",
            n,
            f"{n:,} group{'' if n == 1 else 's'}",
            "copies",
        )
        for start, n in sorted(groups.items())
    ]
    lines += [bars(rows), *(_cluster(one) for one in found["largest"])]
    return "\n".join(filter(None, lines))


def _cluster(one: Mapping[str, Any]) -> str:
    away = [f"<li>{_place(where)}</li>" for where in one["dropped"]]
    missing = one["size"] - 1 - len(away)
    away += [f"<li>and {missing:,} more</li>"] if missing > 0 else []
    return (
        f"<details><summary>{one['size']:,} × {_place(one['kept'])}</summary>{_quote(one['kept'])}"
        f"<p>nearly the same, in the same group:</p><ul>{''.join(away)}</ul></details>"
    )


def _place(where: Mapping[str, Any]) -> str:
    return f"{name_of(where['source'])} at {where['offset']:,}"


def _quote(sample: Mapping[str, Any]) -> str:
    return f'<blockquote dir="auto">{in_html(sample["text"])}</blockquote>'


def _leakage(found: Mapping[str, Any] | None) -> str:
    if not found:
        return ""
    rest = f" {found['short']:,} of its texts are too short to be looked for." if found["short"] else ""
    return (
        f"<p><b>{found['documents']:,}</b> documents share 13 words in a row with an evaluation file and were taken "
        f"out of training ({found['probes']:,} such runs of words were looked for).{rest}</p>"
    )


def _samples(sources: Sequence[Mapping[str, Any]]) -> str:
    shown = "open" if len(sources) <= OPEN else ""
    lines = []
    for source in sources:
        quotes = "".join(
            f"<figure>{_quote(sample)}<figcaption>{_place(sample)}</figcaption></figure>"
            for sample in source["samples"]
        )
        if quotes:
            lines.append(f"<details {shown}><summary>{name_of(source['name'])}</summary>{quotes}</details>")
    return "\n".join(lines) and "<p>Documents that a hash of their text picks.</p>\n" + "\n".join(lines)


def _settings(card: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{in_html(name)}</th><td>{in_html(json.dumps(value, ensure_ascii=False))}</td></tr>"
        for name, value in card["settings"].items()
    )
    return f"<details><summary>{len(card['settings'])} settings</summary><table>{rows}</table></details>"


def markdown(card: Mapping[str, Any]) -> str:
    """The same in short, for places that show Markdown; of bounded length however many sources there are."""
    totals, everything = card["totals"], whole(card)
    kept, came = totals["documents_kept"], totals["documents_in"]
    splits = ", ".join(f"{totals.get(f'documents_{split}', 0):,} {split}" for split in ("train", "validation", "test"))
    rows = [_row(source, totals["bytes_kept"]) for source in card["sources"][:LISTED]]
    lines = [
        f"**{kept:,} documents** ({share(kept, came)} of {came:,}), **{bytes_of(totals['bytes_kept'])}** of text, "
        f"{totals['characters_kept']:,} characters; {splits}",
        "",
        *(f"- {in_markdown(remark)}" for remark in remarks(card)[:LISTED]),
        "",
        *table_in_markdown(["source", "kept", "of", "text", "share", "licence"], rows),
    ]
    if len(card["sources"]) > LISTED:
        lines.append(f"\nand {len(card['sources']) - LISTED} more sources\n")
    rejected = {reason: numbers["documents"] for reason, numbers in everything["rejected"].items()}
    reasons = [
        [in_markdown(reason), in_markdown(meaning(reason)), f"{n:,}", share(n, came)]
        for reason, n in ranked(rejected)[:REASONS]
    ]
    lines += table_in_markdown(["dropped because", "", "documents", "share"], reasons)
    looked = everything["languages_of"]
    found = [f"{in_markdown(code)} {share(n, looked)}" for code, n in ranked(everything["languages"])[:LANGUAGES]]
    lines += [f"Languages, of {looked:,} documents: {', '.join(found)}", ""] if found else []
    samples = [source["samples"][0] for source in card["sources"][:LISTED] if source["samples"]]
    lines += [f"> “{in_markdown(one['text'][:QUOTED])} …” ({in_markdown(one['source'])})\n" for one in samples]
    return "\n".join(lines)


def _row(source: Mapping[str, Any], total: int) -> list[str]:
    size = source["bytes_kept"]
    numbers = [f"{source['documents_kept']:,}", f"{source['documents_in']:,}", bytes_of(size), share(size, total)]
    return [in_markdown(source["name"]), *numbers, in_markdown(source["licence"])]
