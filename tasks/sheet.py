"""How the cards of a corpus and of a vocabulary look, and how they write figures and other people's texts.

Colours that the colour-blind tell apart (Okabe and Ito), a light and a dark scheme, any width from a telephone's on.
"""

import re
from collections.abc import Iterable, Sequence
from html import escape

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""A browser shows the page and does nothing else. Should a text slip through unescaped, it still runs nothing."""
UNSHOWN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""Control characters and halves of character pairs."""
MARKUP = re.compile(r"[\\`*_\[\]#|~$@!]|:(?=//)|(?<=www)\.|^[-+]|(?<=^\d)[.)]", re.IGNORECASE)
"""What would become a mark, a link or a list in Markdown; HTML is escaped besides."""

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c2128; --soft: #59636e; --line: #d5dae0; --track: #eef1f4;
  --kept: #0072b2; --copies: #e69f00; --evaluation: #cc79a7; --filtered: #8a8f98; --left_out: #56b4e9;
  --damaged: #d55e00; --cleaned: #c3c9d0; }
@media (prefers-color-scheme: dark) { :root { --paper: #15191e; --ink: #e4e8ec; --soft: #9aa5b1; --line: #333b45;
  --track: #222931; --kept: #3a9bdc; --filtered: #7d858f; --cleaned: #4c5661; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; margin: 0 0 1rem; } h2 { font-size: 1.15rem; margin: 0 0 .75rem; }
h3 { font-size: 1rem; margin: 0; overflow-wrap: anywhere; }
h4 { font-size: .9rem; margin: .5rem 0; color: var(--soft); font-weight: 600; }
section { margin-top: 2.25rem; min-width: 0; } p { margin: .5rem 0; } p, li { overflow-wrap: anywhere; }
section p, .notes, figcaption, .number { color: var(--soft); } section p b { color: var(--ink); }
code { font: .88em/1 ui-monospace, monospace; color: var(--ink); }
.calm { margin-top: 1.5rem; color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; }
.tiles { margin-bottom: 1.25rem; }
.tiles div { border: 1px solid var(--line); border-radius: 6px; padding: .6rem .75rem; }
.tiles b { display: block; font-size: 1.3rem; font-variant-numeric: tabular-nums; }
.tiles span { color: var(--soft); font-size: .85rem; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); column-gap: 3rem; }
article .columns { column-gap: 2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }
article .columns > div { min-width: 0; }
article { border: 1px solid var(--line); border-radius: 6px; padding: .75rem 1rem; margin: .75rem 0; }
article p { margin: .35rem 0; }
.notes { font-size: .85rem; margin: 0 0 .5rem; }
.fates { display: flex; gap: 2px; height: 1.1rem; border-radius: 4px; overflow: hidden; background: var(--track); }
.fates i { min-width: 2px; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none; padding: 0; margin: .6rem 0 0; }
.legend i { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .4em; }
.legend li { color: var(--soft); font-size: .9rem; } .legend b { color: var(--ink); }
.bars { list-style: none; padding: 0; margin: 0; }
.bars li { display: grid; grid-template-columns: 1fr auto; column-gap: 1rem; margin-bottom: .5rem; font-size: .9rem; }
.bars .number { font-variant-numeric: tabular-nums; white-space: nowrap; }
.bars .track { grid-column: 1 / -1; grid-row: 2; background: var(--track); height: .5rem; border-radius: 3px; }
.bars i { display: block; height: 100%; min-width: 2px; border-radius: 3px; }
.histogram { display: flex; align-items: flex-end; gap: 2px; height: 9rem; list-style: none; padding: 0; margin: 0; }
.histogram li { flex: 1 1 0; min-width: 0; height: 100%; display: grid; grid-template-rows: minmax(0, 1fr) 1.3rem; }
.histogram i { align-self: end; border-radius: 3px 3px 0 0; }
.histogram span { font-size: .75rem; color: var(--soft); white-space: nowrap; border-top: 1px solid var(--line); }
.kept { background: var(--kept); } .copies { background: var(--copies); } .filtered { background: var(--filtered); }
.evaluation { background: var(--evaluation); } .left_out { background: var(--left_out); }
.damaged { background: var(--damaged); } .cleaned { background: var(--cleaned); }
details { margin: .5rem 0; } summary { cursor: pointer; overflow-wrap: anywhere; }
figure { margin: .75rem 0 1.25rem; } figcaption { font-size: .8rem; overflow-wrap: anywhere; }
blockquote { margin: .25rem 0; padding: .1rem 0 .1rem .9rem; border-inline-start: 3px solid var(--line);
  max-width: 46rem; white-space: pre-wrap; overflow-wrap: anywhere; font-family: Georgia, "Times New Roman", serif; }
table { border-collapse: collapse; font-size: .85rem; width: 100%; } td { overflow-wrap: anywhere; }
th { text-align: left; font-weight: 400; color: var(--soft); padding-right: 1.5rem; overflow-wrap: anywhere; }
th, td { border-bottom: 1px solid var(--line); padding-top: .2rem; padding-bottom: .2rem; vertical-align: top; }
"""

CUT_STYLE = """
:root { --t0: #d3e6f5; --t1: #fbe8c3; --t2: #d5ecdf; --t3: #f4dcea; --bad: #d55e00; --badink: #fff; }
@media (prefers-color-scheme: dark) { :root { --t0: #1f4564; --t1: #5b4413; --t2: #1e4d3b; --t3: #5a2c48; } }
.cut { margin: .25rem 0; line-height: 1.9; font-family: ui-monospace, "Noto Sans Mono", monospace; font-size: .9rem;
  overflow-wrap: anywhere; }
.cut span, .ids span { unicode-bidi: isolate; border-radius: 3px; padding: .1rem .05rem; color: var(--ink);
  -webkit-box-decoration-break: clone; box-decoration-break: clone; }
.t0 { background: var(--t0); } .t1 { background: var(--t1); } .t2 { background: var(--t2); }
.t3 { background: var(--t3); }
.cut .bytes { outline: 1px dashed var(--bad); outline-offset: -1px; }
.cut .word { margin-inline-start: .45em; }
.cut .unknown { background: var(--bad); color: var(--badink); }
.ids { display: flex; flex-wrap: wrap; gap: .35rem; list-style: none; padding: 0; margin: .5rem 0; font-size: .85rem; }
.ids li { max-width: 100%; } .ids span { font-family: ui-monospace, monospace; padding: .1rem .35rem;
  background: var(--track); overflow-wrap: anywhere; } .ids small { color: var(--soft); margin-inline-start: .3rem; }
.wide { overflow-x: auto; } .wide td, .wide th { padding-right: 1rem; white-space: nowrap; }
.wide td { text-align: right; font-variant-numeric: tabular-nums; } .wide tr:first-child th { text-align: right; }
.wide tr th:first-child { text-align: left; }
"""
"""Texts cut up into tokens: four soft colours in turn; dashed where a token is no whole character."""


def page(body: str, title: str, style: str = "", policy: str = POLICY) -> str:
    """A whole HTML file that loads nothing; `style` is what it needs beyond STYLE, `policy` what a browser may do."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{in_html(title)}</title>
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>{STYLE}{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def section(title: str, body: str) -> str:
    """A part of the page; nothing where there is nothing to say."""
    return f"<section>\n<h2>{title}</h2>\n{body}\n</section>" if body else ""


def name_of(value: object) -> str:
    """A name of any script inside an English sentence."""
    return f"<bdi>{in_html(value)}</bdi>"


def bars(rows: Iterable[tuple[str, float, str, str]]) -> str:
    """Of (label as HTML, number, what stands behind it, kind of colour); the longest bar is the largest number."""
    rows = list(rows)
    most = max((number for _, number, _, _ in rows), default=0) or 1
    lines = [
        f'<li><span class="label">{label}</span><span class="track"><i class="{kind}" '
        f'style="width:{100 * number / most:.2f}%"></i></span><span class="number">{said}</span></li>'
        for label, number, said, kind in rows
    ]
    return '<ul class="bars">' + "\n".join(lines) + "</ul>" if lines else ""


def columns(rows: Iterable[tuple[str, float, str, str]]) -> str:
    """A histogram of (label as HTML, share of the height from 0 to 1, what it is, kind of colour)."""
    lines = [
        f'<li title="{in_html(said)}"><i class="{kind}" style="height:{100 * height:.2f}%"></i>'
        f"<span>{label}</span></li>"
        for label, height, said, kind in rows
    ]
    return f'<ul class="histogram">{"".join(lines)}</ul>' if lines else ""


def table_in_markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table whose cells are Markdown already; none where there are no rows."""
    body = [f"| {' | '.join(row)} |" for row in rows]
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *body, ""] if body else []


def in_html(value: object) -> str:
    """Text that HTML shows as it is, also between quotation marks."""
    return escape(UNSHOWN.sub("\ufffd", str(value)))


def in_markdown(value: object) -> str:
    """Text that Markdown shows as it is, on one line: no mark-up, no link, no HTML."""
    plain = " ".join(UNSHOWN.sub("\ufffd", str(value)).split())
    return escape(MARKUP.sub(r"\\\g<0>", plain), quote=False)


def bytes_of(number: int) -> str:
    """12,300,000 -> 12.3 MB, with a space at which no line breaks."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= size:
            return f"{number / size:,.1f}\u00a0{unit}"
    return f"{number:,}\u00a0bytes"


def share(part: int, of: int) -> str:
    """In per cent; 0 % is nothing at all and 100 % is all of it."""
    if not of or not part:
        return "0\u00a0%"
    if part >= of:
        return "100\u00a0%"
    percent = 100 * part / of
    if percent < 0.1:
        return "under\u00a00.1\u00a0%"
    return f"{percent:.0f}\u00a0%" if 9.95 <= percent < 99 else f"{min(percent, 99.9):.1f}\u00a0%"


def short(number: int) -> str:
    """4096 -> 4k."""
    for unit, power in (("G", 30), ("M", 20), ("k", 10)):
        if number >= 1 << power:
            return f"{number >> power}{unit}"
    return str(number)
