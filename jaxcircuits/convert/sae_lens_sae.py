"""SAELens, from version 6 and from before it: `cfg.json` and `sae_weights.safetensors`.

Source: SAELens 6.54, 5.11 and 3.23. Since version 6 what is known of the model stands in `metadata`; before, all fields
stood side by side, under names that changed once or twice.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcircuits.convert.arrays import assemble
from jaxcircuits.convert.format import (
    ConvertedSAE,
    Options,
    SAEFormat,
    check_fields,
    name_hook,
    name_hook_out,
    read_fields,
    required,
    typed,
)
from jaxcircuits.convert.hf_modules import module_hooks
from jaxcircuits.errors import InputError
from jaxcircuits.files import read_safetensors

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
NORMALIZATIONS = {
    "none": "none",
    None: "none",
    False: "none",
    "constant_norm_rescale": "constant_norm_rescale",
    "layer_norm": "layer_norm",
    # What these do is folded into the weights at the end of training; nothing happens when the autoencoder runs.
    "expected_average_only_in": "none",
    True: "none",
    "covariance_whitening": "none",
}
TRANSCODERS = ("transcoder", "jumprelu_transcoder", "skip_transcoder", "jumprelu_skip_transcoder")
PROCESSING = {
    "fold_ln": "fold_layer_norm",
    "center_writing_weights": "center_writing_weights",
    "center_unembed": "center_unembed",
    "fold_value_biases": "fold_value_biases",
}
"""TransformerLens' names of the steps of weight processing, in their order."""
_ARCHITECTURES = {
    "standard": "relu",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "gated": "gated",
    "batchtopk": "batchtopk",
    "matryoshka_batchtopk": "batchtopk",
    "transcoder": "relu",
    "skip_transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}
_REFUSED = {
    "abstopk": "it keeps features of negative activation, which edges and thresholds here have no place for",
    "matching_pursuit": "it has no encoder, but chooses features one after another",
    "temporal": "its features depend on other positions too",
}
_RENAMED = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "hook_point_layer": "hook_layer",
    "activation_fn_str": "activation_fn",
}
_UNDERSTOOD = {
    *("architecture", "d_in", "d_sae", "d_out", "k", "rescale_acts_by_decoder_norm", "apply_b_dec_to_input"),
    *("normalize_activations", "reshape_activations", "metadata", "activation_fn", "activation_fn_kwargs"),
    *("finetuning_scaling_factor", "hook_name", "hook_name_out", "hook_head_index", "hook_layer"),
    *("model_from_pretrained_kwargs", "model_class_name", "sae_lens_version", "sae_lens_training_version"),
}
_HARMLESS = {
    # What it is called, and what it was trained on.
    *("model_name", "dtype", "device", "prepend_bos", "context_size", "seqpos_slice", "neuronpedia_id", "dataset_path"),
    *("dataset_name", "dataset_trust_remote_code", "is_dataset_tokenized", "streaming", "column_name", "split"),
    *("exclude_special_tokens", "hook_eval", "model_kwargs", "seed", "run_name", "verbose", "hook_head_index_out"),
    # How it was trained.
    *("l1_coefficient", "l0_coefficient", "l1_warm_up_steps", "l0_warm_up_steps", "lp_norm", "lr", "lr_end"),
    *("lr_decay_steps", "lr_warm_up_steps", "lr_scheduler_name", "n_restart_cycles", "adam_beta1", "adam_beta2"),
    *(
        "train_batch_size",
        "train_batch_size_tokens",
        "train_batch_size_samples",
        "training_tokens",
        "finetuning_tokens",
    ),
    *("finetuning_method", "total_training_tokens", "total_training_samples", "total_training_steps", "noise_scale"),
    *("mse_loss_normalization", "use_ghost_grads", "scale_sparsity_penalty_by_decoder_norm", "normalize_sae_decoder"),
    *("decoder_init_norm", "decoder_heuristic_init", "decoder_heuristic_init_norm", "decoder_orthogonal_init"),
    *("init_encoder_as_decoder_transpose", "b_dec_init_method", "expansion_factor", "activations_mixing_fraction"),
    *("aux_loss_coefficient", "topk_threshold_lr", "use_sparse_activations", "matryoshka_widths", "target_l0"),
    *("use_matryoshka_aux_loss", "jumprelu_bandwidth", "jumprelu_init_threshold", "jumprelu_sparsity_loss_mode"),
    *("jumprelu_ste_to_input", "jumprelu_tanh_scale", "pre_act_loss_coefficient", "n_batches_for_norm_estimate"),
    *("feature_sampling_window", "dead_feature_window", "dead_feature_threshold", "feature_sampling_method"),
    *("feature_reinit_scale", "resample_batches", "n_batches_in_buffer", "buffer_size_gb", "store_batch_size"),
    *("store_batch_size_prompts", "use_cached_activations", "cached_activations_path", "new_cached_activations_path"),
    *("autocast", "autocast_lm", "compile_llm", "compile_sae", "llm_compilation_mode", "sae_compilation_mode"),
    *("act_store_device", "llm_device", "prefetch_llm_batches", "tokens_per_buffer"),
    # Where it was written, and who watched.
    *("log_to_wandb", "log_weights_to_wandb", "log_optimizer_state_to_wandb", "log_activations_store_to_wandb"),
    *("wandb_project", "wandb_entity", "wandb_id", "wandb_log_frequency", "eval_every_n_wandb_logs", "n_eval_batches"),
    *("eval_batch_size_prompts", "n_checkpoints", "checkpoint_path", "save_path", "output_path", "resume"),
    *("resume_from_checkpoint", "save_final_checkpoint", "from_pretrained_path", "logger", "prefix"),
}


