"""The compiled programs lower for CPU, CUDA and TPU alike: no float64, no callback, nothing one platform lacks."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from jaxcircuits.attribution import Engine, Settings
from jaxcircuits.attribution.program import attribute_chunk, forward_pass, same_position
from tests.attribution.cases import bundle_of, prompts_of
from tests.helpers import tiny_bundle, tiny_sae

PLATFORMS = ("cpu", "cuda", "tpu")

CASES = {
    "same position": {},
    "all positions": {"positions": "all", "top_k": 4},
    "large edges": {"positions": "all", "min_attribution": 0.1},
    "frozen": {"derivative": "frozen", "positions": "all", "parts": "heads", "stages": True},
    "integrated": {"derivative": "integrated", "points": 3},
    "reference": {"method": "reference", "positions": "all"},
    "TopK with normalised inputs": {"splice": "source"},
    "a layer between": {"source": "blocks.0.mlp.hook_post", "target": "blocks.2.mlp.hook_post"},
}


@pytest.mark.parametrize("case", list(CASES))
def test_programs_lower_everywhere(case: str) -> None:
    bundle = bundle_of("three layers" if case == "a layer between" else "global then local")
    if "TopK" in case:
        kind = {"activation": "topk", "k": 6, "normalization": "layer_norm"}
        saes = {name: tiny_sae(bundle.cfg, name, **kind) for name in bundle.saes}
        bundle = tiny_bundle(bundle.cfg, saes=saes)
    engine = Engine(bundle, Settings(**CASES[case]))
    prompts = prompts_of(bundle, 12, 9)
    (shape,) = engine.make_plan(prompts).shapes
    static = {"task": engine.task, "shape": shape}
    model = (bundle.params, engine.pair.source, engine.pair.target)
    tokens, counted, named = engine._inputs(prompts, shape, None)
    baseline = None
    if engine.settings.derivative == "integrated":
        baseline = jnp.zeros(engine.tables.directions.shape[0])
    if engine.settings.positions == "same":
        _lower(partial(same_position, **static), *model, engine.tables, baseline, tokens, counted, named)
        return
    passed = _lower(partial(forward_pass, **static), *model, tokens, counted, named)
    first = jnp.zeros((), jnp.int32)
    _lower(partial(attribute_chunk, **static), *model, engine.tables, baseline, passed, first)


def _lower(program, *args):
    """Exports the program for every platform, looks at what came out, and runs it here; returns its result."""
    leaves, tree = jax.tree.flatten(args)
    leaves = [jnp.asarray(x) if isinstance(x, np.ndarray) else x for x in leaves]

    @jax.jit
    def of_leaves(*leaves):
        return tuple(jax.tree.leaves(program(*jax.tree.unflatten(tree, leaves))))

    exported = export.export(of_leaves, platforms=PLATFORMS)(*leaves)
    text = exported.mlir_module()
    assert exported.platforms == PLATFORMS
    assert not re.search(r"\bf64\b", text)
    assert not re.search(r"callback|custom_call @(?!.*top_k)", text), "a call outside XLA"
    expected = program(*args)
    for a, b in zip(exported.call(*leaves), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
    return expected
