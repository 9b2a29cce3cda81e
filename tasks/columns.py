"""Columns of Parquet and Arrow files. Each text is a document of its own; the offset counts rows.

Nothing in a file is believed: a flipped bit in the offsets of a column would abort the process, and a few kilobytes can
stand for gigabytes.
"""

import errno
import os
import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .archives import FREE_EXPANSION, open_item
from .arrow_sizes import MAGIC, unpacked
from .records import named, record
from .streams import Broken, Document, Item, Limits, Reject, first_line, invalid

ROWS = 256
"""Rows that are looked at together, or fewer where they are long."""
BATCH = 32 << 20
"""Bytes of Parquet that should be unpacked at once."""
SHARED = 1 << 30
"""Characters that the rows of a file may come to, however small it is."""
ENOMEM = os.strerror(errno.ENOMEM)
WRONG = (pa.ArrowException, ValueError, OSError, MemoryError)
"""What pyarrow raises for a file that is none."""
_TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)


def parquet(item: Item, limits: Limits) -> Iterator[Document | Reject]:
    """Row group after row group; one that cannot be read is refused, the others stay. Raises Broken."""
    source: Any = open_item(item) if item.remote else item.path
    options: dict[str, Any] = {"page_checksum_verification": True, "buffer_size": 1 << 20}
    try:
        file = pq.ParquetFile(source, **options)
        path = _path(file.schema_arrow, item)
        # As numbers into the dictionary of a page: a long text that thousands of rows share is held once.
        file = pq.ParquetFile(source, metadata=file.metadata, read_dictionary=[".".join(path)], **options)
    except WRONG as error:
        raise Broken("broken_parquet", complaint(error, item.size, limits.archive_ratio), 0, item.size) from None
    with file:
        first, out = 0, 0
        for group in range(file.num_row_groups):
            for event in _row_group(file, group, first, path, item.size, limits):
                # A text in a dictionary is stored once, however many rows have it: a few kilobytes may stand for days.
                out += len(event.text) if isinstance(event, Document) else 0
                if out > SHARED and out > limits.archive_ratio * item.size:
                    detail = f"its texts are more than {limits.archive_ratio} times its size"
                    raise Broken("archive_bomb", detail, event.offset, item.size)
                yield event
            first += file.metadata.row_group(group).num_rows


