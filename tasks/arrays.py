"""Arrow arrays and numpy arrays over the same bytes.

`pa.array` and `to_numpy` import pandas, which takes a process half a second: longer than reading a million documents.
"""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def strings(data: bytes, sizes: NDArray[Any], large: bool = False) -> pa.Array:
    """A column of texts that stand one after the other in `data`, in UTF-8."""
    ends = np.zeros(len(sizes) + 1, np.int64 if large else np.int32)
    np.cumsum(sizes, out=ends[1:])
    kind = pa.large_string() if large else pa.string()
    return pa.Array.from_buffers(kind, len(sizes), [None, pa.py_buffer(ends), pa.py_buffer(data)])


def numbers(values: NDArray[Any], kind: pa.DataType | None = None) -> pa.Array:
    """A column of numbers; of another kind of the same width where one is given."""
    kind = kind or pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])


def values(column: pa.Array) -> NDArray[Any]:
    """The numbers of a column that has no nulls, where they lie."""
    if column.null_count:
        raise pa.ArrowInvalid("a number is null")
    # str(uint16()) is numpy's name, too; to_pandas_dtype would import pandas
    kind, end = np.dtype(str(column.type)), column.offset + len(column)
    # A file may give a column more bytes than it has numbers.
    return np.frombuffer(column.buffers()[1].slice(0, end * kind.itemsize), kind)[column.offset :]
