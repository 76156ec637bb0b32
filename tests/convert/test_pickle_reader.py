"""Pickled checkpoints: equal to `torch.load`, and nothing in them is ever executed."""

import contextlib
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcircuits.convert.pickle_reader import read_torch
from jaxcircuits.errors import InputError

torch = pytest.importorskip("torch")
from tests.convert.foreign import hugging_face, rewrite  # noqa: E402

pytestmark = pytest.mark.torch

DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")


def _assert_equal(path: Path) -> None:
    expected = torch.load(path, weights_only=False, map_location="cpu")  # its own safe reader knows protocol 2 only
    read = read_torch(path)
    assert list(read) == list(expected)
    for name, tensor in expected.items():
        assert str(read[name].dtype) == str(tensor.dtype).removeprefix("torch.")
        assert read[name].shape == tuple(tensor.shape)
        bits = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach()).flatten().view(torch.uint8)
        assert np.ascontiguousarray(read[name]).tobytes() == bits.numpy().tobytes(), name


@st.composite
def _views(draw: st.DrawFn) -> dict[str, Any]:
    """Several views of a few storages, under any dtype."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    views: dict[str, Any] = {}
    for s in range(draw(st.integers(1, 3))):
        size = draw(st.integers(0, 30))
        storage = (torch.randn(size, generator=generator) * 50).to(getattr(torch, draw(st.sampled_from(DTYPES))))
        for v in range(draw(st.integers(1, 3))):
            offset = draw(st.integers(0, size))
            shape, strides, left = [], [], size - offset
            for _ in range(draw(st.integers(0, 3))):
                strides.append(draw(st.integers(0, 4)))
                shape.append(draw(st.integers(0, 1 + max(0, left - 1) // max(1, strides[-1]) if left else 0)))
                left -= (shape[-1] - 1) * strides[-1] if shape[-1] else 0
            if left > 0 or 0 in shape:
                views[f"{s}.{v}"] = torch.as_strided(storage, shape, strides, offset)
        views[f"{s}"] = storage
    return views


@settings(max_examples=60, deadline=None)
@given(views=_views(), protocol=st.sampled_from([2, 3, 4, 5]))
def test_any_views_of_any_storages(
    tmp_path_factory: pytest.TempPathFactory, views: dict[str, Any], protocol: int
) -> None:
    path = tmp_path_factory.mktemp("torch") / "file.pt"
    torch.save(views, path, pickle_protocol=protocol)
    _assert_equal(path)


def test_state_dicts_parameters_and_shared_storages(tmp_path: Path) -> None:
    model = hugging_face()
    torch.save(model.state_dict(), tmp_path / "state.bin")
    _assert_equal(tmp_path / "state.bin")
    read = read_torch(tmp_path / "state.bin")
    assert np.shares_memory(read["lm_head.weight"], read["transformer.wte.weight"])
    torch.save(OrderedDict(model.named_parameters()), tmp_path / "parameters.bin")
    _assert_equal(tmp_path / "parameters.bin")


def test_file_saved_from_cuda(tmp_path: Path) -> None:
    torch.save({"w": torch.arange(6.0).reshape(2, 3).T}, tmp_path / "file.pt")

    def move(entries: dict[str, bytes]) -> None:
        moved = entries["data.pkl"].replace(b"X\3\0\0\0cpu", b"X\6\0\0\0cuda:0")
        assert moved != entries["data.pkl"]
        entries["data.pkl"] = moved

    _assert_equal(rewrite(tmp_path / "file.pt", move))


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "int32", "bool"])
def test_big_endian_file(tmp_path: Path, dtype: str) -> None:
    tensor = torch.arange(6).to(getattr(torch, dtype))
    torch.save({"w": tensor}, tmp_path / "file.pt")

    def swap(entries: dict[str, bytes]) -> None:
        numbers = np.frombuffer(entries["data/0"], f"u{tensor.itemsize}")
        entries |= {"byteorder": b"big", "data/0": numbers.byteswap().tobytes()}

    _assert_equal(rewrite(tmp_path / "file.pt", swap))


# --- what must not run ------------------------------------------------------------------------------------------------


class _Call:
    """Pickled, it is a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


PAYLOADS = {
    "os.system": lambda command, code: _Call(os.system, command),
    "eval": lambda command, code: _Call(eval, code),
    "exec": lambda command, code: _Call(exec, code),
    "inside an OrderedDict": lambda command, code: OrderedDict(w=_Call(os.system, command)),
    "as a key": lambda command, code: {_Call(os.system, command): 1},
    "as an argument": lambda command, code: _Call(OrderedDict, [("w", _Call(eval, code))]),
    "by way of map": lambda command, code: _Call(list, _Call(map, os.system, [command])),
}


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
@pytest.mark.parametrize("payload", PAYLOADS)
def test_nothing_is_executed(tmp_path: Path, payload: str, protocol: int) -> None:
    marker = tmp_path / "executed"
    trap = PAYLOADS[payload](f"touch {marker}", f"open({str(marker)!r}, 'w').close()")
    program = pickle.dumps({"w": trap}, protocol=protocol)
    torch.save({"w": torch.ones(2)}, tmp_path / "file.pt")
    rewrite(tmp_path / "file.pt", lambda entries: entries.update({"data.pkl": program}))
    with pytest.raises(InputError, match=r"asks for|uses the instruction"):
        read_torch(tmp_path / "file.pt")
    assert not marker.exists()
    with contextlib.suppress(TypeError):
        pickle.loads(program)  # the trap is a real one
    assert marker.exists()


