"""Tables sorted by a key are read side by side, and rows of equal keys are added.

Rows come out sorted, a batch at a time, so memory is a batch a table, whatever the tables hold.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxcircuits.ahead import each_ahead
from jaxcircuits.attribution.edges import concatenate
from jaxcircuits.bulk.scratch import ROWS, Columns

if TYPE_CHECKING:
    import pyarrow as pa

LARGEST = {"size": np.float32, "prompt": np.int32, "pos": np.int32, "value": np.float32}
"""Fields of `largest`, the edge of largest |attribution| of a row."""


class Layout(NamedTuple):
    """What an additive table holds.

    Attributes:
        key: The column, int64, that says what a row is of.
        sums: What adds up, float64: in one column, `sums`, with as many numbers a row.
        largest: Whether there are columns `largest_*`, of which the greatest row counts.
    """

    key: str
    sums: tuple[str, ...]
    largest: bool = False

    @property
    def columns(self) -> dict[str, type]:
        """All columns and their types."""
        largest = {f"largest_{name}": kind for name, kind in LARGEST.items()} if self.largest else {}
        return {self.key: np.int64, "sums": np.float64} | largest

    @property
    def schema(self) -> "pa.Schema":
        """The columns as Arrow has them."""
        import pyarrow as pa

        kinds = {name: pa.from_numpy_dtype(kind) for name, kind in self.columns.items()}
        return pa.schema(kinds | {"sums": pa.list_(pa.float64(), len(self.sums))})

    def table(self, columns: Columns) -> "pa.Table":
        """An Arrow table of the columns."""
        import pyarrow as pa

        typed = {name: pa.array(columns[name].ravel().astype(kind, copy=False)) for name, kind in self.columns.items()}
        sums = pa.FixedSizeListArray.from_arrays(typed["sums"], len(self.sums))
        return pa.table(typed | {"sums": sums}, self.schema)


def merged(tables: Iterable[Iterator[Columns]], layout: Layout) -> Iterator[Columns]:
    """Rows of several tables, added where their keys are equal. Of equal `largest` ones that of the first counts.

    Args:
        tables: Some rows of each at a time, sorted by key, each key once.
        layout: What they hold.
    """
    return each_ahead(lambda pieces: added(concatenate(pieces, layout.columns), layout), _pieces(tables, layout.key))


def _pieces(tables: Iterable[Iterator[Columns]], key: str) -> Iterator[list[Columns]]:
    """All rows of some keys, then of those that follow."""
    streams = [_Stream(table, key) for table in tables]
    while streams := [stream for stream in streams if stream.fill()]:
        last = min(stream.last for stream in streams)  # up to here every stream has been read
        yield [piece for stream in streams for piece in stream.take(last)]


class _Stream:
    """A table's rows in order, as far as they have been read and not been taken."""

    def __init__(self, rows: Iterator[Columns], key: str) -> None:
        self.rows, self.key = rows, key
        self.pieces: list[Columns] = []

    def fill(self) -> bool:
        """Reads on until there are `ROWS` rows, so that as many of each stream are added at once; whether any are."""
        while sum(len(piece[self.key]) for piece in self.pieces) < ROWS:
            piece = next(self.rows, None)
            if piece is None:
                break
            if len(piece[self.key]):
                self.pieces.append(piece)
        return bool(self.pieces)

    @property
    def last(self) -> int:
        return int(self.pieces[-1][self.key][-1])

    def take(self, last: int) -> Iterator[Columns]:
        """The rows up to a key."""
        pieces, self.pieces = self.pieces, []
        for piece in pieces:
            n = int(np.searchsorted(piece[self.key], last, side="right"))
            if n:
                yield {name: column[:n] for name, column in piece.items()}
            if n < len(piece[self.key]):
                self.pieces.append({name: column[n:] for name, column in piece.items()})


def added(columns: Columns, layout: Layout) -> dict[str, np.ndarray]:
    """Rows of equal keys added, sorted by key. Of equal `largest` ones the first row counts."""
    from jaxcircuits.bulk.kernels import add_rows

    key = columns[layout.key]
    size = columns["largest_size"] if layout.largest else np.zeros(len(key), np.float32)
    order = np.argsort(key, kind="stable")  # quick where the rows are a few sorted runs
    key, sums, largest = add_rows(order, key, columns["sums"], size)
    out = {layout.key: key, "sums": sums}
    if layout.largest:
        out |= {f"largest_{name}": columns[f"largest_{name}"].take(largest) for name in LARGEST}
    return out
