"""The blocks between two hooks, each a linear map at its point, and gradients taken through them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import einsum
from jaxtyping import Array, Float, Int

from jaxcircuits.attribution.blocks import (
    NormState,
    Segment,
    cut,
    heads_of,
    names_read,
    norm_at,
    norm_pull,
    pull_from_activations,
    segment_at,
    to_heads,
    to_key,
    to_own_heads,
    to_query,
    to_scores,
)
from jaxcircuits.attribution.ends import ATTENTION_ENDS
from jaxcircuits.attribution.problem import Problem, target_side
from jaxcircuits.attribution.structured import Pulled
from jaxcircuits.types import BlockWeights

PLACE = "hook_resid_post"
"""Where a block between ends."""


class Link(NamedTuple):
    """One block's linear map at its point."""

    number: int
    weights: BlockWeights
    W_heads: Float[Array, "vqk head d_head d_model"]
    segment: Segment
    mlp: Float[Array, "pos d_model d_model"] | None  # its MLP, norm and the stream beside them as a matrix a position


class Way(NamedTuple):
    """From the target's attention down to where sources enter."""

    problem: Problem
    last: Link  # the target's block
    between: tuple[Link, ...]  # as in the model; of the first only the MLP where sources enter behind attention
    meets: bool  # whether sources enter before the target's attention


def blocks_between(problem: Problem) -> range:
    """The blocks between where sources enter and the target's."""
    assert problem.entry is not None
    return range(problem.entry.block, problem.target_block)


def way_of(
    problem: Problem,
    params: Any,
    h: Float[Array, "pos d_in"],
    tokens: Int[Array, "pos"],
    segment: Segment,
    *,
    collapse: bool,
) -> Way:
    """Runs the blocks between and keeps what their linear maps read; `segment` is the target's block's."""
    numbers, entry = blocks_between(problem), problem.entry
    assert entry is not None
    names = [name for n in numbers for name in (*names_read(problem.cfg, n, PLACE), f"blocks.{n}.{PLACE}")]
    acts = target_side(problem, params, h, tokens, tuple(names))[1] if names else {}

    def link(number: int) -> Link:
        weights, arriving = params.blocks[number], acts[f"blocks.{number}.{PLACE}"]
        at = segment_at(problem.cfg, acts, number, PLACE, problem.gelu, arriving)
        mlp = _collapsed(problem, number, weights, at) if collapse else None
        return Link(number, weights, heads_of(weights.attn), at, mlp)

    weights = params.blocks[problem.target_block]
    last = Link(problem.target_block, weights, heads_of(weights.attn), segment, None)
    return Way(problem, last, tuple(map(link, numbers)), not (entry.middle and entry.block == problem.target_block))


def _collapsed(
    problem: Problem, number: int, weights: BlockWeights, segment: Segment
) -> Float[Array, "pos d_model d_model"]:
    """What pulls a gradient (a row) back through a block's MLP, norm and the residual stream beside them."""
    rows = cut(problem, number, "hook_mlp_out", weights.mlp.W_out.T)
    beside = cut(problem, number, "hook_resid_post", jnp.eye(len(rows), dtype=rows.dtype))

    def one(at):
        scale, normalized, slope = at
        norm2 = NormState(scale, normalized)
        pulled = pull_from_activations(problem, number, weights, norm2, slope, rows)
        return cut(problem, number, "hook_resid_mid", cut(problem, number, "hook_resid_post", pulled) + beside)

    assert segment.norm2 is not None
    return jax.lax.map(one, (*segment.norm2, segment.gelu_slope))


def window(link: Link, first: int, end: int) -> Link:
    """A block's map between some positions; what a query's softmax is over stays whole."""
    s = slice(first, end)
    segment = link.segment._replace(
        norm1=NormState(*(x[s] for x in link.segment.norm1)),
        q=link.segment.q[s],
        k=link.segment.k[:end],
        v=link.segment.v[:end],
        pattern=link.segment.pattern[:, s, :end],
        norm2=link.segment.norm2 and NormState(*(x[s] for x in link.segment.norm2)),
        gelu_slope=None if link.segment.gelu_slope is None else link.segment.gelu_slope[s],
    )
    return link._replace(segment=segment, mlp=None if link.mlp is None else link.mlp[s])