PROGRAMS = {
    "INST": b"(X\4\0\0\0trueios\nsystem\n.",
    "system": b"cos\nsystem\nX\4\0\0\0true\x85R.",
    "builtins.eval": b"cbuiltins\neval\nX\3\0\0\0001+1\x85R.",
    "os.system": b"\x80\4\x8c\2os\x8c\6system\x93.",
    "NEWOBJ": b"ccollections\nOrderedDict\n)\x81.",
    "EXT1": b"\x82\1.",
    "INT": b"I1\n.",
    "torch.load": b"ctorch\nload\n.",
    "torch.FloatStorage": b"ctorch\nFloatStorage\n)R.",
}


@pytest.mark.parametrize("named", PROGRAMS)
def test_programs_that_are_no_tensors_are_refused_by_name(tmp_path: Path, named: str) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "file.pt")
    rewrite(tmp_path / "file.pt", lambda entries: entries.update({"data.pkl": PROGRAMS[named]}))
    with pytest.raises(InputError, match=named):
        read_torch(tmp_path / "file.pt")


# --- what is damaged or something else --------------------------------------------------------------------------------


def _with_size(offset: bytes, entries: dict[str, bytes]) -> None:
    """Changes the tensor's offset, the number before its shape (3, 4)."""
    changed = entries["data.pkl"].replace(b"K\0K\3K\4\x86", offset + b"K\3K\4\x86")
    assert changed != entries["data.pkl"]
    entries["data.pkl"] = changed


DAMAGES = {
    "offset beyond the storage": (lambda e: _with_size(b"K\1", e), "beyond its storage"),
    "negative offset": (lambda e: _with_size(b"J\xff\xff\xff\xff", e), "impossible offset"),
    "offset that is text": (lambda e: _with_size(b"X\1\0\0\0a", e), "impossible offset"),
    "offset that is a bool": (lambda e: _with_size(b"\x88", e), "impossible offset"),
    "short storage": (lambda e: e.update({"data/0": e["data/0"][:-4]}), r"44 bytes, expected 12 numbers"),
    "no storage": (lambda e: e.pop("data/0"), "data/0 is missing"),
    "no pickle": (lambda e: e.pop("data.pkl"), "no data.pkl"),
    "odd byte order": (lambda e: e.update(byteorder=b"middle"), "byte order"),
    "pickle without end": (lambda e: e.update({"data.pkl": e["data.pkl"][:-1]}), "damaged"),
    "empty stack": (lambda e: e.update({"data.pkl": b"\x80\2\x85."}), "damaged"),
    "a list": (lambda e: e.update({"data.pkl": b"\x80\2]."}), "tensors by name, but it is of type list"),
    "an empty dictionary": (lambda e: e.update({"data.pkl": b"\x80\2}."}), "it is of type dict"),
    "a number": (lambda e: e.update({"data.pkl": b"\x80\2}X\1\0\0\0aK\1s."}), "'a' is of type int"),
    "a name that is a number": (lambda e: e.update({"data.pkl": b"\x80\2}K\1K\1s."}), "a key is of type int"),
    "a nested dictionary": (lambda e: e.update({"data.pkl": b"\x80\2}X\1\0\0\0a}s."}), "'a' is of type dict"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_refused(tmp_path: Path, damage: str) -> None:
    torch.save({"w": torch.ones(3, 4)}, tmp_path / "file.pt")
    change, sentence = DAMAGES[damage]
    rewrite(tmp_path / "file.pt", change)
    with pytest.raises(InputError, match=sentence):
        read_torch(tmp_path / "file.pt")


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_damage_is_one_sentence_or_harmless(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Bytes changed in the file or in its pickle: tensors or `InputError`, never another exception."""
    path = tmp_path_factory.mktemp("torch") / "file.pt"
    torch.save(OrderedDict(a=torch.ones(3, 4), b=torch.nn.Parameter(torch.ones(2)), c=torch.ones(3).half()[1:]), path)

    def spoil(content: bytes) -> bytes:
        spoilt = bytearray(content)
        for _ in range(data.draw(st.integers(1, 3))):
            spoilt[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        return bytes(spoilt[: data.draw(st.sampled_from([None, None, len(spoilt) - 1, len(spoilt) // 2]))])

    if data.draw(st.booleans()):
        path.write_bytes(spoil(path.read_bytes()))
    else:
        rewrite(path, lambda entries: entries.update({"data.pkl": spoil(entries["data.pkl"])}))
    with contextlib.suppress(InputError):
        assert all(isinstance(tensor, np.ndarray) for tensor in read_torch(path).values())


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    path, tensors = tmp_path / "file.pt", {"w": torch.ones(300, 4)}
    torch.save(tensors, path)
    whole = path.read_bytes()
    for cut in (3, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"truncated|damaged|not in PyTorch's zip format"):
            read_torch(path)
    flipped = bytearray(whole)
    flipped[whole.index(torch.ones(300).numpy().tobytes())] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(InputError, match="damaged"):
        read_torch(path)
    path.write_bytes(whole)
    rewrite(path, lambda entries: None, zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match="compressed or encrypted"):
        read_torch(path)
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"rewrite it with torch\.save"):
        read_torch(path)
    torch.save(torch.ones(2), path)
    with pytest.raises(InputError, match="it is a single tensor"):
        read_torch(path)
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(InputError, match=r"torch\.nn\.modules\.linear\.Linear"):
        read_torch(path)
    torch.save({"w": torch.ones(2).to_sparse()}, path)
    with pytest.raises(InputError, match=r"_rebuild_sparse_tensor"):
        read_torch(path)
    with pytest.raises(InputError, match="there is no file"):
        read_torch(tmp_path / "missing.pt")
