"""The compiled programs: from a batch of padded token ids to the edges of its targets, by every method.

1. `forward_pass`: run the model up to the target hook, encode both hooks, choose sources and targets.
2. `attribute_chunk`: derivatives of some targets of each sequence along the sources, and which of them are kept.

Padding stands behind a sequence, attention is causal, so nothing of it reaches what counts. Capacities are part of a
program's shape; the true counts come back with the results, and who calls makes room where one was too small.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxcircuits.attribution.derivatives import derivatives_at, path_mean, target_values, with_virtual_weights
from jaxcircuits.attribution.problem import Settings, source_side, target_side
from jaxcircuits.attribution.remainder import source_fields
from jaxcircuits.attribution.selection import (
    Sources,
    Targets,
    large_slots,
    select_sources,
    select_targets,
    targets_at,
    top_slots,
)
from jaxcircuits.attribution.structured import Segment, everywhere, segment_of
from jaxcircuits.attribution.tables import Tables
from jaxcircuits.attribution.task import Shape, Task
from jaxcircuits.sae import SAE, activate, encode, pre_activations
from jaxcircuits.sae.normalization import Norm, norm_of


class Passed(NamedTuple):
    """What a forward pass leaves for a batch; every leaf has the batch as its first axis.

    `segment` is there where one point is differentiated at, by a structured method: else it is made where it is needed.
    """

    tokens: Int[Array, "batch pos"]
    counted: Bool[Array, "batch pos"]
    h: Float[Array, "batch pos d_in"]
    norm: Norm | None  # how the source SAE normalised its input
    acts: Float[Array, "batch pos d_sae"]
    sources: Sources
    targets: Targets
    segment: Segment | None


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
        neurons = settings.source_basis == "neurons"
        acts = h if neurons else encode(source, arriving)
        norm = None if neurons else norm_of(source.cfg, arriving)
        segment = None
        if task.way != "reference" and settings.derivative != "integrated":
            segment = segment_of(problem, params, h, tokens)
        arriving = target_side(problem, params, h, tokens)[0] if segment is None else segment.arriving
        pre_acts = pre_activations(target, arriving)
        target_acts = activate(target, pre_acts)
        sources = select_sources(acts, settings.source_threshold, counted, shape.sources)
        if named is not None:
            return Passed(tokens, counted, h, norm, acts, sources, targets_at(pre_acts, target_acts, *named), segment)
        quantity, threshold = settings.target_quantity, settings.target_threshold
        chosen = select_targets(pre_acts, target_acts, quantity, threshold, counted, shape.targets)
        return Passed(tokens, counted, h, norm, acts, sources, chosen, segment)

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

    loops = task.way == "between" and task.settings.positions == "all"  # mapped, they would copy what they carry
    if shape.sequences_at_once >= shape.batch and not (loops and shape.batch == 1):
        return jax.vmap(one)(passed)  # side by side, what is done is computed all the same
    if shape.sequences_at_once > 1:
        return lax.map(one, passed, batch_size=shape.sequences_at_once)
    return lax.map(unless_done, passed)


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
) -> tuple[Sources, Targets, Found]:
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
    return passed.sources, passed.targets, found


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
    norm = passed.norm
    given = source, tables.directions, norm, passed.h, moved, passed.counted
    fields = source_fields(*given, neurons=neurons, integrated=integrated) if settings.complete or integrated else {}
    at = partial(derivatives_at, params, target, tables, passed.tokens, passed.sources, chunk)
    number = jnp.clip(passed.targets.number - first, 0, shape.chunk)
    at = partial(at, number=number, task=task, shape=shape, fields=fields)
    if integrated:
        way = fields["features"]
        parts, own, remainder = path_mean(at, passed.h, way, settings)
        if settings.complete:
            start = passed.h - way
            remainder["baseline"] = target_values(task, params, target, start, passed.tokens, chunk)
    else:
        parts, own, remainder = at(passed.h, passed.segment, chunk.act)
    own = with_virtual_weights(tables, own, chunk, passed.sources, task=task, shape=shape)

    index, act, starts, count = passed.sources
    if norm is not None:  # a unit of a source is this much of its decoder row
        at_source = norm.out_scale[index // d_sae if settings.positions == "all" else chunk.pos, 0]
        parts = parts * (at_source if settings.positions == "all" else at_source[:, None])
        own = own.at[1:].multiply(norm.out_scale[chunk.pos])
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
