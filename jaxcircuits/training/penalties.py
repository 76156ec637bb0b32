"""What the loss says of sparsity: one entry a penalty, each a number a token."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcircuits.training.coding import Code, Knobs, step
from jaxcircuits.types import SAEWeights

OFFSET = 0.01
"""Added to activations (mean squared norm 1) under a power, which would be infinitely steep at 0."""

SMALLEST = 1e-6
"""Added to a sum of squares that something is divided by."""

PerToken = Float[Array, "tokens"]


def _l1(code: Code, params: SAEWeights, knobs: Knobs, fallen: Float[Array, ""]) -> PerToken:
    return code.feature_acts.sum(1)


def _sqrt(code: Code, params: SAEWeights, knobs: Knobs, fallen: Float[Array, ""]) -> PerToken:
    return (jnp.sqrt(code.feature_acts + OFFSET) - OFFSET**0.5).sum(1)


def _hoyer_square(code: Code, params: SAEWeights, knobs: Knobs, fallen: Float[Array, ""]) -> PerToken:
    """Between 1 and the number of active features, whatever the scale (H. Yang and others (2020), arXiv:1908.09979)."""
    return code.feature_acts.sum(1) ** 2 / ((code.feature_acts**2).sum(1) + SMALLEST)


def _power(code: Code, params: SAEWeights, knobs: Knobs, fallen: Float[Array, ""]) -> PerToken:
    """`feature_acts ** p`, `p` falling from 1: late in the run it pushes hardest on features that are barely on.

    Source: p-annealing, Karvonen and others (2024), arXiv:2408.00113.
    """
    power = 1 - (1 - knobs.power) * fallen
    return ((code.feature_acts + OFFSET) ** power - OFFSET**power).sum(1)


def _l0(code: Code, params: SAEWeights, knobs: Knobs, fallen: Float[Array, ""]) -> PerToken:
    """How many features are on, seen by a JumpReLU's threshold alone."""
    assert params.threshold is not None
    return step(code.pre_acts, params.threshold, knobs.bandwidth).sum(1)


PENALTIES: dict[str, Callable[[Code, SAEWeights, Knobs, Float[Array, ""]], PerToken]] = {
    "l1": _l1,
    "sqrt": _sqrt,
    "hoyer_square": _hoyer_square,
    "power": _power,
    "l0": _l0,
}
"""By the name in `SAETraining.penalty`. The last argument rises from 0 to 1 until the learning rate begins to fall."""


def penalty(names: tuple[str, ...], code: Code, params: SAEWeights, knobs: Knobs, fallen: Float[Array, ""]) -> PerToken:
    """The sum of some penalties, each times its coefficient."""
    terms = [knobs.penalties[i] * PENALTIES[name](code, params, knobs, fallen) for i, name in enumerate(names)]
    return jnp.stack(terms).sum(0)
