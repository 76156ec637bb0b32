"""A reference: what another implementation computed, on which inputs and weights; `NAME.npz` with `NAME.json`."""

import dataclasses
import io
import math
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxcircuits.errors import InputError
from jaxcircuits.files import read_json, sha256, write_bytes, write_json
from jaxcircuits.validation.quantities import HOW, Values

SCHEMA = 1
TOLERANCES: Mapping[str, float] = {"float32": 2e-5, "float64": 1e-9}
"""Largest max |a - b| / max |b|, by dtype."""
OTHER_DEVICE = 5e-4
"""The same for float32 numbers that were recorded on another kind of device, such as a GPU."""
ROWS = ("prompt_gradients", "prompt_hook_gradients")
"""Quantities with a row a target, each of which is a unit of its own."""


@dataclass(frozen=True)
class Quantity:
    """One array of a reference.

    Attributes:
        how: How it was computed.
        shape: Its shape, before every how-manieth number was taken.
        stride: Of the flattened array (of each row, where rows are targets) the numbers 0, stride, 2 stride, … are
            kept.
        norm: Euclidean norm of the whole array, of its finite numbers.
    """

    how: str
    shape: tuple[int, ...]
    stride: int
    norm: float


@dataclass(frozen=True)
class Reference:
    """Numbers to compare with, and their conditions.

    Attributes:
        arrays: By quantity, as `kept` leaves them.
        quantities: What each is.
        inputs: `prompt`, `story` (token ids), `feature`, `source_sae`, `target_sae`, and where ids came from text,
            `prompt_text` and `story_text`.
        weights: SHA-256 of each weight file it was computed on.
        dtype: What it was computed in.
        tolerance: What holds against it.
        framework: Names and versions.
        device: What it ran on.
        command: What made it.
    """

    arrays: Values
    quantities: Mapping[str, Quantity]
    inputs: Mapping[str, Any]
    weights: Mapping[str, str]
    dtype: str
    tolerance: float
    framework: Mapping[str, str]
    device: str
    command: str = ""
    schema: int = field(default=SCHEMA)

    @property
    def prompt(self) -> np.ndarray:
        """Token ids of the prompt."""
        return np.array(self.inputs["prompt"], np.int32)

    @property
    def story(self) -> np.ndarray:
        """Token ids of the story."""
        return np.array(self.inputs["story"], np.int32)


def describe(name: str) -> str:
    """How a quantity is computed."""
    return HOW[name] if name in HOW else HOW[name.split(".")[0]]


def kept(name: str, array: np.ndarray, stride: int) -> np.ndarray:
    """Every `stride`-th number of an array, a row for each target where it has them."""
    if stride == 1:
        return array
    rows = len(array) if name in ROWS else 1
    return array.reshape(rows, -1)[:, ::stride]


def norm(array: np.ndarray) -> float:
    """Euclidean norm of the finite numbers."""
    numbers = np.asarray(array, np.float64)
    return float(np.linalg.norm(numbers[np.isfinite(numbers)]))


def make_reference(values: Values, keep: int | None = None, **conditions: Any) -> Reference:
    """A reference of computed arrays.

    Args:
        values: By quantity, whole.
        keep: About how many numbers of each weight, hook, logits and row of hook gradients are kept; all by default.
        conditions: The other fields of `Reference`.
    """
    arrays, quantities = {}, {}
    for name, value in values.items():
        array = np.asarray(value)
        thinned = name.startswith(("weights.", "hook.")) or name in ("logits", "prompt_hook_gradients")
        stride = 1 if keep is None or not thinned else _stride(name, array, keep)
        arrays[name] = kept(name, array, stride)
        quantities[name] = Quantity(describe(name), array.shape, stride, norm(array))
    return Reference(arrays, quantities, **conditions)


