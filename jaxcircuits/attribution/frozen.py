"""Values held and GELUs made linear between two hooks: edits that change derivatives and no value.

With every pattern and norm scale held and every GELU linear, a target is a linear function of what enters between the
hooks: the source hook's value, the residual stream beside it, biases, GELU constants, held values. `Scales` holds a
factor for each of these; the derivative with respect to a factor at one is what that kind contributes.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcircuits.config import ModelConfig
from jaxcircuits.model import hook_names
from jaxcircuits.types import BlockWeights, ModelWeights

Edit = Callable[[Array], Array]


class Scales(NamedTuple):
    """Factors of what else enters a target, by kind; each is one."""

    residual_input: Float[Array, ""]  # the residual stream beside the source hook
    model_bias: Float[Array, ""]
    gelu_constant: Float[Array, ""]
    held: Float[Array, ""]
    target_bias: Float[Array, ""]  # the target SAE's own biases


def ones(dtype) -> Scales:
    """Every factor one."""
    return Scales(*(jnp.ones((), dtype) for _ in Scales._fields))


def skip_hook(source_hook: str) -> str | None:
    """The residual stream that joins what the source hook's component writes; `None` where nothing does."""
    block, _, name = source_hook.rpartition("blocks.")[2].partition(".")
    if not block.isdigit():
        return {"hook_embed": "hook_pos_embed", "hook_pos_embed": "hook_embed"}.get(source_hook)
    if name.startswith(("attn.", "ln1.", "hook_attn_out")):
        return f"blocks.{block}.hook_resid_pre"
    if name.startswith(("mlp.", "ln2.", "hook_mlp_out")):
        return f"blocks.{block}.hook_resid_mid"
    return None


def gelu_line(u: Float[Array, "..."], kind: str | None) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Slope and constant of the line that stands for `gelu_new` at `u`: their sum `slope * u + constant` is its value.

    Args:
        u: Where.
        kind: `"secant"`: the ratio `gelu(u) / u`, no constant. Else the tangent.
    """
    if kind == "secant":
        ratio = 0.5 * (1 + jnp.tanh(jnp.sqrt(2 / jnp.pi).astype(u.dtype) * (u + 0.044715 * u**3)))
        return ratio, jnp.zeros_like(u)

    def gelu(x):
        return jax.nn.gelu(x, approximate=True)

    value, slope = jax.jvp(gelu, (u,), (jnp.ones_like(u),))
    return slope, value - slope * u


def path_edits(
    cfg: ModelConfig,
    source_hook: str,
    target_hook: str,
    gelu: str | None,
    held: tuple[str, ...],
    scales: Scales | None,
) -> dict[str, Edit]:
    """Edits of the hooks behind the source hook, up to the target hook; no value changes where every scale is one."""
    names = hook_names(cfg)
    inside = names[names.index(source_hook) : names.index(target_hook) + 1]
    edits: dict[str, Edit] = {}
    skip = skip_hook(source_hook)
    if scales is not None and skip is not None:
        edits[skip] = lambda value: scales.residual_input * jax.lax.stop_gradient(value)
    if gelu is not None:
        for name in inside[1:]:
            if name.endswith((".hook_pattern", ".hook_scale")):
                edits[name] = jax.lax.stop_gradient
        for name in inside:
            post = name.removesuffix("hook_pre") + "hook_post"
            if name.endswith(".mlp.hook_pre") and post in inside:
                edits[name], edits[post] = linear_gelu(gelu, None if scales is None else scales.gelu_constant)
    for name in held:
        edits[name] = lambda value: (1 if scales is None else scales.held) * jax.lax.stop_gradient(value)
    return edits


def linear_gelu(kind: str, factor: Array | None) -> tuple[Edit, Edit]:
    """Edits of an MLP's `hook_pre` and `hook_post`: the first remembers, within one trace, what the second needs.

    Args:
        kind: As of `gelu_line`.
        factor: Of the line's constant, all one, for derivatives with respect to it; `None` for none.
    """
    seen: list[Array] = []

    def before(u: Array) -> Array:
        seen.append(u)
        return u

    def after(value: Array) -> Array:
        u = seen.pop()
        slope, constant = jax.lax.stop_gradient(gelu_line(u, kind))
        return slope * u + (constant if factor is None else factor * constant)

    return before, after


def scaled_biases(params: ModelWeights, factor: Float[Array, ""]) -> ModelWeights:
    """The weights with every bias of the blocks, the norms' shifts included, times a factor."""

    def block(b: BlockWeights) -> BlockWeights:
        return b._replace(
            ln1=b.ln1 and b.ln1._replace(b=factor * b.ln1.b),
            attn=b.attn._replace(**{n: factor * getattr(b.attn, n) for n in ("b_Q", "b_K", "b_V", "b_O")}),
            ln2=b.ln2 and b.ln2._replace(b=factor * b.ln2.b),
            mlp=b.mlp._replace(b_in=factor * b.mlp.b_in, b_out=factor * b.mlp.b_out),
        )

    return params._replace(blocks=tuple(block(b) for b in params.blocks))
