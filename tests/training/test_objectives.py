"""Activations, penalties and the auxiliary loss against sums done the slow way, in float64 where it decides."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcircuits.training.coding import CODINGS, Code, Form, Knobs, coded, kth_largest, step
from jaxcircuits.training.penalties import OFFSET, PENALTIES, penalty
from jaxcircuits.training.revival import auxiliary_loss
from jaxcircuits.training.settings import ACTIVATIONS
from jaxcircuits.training.settings import PENALTIES as NAMED
from jaxcircuits.types import SAEWeights
from tests.helpers import assert_close
from tests.training.conftest import SAE, changed

N, D_IN, D_SAE, K = 12, 5, 16, 3


@pytest.fixture
def weights() -> SAEWeights:
    rng = np.random.default_rng(0)
    W_dec = rng.standard_normal((D_SAE, D_IN))
    return SAEWeights(
        jnp.float32(rng.standard_normal((D_IN, D_SAE))),
        jnp.float32(rng.standard_normal(D_SAE)),
        jnp.float32(W_dec / np.linalg.norm(W_dec, axis=1, keepdims=True)),
        jnp.float32(rng.standard_normal(D_IN)),
        jnp.float32(rng.uniform(0.1, 0.9, D_SAE)),
    )


@pytest.fixture
def x() -> jax.Array:
    return jnp.float32(np.random.default_rng(1).standard_normal((N, D_IN)))


def knobs(**numbers) -> Knobs:
    zeros = {name: jnp.zeros(()) for name in Knobs._fields} | {"k": jnp.int32(K), "bandwidth": jnp.float32(0.4)}
    return Knobs(**(zeros | {name: jnp.asarray(value) for name, value in numbers.items()}))


def form(activation: str, *penalties: str) -> Form:
    return Form(changed(SAE, activation=activation), penalties, K + 2)


def test_every_name_of_a_setting_has_its_entry():
    assert set(CODINGS) == set(ACTIVATIONS)
    assert set(PENALTIES) == set(NAMED)


@pytest.mark.parametrize("activation", CODINGS)
def test_what_is_on_has_its_pre_activation_and_the_slope_one(activation, weights, x):
    tokens = jnp.arange(N) < N - 2  # the last two only fill up

    def acts(b_enc):
        return coded(weights._replace(b_enc=b_enc), knobs(), x, tokens, form(activation)).feature_acts

    pre_acts = np.asarray((x - weights.b_dec) @ weights.W_enc + weights.b_enc)
    found = np.asarray(acts(weights.b_enc))[: N - 2]
    counted = pre_acts[: N - 2]
    on = {
        "relu": counted > 0,
        "topk": (counted >= np.sort(counted, 1)[:, -K, None]) & (counted > 0),
        "batchtopk": counted >= np.sort(counted.ravel())[-K * (N - 2)],
        "jumprelu": counted > np.asarray(weights.threshold),
    }[activation]
    assert 0 < on.sum() < on.size
    np.testing.assert_array_equal(found > 0, on)
    assert_close(found, np.where(on, counted, 0), "methods")
    slopes = jax.jacobian(lambda b: acts(b)[: N - 2].sum(0))(weights.b_enc)
    np.testing.assert_array_equal(slopes, np.diag(on.sum(0).astype(np.float32)))


@pytest.mark.parametrize("k", [1, 2, 7, 40, 60, 99, 130])
def test_kth_largest_is_exact(k):
    rng = np.random.default_rng(k)
    values = np.maximum(rng.standard_normal((10, 13)), 0).astype(np.float32)
    values[3] = values[4]  # equal ones
    assert float(kth_largest(jnp.asarray(values), jnp.int32(k))) == np.sort(values.ravel())[-k]


def test_threshold_learns_through_a_rectangle(weights, x):
    """Equations 11 and 12 of arXiv:2407.14435, term by term."""
    width, threshold = 0.4, np.asarray(weights.threshold)
    pre_acts = np.asarray((x - weights.b_dec) @ weights.W_enc + weights.b_enc)
    near = np.abs(pre_acts - threshold) < width / 2
    assert near.any()
    steps = jax.grad(lambda t: step(jnp.asarray(pre_acts), t, jnp.float32(width)).sum())(weights.threshold)
    assert_close(steps, -(near / width).sum(0), "methods")

    def total(t):
        code = coded(weights._replace(threshold=t), knobs(), x, jnp.full(N, True), form("jumprelu"))
        return code.feature_acts.sum()

    assert_close(jax.grad(total)(weights.threshold), (-threshold / width * near).sum(0), "methods")


def test_penalties_are_their_formulas_and_add_up(weights, x):
    f = np.asarray(jax.nn.relu(x @ weights.W_enc), np.float64)
    f[0] = 0  # nothing is on
    code = Code(jnp.float32(f - 0.2), jnp.float32(f), jnp.zeros(()))
    fallen, power = 0.5, 0.4
    expected = {
        "l1": f.sum(1),
        "sqrt": (np.sqrt(f + OFFSET) - np.sqrt(OFFSET)).sum(1),
        "hoyer_square": f.sum(1) ** 2 / np.maximum((f**2).sum(1), 1e-30),
        "power": ((f + OFFSET) ** 0.7 - OFFSET**0.7).sum(1),
        "l0": (f - 0.2 > np.asarray(weights.threshold)).sum(1),
    }
    numbers = knobs(power=power)
    for name, function in PENALTIES.items():
        assert_close(function(code, weights, numbers, jnp.float32(fallen)), expected[name], "methods", name)
    assert expected["hoyer_square"][1:].min() >= 1 and expected["hoyer_square"].max() <= D_SAE
    for a, b in product(PENALTIES, repeat=2):
        both = penalty((a, b), code, weights, knobs(power=power, penalties=[0.5, 2.0]), jnp.float32(fallen))
        assert_close(both, 0.5 * expected[a] + 2 * expected[b], "methods", f"{a}+{b}")


def test_penalties_have_finite_derivatives_where_nothing_is_on(weights):
    def total(f, name):
        code = Code(f, f, jnp.zeros(()))
        return PENALTIES[name](code, weights, knobs(power=0.5), jnp.ones(())).sum()

    for name in PENALTIES:
        assert bool(jnp.isfinite(jax.grad(total)(jnp.zeros((2, D_SAE)), name)).all()), name


@pytest.mark.parametrize("n_dead", [0, 2, 7])
def test_auxiliary_loss_lets_the_strongest_dead_features_describe_the_error(n_dead, weights, x):
    room = D_IN // 2
    dead = np.arange(D_SAE) < n_dead
    code = coded(weights, knobs(), x, jnp.full(N, True), form("relu"))
    error = np.asarray(x - code.feature_acts @ weights.W_dec, np.float64)
    weight = np.full(N, 1 / N)
    left = 0.0
    for pre_acts, e in zip(np.asarray(code.pre_acts, np.float64), error, strict=True):
        chosen = sorted(np.flatnonzero(dead), key=lambda i: -pre_acts[i])[:room]
        left += ((e - sum(max(pre_acts[i], 0) * np.asarray(weights.W_dec[i]) for i in chosen)) ** 2).sum() / N
    expected = left / ((error**2).sum() / N) if n_dead else 0.0
    args = (jnp.asarray(dead), jnp.float32(error), jnp.float32(weight))
    assert_close(auxiliary_loss(weights, code, *args), expected, "methods")

    def loss(W_dec):
        return auxiliary_loss(weights._replace(W_dec=W_dec), code, *args)

    moved = np.abs(np.asarray(jax.grad(loss)(weights.W_dec))).sum(1) > 0
    assert not moved[~dead].any()
    assert moved[dead].any() == (n_dead > 0)
