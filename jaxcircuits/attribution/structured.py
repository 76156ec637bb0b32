"""`method="structured"`: the same numbers for adjacent layers' `mlp.hook_post`, by meeting in the middle.

Everything between the two hooks except attention acts on one position alone, so

1. a target is pulled back to what attention adds to the residual stream, once;
2. a source is pushed through the norm into queries, keys and values, once;
3. a pair costs a few dot products.

The heavy products number targets + sources, not targets x positions. At the target's own position the pull goes all
the way to the residual stream before attention, and a pair is one dot product with a row of the table
`E = W_dec W_out`, which weights alone decide.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import einsum
from jaxtyping import Array, Float, Int

from jaxcircuits.attribution.problem import Problem, target_side
from jaxcircuits.sae import SAE, pre_activations
from jaxcircuits.sae.activations import activation
from jaxcircuits.types import BlockWeights, NormWeights


class Segment(NamedTuple):
    """One sequence's values between the hooks: all that pulling and pushing read."""

    norm1: "NormState"
    q: Float[Array, "pos head d_head"]
    k: Float[Array, "pos head d_head"]
    v: Float[Array, "pos head d_head"]
    pattern: Float[Array, "head q_pos k_pos"]
    norm2: "NormState"
    gelu_slope: Float[Array, "pos d_mlp"]
    target_pre_acts: Float[Array, "pos d_sae_target"]


class NormState(NamedTuple):
    """A layer norm at its point: what it divides by, and its output before scale and shift."""

    scale: Float[Array, "pos 1"]
    normalized: Float[Array, "pos d_model"]


class Pulled(NamedTuple):
    """Targets pulled back to the attention of their layer."""

    resid: Float[Array, "target d_model"]  # to the residual stream after attention
    z: Float[Array, "target head d_head"]  # to the heads' outputs
    scores: Float[Array, "target head k_pos"]  # to the attention scores
    same_pos: Float[Array, "target d_model"]  # to the residual stream before attention, at the target's position


def segment_of(
    problem: Problem, params: Any, target: SAE, h: Float[Array, "pos d_in"], tokens: Int[Array, "pos"]
) -> Segment:
    """Runs the model from the source hook's value to the target hook and keeps what lies between."""
    block = ".".join(problem.target_hook.split(".")[:2])
    names = ("hook_resid_pre", "ln1.hook_scale", "attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_pattern")
    names += ("hook_resid_mid", "ln2.hook_scale", "mlp.hook_pre")
    arriving, acts = target_side(problem, params, h, tokens, tuple(f"{block}.{name}" for name in names))
    at = {name: acts[f"{block}.{name}"] for name in names}
    gelu = partial(jax.nn.gelu, approximate=True)
    pre = at["mlp.hook_pre"]
    return Segment(
        norm1=_norm_state(at["hook_resid_pre"], at["ln1.hook_scale"]),
        q=at["attn.hook_q"],
        k=at["attn.hook_k"],
        v=at["attn.hook_v"],
        pattern=at["attn.hook_pattern"],
        norm2=_norm_state(at["hook_resid_mid"], at["ln2.hook_scale"]),
        gelu_slope=jax.jvp(gelu, (pre,), (jnp.ones_like(pre),))[1],
        target_pre_acts=pre_activations(target, arriving),
    )


def _norm_state(resid: Float[Array, "pos d_model"], scale: Float[Array, "pos 1"]) -> NormState:
    return NormState(scale, (resid - resid.mean(-1, keepdims=True)) / scale)


def _norm_pull(state: NormState, norm: NormWeights | None, g: Array) -> Array:
    """The norm's transposed Jacobian on `g`; `state` at the same positions."""
    g = g if norm is None else g * norm.w
    y = state.normalized
    return (g - g.mean(-1, keepdims=True) - y * (g * y).mean(-1, keepdims=True)) / state.scale


def _norm_push(state: NormState, norm: NormWeights | None, e: Array) -> Array:
    """The norm's Jacobian on `e`; without scale and shift it is symmetric."""
    pushed = _norm_pull(state, None, e)
    return pushed if norm is None else pushed * norm.w


