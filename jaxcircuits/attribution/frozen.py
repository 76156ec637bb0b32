"""Values held and GELUs made linear between two hooks: edits that change derivatives and no value.

With every pattern and norm scale held and every GELU linear, a target is a linear function of what enters between the
hooks: the source hook's value, the residual stream beside it, biases, GELU constants, held values. `Scales` holds a
factor for each of these; the derivative with respect to a factor at one is what that kind contributes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcircuits.config import ModelConfig
from jaxcircuits.model import hook_names
from jaxcircuits.model.freezing import Edit, freeze_edits
from jaxcircuits.types import BlockWeights, ModelWeights, NormWeights


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


def skip_hooks(cfg: ModelConfig, source_hook: str) -> tuple[str, ...]:
    """What joins the source hook's component in the residual stream: hooks whose values add up to it."""
    block, _, name = source_hook.rpartition("blocks.")[2].partition(".")
    if not block.isdigit():
        embeds = () if cfg.rotary else ("hook_embed", "hook_pos_embed")
        return tuple(hook for hook in embeds if hook != source_hook) if source_hook in embeds else ()
    if name.startswith(("attn.", "ln1", "hook_attn_out")):
        return (f"blocks.{block}.hook_resid_pre",)
    if name.startswith(("mlp.", "ln2", "hook_mlp_out")):
        joining = ("hook_resid_pre", "hook_attn_out") if cfg.parallel_residual else ("hook_resid_mid",)
        return tuple(f"blocks.{block}.{hook}" for hook in joining)
    return ()


def path_edits(
    cfg: ModelConfig,
    source_hook: str,
    target_hook: str,
    gelu: str | None,
    held: tuple[str, ...],
    scales: Scales | None,
) -> dict[str, Edit]:
    """Edits of the hooks behind the source hook, up to the target hook; no value changes where every scale is one."""
    names, skips = hook_names(cfg), skip_hooks(cfg, source_hook)
    # What joins may pass a norm beside the source's hook, as what a gate multiplies does.
    first = min(names.index(source_hook), 1 + max(map(names.index, skips), default=len(names)))
    inside = list(names[first : names.index(target_hook) + 1])
    if source_hook.endswith(".mlp.hook_post"):
        inside.remove(source_hook)  # its value is the source's, not that of a line
    edits: dict[str, Edit] = {}
    if scales is not None:
        for skip in skips:
            edits[skip] = lambda value: scales.residual_input * jax.lax.stop_gradient(value)
    if gelu is not None:
        edits |= freeze_edits(
            inside, activation=cfg.activation, gelu=gelu, constant_scale=1.0 if scales is None else scales.gelu_constant
        )
    for name in held:
        edits[name] = lambda value: (1 if scales is None else scales.held) * jax.lax.stop_gradient(value)
    return edits


def scaled_biases(params: ModelWeights, factor: Float[Array, ""]) -> ModelWeights:
    """The weights with every bias of the blocks, the norms' shifts included, times a factor."""

    def norm(ln: NormWeights | None) -> NormWeights | None:
        return ln if ln is None or ln.b is None else ln._replace(b=factor * ln.b)

    def block(b: BlockWeights) -> BlockWeights:
        return b._replace(
            ln1=norm(b.ln1),
            attn=b.attn._replace(**{n: factor * getattr(b.attn, n) for n in ("b_Q", "b_K", "b_V", "b_O")}),
            ln1_post=norm(b.ln1_post),
            ln2=norm(b.ln2),
            ln2_post=norm(b.ln2_post),
            mlp=b.mlp._replace(b_in=factor * b.mlp.b_in, b_out=factor * b.mlp.b_out),
        )

    return params._replace(blocks=tuple(block(b) for b in params.blocks))
