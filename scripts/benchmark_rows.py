"""One prompt: attribution alone and end to end, by every contender, with their numbers compared first."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from benchmark_cases import Case
from benchmark_clock import Edges, Row, difference, fastest, interleaved, rows_of
from benchmark_flops import attribution_flops

from jaxcircuits.attribution import Engine, Settings
from jaxcircuits.attribution.problem import PRECISIONS
from jaxcircuits.attribution.program import Found, Passed, attribute_chunk, forward_pass
from jaxcircuits.attribution.task import Shape

SAME, ALL, WHOLE = "attribution alone, same position", "attribution alone, all positions", "end to end"
LOOP = "PyTorch, careful loop"
PLAIN = "PyTorch, batched VJPs"
TUNED = "PyTorch, tuned by hand: positions cut"
VMAP = "vmap(grad)"
STRUCTURED = "structured"
PROJECTED = "vmap(grad) and projection, all positions"
EVERYWHERE = "structured, all positions"
CELL = "the notebook's cell as written"
CARE = "PyTorch with care: forward pass, encoders, tuned by hand"
SAMPLED = (2, 6)
"""Targets that the notebook's cell is timed on; the slope between them gives the time of all."""


def reserved(lowered: jax.stages.Lowered) -> int | None:
    """Bytes of a program's values on the way and of its results. `None` where XLA does not say."""
    found = lowered.compile().memory_analysis()
    return None if found is None else found.temp_size_in_bytes + found.output_size_in_bytes


