"""Many prompts: throughput of each step, beside the rate at which the machine multiplies matrices."""

from collections.abc import Callable
from statistics import median
from typing import Any

import jax
from benchmark_cases import Case
from benchmark_clock import Row, interleaved
from benchmark_flops import attribution_flops, encoder_flops, forward_flops, products
from jaxtyping import Array, Int

from jaxcircuits.attribution import Engine, Settings
from jaxcircuits.attribution.problem import PRECISIONS, Problem
from jaxcircuits.attribution.program import same_position
from jaxcircuits.model import forward
from jaxcircuits.sae import SAE, encode

CORPUS, CEILING = "corpus", "ceiling"
FORWARD = "forward pass without unembedding"
ENCODED = "+ both encoders"
ATTRIBUTED = "+ attribution, same position"
LISTED = "+ edges listed on the host: Engine.run"


def corpus_rows(case: Case, repeats: int, quick: bool, precision: str) -> list[Row]:
    """Tokens a second of each step on the corpus, in the engine's own batches, and the ceiling in the same rounds."""
    engine = Engine(case.bundle, Settings(precision=precision))
    prompts = list(enumerate(case.corpus))
    plan = engine.make_plan(prompts)
    batches = [(engine._inputs(batch, shape, None), shape) for batch, shape in engine._batches(prompts, plan)]
    params, pair = case.bundle.params, engine.pair

    @jax.jit
    def run_forward(params: Any, tokens: Int[Array, "batch pos"]) -> Any:
        return forward(params, pair.problem.cfg, tokens, taps=(pair.problem.target_hook,), logits_at=None)[1]

    def encoded(source: SAE, target: SAE, params: Any, tokens: Array) -> Any:
        return _encoded(pair.problem, source, target, params, tokens)

    encoded = jax.jit(encoded)

    def attribute(given: Any, shape: Any) -> Any:
        weights = params, pair.source, pair.target, engine.tables, None
        return same_position(*weights, *given, task=engine.task, shape=shape)

    # One batch after the other: what a batch leaves is dropped before the next.
    def over(step: Callable[[Any, Any], Any]) -> Callable[[], None]:
        def run() -> None:
            with jax.default_matmul_precision(PRECISIONS[precision]):
                for given, shape in batches:
                    jax.block_until_ready(step(given, shape))

        return run

    contenders: dict[str, Callable[[], Any]] = {
        FORWARD: over(lambda given, shape: run_forward(params, given[0])),
        ENCODED: over(lambda given, shape: encoded(pair.source, pair.target, params, given[0])),
        ATTRIBUTED: over(attribute),
        LISTED: lambda: engine.run(prompts),
    }
    multiplied = products(case.bundle, 256 if quick else 2048)

    def with_precision(run: Callable[[], Any]) -> Callable[[], Any]:
        def multiply() -> Any:
            with jax.default_matmul_precision(PRECISIONS[precision]):
                return run()

        return multiply

    samples = interleaved(contenders | {name: with_precision(run) for name, (run, _) in multiplied.items()}, repeats)
    edges, targets = engine.run(prompts)
    return _rows(case, samples, {name: flops for name, (_, flops) in multiplied.items()}, edges, targets, str(plan))


def _encoded(problem: Problem, source: SAE, target: SAE, params: Any, tokens: Int[Array, "batch pos"]) -> Any:
    """What the engine computes before it selects: a sequence at a time in form, a batch in fact."""

    def one(tokens: Int[Array, "pos"]) -> tuple[Array, Array]:
        taps = (problem.source_hook, problem.target_hook)
        _, acts = forward(params, problem.cfg, tokens, taps=taps, logits_at=None)
        return encode(source, acts[taps[0]]), encode(target, acts[taps[1]])

    return jax.vmap(one)(tokens)


def _rows(
    case: Case, samples: dict[str, list[float]], multiplied: dict[str, float], edges: Any, targets: Any, plan: str
) -> list[Row]:
    n_tokens = sum(map(len, case.corpus))
    ceiling = max(flops / median(samples[name]) for name, flops in multiplied.items())
    flops = {FORWARD: sum(forward_flops(case.bundle.cfg, len(ids)) for ids in case.corpus)}
    flops[ENCODED] = flops[FORWARD] + sum(encoder_flops(case.bundle, len(ids)) for ids in case.corpus)
    n_targets, n_edges = len(targets["prompt"]) / len(case.corpus), len(edges["prompt"]) / len(case.corpus)
    of_one = attribution_flops(case.bundle.cfg, n_tokens // len(case.corpus), int(n_targets), int(n_edges))
    flops[ATTRIBUTED] = flops[LISTED] = flops[ENCODED] + len(case.corpus) * of_one
    rows = []
    for name in (FORWARD, ENCODED, ATTRIBUTED, LISTED):
        row = Row(CORPUS, name, samples[name], ratio=median(samples[ENCODED]) / median(samples[name]))
        row.more = {
            "tokens/s": n_tokens / row.median,
            "GFLOP/s": flops[name] / row.median / 1e9,
            "of ceiling": flops[name] / row.median / ceiling,
        }
        rows.append(row)
    rows[0].note = f"{len(case.corpus)} prompts, {n_tokens} tokens; {plan}"
    rows[
        2
    ].note = f"{len(targets['prompt']) / n_tokens:.2f} targets and {len(edges['prompt']) / n_tokens:.1f} edges a token"
    for name, n in multiplied.items():
        rows.append(Row(CEILING, name, samples[name], more={"GFLOP/s": n / median(samples[name]) / 1e9}))
    return rows
