"""What is done for features that went silent: new weights, or a loss of their own."""

from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxcircuits.training.coding import Code
from jaxcircuits.training.sae_state import SAEState, unit_rows
from jaxcircuits.types import SAEWeights


def resampled(
    state: SAEState, dead: Bool[Array, "d_sae"], x: Float[Array, "tokens d_in"], error: Float[Array, "tokens d_in"]
) -> SAEState:
    """Gives dead features directions that the others miss, on at the one token in a hundred that is nearest to them.

    Source: Bricken and others (2023), "Towards Monosemanticity".
    """
    size = (error**2).sum(1)
    picked = jax.random.categorical(jax.random.key(state.step), 2 * jnp.log(size + 1e-12), shape=dead.shape)
    directions = unit_rows(error[picked] + 1e-6)
    params: SAEWeights = state.params

    def of_the_living(values: Float[Array, "d_sae"]) -> Float[Array, ""]:
        return jnp.where(dead, 0, values).sum() / jnp.maximum(1, (~dead).sum())

    W_enc = of_the_living(jnp.linalg.norm(params.W_enc, axis=0)) * directions.T
    # All tokens' pre-activations would cost a step; 256 place the bias well enough.
    b_enc = -jnp.quantile((x[:256] - params.b_dec) @ W_enc, 0.99, axis=0)
    new = SAEWeights(W_enc, b_enc, directions, params.b_dec)
    if params.threshold is not None:
        threshold = of_the_living(params.threshold)
        new = new._replace(b_enc=b_enc + threshold, threshold=jnp.full_like(b_enc, threshold))

    def replaced(old: SAEWeights, new: SAEWeights) -> SAEWeights:
        return SAEWeights(
            jnp.where(dead, new.W_enc, old.W_enc),
            jnp.where(dead, new.b_enc, old.b_enc),
            jnp.where(dead[:, None], new.W_dec, old.W_dec),
            old.b_dec,
            jnp.where(dead, new.threshold, old.threshold)
            if old.threshold is not None and new.threshold is not None
            else None,
        )

    adam = cast(Any, state.opt_state)
    nothing = jax.tree.map(jnp.zeros_like, params)
    return state.replace(
        params=replaced(params, new),
        opt_state=adam._replace(mu=replaced(adam.mu, nothing), nu=replaced(adam.nu, nothing)),
        silent=jnp.where(dead, 0, state.silent),
    )


def auxiliary_loss(
    params: SAEWeights,
    code: Code,
    dead: Bool[Array, "d_sae"],
    error: Float[Array, "tokens d_in"],
    weight: Float[Array, "tokens"],
) -> Float[Array, ""]:
    """The share of the error that is left when a token's strongest dead features, `d_in / 2` at most, describe it.

    Source: L. Gao and others (2024), arXiv:2406.04093, appendix A.2.
    """
    error = jax.lax.stop_gradient(error)
    room = max(1, min(error.shape[1] // 2, len(dead)))

    def loss() -> Float[Array, ""]:
        pre_acts = jnp.where(dead, code.pre_acts, -jnp.inf)

        def least() -> Float[Array, "tokens 1"]:
            return jax.lax.top_k(jax.lax.stop_gradient(pre_acts), room)[0][:, -1:]

        limit = jax.lax.cond(dead.sum() > room, least, lambda: jnp.full_like(pre_acts[:, :1], -jnp.inf))
        strongest = jnp.where(pre_acts >= limit, jax.nn.relu(pre_acts), 0)
        left = ((error - strongest @ params.W_dec) ** 2).sum(1) @ weight
        return left / ((error**2).sum(1) @ weight + 1e-12)

    return jax.lax.cond(dead.any(), loss, lambda: jnp.zeros((), error.dtype))
