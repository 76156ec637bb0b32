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
    offset = pos - earlier
    order = _order(target, source, offset, prompt, pos)
    keys = [values.take(order) for values in (target, source, offset)]
    pairs, stories = Groups.of(*keys), Groups.of(*keys, prompt.take(order))
    of_story = Groups.of(*(values.take(stories.starts) for values in keys))
    attribution, source_act, target_act = (
        edges[name].to_numpy().take(order) for name in ("attribution", "source_act", "target_act")
    )
    wide = attribution.astype(np.float64)
    n, total = stories.sizes.astype(np.float64), stories.add(wide)
    sums = {
        "edges": pairs.sizes,
        "both_active": pairs.add((source_act != 0) & (target_act > 0)),
        "positive": pairs.add(attribution > 0),
        "total": pairs.add(wide),
        "absolute": pairs.add(np.abs(wide)),
        "squares": pairs.add(wide * wide),
        "weighted": pairs.add(wide * target_act),
        "product": pairs.add(source_act.astype(np.float64) * target_act),
        "stories": of_story.sizes,
        "story_squares": of_story.add(total * total),
        "story_cross": of_story.add(total * n),
        "edges_2": of_story.add(n * n),
        "edges_3": of_story.add(n * n * n),
    }
    columns = {name: values.take(pairs.starts) for name, values in zip(PAIRS.key, keys, strict=True)}
    largest = pairs.greatest(np.abs(attribution))
    value, at = attribution[largest], order[largest]
    columns |= {"largest_size": np.abs(value), "largest_value": value}
    columns |= {"largest_prompt": -prompt[at], "largest_pos": -pos[at]}
    return PAIRS.table(columns | sums)


def _order(
    target: Int[np.ndarray, "n"],
    source: Int[np.ndarray, "n"],
    offset: Int[np.ndarray, "n"],
    prompt: Int[np.ndarray, "n"],
    pos: Int[np.ndarray, "n"],
) -> Int[np.ndarray, "n"]:
    """The order by pair, then by prompt and position."""
    if not np.all((prompt[1:] > prompt[:-1]) | ((prompt[1:] == prompt[:-1]) & (pos[1:] >= pos[:-1]))):
        return np.lexsort((pos, prompt, offset, source, target))
    # As an engine lists them. Pair and row in one number are sorted several times as fast as pairs in a stable order.
    bits = [int(values.max(initial=0)).bit_length() for values in (target, source, offset)]
    rows = len(prompt).bit_length()
    if sum(bits) + rows > 63:
        return np.lexsort((offset, source, target))
    packed = target.astype(np.int64)
    for values, width in ((source, bits[1]), (offset, bits[2]), (np.arange(len(prompt)), rows)):
        packed <<= width
        packed |= values
    packed.sort()
    packed &= (1 << rows) - 1
    return packed
