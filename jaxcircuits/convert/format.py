"""What one foreign format provides, and what all of them share: checked fields and checked tensors."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxcircuits.config import ModelConfig
from jaxcircuits.errors import InputError
from jaxcircuits.files import read_json
from jaxcircuits.sae import SAE
from jaxcircuits.tensors import check_tensors
from jaxcircuits.types import ModelWeights

_STORABLE = ("float64", "float32", "float16", "bfloat16")


class Options(NamedTuple):
    """What the user asked for.

    Attributes:
        ignore: Config fields that are accepted though nothing here understands them.
        dtype: What to store in; `None` for what the checkpoint stores.
        hook: The hook point that the autoencoder reads, where the user says it.
        hook_out: The one it writes, likewise.
    """

    ignore: Collection[str] = ()
    dtype: str | None = None
    hook: str | None = None
    hook_out: str | None = None


class ConvertedModel(NamedTuple):
    """A model as a bundle takes it, and the files it was read from."""

    cfg: ModelConfig
    params: ModelWeights
    files: Sequence[Path]


class ConvertedSAE(NamedTuple):
    """An autoencoder as a bundle takes it.

    Attributes:
        name: A readable name; empty for that of its file or directory.
        sae: The autoencoder.
        files: What it was read from.
        processing: Steps of weight processing that the model had when it was trained on; `None` where nobody says.
        scaled_norm: Whether a `hook_normalized` that it reads is meant after the norm's scale and shift.
        of_modules: Whether its hook points stand for what modules of a Hugging Face model take and give.
    """

    name: str
    sae: SAE
    files: Sequence[Path]
    processing: Collection[str] | None = None
    scaled_norm: bool = False
    of_modules: bool = False


class ModelFormat(NamedTuple):
    """A model family in a checkpoint directory.

    Attributes:
        choose: From the names of the files that are there, those that `read` needs.
        read: From the directory.
    """

    choose: Callable[[Sequence[str]], list[str]]
    read: Callable[[Path, Options], ConvertedModel]


class SAEFormat(NamedTuple):
    """A layout of autoencoder files.

    Attributes:
        name: What `--format` calls it.
        layout: How it looks, for an error.
        matches: Whether a path that the user gave holds one.
        choose: From the names of a hub repository's files, those that `read` needs; none where it is another layout.
        read: From the path.
    """

    name: str
    layout: str
    matches: Callable[[Path], bool]
    choose: Callable[[Sequence[str]], list[str]]
    read: Callable[[Path, Options], ConvertedSAE]


def read_fields(path: Path, what: str) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        InputError: The file is missing or holds something else.
    """
    fields = read_json(path, what)
    if not isinstance(fields, dict):
        raise InputError(f"{what}: {path} must hold a JSON object, got {type(fields).__name__}.")
    return fields


def name_hook(hook: str | None, options: Options, where: str, hint: str = "") -> str:
    """The hook point that is read: the one the user names, else the one that was found.

    Raises:
        InputError: There is neither, or the two differ.
    """
    return _named(hook, options.hook, "--hook", where, hint or "it does not say which hook point it reads")


def name_hook_out(hook: str | None, options: Options, where: str) -> str:
    """The same for the hook point that a transcoder writes.

    Raises:
        InputError: There is neither, or the two differ.
    """
    return _named(hook, options.hook_out, "--hook-out", where, "it does not say which hook point it writes")


def _named(found: str | None, given: str | None, option: str, where: str, missing: str) -> str:
    if found is not None and given is not None and found != given:
        raise InputError(f"{where}: its files say {found}, but {option} is {given}; leave the option out.")
    name = found if given is None else given
    if name is None:
        raise InputError(f"{where}: {missing}; pass {option} NAME, such as blocks.0.hook_resid_post.")
    return name


def check_fields(
    fields: Mapping[str, Any], understood: Collection[str], harmless: Collection[str], options: Options, where: str
) -> None:
    """Refuses a field that is neither understood, nor harmless, nor ignored on request.

    Raises:
        InputError: There is one; it is named.
    """
    for name in sorted(set(fields) - set(understood) - set(harmless) - set(options.ignore)):
        raise InputError(
            f"{where}: the field {name!r} ({str(fields[name])[:40]!r}) is not understood and may change the results; "
            f"if it does not, pass --ignore-config-field {name}."
        )


def required(fields: Mapping[str, Any], name: str, where: str) -> Any:
    """A field that must be there.

    Raises:
        InputError: It is not.
    """
    if name not in fields:
        raise InputError(f"{where}: the field {name!r} is missing; add it, or check that this is the right file.")
    return fields[name]


_KINDS = {bool: "true or false", int: "an integer", str: "a word"}


def typed(fields: Mapping[str, Any], name: str, kind: type, where: str, default: Any = None) -> Any:
    """A field of one kind; `default` where it is missing or null.

    Args:
        fields: The fields.
        name: Its name.
        kind: `bool`, `int` or `str`.
        where: The file, for an error.
        default: What it is where the file does not say.

    Raises:
        InputError: It is of another kind.
    """
    value = fields.get(name)
    if value is None:
        return default
    if type(value) is not kind:
        raise InputError(f"{where}: {name} must be {_KINDS[kind]}, got {value!r}.")
    return value


def renamed_tensors(
    tensors: Mapping[str, np.ndarray], names: Mapping[str, str], what: str, where: str
) -> dict[str, np.ndarray]:
    """The tensors by other names, those of `torch.nn.Linear` transposed.

    Args:
        tensors: The tensors; one that has no other name keeps its own.
        names: Their names to the others; each must be there.
        what: What has such tensors, for an error.
        where: The file.

    Raises:
        InputError: One is missing; it is named as its file would.
    """
    for name in names:
        if name not in tensors:
            raise InputError(f"{where}: the tensor {name} of {what} is missing; it holds {', '.join(sorted(tensors))}.")
    return {names.get(key, key): t.T if key.endswith(".weight") else t for key, t in tensors.items()}


def checked_tensors(
    tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], options: Options, where: str
) -> dict[str, np.ndarray]:
    """The tensors in the dtype asked for; every one there, no other, of the right shape, floating-point, finite.

    Raises:
        InputError: The first that is not, or that the asked dtype cannot hold; it is named.
    """
    for name in shapes:
        if name in tensors and str(tensors[name].dtype) not in _STORABLE:
            raise InputError(f"{where}: {name} must be of {', '.join(_STORABLE)}, got {tensors[name].dtype}.")
    check_tensors(tensors, shapes, where)
    if options.dtype is None:
        return dict(tensors)
    with np.errstate(over="ignore"):
        stored = {name: tensor.astype(jnp.dtype(options.dtype)) for name, tensor in tensors.items()}
    for name, tensor in stored.items():
        if not np.isfinite(tensor).all():
            largest = np.abs(tensors[name]).max()
            raise InputError(f"{where}: {options.dtype} cannot hold {name} (up to {largest:.6g}); use --dtype float32.")
    return stored
