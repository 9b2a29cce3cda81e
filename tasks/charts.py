"""Pictures of figures, drawn as text: SVG and HTML that need no library, no script, and no file beside the page.

A line keeps its width and a word its size at any width of the page: only the area between the axes stretches. Colours
are those that the colour-blind tell apart (sheet.py), and a mark's shape says the same as its colour. Every number that
is drawn can also be read, in a title or beside the picture. Same figures, same bytes.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .sheet import in_html

MARKS = 4
"""Shapes that are told apart; a fifth model looks like the first."""
MOST_POINTS = 400
"""Of a line; more are thinned out, its ends kept."""
NEAR = 0.07
"""Part of the height within which the words of two level lines would cover each other: they share a line."""

STYLE = """
:root { --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #cc79a7; --base: #7b838d; }
@media (prefers-color-scheme: dark) { :root { --c0: #4aa8e8; --c1: #f0813a; --c2: #2cc197; --c3: #dd97bf;
  --base: #98a2ad; } }
.plot { padding: 1.6rem .75rem 2.8rem 3.4rem; position: relative; }
.plot .area { position: relative; height: 17rem; border-left: 1px solid var(--line);
  border-bottom: 1px solid var(--line); }
.plot.square { max-width: 21rem; } .plot.square .area { height: auto; aspect-ratio: 1; }
.plot svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; }
.plot path, .plot line { fill: none; vector-effect: non-scaling-stroke; }
.plot .grid { stroke: var(--line); stroke-width: 1; } .plot .level { stroke: var(--base); stroke-width: 1.5;
  stroke-dasharray: 6 4; }
.plot .line { stroke-width: 1.75; stroke-linejoin: round; } .plot .point { stroke-linecap: round; }
.plot span { position: absolute; font-size: .75rem; line-height: 1.2; color: var(--soft); white-space: nowrap; }
.plot .y { right: 100%; margin-right: .4rem; transform: translateY(-50%); }
.plot .x { top: 100%; margin-top: .3rem; transform: translateX(-50%); }
.plot .what { bottom: .4rem; inset-inline: 0; text-align: center; }
.plot .up { top: 0; left: .5rem; }
.plot .said { right: .3rem; max-width: 100%; overflow: hidden; text-overflow: ellipsis; transform: translateY(-115%);
  color: var(--ink); background: color-mix(in srgb, var(--paper) 80%, transparent); }
.s0 { stroke: var(--c0); } .s1 { stroke: var(--c1); } .s2 { stroke: var(--c2); } .s3 { stroke: var(--c3); }
.sb { stroke: var(--base); }
.dots { list-style: none; padding: 0; margin: .75rem 0; font-size: .9rem; }
.dots li { display: grid; grid-template-columns: 12rem minmax(0, 1fr) 12.5rem; column-gap: 1rem; align-items: center; }
.dots .label { overflow-wrap: anywhere; } .dots .number { white-space: nowrap; text-align: right;
  font-variant-numeric: tabular-nums; }
.track { position: relative; display: block; height: 1.5rem; }
.track::before { content: ""; position: absolute; inset: 50% 0 auto; border-top: 1px solid var(--line); }
.track i { position: absolute; }
.track .span { top: 50%; height: 4px; margin-top: -2px; border-radius: 2px; opacity: .45; min-width: 1px; }
.track .mark { top: 50%; width: .7rem; height: .7rem; margin: -.35rem; }
.m0, .m1, .m2, .m3 { background: var(--c); } .m0 { --c: var(--c0); } .m1 { --c: var(--c1); } .m2 { --c: var(--c2); }
.m3 { --c: var(--c3); } .mb { --c: var(--base); background: var(--paper); border: 2px solid var(--c); }
.span.m0, .span.m1, .span.m2, .span.m3, .span.mb { background: var(--c); border: 0; }
.mark.m0, .mark.mb { border-radius: 50%; } .mark.m2 { rotate: 45deg; scale: .9; }
.mark.m3 { clip-path: polygon(50% 0, 100% 100%, 0 100%); }
.legend i.mark { border-radius: 0; } .legend i.m0, .legend i.mb { border-radius: 50%; }
.dots .axis { color: var(--soft); font-size: .75rem; } .axis .track { height: 1.1rem; }
.axis .track::before { inset: 0 0 auto; }
.axis .track span { position: absolute; white-space: nowrap; top: .1rem; transform: translateX(-50%); }
td .track { min-width: 9rem; height: 1.2rem; }
.verdict { font-size: 1.1rem; color: var(--ink); max-width: 52rem; } .soft { color: var(--soft); }
.tiles.sets { grid-template-columns: repeat(auto-fill, minmax(12rem, 1fr)); } .tiles small { display: block; }
small { font-size: .8em; color: var(--soft); font-weight: 400; } a { color: var(--c0); }
h3 { margin: 1.5rem 0 .25rem; } section h2 + p { margin-top: 0; } figure.main { margin: 1rem 0; }
.wide { overflow-x: auto; margin: .5rem 0 1rem; } .wide table { width: auto; min-width: 100%; }
.wide th, .wide td { padding-right: 1.25rem; min-width: 4.5rem; } .wide td { font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }
.wide thead th { vertical-align: bottom; } .wide small { display: block; white-space: nowrap; }
.wide tbody th { min-width: 9rem; max-width: 18rem; position: sticky; left: 0; background: var(--paper); }
.figures .model th, .figures .model td { color: var(--ink); } .figures .model th { font-weight: 600; }
.figures .baseline td { color: var(--soft); } table.classes td { white-space: nowrap; }
.several { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr)); gap: 0 1.5rem; }
.several figcaption { padding-left: 3.4rem; } .plot .diagonal { stroke: var(--base); stroke-dasharray: 6 4; }
ul.notes { margin: 1rem 0; padding-left: 1.1rem; } ul.notes b { color: var(--ink); font-weight: 600; }
pre { overflow-x: auto; background: var(--track); border-radius: 6px; padding: .6rem .75rem; }
pre code { line-height: 1.6; }
dl { margin: .5rem 0; columns: 2 24rem; column-gap: 3rem; } dl div { break-inside: avoid; }
dt { font-weight: 600; } dd { margin: 0 0 .5rem; color: var(--soft); }
.guess { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; list-style: none; margin: .25rem 0 1rem; padding: 0;
  font-size: .9rem; } .guess b { font-weight: 600; } .guess span { color: var(--soft); }
