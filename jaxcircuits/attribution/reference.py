"""`method="reference"`: the definition, differentiated for many targets at once. Any causal pair of hooks."""

from functools import partial
from typing import Any

import jax
from einops import einsum
from jaxtyping import Array, Float, Int

from jaxcircuits.attribution.problem import Problem, target_value
from jaxcircuits.sae import SAE


@partial(jax.jit, static_argnames="problem")
def hook_gradients(
    params: Any,
    target: SAE,
    tokens: Int[Array, "pos"],
    h: Float[Array, "pos d_in"],
    target_pos: Int[Array, "target"],
    target_feature: Int[Array, "target"],
    *,
    problem: Problem,
) -> Float[Array, "target pos d_in"]:
    """Gradients of targets with respect to the source hook's value at every position.

    The forward pass does not depend on the target, so `vmap` runs it once for all of them.
    """
    gradient = jax.grad(partial(target_value, problem, params, target, tokens), argnums=0)
    return jax.vmap(gradient, in_axes=(None, 0, 0))(h, target_pos, target_feature)


@jax.jit
def project_same(
    gradients: Float[Array, "target pos d_in"],
    directions: Float[Array, "d_sae d_in"],
    target_pos: Int[Array, "target"],
    sources: Int[Array, "pos slot"],
) -> Float[Array, "target slot"]:
    """Derivatives along the listed sources at each target's own position, a target at a time to bound memory."""

    def one(target):
        gradient, pos = target
        return directions[sources[pos]] @ gradient[pos]

    return jax.lax.map(one, (gradients, target_pos))


@jax.jit
def project_all(
    gradients: Float[Array, "target pos d_in"],
    directions: Float[Array, "d_sae d_in"],
    sources: Int[Array, "pos slot"],
) -> Float[Array, "target pos slot"]:
    """Derivatives along the listed sources of every position, a position at a time to bound memory."""

    def one(at_pos):
        gradient, listed = at_pos
        return einsum(gradient, directions[listed], "target d_in, slot d_in -> target slot")

    per_pos = jax.lax.map(one, (gradients.swapaxes(0, 1), sources))
    return per_pos.swapaxes(0, 1)
