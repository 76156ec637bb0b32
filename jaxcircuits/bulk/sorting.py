"""Rows by key: what all additive tables are made with."""

from collections.abc import Iterator
from itertools import pairwise, starmap
from math import prod
from typing import NamedTuple, Self

import numpy as np
from jaxtyping import Int, Real
from scipy.sparse import coo_array

FEW = 8
"""Keys for each row at most, for keys to be counted: as long as what counts them is in a cache."""


BLOCK = 2**17
"""Rows that are worked on at once, if they can be parted so: few enough for caches to hold what is made of them, and
enough for threads to wait little for each other between operations."""


def blocks(ends: Real[np.ndarray, "n"], rows: int) -> Iterator[slice]:
    """Runs of things that together have about as many rows, and at least one thing.

    Args:
        ends: Where the rows of each end.
        rows: How many are wanted.

    >>> import numpy as np
    >>> from jaxcircuits.bulk.sorting import blocks
    >>> list(blocks(np.array([3, 4, 9, 10, 11]), 4))
    [slice(0, 1, None), slice(1, 2, None), slice(2, 5, None)]
    """
    if len(ends):
        bounds = [*np.unique(np.searchsorted(ends, np.arange(0, ends[-1], rows))).tolist(), len(ends)]
        yield from starmap(slice, pairwise(bounds))


def listed(prompt: Int[np.ndarray, "n"], pos: Int[np.ndarray, "n"]) -> bool:
    """Whether rows come by prompt and position, as an engine lists them.

    >>> import numpy as np
    >>> from jaxcircuits.bulk.sorting import listed
    >>> listed(np.array([0, 0, 3]), np.array([1, 2, 0])), listed(np.array([0, 0]), np.array([2, 1]))
    (True, False)
    """
    same = prompt[1:] == prompt[:-1]
    return bool(np.all((prompt[1:] > prompt[:-1]) | (same & (pos[1:] >= pos[:-1]))))


def in_order(*keys: Int[np.ndarray, "n"]) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """A number for each key, ascending, and which row that is; rows of one key in their order.

    >>> import numpy as np
    >>> from jaxcircuits.bulk.sorting import in_order
    >>> in_order(np.array([1, 0, 1, 0]), np.array([0, 7, 0, 2]))[1].tolist()
    [3, 1, 0, 2]
    """
    n = len(keys[0])
    least = [int(key.min()) if n else 0 for key in keys]
    sizes = [int(key.max(initial=0)) - low + 1 for key, low in zip(keys, least, strict=True)]
    if prod(sizes) << n.bit_length() >= 1 << 63:
        order = np.lexsort(keys[::-1])
        return Groups.of(*(key.take(order) for key in keys)).row, order
    number = np.zeros(n, np.int64)
    for key, low, size in zip(keys, least, sizes, strict=True):
        number *= size
        number += key
        number -= low
    if prod(sizes) <= FEW * n:  # counted, row by row, as a sparse matrix counts its entries
        entries = np.ones(n, np.int8), (number, np.arange(n, dtype=np.int32))
        order = coo_array(entries, shape=(prod(sizes), n)).tocsr().indices
        return number.take(order), order
    # Key and row in one number are sorted several times as fast as keys in a stable order.
    rows = n.bit_length()
    number <<= rows
    number |= np.arange(n)
    number.sort()
    order = number & (1 << rows) - 1
    number >>= rows
    return number, order


class Groups(NamedTuple):
    """Runs of rows with equal keys.

    Attributes:
        starts: Where each begins.
        n: How many rows there are.
    """

    starts: Int[np.ndarray, "_n"]
    n: int

    @classmethod
    def of(cls, *keys: Int[np.ndarray, "n"]) -> Self:
        """The runs in which all keys are equal."""
        changes = np.zeros(len(keys[0]), bool)
        for key in keys:
            changes[1:] |= key[1:] != key[:-1]
        changes[:1] = True
        return cls(np.flatnonzero(changes), len(changes))

    @property
    def row(self) -> Int[np.ndarray, "n"]:
        """Which of them each row is in."""
        return np.repeat(np.arange(len(self.starts)), np.diff(self.starts, append=self.n))
