"""Tables that are read once, soon, and removed: Arrow's own file format, which costs little more than copying them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIX = ".arrow"


def write_scratch(to: Any, table: "pa.Table") -> None:
    """Writes a table to a file: a path, or open for writing."""
    import pyarrow as pa

    with pa.ipc.new_file(str(to) if isinstance(to, Path) else to, table.schema) as writer:
        writer.write_table(table)


def scratch_table(file: Path) -> "pa.Table":
    """A whole file.

    Raises:
        OSError, pyarrow.ArrowInvalid: It is missing or damaged.
    """
    import pyarrow as pa

    with pa.memory_map(str(file)) as source, pa.ipc.open_file(source) as reader:
        return reader.read_all()
