"""The benchmark's clock, its rows, and how two contenders' numbers are compared."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import jax
import numpy as np

SHORT = 0.5
"""Seconds; of what is shorter each sample is the second of two runs: the first one finds its predecessor's caches."""


@dataclass
class Row:
    """One contender's measurement.

    Attributes:
        group: The table it stands in.
        what: Its name.
        samples: What was measured, in `unit`.
        unit: Seconds unless said otherwise.
        ratio: How many times faster than the group's baseline.
        note: How it was run.
        more: Other numbers: rates, sizes.
    """

    group: str
    what: str
    samples: list[float]
    unit: str = "s"
    ratio: float | None = None
    note: str = ""
    more: dict[str, float] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """The number that is reported."""
        return median(self.samples)

    def to_json(self) -> dict[str, Any]:
        """Every sample, and what the tables show."""
        return {**vars(self), "median": self.median, "min": min(self.samples)}


def interleaved(contenders: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each contender, A B C A B C, so that a drift of the machine hits all alike.

    Every contender runs once before, which compiles it.
    """
    for run in contenders.values():
        _seconds(run)
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            took = _seconds(run)
            samples[name].append(took if took >= SHORT else _seconds(run))
    return samples


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def rows_of(group: str, samples: Mapping[str, list[float]], baseline: str, notes: Mapping[str, str]) -> list[Row]:
    """Rows with their ratio to the baseline."""
    rows = [Row(group, what, times, note=notes.get(what, "")) for what, times in samples.items()]
    against = next(row.median for row in rows if row.what == baseline)
    for row in rows:
        row.ratio = against / row.median
    return rows


def fastest(choices: Mapping[Any, Callable[[], Any]]) -> tuple[Any, dict[Any, float]]:
    """The choice whose second-best of three interleaved runs is least, and what each took."""
    if len(choices) == 1:
        return next(iter(choices)), {}
    took = {choice: median(times) for choice, times in interleaved(choices, 3).items()}
    return min(took, key=took.__getitem__), took


Edges = dict[tuple[int, ...], np.ndarray]
"""By target (position, feature): rows of source position, source feature and gradient."""


def difference(edges: Edges, expected: Edges, missing: float = 1e-3) -> float:
    """The largest difference, relative to the largest edge of the same target.

    Args:
        edges: By target.
        expected: What they should be.
        missing: The share of edges, at thresholds, that only one of the two may have.

    Raises:
        ValueError: There are other targets or sources (an edge at the threshold may be missing, more may not), or an
            edge is not finite.
    """
    if edges.keys() != expected.keys():
        raise ValueError("the contenders have other targets")
    worst, alone, n = 0.0, 0, 0
    for target, of_target in edges.items():
        a, b = ((rows[:, 0] * 2**32 + rows[:, 1], rows[:, 2]) for rows in (of_target, expected[target]))
        _, in_a, in_b = np.intersect1d(a[0], b[0], assume_unique=True, return_indices=True)
        if not np.isfinite(a[1]).all():
            raise ValueError(f"target {target} has an edge that is not finite")
        alone += len(a[0]) + len(b[0]) - 2 * len(in_a)
        n += len(b[0])
        scale = np.abs(b[1]).max(initial=0)
        if scale > 0:
            worst = max(worst, np.abs(a[1][in_a] - b[1][in_b]).max(initial=0) / scale)
    if alone > missing * n:
        raise ValueError(f"the contenders have other sources: {alone} of {n} edges are only in one")
    return float(worst)
