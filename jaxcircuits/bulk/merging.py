"""Tables of sums, sorted by their keys, are read side by side, and rows of equal keys are added.

Rows come out sorted, a batch at a time, so memory is a batch a table, whatever the tables hold.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np

from jaxcircuits.bulk.sum_rows import Layout, RowFile, RowStream, SumRows

ROWS = 2**13
"""Rows of each table that are in memory: of several tables, as many as a core's cache holds."""

BATCH = 2**14
"""Rows at most that are merged before they are used."""


def merged(tables: Sequence[Path | Iterator[SumRows]], layout: Layout) -> Iterator[SumRows]:
    """Rows of several tables, added where their keys are equal. Of equal `largest` ones that of the first counts.

    Args:
        tables: Files, or some rows at a time; each sorted, each key once.
        layout: What they hold.

    Raises:
        OSError: A file is missing or damaged.
    """
    from jaxcircuits.bulk.kernels import merge_rows

    n = len(tables)
    here, at, stop = np.empty((n, ROWS, layout.cells), np.int64), np.zeros(n, np.int64), np.zeros(n, np.int64)
    out, filled = np.empty((BATCH, layout.cells), np.int64), 0
    with ExitStack() as stack:
        readers: dict[int, RowFile | RowStream] = {}
        for i, table in enumerate(tables):
            if isinstance(table, Path):
                readers[i] = stack.enter_context(closing(RowFile(table, layout.cells)))
            else:
                readers[i] = RowStream(table)
        while True:
            for i in [i for i in readers if at[i] == stop[i]]:
                at[i], stop[i] = 0, readers[i].read(here[i])
                if not stop[i]:
                    del readers[i]
            if not readers:
                break
            filled = merge_rows(here, at, stop, len(layout.sums), out, filled)
            if filled == len(out):
                yield out
                out, filled = np.empty_like(out), 0
    if filled:
        yield out[:filled]
