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
    prompt, pos, earlier = (edges[name].to_numpy() for name in ("prompt", "target_pos", "source_pos"))
    keys = dict(
        zip(
            PAIRS.key,
            (edges["target_feature"].to_numpy(), edges["source_feature"].to_numpy(), pos - earlier),
            strict=True,
        )
    )
    pair, order = _sorted(keys, prompt, pos)
    pairs, stories = Groups.of(pair), Groups.of(pair, prompt.take(order))
    of_story = Groups.of(pair.take(stories.starts))
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
    first = order.take(pairs.starts)
    columns = {name: values.take(first) for name, values in keys.items()}
    largest = pairs.greatest(np.abs(attribution))
    value, at = attribution[largest], order[largest]
    columns |= {"largest_size": np.abs(value), "largest_value": value}
    columns |= {"largest_prompt": -prompt[at], "largest_pos": -pos[at]}
    return PAIRS.table(columns | sums)


def _sorted(
    keys: Columns, prompt: Int[np.ndarray, "n"], pos: Int[np.ndarray, "n"]
) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """A number for each pair, ascending, and which edge that is: those of a pair by prompt and position."""
    bits = [int(values.max(initial=0)).bit_length() for values in keys.values()]
    rows = len(prompt).bit_length()
    listed = np.all((prompt[1:] > prompt[:-1]) | ((prompt[1:] == prompt[:-1]) & (pos[1:] >= pos[:-1])))
    if not listed or sum(bits) + rows > 63:
        number = _number(keys)
        order = np.lexsort((pos, prompt, number))
        return number.take(order), order
    # As an engine lists them. Pair and edge in one number are sorted several times as fast as pairs in a stable order.
    packed = np.zeros(len(prompt), np.int64)
    for values, width in (*zip(keys.values(), bits, strict=True), (np.arange(len(prompt)), rows)):
        packed <<= width
        packed |= values
    packed.sort()
    return packed >> rows, packed & (1 << rows) - 1
