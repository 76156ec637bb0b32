"""The notebook: what its quantities are. That they agree with PyTorch's is tested in `validation`."""

from typing import Any

import numpy as np
import pytest

from jaxcircuits.bundle import Bundle
from jaxcircuits.errors import InputError
from jaxcircuits.study import run_study
from tests.helpers import TOLERANCES, loud_saes, random_tokens, tiny_bundle, tiny_config

NAMES = {
    "prompt", "story", "feature", "feature_act", "decoder_grads", "cosine_sims", "active_source_features",
    "top_neurons", "nudged_act", "prompt_targets", "prompt_sources", "prompt_gradients", "prompt_hook_gradients",
    "story_pairs", "story_gradients", "story_cosines",
}  # fmt: skip


def wide_bundle(**overrides: Any) -> Bundle:
    """A random bundle whose SAEs have activations on both sides of the notebook's thresholds."""
    cfg = tiny_config(d_mlp=40, **overrides)
    return tiny_bundle(cfg, saes=loud_saes(cfg))


def test_the_nudge_raises_the_activation_by_what_the_derivative_says() -> None:
    bundle = wide_bundle()
    prompt, story = (np.asarray(random_tokens(bundle.cfg, n, seed=n)) for n in (9, 16))
    study = run_study(bundle, prompt, story)
    # Through the source SAE, so the rise is not exactly 0.05 times the squared derivative; but it is one.
    assert study.facts["nudged_act"] != study.facts["feature_act"]
    assert abs(study.facts["nudged_act"] - study.facts["feature_act"]) < 0.2 * study.facts["feature_act"]


def test_agreement_is_reported_in_the_derivatives_own_sign() -> None:
    from scipy.stats import spearmanr

    bundle = wide_bundle()
    prompt, story = (np.asarray(random_tokens(bundle.cfg, n, seed=n)) for n in (9, 16))
    study = run_study(bundle, prompt, story)
    a = study.arrays
    assert set(a) == NAMES
    found = study.agreements["story pairs"]
    assert found.pairs == len(a["story_pairs"])
    assert found.spearman.value == pytest.approx(
        spearmanr(a["story_cosines"], -a["story_gradients"]).statistic, abs=1e-12
    )
    same = np.sign(a["cosine_sims"]) == np.sign(-a["decoder_grads"])
    assert study.agreements["all source features"].sign_agreement.value == pytest.approx(same.mean(), abs=1e-12)
    assert found.spearman.low <= found.spearman.value <= found.spearman.high


def test_later_sources_have_no_gradient() -> None:
    bundle = wide_bundle()
    prompt, story = (np.asarray(random_tokens(bundle.cfg, n, seed=n)) for n in (9, 16))
    a = run_study(bundle, prompt, story).arrays
    later = a["prompt_sources"][None, :, 0] > a["prompt_targets"][:, None, 0]
    assert later.any()
    assert not a["prompt_gradients"][later].any()


def test_nothing_active_gives_empty_arrays() -> None:
    bundle = tiny_bundle()  # its activations stay below 2
    prompt = np.asarray(random_tokens(bundle.cfg, 3))
    quiet = {n: type(s)(s.weights._replace(b_enc=s.weights.b_enc - 50), s.cfg) for n, s in bundle.saes.items()}
    a = run_study(tiny_bundle(saes=quiet), prompt, prompt).arrays
    assert a["prompt_gradients"].shape == (0, 0)
    assert a["prompt_hook_gradients"].shape == (0, 3, 20)
    assert a["story_pairs"].shape == (0, 3)


def test_what_it_needs_is_said() -> None:
    cfg = tiny_config(n_layers=3)
    bundle = tiny_bundle(cfg)
    tokens = np.asarray(random_tokens(cfg, 5))
    with pytest.raises(InputError, match="adjacent layers"):
        run_study(bundle, tokens, tokens)
    with pytest.raises(InputError, match="features 0..25"):
        run_study(bundle, tokens, tokens, feature=26, source="blocks.0.mlp.hook_post", target="blocks.1.mlp.hook_post")


def test_tolerances_are_the_contracts() -> None:
    assert TOLERANCES["oracle"]["float32"] == 2e-5
    assert TOLERANCES["methods"] == {"float32": 1e-5, "float64": 1e-10}
