"""The compiled programs: from a batch of padded token ids to the edges of its targets, by every method.

1. `forward_pass`: run the model up to the target hook, encode both hooks, choose sources and targets.
2. `attribute_chunk`: derivatives of some targets of each sequence along the sources, and which of them are kept.

Padding stands behind a sequence, attention is causal, so nothing of it reaches what counts. Capacities are part of a
program's shape; the true counts come back with the results, and who calls makes room where one was too small.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxcircuits.attribution.between import derivatives_between
from jaxcircuits.attribution.problem import Problem, Settings, layer_of, source_side, target_side
from jaxcircuits.attribution.reference import hook_gradients, project_all, project_same
from jaxcircuits.attribution.remainder import reference_remainder, source_fields, structured_remainder
from jaxcircuits.attribution.selection import (
    Sources,
    Targets,
    large_slots,
    select_sources,
    select_targets,
    targets_at,
    top_slots,
)
from jaxcircuits.attribution.structured import dots, everywhere, meet, norm_stage, pull, segment_of
from jaxcircuits.sae import SAE, encode, pre_activations
from jaxcircuits.sae.activations import activation


@dataclass(frozen=True)
class Task:
    """What is asked and how it is computed; static, so it is part of a compiled program's key.

    Attributes:
        problem: What is differentiated.
        settings: Everything else that was asked for.
        way: `"reference"`, `"adjacent"` (structured) or `"between"` (structured, with layers between).
    """

    problem: Problem
    settings: Settings
    way: str


@dataclass(frozen=True)
class Shape:
    """The sizes of a program; static.

    Attributes:
        batch: Sequences.
        length: Positions of each.
        sources: Room for sources, a sequence.
        per_position: Room for sources at one position.
        targets: Room for targets, a sequence; a multiple of `chunk`.
        chunk: Targets of a sequence that are differentiated together.
        kept: Room for kept edges, a target; only with `min_attribution`.
        sequences_at_once: Sequences whose chunks are computed together.
        targets_at_once: Targets whose rows of a table are gathered together.
        sources_at_once: Sources that are pushed together.
        direction: `"reverse"` or `"forward"` through layers between.
    """

    batch: int
    length: int
    sources: int
    per_position: int
    targets: int
    chunk: int
    kept: int
    sequences_at_once: int
    targets_at_once: int
    sources_at_once: int
    direction: str = "reverse"


class MLPTables(NamedTuple):
    """Where both hooks are MLPs': what leads to attention and from it."""

    W_out: Float[Array, "d_in d_model"]
    E: Float[Array, "d_sae d_model"]  # what one unit of a source adds to the residual stream
    W_heads: Float[Array, "vqk head d_head d_model"]  # of the target's attention


class WeightProducts(NamedTuple):
    """Where they are of adjacent layers: what weights alone say of a pair. Cosines are of processed weights only."""

    writes: Float[Array, "d_sae d_model"]
    reads: Float[Array, "d_sae_target d_model"]  # what a target reads if norm and GELU were the identity
    writes_norm: Float[np.ndarray, "d_sae"]
    reads_norm: Float[np.ndarray, "d_sae_target"]
    stage_reads: Float[Array, "d_sae_target d_model"]  # `reads` on the weights that are computed with


class Tables(NamedTuple):
    """What weights alone decide, computed once for a pair of SAEs."""

    directions: Float[Array, "d_sae d_in"]  # what one unit of a source adds to its hook
    W_enc_rows: Float[Array, "d_sae_target d_in_target"]
    mlps: MLPTables | None
    products: WeightProducts | None


class Passed(NamedTuple):
    """What a forward pass leaves for a batch; every leaf has the batch as its first axis."""

    tokens: Int[Array, "batch pos"]
    counted: Bool[Array, "batch pos"]
    h: Float[Array, "batch pos d_in"]
    acts: Float[Array, "batch pos d_sae"]
    sources: Sources
    targets: Targets


class Found(NamedTuple):
    """Edges of some targets. Axes: batch, target, then part or slot."""

    parts: Float[Array, "batch target part kept"]  # they add up to the gradient
    weights: Float[Array, "batch target stage kept"]  # virtual weight, norm stage; NaN away from the own position
    source: Int[Array, "batch target kept"]  # which of the sequence's sources
    valid: Bool[Array, "batch target kept"]
    cut: Int[Array, "batch target"]  # edges not kept, and their attribution
    cut_sum: Float[Array, "batch target"]
    most_kept: Int[Array, "batch target"]  # of any target of the sequence, where `min_attribution` needs room
    remainder: dict[str, Float[Array, "batch target"]]


