"""Random weights of the original's size against PyTorch and TransformerLens: everything that tiny ones are compared in.

Takes about 7 GB, so its tests share one process.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcircuits.attribution import Engine, Settings
from jaxcircuits.bundle import Bundle
from jaxcircuits.sae import SAE, encode, reconstruct
from jaxcircuits.study import run_study
from tests.attribution.cases import assert_same_edges
from tests.helpers import assert_close, random_params, random_tokens, tiny_bundle, tiny_config, tiny_sae
from tests.model.test_parity import compare
from tests.oracle import TorchSAE, assert_same_weights, oracle_cache, transformer_lens_model

pytestmark = [pytest.mark.slow, pytest.mark.torch, pytest.mark.xdist_group("full size")]

CFG = tiny_config(
    d_model=1024, n_heads=16, d_head=64, d_mlp=4096, d_vocab=50257, n_ctx=2048, window=256, bos_token_id=50256
)
D_SAE = 16384


def _sae(layer: int) -> SAE:
    """Few of so many features are on, as in a trained one."""
    sae = tiny_sae(CFG, f"blocks.{layer}.mlp.hook_post", D_SAE, seed=layer)
    weights = sae.weights._replace(
        W_enc=6 * sae.weights.W_enc, b_enc=sae.weights.b_enc - 15.0, W_dec=0.2 * sae.weights.W_dec
    )
    return SAE(weights, sae.cfg)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return tiny_bundle(CFG, saes={f"layer {layer}": _sae(layer) for layer in range(2)}, tokenizer=False)


@pytest.fixture(scope="module")
def model() -> Any:
    return transformer_lens_model(CFG, random_params(CFG))


def test_processed_weights(bundle: Bundle, model: Any) -> None:
    assert_same_weights(bundle.params, model, random_params(CFG), CFG)


def test_logits_and_every_activation(bundle: Bundle, model: Any) -> None:
    """Longer than the local layer's window."""
    compare(bundle.params, CFG, random_tokens(CFG, 1, 280, seed=3), model)


def test_autoencoders(bundle: Bundle, model: Any) -> None:
    import torch

    _, cache = oracle_cache(model, random_tokens(CFG, 24, seed=24))
    for sae in bundle.saes.values():
        x, theirs = cache[sae.cfg.hook_name], TorchSAE(sae)
        acts = encode(sae, jnp.asarray(x))
        assert 3 < float((acts > 0).sum(-1).mean()) < 300
        assert_close(acts, theirs.encode(torch.tensor(x)), "sae", "feature activations")
        assert_close(reconstruct(sae, jnp.asarray(x)), theirs.reconstruct(torch.tensor(x)), "sae", "reconstruction")


def test_structured_is_the_study_s_reference(bundle: Bundle) -> None:
    """The study takes the definition's gradients; that they are PyTorch's is tested in `validation`."""
    prompt, story = (np.asarray(random_tokens(CFG, n, seed=n)) for n in (10, 24))
    study = run_study(bundle, prompt, story)
    assert 500 < len(study.arrays["story_pairs"]) < 100_000
    settings = {"source_threshold": 1.0, "target_threshold": 1.0}
    ours, reference = (
        Engine(bundle, Settings(**settings, method=m)).run([(0, story)])[0] for m in ("structured", "reference")
    )
    assert_same_edges(ours, reference, "methods")
    assert_close(-reference["gradient"], study.arrays["story_gradients"], "exact", "the study's")
