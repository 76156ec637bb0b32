"""How well predictions agree with measured effects, with intervals by bootstrap over stories."""

from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxcircuits.statistics import Estimate, spearman

RESAMPLES = 2000
LEAST_SOURCES = 5
"""Sources of a target from which on their ranks mean something."""


class Stories:
    """Stories drawn again and again; every estimate is a ratio of sums over stories and uses the same draws.

    Args:
        stories: The story of each row that is summed over.
        seed: Of the draws.
    """

    def __init__(self, stories: Int[np.ndarray, "n"], seed: int) -> None:
        self.names, self._of = np.unique(stories, return_inverse=True)
        n = len(self.names)
        rng = np.random.default_rng(seed)
        self._drawn = rng.multinomial(n, np.full(n, 1 / n), RESAMPLES) if n > 1 else np.zeros((0, n), np.int64)

    def ratio(
        self, above: Float[np.ndarray, "n"], below: Float[np.ndarray, "n"], rows: Bool[np.ndarray, "n"] | None = None
    ) -> Estimate:
        """The sum of one number over the sum of another, with a 95 % percentile interval.

        >>> import numpy as np
        >>> from jaxcircuits.validation.agreement import Stories
        >>> found = Stories(np.array([0, 0, 1, 2]), seed=0).ratio(np.array([1.0, 2, 3, 4]), np.ones(4))
        >>> found.value, found.low <= 2.5 <= found.high
        (2.5, True)
        """
        kept = np.ones(len(self._of), bool) if rows is None else rows
        sums = [np.bincount(self._of[kept], x[kept], len(self.names)) for x in (above, below)]
        total = sums[1].sum()
        if not total > 0:
            return Estimate(np.nan, np.nan, np.nan)
        drawn = [self._drawn @ s for s in sums]
        samples = drawn[0][drawn[1] > 0] / drawn[1][drawn[1] > 0]
        low, high = np.quantile(samples, [0.025, 0.975]) if len(samples) else (np.nan, np.nan)
        return Estimate(float(sums[0].sum() / total), float(low), float(high))

    def mean(self, values: Float[np.ndarray, "n"], rows: Bool[np.ndarray, "n"] | None = None) -> Estimate:
        """The mean over rows that are no NaN."""
        there = np.isfinite(values) if rows is None else np.isfinite(values) & rows
        return self.ratio(np.where(there, values, 0), there.astype(np.float64))


@dataclass(frozen=True)
class Score:
    """How one prediction fares.

    Attributes:
        spearman: Rank correlation with the measured effect within a target, its mean over targets.
        sign: Share of edges with an effect whose sign is predicted.
        slope: Measured per predicted, least squares through zero.
        explained: Share of the measured effects' squares that the prediction, as it is, accounts for.
    """

    spearman: Estimate
    sign: Estimate
    slope: Estimate
    explained: Estimate


def within_targets(
    predicted: Float[np.ndarray, "edge"],
    effect: Float[np.ndarray, "edge"],
    targets: Int[np.ndarray, "edge"],
    rows: Bool[np.ndarray, "edge"] | None = None,
) -> Float[np.ndarray, "target"]:
    """Spearman's correlation over the sources of each target.

    Args:
        predicted: One number an edge.
        effect: What was measured.
        targets: The edge's target, by number.
        rows: Edges that count.

    Returns:
        NaN for a target of few sources or without effects that differ; 0 where all predictions are equal.

    >>> import numpy as np
    >>> from jaxcircuits.validation.agreement import within_targets
    >>> within_targets(np.arange(12.0), np.arange(12.0) ** 3, np.repeat([0, 1], [10, 2]))
    array([ 1., nan])
    """
    found = np.full(int(targets.max(initial=-1)) + 1, np.nan)
    for number in range(len(found)):
        own = targets == number if rows is None else (targets == number) & rows
        if own.sum() >= LEAST_SOURCES and np.ptp(effect[own]) > 0:
            found[number] = np.nan_to_num(spearman(predicted[own], effect[own]), nan=0.0)
    return found


def score(
    predicted: Float[np.ndarray, "edge"],
    effect: Float[np.ndarray, "edge"],
    ranks: Float[np.ndarray, "target"],
    edges: Stories,
    targets: Stories,
) -> Score:
    """The whole `Score` of one prediction.

    Args:
        predicted: One number an edge.
        effect: What was measured.
        ranks: From `within_targets`.
        edges: The stories of edges.
        targets: The stories of targets.
    """
    moved = effect != 0
    right = (np.sign(predicted) == np.sign(effect)) & moved
    ratio = partial(edges.ratio, rows=None)
    unexplained = ratio((effect - predicted) ** 2, effect**2)
    explained = Estimate(1 - unexplained.value, 1 - unexplained.high, 1 - unexplained.low)
    return Score(
        spearman=targets.mean(ranks),
        sign=ratio(right.astype(np.float64), moved.astype(np.float64)),
        slope=ratio(predicted * effect, predicted**2),
        explained=explained,
    )


def calibration(
    predicted: Float[np.ndarray, "edge"], effect: Float[np.ndarray, "edge"], edges: Stories, bins: int = 8
) -> list[dict]:
    """Mean measured against mean predicted effect in bins of equal count by the prediction's size; signs aligned."""
    size, aligned = np.abs(predicted), effect * np.sign(predicted)
    edge = np.quantile(size, np.linspace(0, 1, bins + 1))
    which = np.clip(np.searchsorted(edge, size, side="right") - 1, 0, bins - 1)
    found = []
    for number in np.unique(which):
        rows = which == number
        found.append(
            {"edges": int(rows.sum()), "predicted": float(size[rows].mean()), "measured": edges.mean(aligned, rows)}
        )
    return found
