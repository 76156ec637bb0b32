"""An autoencoder written as SAELens 6 reads it: `cfg.json` and `sae_weights.safetensors`."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxcircuits.bundle import Bundle
from jaxcircuits.convert.sae_lens_sae import CONFIG, PROCESSING, WEIGHTS
from jaxcircuits.errors import InputError
from jaxcircuits.files import EXPORT, new_directory, write_json, write_safetensors
from jaxcircuits.sae import SAE

_ARCHITECTURES = {
    ("relu", False, False): "standard",
    ("jumprelu", False, False): "jumprelu",
    ("topk", False, False): "topk",
    ("relu", True, False): "transcoder",
    ("jumprelu", True, False): "jumprelu_transcoder",
    ("relu", True, True): "skip_transcoder",
    ("jumprelu", True, True): "jumprelu_skip_transcoder",
}
"""By activation, whether it transcodes, and whether it has a skip connection."""
_VERSION = "6.0.0"
"""The version whose layout this is. Without one, SAELens takes the file for an older one and loses the metadata."""


def export_sae(
    sae: SAE,
    out: str | os.PathLike,
    *,
    model_name: str = "",
    processing: Sequence[str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes an autoencoder as SAELens 6 reads it, with `SAE.load_from_disk`.

    Features, outputs and hook names are the same there. What is a JumpReLU here, such as a gated one, is one there.

    Args:
        sae: The autoencoder.
        out: The directory to make.
        model_name: What SAELens shall call the model.
        processing: The model's weight processing, for SAELens' users to load theirs alike; `None` says nothing.
        metadata: What else to note.
        overwrite: Whether to replace an exported autoencoder that is there.

    Raises:
        InputError: SAELens has no such architecture, or `out` is taken or cannot be written.

    >>> from tempfile import TemporaryDirectory
    >>> from jaxcircuits import export_sae, load_bundle
    >>> bundle = load_bundle()
    >>> with TemporaryDirectory() as directory:
    ...     export_sae(bundle.saes["blocks.0.mlp.hook_post"], f"{directory}/sae", processing=bundle.cfg.processing)
    """
    cfg = sae.cfg
    architecture = _ARCHITECTURES.get((cfg.activation, cfg.transcodes, cfg.skip))
    if architecture is None:
        kind = f"{cfg.activation} transcoder" if cfg.transcodes else cfg.activation
        raise InputError(f"SAELens has no {kind}; it has {', '.join(_ARCHITECTURES.values())}.")
    tensors = {name: np.asarray(tensor) for name, tensor in sae.weights._asdict().items() if tensor is not None}
    if cfg.skip:
        tensors["W_skip"] = tensors["W_skip"].T
    about = {"sae_lens_version": _VERSION, "sae_lens_training_version": None, "model_name": model_name}
    about |= {"hook_name": cfg.hook_name, "hook_head_index": None}
    if cfg.transcodes:
        about |= {"hook_name_out": cfg.hook_written, "hook_head_index_out": None}
    if processing is not None:
        about["model_from_pretrained_kwargs"] = {name: step in processing for name, step in PROCESSING.items()}
    fields = {
        "architecture": architecture,
        "d_in": cfg.d_in,
        "d_sae": cfg.d_sae,
        "dtype": str(tensors["W_enc"].dtype),
        "device": "cpu",
        "apply_b_dec_to_input": cfg.subtract_b_dec,
        "normalize_activations": cfg.normalization,
        "reshape_activations": "hook_z" if cfg.hook_name.endswith("hook_z") and not cfg.transcodes else "none",
        "metadata": {**about, "origin": cfg.origin, **(metadata or {})},
        **({"d_out": cfg.width_written} if cfg.transcodes else {}),
        **({"k": cfg.k, "rescale_acts_by_decoder_norm": False} if architecture == "topk" else {}),
    }
    with new_directory(out, overwrite, EXPORT) as new:
        write_safetensors(new / WEIGHTS, tensors)
        write_json(new / CONFIG, fields)


def export_from_bundle(bundle: Bundle, name: str, out: str | os.PathLike, *, overwrite: bool = False) -> None:
    """Writes one autoencoder of a bundle, with what the bundle knows of its model.

    Raises:
        InputError: As `export_sae`, or the bundle has no autoencoder of that name.
    """
    if name not in bundle.saes:
        raise InputError(f"the bundle has no SAE {name!r}; it has {', '.join(bundle.saes) or 'none'}.")
    source = str(bundle.manifest.get("source", ""))
    known = {"context_size": bundle.cfg.n_ctx, "prepend_bos": bundle.cfg.bos_token_id is not None}
    export_sae(
        bundle.saes[name],
        out,
        model_name=source,
        processing=bundle.cfg.processing,
        metadata=known,
        overwrite=overwrite,
    )
