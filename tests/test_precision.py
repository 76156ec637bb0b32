"""The error table of matrix products' precision."""

import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcircuits.attribution import Engine, Settings
from tests.helpers import random_tokens, saved_bundle, tiny_bundle, tiny_config

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import precision
from rounding import rounded


def _doubled(bundle):
    with jax.enable_x64(True):
        as_double = partial(jnp.asarray, dtype=jnp.float64)
        params, saes = jax.tree.map(lambda w: as_double(np.asarray(w)), (bundle.params, bundle.saes))
    return type(bundle)(bundle.cfg, params, saes)


def test_all_bits_give_the_plain_result_and_fewer_give_growing_errors() -> None:
    cfg = tiny_config()
    bundle = tiny_bundle(cfg)
    tokens = np.asarray(random_tokens(cfg, 9))
    pair = Engine(bundle, Settings()).pair
    doubled = _doubled(bundle)
    listed = precision._listed(pair.problem, doubled, tuple(doubled.saes.values()), tokens)
    run = precision.computation(pair.problem, listed)
    given = bundle.params, pair.source, pair.target, jnp.asarray(tokens), listed
    plain = jax.jit(run)(*given)
    errors = []
    for bits in (23, 10, 7):
        got = jax.jit(rounded(run, bits))(*given)
        errors.append(max(float(abs(g - p).max() / abs(p).max()) for g, p in zip(got, plain, strict=True)))
    assert errors[0] <= 1e-6
    assert 1e-5 < errors[1] < 0.25 * errors[2]
    assert errors[2] < 0.5


def test_computes_what_the_engine_computes() -> None:
    cfg = tiny_config()
    bundle = tiny_bundle(cfg)
    tokens = np.asarray(random_tokens(cfg, 9))
    engine = Engine(bundle, Settings(positions="all", method="reference"))
    edges, _ = engine.run([(0, tokens)])
    doubled = _doubled(bundle)
    listed = precision._listed(engine.problem, doubled, tuple(doubled.saes.values()), tokens)
    pair = engine.pair
    run = precision.computation(engine.problem, listed)
    found = jax.jit(run)(bundle.params, pair.source, pair.target, jnp.asarray(tokens), listed)
    earlier = listed.sources.flat // pair.source.cfg.d_sae <= listed.target_pos[:, None]
    gradients = np.asarray(found.gradients)[earlier]
    assert len(gradients) == len(edges["gradient"]) > 100
    assert np.abs(gradients - edges["gradient"]).max() <= 1e-5 * np.abs(gradients).max()


@pytest.mark.parametrize("loop", ["scan", "while", "cond", "jit", "custom"])
def test_products_inside_of_loops_and_calls_are_rounded(loop: str) -> None:
    W = jnp.asarray(np.random.default_rng(0).standard_normal((5, 5)), jnp.float32)

    def step(x):
        return x @ W / 3

    functions = {
        "scan": lambda x: jax.lax.scan(lambda c, _: (step(c), c), x, length=3)[0],
        "while": lambda x: jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, step(s[1])), (0, x))[1],
        "cond": lambda x: jax.lax.cond(x[0, 0] > -9, step, lambda x: x, x),
        "jit": lambda x: jax.jit(step)(x),
        "custom": lambda x: jax.nn.relu(jax.checkpoint(step)(x)),
    }
    run = functions[loop]
    assert abs(rounded(run, 23)(W) - run(W)).max() <= 1e-6
    assert abs(rounded(run, 7)(W) - run(W)).max() > 1e-4


@pytest.mark.slow
def test_prints_a_row_a_precision(capsys: pytest.CaptureFixture) -> None:
    saved_bundle("tiny", tiny_config())
    Path("prompts.txt").write_text("w1 w2 w3 w4 w5 w6\nw9 w8 w7 w5\n")
    assert precision.main(["--bundle", "tiny", "--corpus", "prompts.txt", "--markdown", "table.md"]) == 0
    assert Path("table.md").read_text() in capsys.readouterr().out
    rows = [line.split("|")[1:4] for line in Path("table.md").read_text().splitlines()[2:]]
    names = [row[0].strip() for row in rows]
    assert names == ["float32 (highest)", "tf32, emulated", "bf16, emulated"]
    first, second, third = (float(row[1]) for row in rows)
    assert 0 < first < 1e-5 < second < third
