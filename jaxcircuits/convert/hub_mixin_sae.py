"""Autoencoders that the original study put on the Hugging Face hub, with `PyTorchModelHubMixin`."""

from collections.abc import Sequence
from pathlib import Path

from jaxcircuits.config import PROCESSING_STEPS
from jaxcircuits.convert.checkpoint import read_weights, weight_files
from jaxcircuits.convert.format import ConvertedSAE, Options, SAEFormat, check_fields, read_fields, required
from jaxcircuits.convert.original_sae import autoencoder
from jaxcircuits.errors import InputError

_UNDERSTOOD = {"d_in", "d_hidden", "hook_name", "layer", "wandb_name"}
_HARMLESS = {"dtype", "model", "regularization", "seed", "wandb_id"}


def _choose(names: Sequence[str]) -> list[str]:
    weights = weight_files(names)
    return ["config.json", *weights] if "config.json" in names and weights else []


def _read(path: Path, options: Options) -> ConvertedSAE:
    config = path / "config.json"
    where = str(config)
    fields = read_fields(config, "SAE")
    check_fields(fields, _UNDERSTOOD, _HARMLESS, options, where)
    hook, name = required(fields, "hook_name", where), fields.get("wandb_name")
    if not isinstance(hook, str):
        raise InputError(f"{where}: hook_name must be one such as 'blocks.0.mlp.hook_post', got {hook!r}.")
    if fields.get("layer") is not None and hook.startswith("blocks.") and hook.split(".")[1] != str(fields["layer"]):
        raise InputError(f"{where}: layer is {fields['layer']!r}, but hook_name is {hook!r}; correct one of them.")
    tensors, files = read_weights(path, "SAE")
    sae = autoencoder(tensors, hook, options, str(path), "original study, hub mixin")
    for field, value in (("d_in", sae.cfg.d_in), ("d_hidden", sae.cfg.d_sae)):
        if fields.get(field) is not None and fields[field] != value:
            shape = [sae.cfg.d_in, sae.cfg.d_sae]
            raise InputError(
                f"{where}: {field} is {fields[field]!r}, but W_enc has shape {shape}; correct one of them."
            )
    return ConvertedSAE(name if isinstance(name, str) else "", sae, [config, *files], PROCESSING_STEPS)


FORMAT = SAEFormat(
    "hub_mixin",
    "a directory or hub repository with config.json and model.safetensors or pytorch_model.bin",
    lambda path: (path / "config.json").is_file(),
    _choose,
    _read,
)
