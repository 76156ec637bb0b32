"""Hugging Face's GPT-2."""

from typing import Any

from jaxcircuits.convert.hf_model import GPT2_OUTSIDE, VECTOR, Family, Fields, Rows, Sizes, model_format, norm
from jaxcircuits.convert.hugging_face import GPT2_DEFAULTS, flag
from jaxcircuits.errors import InputError

_QKV = tuple("QKV")
# Its linear layers are convolutions, `[in, out]`; queries, keys and values side by side, each with its heads likewise.
_BLOCK: Rows = {
    **norm("ln_1", "ln1"),
    "attn.c_attn.weight": ("d_model (qkv head d_head) -> qkv head d_model d_head", *(f"attn.W_{x}" for x in _QKV)),
    "attn.c_attn.bias": ("(qkv head d_head) -> qkv head d_head", *(f"attn.b_{x}" for x in _QKV)),
    "attn.c_proj.weight": ("(head d_head) d_model -> head d_head d_model", "attn.W_O"),
    "attn.c_proj.bias": (VECTOR, "attn.b_O"),
    **norm("ln_2", "ln2"),
    "mlp.c_fc.weight": ("d_model d_mlp -> d_model d_mlp", "mlp.W_in"),
    "mlp.c_fc.bias": ("d_mlp -> d_mlp", "mlp.b_in"),
    "mlp.c_proj.weight": ("d_mlp d_model -> d_mlp d_model", "mlp.W_out"),
    "mlp.c_proj.bias": (VECTOR, "mlp.b_out"),
}


def _more(fields: Fields, sizes: Sizes, where: str) -> dict[str, Any]:
    if flag(fields, "scale_attn_by_inverse_layer_idx", where, False):
        raise InputError(f"{where}: scale_attn_by_inverse_layer_idx is not supported; expected false.")
    return {
        "attention": ("global",) * sizes.n_layers,
        "window": sizes.n_ctx,
        "attention_scale": sizes.d_head**-0.5 if flag(fields, "scale_attn_weights", where, True) else 1.0,
        "family": "gpt2",
    }


FORMAT = model_format(
    Family(
        names={
            "n_layers": "n_layer",
            "d_model": "n_embd",
            "n_heads": "n_head",
            "d_mlp": "n_inner",
            "d_vocab": "vocab_size",
            "n_ctx": "n_positions",
            "eps": "layer_norm_epsilon",
            "activation": "activation_function",
        },
        defaults=GPT2_DEFAULTS,
        others=("n_ctx", "scale_attn_weights", "scale_attn_by_inverse_layer_idx"),
        more=_more,
        harmless=("reorder_and_upcast_attn",),  # in which precision scores are computed
        prefix="transformer.",
        outside=GPT2_OUTSIDE,
        embedding="wte.weight",
        blocks="h",
        block=lambda fields: _BLOCK,
        buffers=("attn.bias", "attn.masked_bias"),  # masks
        heads=("lm_head.weight",),
    )
)
