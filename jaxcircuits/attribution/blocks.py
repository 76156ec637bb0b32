"""One block around a point: the values that its linear map reads, and gradients pulled back through its parts.

Where derivatives are frozen, patterns and scales are held: queries and keys carry nothing, norms centre and scale.
What is held of a block's values passes nothing on.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
from einops import einsum
from jaxtyping import Array, Float, Int

from jaxcircuits.attribution.ends import GELU_ENDS, MLP_ENDS, MLP_OUT_ENDS, MLP_READS
from jaxcircuits.attribution.problem import Problem
from jaxcircuits.config import ModelConfig
from jaxcircuits.model.freezing import gelu_plane
from jaxcircuits.model.rotary import turned, turns
from jaxcircuits.types import AttentionWeights, BlockWeights, MLPWeights, NormWeights


class NormState(NamedTuple):
    """A norm at its point: what it divides by, and its output before scale and shift."""

    scale: Float[Array, "*pos 1"]
    normalized: Float[Array, "*pos d_model"]


class Segment(NamedTuple):
    """One sequence's values between attention's input and a hook of the block: all that pulling and pushing read."""

    norm1: NormState
    q: Float[Array, "pos head d_head"]  # queries and keys as scores have them: turned, where positions are rotary
    k: Float[Array, "pos head d_head"]  # for every head, where several share them
    v: Float[Array, "pos head d_head"]
    pattern: Float[Array, "head q_pos k_pos"]
    cap_slope: Float[Array, "head q_pos k_pos"] | None  # of the scores' cap, where they have one
    norm1_post: NormState | None  # what the model does not have, or lies behind the hook, is not there
    norm2: NormState | None
    slopes: tuple[Float[Array, "pos d_mlp"], ...] | None  # of the activation; gated, of both its factors
    gelu_constant: Float[Array, "pos d_mlp"] | None
    norm2_post: NormState | None
    arriving: Float[Array, "pos d_in"]  # at the hook


def names_read(cfg: ModelConfig, block: int, place: str) -> tuple[str, ...]:
    """Hook points whose values a `Segment` up to some place of a block is made of."""
    names = ("hook_resid_pre", "ln1.hook_scale", *cfg.scored, "attn.hook_v", "attn.hook_pattern")
    names += () if cfg.score_cap is None else ("attn.hook_attn_scores",)
    names += _of_norm("ln1_post") if cfg.norms_behind and place != "attn.hook_z" else ()
    names += (cfg.mlp_stream, "ln2.hook_scale") if place in MLP_ENDS else ()
    names += ("mlp.hook_pre", *(("mlp.hook_pre_linear",) if cfg.gated else ())) if place in GELU_ENDS else ()
    names += _of_norm("ln2_post") if cfg.norms_behind and place in MLP_OUT_ENDS else ()
    return tuple(f"blocks.{block}.{name}" for name in names)


def _of_norm(name: str) -> tuple[str, str]:
    return f"{name}.hook_scale", f"{name}.hook_normalized"


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
    read = tuple(at[name] for name in ("mlp.hook_pre", "mlp.hook_pre_linear") if name in at)
    slopes, constant = gelu_plane(read, gelu, cfg.activation) if read else (None, None)

    def behind(name: str) -> NormState | None:
        return NormState(*(at[hook] for hook in _of_norm(name))) if _of_norm(name)[0] in at else None

    def every_head(x: Float[Array, "pos kv_head d_head"]) -> Float[Array, "pos head d_head"]:
        return jnp.repeat(x, cfg.n_heads // cfg.kv_heads, axis=1)

    return Segment(
        norm1=_norm_state(cfg, at["hook_resid_pre"], at["ln1.hook_scale"]),
        q=at[query],
        k=every_head(at[key]),
        v=every_head(at["attn.hook_v"]),
        pattern=at["attn.hook_pattern"],
        cap_slope=_cap_slope(at["attn.hook_attn_scores"], cfg.score_cap) if cfg.score_cap is not None else None,
        norm1_post=behind("ln1_post"),
        norm2=_norm_state(cfg, at[cfg.mlp_stream], at["ln2.hook_scale"]) if place in MLP_ENDS else None,
        slopes=slopes,
        gelu_constant=constant,
        norm2_post=behind("ln2_post"),
        arriving=arriving,
    )


def _norm_state(cfg: ModelConfig, resid: Float[Array, "pos d_model"], scale: Float[Array, "pos 1"]) -> NormState:
    centred = resid - resid.mean(-1, keepdims=True) if cfg.norm == "layer" else resid
    return NormState(scale, centred / scale)


def _cap_slope(scores: Float[Array, "head q_pos k_pos"], cap: float) -> Float[Array, "head q_pos k_pos"]:
    """The derivative of capped scores with respect to those before; 0 where nothing is seen."""
    return jnp.where(jnp.isfinite(scores), 1 - (scores / cap) ** 2, 0)


def norm_at(state: NormState, p: Int[Array, "*n"] | slice) -> NormState:
    """The norm at some positions."""
    return NormState(state.scale[p], state.normalized[p])


def spread(state: NormState, axis: int = 1) -> NormState:
    """The norm for vectors that have one axis more."""
    return NormState(*(jnp.expand_dims(x, axis) for x in state))


def norm_pull(problem: Problem, state: NormState, norm: NormWeights | None, g: Array) -> Array:
    """The norm's transposed Jacobian on `g`; `state` at the same positions. Frozen, it only centres and scales."""
    g = g if norm is None else g * norm.w
    pulled = g - g.mean(-1, keepdims=True) if problem.cfg.norm == "layer" else g
    if not problem.frozen:
        pulled = pulled - state.normalized * (g * state.normalized).mean(-1, keepdims=True)
    return pulled / state.scale


