"""The edges of a part of a corpus, as sums are made of them: by their targets.

Edges into one target lie together as an engine lists them, so that edges stay where they are, and only their targets
are brought into the order of features.
"""

from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
from jaxtyping import Float32, Int32

from jaxcircuits.attribution.edges import EDGE_COLUMNS, Columns
from jaxcircuits.bulk.sorting import Groups

if TYPE_CHECKING:
    import pyarrow as pa

TARGET = ("prompt", "target_pos", "target_feature", "target_act")
"""Columns of a target."""

EDGE = ("source_pos", "source_feature", "attribution", "source_act")
"""Of its edges, lists."""


def by_target(edges: "pa.Table") -> "pa.Table":
    """One row a target at a position, whatever the order of the edges.

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
    bounds = np.append(targets.starts, targets.n).astype(np.int32)
    lists = {name: pa.ListArray.from_arrays(bounds, columns[name]) for name in EDGE}
    return pa.table({name: columns[name].take(targets.starts) for name in TARGET} | lists)


def _listed(edges: Columns) -> bool:
    """Whether edges come by prompt and position, as an engine lists them."""
    prompt, pos = edges["prompt"], edges["target_pos"]
    same = prompt[1:] == prompt[:-1]
    return bool(np.all((prompt[1:] > prompt[:-1]) | (same & (pos[1:] >= pos[:-1]))))


class PartEdges(NamedTuple):
    """What `by_target` returns, as arrays: targets by feature, prompt and position, edges as they lie.

    Attributes:
        feature: Of each target, ascending.
        prompt: Where it is active.
        pos: Where in the prompt.
        act: Its activation.
        start: Its first edge.
        stop: The one after its last.
        source_feature: Of each edge.
        source_pos: Where the source is active.
        attribution: Of the edge.
        source_act: The source's activation.
    """

    feature: Int32[np.ndarray, "target"]
    prompt: Int32[np.ndarray, "target"]
    pos: Int32[np.ndarray, "target"]
    act: Float32[np.ndarray, "target"]
    start: Int32[np.ndarray, "target"]
    stop: Int32[np.ndarray, "target"]
    source_feature: Int32[np.ndarray, "edge"]
    source_pos: Int32[np.ndarray, "edge"]
    attribution: Float32[np.ndarray, "edge"]
    source_act: Float32[np.ndarray, "edge"]

    @classmethod
    def of(cls, table: "pa.Table") -> Self:
        """Those of a table from `by_target`."""
        table = table.combine_chunks()
        lists = {name: table[name].chunk(0) for name in EDGE}
        bounds = lists[EDGE[0]].offsets.to_numpy()
        targets = {name: table[name].to_numpy() for name in TARGET}
        order = np.argsort(targets["target_feature"], kind="stable")
        feature, prompt, pos, act = (
            targets[name].take(order) for name in ("target_feature", "prompt", "target_pos", "target_act")
        )
        edges = {name: values.values.to_numpy() for name, values in lists.items()}
        return cls(feature, prompt, pos, act, bounds[:-1].take(order), bounds[1:].take(order), **edges)

    @classmethod
    def none(cls) -> Self:
        """Of a part that has no edges."""
        import pyarrow as pa

        return cls.of(by_target(pa.table({name: np.zeros(0, EDGE_COLUMNS[name]) for name in (*TARGET, *EDGE)})))
