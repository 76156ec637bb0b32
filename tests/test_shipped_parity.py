"""The weights that ship, against PyTorch and TransformerLens run live on the same stored values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcircuits import load_bundle, read_corpus
from jaxcircuits.attribution import Engine, Settings
from jaxcircuits.bundle import shipped_bundle
from jaxcircuits.model import forward, hook_names
from jaxcircuits.sae import encode, reconstruct
from tests.attribution.cases import assert_same_edges
from tests.helpers import assert_close
from tests.oracle import TorchSAE, oracle_cache, oracle_feature_acts, oracle_gradients, transformer_lens_model

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def bundle():
    return load_bundle()


@pytest.fixture(scope="module")
def story(bundle) -> np.ndarray:
    return bundle.tokenize(next(iter(read_corpus(shipped_bundle() / "stories.txt"))))


@pytest.fixture(scope="module")
def model(bundle):
    return transformer_lens_model(bundle.cfg, load_bundle(processed=False).params)


def test_logits_and_every_activation(bundle, story, model) -> None:
    logits, acts = forward(bundle.params, bundle.cfg, jnp.asarray(story), taps=hook_names(bundle.cfg))
    assert logits is not None
    expected, cache = oracle_cache(model, story)
    assert_close(logits, expected, "oracle", "logits")
    assert_close(jax.nn.log_softmax(logits), jax.nn.log_softmax(expected), "oracle", "log-probabilities")
    for name, value in acts.items():
        assert_close(value, cache[name], "oracle", name)


def test_autoencoders(bundle, story, model) -> None:
    import torch

    _, cache = oracle_cache(model, story)
    for sae in bundle.saes.values():
        x, theirs = cache[sae.cfg.hook_name], TorchSAE(sae)
        assert_close(encode(sae, jnp.asarray(x)), theirs.encode(torch.tensor(x)), "sae", "feature activations")
        assert_close(reconstruct(sae, jnp.asarray(x)), theirs.reconstruct(torch.tensor(x)), "sae", "reconstruction")


@pytest.mark.parametrize("splice", ["none", "source"])
@pytest.mark.parametrize("method", ["reference", "structured"])
def test_edges(method: str, splice: str, bundle, story, model) -> None:
    """Every edge into the twenty strongest targets, from every position."""
    source, target = bundle.saes.values()
    spliced = [source] if splice == "source" else []
    acts = oracle_feature_acts(model, story, target, spliced=spliced)
    acts[0] = 0
    strongest = np.argsort(-acts, axis=None)[:20]
    targets = sorted(zip(*(i.tolist() for i in np.unravel_index(strongest, acts.shape)), strict=True))
    edges, _ = Engine(bundle, Settings(method=method, splice=splice, positions="all")).run([(0, story)], targets)
    assert len(edges["prompt"]) > 1000
    at_hook = oracle_gradients(model, story, source, target, targets, splice)
    source_acts = oracle_feature_acts(model, story, source)
    W_dec = np.asarray(source.weights.W_dec)
    rank = {t: i for i, t in enumerate(targets)}
    row = [rank[t] for t in zip(edges["target_pos"].tolist(), edges["target_feature"].tolist(), strict=True)]
    expected = dict(edges)
    at = (edges["source_pos"], edges["source_feature"])
    expected["gradient"] = np.einsum("ed,ed->e", at_hook[row, at[0]], W_dec[at[1]])
    expected["source_act"] = source_acts[at]
    expected["attribution"] = expected["gradient"] * expected["source_act"]
    assert_same_edges(edges, expected, "oracle", ("gradient", "attribution", "source_act"))
