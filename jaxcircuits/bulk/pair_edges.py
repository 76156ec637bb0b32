"""The edges of a part of a corpus, as sums are made of them: by their targets.

Edges into one target lie together as an engine lists them, so that bringing whole targets into the order of their
features costs less than sorting edges; those of a few features are then sorted in a core's cache (`pair_sums`).
"""

from typing import TYPE_CHECKING

import numpy as np

from jaxcircuits.bulk.scratch import Columns
from jaxcircuits.bulk.sorting import Groups

if TYPE_CHECKING:
    import pyarrow as pa

TARGET = ("prompt", "target_pos", "target_feature", "target_act")
"""Columns of a target."""

EDGE = ("source_pos", "source_feature", "attribution", "source_act")
"""Of its edges, lists."""


def by_target(edges: "pa.Table") -> "pa.Table":
    """One row a target at a position, by feature, prompt and position, whatever the order of the edges.

    >>> import pyarrow as pa
    >>> from jaxcircuits.bulk.pair_edges import EDGE, TARGET, by_target
    >>> edges = pa.table(dict.fromkeys((*TARGET, *EDGE), [0, 0]) | {"source_feature": [3, 5]})
    >>> by_target(edges)["source_feature"].to_pylist()
    [[3, 5]]
    """
    import pyarrow as pa

    columns = {name: edges[name].to_numpy() for name in (*TARGET, *EDGE)}
    if not _listed(columns):
        order = np.lexsort(tuple(columns[name] for name in ("target_feature", "target_pos", "prompt")))
        columns = {name: values.take(order) for name, values in columns.items()}
    targets = Groups.of(*(columns[name] for name in TARGET[:3]))
    rows = {name: columns[name].take(targets.starts) for name in TARGET}
    order = np.argsort(rows["target_feature"], kind="stable")
    starts, sizes = targets.starts.take(order), targets.sizes.take(order).astype(np.int64)
    bounds = np.append(0, sizes.cumsum())
    edge = np.repeat(starts - bounds[:-1], sizes) + np.arange(bounds[-1])
    lists = {name: pa.ListArray.from_arrays(bounds.astype(np.int32), columns[name].take(edge)) for name in EDGE}
    return pa.table({name: values.take(order) for name, values in rows.items()} | lists)


def _listed(edges: Columns) -> bool:
    """Whether edges come by prompt and position, as an engine lists them."""
    prompt, pos = edges["prompt"], edges["target_pos"]
    same = prompt[1:] == prompt[:-1]
    return bool(np.all((prompt[1:] > prompt[:-1]) | (same & (pos[1:] >= pos[:-1]))))


class PartEdges:
    """What `by_target` returns, as arrays.

    Attributes:
        targets: The columns `TARGET`.
        bounds: Where each target's edges begin, and where the last one's end.
        edges: The columns `EDGE`, one row an edge.
    """

    def __init__(self, table: "pa.Table") -> None:
        table = table.combine_chunks()
        lists = {name: table[name].chunk(0) for name in EDGE}
        self.targets = {name: table[name].to_numpy() for name in TARGET}
        self.bounds = lists[EDGE[0]].offsets.to_numpy()
        self.edges = {name: values.values.to_numpy() for name, values in lists.items()}

    def of(self, features: slice) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The targets that are some features, and their edges, with the row of its target as `target`."""
        ends = np.array((features.start, features.stop), np.int32)
        first, last = np.searchsorted(self.targets["target_feature"], ends)
        bounds = self.bounds[first : last + 1]
        edges = {name: values[bounds[0] : bounds[-1]] for name, values in self.edges.items()}
        edges["target"] = np.repeat(np.arange(last - first), np.diff(bounds))
        return {name: values[first:last] for name, values in self.targets.items()}, edges
