"""What the edges of one pair of features add up to: additive tables, one row a (target, source, offset)."""

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from jaxcircuits.bulk.merging import Columns, Layout
from jaxcircuits.bulk.sorting import Groups, in_order

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

BLOCK = 2**16
"""Edges that are summed at once: as many as a core's cache holds."""


def _number(columns: Columns) -> Int[np.ndarray, "n"]:
    target, source, offset = (columns[name].astype(np.int64) for name in PAIRS.key)
    return target << 40 | source << 16 | offset


PAIRS = Layout(dict.fromkeys(("target_feature", "source_feature", "offset"), np.int32), _number, SUMS, largest=True)


def pair_sums(edges: "pa.Table") -> "pa.Table":
    """Sums over edges and over stories' sums, float64, whatever the order of the edges."""
    import pyarrow as pa

    columns = {name: edges[name].to_numpy() for name in _READ}
    prompt, pos = columns["prompt"], columns["target_pos"]
    if not np.all((prompt[1:] > prompt[:-1]) | ((prompt[1:] == prompt[:-1]) & (pos[1:] >= pos[:-1]))):
        order = np.lexsort((pos, prompt))  # as an engine lists them
        columns = {name: values.take(order) for name, values in columns.items()}
    columns["offset"] = columns["target_pos"] - columns.pop("source_pos")
    pair, order = in_order(*(columns[name] for name in PAIRS.key))
    bounds = [*np.unique(np.searchsorted(pair, pair[::BLOCK])), len(pair)]  # between pairs
    blocks = [slice(*ends) for ends in pairwise(bounds)]
    return pa.concat_tables(
        [PAIRS.schema.empty_table(), *(_block(pair[rows], order[rows], columns) for rows in blocks)]
    )


_READ = ("prompt", "target_pos", "target_feature", "source_pos", "source_feature")
_READ += ("attribution", "source_act", "target_act")


def _block(pair: Int[np.ndarray, "n"], order: Int[np.ndarray, "n"], edges: Columns) -> "pa.Table":
    """The sums of the edges `order`, which are sorted by pair, prompt and position."""
    prompt, attribution, source_act, target_act = (
        edges[name].take(order) for name in ("prompt", "attribution", "source_act", "target_act")
    )
    pairs, stories = Groups.of(pair), Groups.of(pair, prompt)
    of_story = Groups.of(pair.take(stories.starts))
    wide, size = attribution.astype(np.float64), np.abs(attribution)
    n, total, story_n = pairs.sizes, stories.add(wide), stories.sizes.astype(np.float64)
    both = (source_act != 0) & (target_act > 0)
    sums = {
        "edges": n,
        "both_active": n if both.all() else pairs.add(both),
        "positive": pairs.add(attribution > 0),
        "total": of_story.add(total),
        "absolute": pairs.add(size),
        "squares": pairs.add(wide * wide),
        "weighted": pairs.add(wide * target_act),
        "product": pairs.add(source_act.astype(np.float64) * target_act),
        "stories": of_story.sizes,
        "story_squares": of_story.add(total * total),
        "story_cross": of_story.add(total * story_n),
        "edges_2": of_story.add(story_n * story_n),
        "edges_3": of_story.add(story_n * story_n * story_n),
    }
    first, at = order.take(pairs.starts), pairs.greatest(size)
    largest = order.take(at)
    columns = {name: edges[name].take(first) for name in PAIRS.key}
    columns |= {"largest_size": size.take(at), "largest_value": attribution.take(at)}
    columns |= {"largest_prompt": -prompt.take(at), "largest_pos": -edges["target_pos"].take(largest)}
    return PAIRS.table(columns | sums)
