"""Gemma Scope: `params.npz` with tensors alone; what they belong to stands in the path.

`.../gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71/params.npz`: the repository says which value of the layer,
and `embedding` in place of a layer an autoencoder of the embeddings, which was trained before these are multiplied by
the root of the width.

Source: SAELens 6.54 (its loaders of Gemma Scope).
"""

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxcircuits.convert.arrays import assemble
from jaxcircuits.convert.format import ConvertedSAE, Options, SAEFormat, name_hook
from jaxcircuits.errors import InputError

WEIGHTS = "params.npz"
_LAYER = re.compile(r"layer_(\d+)")
_KIND = re.compile(r"gemma-scope-[\w.-]*?-(res|mlp|att|transcoders)\b")
_HOOKS = {
    "res": ("hook_resid_post", None),
    "mlp": ("hook_mlp_out", None),
    "att": ("attn.hook_z", None),
    "transcoders": ("ln2.hook_normalized", "hook_mlp_out"),
}
"""By the end of the repository's name, the hook point that is read, and the one a transcoder writes."""
_NAMES = {"w_enc": "W_enc", "w_dec": "W_dec"}


def _file(path: Path) -> Path:
    return path if path.suffix == ".npz" else path / WEIGHTS


def _matches(path: Path) -> bool:
    return _file(path).is_file()


def _choose(names: Sequence[str]) -> list[str]:
    return [WEIGHTS] if WEIGHTS in names else []


def _read(path: Path, options: Options) -> ConvertedSAE:
    file = _file(path)
    where = str(file)
    hook, hook_out, embedding = _place(file)
    hook = name_hook(hook, options, where, "its path does not say which hook point it reads")
    if hook_out is not None and options.hook_out not in (None, hook_out):
        raise InputError(f"{where}: its path says {hook_out}, but --hook-out is {options.hook_out}; leave it out.")
    tensors = _arrays(file)
    if embedding or hook == "hook_embed":
        if any(name not in tensors for name in ("W_enc", "W_dec")):
            raise InputError(f"{where}: the tensors W_enc and W_dec are missing.")
        scale = np.sqrt(np.float32(tensors["W_dec"].shape[-1]))
        tensors |= {"W_enc": tensors["W_enc"] / scale, "W_dec": tensors["W_dec"] * scale}
    sae = assemble(
        tensors,
        hook,
        options,
        where,
        architecture="jumprelu",
        subtract_b_dec=False,
        hook_out=hook_out or options.hook_out,
        origin=f"gemma_scope {'transcoder' if hook_out or options.hook_out else 'jumprelu'}",
    )
    parts = [part for part in file.absolute().parent.parts if re.match(r"layer_|width_|average_|embedding", part)]
    return ConvertedSAE(".".join(parts[-3:]), sae, [file], ())


def _place(file: Path) -> tuple[str | None, str | None, bool]:
    """Hook points read and written, and whether it is one of the embeddings, as far as the path says so."""
    path = file.absolute().as_posix()  # not resolved: the hub's cache keeps the file itself elsewhere
    kinds, layers = _KIND.findall(path), _LAYER.findall(path)
    if "embedding" in file.absolute().parts:
        return "hook_embed", None, True
    if not kinds or not layers:
        return None, None, False
    hook, hook_out = _HOOKS[kinds[-1]]
    block = f"blocks.{layers[-1]}"
    return f"{block}.{hook}", None if hook_out is None else f"{block}.{hook_out}", False


def _arrays(file: Path) -> dict[str, np.ndarray]:
    """The arrays by the names of this package; an object array would be a program, and is refused."""
    if not file.is_file():
        raise InputError(f"SAE: there is no file {file}; check the path.")
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {str(name): archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, TypeError) as error:  # TypeError: a lone array
        raise InputError(f"{file} is damaged or no archive of plain arrays ({error}); download it again.") from None
    scale = arrays.pop("scaling_factor", None)
    if scale is not None and not np.allclose(scale, 1):
        raise InputError(f"{file}: its scaling_factor is not 1, which nothing here reads; use --format sae_lens.")
    return {_NAMES.get(name, name): array for name, array in arrays.items()}


FORMAT = SAEFormat("gemma_scope", f"{WEIGHTS} (Gemma Scope), whose path says its layer", _matches, _choose, _read)
