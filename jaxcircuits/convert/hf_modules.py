"""Hook points of a Hugging Face model's modules, for autoencoders that were trained on what a module takes or gives.

A norm's output there is scaled and shifted, which no hook point is: `hook_normalized` is the value before. What reads
it is a linear map of that value all the same, so a transcoder takes scale and shift into its encoder when converted.
"""

import re
from typing import NamedTuple

_PREFIX = r"(?:model\.|transformer\.|gpt_neox\.)*"
_BLOCK = re.compile(rf"{_PREFIX}(?:h|layers)\.(?P<layer>\d+)(?:\.(?P<module>[\w.]+))?")
_TOP = re.compile(rf"{_PREFIX}(?P<module>wte|wpe|embed_tokens|embed_in)")
_NAMED = re.compile(r"(?P<module>resid_post|mlp_out|attn_out)_layer_(?P<layer>\d+)")


class ModuleHooks(NamedTuple):
    """The hook points of what a module takes and of what it gives; `None` where no hook point is that value.

    Where `taken` is a `hook_normalized`, the module takes it scaled and shifted.
    """

    taken: str | None
    given: str | None


_MODULES = {
    "": ModuleHooks("hook_resid_pre", "hook_resid_post"),
    "ln_1": ModuleHooks("hook_resid_pre", None),
    "attn": ModuleHooks("ln1.hook_normalized", "hook_attn_out"),
    "attn.attention": ModuleHooks("ln1.hook_normalized", "hook_attn_out"),
    "attn.attention.q_proj": ModuleHooks("ln1.hook_normalized", "attn.hook_q"),
    "attn.attention.k_proj": ModuleHooks("ln1.hook_normalized", "attn.hook_k"),
    "attn.attention.v_proj": ModuleHooks("ln1.hook_normalized", "attn.hook_v"),
    "attn.attention.out_proj": ModuleHooks("attn.hook_z", "hook_attn_out"),
    "ln_2": ModuleHooks("hook_resid_mid", None),
    "mlp": ModuleHooks("ln2.hook_normalized", "hook_mlp_out"),
    "mlp.c_fc": ModuleHooks("ln2.hook_normalized", "mlp.hook_pre"),
    "mlp.act": ModuleHooks("mlp.hook_pre", "mlp.hook_post"),
    "mlp.c_proj": ModuleHooks("mlp.hook_post", "hook_mlp_out"),
    "input_layernorm": ModuleHooks("hook_resid_pre", None),
    "attention": ModuleHooks("ln1.hook_normalized", "hook_attn_out"),
    "attention.query_key_value": ModuleHooks("ln1.hook_normalized", None),
    "attention.dense": ModuleHooks("attn.hook_z", "hook_attn_out"),
    "mlp.dense_h_to_4h": ModuleHooks("ln2.hook_normalized", "mlp.hook_pre"),
    "mlp.dense_4h_to_h": ModuleHooks("mlp.hook_post", "hook_mlp_out"),
    "resid_post": ModuleHooks(None, "hook_resid_post"),
    "attn_out": ModuleHooks(None, "hook_attn_out"),
    "mlp_out": ModuleHooks(None, "hook_mlp_out"),
}
"""By the module's path inside its block. Source: Hugging Face's `GPTNeoBlock` and `GPTNeoXLayer`, whose values tests
compare. The latter's `post_attention_layernorm` is none of them: what it takes depends on the model's config.
"""
_TOP_MODULES = {
    "wte": ModuleHooks(None, "hook_embed"),
    "embed_tokens": ModuleHooks(None, "hook_embed"),
    "embed_in": ModuleHooks(None, "hook_embed"),
    "wpe": ModuleHooks(None, "hook_pos_embed"),
}


def module_layer(path: str) -> int | None:
    """The block that a module lies in."""
    match = _BLOCK.fullmatch(path) or _NAMED.fullmatch(path)
    return None if match is None else int(match["layer"])


def module_hooks(path: str) -> ModuleHooks:
    """Hook points of what a module takes and gives; both `None` for a module that is not known.

    Args:
        path: Its path in the model, such as `transformer.h.0.mlp` or `h.0.mlp`.
    """
    if match := _TOP.fullmatch(path):
        return _TOP_MODULES[match["module"]]
    match = _BLOCK.fullmatch(path) or _NAMED.fullmatch(path)
    if match is None or (match["module"] or "") not in _MODULES:
        return ModuleHooks(None, None)
    block = f"blocks.{match['layer']}"
    return ModuleHooks(*(name and f"{block}.{name}" for name in _MODULES[match["module"] or ""]))
