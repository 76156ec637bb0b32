"""Rows by key, and sums over rows of one key: what all additive tables are made with."""

from typing import NamedTuple, Self

import numpy as np
from jaxtyping import Float, Float32, Int
from scipy.sparse import csr_array


def in_order(*keys: Int[np.ndarray, "n"]) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """A number for each key, ascending, and which row that is; rows of one key in their order.

    >>> import numpy as np
    >>> from jaxcircuits.bulk.sorting import in_order
    >>> in_order(np.array([1, 0, 1, 0]), np.array([0, 7, 0, 2]))[1].tolist()
    [3, 1, 0, 2]
    """
    n = len(keys[0])
    rows = n.bit_length()
    bits = [int(key.max(initial=0)).bit_length() for key in keys]
    if sum(bits) + rows > 63:
        order = np.lexsort(keys[::-1])
        return Groups.of(*(key.take(order) for key in keys)).row, order
    # Key and row in one number are sorted several times as fast as keys in a stable order.
    packed = np.zeros(n, np.int64)
    for key, width in (*zip(keys, bits, strict=True), (np.arange(n), rows)):
        packed <<= width
        packed |= key
    packed.sort()
    order = packed & (1 << rows) - 1
    packed >>= rows
    return packed, order


class Groups(NamedTuple):
    """Runs of rows with equal keys.

    Attributes:
        starts: Where each begins.
        row: Which of them each row is in.
    """

    starts: Int[np.ndarray, "_n"]
    row: Int[np.ndarray, "n"]

    @classmethod
    def of(cls, *keys: Int[np.ndarray, "n"]) -> Self:
        """The runs in which all keys are equal."""
        changes = np.zeros(len(keys[0]), bool)
        for key in keys:
            changes[1:] |= key[1:] != key[:-1]
        row = changes.cumsum()
        changes[:1] = True
        return cls(np.flatnonzero(changes), row)

    @property
    def sizes(self) -> Float[np.ndarray, "_n"]:
        """How many rows each has, in float64, as sums are."""
        return np.diff(self.starts, append=len(self.row)).astype(np.float64)

    def add(self, values: np.ndarray) -> Float[np.ndarray, "_n"]:
        """The sum of each run, in float64. Where runs are short, several times as fast as `reduceat`."""
        return np.bincount(self.row, values, len(self.starts)).astype(np.float64, copy=False)  # integers if empty

    def add_rows(self, values: Float[np.ndarray, "_m k"], order: Int[np.ndarray, "n"]) -> Float[np.ndarray, "_n k"]:
        """The sums of each run of rows of a matrix that are brought in an order."""
        ends = np.append(self.starts, len(order))
        return csr_array((np.ones(len(order)), order, ends), (len(self.starts), len(values))) @ values

    def greatest(self, values: Float32[np.ndarray, "n"]) -> Int[np.ndarray, "_n"]:
        """The first place of the greatest value of each run; no value is below 0."""
        n = len(values)
        # Their bits are in the same order; those of an earlier place are greater.
        packed = values.view(np.int32).astype(np.int64) << 32 | np.arange(n, 0, -1)
        return n - (np.maximum.reduceat(packed, self.starts) & 0xFFFFFFFF) if n else self.starts
