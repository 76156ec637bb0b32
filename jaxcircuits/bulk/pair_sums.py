"""What the edges of one pair of features add up to.

In one part of a corpus most pairs have few edges, so sums are made of several parts' edges at once (`pair_edges`): they
are then fewer rows than edges by far. Sums of sums are the same.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from jaxtyping import Int

from jaxcircuits.ahead import each_ahead
from jaxcircuits.bulk.merging import BATCH, merged
from jaxcircuits.bulk.pair_edges import ByFeature, Edges
from jaxcircuits.bulk.scratch import scratch_table
from jaxcircuits.bulk.sorting import BLOCK, blocks
from jaxcircuits.bulk.sum_rows import SUMMED, Layout, SumRows, read_rows

SUMS = (
    "edges",
    "both_active",
    "positive",
    "total",  # of attribution, as what follows
    "absolute",
    "squares",
    "weighted",  # times the target's activation
    "product",  # of the two activations
    "stories",
    "story_squares",  # with S the total and n the edges of a story: sum S^2
    "story_cross",  # sum S n
    "edges_2",  # sum n^2
    "edges_3",  # sum n^3
)

PAIR = "pair"
"""The key: one number for a (target feature, source feature, offset), in their order."""

PARTS = 16
"""Whose edges are summed at once."""

PAIRS = Layout(PAIR, SUMS, largest=True)

_OFFSET, _SOURCE = 16, 24
"""Bits of an offset and of a source feature."""


def pair_of(target: Int[np.ndarray, "n"], source: Int[np.ndarray, "n"], offset: Int[np.ndarray, "n"]) -> np.ndarray:
    """The number of each pair.

    >>> import numpy as np
    >>> from jaxcircuits.bulk.pair_sums import features_of, pair_of
    >>> [int(x[0]) for x in features_of(pair_of(*(np.array([n]) for n in (7, 5, 3)))).values()]
    [7, 5, 3]
    """
    return target.astype(np.int64) << _SOURCE + _OFFSET | source.astype(np.int64) << _OFFSET | offset


def features_of(pair: Int[np.ndarray, "n"]) -> dict[str, Int[np.ndarray, "n"]]:
    """What numbers of pairs are made of."""
    return {
        "target_feature": pair >> _SOURCE + _OFFSET,
        "source_feature": pair >> _OFFSET & (1 << _SOURCE) - 1,
        "offset": pair & (1 << _OFFSET) - 1,
    }


def merged_pairs(files: Sequence[Path], edges: Edges | None = None) -> Iterator[SumRows]:
    """The sums of all pairs, some at a time.

    Args:
        files: Of sums, or of what `by_target` returns, in the order of their prompts.
        edges: More of them, whose prompts come last.

    Raises:
        OSError, pyarrow.ArrowInvalid: A file is missing or damaged.
    """
    of_sums = [file for file in files if file.suffix == SUMMED]
    of_edges = [file for file in files if file not in of_sums]
    made = [_file_sums(of_edges[i : i + PARTS]) for i in range(0, len(of_edges), PARTS)]
    made += [edge_sums(edges)] if edges is not None and edges.number else []
    if len(of_sums) + len(made) > 1:
        return merged([*of_sums, *made], PAIRS)
    return chain(*(read_rows(file, PAIRS.cells, BATCH) for file in of_sums), *made)


def _file_sums(files: Sequence[Path]) -> Iterator[SumRows]:
    """`edge_sums` of files."""
    edges = Edges()
    for file in files:
        edges.add(scratch_table(file))
    yield from edge_sums(edges)


def edge_sums(edges: Edges) -> Iterator[SumRows]:
    """The sums of all pairs, some at a time."""
    by_feature = edges.by_feature()
    ends = np.bincount(by_feature.feature, by_feature.stop - by_feature.start).cumsum()
    yield from each_ahead(lambda block: _sums_of(by_feature, block), blocks(ends, BLOCK))


def _sums_of(edges: ByFeature, features: slice) -> SumRows:
    """The sums of pairs of some target features."""
    from jaxcircuits.bulk.kernels import sum_edges, take_rows

    at = np.searchsorted(edges.feature, np.int32(features.start))
    pairs, numbers = sum_edges(features.start, features.stop, at, _OFFSET, _SOURCE, *edges)
    return take_rows(pairs, numbers, np.argsort(pairs), PAIRS.cells)
