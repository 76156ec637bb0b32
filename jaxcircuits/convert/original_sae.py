"""Autoencoders of the original study: `NAME.pt` with tensors and `NAME.json` with the settings of its training."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxcircuits.config import PROCESSING_STEPS, SAEConfig
from jaxcircuits.convert.format import (
    ConvertedSAE,
    Options,
    SAEFormat,
    check_fields,
    checked_tensors,
    read_fields,
    required,
)
from jaxcircuits.convert.pickle_reader import read_torch
from jaxcircuits.errors import InputError
from jaxcircuits.sae import SAE
from jaxcircuits.types import SAEWeights

_UNDERSTOOD = {"layer", "act", "d_in", "expansion_factor"}
_HARMLESS = {
    *("cfg_file", "data_path", "save_path", "use_wandb", "wandb_name", "save_name", "save_checkpoint_models", "model"),
    *(
        "num_eval_tokens",
        "num_training_tokens",
        "num_eval_prompts",
        "num_eval_batches",
        "batch_size",
        "seq_len",
        "seed",
    ),
    *("buffer_mult", "buffer_size", "buffer_batches", "model_batch_size", "lr", "wd", "beta1", "beta2"),
    *("l1_coeff", "l1_target", "reg", "finetune_encoder", "dead_direction_frequency"),
    "head_idx",  # matters to attn.hook_result alone, which no autoencoder can sit on here
}


def autoencoder(tensors: Mapping[str, np.ndarray], hook_name: str, options: Options, where: str, origin: str) -> SAE:
    """The study's autoencoder from its tensors, whose shapes say its widths; `W_dec` stays as it came.

    It always read the processed model.

    Source: the original study's `AutoEncoder`, `relu((x - b_dec) W_enc + b_enc)`.

    Raises:
        InputError: A tensor is missing, unknown, of another shape, or holds NaN or Inf.
    """
    encoder = tensors.get("W_enc")
    if encoder is None or encoder.ndim != 2:
        raise InputError(f"{where}: the tensor W_enc is missing or no matrix; expected W_enc, b_enc, W_dec and b_dec.")
    d_in, d_sae = encoder.shape
    shapes = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    weights = SAEWeights(**checked_tensors(tensors, shapes, options, where))  # pyright: ignore[reportArgumentType]
    return SAE(weights, SAEConfig(d_in, d_sae, hook_name, activation="relu", subtract_b_dec=True, origin=origin))


def _tensors_file(path: Path) -> Path:
    return path if path.suffix == ".pt" else path.with_name(f"{path.name}.pt")


def _matches(path: Path) -> bool:
    return path.suffix == ".pt" or (path.name != "" and _tensors_file(path).is_file())


def _read(path: Path, options: Options) -> ConvertedSAE:
    path = _tensors_file(path)
    if not path.is_file():
        raise InputError(f"SAE: there is no file {path}; check the path.")
    settings = path.with_suffix(".json")
    if not settings.is_file():
        raise InputError(f"SAE: {path} needs its settings beside it, but there is no {settings}; copy it there.")
    where = str(settings)
    fields = read_fields(settings, "SAE")
    check_fields(fields, _UNDERSTOOD, _HARMLESS, options, where)
    layer, act = required(fields, "layer", where), required(fields, "act", where)
    if type(layer) is not int or not isinstance(act, str):
        raise InputError(f"{where}: expected layer and act such as 0 and 'mlp.hook_post', got {layer!r} and {act!r}.")
    sae = autoencoder(read_torch(path), f"blocks.{layer}.{act}", options, str(path), "original study")
    d_in, d_sae = sae.cfg.d_in, sae.cfg.d_sae
    # Old runs lack d_in.
    for name, value in (("d_in", d_in), ("expansion_factor", d_sae / d_in)):
        if fields.get(name) is not None and fields[name] != value:
            raise InputError(f"{where}: {name} is {fields[name]!r}, but W_enc of {path} has shape {[d_in, d_sae]}.")
    return ConvertedSAE(path.stem, sae, [path, settings], PROCESSING_STEPS)


FORMAT = SAEFormat("original", "NAME.pt with NAME.json beside it", _matches, lambda names: [], _read)