def _stride(name: str, array: np.ndarray, keep: int) -> int:
    """The smallest that keeps about as many, and meets every column: it shares no factor with an axis."""
    size = array.size // len(array) if name in ROWS and len(array) else array.size
    stride = max(1, math.ceil(size / keep))
    while stride > 1 and any(math.gcd(stride, n) > 1 for n in array.shape[1:]):
        stride += 1
    return stride


def write_reference(reference: Reference, path: str | os.PathLike, *, overwrite: bool = False) -> None:
    """Writes `NAME.npz` and, last, `NAME.json`.

    Raises:
        InputError: One is there already, or the place cannot be written.
    """
    npz, about = _files(path)
    for file in (npz, about):
        if file.exists() and not overwrite:
            raise InputError(f"the output {file} exists already; pass --overwrite to replace it or name another.")
    content = io.BytesIO()
    np.savez_compressed(content, **reference.arrays)  # pyright: ignore[reportArgumentType]
    fields = {f.name: getattr(reference, f.name) for f in dataclasses.fields(reference) if f.name != "arrays"}
    fields["quantities"] = {name: dataclasses.asdict(q) for name, q in reference.quantities.items()}
    try:
        npz.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(npz, content.getvalue())
        write_json(about, fields | {"sha256": sha256(npz)})
    except OSError as error:
        raise InputError(f"cannot write {npz} ({error.strerror}); choose another place.") from None


def read_reference(path: str | os.PathLike) -> Reference:
    """Reads what `write_reference` wrote; `path` is either file, or their name without an ending.

    Raises:
        InputError: A file is missing, damaged, or holds something else.

    >>> from jaxcircuits.bundle import shipped_bundle
    >>> from jaxcircuits.validation import read_reference
    >>> reference = read_reference(shipped_bundle() / "reference.npz")
    >>> reference.dtype, reference.quantities["logits"].shape[0] == len(reference.story)
    ('float32', True)
    """
    npz, about = _files(path)
    for file in (about, npz):
        if not file.is_file():
            raise InputError(
                f"a reference is NAME.npz with NAME.json beside it, and there is no {file}; copy it there."
            )
    fields = read_json(about, "reference")
    expected = {f.name for f in dataclasses.fields(Reference)} - {"arrays"} | {"sha256"}
    if not isinstance(fields, dict) or fields.get("schema") != SCHEMA or set(fields) != expected:
        raise InputError(
            f"{about}: expected a reference of schema {SCHEMA}; record it with scripts/record_reference.py."
        )
    if sha256(npz) != fields.pop("sha256"):
        raise InputError(f"{npz} is damaged: its checksum is not the one in {about.name}; copy it or record it again.")
    try:
        with np.load(npz, allow_pickle=False) as stored:
            arrays = dict(stored)
        quantities = {n: Quantity(**(q | {"shape": tuple(q["shape"])})) for n, q in fields.pop("quantities").items()}
        reference = Reference(arrays=arrays, quantities=quantities, **fields)
        ids = [reference.prompt, reference.story]
        known = all(describe(name) for name in quantities) and isinstance(reference.inputs["feature"], int)
    except (ValueError, TypeError, KeyError, AttributeError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{about}: a field is missing or of the wrong type ({error}); record it again.") from None
    if not known or set(arrays) != set(quantities) or any(i.ndim != 1 or not len(i) for i in ids):
        raise InputError(f"{about}: its quantities or inputs are not those of {npz.name}; record it again.")
    if reference.dtype not in TOLERANCES or not 0 < reference.tolerance <= OTHER_DEVICE:
        raise InputError(
            f"{about}: expected dtype float32 or float64 and a tolerance of at most {OTHER_DEVICE:g}, got "
            f"{reference.dtype} and {reference.tolerance}; record it again."
        )
    return reference


def _files(path: str | os.PathLike) -> tuple[Path, Path]:
    path = Path(path)
    base = path.with_suffix("") if path.suffix in (".npz", ".json") else path
    return base.with_name(f"{base.name}.npz"), base.with_name(f"{base.name}.json")
