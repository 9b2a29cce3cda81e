"""Pages of HTML: their main text, without menus, scripts and comments, by trafilatura.

Settings: balanced between precision and recall (trafilatura's own default), comments of readers left out, tables kept
as text, no links, no pictures, no deduplication (it would remember pages, so that their order mattered). Two runs over
the same bytes give the same text.
"""

import codecs
import logging
import re
from collections.abc import Iterator

from .archives import chunks
from .pages import cut
from .streams import Broken, Document, Item, Limits, Reject, first_line

PAGE_BYTES = 2 << 20
"""A longer page is refused: its tree takes a hundred times its size."""
_CHARSET = re.compile(rb"""<(?:meta[^>]*?charset|\?xml[^>]*?encoding)\s*=\s*["']?\s*([\w.:-]+)""", re.I)
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_HEAD = 4096
"""Bytes at the start of a page that may name its encoding."""


def html(item: Item, limits: Limits) -> Iterator[Document | Reject]:
    """One page is one document. Raises Broken for a page of which nothing can be taken."""
    import trafilatura

    page = _page(item, limits)
    if not page.strip():
        return
    text = _decoded(page, item)
    if not re.search("<html|<body", text, re.I):  # trafilatura takes no fragment of a page
        text = f"<html><body>{text}</body></html>"
    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # it logs each page that holds no text
    try:
        main = trafilatura.extract(text, include_comments=False, include_tables=True, deduplicate=False)
    except Exception as error:  # wild markup finds the edges of several libraries, each with errors of its own
        raise Broken("broken_html", first_line(error), 0, len(page)) from None
    if not main or not main.strip():
        raise Broken("no_main_text", "no text that is not menus, scripts or comments", 0, len(page))
    for part in cut(main, limits.record_characters):
        yield Document(part, 0)


def _page(item: Item, limits: Limits) -> bytes:
    most = min(limits.line_bytes, PAGE_BYTES)
    page = bytearray()
    for chunk in chunks(item, limits):
        page += chunk
        if len(page) > most:
            raise Broken("page_too_long", f"more than {most} bytes of HTML", 0, max(item.size, len(page)))
    return bytes(page)


def _decoded(page: bytes, item: Item) -> str:
    """By the source's `encoding`; without one, by a byte order mark, as UTF-8 where the bytes are that, or as it says.

    In this order, since what a page says of itself is wrong more often than a page is UTF-8 by chance.
    """
    encoding = next((name for mark, name in MARKS if page.startswith(mark)), "")
    if _codec(item.encoding) != "utf-8":
        encoding = item.encoding
    elif not encoding:
        found = _CHARSET.search(page, 0, _HEAD)
        named = _codec(found[1].decode("ascii", "replace")) if found else ""
        escapes = b"\x1b" in page and named  # ISO-2022 writes Japanese in ASCII and escapes
        encoding = named if escapes or (named and not _is_utf8(page)) else "utf-8"
    try:
        return page.decode(encoding)
    except UnicodeError as error:
        detail = f"not {encoding} ({first_line(error)}); set the source's `encoding`"
        raise Broken("not_utf8" if encoding == "utf-8" else "invalid_encoding", detail, 0, len(page)) from None


def _is_utf8(page: bytes) -> bool:
    try:
        return page.decode() is not None
    except UnicodeDecodeError:
        return False


def _codec(name: str) -> str:
    """Python's name of an encoding, "" if unknown; that of Windows for the ISO ones it extends, as browsers do."""
    try:
        codec = codecs.lookup(name).name
        "".encode(codec)
    except (LookupError, ValueError):
        return ""
    return {"iso8859-1": "cp1252", "ascii": "cp1252", "iso8859-9": "cp1254"}.get(codec, codec)
