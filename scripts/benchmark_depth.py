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

import numpy as np
from benchmark_cases import Case
from benchmark_clock import Edges, Row, difference, interleaved
from benchmark_rows import PLAIN, STRUCTURED, VMAP, Attribution, definition

from jaxcircuits.attribution import Settings
from jaxcircuits.attribution.links import blocks_between
from jaxcircuits.model import forward

SAMPLE = 8
"""The slow contenders are timed on every such target, and compared with the definition in float64 on these."""

GROUPS = {"same": "layers between, same position", "all": "layers between, all positions"}


def depth_rows(case: Case, repeats: int, torch_too: bool, precision: str) -> tuple[list[Row], dict[str, float]]:
    """Rows of attribution alone, and how far each contender's edges are from the definition's."""
    rows: list[Row] = []
    agreement: dict[str, float] = {}
    for positions in GROUPS:
        found, compared = _rows(case, positions, repeats, torch_too, precision)
        rows += found
        agreement |= {f"{name}, {positions} position{'s' * (positions == 'all')}": x for name, x in compared.items()}
    return rows, agreement


def _rows(
    case: Case, positions: str, repeats: int, torch_too: bool, precision: str
) -> tuple[list[Row], dict[str, float]]:
    ours = Attribution(case, case.story, Settings(positions=positions, precision=precision))
    plain = Attribution(case, case.story, Settings(positions=positions, precision=precision, method="reference"))
    some = ours.targets[::SAMPLE]
    sampled = Sampled(case, plain, some)
    torch_run = torch_edges = None
    if torch_too:
        torch_run, torch_edges = _torch(case, ours, some, positions)
    exact = definition(case, case.story, some, positions)
    numbers = ours.edges()
    agreement = {f"{STRUCTURED}, every {SAMPLE}th target": difference({t: numbers[t] for t in some}, exact)}
    agreement[f"{VMAP}, every {SAMPLE}th target"] = difference(sampled.edges(), exact)
    if torch_run is not None and torch_edges is not None:
        agreement[f"{PLAIN}, every {SAMPLE}th target"] = difference(torch_edges(torch_run()), exact)
    # float32 on both sides: all edges, with the noise of both.
    agreement[f"{STRUCTURED} against {VMAP}, all targets"] = difference(numbers, plain.edges())

    contenders: dict[str, Callable[[], Any]] = {} if torch_run is None else {PLAIN: torch_run}
    contenders |= {VMAP: sampled.run, STRUCTURED: ours.runner(ours.shape)}
    samples = interleaved(contenders, repeats)
    rows = []
    for name, times in samples.items():
        scale = 1.0 if name == STRUCTURED else ours.n_targets / len(some)
        rows.append(Row(GROUPS[positions], name, [scale * t for t in times]))
        rows[-1].note = f"every {SAMPLE}th of {ours.n_targets} targets timed, times {scale:.3g}"
    against = rows[0].median
    for row in rows:
        row.ratio = against / row.median
    rows[-1].note = _how(ours)
    flops = depth_flops(case, ours, positions)
    for row in rows:
        row.more = {"TFLOP": flops[row.what] / 1e12, "GFLOP/s": flops[row.what] / row.median / 1e9}
    return rows, agreement


def _how(ours: Attribution) -> str:
    shape, everywhere = ours.shape, ours.engine.settings.positions == "all"
    how = f"{ours.n_targets} targets, {ours.n_sources} sources, {shape.chunk} targets a chunk"
    if not everywhere:
        return f"{how}, reverse, one position a target"
    mlps = "MLPs as matrices" if shape.collapse else "MLPs as they are"
    return f"{how}, {shape.direction}, {mlps}, {shape.passes_at_once} passes at a time"


class Sampled:
    """`vmap(grad)` of some targets."""

    def __init__(self, case: Case, plain: Attribution, targets: list[tuple[int, int]]) -> None:
        self.way = Attribution(case, case.story, plain.engine.settings, targets)

    def run(self) -> Any:
        """What is timed."""
        return self.way.runner(self.way.shape)()

    def edges(self) -> Edges:
        """What it computes."""
        return self.way.edges()


def _torch(case: Case, ours: Attribution, targets: list[tuple[int, int]], positions: str):
    """PyTorch's way on some targets, and its result by target."""
    import torch_between

    problem = ours.engine.problem
    cfg, params, d_sae = case.bundle.cfg, case.bundle.params, len(ours.tables.directions)
    _, acts = forward(params, cfg, np.asarray(case.story), taps=(problem.source_hook,), logits_at=None)
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
    run = torch_between.batched_vjps(given, targets, all_positions=positions == "all")

    def edges(found: np.ndarray) -> Edges:
        listed = {}
        for (pos, feature), values in zip(targets, found, strict=True):
            at = range(pos + 1) if positions == "all" else (pos,)
            by_pos = values if positions == "all" else {pos: values}
            parts = [np.stack([np.full(len(sources[t]), t), sources[t], by_pos[t][: len(sources[t])]], 1) for t in at]
            listed[pos, feature] = np.concatenate(parts)
        return listed

    return run, edges


def depth_flops(case: Case, ours: Attribution, positions: str) -> dict[str, float]:
    """By the formulas above."""
    cfg, problem, L, T = case.bundle.cfg, ours.engine.problem, ours.length, ours.n_targets
    d, m, a, between = cfg.d_model, cfg.d_mlp, cfg.n_heads * cfg.d_head, len(blocks_between(problem))
    plain = T * L * (between + 1) * (8.0 * d * a + 4 * d * m + 8 * L * a)
    own = T * (8.0 * d * a + 4 * d * m)
    if positions == "same":
        return {PLAIN: plain, VMAP: plain, STRUCTURED: (between + 1) * (own + T * 4 * L * a)}
    visits = float(sum(pos + 1 for pos, _ in ours.targets))
    mlp = 2 * d * d if ours.shape.collapse else 4 * d * m
    passes = visits * between * (8.0 * d * a + mlp + 8 * L * a)
    matrices = L * between * 2.0 * d * d * m if ours.shape.collapse else 0
    return {PLAIN: plain, VMAP: plain, STRUCTURED: passes + matrices + own + visits * 4 * cfg.n_heads * d}
