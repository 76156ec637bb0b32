"""Every quantity of the notebook against PyTorch and TransformerLens, computed the notebook's way."""

from typing import Any

import numpy as np
import pytest

from jaxcircuits.bundle import Bundle
from jaxcircuits.errors import InputError
from jaxcircuits.study import Study, run_study
from tests.helpers import TOLERANCES, assert_close, random_params, random_tokens, tiny_bundle, tiny_config, tiny_saes
from tests.oracle import (
    TorchSAE,
    oracle_feature_acts,
    oracle_gradients,
    oracle_hook_value,
    splice_hooks,
    transformer_lens_model,
)

NAMES = {
    "prompt", "story", "feature", "feature_act", "decoder_grads", "cosine_sims", "active_source_features",
    "top_neurons", "nudged_act", "prompt_targets", "prompt_sources", "prompt_gradients", "prompt_hook_gradients",
    "story_pairs", "story_gradients", "story_cosines",
}  # fmt: skip


def oracle_study(
    model: Any, bundle: Bundle, prompt: np.ndarray, story: np.ndarray, feature: int
) -> dict[str, np.ndarray]:
    """The notebook in PyTorch: one backward pass a target, of *minus* its activation."""
    import torch

    source, target = bundle.saes.values()
    both, last = [source, target], len(prompt) - 1
    out: dict[str, Any] = {}
    acts = oracle_feature_acts(model, prompt, target, spliced=both)
    source_acts = oracle_feature_acts(model, prompt, source)
    out["feature_act"] = acts[last, feature]
    (at_hook,) = -oracle_gradients(model, prompt, source, target, [(last, feature)], "both")
    W_dec = np.asarray(source.weights.W_dec)
    out["decoder_grads"] = W_dec @ at_hook[last]
    out["active_source_features"] = np.flatnonzero(source_acts[last] > 0.1)
    neurons = oracle_hook_value(model, prompt, source.cfg.hook_name)[last]
    out["top_neurons"] = np.argsort(-neurons, kind="stable")[:10]

    seen: list[float] = []
    neuron = int(neurons.argmax())

    def nudge(value, hook):
        value = value.clone()
        value[0, last, neuron] -= 0.05 * torch.tensor(at_hook[last, neuron])
        return value

    spliced = [TorchSAE(sae) for sae in both]
    read = lambda value, hook: seen.append(float(spliced[1].encode(value[0, last])[feature]))  # noqa: E731
    hooks = [(source.cfg.hook_name, nudge), (target.cfg.hook_name, read), *splice_hooks(spliced)]
    model.run_with_hooks(torch.tensor(prompt, dtype=torch.long)[None], return_type=None, fwd_hooks=hooks)
    out["nudged_act"] = np.float32(seen[0])

    out["prompt_targets"] = np.argwhere(acts > 2)
    out["prompt_sources"] = np.argwhere(source_acts > 1)
    every = -oracle_gradients(model, prompt, source, target, out["prompt_targets"], "both")
    out["prompt_hook_gradients"] = every
    out["prompt_gradients"] = np.array(
        [
            [g[t] @ W_dec[s] if t <= p else 0 for t, s in out["prompt_sources"]]
            for g, (p, _) in zip(every, out["prompt_targets"], strict=True)
        ],
        np.float32,
    )

    writes = spliced[0].W_dec @ model.blocks[0].mlp.W_out
    reads = model.blocks[1].mlp.W_in @ spliced[1].W_enc
    cosines = torch.nn.functional.normalize(writes, dim=1) @ torch.nn.functional.normalize(reads, dim=0)
    out["cosine_sims"] = cosines[:, feature].numpy()

    acts, source_acts = oracle_feature_acts(model, story, target), oracle_feature_acts(model, story, source)
    targets = np.argwhere((acts > 1) & (np.arange(len(story))[:, None] > 0))
    every = -oracle_gradients(model, story, source, target, targets)
    pairs = [(p, f, s) for p, f in targets for s in np.flatnonzero(source_acts[p] > 1)]
    at = {(p, f): g[p] for (p, f), g in zip(targets.tolist(), every, strict=True)}
    out["story_pairs"] = np.array(pairs).reshape(-1, 3)
    out["story_gradients"] = np.array([at[p, f] @ W_dec[s] for p, f, s in pairs], np.float32)
    out["story_cosines"] = np.array([cosines[s, f] for _, f, s in pairs], np.float32)
    return out


def assert_same_study(study: Study, expected: dict[str, np.ndarray]) -> None:
    """Indices equal; values within the tolerance, gradients over one target's values."""
    for name, value in expected.items():
        mine = study.arrays[name]
        if np.asarray(value).dtype.kind in "iu":
            np.testing.assert_array_equal(mine, value, name)
        elif name in ("prompt_gradients", "prompt_hook_gradients"):
            for i in range(len(value)):
                assert_close(mine[i], value[i], "oracle", f"{name} of target {i}")
        else:
            assert_close(mine, value, "oracle", name)


def wide_bundle(**overrides: Any) -> Bundle:
    """A random bundle whose SAEs have activations on both sides of the notebook's thresholds."""
    cfg = tiny_config(d_mlp=40, **overrides)
    saes = tiny_saes(cfg, d_sae=60)
    louder = {
        name: type(sae)(sae.weights._replace(W_enc=3 * sae.weights.W_enc, W_dec=0.4 * sae.weights.W_dec), sae.cfg)
        for name, sae in saes.items()
    }
    return tiny_bundle(cfg, saes=louder)


@pytest.mark.torch
@pytest.mark.parametrize("model", [{}, {"attention": ("local", "global"), "n_heads": 2, "d_head": 6, "window": 3}])
def test_every_quantity_agrees_with_the_notebook(model: dict[str, Any]) -> None:
    bundle = wide_bundle(**model)
    prompt, story = (np.asarray(random_tokens(bundle.cfg, n, seed=n)) for n in (9, 16))
    study = run_study(bundle, prompt, story)
    assert set(study.arrays) == NAMES
    assert len(study.arrays["prompt_targets"]) > 5
    assert len(study.arrays["story_pairs"]) > 50
    theirs = transformer_lens_model(bundle.cfg, random_params(bundle.cfg))
    assert_same_study(study, oracle_study(theirs, bundle, prompt, story, int(study.arrays["feature"])))


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
