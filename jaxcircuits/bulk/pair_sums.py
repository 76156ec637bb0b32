"""What the edges of one pair of features add up to: additive tables, one row a (target, source, offset)."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from jaxcircuits.bulk.merging import Columns, Groups, Layout

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


def _number(columns: Columns) -> Int[np.ndarray, "n"]:
    target, source, offset = (columns[name].astype(np.int64) for name in PAIRS.key)
    return target << 40 | source << 16 | offset


PAIRS = Layout(dict.fromkeys(("target_feature", "source_feature", "offset"), np.int32), _number, SUMS, largest=True)


def pair_sums(edges: "pa.Table") -> "pa.Table":
    """Sums over edges and over stories' sums, float64, whatever the order of the edges."""
    target, source, pos, earlier, prompt = (
        edges[name].to_numpy() for name in ("target_feature", "source_feature", "target_pos", "source_pos", "prompt")
    )
    key = _number({"target_feature": target, "source_feature": source, "offset": pos - earlier})
    if np.all((prompt[1:] > prompt[:-1]) | ((prompt[1:] == prompt[:-1]) & (pos[1:] >= pos[:-1]))):
        order = np.argsort(key, kind="stable")  # as an engine lists them
    else:
        order = np.lexsort((pos, prompt, key))
    key = key[order]
    attribution, source, target = (edges[n].to_numpy()[order] for n in ("attribution", "source_act", "target_act"))
    wide = attribution.astype(np.float64)
    pairs, stories = Groups.of(key), Groups.of(key, prompt[order])
    of_story = Groups.of(key[stories.starts])
    n, total = np.bincount(stories.group).astype(np.float64), stories.add(wide)
    sums = {
        "edges": np.bincount(pairs.group),
        "both_active": pairs.add((source != 0) & (target > 0)),
        "positive": pairs.add(attribution > 0),
        "total": pairs.add(wide),
        "absolute": pairs.add(np.abs(wide)),
        "squares": pairs.add(wide * wide),
        "weighted": pairs.add(wide * target),
        "product": pairs.add(source.astype(np.float64) * target),
        "stories": np.bincount(of_story.group),
        "story_squares": of_story.add(total * total),
        "story_cross": of_story.add(total * n),
        "edges_2": of_story.add(n * n),
        "edges_3": of_story.add(n * n * n),
    }
    of = key[pairs.starts]
    columns = {"target_feature": of >> 40, "source_feature": of >> 16 & 0xFFFFFF, "offset": of & 0xFFFF}
    largest = pairs.greatest(np.abs(attribution))
    value, at = attribution[largest], order[largest]
    columns |= {"largest_size": np.abs(value), "largest_value": value}
    columns |= {"largest_prompt": -prompt[at], "largest_pos": -pos[at]}
    return PAIRS.table(columns | sums)
