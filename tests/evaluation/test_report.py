"""Evaluation against values known beforehand, and against sums done the slow way."""

import dataclasses
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcircuits.bundle import Bundle
from jaxcircuits.config import SAEConfig
from jaxcircuits.errors import InputError
from jaxcircuits.evaluation import BOS, CorpusFile, evaluate, evaluate_lm
from jaxcircuits.evaluation.geometry import geometry, neighbours
from jaxcircuits.model import forward, side_by_side
from jaxcircuits.rows import bundle_rows
from jaxcircuits.sae import SAE, encode, reconstruct
from jaxcircuits.types import SAEWeights
from tests.helpers import tiny_sae
from tests.test_interventions import SAES

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
    return [acts[hook] for _, acts in row_by_row(bundle, words, (hook,))]


def row_by_row(bundle: Bundle, words, taps=()):
    """Logits and activations of each row alone, filled up to the context behind its end, where nothing is seen from."""
    run = jax.jit(lambda row: forward(bundle.params, bundle.cfg, row, taps=taps))
    for row in bundle_rows(bundle, words):
        n = len(row) - 1
        logits, acts = run(np.pad(row[:-1], (0, bundle.cfg.n_ctx - n)))
        yield np.asarray(logits)[:n], {name: np.asarray(value)[:n] for name, value in acts.items()}


def logsumexp_nll(logits, targets) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    log_p = logits - logits.max(1, keepdims=True)
    return -(log_p - np.log(np.exp(log_p).sum(1, keepdims=True)))[np.arange(len(targets)), targets]


def test_lm_score_is_the_sum_of_every_token_s_loss(bundle, words):
    total, n = 0.0, 0
    for row, (logits, _) in zip(bundle_rows(bundle, words), row_by_row(bundle, words), strict=True):
        total += logsumexp_nll(logits, row[1:]).sum()
        n += len(row) - 1
    score = evaluate_lm(bundle, words)
    assert score["tokens"] == n == sum(len(text.split()) + 1 for text in words)
    assert score["nats_per_token"] == pytest.approx(total / n, rel=1e-5)
    assert score["bits_per_character"] == pytest.approx(total / np.log(2) / sum(map(len, words)), rel=1e-5)


def test_an_exact_autoencoder_recovers_everything(bundle, words):
    report = evaluate(with_sae(bundle, identity_sae(bundle.cfg.d_mlp)), words).report
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
    sae = evaluate(with_sae(bundle, constant_sae(mean)), words).report["saes"][HOOK]
    assert sae["recovery_mean"] == pytest.approx(0, abs=1e-4)
    assert sae["l0"] == 0
    assert sae["dead"] == sae["features"] == 3
    zero = evaluate(with_sae(bundle, constant_sae(jnp.zeros_like(mean))), words).report["saes"][HOOK]
    assert zero["recovery_zero"] == pytest.approx(0, abs=1e-4)
    assert abs(zero["recovery_mean"]) > 1e-3  # ... and zero is not the mean