def _matches(path: Path) -> bool:
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def _choose(names: Sequence[str]) -> list[str]:
    return [CONFIG, WEIGHTS] if {CONFIG, WEIGHTS} <= set(names) else []


def _read(path: Path, options: Options) -> ConvertedSAE:
    config, weights = path / CONFIG, path / WEIGHTS
    where = str(config)
    raw = read_fields(config, "SAE")
    version = _version(raw)
    fields = _flat(raw, where)
    architecture = _architecture(fields, where)
    check_fields(fields, _UNDERSTOOD, _HARMLESS, options, where)
    if fields.get("hook_head_index") is not None:
        raise InputError(
            f"{where}: hook_head_index is {fields['hook_head_index']!r}, but an SAE on one head alone is not "
            "supported: hook points here have all heads side by side."
        )
    hook = typed(fields, "hook_name", str, where)
    of_modules = fields.get("model_class_name") == "AutoModelForCausalLM"
    if hook is not None and of_modules:
        hook = module_hooks(hook).given  # of a Hugging Face model, whose modules stand in for hook points
    hook = name_hook(hook, options, where)
    layer = fields.get("hook_layer")
    if layer is not None and hook.startswith("blocks.") and hook.split(".")[1] != str(layer):
        raise InputError(f"{where}: hook_layer is {layer!r}, but hook_name is {hook!r}; correct one of them.")
    transcodes = architecture in TRANSCODERS
    subtract = typed(fields, "apply_b_dec_to_input", bool, where, True)
    if transcodes and subtract:
        raise InputError(f"{where}: a transcoder cannot subtract b_dec; expected apply_b_dec_to_input false.")
    word = fields.get("normalize_activations")
    if not isinstance(word, str | bool | None) or word not in NORMALIZATIONS:
        known = ", ".join(name for name in NORMALIZATIONS if isinstance(name, str))
        raise InputError(f"{where}: normalize_activations must be one of {known}, got {word!r}.")
    unfolded = (
        " (input scale not folded in)" if word in (True, "expected_average_only_in", "covariance_whitening") else ""
    )
    sae = assemble(
        _tensors(read_safetensors(weights), fields, architecture, str(weights)),
        hook,
        options,
        str(weights),
        architecture=_ARCHITECTURES[architecture],
        k=typed(fields, "k", int, where) if architecture == "topk" else None,
        subtract_b_dec=subtract,
        normalization=NORMALIZATIONS[word],
        hook_out=name_hook_out(typed(fields, "hook_name_out", str, where), options, where) if transcodes else None,
        scaled=typed(fields, "rescale_acts_by_decoder_norm", bool, where, False),
        origin=f"sae_lens {version} {architecture}{unfolded}",
    )
    stated = {"d_in": sae.cfg.d_in, "d_sae": sae.cfg.d_sae, "d_out": sae.cfg.width_written}
    for field, width in stated.items():
        if fields.get(field) not in (None, width):
            raise InputError(f"{where}: {field} is {fields[field]!r}, but by its tensors it is {width}; correct one.")
    return ConvertedSAE("", sae, [config, weights], _processing(fields, where), of_modules=of_modules)


def _version(raw: Mapping[str, Any]) -> str:
    """The major version that wrote the file, or `<6`."""
    metadata = raw.get("metadata")
    written = raw.get("sae_lens_version") or (metadata.get("sae_lens_version") if isinstance(metadata, dict) else None)
    written = written or raw.get("sae_lens_training_version")
    return str(written).split(".")[0] if written else "6" if metadata else "<6"


