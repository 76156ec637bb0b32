"""Checkpoints that `torch.save` wrote, read without PyTorch and without executing anything.

Such a file is a zip: `ROOT/data.pkl` is a pickle, `ROOT/data/KEY` are the bytes of the storages it refers to. A pickle
is a program. Python's own unpickler would run it; here the few instructions that a dictionary of tensors takes are
interpreted one by one, and the only "calls" they can make are the three named in `_call`.
"""

import math
import os
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax.numpy as jnp
import numpy as np

from jaxcircuits.errors import InputError

_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_ORDERED_DICT = "collections.OrderedDict"
_TENSOR = "torch._utils._rebuild_tensor_v2"
_PARAMETER = "torch._utils._rebuild_parameter"
_GLOBALS = {_ORDERED_DICT, _TENSOR, _PARAMETER, *(f"torch.{name}" for name in _DTYPES)}

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
_CONTAINERS: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_CHUNK = 1 << 24
_ZIP_ERRORS = (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError, ValueError)
"""What Python's zip reader raises at a damaged file: versions, passwords, disks and text that were never there."""


class _Global(NamedTuple):
    """A name that the pickle mentions. It stays a name: nothing is ever looked up by it."""

    name: str


class _Mark:
    """Where a run of stack items begins."""


def read_torch(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads a dictionary of tensors that `torch.save` wrote, from whatever device.

    Args:
        path: A `.pt` or `.bin` file.

    Returns:
        Names to arrays in the stored dtypes. Tensors that shared a storage still do.

    Raises:
        InputError: The file is missing, damaged, in the format from before PyTorch 1.6, holds something other than
            tensors by name, or its pickle asks for anything but tensors.
    """
    path = Path(path)
    content = read_torch_content(path)
    for name, value in content.items():
        if not isinstance(name, str):
            raise InputError(f"{path} must hold tensors by name, but a key is of type {type(name).__name__}.")
        if not isinstance(value, np.ndarray):
            raise InputError(f"{path} must hold tensors by name, but {name!r} is {_described(value)}.")
    return content


def read_torch_content(path: str | os.PathLike) -> dict[Any, Any]:
    """Reads whatever plain dictionary `torch.save` wrote: tensors, numbers and words, nested in lists and dictionaries.

    Raises:
        InputError: As `read_torch`, but for the kind of what the dictionary holds.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no file {path}; check the path.")
    try:
        if not zipfile.is_zipfile(path):
            _refuse_other_format(path)
        with zipfile.ZipFile(path) as archive:
            content = _Reader(path, archive).read()
    except InputError:
        raise
    except _ZIP_ERRORS as error:
        raise InputError(f"{path} is damaged ({error}); copy or download it again.") from None
    if not isinstance(content, dict) or not content:
        raise InputError(
            f"{path} must hold tensors by name, but it is {_described(content)}; save the state dict alone."
        )
    return dict(content)


def _refuse_other_format(path: Path) -> NoReturn:
    with open(path, "rb") as file:
        start = file.read(4)
    if start.startswith(b"PK"):
        raise InputError(f"{path} is truncated: its zip directory is missing; copy or download it again.")
    raise InputError(
        f"{path} is not in PyTorch's zip format of version 1.6 and later; where it is an older checkpoint, "
        "rewrite it with torch.save(torch.load(path, weights_only=True), path)."
    )


class _Reader:
    """One file: its pickle's stack, memo and storages."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._path = path
        self._archive = archive
        self._entries = {info.filename: info for info in archive.infolist()}
        roots = [name.removesuffix("data.pkl") for name in self._entries if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise InputError(f"{path} is a zip, but not one that torch.save wrote (no data.pkl); check the file.")
        self._root = roots[0]
        order = self._entry("byteorder").tobytes() if f"{self._root}byteorder" in self._entries else b"little"
        if order not in (b"little", b"big"):
            raise InputError(f"{path} is damaged: its byte order is {order!r}; copy or download it again.")
        self._swap = order == b"big"
        self._storages: dict[tuple[str, str], np.ndarray] = {}
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def read(self) -> Any:
        """Interprets the pickle."""
        program = self._entry("data.pkl").tobytes()
        try:
            for op, arg, _ in pickletools.genops(program):
                if op.name == "STOP":
                    return self._stack.pop()
                self._step(op.name, arg)
        except (IndexError, KeyError, TypeError, ValueError, OverflowError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{self._path} is damaged: its pickle cannot be followed; download it again.") from None
        raise InputError(f"{self._path} is damaged: its pickle has no end; copy or download it again.")

    def _step(self, op: str, arg: Any) -> None:
        stack = self._stack
        if op in ("PROTO", "FRAME"):
            return
        if op in _LITERALS:
            stack.append(arg)
        elif op in _CONSTANTS:
            stack.append(_CONSTANTS[op])
        elif op in _CONTAINERS:
            stack.append(_CONTAINERS[op]())
        elif op == "MARK":
            stack.append(_Mark)
        elif op in ("BINPUT", "LONG_BINPUT"):
            self._memo[arg] = stack[-1]
        elif op == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif op in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[arg])
        elif op == "TUPLE":
            stack.append(tuple(self._above_mark()))
        elif op in ("TUPLE1", "TUPLE2", "TUPLE3"):
            n = int(op[-1])
            stack.append(tuple(stack.pop(i) for i in range(-n, 0)))
        elif op in ("APPEND", "APPENDS"):
            items = [stack.pop()] if op == "APPEND" else self._above_mark()
            _expect(stack[-1], list).extend(items)
        elif op in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if op == "SETITEM" else self._above_mark()
            _expect(stack[-1], dict).update(zip(items[::2], items[1::2], strict=True))
        elif op == "GLOBAL":
            stack.append(self._global(arg.replace(" ", ".", 1)))
        elif op == "STACK_GLOBAL":
            name, module = stack.pop(), stack.pop()
            stack.append(self._global(f"{module}.{name}"))
        elif op == "REDUCE":
            args, function = stack.pop(), stack.pop()
            stack.append(self._call(function, _expect(args, tuple)))
        elif op == "BUILD":  # attributes of a state dict: its version numbers
            stack.pop()
            _expect(stack[-1], dict)
        elif op == "BINPERSID":
            stack.append(self._storage(*_expect(stack.pop(), tuple)))
        else:
            raise InputError(
                f"{self._path}: its pickle uses the instruction {op}, which a plain dictionary of tensors does not "
                "need; save the state dict alone."
            )

    def _above_mark(self) -> list[Any]:
        stack = self._stack
        start = next((i for i in reversed(range(len(stack))) if stack[i] is _Mark), None)
        if start is None:
            self._damaged("its pickle cannot be followed")
        items = stack[start + 1 :]
        del stack[start:]
        return items

    def _global(self, name: str) -> _Global:
        if name not in _GLOBALS:
            raise InputError(
                f"{self._path}: its pickle asks for {name}, which is no part of a plain dictionary of tensors; nothing "
                "was executed; do not load this file elsewhere unless you trust it, and save the state dict alone."
            )
        return _Global(name)

    def _call(self, function: Any, args: tuple[Any, ...]) -> Any:
        name = _expect(function, _Global).name
        if name == _ORDERED_DICT and not args:
            return {}
        if name == _TENSOR:
            return self._tensor(*args[:4])
        if name == _PARAMETER:
            return _expect(args[0], np.ndarray)
        self._damaged(f"a call of {name}")

    def _storage(self, kind: Any, dtype: Any, key: Any, device: Any, numel: Any) -> np.ndarray:
        if kind != "storage" or not isinstance(key, str):
            self._damaged("an unknown reference")
        name = _expect(dtype, _Global).name.removeprefix("torch.")
        if (key, name) not in self._storages:
            raw = self._entry(f"data/{key}")
            target = jnp.dtype(_DTYPES[name])
            if raw.size != numel * target.itemsize:
                self._damaged(f"storage {key} has {raw.size} bytes, expected {numel} numbers of {target}")
            if self._swap:
                raw = raw.view(f"u{target.itemsize}").byteswap()
            raw.flags.writeable = False
            self._storages[key, name] = raw.view(target)
        return self._storages[key, name]

    def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any) -> np.ndarray:
        storage = _expect(storage, np.ndarray)
        numbers = (offset, *_expect(shape, tuple), *_expect(strides, tuple))
        if len(shape) != len(strides) or any(type(n) is not int or n < 0 for n in numbers):
            self._damaged("a tensor with impossible offset, shape or strides")
        if math.prod(shape) == 0:
            return np.zeros(shape, storage.dtype)
        if offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) >= storage.size:
            self._damaged("a tensor reaches beyond its storage")
        steps = tuple(stride * storage.itemsize for stride in strides)
        return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False)

    def _entry(self, name: str) -> np.ndarray:
        """The bytes of a zip entry, whose checksum is compared; read in pieces, so that they are in memory once."""
        info = self._entries.get(self._root + name)
        if info is None:
            self._damaged(f"{name} is missing")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.file_size != info.compress_size:
            raise InputError(
                f"{self._path}: {name} is compressed or encrypted, which torch.save never does; save it again."
            )
        if info.file_size > self._path.stat().st_size:
            self._damaged(f"{name} is larger than the file")
        content = np.empty(info.file_size, np.uint8)
        with self._archive.open(info) as file:
            for start in range(0, info.file_size, _CHUNK):
                piece = content[start : start + _CHUNK]
                piece[:] = np.frombuffer(file.read(piece.size), np.uint8)  # the zip reader raises where it is short
        return content

    def _damaged(self, what: str) -> NoReturn:
        raise InputError(f"{self._path} is damaged ({what}); copy or download it again.")


def _expect(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError
    return value


def _described(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return "a single tensor"
    return f"of type {type(value).__name__}"
