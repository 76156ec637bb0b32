"""Tables that are read once, soon, and removed: Arrow's own file format, which costs little more than copying them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIX = ".arrow"

ROWS = 2**15
"""Rows at most that are read at once."""


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


def scratch_batches(file: Path) -> Iterator["pa.RecordBatch"]:
    """The rows of a file, at most `ROWS` at a time.

    Raises:
        OSError, pyarrow.ArrowInvalid: It is missing or damaged.
    """
    import pyarrow as pa

    with pa.OSFile(str(file)) as source, pa.ipc.open_file(source) as reader:
        for i in range(reader.num_record_batches):
            yield reader.get_batch(i)
