"""The visual vocabulary's card: which codes there are, how often they occur, and what they make of images.

One HTML page that loads nothing, its pictures inside; the same in short as Markdown. Same codebook, same bytes.
"""

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .sheet import POLICY, columns, in_html, in_markdown, page, section, share, table_in_markdown

PAIRS = 16
"""Images shown beside what their codes make of them."""
SHOWN = 2048
"""Codes in the picture; of a larger codebook every second, third … is shown."""
RARE = 100
"""A code that training meets less often is learnt badly."""
LARGE = 40
"""Side of a code in the picture, in pixels of the page."""
BARS = 40
_STYLE = f"""
.codes, .pairs {{ display: flex; flex-wrap: wrap; gap: .5rem .35rem; list-style: none; padding: 0; margin: .5rem 0; }}
.codes i, .pairs i {{ display: block; border: 1px solid var(--line); box-sizing: content-box;
  image-rendering: pixelated; background: var(--picture) padding-box no-repeat; background-size: var(--size); }}
.codes i {{ width: {LARGE}px; height: {LARGE}px; }} .pairs i {{ width: var(--wide); height: var(--high); }}
.codes {{ display: grid; grid-template-columns: repeat(auto-fill, 3rem); }} .codes i {{ margin: auto; }}
.codes li, .pairs li {{ font-size: .7rem; line-height: 1.3; text-align: center; color: var(--soft); }}
.codes b {{ color: var(--ink); font-weight: 600; display: block; }} .codes .dead b {{ color: var(--damaged); }}
"""


def quality(counts_K: NDArray[np.int64], squares: int, width: int) -> dict[str, Any]:
    """What is known of a split whose patches are replaced by codes.

    counts_K  how many of its patches have each code
    squares   errors of its pixels, squared and summed
    width     P: pixel values of a patch

    usage is the share of codes that occur; entropy of the codes in nats, perplexity its exponential; mse in squares of
    pixel values 0..255, psnr = 10·log10(255²/mse) in decibels. None where a number is not defined: of no patches, or
    the PSNR of no error. Rounded, so that no machine's logarithm shows in them.
    """
    patches, used = int(counts_K.sum()), int((counts_K > 0).sum())
    page: dict[str, Any] = {"patches": patches, "used": used, "usage": round(used / len(counts_K), 6)}
    if not patches:
        return page | dict.fromkeys(("entropy", "perplexity", "commonest", "mse", "psnr"))
    parts = [number / patches for number in counts_K.tolist() if number]
    entropy = -math.fsum(part * math.log(part) for part in parts)
    mse = squares / (patches * width)
    return page | {
        "entropy": abs(round(entropy, 6)),
        "perplexity": round(math.exp(entropy), 3),
        "commonest": round(max(parts), 6),
        "mse": round(mse, 6),
        "psnr": round(10 * math.log10(255**2 / mse), 4) if mse else None,
    }


