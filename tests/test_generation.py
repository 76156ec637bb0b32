"""Sampling: BOS first, end of text last, one random stream a row, the model's own distribution."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxcircuits.training.sample import sample_stories, sample_tokens

from jaxcircuits.errors import InputError
from jaxcircuits.model import forward


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


def test_a_cold_model_always_takes_the_likeliest_token(bundle):
    (row,) = sample_tokens(bundle, 1, temperature=1e-4, max_tokens=8)
    logits = forward(bundle.params, bundle.cfg, jnp.asarray(row[:-1]))[0]
    np.testing.assert_array_equal(np.argmax(logits, 1), row[1:])


def test_impossible_requests_are_refused(bundle):
    for wrong in ({"temperature": 0.0}, {"max_tokens": 17}):
        with pytest.raises(InputError, match="expected"):
            sample_tokens(bundle, 1, **wrong)
    with pytest.raises(InputError, match="no BOS"):
        sample_tokens(dataclasses.replace(bundle, cfg=dataclasses.replace(bundle.cfg, bos_token_id=None)), 1)
