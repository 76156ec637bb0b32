"""The edges of a part of a corpus, as sums are made of them: by their targets.

Edges into one target lie together as an engine lists them, so that edges stay where they are, and only their targets
are brought into the order of features.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, Int64

from jaxcircuits.attribution.edges import EDGE_COLUMNS, Columns, concatenate
from jaxcircuits.bulk.sorting import Groups, listed

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
    if not listed(columns["prompt"], columns["target_pos"]):
        order = np.lexsort(tuple(columns[name] for name in ("target_feature", "target_pos", "prompt")))
        columns = {name: values.take(order) for name, values in columns.items()}
    targets = Groups.of(*(columns[name] for name in TARGET[:3]))
    bounds = np.append(targets.starts, targets.n).astype(np.int32)
    lists = {name: pa.ListArray.from_arrays(bounds, columns[name]) for name in EDGE}
    return pa.table({name: columns[name].take(targets.starts) for name in TARGET} | lists)


class ByFeature(NamedTuple):
    """Edges as arrays: targets by feature, prompt and position, edges as they lie.

    Attributes:
        feature: Of each target, ascending.
        prompt: Where it is active.
        pos: Where in the prompt.
        act: Its activation.
        start: Its first edge.
        stop: The one after its last.
        source_pos: Of each edge, where the source is active.
        source_feature: The source.
        attribution: Of the edge.
        source_act: The source's activation.
    """

    feature: Int32[np.ndarray, "target"]
    prompt: Int32[np.ndarray, "target"]
    pos: Int32[np.ndarray, "target"]
    act: Float32[np.ndarray, "target"]
    start: Int64[np.ndarray, "target"]
    stop: Int64[np.ndarray, "target"]
    source_pos: Int32[np.ndarray, "edge"]
    source_feature: Int32[np.ndarray, "edge"]
    attribution: Float32[np.ndarray, "edge"]
    source_act: Float32[np.ndarray, "edge"]


class Edges:
    """The edges of some parts, one after the other, in memory that is used again once it is cleared."""

    def __init__(self) -> None:
        self.number = 0
        self._targets: list[Columns] = []
        self._room = {name: np.empty(0, EDGE_COLUMNS[name]) for name in EDGE}

    def add(self, table: "pa.Table") -> None:
        """Takes a copy of what `by_target` returns, of later prompts than what is there."""
        if not table.num_rows:
            return
        table = table.combine_chunks()
        lists = {name: table[name].chunk(0) for name in EDGE}
        bounds = lists[EDGE[0]].offsets.to_numpy().astype(np.int64)
        n = self.number + int(bounds[-1] - bounds[0])
        for name, values in lists.items():
            if n > len(self._room[name]):
                more = np.empty(max(n, 2 * len(self._room[name])), self._room[name].dtype)  # memory once it is used
                more[: self.number] = self._room[name][: self.number]
                self._room[name] = more
            self._room[name][self.number : n] = values.values.to_numpy()[bounds[0] : bounds[-1]]
        bounds += self.number - bounds[0]
        targets = {name: table[name].to_numpy() for name in TARGET}
        self._targets.append(targets | {"start": bounds[:-1], "stop": bounds[1:]})
        self.number = n

    def clear(self) -> None:
        """Forgets all of them."""
        self.number = 0
        self._targets.clear()

    def by_feature(self) -> ByFeature:
        """All of them, until more are added."""
        types = {name: EDGE_COLUMNS[name] for name in TARGET} | {"start": np.int64, "stop": np.int64}
        targets = concatenate(self._targets, types)
        order = np.argsort(targets["target_feature"], kind="stable")
        names = ("target_feature", "prompt", "target_pos", "target_act", "start", "stop")
        edges = {name: room[: self.number] for name, room in self._room.items()}
        return ByFeature(*(targets[name].take(order) for name in names), **edges)
