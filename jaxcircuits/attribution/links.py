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
    spread,
    to_heads,
    to_key,
    to_own_heads,
    to_query,
    to_scores,
    to_written,
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
    W_out = weights.mlp.W_out
    each = jnp.eye(W_out.shape[1], dtype=W_out.dtype)
    added, beside = cut(problem, number, "hook_mlp_out", each), cut(problem, number, "hook_resid_post", each)
    rows = added @ W_out.T

    def one(at):
        norm2, slopes, behind = at
        written = rows if behind is None else _to_mlp(problem, number, weights, behind, added) @ W_out.T
        pulled = pull_from_activations(problem, number, weights, norm2, slopes, written)
        return cut(problem, number, "hook_resid_mid", cut(problem, number, "hook_resid_post", pulled) + beside)

    return jax.lax.map(one, (segment.norm2, segment.slopes, segment.norm2_post))


def _to_mlp(problem: Problem, number: int, weights: BlockWeights, behind: NormState | None, g: Array) -> Array:
    return to_written(problem, number, "ln2_post", behind, weights.ln2_post, g)


def window(link: Link, first: int, end: int) -> Link:
    """A block's map between some positions; what a query's softmax is over stays whole."""
    s, whole = slice(first, end), link.segment

    def at(values: Any) -> Any:
        return jax.tree.map(lambda x: x[s], values)

    segment = whole._replace(
        norm1=at(whole.norm1),
        q=whole.q[s],
        k=whole.k[:end],
        v=whole.v[:end],
        pattern=whole.pattern[:, s, :end],
        cap_slope=None if whole.cap_slope is None else whole.cap_slope[:, s, :end],
        norm1_post=at(whole.norm1_post),
        norm2=at(whole.norm2),
        slopes=at(whole.slopes),
        norm2_post=at(whole.norm2_post),
    )
    return link._replace(segment=segment, mlp=None if link.mlp is None else link.mlp[s])


def through_mlp(problem: Problem, link: Link, g: Float[Array, "*n d_model"], own: Any = None) -> Array:
    """From behind a block to the stream behind its attention: all positions `[pos, target, ...]`, or targets' `own`."""
    if link.mlp is not None and own is None:
        return einsum(g, link.mlp, "pos target d, pos d d_model -> pos target d_model")
    point = (link.segment.norm2, link.segment.slopes, link.segment.norm2_post)
    norm2, slopes, behind = jax.tree.map(lambda x: x[:, None] if own is None else x[own], point)
    g = cut(problem, link.number, "hook_resid_post", g)
    written = _to_mlp(problem, link.number, link.weights, behind, cut(problem, link.number, "hook_mlp_out", g))
    post = written @ link.weights.mlp.W_out.T
    pulled = pull_from_activations(problem, link.number, link.weights, norm2, slopes, post)
    return cut(problem, link.number, "hook_resid_mid", g + pulled)


def _to_stream(problem: Problem, link: Link, norm1: NormState, normed: Array, beside: Array) -> Array:
    """Through a block's first norm, and the residual stream beside it."""
    pulled = norm_pull(problem, norm1, link.weights.ln1, normed)
    pulled = cut(problem, link.number, "ln1.hook_normalized", pulled)
    return cut(problem, link.number, "hook_resid_pre", beside + pulled)


def through_attention(
    problem: Problem, link: Link, g: Float[Array, "pos target d_model"], beside: Float[Array, "pos target d_model"]
) -> Float[Array, "pos target d_model"]:
    """From what a block's attention writes to the stream before it, at all positions; `beside` is there already."""
    segment, number = link.segment, link.number
    behind = segment.norm1_post and spread(segment.norm1_post)
    z = to_heads(problem, number, link.weights, behind, g)  # [head, pos, target, d_head]
    pattern = segment.pattern
    before = pattern.shape[2] - pattern.shape[1]  # positions before the window
    value = einsum(pattern[..., before:], z, "head q k, head q target d -> head k target d")
    read = [cut(problem, number, "attn.hook_v", value)]
    if not problem.frozen:
        out = einsum(pattern, segment.v, "head q k, k head d -> head q d")
        g_pattern = einsum(z, segment.v, "head q target d, k head d -> head q target k")
        mean = einsum(z, out, "head q target d, head q d -> head q target")
        look = pattern if segment.cap_slope is None else pattern * segment.cap_slope
        scores = problem.cfg.attention_scale * look[:, :, None] * (g_pattern - mean[..., None])
        query = einsum(scores, segment.k, "head q target k, k head d -> head q target d")
        key = einsum(scores[..., before:], segment.q, "head q target k, q head d -> head k target d")
        pos = before + jnp.arange(pattern.shape[1])[:, None]
        read += [to_query(problem, number, query, pos), to_key(problem, number, key, pos)]
    to_stream = "head pos target d, head d d_model -> pos target d_model"
    value, *others = (einsum(x, W, to_stream) for x, W in zip(read, link.W_heads, strict=False))
    normed = sum(others, value)
    return _to_stream(problem, link, spread(segment.norm1), normed, beside)


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
    return _to_stream(problem, link, spread(norm_at(segment.norm1, slice(end))), normed, beside)


def start_of(way: Way, pulled: Pulled, p: Int[Array, "target"]) -> tuple[Array, Array, Array | None]:
    """Targets behind their block's attention: in the stream, at the heads' outputs, at the scores."""
    problem, last = way.problem, way.last
    resid = cut(problem, last.number, "hook_resid_mid", pulled.resid)
    if problem.target_place in ATTENTION_ENDS or problem.cfg.parallel_residual:
        z = pulled.z
        if problem.target_place == "hook_attn_out":
            z = cut(problem, last.number, "attn.hook_z", z)
    else:
        z = _own_heads(problem, last, resid, p)
    return resid, z, to_scores(problem, last.segment, z, p)


def _own_heads(problem: Problem, link: Link, g: Float[Array, "target d_model"], p: Array) -> Array:
    """From what a block's attention adds at targets' positions to its heads' outputs: `[target, head, d_head]`."""
    behind = link.segment.norm1_post and norm_at(link.segment.norm1_post, p)
    return to_heads(problem, link.number, link.weights, behind, g).swapaxes(0, 1)


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
            z = _own_heads(problem, link, written, p)
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
