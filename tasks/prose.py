"""What in a docstring or README reads as prose."""

import inspect
import re
from collections.abc import Iterator

_INLINE = (
    (re.compile(r"<!--.*?-->|</?\w[^<>\n]*>", re.S), ""),  # HTML
    (re.compile(r"!\[[^]]*\]\([^)]*\)|\|\w+\|"), ""),  # pictures, badges
    (re.compile(r"\[([^]\n]+)\](?:\([^)\s]*\)|\[[^]\n]*\])"), r"\1"),  # Markdown links
    (re.compile(r":[\w:+.-]+:`[~!]?(?:[\w.]+\.)?(\w+)(?:\(\))?`"), r"\1"),  # :class:`~a.b.C` -> C
    (re.compile(r":[\w:+.-]+:`([^`<]+?)(?:\s*<[^>`]*>)?`"), r"\1"),
    (re.compile(r"`([^`<\n]+?)\s*<[^>`\n]*>`_{1,2}"), r"\1"),  # reST links
    (re.compile(r"(`{1,2})([^`\n]+)\1_?"), r"\2"),
    (re.compile(r"(\*{1,2})(?=\S)([^*\n]+?)(?<=\S)\1"), r"\2"),
)
_ITEM = re.compile(
    r"(?:[-*+•]|\d+[.)])\s+"  # a list item
    r"|[:@](?:param|type|raises?|returns?|rtype|keyword|arg|var|ivar)\b[^:]*:\s*"  # reST field
    r"|\*{0,2}`{0,2}[\w.]+`{0,2}(?:\s*\([^)]*\):\s+|:\s+(?=[A-Z*]))"  # Google: name (type): text
)
_DROPPED = re.compile(r"\s*(?:>>>|\.\.\s|\.\.\.\s|[|#$%{}]|[-=~^\"'*+_]{3,}\s*$)")
_WORD = re.compile(r"[(\[\"'“‘]*[^\W\d_]+(?:[-'’][^\W\d_]+)*[)\]\"'”’]*[.,;:!?]*[)\]\"'”’]*")
_COMMON = frozenset(
    re.findall(r"\w+", "a an and are as at be by can for from if in is it not of on or that the this to when with")
)


def prose(documentation: str) -> str:
    """The paragraphs of a docstring or README that read as English sentences; "" where there are none.

    Code, doctests, tables, headings, directives, signatures and the heads of parameter lists go; the sentences that
    describe a parameter stay. Markup inside a sentence is taken off.
    """
    kept = []
    for paragraph in _paragraphs(inspect.cleandoc(documentation)):
        for pattern, replacement in _INLINE:
            paragraph = pattern.sub(replacement, paragraph)
        paragraph = " ".join(paragraph.split())
        if reads_as_prose(paragraph):
            kept.append(paragraph)
    return "\n\n".join(kept)


def _paragraphs(text: str) -> Iterator[str]:
    """Runs of lines that belong together: same indentation, or the going on of a long line."""
    run: list[str] = []
    level, fenced, literal = 0, False, -1  # literal: indentation of the line that opened a `::` block
    for line in [*text.split("\n"), ""]:
        body = line.strip()
        indent = len(line) - len(line.lstrip())
        if body.startswith(("```", "~~~")):
            fenced, body = not fenced, ""
        if body and literal >= 0 and indent <= literal:
            literal = -1
        hidden = fenced or literal >= 0 or _DROPPED.match(body) is not None
        item = _ITEM.match(body)
        goes_on = run and not item and (indent == level or (indent > level and len(run[-1]) >= 50))
        if run and (not body or hidden or not goes_on):
            yield " ".join(run)
            run = []
        if body and not hidden:
            level = indent if not run else level
            run.append(body[item.end() :] if item else body)
        if body.endswith("::"):
            literal = indent


def reads_as_prose(paragraph: str) -> bool:
    """At least eight words, an end of sentence, three quarters plain words, and enough of the commonest ones."""
    words = paragraph.split(" ")
    if len(words) < 8 or paragraph[-1] not in ".!?:)" or not paragraph[0].isalpha():
        return False
    plain = [word for word in words if _WORD.fullmatch(word)]
    common = sum(word.lower() in _COMMON for word in words)
    return len(plain) * 4 >= len(words) * 3 and common * 6 >= len(words)
