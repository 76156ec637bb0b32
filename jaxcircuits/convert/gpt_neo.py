"""Hugging Face's GPT-Neo."""

from typing import Any

from jaxcircuits.convert.hf_model import (
    GPT2_OUTSIDE,
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
    norm,
)
from jaxcircuits.convert.hugging_face import GPT2_DEFAULTS, count
from jaxcircuits.errors import InputError

_BLOCK: Rows = {
    **norm("ln_1", "ln1"),
    **{f"attn.attention.{x}_proj.weight": (HEADS_IN, f"attn.W_{x.upper()}") for x in "qkv"},
    "attn.attention.out_proj.weight": (HEADS_OUT, "attn.W_O"),
    "attn.attention.out_proj.bias": (VECTOR, "attn.b_O"),
    **norm("ln_2", "ln2"),
    "mlp.c_fc.weight": (LINEAR_IN, "mlp.W_in"),
    "mlp.c_fc.bias": ("d_mlp -> d_mlp", "mlp.b_in"),
    "mlp.c_proj.weight": (LINEAR_OUT, "mlp.W_out"),
    "mlp.c_proj.bias": (VECTOR, "mlp.b_out"),
}


def _more(fields: Fields, sizes: Sizes, where: str) -> dict[str, Any]:
    return {"attention": _attention(fields, where), "window": count(fields, "window_size", where, default=256)}


def _attention(fields: Fields, where: str) -> tuple[str, ...]:
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


FORMAT = model_format(
    Family(
        names={
            "n_layers": "num_layers",
            "d_model": "hidden_size",
            "n_heads": "num_heads",
            "d_mlp": "intermediate_size",
            "d_vocab": "vocab_size",
            "n_ctx": "max_position_embeddings",
            "eps": "layer_norm_epsilon",
            "activation": "activation_function",
        },
        defaults=GPT2_DEFAULTS,
        others=("attention_types", "attention_layers", "window_size"),
        more=_more,
        harmless=(),
        prefix="transformer.",
        outside=GPT2_OUTSIDE,
        embedding="wte.weight",
        blocks="h",
        block=lambda fields: _BLOCK,
        buffers=("attn.attention.bias", "attn.attention.masked_bias"),  # masks
        heads=("lm_head.weight",),
    )
)
