"""Tables that are read once, soon, and removed: Arrow's own file format, which costs little more than copying them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIX = ".arrow"

ROWS = 2**13
"""Rows at most that are read at once: of several files, as many as a core's cache holds."""

Columns = Mapping[str, np.ndarray]


def write_scratch(to: Any, table: "pa.Table") -> None:
    """Writes one table to a file: a path, or open for writing."""
    with scratch_writer(to, table.schema) as write:
        write(table)


@contextmanager
def scratch_writer(to: Any, schema: "pa.Schema") -> Iterator[Callable[["pa.Table"], None]]:
    """Writes tables one after the other to one file: a path, or open for writing."""
    import pyarrow as pa

    with pa.ipc.new_file(str(to) if isinstance(to, Path) else to, schema) as writer:
        yield lambda table: writer.write_table(table, ROWS)


def scratch_schema(file: Path) -> "pa.Schema":
    """The columns of a file.

    Raises:
        OSError, pyarrow.ArrowInvalid: It is missing or damaged.
    """
    import pyarrow as pa

    with pa.OSFile(str(file)) as source, pa.ipc.open_file(source) as reader:
        return reader.schema


def scratch_rows(file: Path) -> Iterator[Columns]:
    """The columns of a file, at most `ROWS` rows at a time.

    Raises:
        OSError, pyarrow.ArrowInvalid: It is missing or damaged.
    """
    import pyarrow as pa

    with pa.OSFile(str(file)) as source, pa.ipc.open_file(source) as reader:
        for i in range(reader.num_record_batches):
            yield _columns(reader.get_batch(i))


def scratch_table(file: Path) -> "pa.Table":
    """A whole file.

    Raises:
        OSError, pyarrow.ArrowInvalid: It is missing or damaged.
    """
    import pyarrow as pa

    with pa.memory_map(str(file)) as source, pa.ipc.open_file(source) as reader:
        return reader.read_all()


def _columns(batch: "pa.RecordBatch") -> Columns:
    return {name: _array(column) for name, column in zip(batch.schema.names, batch.columns, strict=True)}


def _array(column: "pa.Array") -> np.ndarray:
    """Lists of one size become the rows of a matrix."""
    import pyarrow as pa

    if isinstance(column, pa.FixedSizeListArray):
        return column.flatten().to_numpy().reshape(len(column), -1)
    return column.to_numpy()
