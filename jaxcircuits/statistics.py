"""How well one set of numbers predicts another, with intervals."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import rankdata

Measure = Callable[[Float[np.ndarray, "n"], Float[np.ndarray, "n"]], float]


@dataclass(frozen=True)
class Estimate:
    """A statistic with its 95 % interval; all NaN where there is too little data."""

    value: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        """The value and its interval, each by `spec`."""
        if self.value != self.value:
            return "undefined"
        if self.low != self.low:
            return f"{self.value:{spec}} (no interval)"
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


@dataclass(frozen=True)
class Agreement:
    """How one number per pair (a cosine) predicts another (a derivative).

    Attributes:
        pairs: How many pairs.
        spearman: Signed rank correlation.
        sign_agreement: Share of pairs with the same sign; 0.5 is chance.
        top_overlap: Share of the 5 % of largest absolute value that both have; 0.05 is chance. NaN where these are
            fewer than three: one pair that is shared or not says nothing, and its interval would claim certainty.
    """

    pairs: int
    spearman: Estimate
    sign_agreement: Estimate
    top_overlap: Estimate

    def to_json(self) -> dict[str, Any]:
        """As nested dictionaries; NaN becomes `None`, which JSON has."""
        return without_nan(asdict(self))


def without_nan(value: Any) -> Any:
    """Nested dictionaries and lists with `None`, which JSON has, for NaN, which it has not.

    >>> from jaxcircuits.statistics import without_nan
    >>> without_nan({"low": float("nan"), "steps": [0.5]})
    {'low': None, 'steps': [0.5]}
    """
    if isinstance(value, dict):
        return {k: without_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and value != value else value


def spearman(a: Float[np.ndarray, "n"], b: Float[np.ndarray, "n"]) -> float:
    """Signed rank correlation; NaN where one side does not vary."""
    ranks_a, ranks_b = rankdata(a), rankdata(b)
    ranks_a, ranks_b = ranks_a - ranks_a.mean(), ranks_b - ranks_b.mean()
    size = np.sqrt((ranks_a**2).sum() * (ranks_b**2).sum())
    return float((ranks_a * ranks_b).sum() / size) if size > 0 else float("nan")


def sign_agreement(a: Float[np.ndarray, "n"], b: Float[np.ndarray, "n"]) -> float:
    """Share of pairs with the same sign."""
    return float((np.sign(a) == np.sign(b)).mean()) if len(a) else float("nan")


def top_overlap(a: Float[np.ndarray, "n"], b: Float[np.ndarray, "n"], share: float = 0.05) -> float:
    """Share of the `share` largest absolute values of one that are among those of the other."""
    n = round(len(a) * share)
    if n == 0:
        return float("nan")
    tops = (set(np.argpartition(-np.abs(x), n - 1)[:n].tolist()) for x in (a, b))
    first, second = tops
    return len(first & second) / n


def agreement(
    predicted: Float[np.ndarray, "n"],
    actual: Float[np.ndarray, "n"],
    *,
    clusters: Int[np.ndarray, "n"] | None = None,
    resamples: int = 400,
    seed: int = 0,
) -> Agreement:
    """Agreement of two numbers per pair, with percentile-bootstrap intervals.

    Args:
        predicted: One number a pair.
        actual: The other.
        clusters: Pairs of one cluster (a token position) are drawn together, for they are not independent;
            by default each pair is its own.
        resamples: Bootstrap samples.
        seed: Of the bootstrap.

    >>> import numpy as np
    >>> from jaxcircuits.statistics import agreement
    >>> x = np.linspace(-1, 1, 200)
    >>> agreement(x, x**3).spearman.value
    1.0
    """
    predicted, actual = np.asarray(predicted, np.float64), np.asarray(actual, np.float64)
    groups = np.arange(len(predicted)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    order = np.argsort(groups, kind="stable")
    count = np.bincount(groups) if len(groups) else np.zeros(0, int)
    start = np.cumsum(count) - count
    rng = np.random.default_rng(seed)

    def draw() -> Int[np.ndarray, "n"]:
        picked = rng.integers(0, len(count), len(count))
        return np.concatenate([order[start[g] : start[g] + count[g]] for g in picked])

    measures: tuple[Measure, ...] = (spearman, sign_agreement, top_overlap)
    values = [m(predicted, actual) if len(predicted) > 1 else float("nan") for m in measures]
    samples = np.full((resamples, len(measures)), np.nan)
    if len(count) > 1:
        for row in samples:
            at = draw() if clusters is not None else rng.integers(0, len(predicted), len(predicted))
            row[:] = [m(predicted[at], actual[at]) for m in measures]
    if round(0.05 * len(predicted)) < 3:
        values[2], samples[:, 2] = np.nan, np.nan
    found = []
    for value, column in zip(values, samples.T, strict=True):
        column = column[~np.isnan(column)]
        low, high = np.quantile(column, [0.025, 0.975]) if len(column) else (np.nan, np.nan)
        found.append(Estimate(value, float(low), float(high)))
    return Agreement(len(predicted), *found)