class Attribution:
    """Attribution of one prompt from given activations, by this package: a `Passed`, and one call a chunk of targets.

    `targets` are some of them; by default all that are on.

    Sources, targets and the activations up to the target hook are given: the forward pass leaves them. The PyTorch
    contenders run from the source hook to the target hook themselves, for autodiff needs that; it is a small part.
    """

    def __init__(
        self, case: Case, tokens: np.ndarray, settings: Settings, targets: list[tuple[int, int]] | None = None
    ) -> None:
        self.engine = Engine(case.bundle, settings)
        self.length = len(tokens)
        self.precision = PRECISIONS[settings.precision]
        planned = self.engine.make_plan([(0, tokens)], targets).shape(len(tokens))
        with jax.default_matmul_precision(self.precision):
            self.given = self.engine._inputs([(0, tokens)], planned, targets)
            self.passed = self._passed(planned)
        self.n_targets, self.n_sources = int(self.passed.targets.number[0]), int(self.passed.sources.number[0])
        self.planned = planned
        self.shape = planned
        self.tried: dict[int, float] = {}
        # The PyTorch contenders compute derivatives alone, so the products of weights alone are left out.
        self.tables = self.engine.tables._replace(products=None)

    def _passed(self, shape: Shape) -> Passed:
        engine = self.engine
        sides = engine.pair.source, engine.pair.target
        return forward_pass(engine.bundle.params, *sides, *self.given, task=engine.task, shape=shape)

    def choose_chunk(self, quick: bool) -> None:
        """Takes the fastest chunk: the plan's, all targets at once, or a part of them.

        On accelerators the plan's, for each try is minutes of compilation.
        """
        quick = quick or jax.default_backend() != "cpu"
        chunks = {self.planned.chunk} | {_up(self.n_targets, 8), _up(self.n_targets / 4, 8)}
        if self.engine.method == "reference":
            chunks = {self.planned.chunk, 8, 16, 64}
        chunks = {self.planned.chunk} if quick else {min(c, _up(self.n_targets, 8)) for c in chunks}
        shapes = {c: replace(self.planned, chunk=c, targets=_up(self.n_targets, c)) for c in sorted(chunks)}
        best, self.tried = fastest({c: self.runner(shape) for c, shape in shapes.items()})
        self.shape = shapes[best]

    def runner(self, shape: Shape, tables: Any = None) -> Callable[[], list[Found]]:
        """What is timed."""
        engine, tables = self.engine, tables or self.tables
        with jax.default_matmul_precision(self.precision):
            passed = self._passed(shape)
        firsts = [jnp.asarray(first, jnp.int32) for first in range(0, self.n_targets, shape.chunk)]
        weights = engine.bundle.params, engine.pair.source, engine.pair.target, tables, None

        def run() -> list[Found]:
            with jax.default_matmul_precision(self.precision):
                return [attribute_chunk(*weights, passed, first, task=engine.task, shape=shape) for first in firsts]

        return run

    def program_bytes(self) -> int | None:
        """What XLA reserves for a chunk besides what is given: values on the way, and results. `None`: unknown."""
        engine = self.engine
        weights = engine.bundle.params, engine.pair.source, engine.pair.target, self.tables, None
        first = jax.ShapeDtypeStruct((), jnp.int32)
        with jax.default_matmul_precision(self.precision):
            return reserved(attribute_chunk.lower(*weights, self.passed, first, task=engine.task, shape=self.shape))

    @property
    def targets(self) -> list[tuple[int, int]]:
        """Position and feature of each."""
        pos, feature = (np.asarray(x)[0, : self.n_targets] for x in self.passed.targets[:2])
        return list(zip(pos.tolist(), feature.tolist(), strict=True))

    def edges(self) -> Edges:
        """What the runner computes, by target."""
        found = [jax.tree.map(np.asarray, f) for f in self.runner(self.shape)()]
        at = np.asarray(self.passed.sources.flat)[0]
        gradient, slots, valid = (
            np.concatenate([x[0] for x in part])
            for part in zip(*((f.parts.sum(2), f.source, f.valid) for f in found), strict=True)
        )
        d_sae = len(self.tables.directions)
        listed = {}
        for i, target in enumerate(self.targets):
            index = at[slots[i][valid[i]]]
            listed[target] = np.stack([index // d_sae, index % d_sae, gradient[i][valid[i]].astype(float)], 1)
        return listed

    @property
    def note(self) -> str:
        """How it was run."""
        tried = ", ".join(f"{c}: {1e3 * s:.3g} ms" for c, s in self.tried.items())
        return f"{self.n_targets} targets, {self.shape.chunk} at a time" + (f" (tried {tried})" if tried else "")

    def flops(self, pairs: int) -> float:
        """By formula, of the structured method."""
        cfg, length = self.engine.bundle.cfg, self.length
        if self.engine.settings.positions == "same":
            return attribution_flops(cfg, length, self.n_targets, pairs)
        cross = self.n_targets * self.n_sources
        return attribution_flops(cfg, length, self.n_targets, 0, self.n_sources, cross)


class Torch:
    """The PyTorch contenders on one prompt."""

    def __init__(self, case: Case, tokens: np.ndarray, targets: list[tuple[int, int]]) -> None:
        import torch_baselines
        import torch_model

        self.ways = torch_baselines
        self.tokens, self.targets = tokens, targets
        self.model = torch_model.transformer_lens_model(case.bundle.cfg, case.unprocessed)
        self.saes = torch_model.torch_saes(*case.bundle.saes.values())
        self.given = torch_baselines.given_activations(self.model, self.saes, tokens, targets)

    def alone(self) -> dict[str, Callable[[], np.ndarray]]:
        """What starts from given activations."""
        ways = self.ways
        return {
            LOOP: ways.careful_loop(self.given),
            PLAIN: ways.plain_batched_vjps(self.given, 32),
            TUNED: ways.batched_vjps(self.given),
        }

    def cell(self, n: int) -> np.ndarray:
        """The notebook's way with `n` targets, spread over the prompt."""
        chosen = [self.targets[i] for i in np.linspace(0, len(self.targets) - 1, n).astype(int)]
        return self.ways.notebook_cell(self.model, self.saes, self.tokens, chosen)

    def whole(self) -> tuple[np.ndarray, ...]:
        """Forward pass and encoders from token ids, as every contender needs them."""
        return self.ways.forward_and_encode(self.model, self.saes, self.tokens)

    def edges(self, gradients: np.ndarray) -> Edges:
        """The ways' result by target."""
        listed = {}
        for (pos, feature), row in zip(self.targets, gradients, strict=True):
            n = int(self.given.counts[pos])
            listed[pos, feature] = np.stack([np.full(n, pos), self.given.sources[pos, :n].numpy(), row[:n]], 1)
        return listed

    def cell_edges(self) -> Edges:
        """The notebook's numbers on all targets that it is timed on."""
        chosen = [self.targets[i] for i in np.linspace(0, len(self.targets) - 1, SAMPLED[1]).astype(int)]
        minus = self.ways.notebook_cell(self.model, self.saes, self.tokens, chosen)
        listed = {}
        for (pos, feature), row in zip(chosen, minus, strict=True):
            at = self.given.sources[pos, : int(self.given.counts[pos])].numpy()
            listed[pos, feature] = np.stack([np.full(len(at), pos), at, -row[at]], 1)
        return listed


def definition(case: Case, tokens: np.ndarray, targets: list[tuple[int, int]], positions: str) -> Edges:
    """The edges of the definition in float64, which settles what is noise: every contender is compared with them.

    On the CPU, whatever the contenders run on.
    """
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        bundle = replace(
            case.bundle,
            params=jax.tree.map(lambda w: jnp.asarray(np.asarray(w), jnp.float64), case.bundle.params),
            saes={name: sae.astype(jnp.float64) for name, sae in case.bundle.saes.items()},
        )
        engine = Engine(bundle, Settings(method="reference", positions=positions))
        edges, _ = engine.run([(0, tokens)], targets)
    at = edges["target_pos"].astype(np.int64) * len(engine.tables.W_enc_rows) + edges["target_feature"]
    rows = np.stack([edges["source_pos"], edges["source_feature"], edges["gradient"]], 1)
    starts = np.flatnonzero(np.r_[True, at[1:] != at[:-1]]) if len(at) else []
    parts = np.split(rows, starts[1:]) if len(at) else []
    first = zip(edges["target_pos"][starts].tolist(), edges["target_feature"][starts].tolist(), strict=True)
    listed = dict.fromkeys(targets, np.zeros((0, 3)))
    return listed | dict(zip(first, parts, strict=True))


def _common(edges: Edges, expected: Edges) -> tuple[Edges, Edges]:
    both = edges.keys() & expected.keys()
    return {target: edges[target] for target in both}, {target: expected[target] for target in both}


def _up(n: float, step: int) -> int:
    return max(step, int(-(-n // step) * step))


def alone_rows(
    case: Case, repeats: int, quick: bool, torch_too: bool, precision: str
) -> tuple[list[Row], dict[str, float]]:
    """Rows of attribution alone, and how far each contender's numbers are from the definition in float64."""
    ours = {
        STRUCTURED: Attribution(case, case.story, Settings(precision=precision)),
        EVERYWHERE: Attribution(case, case.longer, Settings(positions="all", precision=precision)),
    }
    if precision == "highest":  # the definition is what is compared with, and slow: once
        by_definition = Settings(method="reference", precision=precision)
        ours[VMAP] = Attribution(case, case.story, by_definition)
        ours[PROJECTED] = Attribution(case, case.longer, replace(by_definition, positions="all"))
    for way in ours.values():
        way.choose_chunk(quick)
    torch = Torch(case, case.story, ours[STRUCTURED].targets) if torch_too else None
    contenders: dict[str, Callable[[], Any]] = dict(torch.alone()) if torch else {}
    numbers = {name: torch.edges(run()) for name, run in contenders.items()} if torch else {}
    numbers |= {name: way.edges() for name, way in ours.items()}
    if precision == "highest":
        case.definitions["same"] = definition(case, case.story, ours[STRUCTURED].targets, "same")
        case.definitions["all"] = definition(case, case.longer, ours[EVERYWHERE].targets, "all")
    same, every = case.definitions["same"], case.definitions["all"]
    exact = {name: every if name in (PROJECTED, EVERYWHERE) else same for name in numbers}
    if precision == "highest":
        agreement = {name: difference(found, exact[name]) for name, found in numbers.items()}
    else:  # other features are on: what both have is compared
        agreement = {name: difference(*_common(found, exact[name]), missing=1.0) for name, found in numbers.items()}
    if torch:
        cell = torch.cell_edges()
        agreement[CELL] = difference(cell, {target: same[target] for target in cell})
    contenders |= {name: way.runner(way.shape) for name, way in ours.items()}
    with_products = f"{STRUCTURED}, and virtual weights"
    contenders[with_products] = ours[STRUCTURED].runner(ours[STRUCTURED].shape, ours[STRUCTURED].engine.tables)
    samples = interleaved(contenders, repeats)
    notes = {name: way.note for name, way in ours.items()}
    apart = {name: samples.pop(name) for name in (PROJECTED, EVERYWHERE) if name in samples}
    baseline = LOOP if torch else VMAP if VMAP in samples else STRUCTURED
    rows = rows_of(SAME, samples, baseline, notes) + rows_of(ALL, apart, next(iter(apart)), notes)
    for row in rows:
        if row.what in (STRUCTURED, EVERYWHERE):
            way = ours[row.what]
            pairs = sum(len(edges) for edges in numbers[row.what].values())
            row.more["GFLOP/s"] = way.flops(pairs) / row.median / 1e9
    return rows, agreement


def whole_rows(case: Case, repeats: int, torch_too: bool, precision: str, alone: list[Row]) -> list[Row]:
    """Rows from token ids to edges; of the notebook's cell two samples of targets are timed and extrapolated."""
    engine = Engine(case.bundle, Settings(precision=precision))
    engine.make_plan([(0, case.story)])  # beforehand: a job makes one plan for all of its prompts
    everywhere = Engine(case.bundle, Settings(positions="all", precision=precision))
    everywhere.make_plan([(0, case.story)])
    _, targets = engine.run([(0, case.story)])
    listed = list(zip(targets["target_pos"].tolist(), targets["target_feature"].tolist(), strict=True))
    ours: dict[str, Callable[[], Any]] = {
        "structured: Engine.run": lambda: engine.run([(0, case.story)]),
        "structured, all positions: Engine.run": lambda: everywhere.run([(0, case.story)]),
    }
    contenders: dict[str, Callable[[], Any]] = {}
    if torch_too:
        torch = Torch(case, case.story, listed)
        few, many = SAMPLED
        contenders = {"few": lambda: torch.cell(few), "many": lambda: torch.cell(many), CARE: torch.whole}
    samples = interleaved(contenders | ours, repeats)
    if not torch_too:
        return rows_of(WHOLE, samples, next(iter(ours)), {})
    fewer, more = samples.pop("few"), samples.pop("many")
    # A slope of medians, since one of a single pair of samples may be anything; never below what was measured.
    slope = max(0.0, (np.median(more) - np.median(fewer)) / (SAMPLED[1] - SAMPLED[0]))
    whole = {CELL: [t + slope * (len(listed) - SAMPLED[1]) for t in more]}
    tuned = next(row.median for row in alone if row.what == TUNED)
    whole |= {CARE: [t + tuned for t in samples.pop(CARE)]}
    notes = {
        CELL: f"{SAMPLED[0]} and {SAMPLED[1]} of {len(listed)} targets timed "
        f"({np.median(fewer):.3g} s and {np.median(more):.3g} s), extrapolated by the slope",
        CARE: "forward pass and encoders timed here, plus the median of attribution alone",
    }
    return rows_of(WHOLE, whole | samples, CARE, notes)