def pull(
    problem: Problem,
    block: BlockWeights,
    target: SAE,
    W_enc_rows: Float[Array, "d_sae_target d_mlp"],
    segment: Segment,
    target_pos: Int[Array, "target"],
    target_feature: Int[Array, "target"],
) -> Pulled:
    """Pulls targets of one sequence back to attention and, at their own position, through it."""
    p = target_pos
    g_post = W_enc_rows[target_feature]
    if problem.target_quantity == "activation":
        pre = segment.target_pre_acts[p, target_feature]
        g_post = g_post * activation(target.cfg.activation).slope(pre)[:, None]
    g_pre = g_post * segment.gelu_slope[p]
    g_normed = einsum(g_pre, block.mlp.W_in, "target d_mlp, d_model d_mlp -> target d_model")
    resid = _norm_pull(_at(segment.norm2, p), block.ln2, g_normed)
    z = einsum(resid, block.attn.W_O, "target d_model, head d_head d_model -> target head d_head")
    pattern = segment.pattern[:, p].swapaxes(0, 1)  # [target, head, k_pos]
    g_pattern = einsum(z, segment.v, "target head d_head, k_pos head d_head -> target head k_pos")
    mean = (pattern * g_pattern).sum(-1, keepdims=True)
    scores = pattern * (g_pattern - mean) * problem.cfg.attention_scale
    g_q = einsum(scores, segment.k, "target head k_pos, k_pos head d_head -> target head d_head")
    own = jnp.take_along_axis(scores, p[:, None, None], axis=-1)
    own_pattern = jnp.take_along_axis(pattern, p[:, None, None], axis=-1)
    g_normed1 = (
        _from_heads(g_q, block.attn.W_Q)
        + _from_heads(own * segment.q[p], block.attn.W_K)
        + _from_heads(own_pattern * z, block.attn.W_V)
    )
    same_pos = resid + _norm_pull(_at(segment.norm1, p), block.ln1, g_normed1)
    return Pulled(resid, z, scores, same_pos)


def _at(state: NormState, p: Int[Array, "target"]) -> NormState:
    return NormState(state.scale[p], state.normalized[p])


def _from_heads(g: Float[Array, "target head d_head"], W: Float[Array, "head d_model d_head"]) -> Array:
    return einsum(g, W, "target head d_head, head d_model d_head -> target d_model")


def dots(
    vectors: Float[Array, "target kind d_model"],
    E: Float[Array, "d_sae d_model"],
    target_pos: Int[Array, "target"],
    sources: Int[Array, "pos slot"],
) -> Float[Array, "kind target slot"]:
    """Products of targets' vectors with the table's rows of the sources at their own position; one gather for all."""
    rows = E[sources[target_pos]]
    return einsum(vectors, rows, "target kind d_model, target slot d_model -> kind target slot")


def all_positions(
    problem: Problem,
    block: BlockWeights,
    segment: Segment,
    pulled: Pulled,
    E: Float[Array, "d_sae d_model"],
    target_pos: Int[Array, "target"],
    sources: Int[Array, "pos slot"],
) -> Float[Array, "target pos slot"]:
    """Derivatives along the listed sources of every position; 0 where attention does not look."""
    queries = segment.q[target_pos]  # [target, head, d_head]

    def from_position(inputs):
        listed, norm1, g_scores, pattern = inputs  # the last two [target, head]
        e = _norm_push(norm1, block.ln1, E[listed])
        dk = einsum(e, block.attn.W_K, "slot d_model, head d_model d_head -> slot head d_head")
        dv = einsum(e, block.attn.W_V, "slot d_model, head d_model d_head -> slot head d_head")
        meet = "target head d_head, slot head d_head -> target slot"
        return einsum(g_scores[..., None] * queries, dk, meet) + einsum(pattern[..., None] * pulled.z, dv, meet)

    pattern = segment.pattern[:, target_pos]  # [head, target, k_pos]
    cross = jax.lax.map(
        from_position,
        (
            sources,
            segment.norm1,
            pulled.scores.transpose(2, 0, 1),
            pattern.transpose(2, 1, 0),
        ),
    ).swapaxes(0, 1)  # [target, pos, slot]
    (own,) = dots(pulled.same_pos[:, None], E, target_pos, sources)
    here = jnp.arange(sources.shape[0])[None, :, None] == target_pos[:, None, None]
    return jnp.where(here, own[:, None, :], cross)


@partial(jax.jit, static_argnames=("problem", "everywhere"))
def structured(
    params: Any,
    target: SAE,
    W_enc_rows: Float[Array, "d_sae_target d_mlp"],
    E: Float[Array, "d_sae d_model"],
    segments: Segment,
    target_pos: Int[Array, "batch target"],
    target_feature: Int[Array, "batch target"],
    sources: Int[Array, "batch pos slot"],
    *,
    problem: Problem,
    everywhere: bool,
) -> Float[Array, "batch target *pos slot"]:
    """Derivatives of a batch of sequences, at each target's own position or, with `everywhere`, at all of them."""
    block = params.blocks[int(problem.target_hook.split(".")[1])]

    def one(segment, pos, feature, listed):
        pulled = pull(problem, block, target, W_enc_rows, segment, pos, feature)
        if everywhere:
            return all_positions(problem, block, segment, pulled, E, pos, listed)
        return dots(pulled.same_pos[:, None], E, pos, listed)[0]

    return jax.vmap(one)(segments, target_pos, target_feature, sources)
