"""The forward pass as a function: what it returns, and under JAX's transformations."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters import partial_eval

from jaxcircuits.config import PROCESSING_STEPS
from jaxcircuits.errors import InputError
from jaxcircuits.model import forward, hook_names, process_weights
from tests.helpers import assert_close, random_params, random_tokens, tiny_config

CFG = tiny_config()
POST = ["blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post"]


@pytest.fixture(scope="module")
def params():
    return random_params(CFG, 10)


@pytest.mark.parametrize(
    "at", [slice(-1, None), slice(2, 5), slice(0, 0), [0], [3, 1, 1], [-1]], ids=lambda at: str(at).replace(" ", "")
)
def test_logits_at_some_positions(at, params) -> None:
    tokens = random_tokens(CFG, 2, 8)
    full, _ = forward(params, CFG, tokens)
    some, _ = forward(params, CFG, tokens, logits_at=at if isinstance(at, slice) else jnp.array(at))
    assert full is not None and some is not None
    assert_close(some, full[:, at], "methods", "logits")


def test_no_logits(params) -> None:
    logits, acts = forward(params, CFG, random_tokens(CFG, 8), taps=hook_names(CFG), logits_at=None)
    assert logits is None and set(acts) == set(hook_names(CFG))
    assert forward(params, CFG, random_tokens(CFG, 8), logits_at=None) == (None, {})


def _weights_used(params, *, dead_code: bool, **options) -> set[str]:
    """Names of the weights that the traced pass reads; `dead_code`: before anything unused is dropped."""
    tokens = random_tokens(CFG, 5)
    traced = jax.make_jaxpr(lambda p: forward(p, CFG, tokens, **options))(params)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params)]
    if dead_code:
        read = {id(v) for eqn in traced.jaxpr.eqns for v in eqn.invars}
        used = [id(v) in read for v in traced.jaxpr.invars]
    else:
        _, used = partial_eval.dce_jaxpr(traced.jaxpr, [True] * len(traced.jaxpr.outvars))
    return {name for name, is_used in zip(names, used, strict=True) if is_used}


def test_nothing_after_the_last_tap_is_computed(params) -> None:
    early = _weights_used(params, dead_code=False, taps=POST[:1], logits_at=None)
    assert ".blocks[0].mlp.W_in" in early
    assert not any(name.startswith((".blocks[1]", ".W_U", ".b_U", ".ln_final")) for name in early)
    assert ".blocks[0].mlp.W_out" not in early
    # Even without a compiler to drop it, no later block and no unembedding is traced.
    eager = _weights_used(params, dead_code=True, taps=POST[:1], logits_at=None)
    assert not any(name.startswith((".blocks[1]", ".W_U", ".b_U", ".ln_final")) for name in eager)
    everything = {jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params)}
    assert _weights_used(params, dead_code=False) == everything


def test_unembedding_is_skipped_at_other_positions(params) -> None:
    """Logits at one position multiply one row by `W_U`."""
    tokens = random_tokens(CFG, 8)
    traced = jax.make_jaxpr(lambda p: forward(p, CFG, tokens, logits_at=slice(-1, None))[0])(params)
    assert traced.out_avals[0].shape == (1, CFG.d_vocab)
    products = [eqn.outvars[0].aval.shape for eqn in traced.jaxpr.eqns if eqn.primitive.name == "dot_general"]
    assert [shape for shape in products if CFG.d_vocab in shape] == [(1, CFG.d_vocab)]


def test_a_longer_prompt_than_the_context_is_refused(params) -> None:
    forward(params, CFG, random_tokens(CFG, CFG.n_ctx))
    with pytest.raises(InputError, match="the model's context holds 16 tokens, got 17; shorten the prompt"):
        forward(params, CFG, random_tokens(CFG, CFG.n_ctx + 1))


@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 3)], ids=str)
def test_any_batch_axes(batch: tuple[int, ...], params) -> None:
    tokens = random_tokens(CFG, *batch, 7)
    logits, acts = forward(params, CFG, tokens, taps=hook_names(CFG))
    assert logits is not None and logits.shape == (*batch, 7, CFG.d_vocab)
    for index in np.ndindex(*batch):
        one, one_acts = forward(params, CFG, tokens[index], taps=hook_names(CFG))
        assert one is not None
        assert_close(logits[index], one, "methods", "logits")
        for tap, value in one_acts.items():
            assert_close(acts[tap][index], value, "methods", tap)


def test_vmap_is_the_batched_call(params) -> None:
    tokens = random_tokens(CFG, 3, 9)
    run = partial(forward, params, CFG, taps=hook_names(CFG))
    (logits, acts), (batched, batched_acts) = jax.vmap(run)(tokens), run(tokens)
    assert batched is not None
    assert_close(logits, batched, "methods", "logits")
    for tap, value in acts.items():
        assert_close(value, batched_acts[tap], "methods", tap)


def test_vmap_over_edits_shares_one_prompt(params) -> None:
    tokens = random_tokens(CFG, 6)
    values = jnp.asarray(np.random.default_rng(0).standard_normal((4, 6, CFG.d_mlp)), jnp.float32)

    def run(value):
        return forward(params, CFG, tokens, edits={POST[0]: value})[0]

    together = jax.vmap(run)(values)
    for one, value in zip(together, values, strict=True):
        assert_close(one, run(value), "methods", "logits")


def test_jit_with_static_config(params) -> None:
    tokens = random_tokens(CFG, 2, 9)
    jitted = jax.jit(forward, static_argnums=1, static_argnames="taps")
    logits, acts = jitted(params, CFG, tokens, taps=hook_names(CFG))
    plain, plain_acts = forward(params, CFG, tokens, taps=hook_names(CFG))
    assert plain is not None
    assert_close(logits, plain, "methods", "logits")
    for tap, value in acts.items():
        assert_close(value, plain_acts[tap], "methods", tap)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("steps", [(), PROCESSING_STEPS], ids=["unprocessed", "processed"])
def test_the_weights_dtype_is_kept_throughout(dtype: str, steps: tuple[str, ...], x64: None) -> None:
    params = jax.eval_shape(partial(process_weights, steps=steps), random_params(CFG, dtype=jnp.dtype(dtype)))
    tokens = random_tokens(CFG, 5)
    logits, acts = jax.eval_shape(lambda p: forward(p, CFG, tokens, taps=hook_names(CFG)), params)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves((params, logits, acts))} == {dtype}


def _loss(params, tokens, edits=None):
    """A smooth number that every weight and every position moves."""
    logits, acts = forward(params, CFG, tokens, taps=POST, edits=edits)
    assert logits is not None
    return jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, None], -1).sum() + (acts[POST[1]] ** 2).mean()


def _check_against_differences(function, at, seed: int) -> None:
    """The derivative along a few random directions against central differences, in float64."""
    gradient = jax.grad(function)(at)
    step = 1e-5
    for i in range(3):
        rng = np.random.default_rng([seed, i])
        direction = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape)), at)  # noqa: B023
        ahead, behind = (function(jax.tree.map(lambda x, d: x + s * step * d, at, direction)) for s in (1, -1))  # noqa: B023
        along = sum(jnp.vdot(g, d) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True))
        assert_close(along, (ahead - behind) / (2 * step), "finite_difference", "derivative")


@pytest.mark.parametrize("steps", [(), PROCESSING_STEPS], ids=["unprocessed", "processed"])
def test_gradient_by_weights(steps: tuple[str, ...], x64: None) -> None:
    params, tokens = process_weights(random_params(CFG, 11, jnp.float64), steps), random_tokens(CFG, 9)
    _check_against_differences(jax.jit(lambda p: _loss(p, tokens)), params, 0)


@pytest.mark.parametrize("name", [n for n in hook_names(CFG) if not n.endswith("attn_scores")])
def test_gradient_by_a_hooks_value(name: str, x64: None) -> None:
    params, tokens = random_params(CFG, 12, jnp.float64), random_tokens(CFG, 6)
    _, acts = forward(params, CFG, tokens, taps=[name])
    _check_against_differences(jax.jit(lambda value: _loss(params, tokens, {name: value})), acts[name], 1)


def test_gradients_are_finite_behind_the_mask(params) -> None:
    """Scores of minus infinity must not turn a derivative into NaN."""
    gradient = jax.grad(_loss)(params, random_tokens(CFG, 9))
    for path, leaf in jax.tree.leaves_with_path(gradient):
        assert bool(jnp.isfinite(leaf).all()), jax.tree_util.keystr(path)
        assert bool(leaf.any()) or jax.tree_util.keystr(path).endswith("b_K"), jax.tree_util.keystr(path)


@pytest.mark.parametrize("function", ["forward", "gradient"])
def test_lowers_for_every_platform(function: str, params) -> None:
    run = {
        "forward": lambda p, t: forward(p, CFG, t, taps=hook_names(CFG)),
        "gradient": jax.grad(lambda p, t: _loss(p, t)),
    }[function]
    exported = jax.export.export(jax.jit(run), platforms=["cpu", "cuda", "tpu"])(params, random_tokens(CFG, 9))
    assert exported.platforms == ("cpu", "cuda", "tpu")
