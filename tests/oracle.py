"""The independent check: PyTorch and TransformerLens, run the original notebook's way.

What computes is the package's `validation.torch_model`, which calls none of its mathematics; here is what only tests
ask of it.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from jaxcircuits.config import ModelConfig
from jaxcircuits.types import ModelWeights
from jaxcircuits.validation import torch_model
from jaxcircuits.validation.torch_model import BUFFERS, STEP_FLAGS, TorchSAE, splice_hooks, torch_state
from jaxcircuits.validation.torch_model import feature_acts as oracle_feature_acts
from jaxcircuits.validation.torch_model import hook_gradients as oracle_gradients
from jaxcircuits.validation.torch_model import hook_value as oracle_hook_value
from jaxcircuits.validation.torch_model import run_with_cache as oracle_cache
from tests.helpers import TOLERANCES, assert_close

__all__ = [
    "STEP_FLAGS",
    "TorchSAE",
    "assert_same_weights",
    "hugging_face_model",
    "oracle_cache",
    "oracle_feature_acts",
    "oracle_gradients",
    "oracle_hook_value",
    "splice_hooks",
    "torch_state",
    "transformer_lens_model",
]


def transformer_lens_model(
    cfg: ModelConfig, params: ModelWeights, *, steps: Iterable[str] | None = None, dtype: str = "float32"
) -> Any:
    """`torch_model.transformer_lens_model`; skips the test where it is not installed."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformer_lens")
    torch.set_num_threads(1)
    return torch_model.transformer_lens_model(cfg, params, steps=steps, dtype=dtype)


def assert_same_weights(ours: ModelWeights, model: Any, raw: ModelWeights, cfg: ModelConfig) -> None:
    """Asserts that processed weights are TransformerLens', key by key.

    Args:
        ours: Processed by the package.
        model: Holds the same weights, processed by TransformerLens.
        raw: The unprocessed ones: the unit where a sum of terms may cancel.
        cfg: The architecture.
    """
    theirs, mine, before = model.state_dict(), torch_state(ours, cfg), torch_state(raw, cfg)
    assert set(mine) == {key for key in theirs if not key.endswith(BUFFERS)}
    for key, value in mine.items():
        if not theirs[key].any():
            assert not value.any(), key
        elif key.endswith(("b_O", "b_U")):
            unit = max(float(theirs[key].abs().max()), float(before[key].abs().max()))
            assert float((value - theirs[key]).abs().max()) <= TOLERANCES["oracle"]["float32"] * unit, key
        else:
            assert_close(value.numpy(), theirs[key].numpy(), "oracle", key)


def hugging_face_model(cfg: ModelConfig, params: ModelWeights) -> Any:
    """A Hugging Face `GPTNeoForCausalLM` of the same weights; those it has no place for must be zero."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    assert cfg.d_model == cfg.n_heads * cfg.d_head
    assert cfg.tied_unembedding and not np.any(params.b_U)
    model = transformers.GPTNeoForCausalLM(
        transformers.GPTNeoConfig(
            vocab_size=cfg.d_vocab,
            max_position_embeddings=cfg.n_ctx,
            hidden_size=cfg.d_model,
            num_layers=cfg.n_layers,
            num_heads=cfg.n_heads,
            intermediate_size=cfg.d_mlp,
            attention_types=[[[kind], 1] for kind in cfg.attention],
            window_size=cfg.window,
            layer_norm_epsilon=cfg.eps,
            resid_dropout=0.0,
            embed_dropout=0.0,
            attention_dropout=0.0,
        )
    )
    names = {"transformer.wte.weight": params.W_E, "transformer.wpe.weight": params.W_pos, "lm_head.weight": params.W_E}
    assert params.ln_final is not None
    names |= {"transformer.ln_f.weight": params.ln_final.w, "transformer.ln_f.bias": params.ln_final.b}
    for layer, block in enumerate(params.blocks):
        assert block.ln1 is not None and block.ln2 is not None
        assert not any(np.any(b) for b in (block.attn.b_Q, block.attn.b_K, block.attn.b_V))
        prefix, attn = f"transformer.h.{layer}", block.attn
        for name, W in (("q", attn.W_Q), ("k", attn.W_K), ("v", attn.W_V)):
            names[f"{prefix}.attn.attention.{name}_proj.weight"] = (
                np.asarray(W).transpose(0, 2, 1).reshape(-1, cfg.d_model)
            )
        names |= {
            f"{prefix}.attn.attention.out_proj.weight": np.asarray(attn.W_O).reshape(-1, cfg.d_model).T,
            f"{prefix}.attn.attention.out_proj.bias": attn.b_O,
            f"{prefix}.mlp.c_fc.weight": block.mlp.W_in.T,
            f"{prefix}.mlp.c_fc.bias": block.mlp.b_in,
            f"{prefix}.mlp.c_proj.weight": block.mlp.W_out.T,
            f"{prefix}.mlp.c_proj.bias": block.mlp.b_out,
            f"{prefix}.ln_1.weight": block.ln1.w,
            f"{prefix}.ln_1.bias": block.ln1.b,
            f"{prefix}.ln_2.weight": block.ln2.w,
            f"{prefix}.ln_2.bias": block.ln2.b,
        }
    state = {k: torch.tensor(np.asarray(w)).contiguous() for k, w in names.items()}
    model.load_state_dict(state, strict=True)
    return model.requires_grad_(False).eval()