@partial(jax.jit, static_argnames=("task", "shape"))
def forward_pass(
    params: Any,
    source: SAE,
    target: SAE,
    tokens: Int[Array, "batch pos"],
    counted: Bool[Array, "batch pos"],
    named: tuple[Array, Array, Array] | None,
    *,
    task: Task,
    shape: Shape,
) -> Passed:
    """Runs the model, without unembedding and nothing after the target hook, and chooses sources and targets.

    `named` gives position, feature `[batch, target]` and number `[batch]` of targets that are known by name.
    """
    problem, settings = task.problem, task.settings

    def one(tokens, counted, named):
        arriving, h = source_side(problem, params, source, tokens)
        acts = h if settings.source_basis == "neurons" else encode(source, arriving)
        pre_acts = pre_activations(target, target_side(problem, params, h, tokens)[0])
        target_acts = activation(target.cfg.activation).apply(pre_acts)
        sources = select_sources(acts, settings.source_threshold, counted, shape.sources)
        if named is not None:
            return Passed(tokens, counted, h, acts, sources, targets_at(pre_acts, target_acts, *named))
        quantity, threshold = settings.target_quantity, settings.target_threshold
        chosen = select_targets(pre_acts, target_acts, quantity, threshold, counted, shape.targets)
        return Passed(tokens, counted, h, acts, sources, chosen)

    return jax.vmap(one)(tokens, counted, named)


@partial(jax.jit, static_argnames=("task", "shape"))
def attribute_chunk(
    params: Any,
    source: SAE,
    target: SAE,
    tables: Tables,
    baseline: Float[Array, "d_sae"] | None,
    passed: Passed,
    first: Int[Array, ""],
    *,
    task: Task,
    shape: Shape,
) -> Found:
    """Edges of targets `first` up to `first + shape.chunk` of each sequence."""
    one = partial(_attribute_one, params, source, target, tables, baseline, first=first, task=task, shape=shape)
    empty = jax.eval_shape(one, jax.tree.map(lambda x: x[0], passed))

    def unless_done(passed: Passed):
        nothing = lambda _: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), empty)  # noqa: E731
        return lax.cond(first < passed.targets.number, one, nothing, passed)

    if shape.sequences_at_once >= shape.batch:
        return jax.vmap(unless_done)(passed)
    at_once = shape.sequences_at_once if shape.sequences_at_once > 1 else None
    return lax.map(unless_done, passed, batch_size=at_once)


