"""Weight trees, with the shape of every field.

NamedTuples, because they are pytrees that carry annotations without checks in their constructor
(JAX fills trees with things that are not arrays: `eval_shape`, shardings, `vmap` axes).
"""

from typing import Any, NamedTuple

from jaxtyping import Array, Float


class NormWeights(NamedTuple):
    """Scale and shift of one norm; an RMS norm has no shift."""

    w: Float[Array, "d_model"]
    b: Float[Array, "d_model"] | None


class AttentionWeights(NamedTuple):
    """One attention layer, one matrix a head; several heads in a row may share keys and values."""

    W_Q: Float[Array, "head d_model d_head"]
    W_K: Float[Array, "kv_head d_model d_head"]
    W_V: Float[Array, "kv_head d_model d_head"]
    W_O: Float[Array, "head d_head d_model"]
    b_Q: Float[Array, "head d_head"]
    b_K: Float[Array, "kv_head d_head"]
    b_V: Float[Array, "kv_head d_head"]
    b_O: Float[Array, "d_model"]


class MLPWeights(NamedTuple):
    """One MLP."""

    W_in: Float[Array, "d_model d_mlp"]
    b_in: Float[Array, "d_mlp"]
    W_out: Float[Array, "d_mlp d_model"]
    b_out: Float[Array, "d_model"]
    W_gate: Float[Array, "d_model d_mlp"] | None = None  # of a gated one


class BlockWeights(NamedTuple):
    """One transformer block. A norm is `None` once it has been folded into what reads it."""

    ln1: NormWeights | None
    attn: AttentionWeights
    ln2: NormWeights | None
    mlp: MLPWeights
    ln1_post: NormWeights | None = None  # of what attention and MLP write, where the model has such norms
    ln2_post: NormWeights | None = None


class ModelWeights(NamedTuple):
    """A whole model. `W_U` is stored apart from `W_E` even where a checkpoint ties them; `None` where there is none."""

    W_E: Float[Array, "d_vocab d_model"]
    W_pos: Float[Array, "n_ctx d_model"] | None
    blocks: tuple[BlockWeights, ...]
    ln_final: NormWeights | None
    W_U: Float[Array, "d_model d_vocab"]
    b_U: Float[Array, "d_vocab"]


class SAEWeights(NamedTuple):
    """A sparse autoencoder: `feature_acts = act((x - b_dec) W_enc + b_enc)`, `sae_out = feature_acts W_dec + b_dec`.

    `d_out` is `d_in` but for transcoders, which write another value than they read.
    """

    W_enc: Float[Array, "d_in d_sae"]
    b_enc: Float[Array, "d_sae"]
    W_dec: Float[Array, "d_sae d_out"]
    b_dec: Float[Array, "d_out"]
    threshold: Float[Array, "d_sae"] | None = None  # of a JumpReLU
    W_skip: Float[Array, "d_in d_out"] | None = None  # of a transcoder with a linear path beside its features


def named_weights(params: ModelWeights) -> dict[str, Any]:
    """Every array of a weight tree by TransformerLens' name, roughly in the order the forward pass uses them."""
    named: dict[str, Any] = {"embed.W_E": params.W_E}
    named |= {} if params.W_pos is None else {"pos_embed.W_pos": params.W_pos}
    parts: dict[str, Any] = {
        f"blocks.{layer}.{part}": weights
        for layer, block in enumerate(params.blocks)
        for part, weights in block._asdict().items()
    }
    for part, weights in (parts | {"ln_final": params.ln_final}).items():
        arrays = {} if weights is None else weights._asdict()
        named |= {f"{part}.{name}": w for name, w in arrays.items() if w is not None}
    return named | {"unembed.W_U": params.W_U, "unembed.b_U": params.b_U}
