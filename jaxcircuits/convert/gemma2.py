"""Hugging Face's Gemma 2."""

from typing import Any

from jaxcircuits.convert.hf_model import (
    EMBEDDING,
    HEADS_IN,
    HEADS_OUT,
    LINEAR_IN,
    LINEAR_OUT,
    VECTOR,
    Family,
    Fields,
    Rows,
    Sizes,
    model_format,
)
from jaxcircuits.convert.hugging_face import count, flag
from jaxcircuits.convert.rotary import rotary_fields, rotary_numbers
from jaxcircuits.errors import InputError

_KV_HEADS_IN = "(kv_head d_head) d_model -> kv_head d_model d_head"
_BLOCK: Rows = {
    "input_layernorm.weight": (VECTOR, "ln1.w"),
    "self_attn.q_proj.weight": (HEADS_IN, "attn.W_Q"),
    "self_attn.k_proj.weight": (_KV_HEADS_IN, "attn.W_K"),
    "self_attn.v_proj.weight": (_KV_HEADS_IN, "attn.W_V"),
    "self_attn.o_proj.weight": (HEADS_OUT, "attn.W_O"),
    "post_attention_layernorm.weight": (VECTOR, "ln1_post.w"),  # in other models, the norm before the MLP
    "pre_feedforward_layernorm.weight": (VECTOR, "ln2.w"),
    "mlp.gate_proj.weight": (LINEAR_IN, "mlp.W_gate"),
    "mlp.up_proj.weight": (LINEAR_IN, "mlp.W_in"),
    "mlp.down_proj.weight": (LINEAR_OUT, "mlp.W_out"),
    "post_feedforward_layernorm.weight": (VECTOR, "ln2_post.w"),
}
_BIASES: Rows = {
    "self_attn.q_proj.bias": ("(head d_head) -> head d_head", "attn.b_Q"),
    "self_attn.k_proj.bias": ("(kv_head d_head) -> kv_head d_head", "attn.b_K"),
    "self_attn.v_proj.bias": ("(kv_head d_head) -> kv_head d_head", "attn.b_V"),
    "self_attn.o_proj.bias": (VECTOR, "attn.b_O"),
}
_NUMBERS = {"rope_theta": ("rope_theta", 10000.0)}
_LAYERS = {"sliding_attention": "local", "full_attention": "global"}


def _block(fields: Fields) -> Rows:
    return {**_BLOCK, **_BIASES} if fields.get("attention_bias", False) else _BLOCK


def _more(fields: Fields, sizes: Sizes, where: str) -> dict[str, Any]:
    flag(fields, "attention_bias", where, False)
    if fields.get("use_bidirectional_attention"):
        raise InputError(f"{where}: use_bidirectional_attention is not supported; expected false.")
    (base,) = rotary_numbers(fields, _NUMBERS, where)
    attention = _attention(fields, sizes.n_layers, where)
    window = count(fields, "sliding_window", where, 4096) if "local" in attention else sizes.n_ctx
    if fields.get("sliding_window_size") not in (None, window):
        raise InputError(f"{where}: sliding_window_size is not sliding_window, which is {window}; correct one.")
    scalar = _positive(fields, "query_pre_attn_scalar", where, 256)
    assert scalar is not None
    return {
        "attention": attention,
        "window": window,
        "attention_scale": scalar**-0.5,
        "family": "gemma2",
        "processing": ("fold_layer_norm", "fold_value_biases"),
        "positions": "rotary",
        "rotary_dim": sizes.d_head,
        "rotary_base": base,
        "n_kv_heads": count(fields, "num_key_value_heads", where),
        "norm": "rms",
        "norms_behind": True,
        "gated": True,
        "score_cap": _positive(fields, "attn_logit_softcapping", where, 50.0, optional=True),
        "logit_cap": _positive(fields, "final_logit_softcapping", where, 30.0, optional=True),
        "embedding_scale": sizes.d_model**0.5,
    }


def _attention(fields: Fields, n_layers: int, where: str) -> tuple[str, ...]:
    """What each layer sees; where the config does not say, every second one is global."""
    words = fields.get("layer_types")
    if words is None:
        words = [("sliding_attention", "full_attention")[layer % 2] for layer in range(n_layers)]
    if not isinstance(words, list) or len(words) != n_layers or not all(w in _LAYERS for w in words):
        raise InputError(f"{where}: layer_types must be {n_layers} of {' and '.join(_LAYERS)}, got {words!r}.")
    return tuple(_LAYERS[word] for word in words)


def _positive(fields: Fields, name: str, where: str, default: float, *, optional: bool = False) -> float | None:
    """A positive number; `None` for null, which some may be."""
    value = fields.get(name, default)
    if value is None and optional:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise InputError(f"{where}: {name} must be a positive number{' or null' * optional}, got {value!r}.")
    return float(value)


FORMAT = model_format(
    Family(
        names={
            "n_layers": "num_hidden_layers",
            "d_model": "hidden_size",
            "n_heads": "num_attention_heads",
            "d_head": "head_dim",
            "d_mlp": "intermediate_size",
            "d_vocab": "vocab_size",
            "n_ctx": "max_position_embeddings",
            "eps": "rms_norm_eps",
            "activation": "hidden_activation",
        },
        defaults={"activation": "gelu_pytorch_tanh", "bos_token_id": 2, "tie_word_embeddings": True, "eps": 1e-6},
        others={
            *("num_key_value_heads", "query_pre_attn_scalar", "attention_bias", "use_bidirectional_attention"),
            *("layer_types", "sliding_window", "sliding_window_size"),
            *("attn_logit_softcapping", "final_logit_softcapping"),
            *rotary_fields(_NUMBERS),
        },
        more=_more,
        harmless=("hidden_act", "cache_implementation"),  # the first is another model's word for hidden_activation
        prefix="model.",
        outside={"embed_tokens.weight": (EMBEDDING, "W_E"), "norm.weight": (VECTOR, "ln_final.w")},
        embedding="embed_tokens.weight",
        blocks="layers",
        block=_block,
        buffers=("self_attn.rotary_emb.inv_freq",),
        heads=("lm_head.weight",),
        norm_offset=1.0,
    )
)