def norm_push(problem: Problem, state: NormState, norm: NormWeights | None, e: Array) -> Array:
    """The norm's Jacobian on `e`; without scale and shift it is symmetric."""
    pushed = norm_pull(problem, state, None, e)
    return pushed if norm is None else pushed * norm.w


def to_written(
    problem: Problem, block: int, name: str, state: NormState | None, norm: NormWeights | None, g: Array
) -> Array:
    """From what is added to the stream to what attention or MLP wrote: through the norm behind it, if there is one."""
    if state is None:
        return g
    return cut(problem, block, f"{name}.hook_normalized", norm_pull(problem, state, norm, g))


def cut(problem: Problem, block: int, name: str, g: Array) -> Array:
    """A gradient at a hook of a block, which does not pass where the hook's value is held."""
    return jnp.zeros_like(g) if f"blocks.{block}.{name}" in problem.held else g


def heads_of(attn: AttentionWeights) -> Float[Array, "vqk head d_head d_model"]:
    """What leads from values, queries and keys of every head back to what attention reads."""
    shared = len(attn.W_Q) // len(attn.W_K)
    W_V, W_K = (jnp.repeat(W, shared, axis=0) for W in (attn.W_V, attn.W_K))
    return jnp.stack([W.swapaxes(1, 2) for W in (W_V, attn.W_Q, W_K)])


def pull_from_activations(
    problem: Problem,
    block: int,
    weights: BlockWeights,
    norm2: NormState,
    slopes: tuple[Float[Array, "*#n d_mlp"], ...],
    post: Float[Array, "*n d_mlp"],
) -> Float[Array, "*n d_model"]:
    """From a block's MLP activations back to the residual stream before its norm; all of the same positions."""
    post = cut(problem, block, "mlp.hook_post", post)
    read = {hook: cut(problem, block, hook, post * s) for hook, s in zip(MLP_READS, slopes, strict=False)}
    normed = to_mlp_input(weights.mlp, read)
    return cut(problem, block, "ln2.hook_normalized", norm_pull(problem, norm2, weights.ln2, normed))


def to_mlp_input(mlp: MLPWeights, read: Mapping[str, Float[Array, "*n d_mlp"]]) -> Float[Array, "*n d_model"]:
    """From some of `MLP_READS` to what the MLP reads."""
    matrices = (mlp.W_in,) if mlp.W_gate is None else (mlp.W_gate, mlp.W_in)
    by_hook: dict[str, Array] = dict(zip(MLP_READS, matrices, strict=False))
    first, *others = (g @ by_hook[hook].T for hook, g in read.items())
    return sum(others, first)


def to_heads(
    problem: Problem, block: int, weights: BlockWeights, behind: NormState | None, g: Float[Array, "*n d_model"]
) -> Float[Array, "head *n d_head"]:
    """From what attention adds to the stream to the heads' outputs; `behind` at the positions of `g`."""
    g = cut(problem, block, "hook_attn_out", g)
    g = to_written(problem, block, "ln1_post", behind, weights.ln1_post, g)
    z = einsum(g, weights.attn.W_O, "... d_model, head d_head d_model -> head ... d_head")
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
    scores = pattern * (g_pattern - mean) * problem.cfg.attention_scale
    return scores if segment.cap_slope is None else scores * segment.cap_slope[:, p].swapaxes(0, 1)


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
