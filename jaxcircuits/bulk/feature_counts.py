"""How often features are active: additive tables, from which the denominators of pairs follow at every offset.

A source at position t and a target at p = t + offset are a *position pair*. How many there are at each offset follows
from histograms: a source with `room` r (counted positions after it) takes part at the offsets 0..r, a target likewise
with those before it. So one histogram a feature, summed from its end, holds the counts for every offset, and the
histograms of two parts of a corpus add up. Kept besides: where in the prompt a feature is active, and how often it is
active again k positions later; what pairs would do by chance follows from these (`estimates.association`).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from jaxcircuits.bulk.merging import Layout, added
from jaxcircuits.bulk.sorting import Groups, in_order

if TYPE_CHECKING:
    import pyarrow as pa

ALL, SOURCE, TARGET = -1, 0, 1
"""Sides: every counted position, as if one feature were always active; source features; target features."""

ROOM, POSITION, LAG, STORIES = 0, 1, 2, 3
"""Kinds of bins: positions after (before) it; its position; positions to a later activation; 0, once a story."""


FEATURES = Layout("bin", ("count", "total", "squares"))
"""`bin` is one number for a side, feature, kind and place."""


def _bin(side: int, feature: Int[np.ndarray, "n"], kind: int, at: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    return side + 1 << 60 | feature.astype(np.int64) << 34 | kind << 32 | at


def _of_bin(number: Int[np.ndarray, "n"]) -> dict[str, Int[np.ndarray, "n"]]:
    return {
        "side": (number >> 60) - 1,
        "feature": number >> 34 & (1 << 26) - 1,
        "kind": number >> 32 & 3,
        "at": number & (1 << 32) - 1,
    }


def feature_counts(activations: "pa.Table", prompts: "pa.Table") -> "pa.Table":
    """Histograms of some prompts: `count`, and of the activations their sum (`total`) and sum of `squares`.

    Args:
        activations: `side` (0 source, 1 target), `prompt`, `pos`, `feature`, `activation`: whatever is active at a
            position that counts.
        prompts: `prompt`, `n_tokens`, `first_counted` (the first position that counts).

    Returns:
        One row a side, feature, kind and bin that occurs.
    """
    import pyarrow as pa

    number, length, first = (prompts[name].to_numpy() for name in ("prompt", "n_tokens", "first_counted"))
    rows = _every_position(length, first)
    order = np.argsort(number)
    sides = activations["side"].to_numpy()
    for side in (SOURCE, TARGET):
        mine = activations.filter(pa.array(sides == side))
        prompt, pos, feature = (mine[name].to_numpy() for name in ("prompt", "pos", "feature"))
        row = order[np.searchsorted(number, prompt, sorter=order)]
        room = length[row] - 1 - pos if side == SOURCE else pos - first[row]
        act = mine["activation"].to_numpy().astype(np.float64)
        rows += [_histogram(side, ROOM, feature, room, act), _histogram(side, POSITION, feature, pos)]
        rows += [_lags(side, prompt, pos, feature), _stories(side, prompt, feature)]
    bins, sums = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    return FEATURES.table(added({"bin": bins, "sums": sums}, FEATURES))


Rows = tuple[Int[np.ndarray, "_n"], Float[np.ndarray, "_n 3"]]
"""Bins, and what `FEATURES` adds up of each."""


def _every_position(length: Int[np.ndarray, "n"], first: Int[np.ndarray, "n"]) -> list[Rows]:
    """Of all counted positions, which pair with how many later ones, and which positions there are."""
    counted = np.maximum(length - first, 0)
    within = np.arange(counted.sum()) - np.repeat(np.cumsum(counted) - counted, counted)
    feature = np.zeros(len(within), np.int64)
    return [
        _histogram(ALL, ROOM, feature, np.repeat(counted, counted) - 1 - within),
        _histogram(ALL, POSITION, feature, within + np.repeat(first, counted)),
    ]


def _histogram(side: int, kind: int, feature: np.ndarray, at: np.ndarray, act: np.ndarray | None = None) -> Rows:
    number, order = in_order(feature, at)
    groups = Groups.of(number)
    sums = np.zeros((len(groups.starts), len(FEATURES.sums)))
    sums[:, 0] = groups.sizes
    if act is not None:
        act = act.take(order)
        sums[:, 1], sums[:, 2] = groups.add(act), groups.add(act * act)
    first = order.take(groups.starts)
    return _bin(side, feature.take(first), kind, at.take(first)), sums


def _lags(side: int, prompt: np.ndarray, pos: np.ndarray, feature: np.ndarray) -> Rows:
    """How often a feature that is active is active again, by the number of positions in between."""
    _, order = in_order(feature, prompt, pos)
    of, apart = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
    prompt, pos, feature = (values.take(order) for values in (prompt, pos, feature))
    own = Groups.of(feature, prompt).row
    at = np.arange(len(pos))
    step = 0
    while len(at):  # the next activation, the one after it ..., as long as any is the same feature's in the same prompt
        step += 1
        at = at[: np.searchsorted(at, len(pos) - step)]
        at = at[own[at] == own[at + step]]
        of.append(feature[at])
        apart.append(pos[at + step] - pos[at])
    return _histogram(side, LAG, np.concatenate(of), np.concatenate(apart))


def _stories(side: int, prompt: np.ndarray, feature: np.ndarray) -> Rows:
    number, order = in_order(feature, prompt)
    feature = feature.take(order).take(Groups.of(number).starts)
    return _histogram(side, STORIES, feature, np.zeros(len(feature), np.int64))


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

        From 1 on. Those of sources are times the share of position pairs so far apart.
        """
        source, target = (self._autocorrelation(side)[:, 1:] for side in (self.source, self.target))
        source *= self.pairs[1:] / max(self.pairs[0], 1)
        return source, target

    def _autocorrelation(self, side: Side) -> Float[np.ndarray, "row offset"]:
        share = (side.count[:, 0] / max(self.pairs[0], 1))[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            r = (side.lag / self.pairs - share**2) / (share - share**2)
        return np.where((self.pairs > 0) & (share > 0) & (share < 1), r, 0.0)


def from_table(table: "pa.Table") -> FeatureCounts | None:
    """Reads merged histograms; `None` where no activation was given for one of the sides."""
    columns = _of_bin(table["bin"].to_numpy())
    sums = table["sums"].combine_chunks().flatten().to_numpy().reshape(-1, len(FEATURES.sums))
    columns |= dict(zip(FEATURES.sums, sums.T, strict=True))
    if not all((columns["side"] == side).any() for side in (SOURCE, TARGET)):
        return None
    width = int(columns["at"].max()) + 1
    every = _side(columns, ALL, width)
    return FeatureCounts(
        every.count[0], every.position[0], _side(columns, SOURCE, width), _side(columns, TARGET, width)
    )


def _side(columns: dict[str, np.ndarray], side: int, width: int) -> Side:
    mine = {name: values[columns["side"] == side] for name, values in columns.items()}
    features, row = np.unique(mine["feature"], return_inverse=True)

    def dense(kind: int, name: str, width: int = width) -> np.ndarray:
        of = mine["kind"] == kind
        out = np.zeros((len(features) + 1, width))
        out[row[of], mine["at"][of]] = mine[name][of]
        return out

    def at_least(name: str) -> np.ndarray:
        return np.cumsum(dense(ROOM, name)[:, ::-1], axis=1)[:, ::-1]

    return Side(
        features,
        at_least("count"),
        at_least("total"),
        at_least("squares"),
        dense(POSITION, "count"),
        dense(LAG, "count"),
        dense(STORIES, "count", 1)[:, 0],
    )
