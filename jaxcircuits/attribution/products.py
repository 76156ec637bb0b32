"""Products of targets' vectors with the rows of a table that belong to the sources at their positions."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import einsum
from jaxtyping import Array, Float, Int

from jaxcircuits.attribution.selection import Sources

NEIGHBOURS = 4
"""Targets of one position whose products are taken together."""


def dots(
    vectors: Float[Array, "target part d_model"],
    E: Float[Array, "d_sae d_model"],
    target_pos: Int[Array, "target"],
    sources: Sources,
    per_position: int | None,
    at_once: int,
) -> Float[Array, "part target slot"]:
    """Products of targets' vectors with the table's rows of the sources at their own position.

    Args:
        vectors: A few for each target.
        E: The table.
        target_pos: Their positions.
        sources: Of the sequence.
        per_position: The largest number of sources at a position; `None` where every one is listed.
        at_once: Targets whose rows are gathered together; with 1, a position's at a time, which stay in a core's cache.
    """
    if per_position is None:
        return einsum(vectors, E, "target part d_model, d_sae d_model -> part target d_sae")
    index = jnp.pad(sources.flat % len(E), (0, per_position))

    def rows(pos: Int[Array, ""]) -> Float[Array, "slot d_model"]:
        return E[jax.lax.dynamic_slice_in_dim(index, sources.starts[pos], per_position)]

    if at_once > 1:

        def one(target):
            vector, pos = target
            return einsum(rows(pos), vector, "slot d_model, part d_model -> part slot")

        return jax.lax.map(one, (vectors, target_pos), batch_size=at_once).swapaxes(0, 1)

    return by_neighbours(vectors, target_pos, rows, per_position)


def by_neighbours(
    vectors: Float[Array, "target part d_model"],
    target_pos: Int[Array, "target"],
    rows: Callable[[Int[Array, ""]], Float[Array, "slot d_model"]],
    width: int,
) -> Float[Array, "part target slot"]:
    """Products of targets' vectors with `width` rows that belong to their positions.

    Targets come by position, and those of one position share its rows: a few neighbours are taken together. What is
    found for some of the next position among them is wrong, and overwritten when it is their turn.
    """
    n, order = len(target_pos), jnp.arange(len(target_pos))
    run = jax.lax.cummax(jnp.where(jnp.diff(target_pos, prepend=-1) != 0, order, 0))
    starts = jnp.where((order - run) % NEIGHBOURS == 0, order, n)
    following = jax.lax.cummin(jnp.append(starts[1:], n), reverse=True)
    padded = jnp.pad(vectors, ((0, NEIGHBOURS), (0, 0), (0, 0)))

    def step(state):
        at, found = state
        some = jax.lax.dynamic_slice_in_dim(padded, at, NEIGHBOURS)
        new = einsum(some, rows(target_pos[at]), "target part d_model, slot d_model -> part target slot")
        return following[at], jax.lax.dynamic_update_slice_in_dim(found, new, at, 1)

    room = jnp.zeros((vectors.shape[1], n + NEIGHBOURS, width), vectors.dtype)
    return jax.lax.while_loop(lambda state: state[0] < n, step, (jnp.zeros((), order.dtype), room))[1][:, :n]
