"""Training of autoencoders: it learns, steers L0, keeps decoder rows at norm 1 and revives what went silent."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcircuits.bundle import load_bundle, save_bundle
from jaxcircuits.errors import InputError
from jaxcircuits.rows import bundle_rows
from jaxcircuits.sae import encode, reconstruct
from jaxcircuits.training.activations import ActivationBuffer
from jaxcircuits.training.coding import coded
from jaxcircuits.training.revival import resampled
from jaxcircuits.training.runs import run_sae
from jaxcircuits.training.sae import train_sae
from jaxcircuits.training.sae_state import form_of, initial_state, trained
from jaxcircuits.training.sae_update import reconstruction_update
from jaxcircuits.training.settings import ACTIVATIONS
from jaxcircuits.types import SAEWeights
from tests.helpers import assert_close
from tests.training.conftest import SAE, changed

HOOK = "blocks.0.mlp.hook_post"


def log_of(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def run(bundle, words, tmp_path):
    def run(name: str, **fields):
        out = tmp_path / name
        out.mkdir(exist_ok=True)
        return train_sae(bundle, HOOK, words, changed(SAE, **fields), out, quiet=True), out

    return run


@pytest.mark.parametrize(
    "fields",
    [
        {"spliced": 0.5},
        {"activation": "topk"},
        {"activation": "batchtopk"},
        {"activation": "jumprelu"},
        {"penalty": "sqrt"},
        {"penalty": "l1+0.1*hoyer_square", "revive": "auxiliary"},
    ],
    ids=str,
)
def test_training_lowers_the_error_and_keeps_unit_rows(fields, run):
    sae, out = run("dense", tokens=64 * 120, l0=20.0, **({"spliced": 0.0} | fields))
    log = log_of(out)
    assert log[-1]["unexplained"] < 0.6 * log[0]["unexplained"]
    assert (log[-1]["kl"] > 0) == ("spliced" in fields)  # whether the second phase ran
    assert_close(jnp.linalg.norm(sae.weights.W_dec, axis=1), np.ones(sae.cfg.d_sae), "methods")


def test_without_a_target_the_coefficient_stays(run):
    _, out = run("fixed", l0=0.0, sparsity=0.125)
    assert {line["sparsity"] for line in log_of(out)} == {0.125}


def test_l0_goes_where_it_is_sent_and_the_coefficient_pushes_that_way(run):
    final = {}
    for l0 in (4.0, 14.0):
        _, out = run(f"l0-{l0}", tokens=64 * 160, l0=l0)
        final[l0] = log_of(out)[-1]
    assert abs(final[4.0]["l0"] - 4) < 2 < abs(final[14.0]["l0"] - 4)
    assert final[4.0]["sparsity"] > final[14.0]["sparsity"]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_stored_weights_code_raw_values_as_the_training_did_scaled_ones(activation, bundle, words):
    run = changed(SAE, activation=activation)
    form = form_of([run])
    buffer = ActivationBuffer(bundle, HOOK, bundle_rows(bundle, words), run)
    state = initial_state(bundle, HOOK, buffer, run, form)
    update = jax.jit(partial(reconstruction_update, form=form))
    for step in range(3):
        state, _ = update(state, buffer(step), step)
    x = jnp.asarray(buffer(5))
    code = coded(state.params, state.knobs, (x - state.mean) / state.scale, jnp.full(len(x), True), form)
    sae = trained(state.replace(least=code.least * (1 - 1e-6)), HOOK, run)
    assert sae.cfg.activation == {"batchtopk": "jumprelu"}.get(activation, activation)
    assert (sae.cfg.k == 6) == (activation == "topk")
    assert_close(encode(sae, x), code.feature_acts * state.scale, "methods")
    scaled = code.feature_acts @ state.params.W_dec + state.params.b_dec
    assert_close(reconstruct(sae, x), scaled * state.scale + state.mean, "methods")


@pytest.mark.parametrize("activation", ["relu", "jumprelu"])
def test_first_state_has_no_dead_feature_and_resampling_revives_the_dead(activation, bundle, words):
    run = changed(SAE, activation=activation)
    form = form_of([run])
    buffer = ActivationBuffer(bundle, HOOK, bundle_rows(bundle, words), run)
    state = initial_state(bundle, HOOK, buffer, run, form)
    x = jnp.concatenate([jnp.asarray(buffer(step)) for step in range(4)])
    x = (x - state.mean) / state.scale
    every = jnp.full(len(x), True)
    weights: SAEWeights = state.params
    assert bool((coded(weights, state.knobs, x, every, form).feature_acts > 0).any(0).all())

    dead = jnp.arange(len(weights.b_enc)) % 4 == 0
    silenced = state.replace(params=weights._replace(b_enc=jnp.where(dead, -1e3, weights.b_enc)))
    revived = resampled(silenced, dead, x, x)
    on = (coded(revived.params, state.knobs, x, every, form).feature_acts > 0).any(0)
    assert bool(on[dead].all())
    np.testing.assert_array_equal(revived.params.W_enc[:, ~dead], weights.W_enc[:, ~dead])
    assert int(revived.silent[dead].max()) == 0


def test_run_writes_a_bundle_and_refuses_another_model_or_hooks(bundle, words):
    Path("train.txt").write_text("\n".join(words))
    save_bundle("model", bundle.cfg, bundle.params, {}, bundle.tokenizer, source={"source": "random"})
    path = run_sae("model", None, "train.txt", SAE, "run", quiet=True)
    made = load_bundle(path, processed=False)
    assert list(made.saes) == ["blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post"]
    assert made.manifest["source"] == "random"
    assert made.manifest["training"]["sae"]["l0"] == SAE.l0
    for a, b in zip(jax.tree.leaves(made.params), jax.tree.leaves(bundle.params), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(InputError, match="hook_names"):
        run_sae("model", [HOOK], "train.txt", SAE, "run", quiet=True)
    with pytest.raises(InputError, match="no hook point"):
        run_sae("model", ["blocks.7.mlp.hook_post"], "train.txt", SAE, "run2", quiet=True)
    with pytest.raises(InputError, match="name each once"):
        run_sae("model", [HOOK, HOOK], "train.txt", SAE, "run2", quiet=True)
    assert not Path("run2").exists()


@pytest.mark.parametrize(
    "fields",
    [
        {"l0": -1.0},
        {"activation": "gelu"},
        {"penalty": "l1+l7"},
        {"penalty": "l1+l1"},
        {"penalty": "-2*l1"},
        {"penalty": "l0"},  # of a relu
        {"revive": "pray"},
        {"k": -1},
        {"activation": "topk", "l0": 0.0},
        {"bandwidth": 0.0},
        {"power": 1.5},
        {"batch_tokens": 60},
        {"spliced": 1.5},
        {"decay": 1.1},
        {"resamplings": -1},
        {"kl_weight": -1.0},
        {"seed": -1},
    ],
)
def test_impossible_settings_are_refused(fields):
    with pytest.raises(InputError, match=next(iter(fields))):
        changed(SAE, **fields)