@partial(jax.jit, static_argnames=("task", "shape"))
def same_position(
    params: Any,
    source: SAE,
    target: SAE,
    tables: Tables,
    baseline: Float[Array, "d_sae"] | None,
    tokens: Int[Array, "batch pos"],
    counted: Bool[Array, "batch pos"],
    named: tuple[Array, Array, Array] | None,
    *,
    task: Task,
    shape: Shape,
) -> tuple[Passed, Found]:
    """Both steps in one program, for results that are small; as many chunks as there are targets."""
    passed = forward_pass(params, source, target, tokens, counted, named, task=task, shape=shape)
    chunk = partial(attribute_chunk, params, source, target, tables, baseline, passed, task=task, shape=shape)
    empty = jax.eval_shape(chunk, jax.ShapeDtypeStruct((), jnp.int32))
    room = jax.tree.map(lambda s: jnp.zeros((s.shape[0], shape.targets, *s.shape[2:]), s.dtype), empty)
    n_chunks = -(-jnp.minimum(passed.targets.number.max(), shape.targets) // shape.chunk)

    def step(i, found):
        first = i * shape.chunk
        return jax.tree.map(lambda a, b: lax.dynamic_update_slice_in_dim(a, b, first, 1), found, chunk(first))

    found = lax.fori_loop(0, n_chunks, step, room)
    return passed, found


def _attribute_one(
    params: Any,
    source: SAE,
    target: SAE,
    tables: Tables,
    baseline: Float[Array, "d_sae"] | None,
    passed: Passed,
    *,
    first: Int[Array, ""],
    task: Task,
    shape: Shape,
) -> Found:
    """`attribute_chunk` for one sequence."""
    settings, neurons = task.settings, task.settings.source_basis == "neurons"
    d_sae = tables.directions.shape[0]
    integrated = settings.derivative == "integrated"
    window = (lax.dynamic_slice_in_dim(x, first, shape.chunk) for x in passed.targets[:4])
    chunk = Targets(*window, number=passed.targets.number)  # pyright: ignore[reportCallIssue]
    moved = passed.acts if baseline is None else passed.acts - baseline
    fields = {}
    if settings.complete:
        fields = source_fields(
            source, tables.directions, passed.h, moved, passed.counted, neurons=neurons, integrated=integrated
        )
    at = partial(_at_point, params, target, tables, passed, chunk, task=task, shape=shape, fields=fields)
    if integrated:
        parts, own, remainder = _path_mean(at, passed.h, moved if neurons else moved @ tables.directions, settings)
        if settings.complete:
            start = passed.h - (moved if neurons else moved @ tables.directions)
            remainder["baseline"] = _values(task, params, target, start, passed.tokens, chunk)
    else:
        parts, own, remainder = at(passed.h, chunk.pre_act)
    if tables.products is not None:
        own = _weight_products(tables.products, own, chunk, passed.sources, shape, settings)

    index, act, starts, count = passed.sources
    step = act if baseline is None else act - baseline[index % d_sae]
    if settings.positions == "all":
        own = everywhere(jnp.nan, own, chunk.pos, passed.sources, d_sae)
        pos = index // d_sae
        slots = jnp.broadcast_to(jnp.arange(len(index), dtype=jnp.int32), (shape.chunk, len(index)))
        valid = (slots < count) & passed.counted[pos] & (pos <= chunk.pos[:, None])
    else:
        width = d_sae if settings.source_threshold == "all" else shape.per_position
        slots = starts[chunk.pos][:, None] + jnp.arange(width, dtype=jnp.int32)
        valid = (slots < starts[chunk.pos + 1][:, None]) & passed.counted[chunk.pos][:, None]
        slots = jnp.minimum(slots, len(index) - 1)
    valid &= (first + jnp.arange(shape.chunk) < passed.targets.number)[:, None]
    parts, own = parts.swapaxes(0, 1), own.swapaxes(0, 1)  # [target, part or stage, slot]
    return _keep(parts, own, slots, valid, step[slots], remainder, settings, shape)


def _at_point(
    params: Any,
    target: SAE,
    tables: Tables,
    passed: Passed,
    chunk: Targets,
    h: Float[Array, "pos d_in"],
    pre_act: Float[Array, "target"] | None,
    *,
    task: Task,
    shape: Shape,
    fields: dict[str, Array],
) -> tuple[Float[Array, "part target slot"], Float[Array, "stage target own"], dict[str, Array]]:
    """Derivatives where the source hook's value is `h`: parts, stages, and the remainder by kind."""
    problem, settings = task.problem, task.settings
    tokens, sources = passed.tokens, passed.sources
    all_positions, d_sae = settings.positions == "all", len(tables.directions)
    per_position = None if settings.source_threshold == "all" else shape.per_position
    width = d_sae if per_position is None else per_position
    none = jnp.zeros((0, shape.chunk, width), h.dtype)
    if task.way == "reference":

        def derivatives(problem: Problem) -> tuple[Array, Array]:
            gradients = hook_gradients(params, target, tokens, h, chunk.pos, chunk.feature, problem=problem)
            if all_positions:
                return gradients, project_all(gradients, tables.directions, sources, per_position)
            return gradients, project_same(gradients, tables.directions, chunk.pos, sources, per_position)

        gradients, whole = derivatives(problem)
        parts = whole[None]
        if settings.parts == "kinds":
            residual, with_value, with_query = (derivatives(cut)[1] for cut in _cuts(problem))
            value, query = with_value - residual, with_query - residual
            parts = jnp.stack([residual, value, query, whole - residual - value - query])
        remainder = {}
        if settings.complete:
            remainder = reference_remainder(
                problem, params, target, h, tokens, fields, gradients, chunk.pos, chunk.feature
            )
        return parts, none, remainder

    mlps, block = tables.mlps, params.blocks[layer_of(problem.target_hook)]
    assert mlps is not None
    segment = segment_of(problem, params, h, tokens)
    pulled = pull(problem, block, target, tables.W_enc_rows, segment, chunk.pos, chunk.feature, pre_act)
    stages, remainder = none, {}
    if task.way == "adjacent":
        parts, own = meet(
            problem,
            block,
            mlps.W_heads,
            mlps.E,
            segment,
            pulled,
            chunk.pos,
            sources,
            parts=settings.parts,
            all_positions=all_positions,
            per_position=per_position,
            targets_at_once=shape.targets_at_once,
            sources_at_once=shape.sources_at_once,
        )
        if settings.stages and tables.products is not None:
            reads = tables.products.stage_reads[chunk.feature]
            vector = norm_stage(problem, block, segment, pulled, reads, chunk.pos)
            stages = dots(vector[:, None], mlps.E, chunk.pos, sources, per_position, shape.targets_at_once)
    else:
        between = partial(
            derivatives_between,
            problem,
            params,
            h,
            tokens,
            mlps.E,
            pulled.resid,
            chunk.pos,
            sources,
            direction=shape.direction,
            per_position=per_position,
            sources_at_once=shape.sources_at_once,
        )
        parts = between(all_positions=all_positions)[None]
        own = None
    if settings.complete:
        remainder = structured_remainder(
            problem,
            params,
            block,
            target,
            tables.W_enc_rows,
            mlps.W_out,
            h,
            tokens,
            fields,
            segment,
            pulled,
            chunk.pos,
            chunk.feature,
            own,
        )
    return parts, stages, remainder


def _path_mean(at: Any, h: Float[Array, "pos d_in"], way: Float[Array, "pos d_in"], settings: Settings) -> Any:
    """The mean over the line from `h - way` to `h`, by Gauss-Legendre quadrature."""
    points, weights = np.polynomial.legendre.leggauss(settings.points)

    def add(total, point):
        place, weight = point
        found = at(h - (1 - place) * way, None)
        return jax.tree.map(lambda t, f: t + weight * f, total, found), None

    like = jax.eval_shape(lambda h: at(h, None), h)
    start = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), like)
    line = (jnp.asarray((points + 1) / 2, h.dtype), jnp.asarray(weights / 2, h.dtype))
    return lax.scan(add, start, line)[0]


