"""What the edges of one pair of features add up to.

In one part of a corpus most pairs have few edges, so sums are made of several parts' edges at once (`pair_edges`): they
are then fewer rows than edges by far. Sums of sums are the same.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from jaxcircuits.ahead import each_ahead
from jaxcircuits.attribution.edges import concatenate
from jaxcircuits.bulk.merging import Layout, merged
from jaxcircuits.bulk.pair_edges import PartEdges
from jaxcircuits.bulk.scratch import Columns, scratch_rows, scratch_schema, scratch_table
from jaxcircuits.bulk.sorting import BLOCK, Groups, blocks, in_order

if TYPE_CHECKING:
    import pyarrow as pa

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


def merged_pairs(files: Sequence[Path], edges: Sequence["pa.Table"] = ()) -> Iterator[Columns]:
    """The sums of all pairs, some at a time.

    Args:
        files: Of sums, or of what `by_target` returns, in the order of their prompts.
        edges: More of what `by_target` returns, whose prompts come last.

    Raises:
        OSError, pyarrow.ArrowInvalid: A file is missing or damaged.
    """
    of_edges = [file for file in files if "attribution" in scratch_schema(file).names]
    of_sums = [scratch_rows(file) for file in files if file not in of_edges]
    summed = edge_sums([*map(scratch_table, of_edges), *edges])
    return merged([*of_sums, summed], PAIRS) if of_sums else summed


def edge_sums(tables: Sequence["pa.Table"]) -> Iterator[Columns]:
    """The sums of all pairs, some at a time, of what `by_target` returns, in the order of their prompts."""
    parts = [PartEdges(table) for table in tables if table.num_rows]
    if not parts:
        return
    features = np.concatenate([part.targets["target_feature"] for part in parts])
    edges = np.bincount(features, np.concatenate([np.diff(part.bounds) for part in parts])).cumsum()
    yield from each_ahead(lambda block: _sums_of(parts, block), blocks(edges, BLOCK))


def _sums_of(parts: Sequence[PartEdges], features: slice) -> Columns:
    """The sums of pairs of some target features."""
    found = [part.of(features) for part in parts]
    before = 0
    for targets, rows in found:
        rows["target"] += before
        before += len(targets["prompt"])
    return _sums(*(concatenate(tables, tables[0]) for tables in zip(*found, strict=True)))


def _sums(targets: Columns, edges: Columns) -> Columns:
    """What edges add up to; `target` says which of the targets each is into."""
    target, attribution, source_act = edges["target"], edges["attribution"], edges["source_act"]
    source, offset = edges["source_feature"], targets["target_pos"].take(target) - edges["source_pos"]
    prompt, target_act = targets["prompt"].take(target), targets["target_act"].take(target)
    number, order = in_order(targets["target_feature"].take(target), source, offset)
    pairs, stories = Groups.of(number), Groups.of(number, prompt.take(order))
    of_pair, of_story = pairs.sums(order), Groups.of(number.take(stories.starts)).sums()
    wide, size = attribution.astype(np.float64), np.abs(attribution)
    both = (source_act != 0) & (target_act > 0)
    n, total = stories.sizes, stories.sums(order) @ wide
    sums = (
        pairs.sizes,
        pairs.sizes if both.all() else of_pair @ both,
        of_pair @ (attribution > 0),
        of_story @ total,
        of_pair @ size,
        of_pair @ (wide * wide),
        of_pair @ (wide * target_act),
        of_pair @ (source_act.astype(np.float64) * target_act),
        of_story @ np.ones(len(n)),
        of_story @ (total * total),
        of_story @ (total * n),
        of_story @ (n * n),
        of_story @ (n * n * n),
    )
    first, largest = order.take(pairs.starts), order.take(pairs.greatest(size.take(order)))
    return {
        PAIR: pair_of(targets["target_feature"].take(target.take(first)), source.take(first), offset.take(first)),
        "sums": np.stack(sums, 1),
        "largest_size": size.take(largest),
        "largest_prompt": prompt.take(largest),
        "largest_pos": targets["target_pos"].take(target.take(largest)),
        "largest_value": attribution.take(largest),
    }
