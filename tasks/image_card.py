"""The card of a corpus of images, as data and as a page: are these the images that their owner meant?

What came in and what became of it, why images were refused, how many there are of each label in each split, and
samples of each label: the images whose hash is lowest, so that nobody picked them. One HTML file that loads nothing: a
sheet of samples stands in it as PNG. Names and labels come from somebody's data, so they are escaped.
"""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .image_decoding import Shape, pillow
from .image_merging import SAMPLES
from .image_units import pixels_of
from .remarks import fate, ranked
from .selection import SPLITS
from .sheet import POLICY, bars, bytes_of, in_html, in_markdown, name_of, page, section, share, table_in_markdown

LABELS = 40
"""Labels that are listed and shown; a card of more says so."""
SIDE = 96
"""Pixels of the longer side of a sample: larger images are thinned out."""
REASONS = 12
MEANINGS = {
    "archive_bomb": "unpacks to far more than it holds",
    "bad_checksum": "a flipped bit somewhere in a PNG",
    "broken_image": "its decoder cannot make sense of it",
    "broken_idx": "no IDX file of images",
    "broken_parquet": "a part of a Parquet file that cannot be read",
    "broken_tar": "something else where a member should begin",
    "duplicate": "the same pixels stand before it",
    "empty_file": "no image in it",
    "file_too_large": "more bytes than limits.file_bytes",
    "missing_key": "no such column; check image_key",
    "not_a_label": "the column label_key holds no labels",
    "not_an_image": "neither PNG nor JPEG",
    "null": "a row without an image",
    "too_many_members": "more members than limits.archive_members",
    "too_many_pixels": "more pixels than limits.pixels",
    "too_many_scans": "a JPEG that takes far too long to decode",
    "trailing_junk": "something follows the end",
    "truncated_archive": "ends before the archive does",
    "truncated_idx": "holds fewer images than it says",
    "truncated_image": "ends before the image does",
    "truncated_tar": "ends inside a member",
    "unreadable": "no permission, or a read error",
}
STYLE = """
.sheet { display: block; max-width: 100%; min-width: min(100%, 36rem); height: auto; image-rendering: pixelated; }
.samples figure { margin: .5rem 0 1rem; }
"""


