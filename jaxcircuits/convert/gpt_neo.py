"""Hugging Face's GPT-Neo."""

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
    head_width,
    is_tied,
    understood,
)
from jaxcircuits.errors import InputError
from jaxcircuits.types import AttentionWeights, BlockWeights, MLPWeights, ModelWeights, NormWeights

_UNDERSTOOD = {
    *("model_type", "vocab_size", "max_position_embeddings", "hidden_size", "num_layers", "num_heads"),
    *("intermediate_size", "attention_types", "attention_layers", "window_size", "layer_norm_epsilon"),
    *("activation_function", "bos_token_id", "tie_word_embeddings"),
}


def _read(path: Path, options: Options) -> ConvertedModel:
    """Source: Hugging Face transformers 5.23 for names and defaults, TransformerLens 3.9 for the layout of weights."""
    config = path / "config.json"
    fields = read_fields(config, "model")
    check_fields(fields, understood(fields, _UNDERSTOOD), HARMLESS, options, str(config))
    tensors, files = read_weights(path, "model")
    cfg = _config(fields, tied=is_tied(fields, tensors, "transformer.wte.weight", str(config)), where=str(config))
    buffers = {
        f"transformer.h.{layer}.attn.attention.{x}" for layer in range(cfg.n_layers) for x in ("bias", "masked_bias")
    }
    weights = {name: tensor for name, tensor in tensors.items() if name not in buffers}
    if cfg.tied_unembedding:
        weights.pop("lm_head.weight", None)
    return ConvertedModel(
        cfg, _weights(checked_tensors(weights, _shapes(cfg), options, str(path)), cfg), [config, *files]
    )


def _config(fields: Mapping[str, Any], tied: bool, where: str) -> ModelConfig:
    if fields.get("activation_function", "gelu_new") != "gelu_new":
        raise InputError(f"{where}: activation_function must be 'gelu_new', got {fields['activation_function']!r}.")
    number = partial(count, fields, where=where)
    d_model, n_heads, d_vocab = number("hidden_size"), number("num_heads"), number("vocab_size")
    try:
        return ModelConfig(
            n_layers=number("num_layers"),
            d_model=d_model,
            n_heads=n_heads,
            d_head=head_width(d_model, n_heads, ("hidden_size", "num_heads"), where),
            d_mlp=4 * d_model if fields.get("intermediate_size") is None else number("intermediate_size"),
            d_vocab=d_vocab,
            n_ctx=number("max_position_embeddings"),
            attention=_attention(fields, where),
            window=number("window_size", default=256),
            eps=epsilon(fields, where),
            bos_token_id=bos_token(fields, d_vocab, where),
            tied_unembedding=tied,
        )
    except InputError as error:
        raise InputError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None


def _attention(fields: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The kind of each layer, from the list of layers or from `[[kinds, repetitions], ...]`; both must agree."""
    layers, types = fields.get("attention_layers"), fields.get("attention_types")
    if layers is None and types is None:
        raise InputError(
            f"{where}: the field 'attention_layers' is missing, and so is 'attention_types'; add one of them."
        )
    try:
        expanded = None if types is None else [str(kind) for kinds, n in types for _ in range(n) for kind in kinds]
        listed = expanded if layers is None else [str(kind) for kind in layers]
    except (TypeError, ValueError):
        raise InputError(
            f"{where}: attention_types must look like [[['global', 'local'], 1]], got {types!r}."
        ) from None
    assert listed is not None
    if expanded is not None and expanded != listed:
        raise InputError(
            f"{where}: attention_layers is {layers!r}, but attention_types says {expanded!r}; correct one."
        )
    return tuple(listed)


def _shapes(cfg: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint; PyTorch's linear layers are `[out, in]`."""
    d_model, d_mlp = cfg.d_model, cfg.d_mlp
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (cfg.d_vocab, d_model),
        "transformer.wpe.weight": (cfg.n_ctx, d_model),
    }
    for layer in range(cfg.n_layers):
        block = {
            **{f"{ln}.{x}": (d_model,) for ln in ("ln_1", "ln_2") for x in ("weight", "bias")},
            **{f"attn.attention.{x}_proj.weight": (d_model, d_model) for x in ("q", "k", "v", "out")},
            "attn.attention.out_proj.bias": (d_model,),
            "mlp.c_fc.weight": (d_mlp, d_model),
            "mlp.c_fc.bias": (d_mlp,),
            "mlp.c_proj.weight": (d_model, d_mlp),
            "mlp.c_proj.bias": (d_model,),
        }
        shapes |= {f"transformer.h.{layer}.{name}": shape for name, shape in block.items()}
    shapes |= {"transformer.ln_f.weight": (d_model,), "transformer.ln_f.bias": (d_model,)}
    if not cfg.tied_unembedding:
        shapes["lm_head.weight"] = (cfg.d_vocab, d_model)
    return shapes


def _weights(tensors: Mapping[str, np.ndarray], cfg: ModelConfig) -> ModelWeights:
    head, d_head, d_model = cfg.n_heads, cfg.d_head, cfg.d_model

    def norm(prefix: str) -> NormWeights:
        return NormWeights(tensors[f"{prefix}.weight"], tensors[f"{prefix}.bias"])  # pyright: ignore[reportArgumentType]

    def block(prefix: str) -> BlockWeights:
        q, k, v, out = (tensors[f"{prefix}.attn.attention.{x}_proj.weight"] for x in ("q", "k", "v", "out"))
        no_bias = np.zeros((head, d_head), q.dtype)
        return BlockWeights(
            ln1=norm(f"{prefix}.ln_1"),
            attn=AttentionWeights(
                W_Q=q.reshape(head, d_head, d_model).transpose(0, 2, 1),  # pyright: ignore
                W_K=k.reshape(head, d_head, d_model).transpose(0, 2, 1),  # pyright: ignore
                W_V=v.reshape(head, d_head, d_model).transpose(0, 2, 1),  # pyright: ignore
                W_O=out.reshape(d_model, head, d_head).transpose(1, 2, 0),  # pyright: ignore
                b_Q=no_bias,  # pyright: ignore
                b_K=no_bias,  # pyright: ignore
                b_V=no_bias,  # pyright: ignore
                b_O=tensors[f"{prefix}.attn.attention.out_proj.bias"],  # pyright: ignore
            ),
            ln2=norm(f"{prefix}.ln_2"),
            mlp=MLPWeights(
                W_in=tensors[f"{prefix}.mlp.c_fc.weight"].T,  # pyright: ignore
                b_in=tensors[f"{prefix}.mlp.c_fc.bias"],  # pyright: ignore
                W_out=tensors[f"{prefix}.mlp.c_proj.weight"].T,  # pyright: ignore
                b_out=tensors[f"{prefix}.mlp.c_proj.bias"],  # pyright: ignore
            ),
        )

    W_E = tensors["transformer.wte.weight"]
    return ModelWeights(
        W_E=W_E,  # pyright: ignore
        W_pos=tensors["transformer.wpe.weight"],  # pyright: ignore
        blocks=tuple(block(f"transformer.h.{layer}") for layer in range(cfg.n_layers)),
        ln_final=norm("transformer.ln_f"),
        W_U=tensors.get("lm_head.weight", W_E).T,  # pyright: ignore
        b_U=np.zeros(cfg.d_vocab, W_E.dtype),  # pyright: ignore
    )


FORMAT = ModelFormat(choose, _read)
