"""One block around a point: the values that its linear map reads, and gradients pulled back through its parts.

Where derivatives are frozen, patterns and scales are held: queries and keys carry nothing, norms centre and scale.
What is held of a block's values passes nothing on.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
from einops import einsum
from jaxtyping import Array, Float, Int

from jaxcircuits.attribution.ends import GELU_ENDS, MLP_ENDS
from jaxcircuits.attribution.problem import Problem
from jaxcircuits.config import ModelConfig
from jaxcircuits.model.freezing import gelu_line
from jaxcircuits.model.rotary import turned, turns
from jaxcircuits.types import AttentionWeights, BlockWeights, NormWeights


class NormState(NamedTuple):
    """A layer norm at its point: what it divides by, and its output before scale and shift."""

    scale: Float[Array, "*pos 1"]
    normalized: Float[Array, "*pos d_model"]


class Segment(NamedTuple):
    """One sequence's values between attention's input and a hook of the block: all that pulling and pushing read."""

    norm1: NormState
    q: Float[Array, "pos head d_head"]  # queries and keys as scores have them: turned, where positions are rotary
    k: Float[Array, "pos head d_head"]
    v: Float[Array, "pos head d_head"]
    pattern: Float[Array, "head q_pos k_pos"]
    norm2: NormState | None  # what lies behind the hook is not there
    gelu_slope: Float[Array, "pos d_mlp"] | None
    gelu_constant: Float[Array, "pos d_mlp"] | None
    arriving: Float[Array, "pos d_in"]  # at the hook


def names_read(cfg: ModelConfig, block: int, place: str) -> tuple[str, ...]:
    """Hook points whose values a `Segment` up to some place of a block is made of."""
    names = ("hook_resid_pre", "ln1.hook_scale", *cfg.scored, "attn.hook_v", "attn.hook_pattern")
    names += (cfg.mlp_stream, "ln2.hook_scale") if place in MLP_ENDS else ()
    names += ("mlp.hook_pre",) if place in GELU_ENDS else ()
    return tuple(f"blocks.{block}.{name}" for name in names)


def segment_at(
    cfg: ModelConfig,
    acts: Mapping[str, Array],
    block: int,
    place: str,
    gelu: str | None,
    arriving: Float[Array, "pos d_in"],
) -> Segment:
    """The segment up to some place of a block, from the values of `names_read`."""
    at = {name.split(".", 2)[2]: acts[name] for name in names_read(cfg, block, place)}
    query, key = cfg.scored
    line = gelu_line(at["mlp.hook_pre"], gelu, cfg.activation) if place in GELU_ENDS else (None, None)
    return Segment(
        norm1=_norm_state(at["hook_resid_pre"], at["ln1.hook_scale"]),
        q=at[query],
        k=at[key],
        v=at["attn.hook_v"],
        pattern=at["attn.hook_pattern"],
        norm2=_norm_state(at[cfg.mlp_stream], at["ln2.hook_scale"]) if place in MLP_ENDS else None,
        gelu_slope=line[0],
        gelu_constant=line[1],
        arriving=arriving,
    )


def _norm_state(resid: Float[Array, "pos d_model"], scale: Float[Array, "pos 1"]) -> NormState:
    return NormState(scale, (resid - resid.mean(-1, keepdims=True)) / scale)


def norm_at(state: NormState, p: Int[Array, "*n"]) -> NormState:
    """The norm at some positions."""
    return NormState(state.scale[p], state.normalized[p])


def norm_pull(state: NormState, norm: NormWeights | None, g: Array, frozen: bool) -> Array:
    """The norm's transposed Jacobian on `g`; `state` at the same positions. Frozen, it only centres and scales."""
    g = g if norm is None else g * norm.w
    centred = g - g.mean(-1, keepdims=True)
    if not frozen:
        centred = centred - state.normalized * (g * state.normalized).mean(-1, keepdims=True)
    return centred / state.scale


def norm_push(state: NormState, norm: NormWeights | None, e: Array, frozen: bool) -> Array:
    """The norm's Jacobian on `e`; without scale and shift it is symmetric."""
    pushed = norm_pull(state, None, e, frozen)
    return pushed if norm is None else pushed * norm.w


