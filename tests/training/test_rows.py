"""Rows, batches and the buffer of activations."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from jaxcircuits.errors import InputError
from jaxcircuits.model import forward
from jaxcircuits.rows import bundle_rows, padded_batches, rows_of
from jaxcircuits.training.activations import ActivationBuffer
from jaxcircuits.training.lm import Batches
from tests.training.conftest import LM, SAE, changed


def test_rows_hold_every_token_once_as_a_target(bundle, words):
    rows = rows_of(words, bundle.tokenizer, 16)
    targets = np.concatenate([row[1:] for row in rows])
    expected = [[*bundle.tokenizer.encode(text).ids, 0] for text in words]
    assert targets.tolist() == [token for ids in expected for token in ids]
    assert all(row[0] == 0 and 2 <= len(row) <= 17 for row in rows)
    assert len(rows) > len(words)  # long texts went on in further rows


def test_batches_visit_a_row_at_most_once_an_epoch_and_depend_on_the_seed(bundle, words):
    # The rows' own number as content shows which were taken.
    rows = [np.full(len(row), i, np.int32) for i, row in enumerate(rows_of(words, bundle.tokenizer, 16))]
    once = Batches(rows, changed(LM, epochs=1.0))
    seen = [int(row[0]) for step in range(len(once)) for row in once(step)]
    assert len(seen) == len(set(seen)) > len(rows) / 2
    twice = Batches(rows, changed(LM, epochs=2.0))
    assert len(twice) == 2 * len(once)
    np.testing.assert_array_equal(twice(3), once(3))
    other = Batches(rows, changed(LM, epochs=1.0, seed=1))
    assert [other(i).tolist() for i in range(len(other))] != [once(i).tolist() for i in range(len(once))]


def test_padded_batches_hold_every_row_exactly_once(bundle, words):
    rows = bundle_rows(bundle, words)
    found = {}
    for members, batch in padded_batches(rows, 16, batch_tokens=40):
        assert (batch[len(members) :] == -1).all()
        for member, row in zip(members, batch, strict=False):
            assert int(member) not in found
            found[int(member)] = row[row >= 0]
    assert sorted(found) == list(range(len(rows)))
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(found[i], row)


def test_buffer_depends_on_the_step_only_and_holds_the_hook_s_values(bundle, words):
    rows = bundle_rows(bundle, words)
    hook = "blocks.1.mlp.hook_post"
    forwards, jumping = (ActivationBuffer(bundle, hook, rows, SAE) for _ in range(2))
    inorder = [forwards(step) for step in range(10)]
    for step in (7, 2, 9):
        np.testing.assert_array_equal(jumping(step), inorder[step])
    assert not np.array_equal(inorder[0], inorder[4])

    padded = np.stack([np.pad(row[:-1], (0, bundle.cfg.n_ctx - len(row) + 1)) for row in rows])
    acts = forward(bundle.params, bundle.cfg, jnp.asarray(padded), taps=(hook,))[1][hook]
    every = np.concatenate([acts[i, : len(row) - 1] for i, row in enumerate(rows)])
    nearest = [np.abs(every - value).max(1).min() for value in inorder[0][:16]]
    assert max(nearest) < 1e-5 * np.abs(every).max()


def test_another_bos_begins_rows_that_end_with_their_text(bundle, words):
    """A tokenizer without end of text, as Gemma's: no token stands for it."""
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "<bos>": 1, "b": 2, "?": 3}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    other = replace(bundle, tokenizer=tokenizer, cfg=replace(bundle.cfg, bos_token_id=1, n_ctx=2))
    assert [row.tolist() for row in bundle_rows(other, ["a b b", "b"])] == [[1, 0, 2], [1, 2], [1, 2]]
    with pytest.raises(InputError, match="expected a model whose BOS token is"):
        bundle_rows(replace(bundle, cfg=replace(bundle.cfg, bos_token_id=3)), words)
    with pytest.raises(InputError, match="got id None"):
        bundle_rows(replace(other, cfg=replace(other.cfg, bos_token_id=None)), words)
