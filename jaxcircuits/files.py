"""Files written whole or not at all, and read with one sentence for what is wrong with them."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from jaxcircuits.errors import InputError

RUN, STUDY, BUNDLE, EXPORT = "run.json", "study.json", "manifest.json", "cfg.json"
EVALUATION, LOSSES, FEATURES = "evaluate.json", "losses.json", "features.json"
VALIDATION, GRAPH, FAITHFULNESS, GALLERY = "report.json", "graph.json", "faithfulness.json", "gallery.json"
OUTPUTS = {RUN: "a run", STUDY: "a study", BUNDLE: "a bundle", EXPORT: "an exported SAE"}
OUTPUTS |= {EVALUATION: "an evaluation", LOSSES: "losses by token", FEATURES: "features", VALIDATION: "a validation"}
OUTPUTS |= {GRAPH: "a graph", FAITHFULNESS: "a measurement of faithfulness", GALLERY: "a gallery"}
"""Kinds of output directories, by the file that each holds."""


@contextmanager
def new_directory(path: str | os.PathLike, overwrite: bool = False, kind: str = RUN) -> Iterator[Path]:
    """Yields an empty directory beside `path` that takes its place when the block ends without an error.

    Args:
        path: Where the directory shall be.
        overwrite: Whether one of its kind that is there already is replaced.
        kind: The file that a directory of this kind holds.

    Raises:
        InputError: `path` is taken, or its parent cannot be written.
    """
    check_free(path, overwrite, kind)
    path = Path(path).resolve()  # "." can be renamed by its name only, and of a link the target is meant
    absent = absent_parents(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    except OSError as error:
        raise InputError(f"cannot write to {path.parent} ({error.strerror}); choose another place.") from None
    try:
        partial.chmod(0o755)
        yield partial
        if path.exists():  # two renames, so that a kill in between loses nothing
            old = partial.with_suffix(".old")
            path.rename(old)
            partial.rename(path)
            shutil.rmtree(old)
        else:
            partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        remove_empty(absent)


def absent_parents(path: Path) -> list[Path]:
    """The directories above a path that do not exist yet, the deepest first."""
    return [parent for parent in path.parents if not parent.exists()]


def remove_empty(directories: Sequence[Path]) -> None:
    """Removes directories, the deepest first, up to one that somebody put something into."""
    with suppress(OSError):
        for directory in directories:
            directory.rmdir()


def check_free(path: str | os.PathLike, overwrite: bool, kind: str = RUN) -> None:
    """Refuses an output directory that holds something, unless it may be replaced.

    Only a directory of the same kind may be: `--overwrite` must not delete a home directory.

    Raises:
        InputError: It is a file, holds something of another kind, or holds something and `overwrite` is off.
    """
    path = Path(path)
    if path.is_file():
        raise InputError(f"the output {path} is a file, expected a directory that does not exist yet; name another.")
    if not path.is_dir() or not any(path.iterdir()):
        return
    if not (path / kind).is_file():
        raise InputError(f"the output {path} holds something else than {OUTPUTS[kind]}; name another.")
    if not overwrite:
        raise InputError(f"the output {path} exists already; pass --overwrite to replace it or name another.")


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Writes a file whole: beside its place first, then moved there."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Writes JSON for people to read, whole."""
    write_bytes(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def read_text(path: str | os.PathLike, what: str) -> str:
    """Reads a UTF-8 file.

    Args:
        path: The file.
        what: What the file is, for the error.

    Raises:
        InputError: It is missing, unreadable or not UTF-8.
    """
    path = Path(path)
    try:
        return path.read_text(encoding="utf-8-sig")  # Windows' editors begin a file with a byte-order mark
    except FileNotFoundError:
        raise InputError(f"{what}: there is no file {path}; check the path.") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{what}: {path} is not UTF-8 (byte {error.object[error.start]:#04x} at offset {error.start}); "
            "save it as UTF-8."
        ) from None
    except OSError as error:
        raise InputError(f"{what}: cannot read {path} ({error.strerror}).") from None


def read_json(path: str | os.PathLike, what: str) -> Any:
    """Reads a JSON file.

    Raises:
        InputError: It is missing, not UTF-8 or not JSON.
    """
    text = read_text(path, what)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{what}: {path} is not JSON (line {error.lineno}: {error.msg}).") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; a list as deep
        raise InputError(f"{what}: {path} is beyond what JSON is read for here ({error}).") from None


def sha256(path: str | os.PathLike) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_safetensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads every tensor of a safetensors file.

    Raises:
        InputError: The file is missing, truncated or not safetensors.
    """
    if not Path(path).is_file():
        raise InputError(f"there is no file {path}; check the path.")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, AttributeError) as error:  # AttributeError: numpy lacks the dtype
        raise InputError(f"{path} is damaged or no safetensors file ({error}); copy or download it again.") from None


def write_safetensors(path: str | os.PathLike, tensors: Mapping[str, Any], dtype=None) -> None:
    """Writes tensors; safetensors writes a transposed view in memory order, so each is made contiguous first."""
    arrays = {k: np.asarray(v) for k, v in tensors.items()}
    if dtype is not None:
        arrays = {k: v.astype(dtype) for k, v in arrays.items()}
    write_bytes(path, save({k: np.ascontiguousarray(v) for k, v in arrays.items()}))
