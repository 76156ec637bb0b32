"""`method="structured"` where layers lie between: the target's MLP in closed form, then one linear map a block.

Between the residual stream where sources enter and the one after the target's attention lies a map that is linear in a
small change. Its transpose is applied to every target, or it itself to every source:

    reverse: targets x one transposed pass, and a product with a row of `E` for each pair
    forward: sources x one pass, and a product with a target's vector for each pair

The passes cost far more than the pairs, so the cheaper way is the one of which there are fewer. What makes them cheap:

1. Causality. A target at position p sees positions up to p, a source those behind its own. Both come by position, so a
   pass of neighbours has a window of the positions that they share. From a position to itself all paths stay there, so
   for the same position a pass has one position instead of all.
2. An MLP with its norm acts on one position alone: a matrix `[d_model, d_model]` a position, the same for every target.
   It costs as much as `d_mlp` passes and saves `2 d_mlp / d_model - 1` of the MLP's cost in each (`collapses`).
3. A target's own attention adds `2 heads` vectors to the positions it looks at, one through values and one through keys
   for each head: no product with a weight at every position (one, where positions are rotary: keys turn queries).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxcircuits.attribution.frozen import Scales
from jaxcircuits.attribution.links import (
    Way,
    blocks_between,
    from_own_attention,
    own_vectors,
    start_of,
    through_attention,
    through_blocks,
    window,
)
from jaxcircuits.attribution.problem import Problem, target_side
from jaxcircuits.attribution.products import by_neighbours, dots
from jaxcircuits.attribution.reference import project_all
from jaxcircuits.attribution.selection import Sources
from jaxcircuits.attribution.structured import Pulled
from jaxcircuits.attribution.task import Shape

WINDOWS = 8
"""Windows of positions that passes are sorted into, at most; each is compiled."""

WORTH_A_WINDOW = 2**36
"""Multiplications of a chunk for each of them: seconds, as long as compiling one takes."""


def direction_of(problem: Problem, targets: int, sources: int) -> str:
    """The cheaper way, by the number of passes. Targets that see attention apart are not met in the stream."""
    return "forward" if sources < targets and not problem.sees_attention_apart else "reverse"


def multiplications(problem: Problem, passes: float, length: int) -> float:
    """Of passes through all positions of all blocks between, about."""
    cfg = problem.cfg
    a_block = 4 * cfg.d_model * cfg.n_heads * cfg.d_head + (2 + cfg.gated) * cfg.d_model * cfg.d_mlp
    return passes * length * a_block * len(blocks_between(problem))


def collapses(problem: Problem, passes: float) -> bool:
    """Whether a matrix a position for each MLP costs less than it saves; half of the passes see a position."""
    cfg = problem.cfg
    saved = passes / 2 * ((2 + cfg.gated) * cfg.d_mlp - cfg.d_model)
    products = 1 + cfg.gated + cfg.norms_behind  # of matrices as large as the MLP's; the first is a matrix itself
    return len(blocks_between(problem)) > 0 and saved > 1.25 * products * cfg.d_mlp * cfg.d_model


def collapsed_numbers(problem: Problem, length: int) -> int:
    """Numbers that these matrices are."""
    return len(blocks_between(problem)) * length * problem.cfg.d_model**2


def resid_mid(
    problem: Problem,
    params: Any,
    h: Float[Array, "pos d_in"],
    tokens: Int[Array, "pos"],
    extra: Float[Array, "pos d_model"],
    scales: Scales | None = None,
) -> Float[Array, "pos d_model"]:
    """The residual stream that the target's MLP reads, as a function of what is added where sources enter."""
    name = f"blocks.{problem.target_block}.{problem.cfg.mlp_stream}"
    return target_side(problem, params, h, tokens, (name,), scales, extra)[1][name]


def derivatives_between(
    way: Way,
    E: Float[Array, "d_sae d_model"],
    pulled: Pulled,
    target_pos: Int[Array, "target"],
    number: Int[Array, ""],
    sources: Sources,
    shape: Shape,
    *,
    all_positions: bool,
    per_position: int | None,
) -> Float[Array, "target slot"]:
    """Derivatives along sources of targets that are pulled back to their attention; `number` of them mean something."""
    if not all_positions:
        own = own_vectors(way, pulled, target_pos)[:, None]
        return dots(own, E, target_pos, sources, per_position, shape.targets_at_once)[0]
    if shape.direction == "reverse":
        return _all_reverse(way, E, pulled, target_pos, number, sources, shape, per_position)
    return _all_forward(way, E, pulled, target_pos, sources, shape)


