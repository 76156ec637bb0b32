"""Hugging Face's GPT-NeoX, which Pythia is."""

from typing import Any

from jaxcircuits.convert.hf_model import (
    EMBEDDING,
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
from jaxcircuits.convert.hugging_face import flag
from jaxcircuits.convert.rotary import rotary_fields, rotary_numbers
from jaxcircuits.errors import InputError

# Heads side by side, each with its query, key and value likewise: not as in GPT-2.
_BLOCK: Rows = {
    **norm("input_layernorm", "ln1"),
    "attention.query_key_value.weight": (
        "(head qkv d_head) d_model -> qkv head d_model d_head",
        *(f"attn.W_{x}" for x in "QKV"),
    ),
    "attention.query_key_value.bias": ("(head qkv d_head) -> qkv head d_head", *(f"attn.b_{x}" for x in "QKV")),
    "attention.dense.weight": (HEADS_OUT, "attn.W_O"),
    "attention.dense.bias": (VECTOR, "attn.b_O"),
    **norm("post_attention_layernorm", "ln2"),
    "mlp.dense_h_to_4h.weight": (LINEAR_IN, "mlp.W_in"),
    "mlp.dense_h_to_4h.bias": ("d_mlp -> d_mlp", "mlp.b_in"),
    "mlp.dense_4h_to_h.weight": (LINEAR_OUT, "mlp.W_out"),
    "mlp.dense_4h_to_h.bias": (VECTOR, "mlp.b_out"),
}
_NUMBERS = {"rope_theta": ("rotary_emb_base", 10000.0), "partial_rotary_factor": ("rotary_pct", 0.25)}


def _block(fields: Fields) -> Rows:
    """Attention may be without biases."""
    biased = fields.get("attention_bias", True)
    return {name: row for name, row in _BLOCK.items() if biased or name[:10] != "attention." or name[-5:] != ".bias"}


def _more(fields: Fields, sizes: Sizes, where: str) -> dict[str, Any]:
    flag(fields, "attention_bias", where, True)
    base, share = rotary_numbers(fields, _NUMBERS, where)
    rotary_dim = int(share * sizes.d_head)  # rounded down, as transformers does
    if not 0 < share <= 1 or rotary_dim < 2 or rotary_dim % 2:
        raise InputError(
            f"{where}: rotary_pct must turn an even number of a head's {sizes.d_head}, got {share}, so {rotary_dim}."
        )
    return {
        "attention": ("global",) * sizes.n_layers,
        "window": sizes.n_ctx,
        "attention_scale": sizes.d_head**-0.5,
        "family": "gpt_neox",
        "positions": "rotary",
        "rotary_dim": rotary_dim,
        "rotary_base": base,
        "parallel_residual": flag(fields, "use_parallel_residual", where, True),
    }


FORMAT = model_format(
    Family(
        names={
            "n_layers": "num_hidden_layers",
            "d_model": "hidden_size",
            "n_heads": "num_attention_heads",
            "d_mlp": "intermediate_size",
            "d_vocab": "vocab_size",
            "n_ctx": "max_position_embeddings",
            "eps": "layer_norm_eps",
            "activation": "hidden_act",
        },
        defaults={"activation": "gelu", "bos_token_id": 0, "tie_word_embeddings": False},
        others={"use_parallel_residual", "attention_bias", *rotary_fields(_NUMBERS)},
        more=_more,
        harmless=("hidden_dropout",),
        prefix="gpt_neox.",
        outside={
            "embed_in.weight": (EMBEDDING, "W_E"),
            **norm("final_layer_norm", "ln_final"),
        },
        embedding="embed_in.weight",
        blocks="layers",
        block=_block,
        buffers=("attention.bias", "attention.masked_bias", "attention.rotary_emb.inv_freq"),
        heads=("embed_out.weight", "lm_head.weight"),
    )
)
