"""`method="structured"` where layers lie between: the target's MLP in closed form, the rest by linear maps.

Between the residual stream behind the source's block and the one after the target's attention lies a map that is
linear in a small change: attention and MLPs of the layers between, and the target's attention. Its transpose is applied
to every target, or it itself to every source:

    reverse: targets x one transposed pass, and a product with a row of `E` for each pair
    forward: sources x one pass, and a product with a target's vector for each pair

The passes cost far more than the pairs, so the cheaper way is the one of which there are fewer.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from einops import einsum
from jaxtyping import Array, Float, Int

from jaxcircuits.attribution.frozen import Scales
from jaxcircuits.attribution.problem import Problem, target_side
from jaxcircuits.attribution.reference import project_all, project_same
from jaxcircuits.attribution.selection import Sources


def direction_of(targets: int, sources: int) -> str:
    """The cheaper way, by the number of passes."""
    return "forward" if sources < targets else "reverse"


def resid_mid(
    problem: Problem,
    params: Any,
    h: Float[Array, "pos d_in"],
    tokens: Int[Array, "pos"],
    extra: Float[Array, "pos d_model"],
    scales: Scales | None = None,
) -> Float[Array, "pos d_model"]:
    """The residual stream that the target's MLP reads, as a function of what is added where sources enter."""
    name = f"blocks.{problem.target_block}.{problem.cfg.mlp_stream}"
    return target_side(problem, params, h, tokens, (name,), scales, extra)[1][name]


def pulled_back(
    problem: Problem,
    params: Any,
    h: Float[Array, "pos d_in"],
    tokens: Int[Array, "pos"],
    pulled: Float[Array, "target d_model"],
    target_pos: Int[Array, "target"],
) -> Float[Array, "target pos d_model"]:
    """Targets pulled back from the residual stream after attention to the one where sources enter."""
    zero = jnp.zeros((len(tokens), pulled.shape[1]), pulled.dtype)
    _, push = jax.linearize(partial(resid_mid, problem, params, h, tokens), zero)
    transposed = jax.linear_transpose(push, zero)
    return jax.vmap(lambda vector, pos: transposed(zero.at[pos].set(vector))[0])(pulled, target_pos)


def derivatives_between(
    problem: Problem,
    params: Any,
    h: Float[Array, "pos d_in"],
    tokens: Int[Array, "pos"],
    E: Float[Array, "d_sae d_model"],
    pulled: Float[Array, "target d_model"],
    target_pos: Int[Array, "target"],
    sources: Sources,
    *,
    direction: str,
    all_positions: bool,
    per_position: int | None,
    sources_at_once: int,
) -> Float[Array, "target slot"]:
    """Derivatives of targets, pulled back to the residual stream after attention, along sources."""
    if direction == "reverse":
        at_source = pulled_back(problem, params, h, tokens, pulled, target_pos)
        if all_positions:
            return project_all(at_source, E, sources, per_position)
        return project_same(at_source, E, target_pos, sources, per_position)

    shape = (len(tokens), E.shape[1])
    _, push = jax.linearize(partial(resid_mid, problem, params, h, tokens), jnp.zeros(shape, E.dtype))

    def forward(index):
        """All targets' derivatives along some sources."""

        def one(i):
            pushed = push(jnp.zeros(shape, E.dtype).at[i // len(E)].set(E[i % len(E)]))
            return einsum(pushed[target_pos], pulled, "target d_model, target d_model -> target")

        return jax.vmap(one)(index)

    n = len(sources.flat)
    block = min(n, sources_at_once)
    index = jnp.pad(sources.flat, (0, -n % block)).reshape(-1, block)
    found = jax.lax.map(forward, index).reshape(-1, len(target_pos))[:n].T  # [target, source]
    if all_positions:
        return found
    width = len(E) if per_position is None else per_position
    slots = sources.starts[target_pos][:, None] + jnp.arange(width)
    return jnp.take_along_axis(found, jnp.minimum(slots, n - 1), axis=1)
