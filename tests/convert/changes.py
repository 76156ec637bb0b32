"""What may be different in someone's file: changes of a copy of a recorded autoencoder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

Change = Callable[[Path], Any]


def fields(*gone: str, **changed: Any) -> Change:
    """Changes the config: `cfg.json` or `config.json`."""

    def apply(path: Path) -> None:
        (file,) = [*path.rglob("cfg.json"), *path.rglob("config.json")]
        old = json.loads(file.read_text())
        file.write_text(json.dumps({k: v for k, v in (old | changed).items() if k not in gone}))

    return apply


def nested(part: str, *gone: str, **changed: Any) -> Change:
    """Changes an object inside the config."""

    def apply(path: Path) -> None:
        (file,) = [*path.rglob("cfg.json"), *path.rglob("config.json")]
        old = json.loads(file.read_text())
        old[part] = {k: v for k, v in (old[part] | changed).items() if k not in gone}
        file.write_text(json.dumps(old))

    return apply


def tensors(change: Callable[[dict[str, np.ndarray]], Any]) -> Change:
    """Changes the tensors of a safetensors or npz file."""

    def apply(path: Path) -> None:
        if found := list(path.rglob("params.npz")):
            arrays = dict(np.load(found[0]))
            change(arrays)
            np.savez(found[0], **arrays)
            return
        (file,) = path.rglob("*.safetensors")
        arrays = load_file(file)
        change(arrays)
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, file)

    return apply


def transposed(name: str) -> Change:
    return tensors(lambda t: t.update({name: t[name].T}))


def gone(name: str) -> Change:
    return tensors(lambda t: t.pop(name))


def renamed(old: str, new: str) -> Change:
    """Moves a part of the sample."""

    def apply(path: Path) -> None:
        (path / new).parent.mkdir(parents=True, exist_ok=True)
        (path / old).rename(path / new)

    return apply


def ones(t: dict[str, np.ndarray]) -> None:
    t["scaling_factor"] = np.ones_like(t["b_enc"])


def sparsity(path: Path) -> None:
    save_file({"sparsity": np.zeros(64, np.float32)}, path / "sparsity.safetensors")


def not_finite(t: dict[str, np.ndarray]) -> None:
    t["W_enc"][3, 4] = np.inf


class Trap:
    """A pickle that would write a file."""

    def __reduce__(self) -> Any:
        return exec, ("open('executed', 'w')",)


def object_array(path: Path) -> None:
    (file,) = path.rglob("params.npz")
    np.savez(file, **dict(np.load(file)), more=np.array([Trap()], object))
