"""`method="structured"`: the same numbers where one block's attention lies between, by meeting in the middle.

The hooks are those of `ends`: adjacent layers' `mlp.hook_post`, for example. Everything between them except attention
acts on one position alone, so

1. a target is pulled back to what attention adds to the residual stream, once;
2. a source is pushed through the norm into keys and values, once;
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

from jaxcircuits.attribution.blocks import (
    Segment,
    names_read,
    norm_at,
    norm_pull,
    norm_push,
    segment_at,
    spread,
    to_mlp_input,
    to_own_heads,
    to_scores,
    to_written,
)
from jaxcircuits.attribution.ends import GELU_ENDS, MLP_ENDS, MLP_OUT_ENDS, MLP_READS
from jaxcircuits.attribution.problem import Problem, target_side
from jaxcircuits.attribution.products import dots
from jaxcircuits.attribution.selection import Sources
from jaxcircuits.model.rotary import turned, turns
from jaxcircuits.sae import SAE, encode
from jaxcircuits.sae.activations import ELEMENTWISE
from jaxcircuits.sae.normalization import normalized
from jaxcircuits.types import BlockWeights


class Pulled(NamedTuple):
    """Targets pulled back through the MLP and attention of their layer; `None` where they lie before that."""

    act_slope: Float[Array, "target"]
    hook: Float[Array, "target d_in"]  # to the target hook
    written: Float[Array, "target d_model"] | None  # to what the MLP writes, before a norm behind it
    post: Float[Array, "target d_mlp"] | None  # to its activations
    linear: Float[Array, "target d_mlp"] | None  # to what `W_in` gives: its pre-activations, or what these gate
    normed: Float[Array, "target d_model"] | None  # to what it reads
    resid: Float[Array, "target d_model"]  # to the residual stream that the MLP reads; 0 where it is not seen
    z: Float[Array, "target head d_head"]  # to the heads' outputs
    scores: Float[Array, "target head k_pos"] | None  # to the attention scores; None where patterns are held


def segment_of(problem: Problem, params: Any, h: Float[Array, "pos d_in"], tokens: Int[Array, "pos"]) -> Segment:
    """Runs the model from the source hook's value to the target hook and keeps what lies between."""
    block, place = problem.target_block, problem.target_place
    arriving, acts = target_side(problem, params, h, tokens, names_read(problem.cfg, block, place))
    return segment_at(problem.cfg, acts, block, place, problem.gelu, arriving)


def pull(
    problem: Problem,
    block: BlockWeights,
    target: SAE,
    W_enc_rows: Float[Array, "d_sae_target d_in"],
    segment: Segment,
    target_pos: Int[Array, "target"],
    target_feature: Int[Array, "target"],
    act: Float[Array, "target"] | None,
) -> Pulled:
    """Pulls targets of one sequence back to attention.

    Args:
        problem: What is asked.
        block: The target's block.
        target: The target SAE.
        W_enc_rows: Its encoder, a row a feature.
        segment: The sequence at the point where it is differentiated.
        target_pos: Where.
        target_feature: Which.
        act: The targets' activations, which decide their slopes; `None` where they have to be computed, because the
            segment is not at the prompt's own activations.
    """
    p, rows = target_pos, W_enc_rows[target_feature]
    slope = jnp.ones(len(p), rows.dtype)
    if problem.target_quantity == "activation":
        # A feature that is on has its pre-activation as its value, whatever the activation.
        at = _activations(target, rows, segment.arriving, p, target_feature) if act is None else act
        slope = jnp.where(at > 0, slope, 0)
    hook = rows * slope[:, None]
    if target.cfg.normalization != "none":
        (hook,) = jax.vjp(partial(normalized, target.cfg, hold_scale=problem.frozen), segment.arriving[p])[1](hook)
    written, post, linear, normed, resid = _pull_to_stream(problem, block, segment, p, hook)
    if problem.target_place == "attn.hook_z":
        z = hook.reshape(len(p), problem.cfg.n_heads, problem.cfg.d_head)
    else:
        # Only attention's own writing where residuals are parallel: the MLP reads the stream before it.
        behind = jnp.zeros_like(resid) if problem.cfg.parallel_residual else resid
        added = hook if problem.sees_attention_apart else behind
        norm = segment.norm1_post and norm_at(segment.norm1_post, p)
        added = to_written(problem, problem.target_block, "ln1_post", norm, block.ln1_post, added)
        z = einsum(added, block.attn.W_O, "target d_model, head d_head d_model -> target head d_head")
    return Pulled(slope, hook, written, post, linear, normed, resid, z, to_scores(problem, segment, z, p))


