"""Two SAEs with layers between them: attribution alone, by every contender, with their edges compared first.

What is counted, with d = `d_model`, m = `d_mlp`, a = heads x `d_head`, B blocks from one SAE to the other, L positions,
T targets that see V = T (L + 1) / 2 positions in all, and a product of `[m, k]` and `[k, n]` as `2 m k n`:

    batched VJPs     T L B (8 d a + 4 d m + 8 L a)      every target passes every position of every block
    structured       V (B - 1) (8 d a + 2 d d + 8 L a)  its passes: no position behind the target, an MLP is a matrix
                     + L (B - 1) 2 d d m                the matrices
                     + T (8 d a + 4 d m) + V 4 heads d  the target's own block
    same position    T B (8 d a + 4 d m + 4 L a)        from a position to itself all paths stay there

At GPT-2 small's size (B = 5, L = 64, 40 targets a position) the plain way counts 12 TFLOP, structured 2.8, a quarter:
that and the rate at which each multiplies is all that there is. Targets and sources are as many, and each meets its
own block for nothing, so neither direction is cheaper; and 40 vectors a position are too few for a position's whole
Jacobian, whose 768 rows cost 19 times as much.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from benchmark_cases import Case
from benchmark_clock import Edges, Row, difference, interleaved
from benchmark_growth import MB
from benchmark_rows import PLAIN, STRUCTURED, VMAP, Attribution, definition

from jaxcircuits.attribution import Settings
from jaxcircuits.attribution.links import blocks_between
from jaxcircuits.model import forward

SAMPLE = 16
"""The slow contenders are timed on every such target, and compared with the definition in float64 on these."""

GROUP = "layers between"
SAME, ALL = f"{STRUCTURED}, same position", f"{STRUCTURED}, all positions"


def depth_rows(case: Case, repeats: int, torch_too: bool, precision: str) -> tuple[list[Row], dict[str, float]]:
    """Rows of attribution alone, and how far each contender's edges are from the definition's.

    The slow contenders compute all positions: for the own position alone they take the same passes.
    """
    ours = {
        name: Attribution(case, case.story, Settings(positions=positions, precision=precision))
        for name, positions in ((SAME, "same"), (ALL, "all"))
    }
    settings = Settings(positions="all", precision=precision, method="reference")
    some = ours[ALL].targets[::SAMPLE]
    sampled, plain = Attribution(case, case.story, settings, some), Attribution(case, case.story, settings)
    contenders: dict[str, Callable[[], Any]] = {}
    slow = {VMAP: sampled.edges()}
    if torch_too:
        contenders[PLAIN], by_target = _torch(case, ours[ALL], some)
        slow[PLAIN] = by_target(contenders[PLAIN]())
    exact, fast = definition(case, case.story, some, "all"), {name: way.edges() for name, way in ours.items()}
    agreement = {f"{name}, every {SAMPLE}th target": difference(found, exact) for name, found in slow.items()}
    for name, found in fast.items():
        expected = _own(exact) if name == SAME else exact
        agreement[f"{name}, every {SAMPLE}th target"] = difference({t: found[t] for t in some}, expected)
    # float32 on both sides: all edges, with the noise of both.
    every = plain.edges()
    for name, found in fast.items():
        agreement[f"{name}, against {VMAP} for all targets"] = difference(found, _own(every) if name == SAME else every)

    contenders |= {VMAP: sampled.runner(sampled.shape)} | {name: way.runner(way.shape) for name, way in ours.items()}
    scale = ours[ALL].n_targets / len(some)
    flops = depth_flops(case, ours[ALL])
    rows = []
    for name, times in interleaved(contenders, repeats).items():
        note = _how(ours[name]) if name in ours else f"{len(some)} of {ours[ALL].n_targets} targets timed"
        rows.append(Row(GROUP, name, [t * (1 if name in ours else scale) for t in times], note=note))
        rows[-1].ratio = rows[0].median / rows[-1].median
        rows[-1].more = {"TFLOP": flops[name] / 1e12, "GFLOP/s": flops[name] / rows[-1].median / 1e9}
        size = {VMAP: sampled, **ours}[name].program_bytes() if name != PLAIN else None
        rows[-1].more |= {} if size is None else {"program MB": size / MB}
    return rows, agreement


def _own(edges: Edges) -> Edges:
    """Those at the targets' own positions."""
    return {target: found[found[:, 0] == target[0]] for target, found in edges.items()}


def _how(ours: Attribution) -> str:
    shape, everywhere = ours.shape, ours.engine.settings.positions == "all"
    how = f"{ours.n_targets} targets, {ours.n_sources} sources, {shape.chunk} targets a chunk"
    if not everywhere:
        return f"{how}, reverse, one position a target"
    mlps = "MLPs as matrices" if shape.collapse else "MLPs as they are"
    return f"{how}, {shape.direction}, {mlps}, {shape.passes_at_once} passes at a time"


def _torch(case: Case, ours: Attribution, targets: list[tuple[int, int]]):
    """PyTorch's way on some targets, and its result by target."""
    import torch_between

    problem = ours.engine.problem
    cfg, params, d_sae = case.bundle.cfg, case.bundle.params, len(ours.tables.directions)
    _, acts = forward(params, cfg, jnp.asarray(case.story), taps=(problem.source_hook,), logits_at=None)
    flat = np.asarray(ours.passed.sources.flat)[0][: ours.n_sources]
    sources = [flat[flat // d_sae == pos] % d_sae for pos in range(ours.length)]
    blocks = [params.blocks[i] for i in (*blocks_between(problem), problem.target_block)]
    given = torch_between.given(
        np.asarray(acts[problem.source_hook]),
        blocks,
        cfg.n_heads,
        cfg.attention_scale,
        cfg.eps,
        (ours.engine.pair.source, ours.engine.pair.target),
        sources,
    )
    run = torch_between.batched_vjps(given, targets)

    def edges(found: np.ndarray) -> Edges:
        listed = {}
        for (pos, feature), values in zip(targets, found, strict=True):
            seen = ((t, sources[t], values[t][: len(sources[t])]) for t in range(pos + 1))
            listed[pos, feature] = np.concatenate([np.stack([np.full(len(f), t), f, v], 1) for t, f, v in seen])
        return listed

    return run, edges


def depth_flops(case: Case, ours: Attribution) -> dict[str, float]:
    """By the formulas above; `ours` is structured, of all positions."""
    cfg, problem, L, T = case.bundle.cfg, ours.engine.problem, ours.length, ours.n_targets
    d, m, a, between = cfg.d_model, cfg.d_mlp, cfg.n_heads * cfg.d_head, len(blocks_between(problem))
    plain = T * L * (between + 1) * (8.0 * d * a + 4 * d * m + 8 * L * a)
    own = T * (8.0 * d * a + 4 * d * m)
    visits = float(sum(pos + 1 for pos, _ in ours.targets))
    mlp = 2 * d * d if ours.shape.collapse else 4 * d * m
    passes = visits * between * (8.0 * d * a + mlp + 8 * L * a)
    matrices = L * between * 2.0 * d * d * m if ours.shape.collapse else 0
    through = passes + matrices + own + visits * 4 * cfg.n_heads * d
    return {PLAIN: plain, VMAP: plain, SAME: (between + 1) * (own + T * 4 * L * a), ALL: through}