def through_mlp(problem: Problem, link: Link, g: Float[Array, "*n d_model"], own: Any = None) -> Array:
    """From behind a block to the stream behind its attention: all positions `[pos, target, ...]`, or targets' `own`."""
    if link.mlp is not None and own is None:
        return einsum(g, link.mlp, "pos target d, pos d d_model -> pos target d_model")
    at = slice(None) if own is None else own
    g = cut(problem, link.number, "hook_resid_post", g)
    post = cut(problem, link.number, "hook_mlp_out", g) @ link.weights.mlp.W_out.T
    norm2, slope = link.segment.norm2, link.segment.gelu_slope
    assert norm2 is not None
    assert slope is not None
    norm2, slope = NormState(*(x[at] for x in norm2)), slope[at]
    if own is None:
        norm2, slope = NormState(*(x[:, None] for x in norm2)), slope[:, None]
    pulled = pull_from_activations(problem, link.number, link.weights, norm2, slope, post)
    return cut(problem, link.number, "hook_resid_mid", g + pulled)


def _to_stream(problem: Problem, link: Link, norm1: NormState, normed: Array, beside: Array) -> Array:
    """Through a block's first norm, and the residual stream beside it."""
    pulled = norm_pull(norm1, link.weights.ln1, normed, problem.frozen)
    pulled = cut(problem, link.number, "ln1.hook_normalized", pulled)
    return cut(problem, link.number, "hook_resid_pre", beside + pulled)


def through_attention(
    problem: Problem, link: Link, g: Float[Array, "pos target d_model"], beside: Float[Array, "pos target d_model"]
) -> Float[Array, "pos target d_model"]:
    """From what a block's attention writes to the stream before it, at all positions; `beside` is there already."""
    segment, number = link.segment, link.number
    z = to_heads(problem, number, link.weights.attn, g)  # [head, pos, target, d_head]
    pattern = segment.pattern
    before = pattern.shape[2] - pattern.shape[1]  # positions before the window
    value = einsum(pattern[..., before:], z, "head q k, head q target d -> head k target d")
    read = [cut(problem, number, "attn.hook_v", value)]
    if not problem.frozen:
        out = einsum(pattern, segment.v, "head q k, k head d -> head q d")
        g_pattern = einsum(z, segment.v, "head q target d, k head d -> head q target k")
        mean = einsum(z, out, "head q target d, head q d -> head q target")
        scores = problem.cfg.attention_scale * pattern[:, :, None] * (g_pattern - mean[..., None])
        query = einsum(scores, segment.k, "head q target k, k head d -> head q target d")
        key = einsum(scores[..., before:], segment.q, "head q target k, q head d -> head k target d")
        pos = before + jnp.arange(pattern.shape[1])[:, None]
        read += [to_query(problem, number, query, pos), to_key(problem, number, key, pos)]
    to_stream = "head pos target d, head d d_model -> pos target d_model"
    value, *others = (einsum(x, W, to_stream) for x, W in zip(read, link.W_heads, strict=False))
    normed = sum(others, value)
    return _to_stream(problem, link, NormState(*(x[:, None] for x in segment.norm1)), normed, beside)