@media print { section { break-inside: avoid; } }
@media (max-width: 44rem) {
  .dots li { grid-template-columns: minmax(0, 1fr) auto; row-gap: 0; padding-bottom: .3rem; }
  .dots .track { grid-column: 1 / -1; grid-row: 2; height: 1.1rem; }
}
"""


@dataclass(frozen=True)
class Scale:
    """Numbers as parts of a length, 0 to 1."""

    low: float
    high: float

    def at(self, value: float) -> float:
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))

    @property
    def ticks(self) -> list[float]:
        """Three to seven round numbers between the ends."""
        step = 10 ** math.floor(math.log10((self.high - self.low) / 3))
        step *= next(factor for factor in (5, 2, 1) if (self.high - self.low) / (factor * step) >= 3 - 1e-9)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


@dataclass(frozen=True)
class Line:
    """A curve: what it is called, points (x, y), and its colour: "s0" to "s3", or "sb" of a baseline."""

    label: str
    points: Sequence[tuple[float, float]]
    kind: str
    marked: bool = False
    """With a dot at each point."""
    said: Sequence[str] = ()
    """Of each dot, where it is marked."""


@dataclass(frozen=True)
class Dot:
    """A number on a track: "m0" to "m3" are models, "mb" is a baseline."""

    kind: str
    said: str
    value: float
    low: float | None = None
    high: float | None = None


def scale_of(values: Iterable[float | None], floor: float = -math.inf, ceiling: float = math.inf) -> Scale:
    """A scale that holds all finite numbers with some space around them, cut at floor and ceiling."""
    found = [value for value in values if value is not None and math.isfinite(value)]
    low, high = min(found, default=0.0), max(found, default=1.0)
    around = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    return Scale(max(floor, low - around), min(ceiling, high + around) if ceiling > low else high + around)


def kind_of(number: int | None) -> str:
    """The mark of the model with a number; None is a baseline."""
    return "b" if number is None else str(number % MARKS)


def plot(
    lines: Sequence[Line],
    levels: Mapping[str, float],
    scales: tuple[Scale, Scale],
    axes: tuple[str, str],
    write: tuple[Mapping[float, str] | None, str] = (None, "{:g}"),
    square: bool = False,
) -> str:
    """Curves over two axes, with level lines that carry their names.

    levels  a line's name -> its height; one outside the scale is left out
    scales  of x and y
    axes    what x and y are
    write   tick -> its name on the x axis (None: as y's), and the format of y's
    """
    x, y = scales
    names = write[0] if write[0] is not None else {tick: write[1].format(tick) for tick in x.ticks}
    parts = [_rule(0, 100 * (1 - y.at(tick)), 100, None, "grid") for tick in y.ticks]
    parts += [_rule(100 * x.at(tick), 0, None, 100, "grid") for tick in names]
    inside = {name: level for name, level in levels.items() if y.low <= level <= y.high}
    parts += [_rule(0, 100 * (1 - y.at(level)), 100, None, "level") for level in inside.values()]
    parts += [_curve(line, x, y) for line in lines]
    words = [
        f'<span class="y" style="top:{100 * (1 - y.at(tick)):.2f}%">{_tick(tick, write[1])}</span>' for tick in y.ticks
    ]
    words += [
        f'<span class="x" style="left:{100 * x.at(tick):.2f}%">{in_html(name)}</span>' for tick, name in names.items()
    ]
    words += [
        f'<span class="said" style="top:{100 * (1 - y.at(level)):.2f}%">{in_html(said)}</span>'
        for said, level in _together(inside, y)
    ]
    title = f"{in_html(axes[1])} by {in_html(axes[0])}"
    drawing = f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="{title}">'
    return (
        f'<div class="plot{" square" if square else ""}"><div class="area">{drawing}{"".join(parts)}</svg>'
        f'{"".join(words)}</div><span class="what">{in_html(axes[0])}</span>'
        f'<span class="up">{in_html(axes[1])}</span></div>'
    )


def _tick(tick: float, form: str) -> str:
    return in_html(form.format(tick + 0.0 if abs(tick) > 1e-12 else 0.0))


def _rule(x: float, y: float, right: float | None, bottom: float | None, kind: str) -> str:
    return (
        f'<line class="{kind}" x1="{x:.2f}" y1="{y:.2f}" x2="{x if right is None else right:.2f}" '
        f'y2="{y if bottom is None else bottom:.2f}"/>'
    )


def _curve(line: Line, x: Scale, y: Scale) -> str:
    points = [(number, *point) for number, point in enumerate(line.points) if all(map(math.isfinite, point))]
    points = thinned(points)
    places = [(100 * x.at(across), 100 * (1 - y.at(up))) for _, across, up in points]
    path = "M" + "L".join(f"{across:.2f} {down:.2f}" for across, down in places) if places else ""
    drawn = f'<path class="line {line.kind}" d="{path}"><title>{in_html(line.label)}</title></path>' if path else ""
    if line.marked:
        said = dict(enumerate(line.said))
        drawn += "".join(
            f'<path class="point {line.kind}" stroke-width="8" d="M{across:.2f} {down:.2f}h0.001">'
            f"<title>{in_html(said.get(number, line.label))}</title></path>"
            for (number, _, _), (across, down) in zip(points, places, strict=True)
        )
    return drawn


def thinned(points: Sequence[tuple]) -> list[tuple]:
    """At most about MOST_POINTS of them, evenly, the first and the last among them."""
    step = math.ceil(len(points) / MOST_POINTS)
    return [*points[: len(points) - 1 : step], *points[-1:]] if step > 1 else list(points)


def _together(levels: Mapping[str, float], y: Scale) -> list[tuple[str, float]]:
    """The words of level lines with their heights, the upper ones first; those too near to each other in one."""
    found: list[tuple[str, float]] = []
    for name, level in sorted(levels.items(), key=lambda item: (-item[1], item[0])):
        if found and y.at(found[-1][1]) - y.at(level) < NEAR:
            found[-1] = f"{found[-1][0]} · {name}", found[-1][1]
        else:
            found.append((name, level))
    return found


def track(dots: Iterable[Dot], scale: Scale) -> str:
    """Marks and their intervals on one line. What lies outside the scale is drawn at its end."""
    spans, marks = [], []
    for dot in dots:
        if not math.isfinite(dot.value):
            continue
        said = in_html(dot.said)
        if dot.low is not None and dot.high is not None and math.isfinite(dot.high - dot.low):
            left, right = 100 * scale.at(dot.low), 100 * scale.at(dot.high)
            spans.append(f'<i class="span m{dot.kind}" style="left:{left:.2f}%;width:{right - left:.2f}%"></i>')
        marks.append(f'<i class="mark m{dot.kind}" style="left:{100 * scale.at(dot.value):.2f}%" title="{said}"></i>')
    marks.reverse()  # the first is the model: it lies on top
    return f'<span class="track">{"".join(spans)}{"".join(marks)}</span>'


def dots(rows: Iterable[tuple[str, Dot, str]], scale: Scale, form: str) -> str:
    """One track a row: (label as HTML, its dot, the number as HTML), and an axis below; `form` writes its ticks."""
    lines = [
        f'<li><span class="label">{label}</span>{track([dot], scale)}<span class="number">{number}</span></li>'
        for label, dot, number in rows
    ]
    ticks = "".join(
        f'<span style="left:{100 * scale.at(tick):.2f}%">{_tick(tick, form)}</span>' for tick in scale.ticks
    )
    axis = f'<li class="axis" aria-hidden="true"><span></span><span class="track">{ticks}</span><span></span></li>'
    return f'<ul class="dots">{"".join(lines)}{axis}</ul>' if lines else ""


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """Of (kind of mark, label as HTML)."""
    return (
        '<ul class="legend">'
        + "".join(f'<li><i class="mark m{kind}"></i>{label}</li>' for kind, label in entries)
        + "</ul>"
    )


def amount(number: float) -> str:
    """Tokens on an axis: 12_000_000 -> 12M."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:g}{unit}"
    return f"{number:g}"