def _row_group(
    file: pq.ParquetFile, group: int, first: int, path: list[str], packed: int, limits: Limits
) -> Iterator[Document | Reject]:
    about = file.metadata.row_group(group)
    # Of the whole group: to ask a single column aborts the process where its statistics are damaged.
    name, size = ".".join(path), about.total_byte_size
    if size > FREE_EXPANSION and size > limits.archive_ratio * packed:
        detail = f"row group {group} unpacks to more than {limits.archive_ratio} times the size of its file"
        yield Reject("archive_bomb", first, packed // file.num_row_groups, None, detail)
        return
    rows, done = max(min(ROWS, BATCH * about.num_rows // max(size, 1)), 1), 0
    try:
        for batch in file.iter_batches(rows, row_groups=[group], columns=[name]):
            yield from _column(_picked(batch, path), first + done, limits)
            done += batch.num_rows
    except WRONG as error:
        said = complaint(error, packed, limits.archive_ratio)
        detail = f"row group {group}, {about.num_rows - done} of {about.num_rows} rows: {said}"
        yield Reject("broken_parquet", first + done, about.total_byte_size, None, detail)


def arrow(item: Item, limits: Limits) -> Iterator[Document | Reject]:
    """An IPC file or stream, as `save_to_disk` writes it too. Raises Broken."""
    first = 0
    try:
        with _mapped(item) as source:
            if (size := unpacked(source)) > FREE_EXPANSION and size > limits.archive_ratio * item.size:
                detail = f"it unpacks to more than {limits.archive_ratio} times its size"
                raise Broken("archive_bomb", detail, 0, item.size)
            source.seek(0)
            whole = source.read(len(MAGIC)) == MAGIC
            reader = _reader(source, whole, None)
            path = _path(reader.schema, item)
            reader = _reader(source, whole, [reader.schema.get_field_index(path[0])])
            if whole:
                for number in range(reader.num_record_batches):
                    try:
                        batch = reader.get_batch(number)
                        yield from _slices(batch, path, first, limits)
                        first += batch.num_rows
                    except WRONG as error:
                        said = complaint(error, item.size, limits.archive_ratio)
                        yield Reject("broken_arrow", first, 0, None, f"batch {number}: {said}")
                return
            for batch in reader:
                yield from _slices(batch, path, first, limits)
                first += batch.num_rows
    except WRONG as error:
        raise Broken("broken_arrow", complaint(error, item.size, limits.archive_ratio), first, item.size) from None


def complaint(error: Exception, packed: int, ratio: float) -> str:
    """What is wrong with a file. Raises MemoryError where it is not the file, but the machine that has no memory: a
    damaged length asks for far more than the file can stand for."""
    said = str(error)
    asked = re.search(r"alloc of size (\d+)", said)
    plausible = asked and int(asked[1]) <= max(FREE_EXPANSION, ratio * packed)
    if plausible or ENOMEM in said:
        raise MemoryError(said) from error
    return first_line(error)


def _mapped(item: Item) -> pa.NativeFile:
    return pa.PythonFile(open_item(item), "r") if item.remote else pa.memory_map(item.path)


def _reader(source: pa.NativeFile, whole: bool, fields: list[int] | None) -> Any:
    source.seek(0)
    options = pa.ipc.IpcReadOptions(included_fields=fields)
    return (pa.ipc.open_file if whole else pa.ipc.open_stream)(source, options=options)


def _slices(batch: pa.RecordBatch, path: list[str], first: int, limits: Limits) -> Iterator[Document | Reject]:
    batch.validate()
    column = _picked(batch, path)
    for start in range(0, len(column), ROWS):
        yield from _column(column.slice(start, ROWS), first + start, limits)


def _path(schema: pa.Schema, item: Item) -> list[str]:
    """Names from the column down to the text, for a dotted key; a column that has the dots itself wins.

    Raises Broken when there is no such column, or it holds no text.
    """
    path: list[str] = []
    fields, rest = list(schema), item.text_key
    while True:
        names = [field.name for field in fields]
        name = rest if rest in names else rest.partition(".")[0]
        if names.count(name) != 1:
            reason, problem = ("duplicate_key", "several columns") if name in names else ("missing_key", "no column")
            raise Broken(reason, f"{problem} {item.text_key!r}; it has {named([f.name for f in schema])}", 0, item.size)
        kind = fields[names.index(name)].type
        path.append(name)
        if name == rest:
            break
        rest = rest.partition(".")[2]
        fields = list(kind) if pa.types.is_struct(kind) else []
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not any(is_text(kind) for is_text in _TEXT):
        raise Broken("not_text", f"column {item.text_key!r} is {kind}", 0, item.size)
    return path


def _picked(batch: pa.RecordBatch, path: list[str]) -> pa.Array:
    column = batch.column(batch.schema.get_field_index(path[0]))
    for name in path[1:]:
        column.validate()
        column = column.flatten()[column.type.get_field_index(name)]
    return column


def _column(column: pa.Array, first: int, limits: Limits) -> Iterator[Document | Reject]:
    # Offsets are checked before any value is touched: one flipped bit in them aborts the process. As binary, so that a
    # text that is not UTF-8 is refused alone.
    if pa.types.is_dictionary(column.type):
        column = pa.DictionaryArray.from_arrays(column.indices, _binary(column.dictionary), safe=False)
    else:
        column = _binary(column)
    column.validate(full=True)
    numbers = column.indices.to_pylist() if pa.types.is_dictionary(column.type) else range(len(column))
    values = column.dictionary if pa.types.is_dictionary(column.type) else column
    for row, number in enumerate(numbers, first):
        data = None if number is None else values[number].as_buffer()
        if data is None:
            yield Reject("null", row, 0, None, "no text in this row")
        elif data.size > limits.line_bytes:
            yield Reject("line_too_long", row, data.size, None, f"more than {limits.line_bytes} bytes")
        else:
            try:
                text = str(data, "utf-8")
            except UnicodeDecodeError as error:
                yield invalid(row, data.size, None, error)
            else:
                yield from record(text, row, limits)


def _binary(column: pa.Array) -> pa.Array:
    if pa.types.is_string_view(column.type):
        column.validate(full=True)  # has no binary form that is had for nothing
        return column.cast(pa.large_binary())
    return column.view(pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary())