def from_own_attention(
    problem: Problem,
    link: Link,
    resid: Float[Array, "target d_model"],
    z: Float[Array, "target head d_head"],
    scores: Float[Array, "target head k_pos"] | None,
    p: Int[Array, "target"],
    end: int,
) -> Float[Array, "pos target d_model"]:
    """From targets behind their block's attention to the stream before it, at all positions before `end`."""
    segment, number = link.segment, link.number
    order = jnp.arange(len(p))
    beside = jnp.zeros((end, *resid.shape), resid.dtype).at[p, order].set(resid)
    if not problem.sees_attention:
        return cut(problem, number, "hook_resid_pre", beside)
    value = einsum(z, link.W_heads[0], "target head d, head d d_model -> target head d_model")
    vectors, looks = [cut(problem, number, "attn.hook_v", value)], [segment.pattern[:, p, :end]]
    turning = problem.cfg.rotary
    if scores is not None and not turning:
        key = einsum(segment.q[p], link.W_heads[2], "target head d, head d d_model -> target head d_model")
        vectors.append(cut(problem, number, "attn.hook_k", key))
        looks.append(scores[..., :end].swapaxes(0, 1))
    both, look = jnp.concatenate(vectors, 1), jnp.concatenate(looks, 0)
    normed = einsum(look, both, "head target k, target head d_model -> k target d_model")
    if scores is not None and turning:  # a query is another vector for each key
        key = einsum(scores[..., :end], segment.q[p], "target head k, target head d -> k target head d")
        key = to_key(problem, number, key, jnp.arange(end)[:, None, None])
        normed += einsum(key, link.W_heads[2], "k target head d, head d d_model -> k target d_model")
    if scores is not None:
        query = einsum(scores, segment.k, "target head k, k head d -> target head d")
        query = einsum(to_query(problem, number, query, p[:, None]), link.W_heads[1], "t head d, head d m -> t m")
        normed = normed.at[p, order].add(query)
    norm1 = NormState(*(x[:end, None] for x in segment.norm1))
    return _to_stream(problem, link, norm1, normed, beside)


def start_of(way: Way, pulled: Pulled, p: Int[Array, "target"]) -> tuple[Array, Array, Array | None]:
    """Targets behind their block's attention: in the stream, at the heads' outputs, at the scores."""
    problem, last = way.problem, way.last
    resid = cut(problem, last.number, "hook_resid_mid", pulled.resid)
    if problem.target_place in ATTENTION_ENDS or problem.cfg.parallel_residual:
        z = pulled.z
        if problem.target_place == "hook_attn_out":
            z = cut(problem, last.number, "attn.hook_z", z)
    else:
        z = to_heads(problem, last.number, last.weights.attn, resid).swapaxes(0, 1)
    return resid, z, to_scores(problem, last.segment, z, p)


def own_vectors(way: Way, pulled: Pulled, p: Int[Array, "target"]) -> Float[Array, "target d_model"]:
    """Targets pulled back to where sources enter at the targets' own positions: all paths from there stay there."""
    problem, entry = way.problem, way.problem.entry
    assert entry is not None
    resid, z, scores = start_of(way, pulled, p)
    if not way.meets:
        return resid

    def attention(link: Link, g: Array, z: Array, scores: Array | None) -> Array:
        read = to_own_heads(problem, link.number, link.segment, z, scores, p)
        n = read[0].size
        normed = read.reshape(len(p), n) @ link.W_heads[: read.shape[1]].reshape(n, -1)
        return _to_stream(problem, link, norm_at(link.segment.norm1, p), normed, g)

    g = attention(way.last, resid, z, scores)
    for link in reversed(way.between):
        written, g = _to_attention(problem, link, g, p)
        if not (entry.middle and link.number == entry.block):
            z = to_heads(problem, link.number, link.weights.attn, written).swapaxes(0, 1)
            g = attention(link, g, z, to_scores(problem, link.segment, z, p))
    return _at_entry(problem, g)


def _to_attention(problem: Problem, link: Link, g: Array, own: Any = None) -> tuple[Array, Array]:
    """From behind a block to what its attention writes, and to the stream beside that."""
    through = through_mlp(problem, link, g, own)
    return (cut(problem, link.number, "hook_resid_post", g) if problem.cfg.parallel_residual else through), through


def through_blocks(way: Way, between: tuple[Link, ...], g: Float[Array, "pos target d_model"]) -> Array:
    """From before the target's attention to where sources enter."""
    problem, entry = way.problem, way.problem.entry
    assert entry is not None
    for link in reversed(between):
        written, g = _to_attention(problem, link, g)
        if not (entry.middle and link.number == entry.block):
            g = through_attention(problem, link, written, g)
    return _at_entry(problem, g)


def _at_entry(problem: Problem, g: Array) -> Array:
    """A gradient where sources enter; what is held there holds what they add, unless they sit there themselves."""
    entry = problem.entry
    assert entry is not None
    return jnp.zeros_like(g) if entry.hook in problem.held and not entry.after_edits else g
