"""Models and autoencoders as files hold them: names, shapes, and the trees that they make."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxcircuits.config import ModelConfig, SAEConfig
from jaxcircuits.errors import InputError
from jaxcircuits.types import (
    AttentionWeights,
    BlockWeights,
    MLPWeights,
    ModelWeights,
    NormWeights,
    SAEWeights,
    named_weights,
)


def model_shapes(cfg: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a model's file and its shape."""
    head, kv_head, d_model, d_head, d_mlp = cfg.n_heads, cfg.kv_heads, cfg.d_model, cfg.d_head, cfg.d_mlp
    norm = {"w": (d_model,)} | ({"b": (d_model,)} if cfg.norm == "layer" else {})
    norms = ("ln1", "ln2", *(("ln1_post", "ln2_post") if cfg.norms_behind else ()))
    shapes: dict[str, tuple[int, ...]] = {"W_E": (cfg.d_vocab, d_model)}
    if not cfg.rotary:
        shapes["W_pos"] = (cfg.n_ctx, d_model)
    for layer in range(cfg.n_layers):
        block = {
            "attn.W_Q": (head, d_model, d_head),
            "attn.b_Q": (head, d_head),
            **{f"attn.W_{x}": (kv_head, d_model, d_head) for x in "KV"},
            **{f"attn.b_{x}": (kv_head, d_head) for x in "KV"},
            "attn.W_O": (head, d_head, d_model),
            "attn.b_O": (d_model,),
            "mlp.W_in": (d_model, d_mlp),
            "mlp.b_in": (d_mlp,),
            "mlp.W_out": (d_mlp, d_model),
            "mlp.b_out": (d_model,),
            **({"mlp.W_gate": (d_model, d_mlp)} if cfg.gated else {}),
            **{f"{ln}.{x}": shape for ln in norms for x, shape in norm.items()},
        }
        shapes |= {f"blocks.{layer}.{name}": shape for name, shape in block.items()}
    shapes |= {f"ln_final.{x}": shape for x, shape in norm.items()} | {"b_U": (cfg.d_vocab,)}
    if not cfg.tied_unembedding:
        shapes["W_U"] = (d_model, cfg.d_vocab)
    return shapes


def check_tensors(tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Compares tensors with what is expected: every one there, no other, of the right shape, all finite.

    Raises:
        InputError: The first that is not; it is named.
    """
    for name in shapes:
        if name not in tensors:
            raise InputError(f"{where}: the tensor {name} is missing.")
    for name, tensor in tensors.items():
        if name not in shapes:
            raise InputError(f"{where}: unknown tensor {name} of shape {list(tensor.shape)}; nothing here reads it.")
        if tuple(tensor.shape) != tuple(shapes[name]):
            raise InputError(f"{where}: {name} must have shape {list(shapes[name])}, got {list(tensor.shape)}.")
        if not np.isfinite(tensor.astype(np.float32) if tensor.dtype.kind not in "fiu" else tensor).all():
            raise InputError(f"{where}: {name} holds NaN or Inf; the checkpoint is damaged.")


def model_from_tensors(tensors: Mapping[str, np.ndarray], cfg: ModelConfig, where: str) -> ModelWeights:
    """Builds the weight tree from a model's file; checks it with `check_tensors`."""
    check_tensors(tensors, model_shapes(cfg), where)

    def norm(prefix: str) -> NormWeights | None:
        w = tensors.get(f"{prefix}.w")
        return None if w is None else NormWeights(w, tensors.get(f"{prefix}.b"))  # pyright: ignore[reportArgumentType]

    def block(prefix: str) -> BlockWeights:
        return BlockWeights(
            ln1=norm(f"{prefix}.ln1"),
            attn=AttentionWeights(**{f: tensors[f"{prefix}.attn.{f}"] for f in AttentionWeights._fields}),  # pyright: ignore
            ln2=norm(f"{prefix}.ln2"),
            mlp=MLPWeights(**{f: tensors.get(f"{prefix}.mlp.{f}") for f in MLPWeights._fields}),  # pyright: ignore
            ln1_post=norm(f"{prefix}.ln1_post"),
            ln2_post=norm(f"{prefix}.ln2_post"),
        )

    return ModelWeights(
        W_E=tensors["W_E"],  # pyright: ignore
        W_pos=tensors.get("W_pos"),  # pyright: ignore
        blocks=tuple(block(f"blocks.{layer}") for layer in range(cfg.n_layers)),
        ln_final=norm("ln_final"),
        W_U=tensors["W_E"].T if cfg.tied_unembedding else tensors["W_U"],  # pyright: ignore
        b_U=tensors["b_U"],  # pyright: ignore
    )


def model_to_tensors(params: ModelWeights, cfg: ModelConfig) -> dict[str, Any]:
    """The inverse of `model_from_tensors`: names to tensors."""
    assert params.ln_final is not None, "a bundle stores unprocessed weights"
    names = {"embed.W_E": "W_E", "pos_embed.W_pos": "W_pos", "unembed.W_U": "W_U", "unembed.b_U": "b_U"}
    tensors = {names.get(name, name): tensor for name, tensor in named_weights(params).items()}
    if cfg.tied_unembedding:
        del tensors["W_U"]
    return tensors


def sae_from_tensors(tensors: Mapping[str, np.ndarray], cfg: SAEConfig, where: str) -> SAEWeights:
    """Builds an autoencoder's weights from its file; checks them with `check_tensors`."""
    shapes = sae_shapes(cfg)
    check_tensors(tensors, shapes, where)
    return SAEWeights(**{name: tensors[name] for name in shapes})  # pyright: ignore


def sae_shapes(cfg: SAEConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of an autoencoder's file and its shape."""
    d_in, d_sae, d_out = cfg.d_in, cfg.d_sae, cfg.width_written
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_out)}
    shapes["b_dec"] = (d_out,)
    if cfg.activation == "jumprelu":
        shapes["threshold"] = (d_sae,)
    if cfg.skip:
        shapes["W_skip"] = (d_in, d_out)
    return shapes
