"""Generation: cached as uncached, BOS first, end of text last, a random stream a row, the model's distribution."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcircuits.bundle import Bundle
from jaxcircuits.errors import InputError
from jaxcircuits.generation import generate, sample_stories, sample_tokens
from jaxcircuits.interventions import ablate, intervene, set_feature, steer
from jaxcircuits.model import forward
from tests.helpers import gemma_config, neox_config, tiny_bundle


@pytest.fixture
def bundle() -> Bundle:
    """A random model with a tokenizer and without autoencoders."""
    return tiny_bundle(processed=False, saes={})


def test_rows_begin_with_bos_and_stop_at_the_end_of_text(bundle):
    rows = sample_tokens(bundle, 12, max_tokens=15)
    assert all(row[0] == 0 and (row[1:-1] != 0).all() for row in rows)
    assert all(row[-1] == 0 or len(row) == 16 for row in rows)
    assert {len(row) < 16 for row in rows} == {True, False}
    complete = sample_stories(bundle, 12, max_tokens=15)
    assert len(complete) == sum(len(row) > 2 and row[-1] == 0 for row in rows) < 12
    assert len(sample_stories(bundle, 12, max_tokens=15, complete=False)) == sum((row[1:] != 0).any() for row in rows)


def test_a_row_depends_on_seed_and_number_only(bundle):
    few, many = sample_tokens(bundle, 3, seed=5, max_tokens=10), sample_tokens(bundle, 9, seed=5, max_tokens=10)
    for a, b in zip(few, many, strict=False):
        np.testing.assert_array_equal(a, b)
    other = sample_tokens(bundle, 9, seed=6, max_tokens=10)
    assert any(not np.array_equal(a, b) for a, b in zip(many, other, strict=True))
    assert len({row.tobytes() for row in many}) > 5


def test_first_tokens_follow_the_model_s_distribution(bundle):
    logits = forward(bundle.params, bundle.cfg, jnp.zeros(1, jnp.int32))[0][0]
    expected = np.asarray(jax.nn.softmax(logits / 0.7))
    n = 4000
    counts = np.bincount([row[1] for row in sample_tokens(bundle, n, temperature=0.7, max_tokens=1)], minlength=31)
    assert (np.abs(counts / n - expected) < 5 * np.sqrt(expected * (1 - expected) / n) + 1e-3).all()


@pytest.mark.parametrize("cfg", [None, neox_config(), gemma_config()], ids=["learned", "rotary, parallel", "Gemma 2"])
def test_a_cold_model_always_takes_the_likeliest_token(cfg):
    bundle = tiny_bundle(cfg, processed=False, saes={})
    (row,) = sample_tokens(bundle, 1, temperature=1e-4, max_tokens=8)
    logits = forward(bundle.params, bundle.cfg, jnp.asarray(row[:-1]))[0]
    np.testing.assert_array_equal(np.argmax(logits, 1), row[1:])


def test_impossible_requests_are_refused(bundle):
    for wrong in ({"temperature": 0.0}, {"max_tokens": 17}):
        with pytest.raises(InputError, match="expected"):
            sample_tokens(bundle, 1, **wrong)
    with pytest.raises(InputError, match="no BOS"):
        sample_tokens(dataclasses.replace(bundle, cfg=dataclasses.replace(bundle.cfg, bos_token_id=None)), 1)


def uncached(bundle, prompt, n_tokens, key=None, temperature=1.0, **how):
    """Token by token, each from a whole pass over everything before it."""
    row = list(prompt)
    whole = jax.jit(lambda tokens: intervene(bundle.params, bundle.cfg, bundle.saes, tokens, **how).logits)
    for _ in range(n_tokens):
        padded = np.zeros(bundle.cfg.n_ctx, np.int32)  # one shape; what comes later is not seen
        padded[: len(row)] = row
        logits = whole(padded)[len(row) - 1]
        if key is not None:
            row.append(int(jax.random.categorical(jax.random.fold_in(key, len(row)), logits / temperature)))
        else:
            row.append(int(logits.argmax()))
        if row[-1] == bundle.cfg.bos_token_id:
            break
    return row


HOOKS = ["blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post"]
WAYS = {
    "plain": {},
    "both spliced, not at BOS": {"splice": HOOKS, "splice_bos": False},
    "one spliced, features changed": {
        "splice": HOOKS[1:],
        "changes": [set_feature(HOOKS[0], 3, 4.0, range(6, 16)), ablate(HOOKS[1], 5), steer(HOOKS[0], 1, -2.0, [2, 8])],
    },
}


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_cached_rows_equal_uncached_ones_token_for_token(way, temperature):
    """Behind local windows of 4 keys, up to the context's end."""
    bundle, how = tiny_bundle(), WAYS[way]
    prompt, n = np.array([0, 4, 9, 2, 17], np.int32), 3
    rows = generate(bundle, prompt, n=n, max_tokens=12, temperature=temperature, seed=2, **how)
    assert {tuple(row[:5]) for row in rows} == {tuple(prompt)}
    for number, row in enumerate(rows):
        key = jax.random.fold_in(jax.random.key(2), number) if temperature else None
        assert row.tolist() == uncached(bundle, prompt, 12, key, temperature, **how)
    assert len({tuple(row) for row in rows}) == (n if temperature else 1)


def test_rows_come_out_the_same_however_many_fit_at_once(bundle, monkeypatch):
    together = sample_tokens(bundle, 5, max_tokens=10, seed=4)
    monkeypatch.setattr("jaxcircuits.generation.CACHE_BYTES", 2 * 2 * 2 * 16 * 12 * 4)
    for a, b in zip(together, sample_tokens(bundle, 5, max_tokens=10, seed=4), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prompt": np.zeros(0, np.int32)}, "token ids in 0..30, at least one"),
        ({"prompt": np.array([0, 31])}, "token ids in 0..30"),
        ({"max_tokens": 14}, r"max_tokens in 1\.\.13 behind a prompt of 4 tokens"),
        ({"n": 0}, "n above 0"),
        ({"temperature": -1.0}, "temperature 0 or above"),
        ({"seed": -1}, "seed must lie in"),
        ({"splice": ["x"]}, "there is no SAE 'x'"),
        ({"changes": [ablate(HOOKS[0], 24)]}, r"features 0\.\.23"),
        ({"changes": [ablate(HOOKS[0], 2, -1)]}, r"positions in 0\.\.15"),
        ({"changes": [ablate(HOOKS[0], 2, 16)]}, r"positions in 0\.\.15"),
    ],
)
def test_what_cannot_be_generated_is_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        generate(tiny_bundle(), **{"prompt": "w1 w2 w3", "max_tokens": 2} | wrong)