def _values(task: Task, params: Any, target: SAE, h: Array, tokens: Array, chunk: Targets) -> Float[Array, "target"]:
    """The targets' quantity where the source hook's value is `h`."""
    arriving, _ = target_side(task.problem, params, h, tokens)
    read = encode if task.problem.target_quantity == "activation" else pre_activations
    return read(target, arriving)[chunk.pos, chunk.feature]


def _weight_products(
    products: WeightProducts, stages: Array, chunk: Targets, sources: Sources, shape: Shape, settings: Settings
) -> Float[Array, "stage target slot"]:
    """Virtual weights at the own position, before what other stages there are."""
    per_position = None if settings.source_threshold == "all" else shape.per_position
    reads = products.reads[chunk.feature][:, None]
    virtual = dots(reads, products.writes, chunk.pos, sources, per_position, shape.targets_at_once)
    return jnp.concatenate([virtual, stages]) if stages.shape[0] else virtual


def _keep(
    parts: Float[Array, "target part slot"],
    weights: Float[Array, "target stage slot"],
    slots: Int[Array, "target slot"],
    valid: Bool[Array, "target slot"],
    step: Float[Array, "target slot"],
    remainder: dict[str, Float[Array, "target"]],
    settings: Settings,
    shape: Shape,
) -> Found:
    """The edges that stay, and what the others amount to."""
    attribution = parts.sum(1) * step
    size = jnp.abs(attribution)
    wanted = valid if settings.min_attribution is None else valid & (size > settings.min_attribution)
    most = jnp.zeros((), jnp.int32)
    if settings.top_k is not None:
        at, kept = top_slots(size, wanted, settings.top_k)
    elif settings.min_attribution is not None:
        at, kept, most = large_slots(wanted, shape.kept)
    else:
        nothing = jnp.zeros(len(valid), jnp.int32)
        return Found(parts, weights, slots, valid, nothing, nothing.astype(step.dtype), nothing, remainder)
    chosen = jnp.where(kept, jnp.take_along_axis(attribution, at, 1), 0).sum(1)
    every = jnp.where(valid, attribution, 0).sum(1)
    return Found(
        jnp.take_along_axis(parts, at[:, None], 2),
        jnp.take_along_axis(weights, at[:, None], 2),
        jnp.take_along_axis(slots, at, 1),
        kept,
        valid.sum(1, dtype=jnp.int32) - kept.sum(1, dtype=jnp.int32),
        every - chosen,
        jnp.broadcast_to(most, (len(valid),)),
        remainder,
    )


def _cuts(problem: Problem) -> tuple[Problem, ...]:
    """Problems with some of the target's attention held: all but the residual stream; all but values; but queries."""
    block = f"blocks.{layer_of(problem.target_hook)}.attn"
    holds = (("hook_q", "hook_k", "hook_v"), ("hook_q", "hook_k"), ("hook_k", "hook_v"))
    return tuple(replace(problem, held=(*problem.held, *(f"{block}.{n}" for n in names))) for names in holds)
