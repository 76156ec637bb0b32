"""Weight processing: other weights, the same function."""

import jax
import jax.numpy as jnp
import pytest

from jaxcircuits.config import PROCESSING_STEPS, ModelConfig
from jaxcircuits.model import forward, process_weights
from tests.helpers import assert_close, neox_config, random_params, random_tokens, tiny_config

SEQUENCES = [
    *[PROCESSING_STEPS[:n] for n in range(1, 5)],
    *[(step,) for step in PROCESSING_STEPS[1:]],
    PROCESSING_STEPS * 2,
]


@pytest.mark.parametrize("steps", SEQUENCES, ids=lambda steps: "+".join(steps) if len(steps) < 5 else "twice")
@pytest.mark.parametrize(
    "cfg",
    [tiny_config(), tiny_config(attention=("local", "global", "local")), neox_config()],
    ids=["global-local", "local-global-local", "rotary, parallel"],
)
def test_log_probs_and_hook_post_are_unchanged(steps: tuple[str, ...], cfg: ModelConfig, x64: None) -> None:
    params = random_params(cfg, 1, jnp.float64)
    tokens = random_tokens(cfg, 2, 16)
    taps = [f"blocks.{layer}.mlp.hook_post" for layer in range(cfg.n_layers)]
    before, before_acts = forward(params, cfg, tokens, taps=taps)
    after, after_acts = forward(process_weights(params, steps), cfg, tokens, taps=taps)
    assert before is not None and after is not None
    assert_close(jax.nn.log_softmax(after), jax.nn.log_softmax(before), "methods", "log-probabilities")
    for tap in taps:
        assert_close(after_acts[tap], before_acts[tap], "methods", tap)


def test_no_steps_leave_the_weights_alone() -> None:
    params = random_params(tiny_config())
    assert process_weights(params, ()) is params


def test_processing_twice_is_processing_once(x64: None) -> None:
    params = random_params(tiny_config(), 2, jnp.float64)
    once = process_weights(params, PROCESSING_STEPS)
    twice = process_weights(once, PROCESSING_STEPS)
    assert jax.tree.structure(once) == jax.tree.structure(twice)
    for (path, a), b in zip(jax.tree.leaves_with_path(twice), jax.tree.leaves(once), strict=True):
        assert_close(a, b, "methods", jax.tree_util.keystr(path))


def test_what_each_step_promises(x64: None) -> None:
    """Directions that a norm or a softmax ignores are gone, and what was folded away is gone."""
    params = process_weights(random_params(tiny_config(), 3, jnp.float64), PROCESSING_STEPS)
    assert params.ln_final is None
    for block in params.blocks:
        assert block.ln1 is None and block.ln2 is None
        assert not block.attn.b_V.any()
        for W in (block.attn.W_Q, block.attn.W_K, block.attn.W_V):
            assert abs(W.sum(1)).max() < 1e-13
        assert abs(block.mlp.W_in.sum(0)).max() < 1e-13
        for W in (block.attn.W_O, block.mlp.W_out):
            assert abs(W.sum(-1)).max() < 1e-13
    assert abs(params.W_E.sum(-1)).max() < 1e-13
    assert abs(params.W_U.sum(-1)).max() < 1e-13 and abs(params.W_U.sum(0)).max() < 1e-13
    assert abs(params.b_U.sum()) < 1e-13
