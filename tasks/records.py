"""Records: JSON lines and datasets of the hub. Each text is a document of its own."""

import codecs
import json
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from .archives import chunks
from .errors import UnreachableError
from .hub import words
from .pages import cut
from .remotes import is_away
from .streams import Document, Item, Limits, Line, Reject, invalid, lines, newlines, too_long

NAMED = 8
"""Keys or columns that a message names."""
_ABSENT = object()


def records(item: Item, limits: Limits) -> Iterator[Document | Reject]:
    """The text of each line of JSON; the offset is that of the line."""
    hint = ""
    for line in lines(chunks(item, limits), newlines, limits.line_bytes):
        if line.data is None:
            yield too_long(line, limits)
            continue
        data = line.data
        if line.offset == 0:
            data = data.removeprefix(codecs.BOM_UTF8)
            hint = ARRAY if data.lstrip().startswith(b"[") else ""
        if not data.strip():
            continue
        reason = detail = ""
        try:
            text = _field(data.decode(), item.text_key)
        except UnicodeDecodeError as error:
            yield invalid(line.offset, line.size, line.number, error)
            continue
        except _BadRecord as error:
            reason, detail = error.args
        except RecursionError:
            reason, detail = "broken_json", "nested too deeply"
        except ValueError as error:
            reason, detail = "broken_json", str(error)
        if reason:
            hinted = hint if reason in ("broken_json", "not_an_object") else ""
            yield Reject(reason, line.offset, line.size, line.number, detail + hinted)
        else:
            yield from record(text, line.offset, limits, line)


ARRAY = "; the file starts as a JSON array, not as JSON lines: write one object on each line"


class _BadRecord(ValueError):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise _BadRecord("duplicate_key", "a key stands twice in one object")
    return record


_decode = json.JSONDecoder(object_pairs_hook=_unique).decode  # json.loads would make a decoder for each line


def _field(line: str, key: str) -> str:
    record = _decode(line)
    if not isinstance(record, dict):
        raise _BadRecord("not_an_object", f"the line is a JSON {type(record).__name__}")
    value = lookup(record, key)
    if isinstance(value, str):
        return value
    raise _BadRecord(*_no_text(value, key, list(record)))


def _rows(item: Item) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Split and row. Raises UnreachableError where the hub stops answering, and what the library raises."""
    import datasets

    name, _, configuration = item.path.partition(":")
    try:
        splits = datasets.load_dataset(name, configuration or None, revision=item.digest, streaming=True)
        yield from chain.from_iterable(((split, entry) for entry in splits[split]) for split in sorted(splits))
    except Exception as error:
        if not is_away(error):
            raise
        raise UnreachableError(f"The hub does not give {name} any more ({words(error)}); run again.") from None


def _no_text(value: Any, key: str, keys: list[str]) -> tuple[str, str]:
    if value is _ABSENT:
        return "missing_key", f"no key {key!r}; it has {named(keys)}"
    return ("null", f"{key!r} is null") if value is None else ("not_text", f"{key!r} is a {type(value).__name__}")


def lookup(value: Any, key: str) -> Any:
    """What stands at a dotted path: keys of objects and numbers of list items. A key that has the dots itself wins."""
    if isinstance(value, dict):
        if key in value:
            return value[key]
        head, _, rest = key.partition(".")
        return lookup(value[head], rest) if rest and head in value else _ABSENT
    head, _, rest = key.partition(".")
    if isinstance(value, list) and head.isdecimal() and len(head) < 10 and int(head) < len(value):
        return lookup(value[int(head)], rest) if rest else value[int(head)]
    return _ABSENT


def named(names: list[str]) -> str:
    """What is there instead, for a message."""
    shown = ", ".join(names[:NAMED])[:200]
    return (shown + ", …" if len(names) > NAMED else shown) or "none at all"


def record(text: str, offset: int, limits: Limits, line: Line | None = None) -> Iterator[Document | Reject]:
    """A text that is a document of its own, cut only where it is huge."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            size = line.size if line else len(text.encode(errors="surrogatepass"))
            detail = f"character {error.start} is half of a surrogate pair"
            yield Reject("lone_surrogate", offset, size, line.number if line else None, detail)
            return
    for part in cut(text, limits.record_characters):
        yield Document(part, offset)


def hub(item: Item, limits: Limits) -> Iterator[Document | Reject]:
    """A dataset of the Hugging Face hub at a resolved revision, streamed. Offsets count its rows, split after split."""
    for row, (split, entry) in enumerate(_rows(item)):
        text = lookup(entry, item.text_key)
        if isinstance(text, str):
            yield from record(text, row, limits)
        else:
            reason, detail = _no_text(text, item.text_key, list(entry))
            yield Reject(reason, row, 0, None, f"{detail}, in split {split}")
