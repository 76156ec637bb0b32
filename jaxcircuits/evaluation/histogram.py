"""Counts of positive numbers whose largest is not known beforehand."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int


@dataclass
class Histogram:
    """Equal bins from zero; their width doubles, pairs of them merging, until a larger number fits: nothing is lost.

    >>> histogram = Histogram(bins=4)
    >>> histogram.add(np.array([0.1, 0.2, 3.0]))
    >>> histogram.edges.tolist(), histogram.counts.tolist()
    ([0.0, 1.0, 2.0, 3.0, 4.0], [2, 0, 0, 1])
    """

    bins: int = 40
    top: float = 2.0**-10
    counts: Int[np.ndarray, "n"] = field(init=False)

    def __post_init__(self) -> None:
        self.counts = np.zeros(self.bins, np.int64)

    def add(self, values: Float[np.ndarray, "n"]) -> None:
        """Adds positive numbers."""
        if not len(values):
            return
        while self.top < values.max():
            self.counts = np.append(self.counts.reshape(-1, 2).sum(1), np.zeros(self.bins // 2, np.int64))
            self.top *= 2
        at = np.minimum((values / self.top * self.bins).astype(np.int64), self.bins - 1)
        self.counts += np.bincount(at, minlength=self.bins)

    @property
    def edges(self) -> Float[np.ndarray, "_n"]:
        """Where bins begin and end."""
        return np.linspace(0, self.top, self.bins + 1)
