"""Single features against what whole passes and the weights say."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcircuits.errors import InputError
from jaxcircuits.evaluation import BOS, describe_features, token_losses
from jaxcircuits.evaluation.histogram import Histogram
from jaxcircuits.evaluation.logits import logit_effects
from jaxcircuits.model import forward
from jaxcircuits.report.features import bar_line, feature_text, highlighted
from jaxcircuits.rows import bundle_rows
from jaxcircuits.sae import encode
from tests.evaluation.test_report import HOOK, every_value, with_sae
from tests.helpers import assert_close, tiny_bundle, tiny_config, tiny_sae


def test_examples_density_and_histogram_are_the_text_s(bundle, words):
    sae = tiny_sae(bundle.cfg)
    bundle = with_sae(bundle, sae)
    rows = bundle_rows(bundle, words)
    every = [np.asarray(encode(sae, jnp.asarray(v))) for v in every_value(bundle, words)]
    for feature, found in zip((3, 7), describe_features(bundle, HOOK, [3, 7], words, n=4, context=3), strict=True):
        acts = [np.concatenate([[0], a[1:, feature]]) for a in every]  # BOS left out
        tokens = np.concatenate([a[1:] for a in acts])
        assert found.density == pytest.approx((tokens > 0).mean())
        assert found.mean_activation == pytest.approx(tokens[tokens > 0].mean(), rel=1e-5)
        assert found.max_activation == pytest.approx(tokens.max(), rel=1e-5)
        edges, counts = np.array(found.histogram["edges"]), np.array(found.histogram["counts"])
        assert counts.sum() == (tokens > 0).sum()
        expected = np.histogram(tokens[tokens > 0], edges)[0]
        assert np.abs(np.cumsum(counts) - np.cumsum(expected)).max() <= 1  # one on an edge may fall to either side
        strongest = sorted((float(a.max()) for a in acts), reverse=True)[:4]
        assert [e.activation for e in found.examples] == pytest.approx(strongest, rel=1e-4)
        first = int(np.argmax([a.max() for a in acts]))
        at, example = int(acts[first].argmax()), found.examples[0]
        window = slice(max(0, at - 3), at + 4)
        assert example.at == at - window.start
        assert example.tokens == bundle.token_strings(rows[first][:-1][window])
        assert example.activations == pytest.approx(acts[first][window].tolist(), rel=1e-4, abs=1e-6)
    (with_bos,) = describe_features(bundle, HOOK, [3], words, bos=BOS(statistics=True))
    assert with_bos.density == pytest.approx(np.mean(np.concatenate(every)[:, 3] > 0))


def test_histograms_of_numbers_that_grow():
    rng = np.random.default_rng(0)
    histogram, values = Histogram(bins=8), np.exp(3 * rng.standard_normal(500))
    for part in np.split(np.sort(values), [3, 40, 300]):
        histogram.add(part)
    histogram.add(np.zeros(0))
    assert values.max() <= histogram.top < 2 * values.max()
    np.testing.assert_array_equal(histogram.counts, np.histogram(values, histogram.edges)[0])


@pytest.mark.parametrize("processed", [True, False])
@pytest.mark.parametrize("hook", ["mlp.hook_post", "attn.hook_z", "hook_resid_mid", "hook_mlp_out"])
def test_logit_effects_are_differences_of_logits_with_the_scale_held(hook, processed, x64):
    """In the last layer, where the straight way is the only one but for an MLP behind attention: that is held too."""
    bundle = tiny_bundle(tiny_config(), dtype=jnp.float64, processed=processed, saes={})
    name, mlp = f"blocks.1.{hook}", "blocks.1.mlp.hook_post"
    sae = tiny_sae(bundle.cfg, name, dtype=jnp.float64)
    tokens = jnp.asarray([0, 4, 9])
    logits, acts = forward(bundle.params, bundle.cfg, tokens, taps=(mlp, "ln_final.hook_scale"))
    direction = sae.weights.W_dec[5]
    held = {} if hook in ("mlp.hook_post", "hook_mlp_out") else {mlp: acts[mlp]}
    edits = held | {"ln_final.hook_scale": acts["ln_final.hook_scale"]}
    edits |= {name: lambda value: value + direction.reshape(value.shape[1:])}
    moved, _ = forward(bundle.params, bundle.cfg, tokens, edits=edits)
    expected = np.asarray((moved - logits) * acts["ln_final.hook_scale"])
    expected = expected - expected.mean(-1, keepdims=True)
    found = logit_effects(bundle, sae, 5)
    assert found is not None and found[0].startswith("W_dec") and found[0].endswith("W_U")
    for row in expected:
        assert_close(found[1], row, "methods")


def test_where_no_straight_way_leads_there_is_none(bundle):
    for hook in ("blocks.0.mlp.hook_pre", "blocks.0.ln2.hook_normalized", "blocks.1.attn.hook_q"):
        assert logit_effects(bundle, tiny_sae(bundle.cfg, hook), 1) is None


def test_text_for_people(bundle, words):
    bundle = with_sae(bundle, tiny_sae(bundle.cfg))
    (found,) = describe_features(bundle, HOOK, [3], words, n=2)
    plain = feature_text(found, colours=False).plain
    example = found.examples[0]
    assert f"«{example.tokens[example.at]}»" in plain
    assert f"active on {found.density:.4%}" in plain and "promotes" in plain and "neighbours" in plain
    coloured = highlighted(example, found.max_activation, colours=True)
    assert "«" not in coloured.plain
    styles = {str(span.style) for span in coloured.spans}
    assert "black on rgb(213,94,0)" in styles  # the strongest token of all
    assert bar_line([0, 1, 10, 100]) == " ▂▅█"
    off = dataclasses.replace(found, examples=[], density=0.0, mean_activation=None, path=None)
    assert "never active" in feature_text(off, colours=False).plain


def test_unknown_features_and_saes_are_refused(bundle, words):
    bundle = with_sae(bundle, tiny_sae(bundle.cfg))
    with pytest.raises(InputError, match=r"has features 0\.\.23, got 24"):
        describe_features(bundle, HOOK, [24], words)
    with pytest.raises(InputError, match="has no SAE 'x'"):
        describe_features(bundle, "x", [1], words)
    with pytest.raises(InputError, match="at least two tokens"):
        token_losses(bundle, np.array([0], np.int32))


def test_losses_of_each_token(bundle):
    saes = {"a": tiny_sae(bundle.cfg), "b": tiny_sae(bundle.cfg, "blocks.1.mlp.hook_post")}
    bundle = dataclasses.replace(bundle, saes=saes)
    found = token_losses(bundle, "w4 w9 w2 w30 w7")
    assert found.strings == ["<|endoftext|>", "w4", "w9", "w2", "w30", "w7"]
    from jaxcircuits.interventions import splice_edits

    ways = {
        "original": {},
        "reconstructed a": splice_edits([saes["a"]]),
        "ablated b": {"blocks.1.mlp.hook_post": jnp.zeros_like},
        "all reconstructed": splice_edits(saes.values()),
    }
    assert set(ways) < set(found.losses) and len(found.losses) == 6
    for name, edits in ways.items():
        logits, _ = forward(bundle.params, bundle.cfg, jnp.asarray(found.tokens), edits=edits)
        expected = -jax.nn.log_softmax(logits)[jnp.arange(5), found.tokens[1:]]
        assert_close(found.losses[name], expected, "methods", name)
    assert found.to_json()["losses"]["original"][0] is None
