"""Directories and files here or elsewhere: a path, or a URL of any filesystem that fsspec knows."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from jaxcircuits.errors import InputError

Where = str | os.PathLike
"""A path, or a URL such as `s3://bucket/runs/one`."""


def filesystem(where: Where) -> tuple[Any, str]:
    """The fsspec filesystem of a path or URL, and the path within it.

    Raises:
        InputError: The URL's kind is unknown, or needs a package that is not installed.
    """
    import fsspec

    try:
        return fsspec.core.url_to_fs(os.fspath(where))
    except (ValueError, ImportError) as error:
        raise InputError(f"{where} cannot be opened ({error}); expected a path or a URL that fsspec knows.") from None


class Place:
    """A directory whose files are written whole or not at all.

    Args:
        where: A path or URL.

    Attributes:
        name: As it was given, for messages.
        local: Its path, where it lies on this machine.

    >>> from jaxcircuits.places import Place
    >>> place = Place("memory://somewhere/one")
    >>> place.write("part.txt", b"whole")
    >>> place.read("part.txt"), place.sizes()
    (b'whole', {'part.txt': 5})
    """

    def __init__(self, where: Where) -> None:
        from fsspec.implementations.local import LocalFileSystem

        self.name = os.fspath(where)
        self.fs, root = filesystem(where)
        self.local = Path(root).resolve() if isinstance(self.fs, LocalFileSystem) else None
        self.root = root.rstrip("/") if self.local is None else str(self.local)

    def path(self, name: str) -> str:
        """A file's path within the filesystem."""
        return f"{self.root}/{name}"

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return self.fs.isfile(self.path(name))

    def read(self, name: str) -> bytes:
        """A whole file."""
        return self.fs.cat_file(self.path(name))

    def open(self, name: str) -> Any:
        """A file, for reading."""
        return self.fs.open(self.path(name), "rb")

    def sizes(self, below: str = "") -> dict[str, int]:
        """Bytes of every file, by name."""
        self.fs.invalidate_cache()
        found = self.fs.find(self.path(below) if below else self.root, detail=True)
        return {path[len(self.root) + 1 :]: entry["size"] for path, entry in found.items()}

    def size(self, name: str) -> int:
        """Bytes of a file."""
        self.fs.invalidate_cache()
        return self.fs.size(self.path(name))

    def sha256(self, name: str) -> str:
        """The SHA-256 of a file, in hexadecimal."""
        with self.open(name) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def write(self, name: str, content: bytes) -> None:
        """Writes a file whole.

        Raises:
            InputError: It cannot be written.
        """
        if self.local is not None:
            with self.new_file(name) as file:
                file.write(content)
            return
        with self._writing(name):
            self.fs.pipe_file(self.path(name), content)

    @contextmanager
    def new_file(self, name: str) -> Iterator[Any]:
        """Yields a file to write to; a local one takes its name when the block ends without an error.

        Elsewhere a file is there once it is closed, so what it holds counts only when something else names it.

        Raises:
            InputError: It cannot be written.
        """
        if self.local is None:
            with self._writing(name), self.fs.open(self.path(name), "wb") as file:
                yield file
            return
        path = self.local / name
        partial = path.with_name(f".{path.name}.partial")
        with self._writing(name):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with open(partial, "wb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())  # what the manifest names is there even after a power cut
                os.replace(partial, path)
            except BaseException:
                with suppress(OSError):
                    partial.unlink()
                raise

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(f"cannot write {name} to {self.name} ({reason}); mend that or choose another.") from None

    def remove(self, name: str) -> None:
        """Removes a file if it is there."""
        with suppress(FileNotFoundError):
            self.fs.rm_file(self.path(name))

    def clear(self) -> None:
        """Removes the directory with all that is in it."""
        if self.local is not None:
            shutil.rmtree(self.local, ignore_errors=True)
        elif self.fs.exists(self.root):
            self.fs.rm(self.root, recursive=True)

    def fetch(self, below: str, to: Path) -> None:
        """Copies a file or a directory to a local directory, under its own name."""
        self.fs.get(self.path(below), str(to / below), recursive=True)


def digest_of(where: Where, what: str) -> str:
    """The SHA-256 of a file at a path or URL, read in pieces.

    Raises:
        InputError: It is missing or cannot be read.
    """
    with opened(where, what) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def opened(where: Where, what: str) -> Iterator[Any]:
    """A file at a path or URL, for reading.

    Args:
        where: The file.
        what: What it is, for the error.

    Raises:
        InputError: It is missing or cannot be read, now or while it is read.
    """
    fs, path = filesystem(where)
    try:
        with fs.open(path, "rb") as file:
            yield file
    except FileNotFoundError:
        raise InputError(f"{what}: there is no file {where}; check the path.") from None
    except OSError as error:
        raise InputError(f"{what}: cannot read {where} ({error.strerror or error}).") from None