def test_statistics_leave_bos_out(bundle, words):
    sae = tiny_sae(bundle.cfg)
    report = evaluate(with_sae(bundle, sae), words).report["saes"][HOOK]
    x = np.concatenate([values[1:] for values in every_value(bundle, words)])
    active = np.asarray(encode(sae, jnp.asarray(x))) > 0
    assert report["l0"] == pytest.approx(active.sum(1).mean(), rel=1e-3)
    assert report["dead"] == (~active.any(0)).sum()
    out = np.asarray(encode(sae, jnp.asarray(x)) @ sae.weights.W_dec + sae.weights.b_dec)
    assert report["mse"] == pytest.approx(((x - out) ** 2).sum(1).mean(), rel=1e-4)
    explained = 1 - ((x - out) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
    assert report["variance_explained"] == pytest.approx(explained, rel=1e-4, abs=1e-4)


def test_bundles_that_cannot_be_evaluated_are_refused(bundle, words):
    with pytest.raises(InputError, match="no SAE"):
        evaluate(bundle, words)
    with pytest.raises(InputError, match="no tokenizer"):
        evaluate_lm(dataclasses.replace(bundle, tokenizer=None), words)
    with pytest.raises(InputError, match="has no SAE 'x'"):
        evaluate(with_sae(bundle, tiny_sae(bundle.cfg)), words, saes=["x"])
    with pytest.raises(InputError, match="read more than once"):
        evaluate(with_sae(bundle, tiny_sae(bundle.cfg)), iter(words))
    with pytest.raises(InputError, match="one of them"):
        evaluate(with_sae(bundle, tiny_sae(bundle.cfg)))
    for ids, message in (([np.arange(17)], "has 17 tokens"), ([np.array([0, 31])], "outside 0..30")):
        with pytest.raises(InputError, match=message):
            evaluate(with_sae(bundle, tiny_sae(bundle.cfg)), ids=ids)


IN, OUT = BOS(True, True, True), BOS(False, False, False)


@pytest.mark.parametrize(
    ("kind", "bos"), [("relu", IN), ("topk", OUT), ("layer norm", OUT), ("heads", IN), ("skip transcoder", OUT)]
)
def test_every_figure_equals_the_slow_way(bundle, kind, bos):
    """Row by row in numpy, float64, of every kind of autoencoder; ids as they are, with and without BOS."""
    sae = SAES[kind]
    rng = np.random.default_rng(2)
    ids = [rng.integers(1, 31, n).astype(np.int32) for n in (16, 9, 9, 16)]
    for row in ids[:3]:
        row[0] = 0  # the last does not begin with BOS
    found = evaluate(dataclasses.replace(bundle, saes={"a": sae}), ids=ids, bos=bos)
    report = found.report["saes"]["a"]
    hooks = (sae.cfg.hook_name, sae.cfg.hook_written)
    run = jax.jit(lambda row, edits: forward(bundle.params, bundle.cfg, row, taps=hooks, edits=edits))
    x, out, acts, every = [], [], [], []
    clean, spliced, kls = [], [], []
    for row in ids:
        skip = int(row[0] == 0)
        logits, values = run(row, {})
        read, written = (side_by_side(hook, values[hook]) for hook in hooks)
        features, new = encode(sae, read), reconstruct(sae, read)
        first = 0 if bos.statistics else skip
        x, out, acts = [*x, written[first:]], [*out, new[first:]], [*acts, features[first:]]
        every.append(written)
        new = new.at[0].set(new[0] if bos.splice or not skip else written[0])
        again, _ = run(row, {hooks[1]: new.reshape(values[hooks[1]].shape)})
        first = 0 if bos.loss else skip
        clean.append(logsumexp_nll(logits[:-1], row[1:])[first:])
        spliced.append(logsumexp_nll(again[:-1], row[1:])[first:])
        p, q = (np.asarray(jax.nn.log_softmax(which), np.float64) for which in (logits, again))
        kls.append((np.exp(p) * (p - q)).sum(1)[first:])
    x, out, acts = (np.concatenate([np.asarray(part, np.float64) for part in parts]) for parts in (x, out, acts))
    assert found.report["tokens"] == sum(map(len, clean))
    close = partial(pytest.approx, rel=2e-5, abs=1e-6)
    assert found.report["ce_clean"] == close(np.concatenate(clean).mean())
    assert report["ce_spliced"] == close(np.concatenate(spliced).mean())
    assert report["kl_spliced"] == close(np.concatenate(kls).mean(), abs=1e-5)
    assert report["l0"] == close((acts > 0).sum(1).mean())
    assert report["l1"] == close(acts.sum(1).mean())
    assert report["mse"] == close(((x - out) ** 2).sum(1).mean())
    assert report["variance_explained"] == close(1 - ((x - out) ** 2).sum() / ((x - x.mean(0)) ** 2).sum(), abs=1e-5)
    norms = np.linalg.norm(x, axis=1), np.linalg.norm(out, axis=1)
    assert report["cosine"] == close(((x * out).sum(1) / norms[0] / norms[1]).mean())
    assert report["norm_ratio"] == close((norms[1] / norms[0]).mean())
    assert report["reconstruction_bias"] == close((out**2).sum() / (x * out).sum(), rel=1e-4)
    columns = found.features["a"]
    np.testing.assert_allclose(columns["density"], (acts > 0).mean(0))
    np.testing.assert_allclose(columns["max_activation"], acts.max(0), rtol=1e-5)
    active = (acts > 0).any(0)
    mean = acts.sum(0)[active] / (acts > 0).sum(0)[active]
    np.testing.assert_allclose(columns["mean_activation"][active], mean, rtol=1e-5)
    assert np.isnan(columns["mean_activation"][~active]).all() and report["dead"] == (~active).sum()
    assert report["dense"] == ((acts > 0).mean(0) > 0.1).sum()
    assert sum(report["log10_density"]["counts"]) == active.sum()

    @jax.jit
    def run_held(row, vector):
        held = {hooks[1]: lambda value: jnp.broadcast_to(vector, (len(value), len(vector))).reshape(value.shape)}
        return forward(bundle.params, bundle.cfg, row, edits=held)

    mean = np.concatenate(every).mean(0)
    for key, vector in (("ce_zero_ablated", np.zeros_like(mean)), ("ce_mean_ablated", mean)):
        nlls = []
        for row in ids:
            logits, _ = run_held(row, jnp.asarray(vector, jnp.float32))
            nlls.append(logsumexp_nll(logits[:-1], row[1:])[0 if bos.loss else int(row[0] == 0) :])
        assert report[key] == close(np.concatenate(nlls).mean()), key
    ablated = report["ce_zero_ablated"]
    share = (ablated - report["ce_spliced"]) / (ablated - found.report["ce_clean"])
    assert report["recovery_zero"] == pytest.approx(share)


def test_figures_do_not_depend_on_how_a_corpus_is_cut(bundle, words, monkeypatch):
    """Blocks, batches: means, spreads and maxima merge."""
    saes = {"a": tiny_sae(bundle.cfg), "b": tiny_sae(bundle.cfg, "blocks.1.mlp.hook_post", 30)}
    bundle, words = dataclasses.replace(bundle, saes=saes), words[:12]
    whole = evaluate(bundle, words)
    monkeypatch.setattr("jaxcircuits.evaluation.batches.BLOCK", 5)
    monkeypatch.setattr("jaxcircuits.evaluation.batches.FORWARD_TOKENS", 32)
    Path("words.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in words))
    cut = evaluate(bundle, CorpusFile("words.jsonl"))
    for name in saes:
        for key, value in whole.report["saes"][name].items():
            # Shares are quotients of differences of losses that are compared themselves.
            if isinstance(value, float) and "recovery" not in key:
                assert cut.report["saes"][name][key] == pytest.approx(value, rel=1e-5, abs=1e-6), key
        for key, column in whole.features[name].items():
            np.testing.assert_allclose(cut.features[name][key], column, rtol=1e-5, atol=1e-6, err_msg=key)
    assert cut.report["ce_all_spliced"] == pytest.approx(whole.report["ce_all_spliced"], rel=1e-6)
    assert cut.report["texts"] == len(words)


def test_two_autoencoders_of_one_hook_are_not_spliced_together(bundle, words):
    saes = {"a": tiny_sae(bundle.cfg), "b": tiny_sae(bundle.cfg, seed=1)}
    report = evaluate(dataclasses.replace(bundle, saes=saes), words[:4]).report
    assert report["ce_all_spliced"] is None and len(report["saes"]) == 2
    alone = evaluate(dataclasses.replace(bundle, saes=saes), words[:4], saes=["b"]).report
    assert alone["saes"]["b"]["ce_spliced"] == pytest.approx(report["saes"]["b"]["ce_spliced"], rel=1e-6)
    assert alone["ce_all_spliced"] == alone["saes"]["b"]["ce_spliced"]


def test_geometry_is_that_of_the_weights(bundle):
    sae = tiny_sae(bundle.cfg)
    shape, W_enc, W_dec = geometry(sae), np.asarray(sae.weights.W_enc), np.asarray(sae.weights.W_dec)
    unit = W_dec / np.linalg.norm(W_dec, axis=1, keepdims=True)
    cosines = unit @ unit.T - 2 * np.eye(len(unit))
    np.testing.assert_allclose(shape["nearest_cosine"], cosines.max(1), rtol=1e-5)
    np.testing.assert_array_equal(shape["nearest"], cosines.argmax(1))
    own = (W_enc.T * W_dec).sum(1) / np.linalg.norm(W_enc, axis=0) / np.linalg.norm(W_dec, axis=1)
    np.testing.assert_allclose(shape["encoder_decoder_cosine"], own, rtol=1e-4, atol=1e-6)
    order = np.argsort(-cosines[3])[:4]
    assert [f for f, _ in neighbours(sae, 3, 4)] == order.tolist()
    norms = {"encoder_norm": np.linalg.norm(W_enc, axis=0), "decoder_norm": np.linalg.norm(W_dec, axis=1)}
    for name, expected in norms.items():
        np.testing.assert_allclose(shape[name], expected, rtol=1e-5)
    assert np.isnan(geometry(SAES["transcoder"])["encoder_decoder_cosine"]).all()


def test_features_are_compared_a_chunk_at_a_time(bundle, monkeypatch):
    sae = tiny_sae(bundle.cfg, d_sae=30)
    whole = geometry(sae)
    monkeypatch.setattr("jaxcircuits.evaluation.geometry.CHUNK", 7)
    jax.clear_caches()
    cut = geometry(sae)
    np.testing.assert_array_equal(cut["nearest"], whole["nearest"])
    np.testing.assert_allclose(cut["nearest_cosine"], whole["nearest_cosine"], rtol=1e-5)
