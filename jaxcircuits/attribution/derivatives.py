"""Derivatives of some targets of a sequence along its sources, in the way that is asked for, at one point or many."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxcircuits.attribution.between import derivatives_between
from jaxcircuits.attribution.links import own_vectors, way_of
from jaxcircuits.attribution.problem import Problem, Settings, target_side
from jaxcircuits.attribution.products import dots
from jaxcircuits.attribution.reference import hook_gradients, project_all, project_same
from jaxcircuits.attribution.remainder import reference_remainder, structured_remainder
from jaxcircuits.attribution.selection import Sources, Targets
from jaxcircuits.attribution.structured import Segment, meet, norm_stage, pull, segment_of
from jaxcircuits.attribution.tables import Tables
from jaxcircuits.attribution.task import Shape, Task
from jaxcircuits.sae import SAE, encode, pre_activations


def derivatives_at(
    params: Any,
    target: SAE,
    tables: Tables,
    tokens: Int[Array, "pos"],
    sources: Sources,
    chunk: Targets,
    h: Float[Array, "pos d_in"],
    segment: Segment | None,
    act: Float[Array, "target"] | None,
    *,
    number: Int[Array, ""],
    task: Task,
    shape: Shape,
    fields: dict[str, Array],
) -> tuple[Float[Array, "part target slot"], Float[Array, "stage target own"], dict[str, Array]]:
    """Derivatives where the source hook's value is `h`: parts, stages, and the remainder by kind.

    The first `number` of the chunk mean something.
    """
    problem, settings = task.problem, task.settings
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

    stream, block = tables.stream, params.blocks[problem.target_block]
    assert stream is not None
    segment = segment_of(problem, params, h, tokens) if segment is None else segment
    pulled = pull(problem, block, target, tables.W_enc_rows, segment, chunk.pos, chunk.feature, act)
    stages, remainder = none, {}
    if task.way == "adjacent":
        extra = []
        if tables.products is not None and tables.products.writes is None:
            extra.append(tables.products.reads[chunk.feature])
        if tables.products is not None and settings.stages:
            reads = tables.products.stage_reads[chunk.feature]
            extra.append(norm_stage(problem, block, segment, pulled, reads, chunk.pos))
        parts, stages, own = meet(
            problem,
            block,
            stream.W_heads,
            stream.E,
            segment,
            pulled,
            chunk.pos,
            sources,
            jnp.stack(extra, 1) if extra else jnp.zeros((shape.chunk, 0, stream.E.shape[1]), h.dtype),
            parts=settings.parts,
            all_positions=all_positions,
            per_position=per_position,
            targets_at_once=shape.targets_at_once,
            sources_at_once=shape.sources_at_once,
        )
    else:
        collapse = shape.collapse and all_positions
        way = way_of(problem, params, h, tokens, segment, collapse=collapse)
        between = derivatives_between(
            way,
            stream.E,
            pulled,
            chunk.pos,
            number,
            sources,
            shape,
            all_positions=all_positions,
            per_position=per_position,
        )
        parts = between[None]
        own = own_vectors(way, pulled, chunk.pos) if settings.complete else None
    if settings.complete:
        assert own is not None
        remainder = structured_remainder(
            problem,
            params,
            block,
            target,
            tables.W_enc_rows,
            stream.written_by,
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


def path_mean(at: Callable, h: Float[Array, "pos d_in"], way: Float[Array, "pos d_in"], settings: Settings) -> Any:
    """The mean over the line from `h - way` to `h`, by Gauss-Legendre quadrature."""
    points, weights = np.polynomial.legendre.leggauss(settings.points)

    def add(total, point):
        place, weight = point
        found = at(h - (1 - place) * way, None, None)
        return jax.tree.map(lambda t, f: t + weight * f, total, found), None

    like = jax.eval_shape(lambda h: at(h, None, None), h)
    start = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), like)
    line = (jnp.asarray((points + 1) / 2, h.dtype), jnp.asarray(weights / 2, h.dtype))
    return lax.scan(add, start, line)[0]


def target_values(
    task: Task, params: Any, target: SAE, h: Array, tokens: Array, chunk: Targets
) -> Float[Array, "target"]:
    """The targets' quantity where the source hook's value is `h`."""
    arriving, _ = target_side(task.problem, params, h, tokens)
    read = encode if task.problem.target_quantity == "activation" else pre_activations
    return read(target, arriving)[chunk.pos, chunk.feature]


def with_virtual_weights(
    tables: Tables, stages: Array, chunk: Targets, sources: Sources, *, task: Task, shape: Shape
) -> Float[Array, "stage target own"]:
    """Virtual weights at the own position, before what other stages there are; where they are not among these yet."""
    products = tables.products
    if products is None or (task.way == "adjacent" and products.writes is None):
        return stages
    per_position = None if task.settings.source_threshold == "all" else shape.per_position
    reads = products.reads[chunk.feature][:, None]
    virtual = dots(reads, tables.writes, chunk.pos, sources, per_position, shape.targets_at_once)
    return jnp.concatenate([virtual, stages]) if stages.shape[0] else virtual


def _cuts(problem: Problem) -> tuple[Problem, ...]:
    """Problems with some of the target's attention held: all but the residual stream; all but values; but queries."""
    block = f"blocks.{problem.target_block}.attn"
    holds = (("hook_q", "hook_k", "hook_v"), ("hook_q", "hook_k"), ("hook_k", "hook_v"))
    return tuple(replace(problem, held=(*problem.held, *(f"{block}.{n}" for n in names))) for names in holds)
