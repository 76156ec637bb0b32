"""Curves of faithfulness over the size of circuits, the areas under them, and intervals over prompts.

With F the metric of the model M, of a circuit C, and of the model with every feature (or edge) outside ablated, ∅:

    faithfulness(C) = (F(C) - F(∅)) / (F(M) - F(∅)),   completeness(C) = faithfulness(M without C)

The ratios are of sums over prompts. Areas are over the share of features or edges that a circuit has: `cpr`, of
faithfulness (1 is good, more overshoots); `cmd`, of its distance from 1 (0 is best); `gap`, of |F(C) - F(M)| as a share
of |F(M) - F(∅)|, in which prompts that overshoot and others that fall short do not cancel (0 is best); `completeness`
(0 is best).

Source: faithfulness and completeness as in Sparse Feature Circuits (Marks et al. 2024); areas as in MIB (Mueller et al.
2025).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jaxcircuits.statistics import Estimate, without_nan

RESAMPLES = 1000
"""Of the bootstrap over prompts."""


@dataclass(frozen=True)
class Faithfulness:
    """Curves of every way to choose circuits, on the same prompts.

    Attributes:
        shares: Sizes as shares of all features or edges.
        circuit: Metric of circuits, by (unit, method): `[prompt, share]`.
        complement: Metric of what is left without them, likewise.
        model: Metric of the model, a prompt each.
        empty: Metric with everything ablated, by unit, a prompt each.
        sizes: How many features or edges there are, by unit, a prompt each.
        settings: What was asked, JSON-able.
    """

    shares: Float[np.ndarray, "share"]
    circuit: Mapping[tuple[str, str], Float[np.ndarray, "prompt share"]]
    complement: Mapping[tuple[str, str], Float[np.ndarray, "prompt share"]]
    model: Float[np.ndarray, "prompt"]
    empty: Mapping[str, Float[np.ndarray, "prompt"]]
    sizes: Mapping[str, np.ndarray]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def curve(self, unit: str, method: str, *, complete: bool = False) -> list[Estimate]:
        """Faithfulness (or completeness) at each share, with intervals over prompts; of one prompt without."""
        values = self._ratios(self.complement if complete else self.circuit, unit, method)
        return [_estimate(values[:, i]) for i in range(values.shape[1])]

    def gaps(self, unit: str, method: str, other: str | None = None) -> list[Estimate]:
        """|F(C) - F(M)| of each prompt as a share of |F(M) - F(∅)| at each size; of two ways, the difference."""
        values = self._gaps(unit, method) - (0 if other is None else self._gaps(unit, other))
        return [_estimate(values[:, i]) for i in range(values.shape[1])]

    def areas(self, unit: str, method: str) -> dict[str, Estimate]:
        """The areas `cpr`, `cmd`, `gap` and `completeness`, with intervals over prompts."""
        return {name: _estimate(values) for name, values in self._areas(unit, method).items()}

    def against(self, unit: str, method: str, other: str) -> dict[str, Estimate]:
        """Areas of one way minus those of another, on the same resampled prompts."""
        mine, theirs = self._areas(unit, method), self._areas(unit, other)
        return {name: _estimate(mine[name] - theirs[name]) for name in mine}

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON: curves, areas, differences from the first method, and the metric of every prompt."""
        content: dict[str, Any] = {**self.settings, "shares": self.shares.tolist(), "model": self.model.tolist()}
        methods = list(dict.fromkeys(method for _, method in self.circuit))
        for unit in self.empty:
            content[unit] = {"empty": self.empty[unit].tolist(), "sizes": self.sizes[unit].tolist(), "methods": {}}
            for method in methods:
                content[unit]["methods"][method] = {
                    "faithfulness": [_row(e) for e in self.curve(unit, method)],
                    "completeness": [_row(e) for e in self.curve(unit, method, complete=True)],
                    "gap": [_row(e) for e in self.gaps(unit, method)],
                    "areas": {name: _row(e) for name, e in self.areas(unit, method).items()},
                    "first_minus_this": {n: _row(e) for n, e in self.against(unit, methods[0], method).items()},
                    "circuit": self.circuit[unit, method].tolist(),
                    "complement": self.complement[unit, method].tolist(),
                }
        return content

    def _samples(self) -> Int[np.ndarray, "sample prompt"]:
        """All prompts first, then resampled ones."""
        n, rng = len(self.model), np.random.default_rng(0)
        return np.concatenate([np.arange(n)[None], rng.integers(0, n, (RESAMPLES if n > 1 else 0, n))])

    def _ratios(self, metric: Mapping, unit: str, method: str) -> Float[np.ndarray, "sample share"]:
        samples, empty = self._samples(), self.empty[unit]
        gained = (metric[unit, method] - empty[:, None])[samples].sum(1)
        return gained / (self.model - empty)[samples].sum(1)[:, None]

    def _gaps(self, unit: str, method: str) -> Float[np.ndarray, "sample share"]:
        samples = self._samples()
        missed = np.abs(self.circuit[unit, method] - self.model[:, None])[samples].sum(1)
        return missed / np.abs(self.model - self.empty[unit])[samples].sum(1)[:, None]

    def _areas(self, unit: str, method: str) -> dict[str, Float[np.ndarray, "sample"]]:
        faithful = self._ratios(self.circuit, unit, method)
        left = self._ratios(self.complement, unit, method)
        areas = {
            "cpr": faithful,
            "cmd": np.abs(1 - faithful),
            "gap": self._gaps(unit, method),
            "completeness": left,
        }
        return {name: np.trapezoid(values, self.shares, axis=1) for name, values in areas.items()}


def _estimate(values: Float[np.ndarray, "sample"]) -> Estimate:
    if len(values) == 1:
        return Estimate(float(values[0]), np.nan, np.nan)
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return Estimate(float(values[0]), float(low), float(high))


def _row(e: Estimate) -> list[float | None]:
    return without_nan([e.value, e.low, e.high])
