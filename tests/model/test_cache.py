"""Passes that go on behind a cache, against one pass over everything."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcircuits.errors import InputError
from jaxcircuits.model import empty_cache, forward, forward_cached, hook_names
from tests.helpers import assert_close, gemma_config, neox_config, random_params, random_tokens, tiny_config

CFG = tiny_config(n_layers=3)
NEOX = neox_config()
ROTARY = neox_config(parallel_residual=False, rotary_dim=4, attention=("local", "global"))


@pytest.mark.parametrize(
    ("cfg", "parts"),
    [
        (CFG, (1,) * 16),
        (CFG, (5, 1, 1, 9)),
        (CFG, (16,)),
        (NEOX, (5, 1, 1, 9)),
        (gemma_config(), (5, 1, 1, 9)),
        pytest.param(ROTARY, (1, 6, 9), marks=pytest.mark.slow),
    ],
    ids=["token by token", "parts", "at once", "rotary, parallel", "Gemma 2", "rotary, local"],
)
def test_logits_and_activations_equal_those_of_one_pass(cfg, parts, x64):
    """In float64; behind a window of 4 keys, with room left over, for a batch."""
    per_token = [name for name in hook_names(cfg) if not name.endswith(("scores", "pattern"))]
    params, tokens = random_params(cfg, 1, jnp.float64), random_tokens(cfg, 2, 16)
    cache = empty_cache(cfg, (2,), 16, jnp.float64)
    step = jax.jit(lambda new, cache: forward_cached(params, cfg, new, cache, taps=per_token))
    found, start = [], 0
    for part in parts:
        logits, acts, cache = step(tokens[:, start : start + part], cache)
        found.append({"logits": logits, **acts})
        start += part
    logits, acts = forward(params, cfg, tokens, taps=per_token)
    for name, expected in {"logits": logits, **acts}.items():
        # A cached pass hands on all keys and values; the tap sees the new ones.
        assert_close(jnp.concatenate([f[name] for f in found], 1), expected, "methods", name)
    assert int(cache.length) == 16


@pytest.mark.parametrize(
    ("cfg", "key"),
    [(CFG, "hook_k"), pytest.param(NEOX, "hook_k", marks=pytest.mark.slow), (NEOX, "hook_rot_k")],
    ids=["learned", "rotary", "rotary, once turned"],
)
def test_edits_reach_the_keys_that_later_passes_see(cfg, key):
    params, tokens = random_params(cfg, 1), random_tokens(cfg, 12)
    edits = {f"blocks.0.attn.{key}": lambda k: 1.5 * k + 0.1, "blocks.1.mlp.hook_post": lambda x: x + 0.1}
    expected, _ = forward(params, cfg, tokens, edits=edits)
    cache, rows = empty_cache(cfg, (), 14), []
    for part in (tokens[:7], tokens[7:8], tokens[8:]):
        logits, _, cache = forward_cached(params, cfg, part, cache, edits=edits)
        rows.append(logits)
    assert_close(jnp.concatenate(rows), expected, "methods")


def test_what_lies_behind_the_filled_part_is_never_seen():
    """Padding of an earlier pass stays in the cache until it is written over."""
    params, tokens = random_params(CFG, 1), random_tokens(CFG, 9)
    padded = jnp.concatenate([tokens[:5], jnp.full(3, 7, jnp.int32)])
    _, _, cache = forward_cached(params, CFG, padded, empty_cache(CFG, (), 12))
    logits, _, _ = forward_cached(params, CFG, tokens[5:], cache._replace(length=jnp.int32(5)))
    assert_close(logits, np.asarray(forward(params, CFG, tokens)[0])[5:], "methods")


def test_a_cache_longer_than_the_context_is_refused():
    with pytest.raises(InputError, match="context holds 16 tokens, got 17"):
        empty_cache(CFG, (), 17)