def _flat(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """All fields side by side under the names of version 6, wherever and however they were called.

    Metadata holds what anyone wished to note, so only what is understood is taken from there.
    """
    fields = {_RENAMED.get(name, name): value for name, value in raw.items()}
    metadata = fields.pop("metadata", None) or {}
    if not isinstance(metadata, dict):
        raise InputError(f"{where}: metadata must be an object, got {type(metadata).__name__}.")
    for name in ("hook_name", "hook_name_out", "hook_head_index", "model_from_pretrained_kwargs", "model_class_name"):
        if metadata.get(name) is not None:
            if fields.get(name) not in (None, metadata[name]):
                raise InputError(
                    f"{where}: {name} is {fields[name]!r}, but in metadata {metadata[name]!r}; correct one."
                )
            fields[name] = metadata[name]
    return fields


def _architecture(fields: dict[str, Any], where: str) -> str:
    """Its name in version 6, which before was spread over two fields; sets `k`."""
    name, activation = fields.get("architecture", "standard"), fields.get("activation_fn", "relu")
    if isinstance(name, str) and name in _REFUSED:
        raise InputError(f"{where}: the architecture {name} is not supported: {_REFUSED[name]}.")
    if activation == "topk" and name in ("standard", "topk"):
        name = "topk"
        arguments = fields.get("activation_fn_kwargs")
        if isinstance(arguments, dict) and set(arguments) == {"k"}:
            fields.setdefault("k", arguments["k"])
        elif arguments:
            raise InputError(f"{where}: activation_fn_kwargs must be the k of a topk, got {arguments!r}.")
    elif activation != "relu" and not (name == "topk" and activation is None):
        raise InputError(f"{where}: activation_fn must be 'relu' or 'topk', got {activation!r} of a {name!r}.")
    if not isinstance(name, str) or name not in _ARCHITECTURES:
        raise InputError(f"{where}: unknown architecture {name!r}; this version has {', '.join(_ARCHITECTURES)}.")
    if fields.get("k") is not None and name not in ("topk", "batchtopk", "matryoshka_batchtopk"):
        raise InputError(f"{where}: k is {fields['k']!r}, but the architecture is {name}; correct one of them.")
    if name == "topk":
        required(fields, "k", where)
    if fields.get("rescale_acts_by_decoder_norm") and name not in ("topk", "batchtopk", "matryoshka_batchtopk"):
        raise InputError(f"{where}: rescale_acts_by_decoder_norm belongs to a topk, but the architecture is {name}.")
    return name


def _tensors(
    tensors: Mapping[str, np.ndarray], fields: Mapping[str, Any], architecture: str, where: str
) -> dict[str, np.ndarray]:
    """The tensors by the names and in the layout of this package, scales that stood apart multiplied in."""
    found = dict(tensors)
    if "log_threshold" in found and "threshold" not in found:  # of checkpoints during training
        found["threshold"] = np.exp(found.pop("log_threshold").astype(np.float32))
    if architecture in ("batchtopk", "matryoshka_batchtopk"):
        if "topk_threshold" not in found:
            raise InputError(
                f"{where}: the tensor topk_threshold of a {architecture} is missing; without it, which "
                "features are on depends on the other tokens of a batch."
            )
        found["threshold"] = found.pop("topk_threshold")
    if architecture in ("skip_transcoder", "jumprelu_skip_transcoder"):
        if "W_skip" not in found:
            raise InputError(f"{where}: the tensor W_skip of a {architecture} is missing.")
        found["W_skip"] = found["W_skip"].T
    elif "W_skip" in found:
        raise InputError(f"{where}: it holds W_skip, but the architecture is {architecture}.")
    finetuned = typed(fields, "finetuning_scaling_factor", bool, where, False)
    scales = {name: found.pop(name) for name in ("scaling_factor", "finetuning_scaling_factor") if name in found}
    if finetuned and not scales:
        raise InputError(f"{where}: the tensor finetuning_scaling_factor, which the config speaks of, is missing.")
    for name, scale in scales.items():
        if np.allclose(scale.astype(np.float32), 1):
            continue
        if not finetuned:
            raise InputError(f"{where}: it holds {name}, but the config says finetuning_scaling_factor false.")
        if "W_dec" not in found or scale.shape != found["W_dec"].shape[:1]:
            raise InputError(f"{where}: {name} must have one number a feature, got shape {list(scale.shape)}.")
        found["W_dec"] = found["W_dec"].astype(np.float32) * scale.astype(np.float32)[:, None]
    return found


def _processing(fields: Mapping[str, Any], where: str) -> list[str] | None:
    """Steps of weight processing of the model it was trained on: SAELens takes none but those that it records."""
    given = fields.get("model_from_pretrained_kwargs")
    if given is None:
        return None
    if not isinstance(given, dict):
        raise InputError(f"{where}: model_from_pretrained_kwargs must be an object, got {given!r}.")
    return [step for name, step in PROCESSING.items() if given.get(name)]


FORMAT = SAEFormat("sae_lens", f"a directory with {CONFIG} and {WEIGHTS} (SAELens)", _matches, _choose, _read)
