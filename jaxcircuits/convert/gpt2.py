"""Hugging Face's GPT-2."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxcircuits.config import ModelConfig
from jaxcircuits.convert.checkpoint import read_weights
from jaxcircuits.convert.format import ConvertedModel, ModelFormat, Options, check_fields, checked_tensors, read_fields
from jaxcircuits.convert.hugging_face import (
    HARMLESS,
    bos_token,
    choose,
    count,
    epsilon,
    flag,
    head_width,
    is_tied,
    understood,
)
from jaxcircuits.errors import InputError
from jaxcircuits.types import AttentionWeights, BlockWeights, MLPWeights, ModelWeights, NormWeights

_UNDERSTOOD = {
    *("model_type", "vocab_size", "n_positions", "n_ctx", "n_embd", "n_layer", "n_head", "n_inner"),
    *("layer_norm_epsilon", "activation_function", "bos_token_id", "tie_word_embeddings"),
    *("scale_attn_weights", "scale_attn_by_inverse_layer_idx"),
}
_HARMLESS = {*HARMLESS, "reorder_and_upcast_attn"}  # in which precision scores are computed
_PREFIX = "transformer."


def _read(path: Path, options: Options) -> ConvertedModel:
    """Source: Hugging Face transformers 5.23 for names and defaults, TransformerLens 3.9 for the layout of weights."""
    config = path / "config.json"
    fields = read_fields(config, "model")
    check_fields(fields, understood(fields, _UNDERSTOOD), _HARMLESS, options, str(config))
    stored, files = read_weights(path, "model")
    # The first checkpoints hold the model without its head, so without the head's prefix.
    bare = "wte.weight" in stored
    tensors = {f"{_PREFIX}{name}" if bare else name: tensor for name, tensor in stored.items()}
    cfg = _config(fields, tied=is_tied(fields, tensors, f"{_PREFIX}wte.weight", str(config)), where=str(config))
    masks = {f"{_PREFIX}h.{layer}.attn.{x}" for layer in range(cfg.n_layers) for x in ("bias", "masked_bias")}
    weights = {name: tensor for name, tensor in tensors.items() if name not in masks}
    if cfg.tied_unembedding:
        weights.pop("lm_head.weight", None)
    return ConvertedModel(
        cfg, _weights(checked_tensors(weights, _shapes(cfg), options, str(path)), cfg), [config, *files]
    )


def _config(fields: Mapping[str, Any], tied: bool, where: str) -> ModelConfig:
    if fields.get("activation_function", "gelu_new") != "gelu_new":
        raise InputError(f"{where}: activation_function must be 'gelu_new', got {fields['activation_function']!r}.")
    if flag(fields, "scale_attn_by_inverse_layer_idx", where, False):
        raise InputError(f"{where}: scale_attn_by_inverse_layer_idx is not supported; expected false.")
    number = partial(count, fields, where=where)
    d_model, n_heads, d_vocab = number("n_embd"), number("n_head"), number("vocab_size")
    d_head = head_width(d_model, n_heads, ("n_embd", "n_head"), where)
    n_layers, n_ctx = number("n_layer"), number("n_positions")
    try:
        return ModelConfig(
            n_layers=n_layers,
            d_model=d_model,
            n_heads=n_heads,
            d_head=d_head,
            d_mlp=4 * d_model if fields.get("n_inner") is None else number("n_inner"),
            d_vocab=d_vocab,
            n_ctx=n_ctx,
            attention=("global",) * n_layers,
            window=n_ctx,
            eps=epsilon(fields, where),
            attention_scale=d_head**-0.5 if flag(fields, "scale_attn_weights", where, True) else 1.0,
            bos_token_id=bos_token(fields, d_vocab, where),
            tied_unembedding=tied,
            family="gpt2",
        )
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _shapes(cfg: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint; GPT-2's linear layers are convolutions, `[in, out]`."""
    d_model, d_mlp = cfg.d_model, cfg.d_mlp
    block = {
        **{f"{ln}.{x}": (d_model,) for ln in ("ln_1", "ln_2") for x in ("weight", "bias")},
        "attn.c_attn.weight": (d_model, 3 * d_model),
        "attn.c_attn.bias": (3 * d_model,),
        "attn.c_proj.weight": (d_model, d_model),
        "attn.c_proj.bias": (d_model,),
        "mlp.c_fc.weight": (d_model, d_mlp),
        "mlp.c_fc.bias": (d_mlp,),
        "mlp.c_proj.weight": (d_mlp, d_model),
        "mlp.c_proj.bias": (d_model,),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (cfg.d_vocab, d_model),
        "wpe.weight": (cfg.n_ctx, d_model),
        **{f"h.{layer}.{name}": shape for layer in range(cfg.n_layers) for name, shape in block.items()},
        "ln_f.weight": (d_model,),
        "ln_f.bias": (d_model,),
    }
    shapes = {f"{_PREFIX}{name}": shape for name, shape in shapes.items()}
    return shapes if cfg.tied_unembedding else shapes | {"lm_head.weight": (cfg.d_vocab, d_model)}


def _weights(tensors: Mapping[str, Any], cfg: ModelConfig) -> ModelWeights:
    def norm(prefix: str) -> NormWeights:
        return NormWeights(tensors[f"{prefix}.weight"], tensors[f"{prefix}.bias"])

    def block(prefix: str) -> BlockWeights:
        # Queries, keys and values side by side, each with its heads side by side.
        qkv = tensors[f"{prefix}.attn.c_attn.weight"].reshape(cfg.d_model, 3, cfg.n_heads, cfg.d_head)
        W_Q, W_K, W_V = qkv.transpose(1, 2, 0, 3)
        b_Q, b_K, b_V = tensors[f"{prefix}.attn.c_attn.bias"].reshape(3, cfg.n_heads, cfg.d_head)
        W_O = tensors[f"{prefix}.attn.c_proj.weight"].reshape(cfg.n_heads, cfg.d_head, cfg.d_model)
        return BlockWeights(
            norm(f"{prefix}.ln_1"),
            AttentionWeights(W_Q, W_K, W_V, W_O, b_Q, b_K, b_V, tensors[f"{prefix}.attn.c_proj.bias"]),
            norm(f"{prefix}.ln_2"),
            MLPWeights(
                W_in=tensors[f"{prefix}.mlp.c_fc.weight"],
                b_in=tensors[f"{prefix}.mlp.c_fc.bias"],
                W_out=tensors[f"{prefix}.mlp.c_proj.weight"],
                b_out=tensors[f"{prefix}.mlp.c_proj.bias"],
            ),
        )

    W_E = tensors[f"{_PREFIX}wte.weight"]
    return ModelWeights(
        W_E=W_E,
        W_pos=tensors[f"{_PREFIX}wpe.weight"],
        blocks=tuple(block(f"{_PREFIX}h.{layer}") for layer in range(cfg.n_layers)),
        ln_final=norm(f"{_PREFIX}ln_f"),
        W_U=tensors.get("lm_head.weight", W_E).T,
        b_U=np.zeros(cfg.d_vocab, W_E.dtype),  # pyright: ignore[reportArgumentType]
    )


FORMAT = ModelFormat(choose, _read)
