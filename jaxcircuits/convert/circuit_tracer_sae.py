"""Single layers of circuit-tracer's transcoder sets: `layer_N.safetensors`, with `config.yaml` beside it.

The encoder is stored transposed, with features first. Cross-layer transcoders, which write several layers, are refused.

Source: circuit-tracer 0.5.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxcircuits.convert.arrays import assemble
from jaxcircuits.convert.format import ConvertedSAE, Options, SAEFormat, name_hook, name_hook_out
from jaxcircuits.errors import InputError
from jaxcircuits.files import read_safetensors, read_text

CONFIG = "config.yaml"
_LAYER = re.compile(r"layer_(\d+)\.safetensors")
_CROSS_LAYER = re.compile(r"W_(enc|dec)_\d+\.safetensors")
_THRESHOLD = "activation_function.threshold"
_HOOKS = {"mlp.hook_in": "ln2.hook_normalized", "mlp.hook_out": "hook_mlp_out"}
"""Other names for the input and output of the MLP; the first is the norm's value scaled and shifted."""


def _matches(path: Path) -> bool:
    return path.is_file() and bool(_LAYER.fullmatch(path.name) or _CROSS_LAYER.fullmatch(path.name))


def _choose(names: Sequence[str]) -> list[str]:
    return []


def _read(path: Path, options: Options) -> ConvertedSAE:
    where = str(path)
    if _CROSS_LAYER.fullmatch(path.name):
        raise InputError(f"{where}: a cross-layer transcoder writes several layers, which is not supported.")
    match = _LAYER.fullmatch(path.name)
    if match is None:
        raise InputError(f"{where}: expected the layer in its name, as in layer_0.safetensors.")
    config = path.with_name(CONFIG)
    fields = _fields(config) if config.is_file() else {}
    if fields.get("model_kind", "transcoder_set") != "transcoder_set":
        raise InputError(f"{config}: model_kind must be transcoder_set, got {fields['model_kind']!r}.")
    read, written = (_hook(fields, side, match[1], str(config)) for side in ("input", "output"))
    tensors = read_safetensors(path)
    found = {name: tensor.T if name in ("W_enc", "W_skip") else tensor for name, tensor in tensors.items()}
    if _THRESHOLD in found:
        found["threshold"] = found.pop(_THRESHOLD)
        if (found["threshold"] < 0).any():
            raise InputError(f"{where}: a threshold is below 0, which would let negative features on.")
    sae = assemble(
        found,
        name_hook(read, options, where),
        options,
        where,
        architecture="jumprelu" if "threshold" in found else "relu",
        subtract_b_dec=False,
        hook_out=name_hook_out(written, options, where),
        origin=f"circuit_tracer {'jumprelu' if 'threshold' in found else 'relu'} transcoder",
    )
    files = [path, *([config] if config.is_file() else [])]
    scaled, of_module = (
        fields.get("feature_input_hook") == "mlp.hook_in",
        fields.get("feature_output_hook") == "mlp.hook_out",
    )
    return ConvertedSAE(path.stem, sae, files, (), scaled_norm=scaled, of_modules=of_module)


def _fields(config: Path) -> dict[str, Any]:
    import yaml

    try:
        fields = yaml.safe_load(read_text(config, "SAE"))
    except yaml.YAMLError as error:
        raise InputError(f"SAE: {config} is not YAML ({str(error).splitlines()[0]}).") from None
    if not isinstance(fields, dict):
        raise InputError(f"SAE: {config} must hold fields by name, got {type(fields).__name__}.")
    return fields


def _hook(fields: dict[str, Any], side: str, layer: str, where: str) -> str | None:
    """The hook point of a layer, from the name that the set gives for all of them."""
    hook = fields.get(f"feature_{side}_hook")
    if hook is None:
        return None
    if not isinstance(hook, str):
        raise InputError(f"{where}: feature_{side}_hook must be a word such as hook_resid_mid, got {hook!r}.")
    return f"blocks.{layer}.{_HOOKS.get(hook, hook)}"


FORMAT = SAEFormat(
    "circuit_tracer", f"layer_N.safetensors with {CONFIG} beside it (circuit-tracer)", _matches, _choose, _read
)