def _pull_to_stream(
    problem: Problem, block: BlockWeights, segment: Segment, p: Int[Array, "target"], hook: Float[Array, "target d_in"]
) -> tuple[Array | None, Array | None, Array | None, Array | None, Float[Array, "target d_model"]]:
    """The fields of `Pulled` from `written` to `resid`."""
    place = problem.target_place
    if place not in MLP_ENDS:
        resid = hook if place == "hook_resid_mid" else jnp.zeros((len(p), problem.cfg.d_model), hook.dtype)
        return None, None, None, None, resid
    assert segment.norm2 is not None
    norm2 = norm_at(segment.norm2, p)
    if place == "ln2.hook_normalized":  # before the norm's own scale and shift
        return None, None, None, None, norm_pull(problem, norm2, None, hook)
    written = post = None
    if place in MLP_OUT_ENDS:
        behind = segment.norm2_post and norm_at(segment.norm2_post, p)
        written = to_written(problem, problem.target_block, "ln2_post", behind, block.ln2_post, hook)
    if place in GELU_ENDS:
        assert segment.slopes is not None
        post = hook if written is None else written @ block.mlp.W_out.T
        read = {name: post * slope[p] for name, slope in zip(MLP_READS, segment.slopes, strict=False)}
    else:
        read = {place: hook}
    normed = to_mlp_input(block.mlp, read)
    resid = norm_pull(problem, norm2, block.ln2, normed)
    linear = read.get(MLP_READS[problem.cfg.gated])
    return written, post, linear, normed, resid + hook if place == "hook_resid_post" else resid


def _activations(
    target: SAE,
    rows: Float[Array, "target d_in"],
    arriving: Float[Array, "pos d_in"],
    p: Int[Array, "target"],
    feature: Int[Array, "target"],
) -> Float[Array, "target"]:
    """Targets' activations; of all features only where one depends on the others."""
    if target.cfg.activation not in ELEMENTWISE:
        return encode(target, arriving)[p, feature]
    weights, x = target.weights, normalized(target.cfg, arriving[p])
    x = x - weights.b_dec if target.cfg.subtract_b_dec else x
    pre_act = (x * rows).sum(-1) + weights.b_enc[feature]
    return pre_act if weights.threshold is None else jnp.where(pre_act > weights.threshold[feature], pre_act, 0)


def own_position(
    problem: Problem,
    block: BlockWeights,
    W_heads: Float[Array, "vqk head d_head d_model"],
    segment: Segment,
    pulled: Pulled,
    target_pos: Int[Array, "target"],
    parts: str,
) -> Float[Array, "target part d_model"]:
    """Targets pulled through attention at their own position: one vector each, or one for each part of an edge.

    Parts are the residual stream and then attention through value, query and key, together or head by head.
    """
    p = target_pos
    read = to_own_heads(problem, problem.target_block, segment, pulled.z, pulled.scores, p)
    W, norm1 = W_heads[: read.shape[1]], norm_at(segment.norm1, p)
    if parts == "none":
        n = read.shape[1] * read.shape[2] * read.shape[3]
        normed = read.reshape(len(p), n) @ W.reshape(n, -1)
        return (pulled.resid + norm_pull(problem, norm1, block.ln1, normed))[:, None]
    out = "vqk" if parts == "kinds" else "vqk head"
    normed = einsum(read, W, f"target vqk head d_head, vqk head d_head d_model -> target {out} d_model")
    normed = normed.reshape(len(p), -1, normed.shape[-1])
    pulled_in = norm_pull(problem, spread(norm1), block.ln1, normed)
    vectors = jnp.concatenate([pulled.resid[:, None], pulled_in], 1)
    return jnp.pad(vectors, ((0, 0), (0, _n_parts(problem, parts) - vectors.shape[1]), (0, 0)))


def _n_parts(problem: Problem, parts: str) -> int:
    return {"none": 1, "kinds": 4, "heads": 1 + 3 * problem.cfg.n_heads}[parts]


def norm_stage(
    problem: Problem,
    block: BlockWeights,
    segment: Segment,
    pulled: Pulled,
    reads: Float[Array, "target d_model"],
    target_pos: Int[Array, "target"],
) -> Float[Array, "target d_model"]:
    """What targets read of the residual stream if the GELU were the identity and attention did nothing."""
    assert segment.norm2 is not None
    return norm_pull(problem, norm_at(segment.norm2, target_pos), block.ln2, pulled.act_slope[:, None] * reads)