def card(
    settings: Mapping[str, Any],
    shape: Shape,
    sources: Sequence[Mapping[str, Any]],
    pages: Sequence[Mapping[str, Any]],
    counts: Mapping[str, int],
    told: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The card as data; a pure function of what was read, so it is part of the artifact.

    told    what each part of the corpus says of itself (image_merging.py)
    """
    labels: dict[str, list[int]] = {}
    for part in told:
        for label, numbers in part["labels"].items():
            labels[label] = [a + b for a, b in zip(labels.get(label, [0] * len(SPLITS)), numbers)]
    return {
        "modality": "images",
        "totals": {key: value for key, value in counts.items() if not key.startswith("rejected_")},
        "image": {"height": shape.height, "width": shape.width, "channels": shape.channels},
        "labels": [{"label": label, **dict(zip(SPLITS, numbers))} for label, numbers in sorted(labels.items())],
        "sources": [dict(one) for one in sources],
        "books": [dict(one) for one in pages],
        "settings": dict(settings),
    }


def sheets(
    card: Mapping[str, Any], told: Sequence[Mapping[str, Any]], scratch: Path, totals: Mapping[str, int], shape: Shape
) -> dict[str, str]:
    """Label -> a row of its samples, as a data URL. `totals`: unit -> its number of images."""
    found = {}
    for one in card["labels"][:LABELS]:
        label = one["label"]
        some = sorted(sample for part in told for sample in part["samples"].get(label, []))[:SAMPLES]
        images = [pixels_of(scratch, unit, totals[unit], shape)[row] for _, unit, row in some]
        found[label] = _sheet(np.stack(images).reshape(-1, shape.height, shape.width, shape.channels))
    return found


def _sheet(images: NDArray[np.uint8]) -> str:
    step = -(-max(images.shape[1:3]) // SIDE)
    small = images[:, ::step, ::step]
    framed = np.pad(small, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=128)
    row = np.concatenate(list(framed), axis=1)
    file = io.BytesIO()
    pillow().fromarray(row[:, :, 0] if row.shape[2] == 1 else row).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def render(card: Mapping[str, Any], sheets: Mapping[str, str]) -> str:
    """The page, as one HTML file."""
    parts = [
        _head(card),
        section("Labels", _labels(card)),
        section("Samples", _samples(card, sheets)),
        section("Why images were refused or dropped", _reasons(card)),
        section("What was changed to fit", _changed(card)),
        section("Sources", _sources(card)),
        section("Settings", _settings(card)),
    ]
    body = "\n".join(filter(None, parts))
    return page(body, "Corpus card", STYLE).replace(POLICY, f"{POLICY}; img-src data:", 1)


def _shape_of(card: Mapping[str, Any]) -> str:
    image = card["image"]
    return str(Shape(image["height"], image["width"], image["channels"]))


def _head(card: Mapping[str, Any]) -> str:
    totals = card["totals"]
    kept, came = totals["documents_kept"], totals["documents_in"]
    labels = sum(1 for one in card["labels"] if one["label"])
    tiles = [
        (f"{kept:,}", f"images, {share(kept, came)} of {came:,}"),
        (_shape_of(card), "each, height × width"),
        (bytes_of(totals["bytes_kept"]), "of pixels"),
        (f"{labels:,}", "labels"),
    ]
    tiles += [
        (f"{totals.get(f'documents_{split}', 0):,}", f"to {use}")
        for split, use in (("train", "train on"), ("validation", "validate"), ("test", "test"))
    ]
    shown = "".join(f"<div><b>{number}</b><span>{what}</span></div>" for number, what in tiles)
    return f'<h1>Corpus card</h1>\n<div class="tiles">{shown}</div>'


def _label_name(label: str) -> str:
    return name_of(label) if label else "<i>no label</i>"


def _labels(card: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{_label_name(one['label'])}</th>" + "".join(f"<td>{one[split]:,}</td>" for split in SPLITS) + "</tr>"
        for one in card["labels"][:LABELS]
    )
    head = "<tr><th></th>" + "".join(f"<th>{split}</th>" for split in SPLITS) + "</tr>"
    rest = len(card["labels"]) - LABELS
    more = f"<p>and {rest:,} more labels; see card.json</p>" if rest > 0 else ""
    return f'<div class="wide"><table>{head}{rows}</table></div>{more}'


def _samples(card: Mapping[str, Any], sheets: Mapping[str, str]) -> str:
    rows = "".join(
        f'<figure><figcaption>{_label_name(label)}</figcaption><img class="sheet" alt="samples" src="{sheet}"></figure>'
        for label, sheet in sheets.items()
    )
    return f'<p>Images that a hash of their pixels picks.</p><div class="samples">{rows}</div>' if rows else ""


def _lost(card: Mapping[str, Any]) -> dict[str, list[int]]:
    lost: dict[str, list[int]] = {}
    for one in card["books"]:
        for reason, numbers in one["rejected"].items():
            there = lost.setdefault(reason, [0, 0])
            lost[reason] = [there[0] + numbers["documents"], there[1] + numbers["bytes"]]
    return lost


def _reasons(card: Mapping[str, Any]) -> str:
    lost, came = _lost(card), card["totals"]["documents_in"]
    rows = [
        (
            f"<code>{in_html(reason)}</code> {in_html(MEANINGS.get(reason, ''))}",
            number,
            f"{number:,} · {share(number, came)} · {bytes_of(lost[reason][1])}",
            fate(reason),
        )
        for reason, number in ranked({reason: numbers[0] for reason, numbers in lost.items()})
    ]
    return bars(rows[:REASONS]) or "<p>None was.</p>"


def _changed(card: Mapping[str, Any]) -> str:
    changed: dict[str, int] = {}
    for one in card["books"]:
        for step, number in one["changed"].items():
            changed[step] = changed.get(step, 0) + number
    came = card["totals"]["documents_in"]
    rows = [(in_html(step), n, f"{n:,} · {share(n, came)}", "filtered") for step, n in ranked(changed)]
    return bars(rows) or "<p>No image.</p>"


def _sources(card: Mapping[str, Any]) -> str:
    lines = []
    for source, books in zip(card["sources"], card["books"]):
        kept, came = books["documents_kept"], books["documents_in"]
        files = f"{source['files']:,} file{'' if source['files'] == 1 else 's'}"
        notes = " · ".join([files, name_of(source["licence"] or "no licence noted")])
        lines.append(
            f'<article><h3>{name_of(source["name"])}</h3><p class="notes">{notes}</p>'
            f"<p><b>{kept:,}</b> of {came:,} images kept ({share(kept, came)})</p></article>"
        )
    return "\n".join(lines)


def _settings(card: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{in_html(name)}</th><td>{in_html(json.dumps(value, ensure_ascii=False))}</td></tr>"
        for name, value in card["settings"].items()
    )
    return f"<details><summary>{len(card['settings'])} settings</summary><table>{rows}</table></details>"


def markdown(card: Mapping[str, Any]) -> str:
    """The same in short, for places that show Markdown; of bounded length however many labels there are."""
    totals = card["totals"]
    kept, came = totals["documents_kept"], totals["documents_in"]
    splits = ", ".join(f"{totals.get(f'documents_{split}', 0):,} {split}" for split in SPLITS)
    rows = [
        [in_markdown(one["label"] or "no label"), *(f"{one[split]:,}" for split in SPLITS)]
        for one in card["labels"][:LABELS]
    ]
    lines = [
        f"**{kept:,} images** ({share(kept, came)} of {came:,}) of {_shape_of(card)}, "
        f"**{bytes_of(totals['bytes_kept'])}** of pixels; {splits}",
        "",
        *table_in_markdown(["label", *SPLITS], rows),
    ]
    if len(card["labels"]) > LABELS:
        lines.append(f"\nand {len(card['labels']) - LABELS} more labels\n")
    reasons = [
        [in_markdown(reason), in_markdown(MEANINGS.get(reason, "")), f"{n:,}", share(n, came)]
        for reason, n in ranked({reason: numbers[0] for reason, numbers in _lost(card).items()})[:REASONS]
    ]
    lines += table_in_markdown(["refused because", "", "images", "share"], reasons)
    named = [
        f"{in_markdown(one['name'])} ({in_markdown(one['licence'] or 'no licence noted')})" for one in card["sources"]
    ]
    return "\n".join([*lines, f"Sources: {', '.join(named[:LABELS])}"])