def cut(problem: Problem, block: int, name: str, g: Array) -> Array:
    """A gradient at a hook of a block, which does not pass where the hook's value is held."""
    return jnp.zeros_like(g) if f"blocks.{block}.{name}" in problem.held else g


def heads_of(attn: AttentionWeights) -> Float[Array, "vqk head d_head d_model"]:
    """What leads from values, queries and keys back to what attention reads."""
    return jnp.stack([W.swapaxes(1, 2) for W in (attn.W_V, attn.W_Q, attn.W_K)])


def pull_from_activations(
    problem: Problem,
    block: int,
    weights: BlockWeights,
    norm2: NormState,
    gelu_slope: Float[Array, "*#n d_mlp"],
    post: Float[Array, "*n d_mlp"],
) -> Float[Array, "*n d_model"]:
    """From a block's MLP activations back to the residual stream before its norm; all of the same positions."""
    pre = cut(problem, block, "mlp.hook_pre", cut(problem, block, "mlp.hook_post", post) * gelu_slope)
    normed = pre @ weights.mlp.W_in.T
    return cut(problem, block, "ln2.hook_normalized", norm_pull(norm2, weights.ln2, normed, problem.frozen))


def to_heads(
    problem: Problem, block: int, attn: AttentionWeights, g: Float[Array, "*n d_model"]
) -> Float[Array, "head *n d_head"]:
    """From what attention adds to the stream to the heads' outputs."""
    g = cut(problem, block, "hook_attn_out", g)
    z = einsum(g, attn.W_O, "... d_model, head d_head d_model -> head ... d_head")
    return cut(problem, block, "attn.hook_z", z)


def to_scores(
    problem: Problem, segment: Segment, z: Float[Array, "target head d_head"], p: Int[Array, "target"]
) -> Float[Array, "target head k_pos"] | None:
    """From targets' heads' outputs at their own positions to their attention scores; `None` where these are held."""
    if problem.frozen:
        return None
    pattern = segment.pattern[:, p].swapaxes(0, 1)  # [target, head, k_pos]
    g_pattern = einsum(z, segment.v, "target head d_head, k_pos head d_head -> target head k_pos")
    mean = (pattern * g_pattern).sum(-1, keepdims=True)
    return pattern * (g_pattern - mean) * problem.cfg.attention_scale


def to_own_heads(
    problem: Problem,
    block: int,
    segment: Segment,
    z: Float[Array, "target head d_head"],
    scores: Float[Array, "target head k_pos"] | None,
    p: Int[Array, "target"],
) -> Float[Array, "target vqk head d_head"]:
    """From targets' heads' outputs to values, queries and keys at their own positions; values alone where frozen."""
    own = (segment.pattern[:, p, p].T)[..., None]  # [target, head, 1]
    read = [cut(problem, block, "attn.hook_v", own * z)]
    if scores is not None:
        query = einsum(scores, segment.k, "target head k_pos, k_pos head d_head -> target head d_head")
        key = jnp.take_along_axis(scores, p[:, None, None], axis=-1) * segment.q[p]
        at = p[:, None]  # one position for all heads
        read += [to_query(problem, block, query, at), to_key(problem, block, key, at)]
    return jnp.stack(read, 1)


def to_query(
    problem: Problem, block: int, g: Float[Array, "*n d_head"], pos: Int[Array, "*#n"]
) -> Float[Array, "*n d_head"]:
    """From queries as scores have them to those that are read off the stream: turned back, where positions turn."""
    return _turned_back(problem, block, g, pos, problem.cfg.scored[0], "attn.hook_q")


def to_key(
    problem: Problem, block: int, g: Float[Array, "*n d_head"], pos: Int[Array, "*#n"]
) -> Float[Array, "*n d_head"]:
    """The same of keys."""
    return _turned_back(problem, block, g, pos, problem.cfg.scored[1], "attn.hook_k")


def _turned_back(problem: Problem, block: int, g: Array, pos: Array, scored: str, read: str) -> Array:
    by = turns(problem.cfg, pos, g.dtype)
    return cut(problem, block, read, g if by is None else turned(cut(problem, block, scored, g), by.back))
