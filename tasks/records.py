"""Records: JSON lines, rows of Parquet and Arrow, datasets of the hub. Each text is a document of its own."""

import codecs
import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .cleaning import cut, normalise
from .streams import (
    Broken,
    Document,
    Item,
    Limits,
    Line,
    Reject,
    chunks,
    first_line,
    invalid,
    lines,
    newlines,
    too_long,
)


def records(item: Item, limits: Limits) -> Iterator[Document | Reject]:
    for line in lines(chunks(item, limits), newlines, limits.line_bytes):
        if line.data is None:
            yield too_long(line, limits)
            continue
        data = line.data.removeprefix(codecs.BOM_UTF8) if line.offset == 0 else line.data
        if not data.strip():
            continue
        reason = detail = ""
        try:
            text = _field(data.decode().rstrip("\r\n"), item.text_key)
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
            yield Reject(reason, line.offset, line.size, line.number, detail)
        else:
            yield from record(text, line.offset, limits, line)


class _BadRecord(ValueError):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise _BadRecord("duplicate_key", "a key stands twice in one object")
    return record


def _field(line: str, key: str) -> str:
    record = json.loads(line, object_pairs_hook=_unique)
    if not isinstance(record, dict):
        raise _BadRecord("not_an_object", f"the line is a JSON {type(record).__name__}")
    if key not in record:
        raise _BadRecord("missing_key", f"no key {key!r}")
    if not isinstance(record[key], str):
        raise _BadRecord("not_text", f"{key!r} is a {type(record[key]).__name__}")
    return str(record[key])


def record(text: str, offset: int, limits: Limits, line: Line | None = None) -> Iterator[Document | Reject]:
    """A text that is a document of its own, cut only where it is huge."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        size = line.size if line else len(text.encode(errors="surrogatepass"))
        detail = f"character {error.start} is half of a surrogate pair"
        yield Reject("lone_surrogate", offset, size, line.number if line else None, detail)
        return
    for part in cut(normalise(text), limits.record_characters):
        yield Document(part, offset)


def parquet(item: Item, limits: Limits) -> Iterator[Document | Reject]:
    try:
        file = pq.ParquetFile(item.path, page_checksum_verification=True)
    except (pa.ArrowException, ValueError, OSError) as error:
        raise Broken("broken_parquet", first_line(error), 0, item.size) from None
    with file:
        _check_column(file.schema_arrow, item)
        first = 0
        for group in range(file.num_row_groups):
            rows, done = file.metadata.row_group(group).num_rows, 0
            try:
                # Few rows at a time: 90 kB of Parquet can unpack to 160 MB, and its metadata do not say so.
                for batch in file.iter_batches(64, row_groups=[group], columns=[item.text_key]):
                    yield from _column(batch.column(0), first + done, limits)
                    done += batch.num_rows
            except (pa.ArrowException, ValueError, OSError) as error:
                detail = f"row group {group}, {rows - done} of {rows} rows: {first_line(error)}"
                size = file.metadata.row_group(group).total_byte_size
                yield Reject("broken_parquet", first + done, size, None, detail)
            first += rows


def arrow(item: Item, limits: Limits) -> Iterator[Document | Reject]:
    import datasets

    try:
        dataset = datasets.Dataset.from_file(item.path)
        _check_column(dataset.features.arrow_schema, item)
        for first in range(0, len(dataset), 256):
            table = dataset.with_format("arrow")[first : first + 256]
            for chunk in table.column(item.text_key).chunks:
                yield from _column(chunk, first, limits)
                first += len(chunk)
    except (pa.ArrowException, ValueError, OSError) as error:
        raise Broken("broken_arrow", first_line(error), 0, item.size) from None


def _check_column(schema: pa.Schema, item: Item) -> None:
    """Raises Broken when there is no such column, or it holds no text."""
    index = schema.get_field_index(item.text_key)
    if index < 0:
        raise Broken("missing_key", f"no column {item.text_key!r}; it has {', '.join(schema.names)}", 0, item.size)
    kind = schema.field(index).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise Broken("not_text", f"column {item.text_key!r} is {kind}", 0, item.size)


def _column(column: pa.Array, first: int, limits: Limits) -> Iterator[Document | Reject]:
    # Offsets are checked before any value is touched: one flipped bit in them aborts the process. As binary, so that a
    # text that is not UTF-8 is refused alone.
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.view(pa.binary() if pa.types.is_string(column.type) else pa.large_binary())
    column.validate(full=True)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    for row, value in enumerate(column.cast(pa.large_binary()), first):
        data = value.as_py()
        if data is None:
            yield Reject("not_text", row, 0, None, "null")
        elif len(data) > limits.line_bytes:
            yield Reject("line_too_long", row, len(data), None, f"more than {limits.line_bytes} bytes")
        else:
            try:
                text = data.decode()
            except UnicodeDecodeError as error:
                yield invalid(row, len(data), None, error)
            else:
                yield from record(text, row, limits)


def hub(item: Item, limits: Limits) -> Iterator[Document | Reject]:
    """A dataset of the Hugging Face hub at a resolved revision, streamed. Offsets count its rows, split after split."""
    import datasets

    name, _, configuration = item.path.partition(":")
    splits = datasets.load_dataset(name, configuration or None, revision=item.digest, streaming=True)
    row = 0
    for split in sorted(splits):
        for entry in splits[split]:
            text = entry.get(item.text_key)
            if isinstance(text, str):
                yield from record(text, row, limits)
            else:
                reason = "not_text" if item.text_key in entry else "missing_key"
                yield Reject(reason, row, 0, None, f"{item.text_key!r} in split {split}")
            row += 1
