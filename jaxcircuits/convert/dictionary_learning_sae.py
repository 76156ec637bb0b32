"""dictionary_learning: `ae.pt` with tensors and `config.json` with the settings of its training.

Features are those of the stored tensors. The library's own `load_dictionary` rescales an `AutoEncoder` so that its
decoder's columns have norm 1, which multiplies each feature by the norm it had and leaves the output alone.

Source: dictionary_learning 0.1.0.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcircuits.convert.arrays import assemble
from jaxcircuits.convert.format import (
    ConvertedSAE,
    Options,
    SAEFormat,
    check_fields,
    name_hook,
    read_fields,
    renamed_tensors,
    required,
    typed,
)
from jaxcircuits.convert.hf_modules import module_hooks, module_layer
from jaxcircuits.convert.pickle_reader import read_torch_content
from jaxcircuits.errors import InputError

CONFIG, WEIGHTS = "config.json", "ae.pt"
_LINEAR = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec"}
"""Names of `torch.nn.Linear`, whose weights are transposed."""
_PLAIN = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}


class _Class(NamedTuple):
    """One class of the library.

    Attributes:
        architecture: What it is here.
        names: Names of its tensors to those here.
        subtract_b_dec: Whether it centres its input.
        unused: Tensors that do not enter.
    """

    architecture: str
    names: Mapping[str, str]
    subtract_b_dec: bool = True
    unused: Sequence[str] = ()


_GATED = {"encoder.weight": "W_enc", "decoder.weight": "W_dec", "decoder_bias": "b_dec", "r_mag": "r_mag"}
_CLASSES = {
    "AutoEncoder": _Class("relu", {**_LINEAR, "bias": "b_dec"}),
    "AutoEncoderNew": _Class("relu", {**_LINEAR, "decoder.bias": "b_dec"}, subtract_b_dec=False),
    "GatedAutoEncoder": _Class("gated", {**_GATED, "gate_bias": "b_gate", "mag_bias": "b_mag"}),
    "JumpReluAutoEncoder": _Class("jumprelu", _PLAIN, subtract_b_dec=False),
    # Its threshold is for those who want one; by default it keeps the k largest.
    "AutoEncoderTopK": _Class("topk", {**_LINEAR, "b_dec": "b_dec"}, unused=("k", "threshold")),
    "BatchTopKSAE": _Class("batchtopk", {**_LINEAR, "b_dec": "b_dec", "threshold": "threshold"}, unused=("k",)),
    "MatryoshkaBatchTopKSAE": _Class("batchtopk", _PLAIN, unused=("k", "group_sizes")),
}
_UNDERSTOOD = {"dict_class", "activation_dim", "dict_size", "layer", "submodule_name", "k", "io"}
_HARMLESS = {
    *("trainer_class", "lm_name", "seed", "device", "wandb_name", "steps", "lr", "l1_penalty", "sparsity_penalty"),
    *("warmup_steps", "sparsity_warmup_steps", "decay_start", "resample_steps", "auxk_alpha", "top_k_aux"),
    *("threshold_beta", "threshold_start_step", "target_l0", "bandwidth", "initial_sparsity_penalty"),
    *("sparsity_function", "p_start", "p_end", "anneal_start", "n_sparsity_updates", "sparsity_queue_length"),
    *("group_fractions", "group_weights", "group_sizes", "norm_factor", "d_submodule", "n_ctxs", "ctx_len"),
    *("refresh_batch_size", "out_batch_size"),
}


def _files(path: Path) -> tuple[Path, Path]:
    return (path, path.with_name(CONFIG)) if path.suffix == ".pt" else (path / WEIGHTS, path / CONFIG)


def _matches(path: Path) -> bool:
    weights, config = _files(path)
    return (path.suffix != ".pt" or path.name == WEIGHTS) and weights.is_file() and config.is_file()


def _choose(names: Sequence[str]) -> list[str]:
    return [CONFIG, WEIGHTS] if {CONFIG, WEIGHTS} <= set(names) else []


def _read(path: Path, options: Options) -> ConvertedSAE:
    weights, config = _files(path)
    where = str(config)
    given = read_fields(config, "SAE")
    trainer, buffer = required(given, "trainer", where), given.get("buffer", {})
    if not isinstance(trainer, dict) or not isinstance(buffer, dict):
        raise InputError(f"{where}: trainer and buffer must be objects; check that this is the right file.")
    check_fields({**given, **trainer, **buffer}, _UNDERSTOOD | {"trainer", "buffer"}, _HARMLESS, options, where)
    name = required(trainer, "dict_class", where)
    if not isinstance(name, str) or name not in _CLASSES:
        raise InputError(f"{where}: dict_class must be one of {', '.join(_CLASSES)}, got {name!r}.")
    kind = _CLASSES[name]
    hook = name_hook(_hook(trainer, buffer, where), options, where, _hint(trainer))
    tensors = _tensors(weights)
    k = _unused(tensors, kind, name, trainer, str(weights))
    if kind.architecture == "batchtopk" and "threshold" not in tensors:
        raise InputError(
            f"{weights}: a {name} without threshold chooses its features over the other tokens of a batch, which is "
            "not supported; train it on until it has one."
        )
    sae = assemble(
        renamed_tensors(tensors, kind.names, f"{'an' if name[0] == 'A' else 'a'} {name}", str(weights)),
        hook,
        options,
        str(weights),
        architecture=kind.architecture,
        k=k,
        subtract_b_dec=kind.subtract_b_dec,
        origin=f"dictionary_learning {name}",
    )
    for field, width in (("activation_dim", sae.cfg.d_in), ("dict_size", sae.cfg.d_sae)):
        if trainer.get(field) not in (None, width):
            raise InputError(f"{where}: {field} is {trainer[field]!r}, but by its tensors it is {width}; correct one.")
    return ConvertedSAE(weights.absolute().parent.name, sae, [config, weights], (), scaled_norm=True, of_modules=True)


def _hook(trainer: Mapping[str, Any], buffer: Mapping[str, Any], where: str) -> str | None:
    """The hook point that its module's output, or input, is; `None` where it does not say."""
    io = buffer.get("io", "out")
    if io not in ("in", "out"):
        raise InputError(f"{where}: io is {io!r}: a dictionary from a module's input to its output is not supported.")
    module, layer = trainer.get("submodule_name"), trainer.get("layer")
    if not isinstance(module, str):
        return None
    hooks = module_hooks(module)
    if layer is not None and module_layer(module) not in (None, layer):
        raise InputError(f"{where}: layer is {layer!r}, but submodule_name is {module!r}; correct one of them.")
    return hooks.given if io == "out" else hooks.taken


