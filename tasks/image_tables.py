"""Parquet files with a column of images, as `datasets` writes them: struct{bytes, path}, or plain binary.

As in columns.py nothing in a file is believed: values are validated before one is touched, and a value that thousands
of rows share is held once. The path in a struct is a name, never opened.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .archives import FREE_EXPANSION, open_item
from .columns import BATCH, ROWS, WRONG, complaint
from .image_decoding import ImageLimits
from .image_sources import ImageFile, ImageSource
from .records import named
from .streams import Broken, Reject

LABEL = 256
"""Characters of a label; what is longer is a text about the image."""
_BINARY = (pa.types.is_binary, pa.types.is_large_binary)
_LABELS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_boolean)


@dataclass(frozen=True, slots=True)
class Row:
    """An image of a table."""

    row: int
    data: bytes
    label: str | None
    origin: str
    """Where the label comes from: column, folder, or "" where there is none."""


@dataclass(frozen=True)
class _Layout:
    """What is read of a file, and how."""

    column: str
    struct: bool
    columns: tuple[str, ...]
    """Paths of the leaves that are read."""
    label: str
    """Column of labels; "" where they are not read."""
    names: tuple[str, ...]
    """Of the labels 0, 1, …, where the file tells them."""
    folder: str | None
    size: int
    """Of the file, in bytes."""
    by_folder: bool
    """Labels are the folders of the paths in the struct."""

    @property
    def bytes(self) -> str:
        return f"{self.column}.bytes" if self.struct else self.column


def parquet(file: ImageFile, source: ImageSource, limits: ImageLimits) -> Iterator[Row | Reject]:
    """Row group after row group; one that cannot be read is refused, the others stay.

    Raises Broken where there is no such column, or the labels are neither texts nor whole numbers.
    """
    item = file.item
    options: dict[str, Any] = {"page_checksum_verification": True, "buffer_size": 1 << 20}
    opened: Any = open_item(item) if item.remote else item.path
    try:
        table = pq.ParquetFile(opened, **options)
        layout = _layout(table.schema_arrow, file, source)
        # As numbers into the dictionary of a page: a large image that thousands of rows share is held once.
        table = pq.ParquetFile(opened, metadata=table.metadata, read_dictionary=[layout.bytes], **options)
    except WRONG as error:
        raise Broken("broken_parquet", complaint(error, item.size, limits.archive_ratio), 0, item.size) from None
    with table:
        first = 0
        for group in range(table.num_row_groups):
            yield from _row_group(table, group, first, layout, limits)
            first += table.metadata.row_group(group).num_rows


def _layout(schema: pa.Schema, file: ImageFile, source: ImageSource) -> _Layout:
    def find(key: str) -> pa.DataType | None:
        return schema.field(key).type if schema.names.count(key) == 1 else None

    kind = find(source.image_key)
    if kind is None:
        what = f"no column {source.image_key!r}; it has {named(schema.names)}"
        raise Broken("missing_key", what, 0, file.item.size)
    struct = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    inner = kind.field("bytes").type if struct else kind
    if not any(is_binary(inner) for is_binary in _BINARY):
        raise Broken("not_an_image", f"column {source.image_key!r} is {kind}, not binary", 0, file.item.size)
    named_by = find(source.label_key) if source.labels == "auto" else None
    if named_by is not None:
        value = named_by.value_type if pa.types.is_dictionary(named_by) else named_by
        if not any(is_label(value) for is_label in _LABELS):
            what = f"column {source.label_key!r} is {named_by}; set label_key, or the source's labels to none"
            raise Broken("not_a_label", what, 0, file.item.size)
    has_path = struct and kind.get_field_index("path") >= 0 and pa.types.is_string(kind.field("path").type)
    columns = [f"{source.image_key}.bytes"] if struct else [source.image_key]
    columns += [f"{source.image_key}.path"] if has_path and source.labels == "folder" else []
    columns += [source.label_key] if named_by is not None else []
    label = source.label_key if named_by is not None else ""
    names = _class_names(schema, source.label_key) if label else ()
    by_folder = bool(has_path) and source.labels == "folder"
    return _Layout(source.image_key, struct, tuple(columns), label, names, file.folder, file.item.size, by_folder)


def _class_names(schema: pa.Schema, key: str) -> tuple[str, ...]:
    """The names of the classes 0, 1, …, that `datasets` writes into the schema."""
    try:
        about = json.loads((schema.metadata or {})[b"huggingface"])
        names = about["info"]["features"][key]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return ()
    return tuple(name.encode("utf-8", "backslashreplace").decode() for name in names)  # JSON may hold half characters


def _row_group(
    table: pq.ParquetFile, group: int, first: int, layout: _Layout, limits: ImageLimits
) -> Iterator[Row | Reject]:
    done = whole = 0
    try:
        about = table.metadata.row_group(group)
        # Of the whole group: to ask a single column aborts the process where its statistics are damaged.
        whole, size = about.num_rows, about.total_byte_size
        if size > FREE_EXPANSION and size > limits.archive_ratio * layout.size:
            detail = f"row group {group} unpacks to more than {limits.archive_ratio} times the size of its file"
            yield Reject("archive_bomb", first, layout.size // table.num_row_groups, None, detail)
            return
        rows = max(min(ROWS, BATCH * whole // max(size, 1)), 1)
        for batch in table.iter_batches(rows, row_groups=[group], columns=list(layout.columns)):
            batch.validate(full=True)
            yield from _batch(batch, first + done, layout, limits)
            done += batch.num_rows
    except WRONG as error:
        said = complaint(error, layout.size, limits.archive_ratio)
        detail = f"row group {group}, {whole - done} of {whole} rows: {said}"
        yield Reject("broken_parquet", first + done, layout.size // table.num_row_groups, None, detail)


def _batch(batch: pa.RecordBatch, first: int, layout: _Layout, limits: ImageLimits) -> Iterator[Row | Reject]:
    images = batch.column(batch.schema.get_field_index(layout.column))
    paths = None
    if layout.struct:
        kind, parts = images.type, images.flatten()
        paths = parts[kind.get_field_index("path")] if layout.by_folder else None
        images = parts[kind.get_field_index("bytes")]
    labels = batch.column(batch.schema.get_field_index(layout.label)).to_pylist() if layout.label else None
    for row, value in enumerate(images):
        value = value.value if isinstance(value, pa.DictionaryScalar) else value
        data = value.as_buffer() if value is not None and value.is_valid else None
        if data is None:
            yield Reject("null", first + row, 0, None, "no image in this row")
        elif data.size > limits.file_bytes:
            yield Reject("file_too_large", first + row, data.size, None, f"more than {limits.file_bytes} bytes")
        elif labels is not None and len(str(labels[row])) > LABEL:
            yield Reject("not_a_label", first + row, data.size, None, f"a label of more than {LABEL} characters")
        elif layout.by_folder:
            path = PurePosixPath(paths[row].as_py() or "") if paths is not None else PurePosixPath()
            label = path.parent.name or layout.folder
            yield Row(first + row, data.to_pybytes(), label, "folder" if label else "")
        else:
            label = _label(labels[row], layout.names) if labels is not None else layout.folder
            origin = "" if label is None else "column" if labels is not None else "folder"
            yield Row(first + row, data.to_pybytes(), label, origin)


def _label(value: Any, names: tuple[str, ...]) -> str | None:
    """A class by its name where the file tells it; -1 is how `datasets` writes that there is none."""
    if isinstance(value, int) and names:
        return names[value] if 0 <= value < len(names) else None if value == -1 else str(value)
    return None if value is None else str(value)
