"""What an autoencoder makes of a hook's values: sparsity, densities, reconstruction. Sums are float64."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxcircuits.sae.coder import SAE, decode, encode

DENSE = 0.1
"""A feature active at more than this share of tokens is called dense."""


@dataclass
class Activity:
    """Sums over tokens, of one autoencoder.

    Attributes:
        n: Tokens counted.
        sums: Additive numbers, by name; `active`, `activation` are a feature's, the rest one number each.
        largest: Each feature's largest activation.
        mean: Mean of the value written, over the tokens counted.
        spread: Sum of squared distances from it.
        every: Sum of the value written over all tokens, BOS included, and their count.
    """

    n: int = 0
    sums: dict[str, Any] = field(default_factory=dict)
    largest: Any = 0.0
    mean: Any = 0.0
    spread: float = 0.0
    every: tuple[Any, int] = (0.0, 0)

    def add(self, found: Mapping[str, Any], n: int, n_every: int) -> None:
        """Adds a batch. Means and spreads merge as in Chan, Golub and LeVeque (1979): nothing large cancels."""
        found = {name: np.asarray(value, np.float64) for name, value in found.items()}
        self.every = (self.every[0] + found.pop("every"), self.every[1] + n_every)
        largest, mean, spread = found.pop("largest"), found.pop("mean"), float(found.pop("spread"))
        if n == 0:
            return
        self.largest = np.maximum(self.largest, largest)
        apart, total = mean - self.mean, self.n + n
        self.spread += spread + float((apart**2).sum()) * self.n * n / total
        self.mean = self.mean + apart * n / total
        self.n = total
        for name, value in found.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    @property
    def mean_of_every(self) -> Float[np.ndarray, "d_out"]:
        """Mean of the value written over all tokens, BOS included: what mean ablation puts there."""
        return self.every[0] / max(self.every[1], 1)

    def figures(self, sae: SAE) -> dict[str, Any]:
        """The figures of one autoencoder; see `evaluate` for what they mean."""
        if self.n == 0:
            return {}
        mean = {name: value / self.n for name, value in self.sums.items()}
        density = mean["active"]
        return {
            "l0": float(density.sum()),
            "l1": float(mean["activation"].sum()),
            "dead": int((density == 0).sum()),
            "dense": int((density > DENSE).sum()),
            "mse": float(mean["squared_error"]),
            "variance_explained": _ratio(self.spread - self.sums["squared_error"], self.spread),
            "cosine": float(mean["cosine"]),
            "norm_in": float(mean["norm_in"]),
            "norm_out": float(mean["norm_out"]),
            "norm_ratio": float(mean["norm_ratio"]),
            "reconstruction_bias": _ratio(self.sums["squared_out"], self.sums["product"]),
        }

    def columns(self) -> dict[str, Float[np.ndarray, "d_sae"]]:
        """Each feature's density, its mean activation where active (NaN where it never is), and its largest."""
        active = self.sums["active"]
        mean = np.where(active > 0, self.sums["activation"] / np.maximum(active, 1), np.nan)
        return {"density": active / self.n, "mean_activation": mean, "max_activation": np.asarray(self.largest)}


def _ratio(a: float, b: float) -> float | None:
    return float(a / b) if b else None


def activity_sums(
    sae: SAE,
    read: Float[Array, "batch pos d_in"],
    written: Float[Array, "batch pos d_out"],
    counted: Bool[Array, "batch pos"],
    within: Bool[Array, "batch pos"],
) -> dict[str, Array]:
    """What `Activity.add` takes of a batch.

    Args:
        sae: The autoencoder.
        read: The value that it reads.
        written: The value that it describes.
        counted: Positions that hold a token.
        within: Those of them that count.
    """
    here = within[..., None]
    feature_acts = jnp.where(here, encode(sae, read), 0)
    x, out = jnp.where(here, written, 0), jnp.where(here, decode(sae, encode(sae, read), read), 0)
    norm_in, norm_out = jnp.linalg.norm(x, axis=-1), jnp.linalg.norm(out, axis=-1)
    product = (x * out).sum(-1)
    both = norm_in * norm_out
    mean = x.sum((0, 1)) / jnp.maximum(within.sum(), 1)
    return {
        "active": (feature_acts > 0).sum((0, 1)),
        "activation": feature_acts.sum((0, 1)),
        "largest": feature_acts.max((0, 1)),
        "squared_error": ((x - out) ** 2).sum(),
        "cosine": jnp.where(both > 0, product / jnp.where(both > 0, both, 1), 0).sum(),
        "norm_in": norm_in.sum(),
        "norm_out": norm_out.sum(),
        # As SAELens: a vanishing norm divides as 1.
        "norm_ratio": (norm_out / jnp.where(norm_in < 1e-4, 1, norm_in)).sum(),
        "squared_out": (out**2).sum(),
        "product": product.sum(),
        "mean": mean,
        "spread": jnp.where(here, (x - mean) ** 2, 0).sum(),
        "every": jnp.where(counted[..., None], written, 0).sum((0, 1)),
    }
