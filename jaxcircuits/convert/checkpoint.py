"""The weight files of a Hugging Face directory: safetensors or pickled, whole or in shards."""

import fnmatch
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxcircuits.convert.format import read_fields
from jaxcircuits.convert.pickle_reader import read_torch
from jaxcircuits.errors import InputError
from jaxcircuits.files import read_safetensors


class _Kind(NamedTuple):
    """One way to store weights; an index names the shards."""

    file: str
    shards: str | None
    read: Callable[[Path], dict[str, np.ndarray]]


_KINDS = (
    _Kind("model.safetensors", None, read_safetensors),
    _Kind("model.safetensors.index.json", "model-*.safetensors", read_safetensors),
    _Kind("pytorch_model.bin", None, read_torch),
    _Kind("pytorch_model.bin.index.json", "pytorch_model-*.bin", read_torch),
)
"""In the order that Hugging Face prefers them."""


def weight_files(names: Sequence[str]) -> list[str]:
    """From the names of a directory's files, those that hold its weights; none where there are none."""
    for kind in _KINDS:
        if kind.file in names:
            return [kind.file, *(sorted(fnmatch.filter(names, kind.shards)) if kind.shards else ())]
    return []


def read_weights(path: Path, what: str) -> tuple[dict[str, np.ndarray], list[Path]]:
    """Reads a directory's tensors.

    Args:
        path: The directory.
        what: What it holds, for an error.

    Returns:
        Names to arrays, and the files they came from.

    Raises:
        InputError: There are no weights, a file is damaged, or a shard or one of its tensors is missing.
    """
    for kind in _KINDS:
        if (path / kind.file).is_file():
            return _read_shards(path, kind) if kind.shards else (kind.read(path / kind.file), [path / kind.file])
    raise InputError(f"{what}: {path} has no weights; expected {', '.join(kind.file for kind in _KINDS)}.")


def _read_shards(path: Path, kind: _Kind) -> tuple[dict[str, np.ndarray], list[Path]]:
    index = path / kind.file
    placed = read_fields(index, "model").get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(shard, str) for shard in placed.values()):
        raise InputError(f"{index} must have a weight_map from tensors to files; download it again.")
    tensors: dict[str, np.ndarray] = {}
    files = [index]
    for shard in sorted(set(placed.values())):
        if not fnmatch.fnmatch(shard, str(kind.shards)) or Path(shard).name != shard:
            raise InputError(f"{index}: the shard {shard!r} must be a file {kind.shards} beside it.")
        held = kind.read(path / shard)
        for name in held:
            if placed.get(name) != shard:
                raise InputError(
                    f"{index}: {shard} holds {name}, which the index does not place there; download it again."
                )
        tensors |= held
        files.append(path / shard)
    for name, shard in placed.items():
        if name not in tensors:
            raise InputError(f"{index}: {name} is missing from {shard}, where the index places it; download it again.")
    return tensors, files
