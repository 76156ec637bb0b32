"""`method="reference"`: the definition, differentiated for many targets at once. Any causal pair of hooks."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from einops import einsum
from jaxtyping import Array, Float, Int

from jaxcircuits.attribution.frozen import Scales, ones
from jaxcircuits.attribution.problem import Problem, target_value
from jaxcircuits.attribution.selection import Sources
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
    return jax.vmap(gradient, in_axes=(None, None, 0, 0))(h, None, target_pos, target_feature)


def scale_gradients(
    problem: Problem,
    params: Any,
    target: SAE,
    tokens: Int[Array, "pos"],
    h: Float[Array, "pos d_in"],
    target_pos: Int[Array, "target"],
    target_feature: Int[Array, "target"],
) -> Scales:
    """What enters each target besides the source hook's value, by kind; frozen derivatives only. Fields `[target]`."""
    gradient = jax.grad(partial(target_value, problem, params, target, tokens), argnums=1)
    return jax.vmap(gradient, in_axes=(None, None, 0, 0))(h, ones(h.dtype), target_pos, target_feature)


def project_same(
    gradients: Float[Array, "target pos width"],
    directions: Float[Array, "d_sae width"],
    target_pos: Int[Array, "target"],
    sources: Sources,
    per_position: int | None,
) -> Float[Array, "target slot"]:
    """Derivatives along the sources at each target's own position, a target at a time to bound memory.

    `per_position` is the largest number of sources at a position, or `None` where every one is listed.
    """
    d_sae = len(directions)
    if per_position is None:
        own = jnp.take_along_axis(gradients, target_pos[:, None, None], axis=1)[:, 0]
        return einsum(own, directions, "target width, d_sae width -> target d_sae")

    def one(target):
        gradient, pos = target
        listed = jax.lax.dynamic_slice_in_dim(_padded(sources.flat, per_position), sources.starts[pos], per_position)
        return directions[listed % d_sae] @ gradient[pos]

    return jax.lax.map(one, (gradients, target_pos))


def project_all(
    gradients: Float[Array, "target pos width"],
    directions: Float[Array, "d_sae width"],
    sources: Sources,
    per_position: int | None,
) -> Float[Array, "target source"]:
    """Derivatives along the sources of every position, a position at a time to bound memory."""
    d_sae = len(directions)
    if per_position is None:
        every = einsum(gradients, directions, "target pos width, d_sae width -> target pos d_sae")
        return every.reshape(len(gradients), -1)

    def one(at_pos):
        gradient, start = at_pos
        listed = jax.lax.dynamic_slice_in_dim(_padded(sources.flat, per_position), start, per_position)
        return einsum(gradient, directions[listed % d_sae], "target width, slot width -> target slot")

    by_pos = jax.lax.map(one, (gradients.swapaxes(0, 1), sources.starts[:-1]))  # [pos, target, slot]
    pos = sources.flat // d_sae
    slot = jnp.clip(jnp.arange(len(pos)) - sources.starts[pos], 0, per_position - 1)
    return by_pos[pos, :, slot].T


def _padded(index: Int[Array, "_source"], n: int) -> Int[Array, "_padded"]:
    """So that a slice of `n` fits behind the last position's sources: a slice that does not is moved, silently."""
    return jnp.pad(index, (0, n))
