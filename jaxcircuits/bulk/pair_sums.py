"""What the edges of one pair of features add up to: additive tables, one row a (target, source, offset)."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

if TYPE_CHECKING:
    import pyarrow as pa

KEY = ("target_feature", "source_feature", "offset")
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
"""Columns that add up. Beside them `largest`: the edge of largest |attribution|, whose maximum is taken; its prompt and
position are negated, so that of equal ones the first is the largest."""


def pair_sums(edges: "pa.Table") -> "pa.Table":
    """Sums over edges and over stories' sums, float64, whatever the order of the edges."""
    import pyarrow as pa

    key, prompt, pos = _keys(edges)
    order = np.lexsort((pos, prompt, key))
    key, prompt, pos = key[order], prompt[order], pos[order]

    def column(name: str) -> np.ndarray:
        return edges[name].to_numpy()[order].astype(np.float64)

    attribution, source, target = (column(n) for n in ("attribution", "source_act", "target_act"))
    starts = _starts(key, prompt)  # of stories
    by_story = {
        "edges": np.diff(starts, append=len(key)).astype(np.float64),
        "both_active": _add((source != 0) & (target > 0), starts),
        "positive": _add(attribution > 0, starts),
        "total": _add(attribution, starts),
        "absolute": _add(np.abs(attribution), starts),
        "squares": _add(attribution**2, starts),
        "weighted": _add(attribution * target, starts),
        "product": _add(source * target, starts),
        "stories": np.ones(len(starts)),
    }
    n, total = by_story["edges"], by_story["total"]
    by_story |= {"story_squares": total**2, "story_cross": total * n, "edges_2": n**2, "edges_3": n**3}
    stories = _starts(key[starts])
    pairs = starts[stories]
    sums = {name: _add(by_story[name], stories) for name in SUMS}

    size = np.abs(attribution)
    greatest = np.maximum.reduceat(size, pairs) if len(pairs) else size
    row = np.repeat(np.arange(len(pairs)), np.diff(pairs, append=len(key)))
    at = np.flatnonzero(size == greatest[row])
    at = at[_starts(row[at])]
    largest = {
        "size": size[at].astype(np.float32),
        "prompt": -prompt[at].astype(np.int32),
        "pos": -pos[at].astype(np.int32),
        "value": attribution[at].astype(np.float32),
    }
    key = key[pairs]
    names = dict(zip(KEY, (key >> 40, key >> 16 & 0xFFFFFF, key & 0xFFFF), strict=True))
    return pa.table(
        {name: pa.array(values, pa.int32()) for name, values in names.items()}
        | sums
        | {"largest": pa.StructArray.from_arrays([pa.array(v) for v in largest.values()], list(largest))}
    )


def _keys(edges: "pa.Table") -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """A number for each pair in the order of `KEY`, and where the edge is."""
    target, source, pos, prompt, earlier = (
        edges[n].to_numpy().astype(np.int64)
        for n in ("target_feature", "source_feature", "target_pos", "prompt", "source_pos")
    )
    return target << 40 | source << 16 | (pos - earlier), prompt, pos


def _starts(*keys: Int[np.ndarray, "n"]) -> Int[np.ndarray, "_n"]:
    """Where runs of equal keys begin."""
    changes = np.zeros(len(keys[0]), bool)
    changes[:1] = True
    for key in keys:
        changes[1:] |= key[1:] != key[:-1]
    return np.flatnonzero(changes)


def _add(values: np.ndarray, starts: Int[np.ndarray, "_n"]) -> np.ndarray:
    return np.add.reduceat(values.astype(np.float64), starts) if len(starts) else np.zeros(0)