def _hint(trainer: Mapping[str, Any]) -> str:
    module, layer = trainer.get("submodule_name"), trainer.get("layer")
    if isinstance(module, str):
        return f"the submodule {module!r} is no hook point that is known here"
    return f"it says layer {layer!r}, but no submodule (where it is the layer's output: blocks.{layer}.hook_resid_post)"


def _tensors(path: Path) -> dict[str, np.ndarray]:
    """The state dict, or that of the backup which an interrupted training leaves in its place.

    Raises:
        InputError: It holds something else, or the backup is of normalised activations.
    """
    content = read_torch_content(path)
    if isinstance(content.get("ae"), dict):
        factor = content.get("norm_factor")
        if factor is not None and not np.all(np.asarray(factor) == 1):
            raise InputError(
                f"{path} is the backup of an interrupted training on normalised activations (norm_factor "
                f"{np.asarray(factor).item():.6g}), whose biases are scaled only at its end; finish the training."
            )
        content = content["ae"]
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, np.ndarray):
            raise InputError(f"{path} must hold tensors by name, but {key!r} is of type {type(value).__name__}.")
    return dict(content)


def _unused(
    tensors: dict[str, np.ndarray], kind: _Class, name: str, trainer: Mapping[str, Any], where: str
) -> int | None:
    """Takes out the tensors that do not enter, but for a `k` to return; they must agree with the config."""
    found = {key: tensors.pop(key) for key in kind.unused if key in tensors}
    groups = found.get("group_sizes")
    if groups is not None and "b_enc" in tensors and groups.sum() != tensors["b_enc"].size:
        raise InputError(
            f"{where}: group_sizes add up to {groups.sum()}, expected the {tensors['b_enc'].size} features."
        )
    k, stored = typed(trainer, "k", int, where), found.get("k")
    if stored is not None and stored.size != 1:
        raise InputError(f"{where}: its k must be one number, got shape {list(stored.shape)}.")
    if stored is not None and k is not None and k != stored.item():
        raise InputError(f"{where}: its k is {stored.item()}, but that of its config {k!r}; correct one of them.")
    if kind.architecture != "topk":
        return None
    if k is None and stored is None:
        raise InputError(f"{where}: neither it nor its config says the k of a {name}.")
    return int(stored.item()) if k is None and stored is not None else k


FORMAT = SAEFormat(
    "dictionary_learning",
    f"a directory with {CONFIG} and {WEIGHTS} (dictionary_learning)",
    _matches,
    _choose,
    _read,
)
