"""The loss that training lowers, and its derivatives, against Hugging Face's GPT-Neo and PyTorch's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcircuits.rows import rows_of
from jaxcircuits.training.lm import completed, init_params, nll
from tests.helpers import assert_close, tiny_tokenizer
from tests.oracle import hugging_face_model
from tests.training.conftest import LM, changed

pytestmark = pytest.mark.torch

SETTINGS = changed(LM, n_ctx=16)


@pytest.fixture
def rows(words) -> np.ndarray:
    """Rows of different lengths, -1 behind their ends."""
    some = rows_of(words[:6], tiny_tokenizer(SETTINGS.model()), SETTINGS.n_ctx)
    batch = np.full((len(some), SETTINGS.n_ctx + 1), -1, np.int32)
    for i, row in enumerate(some):
        batch[i, : len(row)] = row
    assert (batch == -1).any()
    return batch


def test_losses_and_gradients_equal_pytorch_s(rows):
    torch = pytest.importorskip("torch")
    cfg = SETTINGS.model()
    # Ten times the weights training begins with: attention is then far from uniform.
    params = jax.tree.map(lambda w: 10 * w if w.ndim > 1 else w, init_params(SETTINGS))
    losses, mask = nll(completed(params, cfg), cfg, jnp.asarray(rows))
    model = hugging_face_model(cfg, completed(params, cfg)).requires_grad_(True)
    logits = model(torch.tensor(np.maximum(rows[:, :-1], 0)).long()).logits
    targets = torch.tensor(rows[:, 1:]).long()
    expected = torch.nn.functional.cross_entropy(logits.mT, targets, ignore_index=-1, reduction="none")
    assert_close(losses, expected, "oracle", "nll")
    np.testing.assert_array_equal(mask, targets >= 0)

    def mean_loss(params):
        losses, mask = nll(completed(params, cfg), cfg, jnp.asarray(rows))
        return losses.sum() / mask.sum()

    grads = jax.grad(mean_loss)(params)
    (expected.sum() / (targets >= 0).sum()).backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    assert_close(grads.W_E, found["transformer.wte.weight"], "oracle", "tied embedding")
    assert_close(grads.W_pos, found["transformer.wpe.weight"], "oracle", "W_pos")
    for layer, block in enumerate(grads.blocks):
        prefix = f"transformer.h.{layer}"
        assert_close(block.mlp.W_in.T, found[f"{prefix}.mlp.c_fc.weight"], "oracle", "W_in")
        W_Q = block.attn.W_Q.transpose(0, 2, 1).reshape(-1, cfg.d_model)
        assert_close(W_Q, found[f"{prefix}.attn.attention.q_proj.weight"], "oracle", "W_Q")
