"""Who can influence whom: nothing reaches back in time, nothing reaches past a local layer's window."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcircuits.model import forward, hook_names
from jaxcircuits.model.transformer import causal_mask
from tests.helpers import assert_close, random_params, random_tokens, tiny_config

CFG = tiny_config()


def _influence(cfg, source: str, target: str, pos: int) -> np.ndarray:
    """`[target pos, source pos]`: the largest derivative between the two hooks' values."""
    params, tokens = random_params(cfg, 6), random_tokens(cfg, pos, seed=6)
    _, acts = forward(params, cfg, tokens, taps=[source], logits_at=None)

    def run(value):
        return forward(params, cfg, tokens, taps=[target], edits={source: value}, logits_at=None)[1][target]

    jacobian = jax.jacrev(run)(acts[source])
    jacobian = np.abs(np.asarray(jacobian)).reshape(pos, -1, pos, acts[source][0].size)
    return jacobian.max((1, 3))


def _reach(pos: int, window: int) -> np.ndarray:
    """Written out anew: which sources a target may see."""
    return np.array([[0 <= p - t < window for t in range(pos)] for p in range(pos)])


@pytest.mark.parametrize("window", [1, 2, 4, 15, 16, 300])
def test_adjacent_local_layer(window: int) -> None:
    """From one MLP to the next: exactly the window, itself included."""
    cfg = tiny_config(attention=("global", "local"), window=window)
    influence = _influence(cfg, "blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post", 16)
    np.testing.assert_array_equal(influence > 0, _reach(16, window))


def test_adjacent_global_layer() -> None:
    cfg = tiny_config(attention=("local", "global"), window=2)
    influence = _influence(cfg, "blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post", 16)
    np.testing.assert_array_equal(influence > 0, _reach(16, 16))


def test_reach_adds_up_over_local_layers() -> None:
    cfg = tiny_config(attention=("local", "local", "local"), window=3)
    influence = _influence(cfg, "blocks.0.mlp.hook_post", "blocks.2.mlp.hook_post", 12)
    np.testing.assert_array_equal(influence > 0, _reach(12, 5))
    influence = _influence(cfg, "hook_embed", "blocks.2.mlp.hook_post", 12)
    np.testing.assert_array_equal(influence > 0, _reach(12, 7))


@pytest.mark.parametrize("source", ["blocks.0.hook_resid_mid", "blocks.1.attn.hook_z", "blocks.1.ln2.hook_scale"])
def test_within_one_block_after_attention_a_position_sees_itself(source: str) -> None:
    target = "blocks.0.hook_resid_post" if source.startswith("blocks.0") else "blocks.1.hook_resid_post"
    np.testing.assert_array_equal(_influence(CFG, source, target, 9) > 0, np.eye(9, dtype=bool))


@pytest.mark.parametrize("name", hook_names(CFG))
@pytest.mark.parametrize("t", [0, 5, 8])
def test_an_edit_at_a_position_changes_nothing_before_it(name: str, t: int) -> None:
    params, tokens = random_params(CFG, 7), random_tokens(CFG, 9, seed=7)
    logits, acts = forward(params, CFG, tokens, taps=[name])
    position = (slice(None), t) if name.endswith(("hook_attn_scores", "hook_pattern")) else (t,)
    noise = jnp.asarray(np.random.default_rng(t).uniform(0.5, 1.0, acts[name][position].shape), jnp.float32)
    edited, _ = forward(params, CFG, tokens, edits={name: lambda value: value.at[position].add(noise)})
    assert logits is not None and edited is not None
    assert_close(edited[:t], logits[:t], "exact", "earlier positions")
    if not (t == 0 and name.endswith(("hook_q", "hook_attn_scores"))):  # one key alone has weight 1
        assert float(abs(edited[t:] - logits[t:]).max()) > 1e-4


@pytest.mark.parametrize("window", [None, 1, 2, 4, 15, 16, 300])
def test_mask_edges(window: int | None) -> None:
    mask = causal_mask(jnp.arange(16), jnp.arange(16), window)
    np.testing.assert_array_equal(mask, _reach(16, window or 16))
    np.testing.assert_array_equal(mask.sum(1), np.minimum(np.arange(1, 17), window or 16))


@pytest.mark.parametrize("window", [1, 2, 4, 15, 16, 300])
def test_pattern_edges(window: int) -> None:
    """A local query's pattern covers its window, sums to one, and scores outside are minus infinity."""
    cfg = tiny_config(attention=("local",), window=window)
    names = ["blocks.0.attn.hook_attn_scores", "blocks.0.attn.hook_pattern"]
    _, acts = forward(random_params(cfg, 8), cfg, random_tokens(cfg, 16), taps=names, logits_at=None)
    seen = np.broadcast_to(_reach(16, window), (cfg.n_heads, 16, 16))
    np.testing.assert_array_equal(np.asarray(acts[names[1]]) > 0, seen)
    np.testing.assert_array_equal(np.isneginf(acts[names[0]]), ~seen)
    np.testing.assert_allclose(acts[names[1]].sum(-1), 1, rtol=1e-6)


def test_padding_at_the_end_changes_nothing_before_it() -> None:
    params, tokens = random_params(CFG, 9), random_tokens(CFG, 2, 7, seed=9)
    padded = jnp.pad(tokens, ((0, 0), (0, 9)), constant_values=3)
    taps = [
        f"blocks.{layer}.{name}" for layer in (0, 1) for name in ("attn.hook_z", "mlp.hook_post", "hook_resid_post")
    ]
    logits, acts = forward(params, CFG, tokens, taps=taps)
    padded_logits, padded_acts = forward(params, CFG, padded, taps=taps)
    assert logits is not None and padded_logits is not None
    assert_close(padded_logits[:, :7], logits, "methods", "logits")
    for tap in taps:
        assert_close(padded_acts[tap][:, :7], acts[tap], "methods", tap)
