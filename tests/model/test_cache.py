"""Passes that go on behind a cache, against one pass over everything."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcircuits.errors import InputError
from jaxcircuits.model import empty_cache, forward, forward_cached, hook_names
from tests.helpers import assert_close, random_params, random_tokens, tiny_config

CFG = tiny_config(n_layers=3)
PER_TOKEN = [name for name in hook_names(CFG) if not name.endswith(("scores", "pattern"))]


@pytest.mark.parametrize("parts", [(1,) * 16, (5, 1, 1, 9), (16,)])
def test_logits_and_activations_equal_those_of_one_pass(parts, x64):
    """In float64; behind a window of 4 keys, with room left over, for a batch."""
    params, tokens = random_params(CFG, 1, jnp.float64), random_tokens(CFG, 2, 16)
    cache = empty_cache(CFG, (2,), 16, jnp.float64)
    step = jax.jit(lambda new, cache: forward_cached(params, CFG, new, cache, taps=PER_TOKEN))
    found, start = [], 0
    for part in parts:
        logits, acts, cache = step(tokens[:, start : start + part], cache)
        found.append({"logits": logits, **acts})
        start += part
    logits, acts = forward(params, CFG, tokens, taps=PER_TOKEN)
    for name, expected in {"logits": logits, **acts}.items():
        # A cached pass hands on all keys and values; the tap sees the new ones.
        assert_close(jnp.concatenate([f[name] for f in found], 1), expected, "methods", name)
    assert int(cache.length) == 16


def test_edits_reach_the_keys_that_later_passes_see():
    params, tokens = random_params(CFG, 1), random_tokens(CFG, 12)
    edits = {"blocks.0.attn.hook_k": lambda k: 1.5 * k, "blocks.1.mlp.hook_post": lambda x: x + 0.1}
    expected, _ = forward(params, CFG, tokens, edits=edits)
    cache, rows = empty_cache(CFG, (), 14), []
    for part in (tokens[:7], tokens[7:8], tokens[8:]):
        logits, _, cache = forward_cached(params, CFG, part, cache, edits=edits)
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
