"""Files written whole or not at all."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from jaxcircuits.errors import InputError


@contextmanager
def new_directory(path: str | os.PathLike, overwrite: bool = False) -> Iterator[Path]:
    """Yields an empty directory beside `path` that takes its place when the block ends without an error.

    Args:
        path: Where the directory shall be.
        overwrite: Whether one that is there already is replaced.

    Raises:
        InputError: `path` is taken and `overwrite` is off, or its parent cannot be written.
    """
    path = Path(path)
    check_free(path, overwrite)
    absent = [parent for parent in path.parents if not parent.exists()]
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
        with suppress(OSError):  # not empty: the block ended well, or someone else writes there too
            for parent in absent:
                parent.rmdir()


def check_free(path: str | os.PathLike, overwrite: bool) -> None:
    """Refuses an output directory that holds something, unless it may be replaced.

    Raises:
        InputError: It is a file, or holds something and `overwrite` is off.
    """
    path = Path(path)
    if path.is_file():
        raise InputError(f"the output {path} is a file, expected a directory that does not exist yet; name another.")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
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
        return path.read_text(encoding="utf-8")
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
    try:
        return json.loads(read_text(path, what))
    except json.JSONDecodeError as error:
        raise InputError(f"{what}: {path} is not JSON (line {error.lineno}: {error.msg}).") from None


def sha256(path: str | os.PathLike) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