def card(
    facts: Mapping[str, Any], image: Mapping[str, int], settings: Mapping[str, Any], counts: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
    """The card as data.

    facts     of the vocabulary's manifest
    image     height, width, channels
    settings  of the stage
    counts    split -> how often each code occurs in it, of "train" and "validation"
    """
    train, first = counts["train"], facts["ordinary"][0][0]
    return {
        "vocabulary": dict(facts),
        "image": dict(image),
        "settings": dict(settings),
        "counts": {name: list(numbers) for name, numbers in counts.items()},
        "dead": [first + code for code, number in enumerate(train) if not number],
        "rare": sum(0 < number < RARE for number in train),
        "rare_below": RARE,
        "train_only": sum(bool(a and not b) for a, b in zip(train, counts["validation"])),
    }


def remarks(card: Mapping[str, Any]) -> list[str]:
    """What a person should look at first, in plain sentences; an empty list where nothing stands out."""
    vocabulary, found = card["vocabulary"], []
    train, held = vocabulary["quality"]["train"], vocabulary["quality"]["validation"]
    number = len(card["counts"]["train"])
    if vocabulary["tokens"] < vocabulary["asked"]:
        found.append(
            f"The corpus is too small for {vocabulary['asked']:,} tokens: it has no more than {number:,} different "
            "patches, and each is a code."
        )
    if card["dead"]:
        found.append(f"{len(card['dead']):,} of {number:,} codes are dead: no patch of the train split has them.")
    if card["rare"] * 10 > number:
        found.append(
            f"{card['rare']:,} of {number:,} codes occur less often than {RARE} times in training; a smaller "
            "vocabulary.size would do."
        )
    if train["commonest"] > 0.3:
        found.append(
            f"One code is {100 * train['commonest']:.0f} % of all patches: whoever always says it is right as often, "
            "so read every accuracy beside that."
        )
    if not held["patches"]:
        found.append("No image is in the validation split: nothing says how well the codes fit other images.")
    elif held["mse"] > 1.2 * train["mse"]:
        found.append(
            f"The error on the validation split is {held['mse'] / train['mse'] - 1:.0%} above that on the train split: "
            "the codes fit the images that they were learnt from; use more images or fewer codes."
            if train["mse"]
            else "The train split is reproduced exactly, the validation split is not; use more images."
        )
    return found


def render(
    card: Mapping[str, Any], codebook_KP: NDArray[np.uint8], pairs: Sequence[Sequence[NDArray[np.uint8]]]
) -> str:
    """The page, as one HTML file. `pairs`: some images (H, W, C), and each as its codes have it."""
    held = card["counts"]["validation"]
    whose = "images of the validation split" if any(held) else "images of the train split"
    parts = [
        _head(card),
        _remarks(card),
        section("Images and their codes", _pairs(pairs, whose)),
        section("How well they fit", _table(card)),
        section("How often codes occur", _ranks(card["counts"]["train"])),
        section("The codes", _codes(card, codebook_KP)),
        section("Settings", _settings(card)),
    ]
    return page("\n".join(filter(None, parts)), "Visual vocabulary card", _STYLE, f"{POLICY}; img-src data:")


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _head(card: Mapping[str, Any]) -> str:
    vocabulary, image = card["vocabulary"], card["image"]
    train, held = vocabulary["quality"]["train"], vocabulary["quality"]["validation"]
    payload, number = vocabulary["payload"], len(card["counts"]["train"])
    measured = held if held["patches"] else train
    tiles = [
        (f"{number:,}", f"codes of {payload['patch']} × {payload['patch']} pixels"),
        (f"{payload['grid'][0]} × {payload['grid'][1]}", "patches of an image"),
        (share(train["used"], number), "of the codes occur in training"),
        (_number(measured["perplexity"], 1), "perplexity of the codes"),
        (_number(measured["mse"], 1), "mean squared error, of 0..255"),
        (f"{_number(measured['psnr'], 1)} dB", "peak signal to noise"),
    ]
    shown = "".join(f"<div><b>{figure}</b><span>{what}</span></div>" for figure, what in tiles)
    sample = vocabulary["sample"]
    told = "all of them" if sample["whole"] else "of images that the hash of their pixels picks"
    colour = "grey" if image["channels"] == 1 else "colour"
    return (
        f'<h1>Visual vocabulary card</h1>\n<div class="tiles">{shown}</div>\n<p class="notes">'
        f"{image['height']} × {image['width']} pixels in {colour}. Learnt from {sample['patches']:,} patches of the "
        f"train split, {told}. Measured on {train['patches']:,} patches of the train split and {held['patches']:,} of "
        f"the validation split; the tiles are of the {'validation' if measured is held else 'train'} split.</p>"
    )


def _remarks(card: Mapping[str, Any]) -> str:
    found = remarks(card)
    if not found:
        return '<p class="calm">Nothing stands out. Look at the images all the same.</p>'
    return section("Look at this first", "<ul>" + "".join(f"<li>{in_html(remark)}</li>" for remark in found) + "</ul>")


def _codes(card: Mapping[str, Any], codebook_KP: NDArray[np.uint8]) -> str:
    """All codes in one picture, cut up by style: an item for each, with its id and how often it occurs."""
    payload, counts = card["vocabulary"]["payload"], card["counts"]["train"]
    first = card["vocabulary"]["ordinary"][0][0]
    step = -(-len(codebook_KP) // SHOWN)
    codes = np.arange(0, len(codebook_KP), step)
    side, across = payload["patch"], math.isqrt(len(codes) - 1) + 1
    picture = np.zeros((-(-len(codes) // across) * across, *(side, side, payload["channels"])), np.uint8)
    picture[: len(codes)] = codebook_KP[codes].reshape(-1, side, side, payload["channels"])
    wide = picture.reshape(-1, across, side, side, payload["channels"]).transpose(0, 2, 1, 3, 4)
    items = [
        f'<li{"" if counts[code] else " class=dead"} title="id {first + code}: {counts[code]:,} times in training">'
        f'<i style="background-position:{-LARGE * (at % across)}px {-LARGE * (at // across)}px"></i>'
        f"<b>{first + code}</b>{_times(counts[code])}</li>"
        for at, code in enumerate(codes.tolist())
    ]
    style = (
        f"--picture:url({_data(wide.reshape(-1, across * side, payload['channels']))});--size:{LARGE * across}px auto"
    )
    which = "" if step == 1 else f" One in {step} of {len(codebook_KP):,} is shown."
    return (
        f"<p>By brightness, then by bytes. Below each its id, and how often it occurs in the train split.{which}</p>"
        f'<ul class="codes" style="{style}">{"".join(items)}</ul>'
    )


def _times(number: int) -> str:
    """12,345 or 1.2M: no wider than a code."""
    return f"{number:,}" if number < 10**6 else f"{number / 10**6:.1f}M"


def _pairs(pairs: Sequence[Sequence[NDArray[np.uint8]]], whose: str) -> str:
    """Originals above, reconstructions below, in one picture."""
    if not pairs:
        return ""
    height, width, _ = pairs[0][0].shape
    scale = max(1, 96 // max(height, width))
    both = [np.concatenate(list(row), axis=1) for row in zip(*pairs)]
    tall, wide = 2 * height * scale, width * scale
    style = (
        f"--picture:url({_data(np.concatenate(both))});--size:{wide * len(pairs)}px {tall}px;--wide:{wide}px;"
        f"--high:{tall}px"
    )
    items = "".join(
        f'<li><i role="img" aria-label="image {at + 1} and its codes" style="background-position:{-wide * at}px 0"></i>'
        "</li>"
        for at in range(len(pairs))
    )
    return f'<p>Above, {whose}; below, what their codes stand for.</p><ul class="pairs" style="{style}">{items}</ul>'


def _data(pixels_HWC: NDArray[np.uint8]) -> str:
    """A picture as the address of itself."""
    from PIL import Image

    grey = pixels_HWC.shape[2] == 1
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC[:, :, 0] if grey else pixels_HWC).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


_HEAD = ("split", "patches", "codes that occur", "perplexity", "commonest code", "mean squared error", "PSNR, dB")


def _rows(card: Mapping[str, Any]) -> list[list[str]]:
    number = len(card["counts"]["train"])
    return [
        [
            name,
            f"{one['patches']:,}",
            f"{one['used']:,} ({share(one['used'], number)})",
            _number(one["perplexity"], 1),
            "–" if one["commonest"] is None else f"{100 * one['commonest']:.1f} %",
            _number(one["mse"]),
            _number(one["psnr"]),
        ]
        for name, one in card["vocabulary"]["quality"].items()
    ]


def _table(card: Mapping[str, Any]) -> str:
    head = "".join(f"<th>{title}</th>" for title in _HEAD)
    rows = "".join(
        f"<tr><th>{name}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" for name, *cells in _rows(card)
    )
    return (
        f'<div class="wide"><table><tr>{head}</tr>{rows}</table></div><p>Whoever names one '
        "code for each patch comes no nearer to the pixels than this error.</p>"
    )


def _ranks(counts: Sequence[int]) -> str:
    """Columns of the codes by rank; heights are logarithms."""
    ranked = sorted(counts, reverse=True)
    most, step = max(ranked), -(-len(ranked) // BARS)
    shown = columns(
        (
            f"{rank + 1}" if rank // step % 8 == 0 else "",
            math.log(1 + ranked[rank]) / math.log(1 + most),
            f"the code of rank {rank + 1:,} occurs {ranked[rank]:,} times",
            "kept",
        )
        for rank in range(0, len(ranked), step)
    )
    return f"{shown}<p>codes by rank; heights by the logarithm, from {most:,} times downwards</p>"


def _settings(card: Mapping[str, Any]) -> str:
    facts = {name: value for name, value in card["vocabulary"].items() if name not in ("quality", "reserved")}
    rows = "".join(
        f"<tr><th>{in_html(name)}</th><td>{in_html(json.dumps(value, ensure_ascii=False))}</td></tr>"
        for name, value in [*sorted(facts.items()), *sorted(card["settings"].items())]
    )
    return f"<details><summary>{len(facts) + len(card['settings'])} settings</summary><table>{rows}</table></details>"


def markdown(card: Mapping[str, Any]) -> str:
    """The same in short, for places that show Markdown."""
    payload, number = card["vocabulary"]["payload"], len(card["counts"]["train"])
    lines = [
        f"**{number:,} codes** of {payload['patch']} × {payload['patch']} pixels, {payload['grid'][0]} × "
        f"{payload['grid'][1]} of them an image; V = {card['vocabulary']['size']:,}.",
        "",
        *(f"- {in_markdown(remark)}" for remark in remarks(card)),
        "",
        *table_in_markdown(_HEAD, _rows(card)),
        f"{len(card['dead']):,} codes are dead; {card['rare']:,} occur less often than {card['rare_below']} times in "
        f"training; {card['train_only']:,} of the train split do not occur in the validation split.",
    ]
    return "\n".join(lines)
