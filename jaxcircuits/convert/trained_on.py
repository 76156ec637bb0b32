"""The model as autoencoders know it: its weight processing, and its norms.

Processing leaves the model's function alone, and `mlp.hook_post` with it, but other hook points change their value:
an autoencoder that was trained on the residual stream of the raw model must not read the centred one. So the bundle
leaves out the steps that would change what one of its autoencoders reads or writes.
"""

from collections.abc import Mapping

import numpy as np

from jaxcircuits.config import PROCESSING_STEPS, ModelConfig
from jaxcircuits.convert.arrays import at_least_float32
from jaxcircuits.convert.format import ConvertedSAE
from jaxcircuits.errors import InputError
from jaxcircuits.sae import SAE
from jaxcircuits.types import ModelWeights, NormWeights

_CHANGED_BY = {
    "hook_embed": "center_writing_weights",
    "hook_pos_embed": "center_writing_weights",
    "hook_resid_pre": "center_writing_weights",
    "hook_resid_mid": "center_writing_weights",
    "hook_resid_post": "center_writing_weights",
    "hook_attn_out": "center_writing_weights",
    "hook_mlp_out": "center_writing_weights",
    "hook_v": "fold_value_biases",
    "hook_z": "fold_value_biases",
}
"""By the kind of hook point, the step that changes its value."""


def choose_processing(saes: Mapping[str, ConvertedSAE], cfg: ModelConfig) -> tuple[str, ...]:
    """The steps of a bundle that give its autoencoders the values they know.

    Args:
        saes: The autoencoders, by name.
        cfg: The model, with the steps to take where none of them minds. Those that are not defined for it are not
            taken, whatever an autoencoder says, as in TransformerLens.

    Raises:
        InputError: Two of them need different processing.
    """
    wanted: dict[str, tuple[bool, str]] = {}
    for name, one in saes.items():
        if one.processing is None:
            continue
        for hook in (one.sae.cfg.hook_name, one.sae.cfg.hook_written):
            step = _CHANGED_BY.get(hook.rsplit(".", 1)[-1])
            if step is None or step in cfg.undefined_steps:
                continue
            on = step in one.processing
            before, other = wanted.setdefault(step, (on, name))
            if before != on:
                raise InputError(
                    f"SAE {name} was trained on a model {_with(on)} the step {step}, but {other} on one "
                    f"{_with(before)} it, which changes {hook}; make two bundles."
                )
    return tuple(step for step in PROCESSING_STEPS if (wanted[step][0] if step in wanted else step in cfg.processing))


def check_modules(one: ConvertedSAE, cfg: ModelConfig, name: str) -> None:
    """Refuses an autoencoder of what a module gives where the hook point is another value.

    Raises:
        InputError: A norm or a factor lies between the two.
    """
    hook = one.sae.cfg.hook_written
    after = {
        "hook_embed": cfg.embedding_scale != 1,
        "hook_attn_out": cfg.norms_behind,
        "hook_mlp_out": cfg.norms_behind,
    }
    if one.of_modules and after.get(hook.rpartition(".")[2], False):
        raise InputError(
            f"SAE {name}: it was trained on what a module of the {cfg.family} model gives, but {hook} is the value "
            f"after {'its factor' if hook == 'hook_embed' else 'the norm behind'}, and no hook point is the one before."
        )


def norm_taken_in(one: ConvertedSAE, params: ModelWeights, name: str) -> ConvertedSAE:
    """An autoencoder of a norm's scaled and shifted value as one of the value before, which is the hook point.

    Args:
        one: The autoencoder; any that does not read a norm stays as it is.
        params: The model's unprocessed weights.
        name: What to call it in an error.

    Raises:
        InputError: It is no transcoder: it would have to write the value before as well.
    """
    hook, weights = one.sae.cfg.hook_name, one.sae.weights
    if not one.scaled_norm or not hook.endswith(".hook_normalized"):
        return one
    if not one.sae.cfg.transcodes:
        raise InputError(
            f"SAE {name}: it reconstructs a norm's output with its scale and shift, but {hook} is the value before "
            "them; this is supported for transcoders alone."
        )
    norm = _norm(params, hook)
    scale = np.asarray(norm.w, np.float64)
    shift = np.zeros_like(scale) if norm.b is None else np.asarray(norm.b, np.float64)
    W_enc, b_enc, b_dec = (np.asarray(w, np.float64) for w in (weights.W_enc, weights.b_enc, weights.b_dec))
    if W_enc.shape[0] != scale.size:
        return one  # of another model, which is said where widths are compared
    changed = {"W_enc": scale[:, None] * W_enc, "b_enc": b_enc + shift @ W_enc}
    if weights.W_skip is not None:
        W_skip = np.asarray(weights.W_skip, np.float64)
        changed |= {"W_skip": scale[:, None] * W_skip, "b_dec": b_dec + shift @ W_skip}
    dtype = at_least_float32(weights.W_enc)
    changed = {field: array.astype(dtype) for field, array in changed.items()}
    return one._replace(sae=SAE(weights._replace(**changed), one.sae.cfg))


def _norm(params: ModelWeights, hook: str) -> NormWeights:
    """The norm of a `hook_normalized`."""
    parts = hook.split(".")
    layer = int(parts[1]) if parts[0] == "blocks" and parts[1].isdecimal() else -1
    norm = params.ln_final
    if parts[0] == "blocks":
        norm = getattr(params.blocks[layer], parts[2], None) if 0 <= layer < len(params.blocks) else None
    if norm is None:
        raise InputError(f"the model has no hook point {hook!r}.")
    return norm


def _with(on: bool) -> str:
    return "with" if on else "without"
