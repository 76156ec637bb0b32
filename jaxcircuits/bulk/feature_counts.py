"""How often features are active: additive tables, from which the denominators of pairs follow at every offset.

A source at position t and a target at p = t + offset are a *position pair*. How many there are at each offset follows
from histograms: a source with `room` r (counted positions after it) takes part at the offsets 0..r, a target likewise
with those before it. So one histogram a feature, summed from its end, holds the counts for every offset, and the
histograms of two parts of a corpus add up. Kept besides: where in the prompt a feature is active, and how often it is
active again k positions later; what pairs would do by chance follows from these (`estimates.association`).

Of one part there are about as many bins as activations, so histograms are made of some parts' activations at once.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from jaxcircuits.ahead import each_ahead
from jaxcircuits.attribution.edges import Columns
from jaxcircuits.bulk.merging import BATCH, merged
from jaxcircuits.bulk.scratch import scratch_table
from jaxcircuits.bulk.sorting import BLOCK, blocks, in_order, listed
from jaxcircuits.bulk.sum_rows import SUMMED, Layout, SumRows, numbers_of, read_rows

if TYPE_CHECKING:
    import pyarrow as pa

ALL, SOURCE, TARGET = -1, 0, 1
"""Sides: every counted position, as if one feature were always active; source features; target features."""

ROOM, POSITION, LAG, STORIES = 0, 1, 2, 3
"""Kinds of bins: positions after (before) it; its position; positions to a later activation; 0, once a story."""


FEATURES = Layout("bin", ("count", "total", "squares"))
"""`bin` is one number for a side, feature, kind and place; `kernels.count_bins` makes it."""


def _of_bin(number: Int[np.ndarray, "n"]) -> Columns:
    return {
        "side": ((number >> 60) - 1).astype(np.int8),
        "feature": (number >> 34 & (1 << 26) - 1).astype(np.int32),
        "kind": (number >> 32 & 3).astype(np.int8),
        "at": (number & (1 << 32) - 1).astype(np.int32),
    }


ACTIVE = ("side", "prompt", "pos", "feature", "room", "activation")
"""Columns of what is counted: an activation, and how many positions it pairs with."""


def active_features(activations: "pa.Table", prompts: "pa.Table") -> "pa.Table":
    """What is active at the positions of some prompts that count, as it is counted.

    Args:
        activations: `side` (0 source, 1 target), `prompt`, `pos`, `feature`, `activation`: whatever is active at a
            position that counts.
        prompts: `prompt`, `n_tokens`, `first_counted` (the first position that counts).

    Returns:
        `ACTIVE`, a row for every position and one for every activation.
    """
    import pyarrow as pa

    number, length, first = (prompts[name].to_numpy() for name in ("prompt", "n_tokens", "first_counted"))
    counted = np.maximum(length - first, 0)
    within = np.arange(counted.sum()) - np.repeat(np.cumsum(counted) - counted, counted)
    always = {
        "side": np.full(len(within), ALL),
        "prompt": np.repeat(number, counted),
        "pos": within + np.repeat(first, counted),
        "feature": np.zeros(len(within)),
        "room": np.repeat(counted, counted) - 1 - within,
        "activation": np.zeros(len(within)),
    }
    found = {name: activations[name].to_numpy() for name in ACTIVE if name != "room"}
    order = np.argsort(number)
    row = order[np.searchsorted(number, found["prompt"], sorter=order)]
    later, earlier = length[row] - 1 - found["pos"], found["pos"] - first[row]
    found["room"] = np.where(found["side"] == SOURCE, later, earlier)
    kinds = dict.fromkeys(ACTIVE, np.int32) | {"side": np.int8, "activation": np.float32}
    return pa.table({name: np.concatenate([always[name], found[name]]).astype(kinds[name]) for name in ACTIVE})


def merged_counts(files: Sequence[Path]) -> Iterator[SumRows]:
    """The histograms of features, some rows at a time.

    Args:
        files: Of histograms, or of what `active_features` returns.

    Raises:
        OSError, pyarrow.ArrowInvalid: A file is missing or damaged.
    """
    import pyarrow as pa

    counted = [file for file in files if file.suffix == SUMMED]
    active = [scratch_table(file) for file in files if file not in counted]
    some = []
    if active:
        table = pa.concat_tables(active)
        some.append(feature_counts({name: table[name].to_numpy() for name in ACTIVE}))
    if len(counted) + len(some) > 1:
        return merged([*counted, *some], FEATURES)
    return chain(*(read_rows(file, FEATURES.cells, BATCH) for file in counted), *some)


def feature_counts(active: Columns) -> Iterator[SumRows]:
    """Histograms of what `active_features` returns: how many, and of the activations their sum and sum of squares.

    Returns:
        `bin`, which says side, feature, kind and place, and what `FEATURES` adds up of each that occurs: those of some
        features at a time.
    """

    def some() -> Iterator[tuple[int, Int[np.ndarray, "_n"]]]:
        for side in (ALL, SOURCE, TARGET):
            rows = np.flatnonzero(active["side"] == side)
            feature, prompt, pos = (active[name].take(rows) for name in ("feature", "prompt", "pos"))
            rows = rows.take(in_order(feature)[1] if listed(prompt, pos) else np.lexsort((pos, prompt, feature)))
            ends = np.bincount(feature).cumsum()
            for block in blocks(ends, BLOCK):
                yield side, rows[ends[block.start - 1] if block.start else 0 : ends[block.stop - 1]]

    return each_ahead(lambda of: _counts(of[0], {name: active[name].take(of[1]) for name in ACTIVE[1:]}), some())


def _counts(side: int, active: Columns) -> SumRows:
    """Histograms of some features of a side, their activations together."""
    from jaxcircuits.bulk.kernels import count_bins

    width = 1 + max(int(active[name].max(initial=0)) for name in ("room", "pos"))
    rows = count_bins(
        width, side != ALL, *(active[name] for name in ("feature", "prompt", "pos", "room", "activation"))
    )
    rows[:, 0] |= side + 1 << 60
    return rows


@dataclass(frozen=True)
class Side:
    """The features of one side. Row -1 of each array is of a feature that never was active.

    Attributes:
        features: Their numbers, ascending.
        count: How often active where the position `offset` away exists, by offset.
        total: The sum of those activations.
        squares: The sum of their squares.
        position: How often active, by position.
        lag: How often active again, by the number of positions in between.
        stories: In how many prompts active.
    """

    features: Int[np.ndarray, "feature"]
    count: Float[np.ndarray, "feature+1 offset"]
    total: Float[np.ndarray, "feature+1 offset"]
    squares: Float[np.ndarray, "feature+1 offset"]
    position: Float[np.ndarray, "feature+1 pos"]
    lag: Float[np.ndarray, "feature+1 offset"]
    stories: Float[np.ndarray, "feature+1"]

    def rows(self, feature: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
        """The rows of some features."""
        return self._row.take(feature, mode="clip")

    @cached_property
    def _row(self) -> Int[np.ndarray, "_n"]:
        row = np.full(self.features.max(initial=0) + 2, -1)
        row[self.features] = np.arange(len(self.features))
        return row


@dataclass(frozen=True)
class FeatureCounts:
    """Merged histograms, as arrays.

    Attributes:
        pairs: How many position pairs there are, by offset.
        position: How many prompts count a position, by position.
        source: The sources.
        target: The targets.
    """

    pairs: Float[np.ndarray, "offset"]
    position: Float[np.ndarray, "pos"]
    source: Side
    target: Side

    @cached_property
    def source_rates(self) -> Float[np.ndarray, "row pos"]:
        """The share of prompts that count a position in which a source is active there."""
        return self.source.position / np.maximum(self.position, 1)

    @cached_property
    def autocorrelations(self) -> tuple[Float[np.ndarray, "_source offset"], Float[np.ndarray, "_target offset"]]:
        """Of sources and of targets being active, by the number of positions in between, within prompts.

        Those of sources are times the share of position pairs so far apart; of none in between they are 0.
        """
        source, target = (self._autocorrelation(side) for side in (self.source, self.target))
        source *= self.pairs / max(self.pairs[0], 1)
        source[:, 0] = 0
        return source, target

    def _autocorrelation(self, side: Side) -> Float[np.ndarray, "row offset"]:
        share = (side.count[:, 0] / max(self.pairs[0], 1))[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            r = (side.lag / self.pairs - share**2) / (share - share**2)
        return np.where((self.pairs > 0) & (share > 0) & (share < 1), r, 0.0)


def counts_of(merged: Iterable[SumRows]) -> FeatureCounts | None:
    """Reads merged histograms; `None` where no activation was given for one of the sides."""
    found = [(_of_bin(rows[:, 0]), numbers_of(rows)) for rows in merged]
    if not all(any((bins["side"] == side).any() for bins, _ in found) for side in (SOURCE, TARGET)):
        return None
    width = 1 + max(int(bins["at"].max()) for bins, _ in found if len(bins["at"]))
    every, source, target = each_ahead(lambda side: _side(found, side, width), (ALL, SOURCE, TARGET))
    return FeatureCounts(every.count[0], every.position[0], source, target)


def _side(found: Sequence[tuple[Columns, Float[np.ndarray, "_n 3"]]], side: int, width: int) -> Side:
    """The histograms of a side, of bins and of what they hold, some at a time."""
    mine = [(bins, sums, bins["side"] == side) for bins, sums in found]
    mine = [some for some in mine if some[2].any()]
    features = np.unique(np.concatenate([np.unique(bins["feature"][ours]) for bins, _, ours in mine]))
    rooms = np.zeros((len(FEATURES.sums), len(features) + 1, width))
    counts = {kind: np.zeros((len(features) + 1, width)) for kind in (POSITION, LAG, STORIES)}
    for bins, sums, ours in mine:
        for kind in (ROOM, *counts):
            rows = np.flatnonzero(ours & (bins["kind"] == kind))
            cells = np.searchsorted(features, bins["feature"][rows]), bins["at"][rows]
            if kind == ROOM:
                rooms[:, *cells] = sums[rows].T
            else:
                counts[kind][cells] = sums[rows, 0]
    least = rooms[..., ::-1]
    np.cumsum(least, axis=-1, out=least)  # from those with as much room, those with at least as much
    count, total, squares = rooms
    return Side(features, count, total, squares, counts[POSITION], counts[LAG], counts[STORIES][:, 0])