def _ends(way: Way, passes: int, length: int) -> list[int]:
    """Where windows end, ascending."""
    n = max(1, int(min(WINDOWS, multiplications(way.problem, passes, length) / WORTH_A_WINDOW)))
    return sorted({-(-length * (i + 1) // n) for i in range(n)})


def _all_reverse(
    way: Way,
    E: Float[Array, "d_sae d_model"],
    pulled: Pulled,
    target_pos: Int[Array, "target"],
    number: Int[Array, ""],
    sources: Sources,
    shape: Shape,
    per_position: int | None,
) -> Float[Array, "target slot"]:
    """Some targets at a time, pulled through the positions that they see."""
    length, n = shape.length, len(target_pos)
    at_once = min(n, shape.passes_at_once)
    start = start_of(way, pulled, target_pos)
    order = jnp.arange(n)
    # Past their number targets have no meaning: they must not widen a window.
    seen = jax.lax.cummax(jnp.where(order < number, target_pos, 0))

    def some(first: Array, end: int) -> Float[Array, "target slot"]:
        resid, z, scores, p = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, first, at_once), (*start, target_pos)
        )
        if not way.meets:
            g = jnp.zeros((end, at_once, resid.shape[1]), resid.dtype).at[p, jnp.arange(at_once)].set(resid)
        else:
            g = from_own_attention(way.problem, way.last, resid, z, scores, p, end)
            g = through_blocks(way, tuple(window(link, 0, end) for link in way.between), g)
        g = jnp.pad(g, ((0, length - end), (0, 0), (0, 0)))
        return project_all(g.swapaxes(0, 1), E, sources, per_position)

    def step(end: int, state: tuple[Array, Array]) -> tuple[Array, Array]:
        first, found = state
        new = some(jnp.minimum(first, n - at_once), end)
        return first + at_once, jax.lax.dynamic_update_slice_in_dim(found, new, first, 0)

    def fits(end: int, state: tuple[Array, Array]) -> Array:
        first, _ = state
        return (first < number) & (seen[jnp.minimum(first + at_once, n) - 1] < end)

    state = (jnp.zeros((), jnp.int32), jnp.zeros((n, len(sources.flat)), E.dtype))
    for end in _ends(way, n, length):
        state = jax.lax.while_loop(partial(fits, end), partial(step, end), state)
    return state[1]


def _all_forward(
    way: Way,
    E: Float[Array, "d_sae d_model"],
    pulled: Pulled,
    target_pos: Int[Array, "target"],
    sources: Sources,
    shape: Shape,
) -> Float[Array, "target slot"]:
    """Some sources at a time, pushed through the positions that see them."""
    length, n, problem = shape.length, len(sources.flat), way.problem
    at_once = min(n, shape.passes_at_once)
    flat = jnp.pad(sources.flat, (0, at_once))  # moved to fit, the last would bring sources from before its window
    resid, *_ = start_of(way, pulled, target_pos)

    def some(first: Array, begin: int) -> Float[Array, "target source"]:
        index = jax.lax.dynamic_slice_in_dim(flat, first, at_once)
        pos, feature = index // len(E), index % len(E)
        x = jnp.zeros((length - begin, at_once, E.shape[1]), E.dtype)
        x = x.at[pos - begin, jnp.arange(at_once)].set(E[feature])
        if way.meets:
            last, *between = (window(link, begin, length) for link in (way.last, *way.between))

            def back(g):
                pulled = through_attention(problem, last, g, g) if problem.sees_attention else g
                return through_blocks(way, tuple(between), pulled)

            x = jax.linear_transpose(back, x)(x)[0]

        def at(pos: Int[Array, ""]) -> Float[Array, "source d_model"]:
            return x[pos - begin]

        return by_neighbours(resid[:, None], target_pos, at, at_once)[0]

    def step(begin: int, state: tuple[Array, Array]) -> tuple[Array, Array]:
        first, found = state
        return first + at_once, jax.lax.dynamic_update_slice_in_dim(found, some(first, begin), first, 1)

    def fits(end: int, state: tuple[Array, Array]) -> Array:
        first, _ = state
        return (first < jnp.minimum(sources.number, n)) & (sources.flat[jnp.minimum(first, n - 1)] // len(E) < end)

    state = (jnp.zeros((), jnp.int32), jnp.zeros((len(target_pos), len(flat)), E.dtype))
    begin = 0
    for end in _ends(way, n, length):
        state = jax.lax.while_loop(partial(fits, end), partial(step, begin), state)
        begin = end
    return state[1][:, :n]
