"""Tables of sums as matrices of eight-byte cells: in a row its key, then the numbers that belong to it.

A row lies in one place in memory and in its file, which has rows and nothing else: it is read into place and merged
there.
"""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

SUMMED = ".rows"
"""Their files' suffix."""

SumRows = Int64[np.ndarray, "row cell"]
"""The key's cell is an integer, ascending from row to row. The others are float64, as `numbers_of` has them."""

LARGEST = ("prompt", "pos", "value")
"""Of a row's largest edge: where it is, and its attribution."""


class Layout(NamedTuple):
    """What the cells of a row are.

    Attributes:
        key: What the first says: what a row is of.
        sums: Those that add up.
        largest: Whether `LARGEST` follow, of which the greatest value's count.
    """

    key: str
    sums: tuple[str, ...]
    largest: bool = False

    @property
    def numbers(self) -> tuple[str, ...]:
        """All cells but the key."""
        return (*self.sums, *(f"largest_{name}" for name in LARGEST if self.largest))

    @property
    def cells(self) -> int:
        """How many a row has."""
        return 1 + len(self.numbers)

    def columns(self, rows: SumRows) -> dict[str, np.ndarray]:
        """Key and numbers, each by itself."""
        return {self.key: rows[:, 0].copy()} | dict(zip(self.numbers, numbers_of(rows).T.copy(), strict=True))


def numbers_of(rows: SumRows) -> Float64[np.ndarray, "row number"]:
    """All cells but the key's, where they are."""
    return rows.view(np.float64)[:, 1:]


def write_rows(file: Any, rows: SumRows) -> None:
    """Writes rows to a file that is open for writing."""
    if len(rows):  # or there is nothing to view
        file.write(rows.data.cast("B"))


class RowFile:
    """Rows from a file, to where they are wanted.

    Args:
        file: Of rows.
        cells: How many a row has.

    Raises:
        OSError: It is missing.
    """

    def __init__(self, file: Path, cells: int) -> None:
        self._file = file.open("rb", buffering=0)
        self._bytes = 8 * cells

    def read(self, to: SumRows) -> int:
        """Fills rows from the first on, and says how many: all of them but at the end.

        Raises:
            OSError: The file is damaged.
        """
        view, n = to.data.cast("B"), 0
        while n < len(view) and (got := self._file.readinto(view[n:])):
            n += got
        if n % self._bytes:
            raise OSError(f"{self._file.name} ends within a row")
        return n // self._bytes

    def close(self) -> None:
        """Ends reading."""
        self._file.close()


class RowStream:
    """Rows as they are made, likewise.

    Args:
        made: Some at a time.
    """

    def __init__(self, made: Iterator[SumRows]) -> None:
        self._made = made
        self._rest: SumRows | None = None

    def read(self, to: SumRows) -> int:
        """Fills rows from the first on, and says how many: all of them but at the end."""
        n = 0
        while n < len(to):
            if self._rest is None or not len(self._rest):
                self._rest = next(self._made, None)
                if self._rest is None:
                    break
            some, self._rest = np.split(self._rest, [len(to) - n])
            to[n : n + len(some)] = some
            n += len(some)
        return n


def read_rows(file: Path, cells: int, rows: int) -> Iterator[SumRows]:
    """A file's rows, so many at a time.

    Raises:
        OSError: It is missing or damaged.
    """
    with closing(RowFile(file, cells)) as source:
        while n := source.read(to := np.empty((rows, cells), np.int64)):
            yield to[:n]
