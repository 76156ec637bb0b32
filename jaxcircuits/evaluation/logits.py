"""What a feature's decoder direction does to the logits on the straight way there."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxcircuits.bundle import Bundle
from jaxcircuits.sae import SAE

_RESIDUAL = ("hook_embed", "hook_pos_embed", "hook_attn_out", "hook_mlp_out", "hook_resid_pre", "hook_resid_mid")
_WRITES = (*_RESIDUAL, "hook_resid_post")


def logit_effects(bundle: Bundle, sae: SAE, feature: int) -> tuple[str, Float[np.ndarray, "d_vocab"]] | None:
    """The logits that one unit of a feature adds through the residual stream alone.

    Later blocks, the final norm's scale and a cap are left out; of the norm, centring and weights are kept. The mean
    over the vocabulary, which the softmax ignores, is taken off. A normalised autoencoder's unit is in the scale of its
    input.

    Returns:
        The path in words and the effects; `None` for hooks whose value no linear map leads from to the residual stream.
    """
    hook = sae.cfg.hook_written
    block, _, name = hook.removeprefix("blocks.").partition(".")
    direction: Float[Array, width] = sae.weights.W_dec[feature]
    path = "W_dec"
    if hook in _WRITES or name in _WRITES:
        pass
    elif bundle.cfg.norms_behind:
        return None
    elif name == "mlp.hook_post":
        direction, path = direction @ bundle.params.blocks[int(block)].mlp.W_out, f"W_dec → W_out of layer {block}"
    elif name == "attn.hook_z":
        W_O = bundle.params.blocks[int(block)].attn.W_O
        direction, path = direction @ W_O.reshape(-1, W_O.shape[-1]), f"W_dec → W_O of layer {block}"
    else:
        return None
    direction = direction - direction.mean() if bundle.cfg.norm == "layer" else direction
    if bundle.params.ln_final is not None:
        direction = direction * bundle.params.ln_final.w
    effects = np.asarray(jnp.asarray(direction) @ bundle.params.W_U, np.float64)
    return f"{path} → W_U", effects - effects.mean()
