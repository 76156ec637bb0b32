"""Sparsify: `cfg.json` and `sae.safetensors` in a directory named after the module that it was trained on.

Transcoders from before February 2025 subtracted `b_dec` from their input, as autoencoders do; their config does not
have the field `activation`, which came in the same change. Sparsify itself reads them as if they had not.

Source: eai-sparsify 1.3.3, and EleutherAI/sparsify#49 for that change.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcircuits.convert.arrays import assemble, at_least_float32
from jaxcircuits.convert.format import (
    ConvertedSAE,
    Options,
    SAEFormat,
    check_fields,
    name_hook,
    name_hook_out,
    read_fields,
    renamed_tensors,
    required,
    typed,
)
from jaxcircuits.convert.hf_modules import ModuleHooks, module_hooks
from jaxcircuits.errors import InputError
from jaxcircuits.files import read_safetensors

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
_UNDERSTOOD = {"activation", "expansion_factor", "num_latents", "k", "skip_connection", "transcode", "d_in", "signed"}
_HARMLESS = {"normalize_decoder", "multi_topk"}
_NAMES = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}


def _matches(path: Path) -> bool:
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def _choose(names: Sequence[str]) -> list[str]:
    return [CONFIG, WEIGHTS] if {CONFIG, WEIGHTS} <= set(names) else []


def _read(path: Path, options: Options) -> ConvertedSAE:
    config, weights = path / CONFIG, path / WEIGHTS
    where = str(config)
    fields = read_fields(config, "SAE")
    check_fields(fields, _UNDERSTOOD, _HARMLESS, options, where)
    if typed(fields, "signed", bool, where):
        raise InputError(f"{where}: signed features are not supported: they are kept by their size, of either sign.")
    activation = fields.get("activation", "topk")
    required(fields, "k", where)
    if activation not in ("topk", "groupmax"):
        raise InputError(f"{where}: activation must be 'topk' or 'groupmax', got {activation!r}.")
    transcodes, skips = (typed(fields, name, bool, where, False) for name in ("transcode", "skip_connection"))
    if skips and not transcodes:
        raise InputError(f"{where}: a skip connection of an autoencoder, past its features, is not supported.")
    module, hooks = _module(path)
    place = "the module's input" if transcodes else "the module's output"
    hint = f"{place} ({module!r} by the directory's name) is no hook point that is known here"
    hook = name_hook(hooks.taken if transcodes else hooks.given, options, where, hint)
    tensors = read_safetensors(weights)
    if ("W_skip" in tensors) != skips:
        raise InputError(f"{weights}: W_skip belongs to a skip_connection, which the config says {skips}.")
    found = renamed_tensors(tensors, _NAMES, "a sparse coder", str(weights))
    if skips:
        found["W_skip"] = found["W_skip"].T
    old = transcodes and "activation" not in fields
    if old:
        _subtract_once(found, str(weights))
    sae = assemble(
        found,
        hook,
        options,
        str(weights),
        architecture=activation,
        k=typed(fields, "k", int, where),
        subtract_b_dec=not transcodes,
        hook_out=name_hook_out(hooks.given, options, where) if transcodes else None,
        origin=f"sparsify {activation}{' transcoder' * transcodes}{' of before 2025-02' * old}",
    )
    _check_widths(fields, sae.cfg.d_in, sae.cfg.d_sae, where)
    return ConvertedSAE(
        path.resolve().name, sae, [config, weights], (), scaled_norm=True, of_modules=hooks.given is not None
    )


def _module(path: Path) -> tuple[str, ModuleHooks]:
    """The module's path and its hook points, from the directory's name, or its parent's where that is a seed's."""
    path = path.resolve()
    module = path.parent.name if path.name.startswith("seed") else path.name
    return module, module_hooks(module)


def _subtract_once(tensors: dict[str, np.ndarray], where: str) -> None:
    """Moves `- b_dec W_enc` into `b_enc`, in float32 at least."""
    W_enc, b_enc, b_dec = (tensors[name] for name in ("W_enc", "b_enc", "b_dec"))
    if W_enc.shape != (*b_dec.shape, *b_enc.shape):
        raise InputError(f"{where}: encoder.weight of shape {list(W_enc.T.shape)} does not fit the biases.")
    shift = b_dec.astype(np.float64) @ W_enc.astype(np.float64)
    tensors["b_enc"] = (b_enc.astype(np.float64) - shift).astype(at_least_float32(b_enc))


def _check_widths(fields: Mapping[str, Any], d_in: int, d_sae: int, where: str) -> None:
    if fields.get("d_in") not in (None, d_in):
        raise InputError(f"{where}: d_in is {fields['d_in']!r}, but by its tensors it is {d_in}; correct one.")
    factor = typed(fields, "expansion_factor", int, where)
    latents = typed(fields, "num_latents", int, where) or (None if factor is None else d_in * factor)
    if latents not in (None, d_sae):
        raise InputError(f"{where}: it says {latents} latents, but by its tensors it has {d_sae}; correct one.")


FORMAT = SAEFormat("sparsify", f"a directory with {CONFIG} and {WEIGHTS} (Sparsify)", _matches, _choose, _read)
