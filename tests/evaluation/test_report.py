"""Evaluation against values known beforehand, and against sums done the slow way."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from jaxcircuits.training.evaluate import evaluate_lm, evaluate_saes, top_examples

from jaxcircuits.bundle import Bundle
from jaxcircuits.config import SAEConfig
from jaxcircuits.errors import InputError
from jaxcircuits.model import forward
from jaxcircuits.sae import SAE, encode
from jaxcircuits.training.activations import bundle_rows
from jaxcircuits.types import SAEWeights
from tests.helpers import tiny_sae

HOOK = "blocks.0.mlp.hook_post"


def with_sae(bundle: Bundle, sae: SAE) -> Bundle:
    return dataclasses.replace(bundle, saes={sae.cfg.hook_name: sae})


def identity_sae(d: int) -> SAE:
    """relu(x) - relu(-x) = x: an exact autoencoder."""
    both = jnp.concatenate([jnp.eye(d), -jnp.eye(d)], axis=1)
    return SAE(SAEWeights(both, jnp.zeros(2 * d), both.T, jnp.zeros(d)), SAEConfig(d, 2 * d, HOOK))


def constant_sae(value) -> SAE:
    """No feature is ever on, so the reconstruction is b_dec."""
    d = len(value)
    return SAE(SAEWeights(jnp.zeros((d, 3)), -jnp.ones(3), jnp.ones((3, d)), value), SAEConfig(d, 3, HOOK))


def every_value(bundle: Bundle, words, hook: str = HOOK) -> list[np.ndarray]:
    rows = bundle_rows(bundle, words)
    return [np.asarray(forward(bundle.params, bundle.cfg, jnp.asarray(r[:-1]), taps=(hook,))[1][hook]) for r in rows]


def test_lm_score_is_the_sum_of_every_token_s_loss(bundle, words):
    total, n = 0.0, 0
    for row in bundle_rows(bundle, words):
        logits = np.asarray(forward(bundle.params, bundle.cfg, jnp.asarray(row[:-1]))[0], np.float64)
        top = logits.max(1, keepdims=True)
        log_p = logits - top - np.log(np.exp(logits - top).sum(1, keepdims=True))
        total -= log_p[np.arange(len(row) - 1), row[1:]].sum()
        n += len(row) - 1
    score = evaluate_lm(bundle, words)
    assert score["tokens"] == n == sum(len(text.split()) + 1 for text in words)
    assert score["nats_per_token"] == pytest.approx(total / n, rel=1e-5)
    assert score["bits_per_character"] == pytest.approx(total / np.log(2) / sum(map(len, words)), rel=1e-5)


def test_an_exact_autoencoder_recovers_everything(bundle, words):
    report = evaluate_saes(with_sae(bundle, identity_sae(bundle.cfg.d_mlp)), words)
    sae = report["saes"][HOOK]
    assert sae["recovery_mean"] == pytest.approx(1, abs=1e-4)
    assert sae["recovery_zero"] == pytest.approx(1, abs=1e-4)
    assert sae["variance_explained"] == pytest.approx(1, abs=1e-5)
    assert sae["l0"] == pytest.approx(bundle.cfg.d_mlp, abs=0.01)
    assert sae["dense"] == pytest.approx(sae["features"] - sae["dead"], abs=bundle.cfg.d_mlp)
    assert report["ce_clean"] == pytest.approx(evaluate_lm(bundle, words)["nats_per_token"], rel=1e-6)
    assert report["delta_ce_all_spliced"] == pytest.approx(0, abs=1e-4)


def test_an_autoencoder_that_is_the_mean_recovers_nothing(bundle, words):
    mean = jnp.asarray(np.concatenate(every_value(bundle, words)).mean(0))
    sae = evaluate_saes(with_sae(bundle, constant_sae(mean)), words)["saes"][HOOK]
    assert sae["recovery_mean"] == pytest.approx(0, abs=1e-4)
    assert sae["l0"] == 0
    assert sae["dead"] == sae["features"] == 3
    zero = evaluate_saes(with_sae(bundle, constant_sae(jnp.zeros_like(mean))), words)["saes"][HOOK]
    assert zero["recovery_zero"] == pytest.approx(0, abs=1e-4)
    assert abs(zero["recovery_mean"]) > 1e-3  # ... and zero is not the mean


def test_statistics_leave_bos_out(bundle, words):
    sae = tiny_sae(bundle.cfg)
    report = evaluate_saes(with_sae(bundle, sae), words)["saes"][HOOK]
    x = np.concatenate([values[1:] for values in every_value(bundle, words)])
    active = np.asarray(encode(sae, jnp.asarray(x))) > 0
    assert report["l0"] == pytest.approx(active.sum(1).mean(), rel=1e-3)
    assert report["dead"] == (~active.any(0)).sum()
    out = np.asarray(encode(sae, jnp.asarray(x)) @ sae.weights.W_dec + sae.weights.b_dec)
    assert report["mse"] == pytest.approx(((x - out) ** 2).mean(), rel=1e-4)
    explained = 1 - ((x - out) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
    assert report["variance_explained"] == pytest.approx(explained, rel=1e-4, abs=1e-4)


def test_top_examples_are_the_strongest_with_their_token_marked(bundle, words):
    sae = tiny_sae(bundle.cfg)
    found = top_examples(with_sae(bundle, sae), HOOK, words, [3, 7], n=4)
    rows = bundle_rows(bundle, words)
    for feature in (3, 7):
        acts = [np.asarray(encode(sae, jnp.asarray(v)))[1:, feature] for v in every_value(bundle, words)]
        strongest = sorted((float(a.max(initial=0)) for a in acts), reverse=True)[:4]
        assert [e["activation"] for e in found[feature]] == pytest.approx(strongest, rel=1e-4)
        first = int(np.argmax([a.max(initial=0) for a in acts]))
        token = int(rows[first][1 + int(acts[first].argmax())])
        assert found[feature][0]["token"] == bundle.tokenizer.decode([token])
        assert all(f"«{e['token']}»" in e["text"] for e in found[feature])


def test_bundles_that_cannot_be_evaluated_are_refused(bundle, words):
    with pytest.raises(InputError, match="no SAE"):
        evaluate_saes(bundle, words)
    with pytest.raises(InputError, match="no tokenizer"):
        evaluate_lm(dataclasses.replace(bundle, tokenizer=None), words)
    with pytest.raises(InputError, match="has no SAE 'x'"):
        top_examples(bundle, "x", words, [0])
