"""Additive tables merged: files, each sorted by its key, are read side by side, and rows of equal keys are added.

Rows come out sorted, a batch at a time, so memory is a batch a file, whatever the files hold.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Int

from jaxcircuits.bulk.scratch import scratch_batches, scratch_writer
from jaxcircuits.bulk.sorting import Groups

if TYPE_CHECKING:
    import pyarrow as pa

Columns = Mapping[str, np.ndarray]

LARGEST = {"size": np.float32, "prompt": np.int32, "pos": np.int32, "value": np.float32}
"""Fields of `largest`, the edge of largest |attribution| of a row. Prompt and position are negated, so that of equal
ones the first is the largest."""


class Layout(NamedTuple):
    """What an additive table holds.

    Attributes:
        key: Columns that say what a row is of, by their types.
        number: One number for each key, in the order of the files.
        sums: Columns that add up, float64.
        largest: Whether there are columns `largest_*`, of which the greatest row counts.
    """

    key: Mapping[str, type]
    number: Callable[[Columns], Int[np.ndarray, "n"]]
    sums: tuple[str, ...]
    largest: bool = False

    @property
    def columns(self) -> dict[str, type]:
        """All columns and their types."""
        largest = {f"largest_{name}": kind for name, kind in LARGEST.items()} if self.largest else {}
        return dict(self.key) | dict.fromkeys(self.sums, np.float64) | largest

    @property
    def schema(self) -> "pa.Schema":
        """The columns as Arrow has them."""
        import pyarrow as pa

        return pa.schema({name: pa.from_numpy_dtype(kind) for name, kind in self.columns.items()})

    def table(self, columns: Columns) -> "pa.Table":
        """An Arrow table of the columns."""
        import pyarrow as pa

        return pa.table({name: columns[name].astype(kind, copy=False) for name, kind in self.columns.items()})


def merged(files: Sequence[Path], layout: Layout) -> Iterator["pa.Table"]:
    """Rows of several files, added where their keys are equal. Of equal `largest` ones that of the first file counts.

    Raises:
        OSError, pyarrow.ArrowInvalid: A file is missing or damaged.
    """
    streams = [_Stream(file, layout) for file in files]
    while streams := [stream for stream in streams if stream.fill()]:
        last = min(stream.last for stream in streams)  # up to here every stream has been read
        parts = [stream.take(last) for stream in streams]
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        yield layout.table(added(columns, layout))


def write_merged(to: Any, files: Sequence[Path], layout: Layout) -> None:
    """Writes the rows of several files, added where their keys are equal, to one: a path, or open for writing."""
    with scratch_writer(to, layout.schema) as write:
        for table in merged(files, layout):
            write(table)


def added(columns: Columns, layout: Layout) -> dict[str, np.ndarray]:
    """Rows of equal keys added, sorted by key. Of equal `largest` ones the first row counts."""
    number = layout.number(columns)
    order = np.argsort(number, kind="stable")  # quick where the rows are a few sorted runs
    groups = Groups.of(number.take(order))
    first = order.take(groups.starts)
    out = {name: columns[name].take(first) for name in layout.key}
    row = np.empty_like(order)
    row[order] = groups.row
    out |= {name: np.bincount(row, columns[name], len(first)) for name in layout.sums}
    if layout.largest:
        at = order.take(groups.greatest(columns["largest_size"].take(order)))
        out |= {f"largest_{name}": columns[f"largest_{name}"].take(at) for name in LARGEST}
    return out


class _Stream:
    """A file's rows in order, as many at a time as are asked for."""

    def __init__(self, file: Path, layout: Layout) -> None:
        self.layout = layout
        self.batches = scratch_batches(file)
        self.columns: Columns = {}
        self.number = np.zeros(0, np.int64)

    @property
    def last(self) -> int:
        return int(self.number[-1])

    def fill(self) -> bool:
        """Reads on if nothing is left; whether there is something."""
        while not len(self.number):
            batch = next(self.batches, None)
            if batch is None:
                return False
            self.columns = {name: batch.column(name).to_numpy() for name in self.layout.columns}
            self.number = self.layout.number(self.columns)
        return True

    def take(self, last: int) -> Columns:
        """The rows up to a number."""
        n = int(np.searchsorted(self.number, last, side="right"))
        taken = {name: column[:n] for name, column in self.columns.items()}
        self.columns = {name: column[n:] for name, column in self.columns.items()}
        self.number = self.number[n:]
        return taken
