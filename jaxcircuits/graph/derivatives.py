"""From the derivative with respect to factors to weights of edges: frozen, exact, integrated; whole or in parts."""

from collections.abc import Callable
from dataclasses import replace

import jax
import numpy as np
from jaxtyping import Float

from jaxcircuits.graph.direct import Factors, Wiring
from jaxcircuits.graph.settings import GraphSettings

Derive = Callable[[Wiring, Factors], tuple[Float[np.ndarray, "target"], Factors]]
"""Values of targets, and their derivatives with respect to the factors."""

Rows = Float[np.ndarray, "target column"]

_HELD = {
    "residual": ("attn.hook_q", "attn.hook_k", "attn.hook_v"),
    "value": ("attn.hook_q", "attn.hook_k"),
    "query": ("attn.hook_k", "attn.hook_v"),
}
"""What is held so that only the residual stream is left, or besides it one way through attention; in every block."""


def derived(
    derive: Derive, wiring: Wiring, factors: Factors, settings: GraphSettings
) -> tuple[Float[np.ndarray, "target"], Float[np.ndarray, "target"], Rows, dict[str, Rows]]:
    """Values of targets, their baselines, the weights of edges by column of factors, and the weights' parts.

    Parts are differences of derivatives with more and more held; what several of them share, which takes two layers of
    attention, counts as `key`.
    """
    values = derive(wiring, factors)[0]
    baselines = np.zeros_like(values)
    if settings.derivative == "integrated":
        baselines = derive(wiring, moved(factors, 0.0))[0]
    total = _weights(derive, wiring, factors, settings)
    if not settings.parts:
        return values, baselines, total, {}
    used = ("residual",) if settings.derivative == "frozen" else tuple(_HELD)
    alone = {name: _weights(derive, replace(wiring, held=_HELD[name]), factors, settings) for name in used}
    parts = {"residual": alone["residual"]}
    if settings.derivative == "frozen":  # patterns are held: nothing comes through query and key
        return values, baselines, total, parts | {"value": total - alone["residual"]}
    parts |= {name: alone[name] - alone["residual"] for name in ("value", "query")}
    return values, baselines, total, parts | {"key": total - sum(parts.values())}


def moved(factors: Factors, to: float) -> Factors:
    """The factors with those of what moves on the integrated path, tokens and features, at another value."""
    return factors._replace(
        token=to * factors.token,
        features=tuple(to * f for f in factors.features),
        rest=tuple(to * f for f in factors.rest),
    )


def columns(factors: Factors) -> Rows:
    """Every factor's derivative side by side, in the order in which JAX flattens `Factors`."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(factors)]
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)


def _weights(derive: Derive, wiring: Wiring, factors: Factors, settings: GraphSettings) -> Rows:
    if settings.derivative != "integrated":
        return columns(derive(wiring, factors)[1])
    points, weights = np.polynomial.legendre.leggauss(settings.points)
    total = None
    for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
        found = columns(derive(wiring, moved(factors, float(point)))[1])
        total = weight * found if total is None else total + weight * found
    assert total is not None
    moves = jax.tree.map(lambda f: np.zeros_like(f)[None], factors)
    moves = moves._replace(
        token=np.ones_like(moves.token),
        features=tuple(np.ones_like(f) for f in moves.features),
        rest=tuple(np.ones_like(f) for f in moves.rest),
    )
    return (total * columns(moves)).astype(total.dtype)
