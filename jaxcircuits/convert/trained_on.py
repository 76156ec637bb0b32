"""Weight processing that agrees with what autoencoders were trained on.

Processing leaves the model's function alone, and `mlp.hook_post` with it, but other hook points change their value:
an autoencoder that was trained on the residual stream of the raw model must not read the centred one. So the bundle
leaves out the steps that would change what one of its autoencoders reads or writes.
"""

from collections.abc import Mapping, Sequence

from jaxcircuits.config import PROCESSING_STEPS
from jaxcircuits.convert.format import ConvertedSAE
from jaxcircuits.errors import InputError

_CHANGED_BY = {
    "hook_normalized": "fold_layer_norm",
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


def choose_processing(saes: Mapping[str, ConvertedSAE], default: Sequence[str]) -> tuple[str, ...]:
    """The steps of a bundle that give its autoencoders the values they know.

    Args:
        saes: The autoencoders, by name.
        default: The steps to take where none of them minds.

    Raises:
        InputError: Two of them need different processing.
    """
    wanted: dict[str, tuple[bool, str]] = {}
    for name, one in saes.items():
        if one.processing is None:
            continue
        for hook in (one.sae.cfg.hook_name, one.sae.cfg.hook_written):
            step = _CHANGED_BY.get(hook.rsplit(".", 1)[-1])
            if step is None:
                continue
            on = step in one.processing
            before, other = wanted.setdefault(step, (on, name))
            if before != on:
                raise InputError(
                    f"SAE {name} was trained on a model {_with(on)} the step {step}, but {other} on one "
                    f"{_with(before)} it, which changes {hook}; make two bundles."
                )
    return tuple(step for step in PROCESSING_STEPS if (wanted[step][0] if step in wanted else step in default))


def _with(on: bool) -> str:
    return "with" if on else "without"