def cross_positions(
    problem: Problem,
    block: BlockWeights,
    W_heads: Float[Array, "vqk head d_head d_model"],
    segment: Segment,
    pulled: Pulled,
    E: Float[Array, "d_sae d_model"],
    target_pos: Int[Array, "target"],
    sources: Sources,
    parts: str,
    at_once: int,
) -> Float[Array, "part target source"]:
    """Derivatives along all sources through attention alone; 0 where it does not look. For earlier positions.

    A head at a time, so that nothing of size targets x sources x heads is formed.
    """
    heads, n_parts = problem.cfg.n_heads, _n_parts(problem, parts)
    pattern = segment.pattern[:, target_pos]  # [head, target, k_pos]
    to_v = pulled.z.swapaxes(0, 1)  # [head, target, d_head]
    W_V, W_K = (W_heads[i].swapaxes(1, 2) for i in (0, 2))
    scores = None if pulled.scores is None else pulled.scores.swapaxes(0, 1)
    queries = segment.q[target_pos].swapaxes(0, 1)

    def some(index: Int[Array, "_source"]) -> Float[Array, "part target _source"]:
        pos = index // len(E)
        e = norm_push(problem, norm_at(segment.norm1, pos), block.ln1, E[index % len(E)])
        by = turns(problem.cfg, pos, e.dtype)

        def head(total, h):
            value = (to_v[h] @ (e @ W_V[h]).T) * pattern[h][:, pos]
            pushed = e @ W_K[h] if by is None else turned(e @ W_K[h], by)
            key = None if scores is None else (queries[h] @ pushed.T) * scores[h][:, pos]
            if parts == "none":
                return total.at[0].add(value if key is None else value + key), None
            first, last = (1, 3) if parts == "kinds" else (1 + h, 1 + 2 * heads + h)
            total = total.at[first].add(value)
            return (total if key is None else total.at[last].add(key)), None

        shape = (n_parts, len(target_pos), len(index))
        return jax.lax.scan(head, jnp.zeros(shape, E.dtype), jnp.arange(heads))[0]

    n = len(sources.flat)
    if n <= at_once:
        return some(sources.flat)
    index = jnp.pad(sources.flat, (0, -n % at_once)).reshape(-1, at_once)
    found = jax.lax.map(some, index)  # [block, part, target, source]
    return found.transpose(1, 2, 0, 3).reshape(n_parts, len(target_pos), -1)[..., :n]


def everywhere(
    cross: Float[Array, "part target source"] | float,
    own: Float[Array, "part target slot"],
    target_pos: Int[Array, "target"],
    sources: Sources,
    d_sae: int,
) -> Float[Array, "part target source"]:
    """Puts the own position's values in their places among those of the others; 0 where the source comes later."""
    pos = sources.flat // d_sae
    slot = jnp.clip(jnp.arange(len(pos)) - sources.starts[pos], 0, own.shape[-1] - 1)
    found = jnp.where(pos == target_pos[:, None], own[..., slot], cross)
    return jnp.where(pos <= target_pos[:, None], found, 0)


def meet(
    problem: Problem,
    block: BlockWeights,
    W_heads: Float[Array, "vqk head d_head d_model"],
    E: Float[Array, "d_sae d_model"],
    segment: Segment,
    pulled: Pulled,
    target_pos: Int[Array, "target"],
    sources: Sources,
    extra: Float[Array, "target stage d_model"],
    *,
    parts: str,
    all_positions: bool,
    per_position: int | None,
    targets_at_once: int,
    sources_at_once: int,
) -> tuple[Float[Array, "part target slot"], Float[Array, "stage target own"], Float[Array, "target d_model"]]:
    """Derivatives of pulled targets along sources, at their own positions or along all of the sequence.

    Returns:
        The derivatives; products of `extra` vectors with the sources at the targets' own positions; and the targets
        pulled all the way there.
    """
    vectors = own_position(problem, block, W_heads, segment, pulled, target_pos, parts)
    both = jnp.concatenate([vectors, extra], 1)  # rows of the table are gathered once
    both = dots(both, E, target_pos, sources, per_position, targets_at_once)
    own, stages = both[: vectors.shape[1]], both[vectors.shape[1] :]
    if all_positions:
        cross = cross_positions(
            problem, block, W_heads, segment, pulled, E, target_pos, sources, parts, sources_at_once
        )
        own = everywhere(cross, own, target_pos, sources, len(E))
    return own, stages, vectors.sum(1)
